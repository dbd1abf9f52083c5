"""Causal edge sets that are the same for every query: offsets j - i, added instead of composed.

A zone is a whole causal band when it holds every pair of the frame with d0 <= j - i < d1, d1 <= 1.
Paths through such bands never leave the frame (j <= k <= i), so composing two sets of bands adds
their offsets, and merged bands are disjoint: counting them is a sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.zones import ZoneSet
from patterncc.zones.algebra import areas, merge_intervals, refuse_above

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

MAX_SUMS = 2**23


def bands(zones: ZoneSet) -> I64 | None:
    """The offsets of a set of whole causal bands, as sorted disjoint intervals; None for others.

    >>> from patterncc import lower, strided, causal, window
    >>> bands(lower(causal() & strided(4), 10)).tolist()
    [[-8, -7], [-4, -3], [0, 1]]
    >>> bands(lower(window(1, 1), 10)) is None
    True
    """
    i0, i1, j0, j1, _, d1 = zones.table.T
    n = zones.frame.n
    square = zones.frame.box == (0, n, 0, n)
    whole = (d1 <= 1) & (i0 == 1 - d1) & (i1 == n) & (j0 == 0) & (j1 == n + d1 - 1)
    if not square or not whole.all():
        return None
    return merge_intervals(zones.table[:, 4:6])


def after(zones: ZoneSet, first: I64, then: I64) -> ZoneSet:
    """Offsets of one step, of the other, and of both, as zones in the frame of `zones`.

    Raises SizeError before adding when there are more than MAX_SUMS pairs of intervals.
    """
    refuse_above(len(first) * len(then), "sums of offsets", MAX_SUMS)
    low = first[:, None, 0] + then[:, 0]
    high = first[:, None, 1] + then[:, 1] - 1
    sums = np.stack([low.ravel(), high.ravel()], axis=1)
    return of(zones, merge_intervals(np.concatenate([first, then, sums])))


def of(zones: ZoneSet, offsets: I64) -> ZoneSet:
    """Whole bands with these offsets, in the frame of `zones`."""
    n = zones.frame.n
    rows = np.zeros((len(offsets), 6), dtype=np.int64)
    rows[:, 1] = rows[:, 3] = n
    rows[:, 4:6] = offsets
    return ZoneSet.make(zones.frame, rows)


def count(zones: ZoneSet) -> int:
    """The exact count, by a sum where the zones are whole causal bands."""
    if len(zones) > 2 and (offsets := bands(zones)) is not None:
        return sum(int(area) for area in areas(of(zones, offsets).table).tolist())
    return zones.count()
