"""Zones seen through square tiles: which tiles are touched, filled or covered, and exact counts
in tiles.

Tile (a, c) holds the queries [a * side, (a + 1) * side) and the keys [c * side, (c + 1) * side).

    any    some pair of the tile is an edge
    full   every pair of the tile is an edge
    rows   every query of a reads some key of c
    cols   every key of c is read by some query of a
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.engines.bits import RunRows
from patterncc.errors import SizeError
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import areas, expand, pack, take, tighten
from patterncc.zones.tiles import Strips, strips

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Counts = NDArray[Any]  # int64, or Python integers where int64 could overflow

MAX_STRIPS = 2**23
MAX_PARTIAL = 2**21  # partial tiles whose edges are counted one by one


@dataclass(frozen=True, eq=False)
class Coarse:
    """One edge set through tiles."""

    any: RunRows
    full: RunRows
    rows: RunRows
    cols: RunRows

    @property
    def partial(self) -> int:
        """How many touched tiles are not full."""
        return int(
            (self.any.last - self.any.first).sum() - (self.full.last - self.full.first).sum()
        )

    @property
    def exact(self) -> bool:
        """Every touched tile is full."""
        return not self.partial


@dataclass(frozen=True, eq=False)
class TileCounts:
    """Exact counts: `whole` tiles hold side * side edges each, tile (row[x], col[x]) holds
    count[x]."""

    whole: RunRows
    row: I64
    col: I64
    count: Counts


def coarsen(zones: ZoneSet, side: int) -> Coarse:
    """Touched, filled and covered tiles of a square frame that starts at position 0."""
    size = -(-zones.frame.n // side)
    s = strips(zones.table, zones.frame.n, zones.frame.n, (side, side), MAX_STRIPS)
    touched = RunRows.of(size, s.row, s.first, s.last)
    full = RunRows.of(size, s.row, s.full_first, s.full_last)
    if touched.same(full):
        return Coarse(touched, full, full, full)
    try:
        counted = tile_counts(zones.disjoint(), side)
        filled = counted.count == _tile_areas(counted.row, counted.col, side, zones.frame.n)
        row, col, whole = counted.row[filled], counted.col[filled], counted.whole
        full = RunRows.of(
            size,
            np.concatenate([full.row, whole.row, row]),
            np.concatenate([full.first, whole.first, col]),
            np.concatenate([full.last, whole.last, col + 1]),
        )
    except SizeError:
        pass  # tiles that several zones fill together stay unknown: the bound is only weaker
    rows, cols = _row_cover(zones, side, size, s), _column_cover(zones, side, size, s)
    return Coarse(touched, full, rows, cols)


def tile_counts(zones: ZoneSet, side: int) -> TileCounts:
    """The exact count of every touched tile, from disjoint zones.

    Raises SizeError when more than MAX_PARTIAL tiles would be counted one by one.
    """
    n = zones.frame.n
    size, complete = -(-n // side), n // side
    s = strips(zones.table, n, n, (side, side), MAX_STRIPS)
    inner = s.row < complete
    full_first = np.where(inner, np.minimum(s.full_first, complete), s.last)
    full_last = np.where(inner, np.minimum(s.full_last, complete), s.last)
    none = full_first >= full_last
    full_first[none] = full_last[none] = s.last[none]
    partial = int((s.last - s.first).sum() - (full_last - full_first).sum())
    if partial > MAX_PARTIAL:
        raise SizeError(f"{partial} partial tiles of side {side}, more than {MAX_PARTIAL}")
    left, left_col = expand(s.first, full_first)
    right, right_col = expand(full_last, s.last)
    at, col = np.concatenate([left, right]), np.concatenate([left_col, right_col])
    row = s.row[at].astype(np.int64)
    i0, i1, j0, j1, d0, d1 = take(zones.table, s.zone[at]).T
    cut = pack(
        (
            np.maximum(i0, row * side),
            np.minimum(i1, (row + 1) * side),
            np.maximum(j0, col * side),
            np.minimum(j1, (col + 1) * side),
            d0,
            d1,
        )
    )
    count = areas(
        tighten(cut)
    )  # a zone has an edge in every tile that it touches: no row is dropped
    assert len(count) == len(row)
    return TileCounts(
        RunRows.of(size, s.row, full_first, full_last), *_summed(size, row, col, count)
    )


def _summed(size: int, row: I64, col: I64, count: Counts) -> tuple[I64, I64, Counts]:
    """Counts of the same tile added up, tiles in order."""
    order = np.lexsort((col, row))
    row, col, count = row[order], col[order], count[order]
    opens = np.flatnonzero(np.append(True, (np.diff(row) != 0) | (np.diff(col) != 0)))
    if not len(row):
        return row, col, count
    return row[opens], col[opens], np.add.reduceat(count, opens)


def _tile_areas(row: I64, col: I64, side: int, n: int) -> I64:
    height = np.minimum((row + 1) * side, n) - row * side
    width = np.minimum((col + 1) * side, n) - col * side
    return np.asarray(height * width)


def _row_cover(zones: ZoneSet, side: int, size: int, s: Strips) -> RunRows:
    """Tiles in which each query of a reads a key, by one zone alone."""
    i0, i1, j0, j1, d0, d1 = take(zones.table, s.zone).T
    start = s.row.astype(np.int64) * side
    end = np.minimum(start + side, zones.frame.n)
    # over the tile's rows the first key read is largest at the end, the last key smallest at the
    # start
    first = np.maximum(j0, end - 1 + d0) // side
    last = (np.minimum(j1, start + d1) - 1) // side + 1
    last = np.where((i0 <= start) & (end <= i1), last, first)
    return RunRows.of(size, s.row, first, last)


def _column_cover(zones: ZoneSet, side: int, size: int, s: Strips) -> RunRows:
    """Tiles in which each key of c is read by a query of a, by one zone alone."""
    n = zones.frame.n
    i0, i1, j0, j1, d0, d1 = take(zones.table, s.zone).T
    start = s.row.astype(np.int64) * side
    end = np.minimum(start + side, n)
    # key j is read by queries [max(i0, j - d1 + 1), min(i1, j - d0 + 1)): both ends grow with j
    limit = np.minimum(
        j1, end + d1 - 1
    )  # keys before it have a reader before the end of the tile row
    last = np.where(limit >= n, size, limit // side)
    first = -(-np.maximum(j0, start + d0) // side)
    last = np.where((i0 < end) & (i1 > start), last, first)
    return RunRows.of(size, s.row, first, last)
