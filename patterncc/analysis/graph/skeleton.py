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
    pack,
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
SMALL = 8  # edges up to which a zone among many is taken apart into single ones
LARGEST = 32  # zones that are merged, and in which others are looked for, where there are more
MERGED = 4096  # zones up to which all are merged


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A symmetric graph on `size` positions in blocks of `block` whose members all have the same
    closed neighbourhood, itself made of whole blocks (the last one may be shorter).

    zones (int64 [zones, 6], which may overlap and hold every loop) and single edges outside of
    them count blocks: block b's single edges go to others[first[b]:first[b + 1]], both ends list
    them, and both arrays are empty when there are none.
    """

    size: int
    block: int
    zones: I64
    first: I64
    others: I64

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.size // self.block)

    @cached_property
    def apart(self) -> I64:
        """The zones cut so that none overlap."""
        return disjoint(self.zones)

    @property
    def owners(self) -> I64:
        """The block that each of `others` is joined to."""
        return np.repeat(np.arange(max(0, len(self.first) - 1)), np.diff(self.first))

    @cached_property
    def edges(self) -> int:
        """Joined pairs of positions, each counted once, self-loops left out."""
        if self.block == 1:
            closed = sum(areas(self.apart).tolist()) + len(self.others)
        else:
            b = np.arange(self.blocks, dtype=np.int64)
            at, low, high = self.rows(b * self.block)
            weights = np.minimum((b + 1) * self.block, self.size) - b * self.block
            closed = int(((high - low) * weights[at]).sum())
        return int(closed - self.size) // 2

    @property
    def degree(self) -> float:
        """How many others a position is joined to, on average."""
        return 2 * self.edges / self.size if self.size else 0.0

    def rows(self, wanted: I64) -> tuple[I64, I64, I64]:
        """The closed neighbourhoods of some positions: (index into `wanted`, first, past the last)
        of disjoint intervals of positions, sorted by index and first.

        >>> from patterncc import sink, window
        >>> from patterncc.analysis.topology import topology
        >>> s = skeleton(topology(window(1) | sink(1), 9))
        >>> at, low, high = s.rows(np.array([4, 0]))
        >>> at.tolist(), low.tolist(), (high - low).tolist()
        ([0, 0, 1], [0, 3, 0], [1, 3, 9])
        """
        i0, i1, j0, j1, d0, d1 = self.apart.T
        wanted = wanted // self.block
        if len(self.apart) <= FEW:
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
        low, high = low[order] * self.block, np.minimum(high[order] * self.block, self.size)
        return at[order], low, high


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
    table = distinct[0] if len(distinct) == 1 else np.concatenate(distinct)
    if size and len(table) > FEW and (block := _grain(table, size)) > 1:
        found = _of(_coarse(table, block), -(-size // block), size, block)
        if _loops(found):
            return found
    return _of(table, size, size, 1)


def _of(table: I64, blocks: int, size: int, block: int) -> Skeleton:
    """The skeleton of a table that counts blocks."""
    nothing = np.zeros(0, dtype=np.int64)
    if not size:
        return Skeleton(0, 1, table, nothing, nothing)
    rows, columns = table[:, 1] - table[:, 0], table[:, 3] - table[:, 2]
    small = rows * columns <= SMALL
    many = int(small.sum())
    if many <= FEW or len(table) - many > FEW:
        small = np.zeros(len(table), dtype=bool)
    large = take(table, ~small) if small.any() else table
    parts = [large, transpose(large)]
    if block == 1:
        parts.append(tighten(np.array([[0, size, 0, size, 0, 1]], dtype=np.int64)))
    zones = np.concatenate(parts)
    zones = simplify(zones) if len(zones) <= MERGED else _uncovered(zones)
    if not small.any():
        return Skeleton(size, block, zones, nothing, nothing)
    first, others = _adjacency(_pairs(table, small, zones, blocks), blocks)
    return Skeleton(size, block, zones, first if len(others) else nothing, others)


def _uncovered(zones: I64) -> I64:
    """The same edges: the largest few zones merged, and those dropped that lie inside one of
    them."""
    extent = (zones[:, 1] - zones[:, 0]) * (zones[:, 5] - zones[:, 4]).astype(np.float64)
    order = np.argsort(-extent, kind="stable")
    largest, rest = simplify(take(zones, order[:LARGEST])), take(zones, order[LARGEST:])
    kept = np.ones(len(rest), dtype=bool)
    for zone in largest:
        kept &= ~((rest[:, 0::2] >= zone[0::2]) & (rest[:, 1::2] <= zone[1::2])).all(axis=1)
    return np.concatenate([largest, take(rest, kept)])


def _grain(table: I64, size: int) -> int:
    """The largest block that every zone is made of; 1 where some zone is slanted."""
    i0, i1, j0, j1, d0, d1 = table.T
    if bool(((d0 > j0 - i1 + 1) | (d1 < j1 - i0)).any()):
        return 1
    grain = 0
    for bounds in (i0, i1, j0, j1):
        grain = int(np.gcd.reduce(np.where(bounds == size, 0, bounds), initial=grain))
        if grain == 1:
            break
    return max(1, grain)


def _coarse(table: I64, block: int) -> I64:
    """Boxes of whole blocks, counted in blocks."""
    i0, i1, j0, j1 = (-(-table[:, k] // block) for k in range(4))
    return pack((i0, i1, j0, j1, j0 - i1 + 1, j1 - i0))


def _loops(s: Skeleton) -> bool:
    """Whether every block is joined to itself."""
    i0, i1, j0, j1, d0, d1 = s.zones.T
    some = (d0 <= 0) & (d1 > 0)
    low, high = np.maximum(i0, j0)[some], np.minimum(i1, j1)[some]
    change = np.zeros(s.blocks + 1, dtype=np.int64)
    np.add.at(change, low, 1)
    np.add.at(change, np.maximum(low, high), -1)
    covered = np.cumsum(change[:-1]) > 0
    if len(s.others):
        covered[s.others[s.owners == s.others]] = True
    return bool(covered.all())


def _pairs(table: I64, small: NDArray[np.bool_], zones: I64, size: int) -> tuple[I64, I64]:
    """Single edges (u, v), u <= v, each once, without those that a zone holds."""
    i, j = table[:, 0].copy(), table[:, 2].copy()
    single = (table[:, 1] - table[:, 0]) * (table[:, 3] - table[:, 2]) == 1
    one = int(np.argmax(single))  # repeats of it are cheaper than to leave out the few others
    if single[one]:
        i[~single], j[~single] = i[one], j[one]
    else:
        i, j = i[:0], j[:0]
    some = take(table, small & ~single)
    if len(some):
        zone, row = expand(some[:, 0], some[:, 1])
        low = np.maximum(some[zone, 2], row + some[zone, 4])
        high = np.minimum(some[zone, 3], row + some[zone, 5])
        edge, key = expand(low, high)
        i, j = np.append(i, row[edge]), np.append(j, key)
    place = np.minimum(i, j)
    place *= size
    place += np.maximum(i, j)
    place.sort()
    u, v = np.divmod(place[np.append(True, place[1:] != place[:-1])], size)
    step = v - u
    held = np.zeros(len(u), dtype=bool)
    for a, b, c, d, e, f in zones.tolist():
        inside = (step >= e) & (step < f)
        for x, low, high in ((u, a, b), (v, c, d)):
            if low > 0 or high < size:
                inside &= (x >= low) & (x < high)
        held |= inside
    free = ~held
    return u[free], v[free]


def _adjacency(pairs: tuple[I64, I64], size: int) -> tuple[I64, I64]:
    """Both directions of single edges: where each position's begin, and the other ends in order."""
    from scipy.sparse import csr_array

    kind = np.int32 if size < 2**31 and len(pairs[0]) < 2**30 else np.int64
    u, v = (x.astype(kind) for x in pairs)
    away = u != v
    ends = (np.concatenate([v[away], u]), np.concatenate([u[away], v]))  # sorted within each row
    both = csr_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(size, size))
    return both.indptr.astype(np.int64), both.indices.astype(np.int64)
