"""Staircases: rows of slots that read one interval each, as few zones.

    rows that read wide intervals are taken 256 at a time

        ##########|          the box that all of them read is one zone
        ##########|##
        ##########|####      what sticks out at either side is cut into chains
        ##########|######

A *chain* is consecutive rows whose two ends each stand still or move by one: a box, a band or a
triangle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.zones import algebra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

GRAIN = 256
"""Rows that share a box: the longest side of a tile."""

_FAR = 2**43


def stairs(row: I64, first: I64, last: I64, end: I64 | None = None) -> I64:
    """Zones that hold keys [first, last) of every row, none of them empty.

    end: past the last of the rows that read alike from `row` on; one row each unless given, and
    none of them passes a multiple of 256.
    Rows of one staircase ascend; several staircases may follow one another.  Zones may overlap.

    >>> stairs(np.arange(4), np.zeros(4, dtype=int), np.arange(4) + 1).tolist()
    [[0, 4, 0, 4, -3, 1]]
    """
    end = row + 1 if end is None else end
    whole = _chains(row, end, first, last)
    wide = len(row) and int((last - first).max()) > GRAIN
    if not wide or len(whole) * GRAIN <= int((end - row).sum()):
        return whole
    opens = np.ones(len(row), dtype=bool)
    opens[1:] = (row[1:] != end[:-1]) | (row[1:] // GRAIN != row[:-1] // GRAIN)
    start = np.flatnonzero(opens)
    low, high = np.maximum.reduceat(first, start), np.minimum.reduceat(last, start)
    past_row = end[np.append(start[1:], len(row)) - 1]
    boxed = low < high
    far = np.int64(_FAR)
    boxes = algebra.pack((row[start], past_row, low, high, -far, far))
    block = np.cumsum(opens) - 1
    held, low, high = boxed[block], low[block], high[block]
    parts = [algebra.tighten(algebra.take(boxes, boxed))]
    for begin, past in ((first, np.where(held, low, last)), (np.where(held, high, last), last)):
        some = begin < past
        parts.append(_chains(row[some], end[some], begin[some], past[some]))
    return np.concatenate(parts)


def _chains(row: I64, end: I64, first: I64, last: I64) -> I64:
    """One zone for each longest stretch of rows whose ends move alike; ends of stretches may be
    shared."""
    if not len(row):
        return np.empty((6, 0), dtype=np.int64).T
    slope_low, slope_high = np.diff(first), np.diff(last)
    single = end - row == 1  # several rows that read alike are a box, and only boxes follow it
    linked = (row[1:] == end[:-1]) & (slope_low >> 1 == 0) & (slope_high >> 1 == 0)
    linked &= (single[1:] & single[:-1]) | ((slope_low == 0) & (slope_high == 0))
    kind = np.where(linked, 2 * slope_low + slope_high, -1)  # of the step from a row to the next
    opens = np.flatnonzero(np.append(True, kind[1:] != kind[:-1])) if len(kind) else kind
    closes = np.append(opens[1:], len(kind))[: len(opens)]
    kind = kind[opens]
    length = np.where(kind >= 0, closes - opens, 0)
    # a single step between two longer stretches adds no row
    neighbours = np.minimum(np.append(0, length[:-1]), np.append(length[1:], 0))
    kept = (length > 1) | ((length == 1) & (neighbours <= 1)) if len(length) else length > 0
    a, b, kind = opens[kept], closes[kept], kind[kept]
    covered = np.zeros(len(row) + 1, dtype=np.int64)
    np.add.at(covered, a, 1)
    np.add.at(covered, b + 1, -1)
    alone = np.flatnonzero(np.cumsum(covered[:-1]) == 0)
    a, b = np.append(a, alone), np.append(b, alone)
    kind = np.append(kind, np.zeros(len(alone), dtype=np.int64))
    low, high = kind >> 1 == 1, kind & 1 == 1
    zones = algebra.pack(
        (
            row[a],
            end[b],
            first[a],
            last[b],
            np.where(low, first[a] - row[a], -_FAR),
            np.where(high, last[a] - row[a], _FAR),
        )
    )
    return algebra.tighten(zones)
