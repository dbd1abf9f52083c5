"""The edges that decoding reads, layer by layer: lowered once, checked to be written by then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.parts import attention_part
from patterncc.errors import PatternValueError
from patterncc.pattern import Pattern
from patterncc.stack import Stack
from patterncc.zones import Frame, ZoneSet, algebra
from patterncc.zones.lower import keyed, lower

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reads:
    """The edges of one layer: `zones[head_zones[h]]` are those of query head h, one entry serves
    all heads.  `certain` is False where the layer chooses its keys by content: then they are all
    that it may choose."""

    zones: tuple[ZoneSet, ...]
    head_zones: tuple[int, ...]
    certain: bool

    def row(self, t: int, pattern: int = 0) -> I64:
        """The keys that query t reads under one of the zone sets, int64 [m, 2], ascending."""
        i0, i1, j0, j1, d0, d1 = self.zones[pattern].table.T
        low, high = np.maximum(j0, t + d0), np.minimum(j1, t + d1)
        some = (i0 <= t) & (t < i1)
        return algebra.merge_intervals(np.stack([low[some], high[some]], axis=1))


@dataclass(frozen=True)
class Lowering:
    """Layers to the edges that steps from `start` on read; equal layers are lowered once."""

    stack: Stack
    n: int
    start: int
    bindings: Mapping[str, object]

    def reads(self, chosen: frozenset[int]) -> tuple[Reads, ...]:
        """Every layer; those in `chosen` choose their keys by content."""
        known: dict[object, Reads] = {}
        found = []
        for index, layer in enumerate(self.stack):
            patterns = self.stack.heads(index)
            drawn = any(keyed(p, self.bindings)[0] for p in patterns)
            key = (layer, index if drawn else None, index in chosen)
            if key not in known:
                known[key] = self._layer(index, patterns, index not in chosen)
            found.append(known[key])
        return tuple(found)

    def _layer(self, index: int, patterns: tuple[Pattern, ...], certain: bool) -> Reads:
        places: dict[object, int] = {}
        zones: list[ZoneSet] = []
        head_zones = []
        for head, p in enumerate(patterns):
            key = (p, head if keyed(p, self.bindings)[1] else None)
            if key not in places:
                places[key] = len(zones)
                zones.append(self._zones(p, index, head))
            head_zones.append(places[key])
        return Reads(tuple(zones), tuple(head_zones), certain)

    def _zones(self, pattern: Pattern, layer: int, head: int) -> ZoneSet:
        memory, stop = self.stack.memory, self.stack.memory + self.n
        frame = Frame(stop - self.start, stop, self.start, 0)
        p = attention_part(pattern)
        if p is None:
            return ZoneSet.make(frame, [])
        more: dict[str, Any] = dict(self.bindings)
        table = lower(p, self.n, stop, memory, layer=layer, head=head, **more).table
        later = table[table[:, 5] > 1]
        later = algebra.tighten(algebra.clip(later, (memory, stop, self.start, stop)))
        later = later[later[:, 5] > 1]
        if len(later):
            _refuse_later(pattern, layer, later[0].tolist())
        if self.start > memory:
            table = algebra.tighten(algebra.clip(table, frame.box))
        return ZoneSet(frame, table)


def _refuse_later(pattern: Pattern, layer: int, zone: list[int]) -> None:
    """Name an edge to a key that is not written yet when its query is answered."""
    i0, _, j0, _, _, d1 = zone
    query = max(i0, j0 - d1 + 1)
    key = query + d1 - 1
    text = str(pattern) if len(str(pattern)) <= 80 else f"{str(pattern)[:76]} ..."
    raise PatternValueError(
        f"cache_plan: layer {layer} reads later positions: under {text} query {query} reads key "
        f"{key}, which decoding has not written by then; intersect it with causal(), or pass "
        f"prefill= where the first tokens are read at once"
    )
