"""The algebra of zones on plain tables: clip, tighten, intersect, compose, transpose, merge, count.

Tables are int64 [zones, 6] with columns i0 i1 j0 j1 d0 d1 (see `patterncc.zones.zoneset`), stored
column by column so that a million zones stream.  Tight rows are difference-bound matrices in
canonical form (Dill 1989, Mine 2001); three variables (i, j and zero) need a single pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import SizeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

MAX_ZONES = 2**23
"""Zones that one operation may make; above it a SizeError is raised before allocating."""

_ALL_PAIRS = 48  # tables up to this long are merged by looking at every pair
_MANY_SINGLES = 4096  # single edges above which no two of them are looked at together
_PIECE = 2**15  # zones that are looked at together where the table is longer than a cache
_SAFE = 2**62


def pack(columns: tuple[Any, ...]) -> I64:
    """A table from its six columns, stored column by column."""
    return np.array(np.broadcast_arrays(*columns), dtype=np.int64).T


def take(table: I64, index: NDArray[Any]) -> I64:
    """Rows of a table by index or mask, the storage order kept."""
    picked: I64 = table.T[:, index].T
    return picked


def clip(table: I64, box: tuple[int, int, int, int]) -> I64:
    """Bounds cut to a box (i0, i1, j0, j1); rows may become empty."""
    i0, i1, j0, j1, d0, d1 = table.T
    a, b, c, d = box
    return pack(
        (
            np.maximum(i0, a),
            np.minimum(i1, b),
            np.maximum(j0, c),
            np.minimum(j1, d),
            np.maximum(d0, c - b),
            np.minimum(d1, d - a + 1),
        )
    )


def tighten(table: I64) -> I64:
    """Every bound moved inwards until it is attained by some edge; empty rows dropped."""
    tight, alive = tightened(table)
    return tight if alive.all() else take(tight, alive)


def tightened(table: I64) -> tuple[I64, NDArray[np.bool_]]:
    """The tightened rows, the empty ones included, and which rows hold an edge."""
    i0, i1, j0, j1, d0, d1 = table.T
    i0, i1 = np.maximum(i0, j0 - d1 + 1), np.minimum(i1, j1 - d0)
    j0, j1 = np.maximum(j0, i0 + d0), np.minimum(j1, i1 + d1 - 1)
    d0, d1 = np.maximum(d0, j0 - i1 + 1), np.minimum(d1, j1 - i0)
    return pack((i0, i1, j0, j1, d0, d1)), (i0 < i1) & (j0 < j1) & (d0 < d1)


def transpose(table: I64) -> I64:
    """(j, i) for every (i, j): the band becomes [1 - d1, 1 - d0)."""
    i0, i1, j0, j1, d0, d1 = table.T
    return pack((j0, j1, i0, i1, 1 - d1, 1 - d0))


def areas(table: I64) -> NDArray[Any]:
    """Edges in each tight row: a difference of two trapezoid sums.

    Python integers where int64 would overflow.
    """
    if not len(table):
        return np.zeros(0, dtype=np.int64)
    i0, i1, j0, j1, d0, d1 = table.T
    rows, cols = i1 - i0, j1 - j0
    if int(rows.max()) * (int(rows.max()) + int(cols.max())) >= _SAFE:
        rows, cols = rows.astype(object), cols.astype(object)
    # relative to (i0, j0): row t spans keys [max(0, t + low), min(cols, t + high))
    low, high = i0 + d0 - j0, i0 + d1 - j0
    bend_low = np.clip(-low, 0, rows)  # rows below it start at j0
    bend_high = np.clip(cols - high, 0, rows)  # rows below it end on the diagonal
    ends = bend_high * high + bend_high * (bend_high - 1) // 2 + (rows - bend_high) * cols
    slanted = rows - bend_low
    starts = slanted * low + (bend_low + rows - 1) * slanted // 2
    return np.asarray(ends - starts)


def intersect(a: I64, b: I64) -> I64:
    """Edges of both tables: one zone for each pair of zones that meet."""
    if not len(a) or not len(b):
        return take(a, np.zeros(0, dtype=np.int64))
    if max(len(a), len(b)) > 2 * _PIECE and min(len(a), len(b)) <= _PIECE:
        return _intersect_long(*((a, b) if len(a) > len(b) else (b, a)))
    axes = [(a[:, k], a[:, k + 1], b[:, k], b[:, k + 1]) for k in (0, 2, 4)]
    best = min(axes, key=lambda axis: count_pairs(*axis)) if len(a) * len(b) > 64 else axes[0]
    left, right = overlapping_pairs(*best)
    x, y = take(a, left).T, take(b, right).T
    return tighten(pack(tuple((np.minimum if k % 2 else np.maximum)(x[k], y[k]) for k in range(6))))


def _intersect_long(a: I64, b: I64) -> I64:
    """The same for a long table and a short one, piece by piece of the long one."""
    found, count = [], 0
    for first in range(0, len(a), _PIECE):
        found.append(intersect(a[first : first + _PIECE], b))
        count += len(found[-1])
        refuse_above(count, "zones that meet")
    return np.concatenate([x.T for x in found], axis=1).T


def compose(a: I64, b: I64) -> I64:
    """(i, k) with (i, j) in `a` and (j, k) in `b` for some j: a zone a pair whose j ranges meet.

    Exact over the integers: some j fits three intervals (both j ranges met, i plus a's band, k
    minus b's band) exactly when they meet pairwise, and each pair of them is one bound.
    """
    if not len(a) or not len(b):
        return take(a, np.zeros(0, dtype=np.int64))
    left, right = overlapping_pairs(a[:, 2], a[:, 3], b[:, 0], b[:, 1])
    i0, i1, aj0, aj1, p0, p1 = take(a, left).T
    bj0, bj1, k0, k1, q0, q1 = take(b, right).T
    j0, j1 = np.maximum(aj0, bj0), np.minimum(aj1, bj1)
    return tighten(
        pack(
            (
                np.maximum(i0, j0 - p1 + 1),
                np.minimum(i1, j1 - p0),
                np.maximum(k0, j0 + q0),
                np.minimum(k1, j1 - 1 + q1),
                p0 + q0,
                p1 + q1 - 1,
            )
        )
    )


def count_pairs(a0: I64, a1: I64, b0: I64, b1: I64) -> int:
    """How many pairs of half-open intervals [a0, a1) and [b0, b1) meet, without listing them."""
    ended = np.searchsorted(np.sort(b1), a0, side="right")  # b ended at or before a's start
    begun = np.searchsorted(np.sort(b0), a1, side="left")  # b began before a's end
    return int((begun - ended).sum())


def overlapping_pairs(
    a0: I64, a1: I64, b0: I64, b1: I64, limit: int = MAX_ZONES
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices (left, right) of every pair of non-empty half-open intervals that meet.

    Two intervals meet when one's start lies in the other, so sorted look-ups list each pair once.

    >>> left, right = overlapping_pairs(*np.array([[0, 5], [4, 9], [3, 20], [6, 30]]))
    >>> left.tolist(), right.tolist()
    ([0, 1], [0, 0])
    """
    if len(a0) * len(b0) <= 1024:
        left, right = np.nonzero((a0[:, None] < b1) & (b0 < a1[:, None]))
        return left, right
    refuse_above(count_pairs(a0, a1, b0, b1), "pairs of zones that meet", limit)
    by_a, by_b = np.argsort(a0, kind="stable"), np.argsort(b0, kind="stable")
    starts_a, starts_b = a0[by_a], b0[by_b]
    first = np.searchsorted(starts_b, a0, side="left")
    left1, at1 = expand(first, np.searchsorted(starts_b, a1, side="left"))
    first = np.searchsorted(starts_a, b0, side="right")
    right2, at2 = expand(first, np.searchsorted(starts_a, b1, side="left"))
    return np.concatenate([left1, by_a[at2]]), np.concatenate([by_b[at1], right2])


def expand(first: NDArray[Any], last: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Every (k, x) with first[k] <= x < last[k]: k repeated, and x.

    >>> [x.tolist() for x in expand(np.array([3, 7]), np.array([5, 8]))]
    [[0, 0, 1], [3, 4, 7]]
    """
    counts = np.maximum(last - first, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) + np.repeat(first - before, counts)


def merge_intervals(intervals: I64) -> I64:
    """Sorted, disjoint, not touching: the union of half-open intervals, int64 [m, 2].

    >>> merge_intervals(np.array([[8, 9], [0, 3], [3, 5], [1, 2]])).tolist()
    [[0, 5], [8, 9]]
    """
    if not len(intervals):
        return np.zeros((0, 2), dtype=np.int64)
    order = np.argsort(intervals[:, 0], kind="stable")
    start, reach = intervals[order, 0], np.maximum.accumulate(intervals[order, 1])
    opens = np.concatenate([[True], start[1:] > reach[:-1]])
    closes = np.concatenate([opens[1:], [True]])
    return np.stack([start[opens], reach[closes]], axis=1)


def simplify(table: I64) -> I64:
    """The same edges in fewer zones: contained ones dropped, pairs whose hull adds nothing merged.

    Every pair is looked at in short tables; in long ones neighbours in three sort orders, and the
    largest zones against all.  Very many single edges are kept as they are, since hardly two of
    them make a zone.  What is left may still overlap.
    """
    if len(table) > _MANY_SINGLES:
        single = single_rows(table, 1)
        if np.count_nonzero(single) > _MANY_SINGLES:
            return _beside_singles(table, single)
    while len(table) > 1:
        before = len(table)
        if before <= _ALL_PAIRS:
            table = _merge_all_pairs(table)
        else:
            table = _drop_contained(table)
            for order in ((0, 5, 4), (0, 3, 2), (2, 1, 0)):
                table = _merge_neighbours(table, order)
        if len(table) == before:
            break
    return table


def single_rows(table: I64, keys: int) -> NDArray[np.bool_]:
    """Which zones are of one row and at most `keys` keys; in pieces that stay in cache."""
    found = np.empty(len(table), dtype=bool)
    for a in range(0, len(table), _PIECE):
        i0, i1, j0, j1 = table[a : a + _PIECE, :4].T
        found[a : a + _PIECE] = (i1 - i0 == 1) & (j1 - j0 <= keys)
    return found


def _beside_singles(table: I64, single: NDArray[np.bool_]) -> I64:
    """The other zones simplified, then the single edges outside the largest of them.

    Singles are dropped only where that frees enough to be worth a copy of the table.
    """
    others = simplify(take(table, ~single))
    largest = _largest(others).tolist()
    inside = np.zeros(len(table), dtype=bool)
    for a in range(0, len(table), _PIECE):
        row, _, key, _, offset, _ = table[a : a + _PIECE].T
        for i0, i1, j0, j1, d0, d1 in largest:
            near = np.flatnonzero((offset >= d0) & (offset < d1))
            at, to = row[near], key[near]
            inside[a + near[(at >= i0) & (at < i1) & (to >= j0) & (to < j1)]] = True
    inside &= single
    few = 16 * np.count_nonzero(inside) < len(table)
    if few and len(others) + np.count_nonzero(single) == len(table):
        return table
    return np.concatenate([others, take(table, single if few else single & ~inside)])


def _largest(table: I64, most: int = 16) -> I64:
    """The zones that have the most rows times diagonals."""
    size = (table[:, 1] - table[:, 0]) * (table[:, 5] - table[:, 4]).astype(np.float64)
    return take(table, np.argsort(-size, kind="stable")[:most])


def _merge_all_pairs(table: I64) -> I64:
    left, right = np.triu_indices(len(table), 1)
    good = _hull_is_exact(take(table, left), take(table, right))
    used = np.zeros(len(table), dtype=bool)
    merged = []
    for x, y in zip(left[good].tolist(), right[good].tolist(), strict=True):
        if not (used[x] or used[y]):
            used[x] = used[y] = True
            merged.append(_hull(table[x : x + 1], table[y : y + 1]))
    return np.concatenate([take(table, ~used), *merged]) if merged else table


def _merge_neighbours(table: I64, order: tuple[int, ...]) -> I64:
    """Merge runs of neighbours in a sort order, halving each run a pass until nothing merges."""
    table = take(table, np.lexsort([table[:, k] for k in order]))
    while len(table) > 1:
        good = _hull_is_exact(table[:-1], table[1:])
        if not good.any():
            break
        position = np.arange(len(good))
        opened = np.maximum.accumulate(
            np.where(good, -1, position)
        )  # last index that does not merge
        first = np.flatnonzero(good & ((position - opened) % 2 == 1))
        hull = _hull(take(table, first), take(table, first + 1))
        keep = np.ones(len(table), dtype=bool)
        keep[first + 1] = False
        table = table.copy(order="F")
        table[first] = hull
        table = take(table, keep)
    return table


def _drop_contained(table: I64) -> I64:
    """Drop zones that lie inside one of the largest few."""
    size = (table[:, 1] - table[:, 0]) * (table[:, 5] - table[:, 4]).astype(np.float64)
    alive = np.ones(len(table), dtype=bool)
    for k in np.argsort(-size, kind="stable")[:16].tolist():
        if alive[k]:
            inside = np.ones(len(table), dtype=bool)
            for column, bound in enumerate(table[k].tolist()):
                inside &= table[:, column] <= bound if column % 2 else table[:, column] >= bound
            alive &= ~inside
            alive[k] = True
    return take(table, alive)


def _hull(a: I64, b: I64) -> I64:
    x, y = a.T, b.T
    return pack(tuple((np.maximum if k % 2 else np.minimum)(x[k], y[k]) for k in range(6)))


def _hull_is_exact(a: I64, b: I64) -> NDArray[np.bool_]:
    """Row by row: the smallest zone around both holds no further edge (counted, not guessed)."""
    x, y = a.T, b.T
    meet = pack(tuple((np.minimum if k % 2 else np.maximum)(x[k], y[k]) for k in range(6)))
    near = (meet[:, 0] <= meet[:, 1]) & (meet[:, 2] <= meet[:, 3]) & (meet[:, 4] <= meet[:, 5])
    index = np.flatnonzero(near)
    if not len(index):
        return near
    a, b = take(a, index), take(b, index)
    both, alive = tightened(take(meet, index))
    overlap = areas(take(both, alive))
    common = np.zeros(len(index), dtype=overlap.dtype)
    common[alive] = overlap
    return _mark(len(near), index[areas(_hull(a, b)) == areas(a) + areas(b) - common])


def _mark(length: int, index: NDArray[np.intp]) -> NDArray[np.bool_]:
    marked = np.zeros(length, dtype=bool)
    marked[index] = True
    return marked


def dense(table: I64, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """The bool mask of a box, row by row: interval ends counted, then summed along the row."""
    i0, i1, j0, j1 = box
    height, width = max(0, i1 - i0), max(0, j1 - j0)
    mask = np.zeros((height, width), dtype=bool)
    step = max(1, 2**22 // (width + 1))
    for top in range(0, height, step):
        rows = min(step, height - top)
        part = tighten(clip(table, (i0 + top, i0 + top + rows, j0, j1)))
        owner, i = expand(part[:, 0], part[:, 1])
        low = np.maximum(part[owner, 2], i + part[owner, 4]) - j0
        high = np.minimum(part[owner, 3], i + part[owner, 5]) - j0
        flat = (i - i0 - top) * (width + 1)
        size = rows * (width + 1)
        ends = np.bincount(flat + low, minlength=size) - np.bincount(flat + high, minlength=size)
        mask[top : top + rows] = np.cumsum(ends.reshape(rows, width + 1), axis=1)[:, :width] > 0
    return mask


def refuse_above(count: int, what: str, limit: int = MAX_ZONES) -> None:
    """Raise a SizeError, before anything is allocated, when `count` passes `limit`."""
    if count > limit:
        raise SizeError(
            f"this would make {count:,} {what}, more than the limit of {limit:,}; use a shorter "
            "length, coarser blocks, or (for reach) the tiles or rows engine"
        )
