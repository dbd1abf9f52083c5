"""Sets of positions carried through zones: who reads them, what they read, layer by layer.

A set of positions is sorted, disjoint half-open intervals, int64 [m, 2].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.topology import Topology, check_position, checked
from patterncc.pattern import Pattern, check_int
from patterncc.stack import Heads, Stack
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import expand, merge_intervals, refuse_above, transpose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

MAX_MEETINGS = 2**24  # pairs (zone, interval) of one step


@dataclass(frozen=True, eq=False)
class Cone:
    """What one query sees: layers[l] are the positions whose state after l layers it can depend on.

    layers[depth] is the query alone, layers[0] the inputs: its row of R_depth.  A layer that reads
    the keys and values of an earlier one depends on the states that went into that one.
    """

    query: int
    depth: int
    layers: tuple[I64, ...]

    def sizes(self) -> tuple[int, ...]:
        """How many positions each layer's set holds."""
        return tuple(size(x) for x in self.layers)

    def to_json(self) -> dict[str, Any]:
        """The cone as one JSON object, intervals half-open."""
        return {
            "query": self.query,
            "depth": self.depth,
            "layers": [
                {"layer": l, "size": size(x), "intervals": x.tolist()}
                for l, x in enumerate(self.layers)
            ],
        }


def cone(
    stack: Stack | Pattern | Heads, n: int, query: int, depth: int | None = None, **bindings: Any
) -> Cone:
    """The receptive cone of one query through the layers, exactly, at any length.

    >>> from patterncc import causal, window
    >>> cone(causal() & window(3), 64, query=10, depth=2).layers[0].tolist()
    [[4, 11]]
    """
    t = checked("cone", stack, n, bindings, cone)
    query = check_position(t, "query", query, t.memory)
    depth = len(t.levels) if depth is None else check_int("cone", "depth", depth, 0, 100_000)
    return cone_of(t, query, depth)


def cone_of(t: Topology, query: int, depth: int) -> Cone:
    """`cone` on a stack that is lowered already."""
    return Cone(query, depth, tuple(reversed(list(downward(t, query, depth, depth)))))


def upward(t: Topology, key: int) -> Iterator[I64]:
    """The positions that depend on an input after 0, 1, 2, ... layers, without end.

    Once they stand still for `t.settled` layers they are not carried any further: the very same
    array comes again.
    """
    states, start, still = [single(key)], 0, 0  # states[k] are those after start + k layers
    for index in count():
        now = states[-1]
        yield now
        new = now
        if still < t.settled:
            read = states[t.source(index) - start]
            new = union(now, readers(t.level(index).zones, read))
            still = still + 1 if size(new) == size(now) else 0
        states.append(new if still == 0 else now)
        kept = t.settled - t.period + 1  # no layer reads further back
        start, states = start + max(0, len(states) - kept), states[-kept:]


def downward(t: Topology, query: int, top: int, steps: int) -> Iterator[I64]:
    """The positions whose states after top, top - 1, ..., top - steps layers a query depends on,
    asked for its state after `top` layers; layers below 0 are those of the stack repeated."""
    now, still = single(query), 0
    waiting: dict[int, I64] = {}  # what later layers have read of layers yet to come
    yield now
    for index in range(top - 1, top - 1 - steps, -1):
        if still < t.settled:
            source, read = t.source(index), read_by(t.level(index).zones, now)
            waiting[source] = union(waiting[source], read) if source in waiting else read
            new = union(now, waiting.pop(index)) if index in waiting else now
            still = still + 1 if size(new) == size(now) else 0
            now = new if still == 0 else now
        yield now


def single(position: int) -> I64:
    """One position as a set."""
    return np.array([[position, position + 1]], dtype=np.int64)


def union(a: I64, b: I64) -> I64:
    """Positions of either set."""
    return merge_intervals(np.concatenate([a, b]))


def size(positions: I64) -> int:
    """How many positions a set holds."""
    return int((positions[:, 1] - positions[:, 0]).sum())


def has(positions: I64, position: int) -> bool:
    """Whether a set holds a position."""
    at = int(np.searchsorted(positions[:, 0], position, side="right")) - 1
    return at >= 0 and position < int(positions[at, 1])


def common(a: I64, b: I64) -> int | None:
    """The first position that both sets hold."""
    zone, at = _meetings(a[:, 0], a[:, 1], b)
    if not len(zone):
        return None
    return int(np.maximum(a[zone, 0], b[at, 0]).min())


def readers(zones: ZoneSet, keys: I64) -> I64:
    """Queries that read some key of a set."""
    return _carry(zones.table, keys)


def read_by(zones: ZoneSet, queries: I64) -> I64:
    """Keys that some query of a set reads."""
    return _carry(transpose(zones.table), queries)


def _carry(table: I64, keys: I64) -> I64:
    i0, i1, j0, j1, d0, d1 = table.T
    zone, at = _meetings(j0, j1, keys)
    # readers of consecutive keys of a tight zone overlap or adjoin: those of [a, b) are one
    # interval
    a, b = np.maximum(j0[zone], keys[at, 0]), np.minimum(j1[zone], keys[at, 1])
    first, last = np.maximum(i0[zone], a - d1[zone] + 1), np.minimum(i1[zone], b - d0[zone])
    return merge_intervals(np.stack([first, last], axis=1))


def _meetings(j0: I64, j1: I64, intervals: I64) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Every (zone, interval) that meet; the intervals are sorted and disjoint."""
    first = np.searchsorted(intervals[:, 1], j0, side="right")
    last = np.searchsorted(intervals[:, 0], j1, side="left")
    refuse_above(
        int(np.maximum(last - first, 0).sum()), "meetings of zones and intervals", MAX_MEETINGS
    )
    return expand(first, last)
