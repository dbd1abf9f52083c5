"""What a layout would hold, counted from strips: tiles, runs and the longest row, none listed.

A few zones are counted in a few rows.  Between the rows where a bound begins, ends or meets
another, every interval of tiles grows evenly from one *slab* of 256 queries to the next (all sides
of tiles divide 256), so the first and the last slab of such a stretch tell the sum of all:

    ####                    slabs with a corner count for themselves;
    #####   <- first
    ######                  of a stretch of m even slabs the first and the last
    #######                 count m / 2 times each
    ########  <- last
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from patterncc.layout.runs import merged
from patterncc.zones.tiles import local, strips

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.zones.zoneset import Frame, ZoneSet

Counts = Literal["exact", "bound", "sample"]

SLAB = 256  # the largest side of a tile
FEW = 8  # zones whose bounds are compared pair by pair
NEAR = 3  # slabs beside a corner in which rounding to tiles may still be uneven
SAMPLE = 256  # slabs that stand for all where there are many zones, at most
CROWD = 30_000  # zones that are looked at where there are very many
MOST = 16  # slabs at least, however many zones each holds
MANY_STRIPS = 1_000_000  # more are not counted one by one


@dataclass(frozen=True)
class Work:
    """What one pattern's tiles amount to.

    full, partial: tiles.  records: pairs of a zone and a tile that it touches and does not fill.
    runs: of the forward direction, about.  rows: tile rows that hold a tile.
    longest: tiles of the longest row.
    counts: "exact" where `full` and `partial` are the layout's; "bound" where `full` is a lower and
    `full + partial` an upper bound; "sample" where some of the rows stood for all.
    """

    full: int
    partial: int
    records: int
    runs: int
    rows: int
    longest: int
    counts: Counts

    @property
    def tiles(self) -> int:
        """Tiles touched."""
        return self.full + self.partial


@dataclass(frozen=True, eq=False)
class Part:
    """Zones cut to the slabs that are counted.

    table: zones within [0, n) x [0, n_k), each in one slab unless all rows are counted.
    place: of each, the number of its slab among those counted; None where all rows are.
    weight: how many slabs each counted one stands for.
    zones: how many there were.  sampled: the slabs were drawn, not derived.
    """

    frame: Frame
    table: NDArray[Any]
    place: NDArray[Any] | None
    weight: NDArray[np.float64]
    zones: int
    sampled: bool = False


def part(zones: ZoneSet, quick: bool = False) -> Part:
    """The zones as they are counted, for any size of tile.

    quick: of many zones, count some slabs only, as is done of very many in any case.
    """
    frame, count = zones.frame, len(zones.table)
    quick = quick or count > MANY_STRIPS
    slabs = -(-frame.n // SLAB)
    if quick and count > 4 * CROWD and _by_query(zones.table):
        spaced = _spaced(slabs, CROWD * slabs // count + MOST)
        return _cut(frame, _reading(zones, spaced), spaced, _stand_for(spaced, slabs), True)
    table = local(zones)
    if count <= FEW:
        if slabs > 64 * max(1, count):
            return _cut(frame, table, *_stretches(_corners(table, frame.n), slabs))
    elif quick and count + slabs > 16 * SAMPLE:
        some = min(SAMPLE, CROWD * slabs // count + MOST)
        return _cut(frame, table, *_drawn(_largest(table), slabs, some), sampled=True)
    return Part(frame, table, None, np.ones(0), count)


def work(p: Part, block: tuple[int, int]) -> Work:
    """Count the tiles of one size; a bound where more than MANY_STRIPS strips would be made.

    >>> from patterncc import causal, lower
    >>> w = work(part(lower(causal(), 2**20)), (128, 128))
    >>> w.full, w.partial, w.longest, w.counts
    (33550336, 8192, 8192, 'exact')
    """
    table, frame = p.table, p.frame
    if not len(table) or not frame.n:
        return Work(0, 0, 0, 0, 0, 0, "exact")
    height, width = block
    met = (table[:, 1] - 1) // height - table[:, 0] // height + 1
    if int(met.sum(dtype=np.int64)) > MANY_STRIPS:
        return _bounded(p, met, block)
    s = strips(table, frame.n, frame.n_k, block)
    # a tile that reaches past the last key is not full in a layout
    full_last = np.maximum(np.minimum(s.full_last, frame.n_k // width), s.full_first)
    wide, filled = s.last - s.first, full_last - s.full_first
    # a slanted edge crosses so many tiles, each with a mask of its own; others are alike
    slanted = -(-(height - 1) // width) + 1
    left, right = s.full_first - s.first, s.last - full_last
    parts = (np.minimum(left, 2 * slanted + 1), filled > 0, np.minimum(right, slanted))
    times = None if p.place is None else p.weight[p.place[s.zone]]
    records = _sum(wide - filled, times)
    runs = sum(_sum(x, times) for x in parts)
    if p.zones == 1:
        full, rows = _sum(filled, times), _sum(np.ones(len(s)), times)
        return Work(full, records, records, runs, rows, int(wide.max()), "exact")
    stride = -(-frame.n_k // width) + 1
    row, weight = s.row.astype(np.int64), None
    if p.place is not None:  # rows are counted from the first slab that is
        row = p.place[s.zone] * (SLAB // height) + row % (SLAB // height)
        weight = np.repeat(p.weight, SLAB // height)
    line = row * stride
    touched, per_row = _united(line + s.first, line + s.last, stride, weight)
    some = filled > 0
    full, _ = _united((line + s.full_first)[some], (line + full_last)[some], stride, weight)
    rows = _sum(per_row > 0, weight)
    # single records: no tile has two zones, so none is full of several
    counts: Counts = "sample" if p.sampled else "exact" if records == touched - full else "bound"
    longest = int(per_row.max())
    return Work(full, touched - full, records, min(runs, touched), rows, longest, counts)


def _sum(values: NDArray[Any], times: NDArray[np.float64] | None) -> int:
    """The sum, each value as often as it stands for others."""
    return (
        int(values.sum(dtype=np.int64)) if times is None else round(float((values * times).sum()))
    )


def _united(
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    stride: int,
    weight: NDArray[np.float64] | None,
) -> tuple[int, NDArray[Any]]:
    """Tiles in the union of intervals [first, last): of all rows, and of each."""
    first, last = merged(first, last)
    size = 0 if weight is None else len(weight)
    per_row = np.bincount(first // stride, weights=last - first, minlength=max(1, size))
    return _sum(per_row, weight), per_row


def _corners(table: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Queries where a zone begins or ends, or where a slanted bound meets an upright one."""
    t = table.astype(np.int64)
    upright = np.concatenate([t[:, 2], t[:, 3]])
    slanted = np.concatenate([t[:, 4], t[:, 5]])
    meet = (upright[:, None] - slanted[None, :]).ravel()
    corners = np.concatenate([t[:, 0], t[:, 1] - 1, meet, [0, n - 1]])
    return corners[(corners >= 0) & (corners < n)] // SLAB


def _stretches(
    corners: NDArray[np.int64], slabs: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The slabs to count and how many each stands for."""
    near = (np.unique(corners)[:, None] + np.arange(-NEAR, NEAR + 1)).ravel()
    alone = np.unique(np.clip(near, 0, slabs - 1))
    gap = np.diff(alone) - 1  # even slabs behind each, none behind the last
    some = np.flatnonzero(gap > 0)
    rows = np.concatenate([alone, alone[some] + 1, alone[some + 1] - 1])
    weight = np.concatenate([np.ones(len(alone)), gap[some] / 2, gap[some] / 2])
    order = np.argsort(rows, kind="stable")
    rows, weight = rows[order], weight[order]
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    return rows[first], np.add.reduceat(weight, first)


def _largest(table: NDArray[Any]) -> NDArray[np.int64]:
    """Slabs in which the largest zones begin or end: a global token's row stands for no other."""
    rows, keys = table[:, 1] - table[:, 0], table[:, 3] - table[:, 2]
    size = rows.astype(np.float64) * np.minimum(keys, table[:, 5] - table[:, 4] + rows)
    large = np.flatnonzero(size > 4 * size.mean())
    if len(large) > SAMPLE // 4:
        large = large[np.argsort(size[large])[-SAMPLE // 4 :]]
    return np.unique(np.concatenate([table[large, 0], table[large, 1] - 1]) // SLAB)


def _drawn(
    alone: NDArray[np.int64], slabs: int, some: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Slabs to count, `some` of them spread evenly, and how many are nearest to each.

    alone: slabs that stand for themselves.
    """
    spaced = np.setdiff1d(_spaced(slabs, some), alone)
    weight = _stand_for(spaced, slabs, alone)
    rows = np.concatenate([alone, spaced])
    weight = np.concatenate([np.ones(len(alone)), weight])
    order = np.argsort(rows)
    return rows[order], weight[order]


def _spaced(slabs: int, count: int) -> NDArray[np.int64]:
    """So many slabs, spread evenly."""
    return np.unique(np.linspace(0, slabs - 1, min(count, slabs)).astype(np.int64))


def _stand_for(
    spaced: NDArray[np.int64], slabs: int, but: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """How many slabs are nearest to each of the spaced ones, `but` some."""
    cuts = np.concatenate([[0], (spaced[1:] + spaced[:-1] + 1) // 2, [slabs]])
    taken = 0 if but is None else np.searchsorted(but, cuts)
    return np.diff(cuts - taken).astype(np.float64)


def _by_query(table: NDArray[np.int64]) -> bool:
    """Whether a table of very many zones seems to be sorted by query, each zone low."""
    some = table[:: len(table) // 2**14]
    return bool((np.diff(some[:, 0]) >= 0).all()) and int((some[:, 1] - some[:, 0]).max()) <= SLAB


def _reading(zones: ZoneSet, spaced: NDArray[np.int64]) -> NDArray[Any]:
    """The zones of such a table that begin in some slabs, found by bisection."""
    begins, first = zones.table[:, 0], zones.frame.q_offset
    starts = [bisect_left(begins, first + s * SLAB) for s in spaced.tolist()]
    ends = [bisect_left(begins, first + (s + 1) * SLAB) for s in spaced.tolist()]
    rows = np.concatenate([zones.table[a:b] for a, b in zip(starts, ends)])
    return local(replace(zones, table=rows))


def _cut(
    frame: Frame,
    table: NDArray[Any],
    rows: NDArray[np.int64],
    weight: NDArray[np.float64],
    sampled: bool = False,
) -> Part:
    """The zones within the slabs `rows`, each as often as slabs that it meets; of too many, all the
    zones uncut."""
    begin, end = table[:, 0] // SLAB, (table[:, 1] - 1) // SLAB
    if len(table) > FEW:  # many zones: looking up is faster than searching
        held = np.zeros(-(-frame.n // SLAB) + 1, dtype=np.int64)
        held[rows + 1] = 1
        before = np.cumsum(held)
        first, count = before[begin], before[end + 1]
    else:
        first, count = np.searchsorted(rows, begin), np.searchsorted(rows, end, side="right")
    count = count - first
    if (
        int(count.sum()) > MANY_STRIPS
    ):  # `work` takes a bound of so many, from the zones as they are
        return Part(frame, table, None, np.ones(0), len(table))
    owner = np.repeat(np.arange(len(table)), count)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count - first, count)
    cut = table[owner]
    start = (rows[place] * SLAB).astype(table.dtype)
    cut[:, 0] = np.maximum(cut[:, 0], start)
    cut[:, 1] = np.minimum(cut[:, 1], start + SLAB)
    return Part(frame, cut, place, weight, len(table), sampled)


def _bounded(p: Part, met: NDArray[Any], block: tuple[int, int]) -> Work:
    """An upper bound on the tiles, from each zone's box and band alone."""
    (height, width), frame, table = block, p.frame, p.table
    lines, columns = -(-frame.n // height), -(-frame.n_k // width)
    box = (table[:, 3] - 1) // width - table[:, 2] // width + 1
    band = (table[:, 5] - table[:, 4] + (height + width - 3)) // width + 1
    touched = np.minimum(box, band)
    times = None if p.place is None else p.weight[p.place]
    records = _sum(touched * met.astype(np.int64), times)
    tiles = min(records, lines * columns)
    longest = min(columns, max(int(touched.max()), -(-tiles // max(1, lines))))
    return Work(0, tiles, records, tiles, min(lines, tiles), longest, "bound")
