"""Set operations that need disjoint zones: difference, symmetric difference, exact counting.

Zones are cut into *slabs* of rows in which no two of their edge lines cross.  Within a slab every
row looks the same: the lines stand in one order, a running depth says which zones cover the gap
between two neighbours, and each maximal stretch that the operation keeps is one zone again.
Everything is a sort and a running sum; the number of pieces is known before they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.zones import algebra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Rule = Callable[[NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.bool_]]


def disjoint(table: I64) -> I64:
    """The same edges with no edge in two zones.

    Zones that lie apart in i, j or j - i stay as they are (chunks, documents, dilated windows), as
    do the boxes of a grid (clusters).
    Single edges beside a few zones (random edges over a window) are sorted and looked up: a sweep
    would cut the few zones at every row of theirs.
    """
    if in_rows(table) or in_turn(table) or on_grid(table):
        return table
    single = (table[:, 1] - table[:, 0] == 1) & (table[:, 3] - table[:, 2] == 1)
    count = int(np.count_nonzero(single))
    if count > FEW and len(table) - count <= FEW:
        return _beside_singles(table, single)
    return _sweep(table, table[:0], np.logical_or)


def count(table: I64) -> int:
    """How many edges the zones have together."""
    if len(table) > _MANY:
        single = algebra.single_rows(table, 1)
        if 0 < len(table) - np.count_nonzero(single) <= FEW:
            alone = _alone(table, single)
            if alone is not None:
                return alone + count(algebra.take(table, ~single))
    return sum(algebra.areas(disjoint(table)).tolist())


def _alone(table: I64, single: NDArray[np.bool_]) -> int | None:
    """How many single edges lie in no other zone; None where they do not ascend, and so may repeat.

    Random edges do: neither a sort nor a copy of them is made.
    """
    zones = algebra.take(table, ~single).tolist()
    total, last = 0, (-1, -1)
    for a in range(0, len(table), _PIECE):
        part = table[a : a + _PIECE][single[a : a + _PIECE]]
        i, j = part[:, 0], part[:, 2]
        if not len(i):
            continue
        ascends = (i[1:] > i[:-1]) | ((i[1:] == i[:-1]) & (j[1:] > j[:-1]))
        if not ascends.all() or (int(i[0]), int(j[0])) <= last:
            return None
        last = int(i[-1]), int(j[-1])
        free = np.ones(len(i), dtype=bool)
        for i0, i1, j0, j1, d0, d1 in zones:
            free &= (i < i0) | (i >= i1) | (j < j0) | (j >= j1) | (j - i < d0) | (j - i >= d1)
        total += int(np.count_nonzero(free))
    return total


def in_turn(table: I64) -> bool:
    """Whether no two zones share a query, or no two a key, or no two a distance.

    >>> in_turn(np.array([[0, 9, 0, 9, 0, 1], [3, 9, 0, 6, -3, -2]]))
    True
    """
    for first, last in (table[:, k : k + 2].T for k in (4, 0, 2)):
        if len(table) and int((last - first).sum()) > int(last.max()) - int(first.min()):
            continue  # longer together than what they stand in
        order = np.argsort(first, kind="stable")
        if bool((first[order][1:] >= last[order][:-1]).all()):
            return True
    return False


def in_rows(table: I64) -> bool:
    """Whether all zones are of one row and stand by row and key, none touching the next's keys.

    The edges of a graph do: neither a sort nor a copy of them is made.
    """
    for a in range(0, len(table), _PIECE):
        i0, i1, j0, j1 = table[a : a + _PIECE + 1, :4].T
        apart = (i0[1:] > i0[:-1]) | ((i0[1:] == i0[:-1]) & (j0[1:] >= j1[:-1]))
        if not ((i1 - i0 == 1).all() and apart.all()):
            return False
    return True


def on_grid(table: I64) -> bool:
    """Whether all zones are boxes of one grid, none of them twice: each two have the same queries
    or share none, the same keys or share none.

    >>> on_grid(np.array([[0, 2, 0, 3, -1, 3], [0, 2, 7, 9, 6, 9], [4, 5, 7, 9, 3, 5]]))
    True
    """
    i0, i1, j0, j1, d0, d1 = table.T
    if not ((d0 == j0 - i1 + 1).all() and (d1 == j1 - i0).all()):
        return False
    ranks = []
    for first, last in ((i0, i1), (j0, j1)):
        order = np.argsort(first, kind="stable")
        a, b = first[order], last[order]
        apart = a[1:] >= b[:-1]
        if not (apart | ((a[1:] == a[:-1]) & (b[1:] == b[:-1]))).all():
            return False
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.cumsum(np.append(0, apart)[: len(order)])
        ranks.append(rank)
    box = np.sort(ranks[0] * len(table) + ranks[1])
    return bool((box[1:] != box[:-1]).all())


def _beside_singles(table: I64, single: NDArray[np.bool_]) -> I64:
    zones = algebra.take(table, ~single)
    i, j = table[single, 0], table[single, 2]
    first, size = int(j.min()), int(j.max()) - int(j.min()) + 1
    low = int(i.min())
    place = _sorted_distinct((i - low) * size + (j - first))
    i, j = np.divmod(place, size)
    i, j = i + low, j + first
    free = np.ones(len(i), dtype=bool)
    for a, b, c, d, e, f in zones.tolist():
        free &= (i < a) | (i >= b) | (j < c) | (j >= d) | (j - i < e) | (j - i >= f)
    i, j = i[free], j[free]
    alone = algebra.pack((i, i + 1, j, j + 1, j - i, j - i + 1))
    rest = _sweep(zones, zones[:0], np.logical_or) if len(zones) > 1 else zones
    return np.concatenate([rest, alone])


def difference(a: I64, b: I64) -> I64:
    """Edges of `a` that are not in `b`, disjoint."""
    if not len(a) or not len(b):
        return a
    if len(a) > _MANY and 4 * len(b) <= len(a):
        single = algebra.single_rows(a, FAR)
        rows, others = algebra.take(a, single), algebra.take(a, ~single)
        if 4 * len(others) <= len(rows) and in_rows(rows) and _apart(rows, others):
            left = _sweep(_hull(rows), b, lambda in_a, in_b: in_a & ~in_b)
            if _meetings(rows, left) <= _FEW_EACH * len(rows):
                # a graph: each edge is met with what is left around it, and cut by no other edge
                return np.concatenate([difference(others, b), algebra.intersect(rows, left)])
    return algebra.simplify(_sweep(a, b, lambda in_a, in_b: in_a & ~in_b))


def _apart(a: I64, b: I64) -> bool:
    """Whether no edge is in two zones of `b` or in both tables; False where that is slow to see."""
    few = _meetings(a, b) <= _FEW_EACH * len(a)
    return few and not len(algebra.intersect(a, b)) and (len(b) < 2 or in_turn(b))


def _meetings(a: I64, b: I64) -> int:
    """How many pairs of zones share a query."""
    return algebra.count_pairs(a[:, 0], a[:, 1], b[:, 0], b[:, 1]) if len(b) else 0


def _hull(table: I64) -> I64:
    """One zone around all, as a table."""
    ends = [table[:, k].max() if k % 2 else table[:, k].min() for k in range(6)]
    return algebra.tighten(np.array([ends], dtype=np.int64))


def symmetric_difference(a: I64, b: I64) -> I64:
    """Edges of exactly one of the two, disjoint; empty when the tables hold the same edges."""
    return _sweep(a, b, np.logical_xor)


FAR = 2**62  # past every count of keys
FEW = 64  # zones up to which each is worth a pass over all single edges
_FEW_EACH = 8  # zones up to which each zone of one row is met with all that share it
_MANY = 1024  # zones from which it is worth asking which way round is cheaper
_PIECE = 2**15  # zones that are looked at together where the table is longer than a cache


@dataclass(frozen=True)
class _Pieces:
    """Zones cut until both row ends are straight: c_low + s_low * i to c_high + s_high * i."""

    first: I64
    last: I64
    s_low: I64
    c_low: I64
    s_high: I64
    c_high: I64
    in_b: NDArray[np.bool_]


def _sweep(a: I64, b: I64, keep: Rule) -> I64:
    if not len(a) and not len(b):
        return a
    table = np.concatenate([a, b])
    if len(table) > _MANY and 2 * _slab_pieces(algebra.transpose(table)) < _slab_pieces(table):
        # many columns over the same rows: seen from the keys they are rows, and cut nothing
        return algebra.transpose(_swept(algebra.transpose(a), algebra.transpose(b), keep))
    return _swept(a, b, keep)


def _slab_pieces(table: I64) -> int:
    """How many pieces the zones' own first and last rows cut them into."""
    rows = _sorted_distinct(np.concatenate([table[:, 0], table[:, 1]]))
    spans = np.searchsorted(rows, table[:, 1]) - np.searchsorted(rows, table[:, 0])
    return int(spans.sum())


def _swept(a: I64, b: I64, keep: Rule) -> I64:
    pieces = _straighten(np.concatenate([a, b]), len(a))
    rows = _sorted_distinct(np.concatenate([pieces.first, pieces.last]))
    rows = _sorted_distinct(np.concatenate([rows, _crossings(pieces, rows)]))
    owner, slab = _cut(pieces, rows)
    return _coalesce(*_kept_stretches(pieces, rows, owner, slab, keep))


def _straighten(table: I64, count_a: int) -> _Pieces:
    """Cut every zone at the rows where a row end turns from a box side to a band side."""
    i0, i1, j0, j1, d0, d1 = table.T
    turn_low, turn_high = np.clip(j0 - d0, i0, i1), np.clip(j1 - d1, i0, i1)
    cuts = np.stack([i0, np.minimum(turn_low, turn_high), np.maximum(turn_low, turn_high), i1])
    zone = np.tile(np.arange(len(table)), 3)
    first, last = cuts[:3].ravel(), cuts[1:].ravel()
    alive = first < last
    zone, first, last = zone[alive], first[alive], last[alive]
    s_low = (first >= turn_low[zone]).astype(np.int64)
    s_high = (first < turn_high[zone]).astype(np.int64)
    return _Pieces(
        first,
        last,
        s_low,
        np.where(s_low, d0[zone], j0[zone]),
        s_high,
        np.where(s_high, d1[zone], j1[zone]),
        zone >= count_a,
    )


def _cut(pieces: _Pieces, rows: I64) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(piece, slab) for every slab [rows[s], rows[s + 1]) that a piece spans."""
    first, last = np.searchsorted(rows, pieces.first), np.searchsorted(rows, pieces.last)
    algebra.refuse_above(int((last - first).sum()), "pieces of zones, cut where their edges cross")
    return algebra.expand(first, last)


def _crossings(pieces: _Pieces, rows: I64) -> I64:
    """Rows inside a slab where a slanted line meets an upright one: row = upright - slant."""
    owner, slab = _cut(pieces, rows)
    c = np.concatenate([pieces.c_low[owner], pieces.c_high[owner]])
    slanted = np.concatenate([pieces.s_low[owner], pieces.s_high[owner]]) == 1
    place = np.concatenate([slab, slab])
    upright, at = _distinct_pairs(place[~slanted], c[~slanted])
    slab_d, d = _distinct_pairs(place[slanted], c[slanted])
    if not len(upright) or not len(slab_d):
        return rows[:0]
    # uprights stand sorted by (slab, c); their rank makes (slab, c) one number that cannot overflow
    values = _sorted_distinct(at)
    scale = len(values) + 1
    keys = upright * scale + np.searchsorted(values, at)
    low = slab_d * scale + np.searchsorted(values, rows[slab_d] + d, side="right")
    high = slab_d * scale + np.searchsorted(values, rows[slab_d + 1] + d, side="left")
    first, last = np.searchsorted(keys, low), np.searchsorted(keys, high)
    algebra.refuse_above(int(np.maximum(last - first, 0).sum()), "crossings of zone edges")
    line, met = algebra.expand(first, last)
    return _sorted_distinct(at[met] - d[line])


def _kept_stretches(
    pieces: _Pieces,
    rows: I64,
    owner: NDArray[np.intp],
    slab: NDArray[np.intp],
    keep: Rule,
) -> tuple[I64, ...]:
    """First and past-last row, and the two lines, of every stretch that the rule keeps."""
    s = np.concatenate([pieces.s_low[owner], pieces.s_high[owner]])
    c = np.concatenate([pieces.c_low[owner], pieces.c_high[owner]])
    step = np.repeat(np.array([1, -1]), len(owner))
    in_b = np.concatenate([pieces.in_b[owner]] * 2)
    place = np.concatenate([slab, slab])
    top, bottom = c + s * rows[place], c + s * (rows[place + 1] - 1)
    order = np.lexsort((bottom, top, place))
    place, top, bottom, step, in_b = (x[order] for x in (place, top, bottom, step, in_b))
    depth_a, depth_b = np.cumsum(np.where(in_b, 0, step)), np.cumsum(np.where(in_b, step, 0))
    # lines that coincide all through a slab are one line: judge after the last of them
    ends = np.ones(len(order), dtype=bool)
    ends[:-1] = (np.diff(place) != 0) | (np.diff(top) != 0) | (np.diff(bottom) != 0)
    line = order[ends]
    inside = keep(depth_a[ends] > 0, depth_b[ends] > 0)
    was = np.concatenate([[False], inside[:-1]])
    low, high = line[inside & ~was], line[~inside & was]
    at = place[ends][inside & ~was]
    return rows[at], rows[at + 1], s[low], c[low], s[high], c[high]


def _coalesce(first: I64, last: I64, s_low: I64, c_low: I64, s_high: I64, c_high: I64) -> I64:
    """Zones from stretches, those of consecutive slabs with the same two lines joined."""
    order = np.lexsort((first, c_high, s_high, c_low, s_low))
    first, last, s_low, c_low, s_high, c_high = (
        x[order] for x in (first, last, s_low, c_low, s_high, c_high)
    )
    opens = np.ones(len(order), dtype=bool)
    opens[1:] = first[1:] != last[:-1]
    for x in (s_low, c_low, s_high, c_high):
        opens[1:] |= np.diff(x) != 0
    closes = np.append(opens[1:], True)[: len(order)]
    i0, i1 = first[opens], last[closes]
    s_low, c_low, s_high, c_high = (x[opens] for x in (s_low, c_low, s_high, c_high))
    j0, j1 = c_low + s_low * i0, c_high + s_high * (i1 - 1)
    d0 = np.where(s_low == 1, c_low, j0 - i1 + 1)
    d1 = np.where(s_high == 1, c_high, j1 - i0)
    return algebra.tighten(algebra.pack((i0, i1, j0, j1, d0, d1)))


def _sorted_distinct(x: NDArray[Any]) -> NDArray[Any]:
    """np.unique for integers, by sort and mask (several times faster on long arrays)."""
    x = np.sort(x)
    return x[np.append(True, x[1:] != x[:-1])] if len(x) else x


def _distinct_pairs(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Distinct pairs (a, b), sorted."""
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    fresh = np.ones(len(a), dtype=bool)
    fresh[1:] = (np.diff(a) != 0) | (np.diff(b) != 0)
    return a[fresh], b[fresh]
