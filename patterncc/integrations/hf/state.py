"""What stands on an attention module while a pattern is applied, and what is recorded meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from patterncc.integrations.hf.cross import Seat
from patterncc.integrations.hf.layouts import Layouts
from patterncc.integrations.hf.modules import Part
from patterncc.integrations.hf.own_mask import Packed

NAME = "patterncc"
"""What transformers calls our attention."""

STATE = "_patterncc"
"""The attribute of an attention module that says what it runs; absent where nothing was applied."""

Dropout = Literal["error", "ignore"]


@dataclass(frozen=True)
class Fallback:
    """Calls of one layer that ran the attention which the model had, and why."""

    layer: str
    why: str
    calls: int


@dataclass(eq=False)
class Record:
    """What happened while a pattern was applied that its owner may want to know."""

    notes: dict[str, None] = field(default_factory=dict)  # in order, each once
    dense: Counter[tuple[str, str]] = field(default_factory=Counter)
    packed: Packed | None = None  # what position_ids say in the pass that runs

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # a copied model reports to the same handle

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """Calls that ran densely because `fallback="dense"` was asked for."""
        return tuple(Fallback(*key, calls) for key, calls in self.dense.items())


@dataclass(frozen=True, eq=False)
class Patterned:
    """An attention module with a pattern.

    before: the implementation that it had.  dense: calls that cannot be served run that.
    seat: shared by the modules of a layer with cross-attention.
    """

    name: str
    layouts: Layouts
    backend: str
    before: str
    part: Part = "decoder"
    seat: Seat | None = None
    dropout: Dropout = "error"
    dense: bool = False
    record: Record = field(default_factory=Record)


@dataclass(frozen=True, eq=False)
class Kept:
    """An attention module that keeps the attention it had, beside others with patterns."""

    name: str
    before: str
    part: Part = "decoder"
    seat: Seat | None = None
