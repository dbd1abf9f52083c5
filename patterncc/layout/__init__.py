"""Layouts: the tiles of a mask as runs, with the masks of the partial ones."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from patterncc.layout.compiler import compile

if TYPE_CHECKING:
    from patterncc.layout.checks import check
    from patterncc.layout.cost.choices import Choices, choices
    from patterncc.layout.layout import Layout, Runs

__all__ = ["Choices", "Layout", "Runs", "check", "choices", "compile"]

_LAZY = {
    "Choices": "cost.choices",
    "Layout": "layout",
    "Runs": "layout",
    "check": "checks",
    "choices": "cost.choices",
}


def __getattr__(name: str) -> Any:
    """Names that need numpy, loaded on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'patterncc.layout' has no attribute {name!r}")
    return getattr(import_module(f"patterncc.layout.{_LAZY[name]}"), name)
