"""Analysis: what a stack lets through over depth, and what it costs."""

from patterncc.analysis.compare import Candidate, Comparison, compare
from patterncc.analysis.curve import Depth, Figure
from patterncc.analysis.hubs import HubLoad, hub_load
from patterncc.analysis.influence import Influence, influence
from patterncc.analysis.lint import Finding
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
    "compare",
    "Comparison",
    "Candidate",
]
