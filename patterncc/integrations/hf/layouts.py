"""The layouts that one layer's pattern needs: one for each frame of queries and keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patterncc.attend.call import constant
from patterncc.attend.ready import Ready
from patterncc.errors import BackendError, PatternValueError
from patterncc.integrations.hf import traits
from patterncc.integrations.hf.own_mask import pattern_of
from patterncc.layout import Layout, compile
from patterncc.layout.packed import compile_packed
from patterncc.stack import Layer

KEPT = 64  # frames; more than a prefill in chunks, a decode and a few lengths need at once
LEAST = 256  # positions of the smallest layout that decode steps share


@dataclass(eq=False)
class Layouts:
    """Layouts of one layer, made when they are first asked for; shared by layers of one pattern.

    length: the graph is that of so many positions, whatever the length of a call.
    relative: edges follow from i - j alone.  only_past: no query reads a later key.
    drawn: the part that is drawn for one length, where no length was given.  reach: how far back
    the farthest key stands, None without a bound.
    """

    layer: Layer
    index: int
    bindings: Mapping[str, Any]
    length: int | None = None
    made: OrderedDict[object, Layout] = field(default_factory=OrderedDict)
    ready: dict[object, Ready] = field(default_factory=dict)  # of `step.step`
    relative: bool = field(init=False)
    only_past: bool = field(init=False)
    drawn: str | None = field(init=False)
    reach: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.relative, self.only_past = traits.relative(self.layer), traits.only_past(self.layer)
        part, self.reach = traits.drawn(self.layer), traits.reach_back(self.layer)
        self.drawn = None if part is None or self.length is not None else str(part)

    def __deepcopy__(self, memo: object) -> Layouts:
        return self  # a copied model runs the same patterns

    def fits(self, earlier: int | Tensor) -> bool:
        """Whether so many earlier positions are all that a query reads."""
        return self.reach is not None and isinstance(earlier, int) and self.reach <= earlier

    def of(self, n: int, n_k: int, q_offset: int = 0, k_offset: int = 0) -> Layout:
        """The layout of n queries from q_offset and n_k keys from k_offset.

        Raises PatternValueError for a slice of a graph that is drawn for one length.
        """
        if (q_offset or k_offset) and self.drawn is not None:
            raise self._grown()
        if self.length is not None and max(q_offset + n, k_offset + n_k) > self.length:
            raise PatternValueError(
                f"layer {self.index}: {max(q_offset + n, k_offset + n_k)} positions, but the "
                f"pattern was applied with length={self.length}; apply it with a larger one"
            )
        return _kept(self, n, n_k, q_offset, k_offset)

    def step(self, queries: int, n_k: int, *, alone: bool = True) -> Layout:
        """A layout that decode steps up to that many queries share, at least n_k keys of it.

        alone: queries and keys are of one sequence; else (cross-attention) keys do not grow.
        """
        if self.drawn is not None:
            raise self._grown()
        if not alone:
            most = traits.most_queries(self.layer)
            rows = _room(queries) if most is None else max(queries, min(most, _room(queries)))
            return _kept(self, rows, n_k, 0, 0)
        most = max(queries, n_k)
        if self.length is not None:
            return self.of(self.length, self.length) if most <= self.length else self.of(most, n_k)
        return _kept(self, _room(most), _room(most), 0, 0)

    def packed(self, starts: tuple[int, ...], positions: tuple[int, ...] | None) -> Layout:
        """Sequences behind each other, from starts[b] to starts[b + 1], the first token of each at
        its position."""
        if self.length is not None and traits.drawn(self.layer) is not None:
            raise BackendError(
                f"layer {self.index}: packed sequences under length={self.length}, one graph for "
                "all; apply without length=, so that each sequence has the graph of its own length"
            )
        key = starts, positions
        if key not in self.made:
            made = compile_packed(
                self.layer,
                starts,
                q_offset=positions,
                k_offset=positions or 0,
                layer=self.index,
                **dict(self.bindings),
            )
            self.keep(key, made)
        return self.made[key]

    def compiled(self, n: int, n_k: int, q_offset: int, k_offset: int) -> Layout:
        keys = n_k if self.length is None else self.length - k_offset
        made = compile(
            self.layer, n, keys, q_offset, k_offset, layer=self.index, **dict(self.bindings)
        )
        assert isinstance(made, Layout)
        return made if keys == n_k else made.at(n, n_k)

    def keep(self, key: object, made: Layout) -> None:
        self.made[key] = made
        while len(self.made) > KEPT:
            self.made.popitem(last=False)

    def _grown(self) -> PatternValueError:
        return PatternValueError(
            f"layer {self.index}: the edges of {self.drawn} are drawn for one length, so that a "
            "sequence that grows in a cache would change its graph at every token; write it with "
            "past=True where it takes that, or say for how many positions: "
            "pc.hf.apply(model, pattern, length=N)"
        )


def _kept(layouts: Layouts, n: int, n_k: int, q_offset: int, k_offset: int) -> Layout:
    made: Layout
    if torch.compiler.is_compiling():  # a graph that torch traces sees what stands on an object
        name = f"frame_{n}_{n_k}_{q_offset}_{k_offset}"
        _told(layouts, name, n, n_k, q_offset, k_offset)
        made = getattr(layouts, name)
        return made
    frame = n, n_k, q_offset, k_offset
    if frame not in layouts.made:
        layouts.keep(frame, layouts.compiled(*frame))
    return layouts.made[frame]


@constant
def _told(layouts: Layouts, name: str, n: int, n_k: int, q_offset: int, k_offset: int) -> bool:
    if not hasattr(layouts, name):
        setattr(layouts, name, layouts.compiled(n, n_k, q_offset, k_offset))
    return True


class _Own:
    """Layouts of models' own masks, each under its name."""


_OWN = _Own()


def of_own(past: bool, left: int, right: int, chunk: int) -> Layouts:
    """The layouts of a model's own mask, shared by all models and layers that have it."""
    name = f"{past}_{left}_{right}_{chunk}"
    _own(name, past, left, right, chunk)
    made: Layouts = getattr(_OWN, name)
    return made


@constant
def _own(name: str, past: bool, left: int, right: int, chunk: int) -> bool:
    if not hasattr(_OWN, name):
        setattr(_OWN, name, Layouts(pattern_of(past, left, right, chunk), 0, {}))
    return True


def _room(n: int) -> int:
    return max(LEAST, 1 << (n - 1).bit_length())
