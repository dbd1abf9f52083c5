"""The undirected skeleton of a stack: who is joined to whom, in any layer, either way.

Two different positions are joined when some layer has an edge between them in either direction.
Kept *closed*: every position also counts as its own neighbour, which makes the zones simpler and
is taken off again where a figure is defined without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.topology import Topology
from patterncc.zones.algebra import (
    areas,
    expand,
    overlapping_pairs,
    simplify,
    take,
    tighten,
    transpose,
)
from patterncc.zones.sweep import disjoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

FEW = 64  # zones that are looked through one by one
LARGEST = 16  # zones that are kept uncut
SMALL = 8  # edges up to which a zone among many is taken apart into single ones


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A symmetric graph on `size` positions: disjoint `zones`, and single edges outside of them.

    `zones` (int64 [zones, 6]) holds every self-loop.  Position i's single edges go to
    others[first[i]:first[i + 1]]; both ends list them.  Without any, both arrays are empty.
    `largest` holds the largest few zones before they were cut to lie apart.
    """

    size: int
    zones: I64
    largest: I64
    first: I64
    others: I64

    @cached_property
    def edges(self) -> int:
        """Joined pairs, each counted once, self-loops left out."""
        closed = sum(areas(self.zones).tolist()) + len(self.others)
        return int(closed - self.size) // 2

    @property
    def degree(self) -> float:
        """How many others a position is joined to, on average."""
        return 2 * self.edges / self.size if self.size else 0.0

    def rows(self, wanted: I64) -> tuple[I64, I64, I64]:
        """The closed neighbourhoods of some positions: (index into `wanted`, first, past the last)
        of disjoint intervals, sorted by index and first.

        >>> from patterncc import sink, window
        >>> from patterncc.analysis.topology import topology
        >>> s = skeleton(topology(window(1) | sink(1), 9))
        >>> [x.tolist() for x in s.rows(np.array([4, 0]))]
        [[0, 0, 1], [0, 3, 0], [1, 6, 9]]
        """
        i0, i1, j0, j1, d0, d1 = self.zones.T
        if len(self.zones) <= FEW:
            at, zone = np.nonzero((wanted[:, None] >= i0) & (wanted[:, None] < i1))
        else:
            at, zone = overlapping_pairs(wanted, wanted + 1, i0, i1)
        i = wanted[at]
        low, high = np.maximum(j0[zone], i + d0[zone]), np.minimum(j1[zone], i + d1[zone])
        if len(self.others):
            owner, place = expand(self.first[wanted], self.first[wanted + 1])
            single = self.others[place]
            at = np.concatenate([at, owner])
            low, high = np.concatenate([low, single]), np.concatenate([high, single + 1])
        order = np.argsort(at * self.size + low, kind="stable")
        return at[order], low[order], high[order]


def skeleton(t: Topology) -> Skeleton:
    """The skeleton of the union of all layers and heads, memory positions included.

    >>> from patterncc import causal, window
    >>> from patterncc.analysis.topology import topology
    >>> s = skeleton(topology(causal() & window(2), 10))
    >>> s.zones.tolist(), s.edges
    ([[0, 10, 0, 10, -2, 3]], 17)

    Raises SizeError where the zones, cut until none overlap, would be too many.
    """
    size = t.frame.n
    distinct = list({id(level): level.zones.table for level in t.levels}.values())
    table = np.concatenate(distinct) if distinct else np.zeros((0, 6), dtype=np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    if not size:
        return Skeleton(0, table, table, nothing, nothing)
    rows, columns = table[:, 1] - table[:, 0], table[:, 3] - table[:, 2]
    small = (rows <= SMALL) & (columns <= SMALL) & (rows * columns <= SMALL)
    if int(small.sum()) <= FEW or len(table) - int(small.sum()) > FEW:
        small = np.zeros(len(table), dtype=bool)
    large = take(table, ~small) if small.any() else table
    loops = tighten(np.array([[0, size, 0, size, 0, 1]], dtype=np.int64))
    both = simplify(np.concatenate([large, transpose(large), loops]))
    zones = disjoint(both)
    extent = (both[:, 1] - both[:, 0]) * (both[:, 3] - both[:, 2]).astype(np.float64)
    largest = take(both, np.argsort(-extent, kind="stable")[:LARGEST])
    if not small.any():
        return Skeleton(size, zones, largest, nothing, nothing)
    return Skeleton(
        size, zones, largest, *_adjacency(_pairs(take(table, small), zones, size), size)
    )


def _pairs(small: I64, zones: I64, size: int) -> tuple[I64, I64]:
    """Single edges (u, v), u < v, each once, without those that a zone holds."""
    if int((small[:, 1] - small[:, 0]).max()) == int((small[:, 3] - small[:, 2]).max()) == 1:
        i, j = small[:, 0], small[:, 2]
    else:
        zone, i = expand(small[:, 0], small[:, 1])
        low = np.maximum(small[zone, 2], i + small[zone, 4])
        high = np.minimum(small[zone, 3], i + small[zone, 5])
        edge, j = expand(low, high)
        i = i[edge]
    place = np.sort(np.minimum(i, j) * size + np.maximum(i, j))
    u, v = np.divmod(place[np.append(True, place[1:] != place[:-1])], size)
    free = u != v
    for a, b, c, d, e, f in zones.tolist():
        step = v - u
        free &= (u < a) | (u >= b) | (v < c) | (v >= d) | (step < e) | (step >= f)
    return u[free], v[free]


def _adjacency(pairs: tuple[I64, I64], size: int) -> tuple[I64, I64]:
    """Both directions of single edges by position: where each begins, and the other ends."""
    from scipy.sparse import csr_array

    u, v = (x.astype(np.int32 if size < 2**31 else np.int64) for x in pairs)
    ends = (np.concatenate([u, v]), np.concatenate([v, u]))
    both = csr_array((np.ones(2 * len(u), dtype=np.int8), ends), shape=(size, size))
    return both.indptr.astype(np.int64), both.indices.astype(np.int64)
