"""Analysis: what a stack lets through over depth, and what it costs."""

from patterncc.analysis.reach import analyze
from patterncc.analysis.report import Depth, Figure, Report

__all__ = ["Depth", "Figure", "Report", "analyze"]
