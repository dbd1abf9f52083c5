"""What the registered ops share: which module runs a layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from patterncc.kernels import terms
from patterncc.kernels.spec import Spec
from patterncc.kernels.terms import Terms

if TYPE_CHECKING:
    from types import ModuleType


def way(spec: Spec | Terms) -> ModuleType:
    """The module that runs a layout: its backend, or what runs that on each term."""
    match spec:
        case Spec():
            return terms.backend(spec.backend)
        case Terms():
            return terms
        case _:
            assert_never(spec)
