"""Analysis: what a stack lets through over depth, and what it costs."""

from patterncc.analysis.compare.comparison import Candidate, Comparison, compare
from patterncc.analysis.content import Content
from patterncc.analysis.curve import Depth, Figure
from patterncc.analysis.flow.hubs import HubLoad, hub_load
from patterncc.analysis.flow.influence import Influence, influence
from patterncc.analysis.graph.smallworld import SmallWorld, small_world
from patterncc.analysis.graph.spectrum import Spectrum, spectrum
from patterncc.analysis.lint.run import Finding
from patterncc.analysis.path import Explanation, explain
from patterncc.analysis.reach import analyze
from patterncc.analysis.report import Report
from patterncc.analysis.robustness import Robustness, robustness
from patterncc.analysis.spread import Cone, cone

__all__ = [
    "analyze",
    "Report",
    "Figure",
    "Depth",
    "Finding",
    "explain",
    "Explanation",
    "cone",
    "Cone",
    "influence",
    "Influence",
    "hub_load",
    "HubLoad",
    "robustness",
    "Robustness",
    "small_world",
    "SmallWorld",
    "spectrum",
    "Spectrum",
    "Content",
    "compare",
    "Comparison",
    "Candidate",
]
