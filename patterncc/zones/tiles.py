"""Coarsening: from zones to the tiles that they touch and the tiles that they fill.

Within the queries of one tile row a tight zone reads one interval of keys: each query reads an
interval [lo(i), hi(i)) whose ends move by at most one key a row, so neighbours overlap or adjoin.

    first row    ###########          touched: the tiles of lo(first row) .. hi(last row)
                  ###########
    last row       ###########        filled: the tiles within lo(last row) .. hi(first row),
                                      when the zone holds all existing rows of the tile row

So a zone and a tile row give one *strip*: two intervals of tiles, in closed form however wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import SizeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.zones.zoneset import ZoneSet

MAX_STRIPS = 12_000_000  # about 0.7 GB while they are made


@dataclass(frozen=True)
class Strips:
    """One strip for every zone and every tile row that it meets, zone by zone, rows ascending.

    zone, row: which.
    [first, last): the tiles that the zone touches in that row, never empty.
    [full_first, full_last): those that it fills: every *existing* pair of the tile is in the zone.

    Where it fills none, both stand at `last`, so [first, full_first) and [full_last, last) always
    are the tiles touched and not filled.  Arrays of one length, of the table's dtype.
    """

    zone: NDArray[Any]
    row: NDArray[Any]
    first: NDArray[Any]
    last: NDArray[Any]
    full_first: NDArray[Any]
    full_last: NDArray[Any]

    def __len__(self) -> int:
        return len(self.zone)


def local(zones: ZoneSet) -> NDArray[Any]:
    """The table counted from query 0 and key 0 of the frame; int32 where no sum can overflow.

    >>> from patterncc.zones.zoneset import Frame, ZoneSet
    >>> local(ZoneSet.make(Frame.of(4, q_offset=8), [(8, 12, 0, 12, -2, 1)])).tolist()
    [[0, 4, 6, 12, 6, 9]]
    """
    frame = zones.frame
    skew = frame.k_offset - frame.q_offset
    shift = np.array([*[frame.q_offset] * 2, *[frame.k_offset] * 2, *[skew] * 2], dtype=np.int64)
    table = zones.table - shift if shift.any() else zones.table
    return table.astype(np.int32) if frame.n + frame.n_k < 2**30 else table


def strip_count(table: NDArray[Any], height: int) -> int:
    """How many strips a table of tight zones has, without making any.

    >>> strip_count(np.array([[0, 512, 0, 512, -511, 1]]), 128)
    4
    """
    last = (table[:, 1] - 1) // height
    return int((last - table[:, 0] // height).sum(dtype=np.int64)) + len(table)


def strips(
    table: NDArray[Any], n: int, n_k: int, block: tuple[int, int], max_strips: int = MAX_STRIPS
) -> Strips:
    """The strips of a table of tight zones within [0, n) x [0, n_k), tiles of block[0] x block[1].

    The transposed table with n and n_k and the sides of the block exchanged gives the columns'
    strips: the same tiles are filled in both.

    >>> causal = np.array([[0, 512, 0, 512, -511, 1]])
    >>> s = strips(causal, 512, 512, (128, 128))
    >>> list(zip(s.first.tolist(), s.full_first.tolist(), s.full_last.tolist(), s.last.tolist()))
    [(0, 1, 1, 1), (0, 0, 1, 2), (0, 0, 2, 3), (0, 0, 3, 4)]

    Raises SizeError, before anything is allocated, when there would be more than `max_strips`.
    """
    height, width = block
    begin = table[:, 0] // height
    counts = (table[:, 1] - 1) // height + 1 - begin
    total = int(counts.sum(dtype=np.int64))
    if total > max_strips:
        raise SizeError(
            f"{len(table)} zones meet {total} tile rows of {height} queries, more than "
            f"{max_strips}; use larger blocks, a shorter sequence or fewer zones"
        )
    zone, row = _expand(begin, counts, total, table.dtype)
    columns = [np.ascontiguousarray(c) for c in table.T]
    # a table of one-row zones (random blocks) needs no copy, one of few zones repeats cheaply
    i0, i1, j0, j1, d0, d1 = (
        columns if total == len(table) else [np.repeat(c, counts) for c in columns]
    )
    start = row * height
    end = np.minimum(start + height, n)
    top, bottom = np.maximum(i0, start), np.minimum(i1, end)
    first = np.maximum(j0, top + d0) // width
    last = -(-np.minimum(j1, bottom + (d1 - 1)) // width)
    full_first = -(-np.maximum(j0, bottom + (d0 - 1)) // width)
    reach = np.minimum(j1, top + d1)
    # the last tile column may reach past the last key; it is filled all the same
    full_last = np.where(reach == n_k, -(-n_k // width), reach // width)
    none = (top != start) | (bottom != end) | (full_first >= full_last)
    np.copyto(full_first, last, where=none)
    np.copyto(full_last, last, where=none)
    return Strips(zone, row, first, last, full_first, full_last.astype(table.dtype, copy=False))


def _expand(
    begin: NDArray[Any], counts: NDArray[Any], total: int, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The owner of each element of the ranges [begin, begin + counts), and the element itself."""
    owner = np.arange(len(counts), dtype=dtype)
    if total == len(counts):  # every range has one element: no range is empty here
        return owner, begin
    before = np.cumsum(counts, dtype=np.int64) - counts
    offset = np.repeat((begin - before).astype(dtype), counts)
    return np.repeat(owner, counts), np.arange(total, dtype=dtype) + offset
