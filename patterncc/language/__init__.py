"""The language of pattern files: YAML and expressions to patterns, each mistake with its place."""

from patterncc.language.expectation import MEASURES, NEVER, Expect, Measure
from patterncc.language.expression import parse_expression
from patterncc.language.file import PatternFile, load, loads

__all__ = [
    "MEASURES",
    "NEVER",
    "Expect",
    "Measure",
    "PatternFile",
    "load",
    "loads",
    "parse_expression",
]
