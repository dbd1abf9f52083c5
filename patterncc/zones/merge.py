"""From single edges to zones: runs in a row, then boxes, bands and triangles of equal runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.zones.site import FAR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

_SLOPES = ((0, 0), (1, 1), (0, 1), (1, 0))
"""How the two ends of a run may move from one row to the next: a box, a band, two triangles."""


def zones_of_edges(row: I64, col: I64) -> I64:
    """Zones that hold exactly the given edges, whatever their order and repeats; int64 [zones, 6].

    Neighbours in a row form runs; runs of consecutive rows whose ends each stand still or move by
    one form a zone, each run in the longest such chain it belongs to.

    >>> zones_of_edges(np.array([4, 5, 6, 5]), np.array([1, 2, 3, 2]))[0, [0, 1, 4, 5]].tolist()
    [4, 7, -3, -2]
    """
    row, start, end = _row_runs(row, col)
    if not len(row):
        return np.empty((6, 0), dtype=np.int64).T
    lengths = np.stack([_chain_lengths(row, start, end, slopes) for slopes in _SLOPES])
    best = np.argmax(lengths, axis=0)
    parts = []
    for kind, (low, high) in enumerate(_SLOPES):
        picked = best == kind
        if not picked.any():
            continue
        r, a, b = row[picked], start[picked] - low * row[picked], end[picked] - high * row[picked]
        order, opens = _chains(r, a, b)
        first, last = order[opens], order[np.append(opens[1:], True)]
        zone = np.empty((6, len(first)), dtype=np.int64)
        zone[0], zone[1] = r[first], r[last] + 1
        zone[2], zone[4] = (-FAR, a[first]) if low else (a[first], -FAR)
        zone[3], zone[5] = (FAR, b[first]) if high else (b[first], FAR)
        parts.append(zone)
    return np.concatenate(parts, axis=1).T


def _row_runs(row: I64, col: I64) -> tuple[I64, I64, I64]:
    """Runs of neighbouring keys in a row, by row: the row, the first key, past the last."""
    order = np.lexsort([col, row])
    row, col = row[order], col[order]
    fresh = np.ones(len(row), dtype=bool)
    fresh[1:] = (row[1:] != row[:-1]) | (col[1:] != col[:-1])
    row, col = row[fresh], col[fresh]
    opens = np.ones(len(row), dtype=bool)
    opens[1:] = (row[1:] != row[:-1]) | (col[1:] != col[:-1] + 1)
    return row[opens], col[opens], col[np.append(opens[1:], True)[: len(opens)]] + 1


def _chains(row: I64, a: I64, b: I64) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """An order that puts runs of consecutive rows with equal (a, b) together; where chains open."""
    order = np.lexsort([row, b, a])
    row, a, b = row[order], a[order], b[order]
    opens = np.ones(len(row), dtype=bool)
    opens[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1]) | (row[1:] != row[:-1] + 1)
    return order, opens


def _chain_lengths(row: I64, start: I64, end: I64, slopes: tuple[int, int]) -> I64:
    """For each run, how many runs the chain through it has."""
    order, opens = _chains(row, start - slopes[0] * row, end - slopes[1] * row)
    sizes = np.diff(np.append(np.flatnonzero(opens), len(row)))
    lengths = np.empty(len(row), dtype=np.int64)
    lengths[order] = np.repeat(sizes, sizes)
    return lengths
