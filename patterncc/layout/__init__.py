"""Layouts: the tiles of a mask as runs, with the masks of the partial ones."""

from patterncc.layout.build import MAX_TILES, build
from patterncc.layout.compiler import compile
from patterncc.layout.layout import Layout, Runs

__all__ = ["MAX_TILES", "Layout", "Runs", "build", "compile"]
