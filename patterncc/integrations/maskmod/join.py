"""Several comparisons at once: row i reads keys j with lo(i) <= v(j) <= hi(i) for every v.

Where v only grows, its bounds are a run of keys, and where the bounds only grow, a run of queries;
for other functions keys are sought.
"""

from __future__ import annotations

import numpy as np

from patterncc.integrations.maskmod.seek import Coordinate, sought
from patterncc.integrations.maskmod.tables import Frame, interval, table
from patterncc.pattern import Pattern
from patterncc.zones import algebra


def joined(at: Frame, coordinates: list[Coordinate], what: str) -> list[Pattern]:
    """Patterns whose intersection is all the coordinates' pairs."""
    upright = [x if x.grows or not x.flipped().grows else x.flipped() for x in coordinates]
    grown = [x for x in upright if x.grows]
    rest = [x for x in upright if not x.grows]
    first, last = np.zeros(at.n, dtype=np.int64), np.full(at.n, at.n_k, dtype=np.int64)
    for x in grown:
        first = np.maximum(first, np.searchsorted(x.value, x.low, side="left"))
        last = np.minimum(last, np.searchsorted(x.value, x.high, side="right"))
    if not rest:
        return [table(at, interval(at, first, last))]
    turned = [_turned(at, x) for x in rest]
    if all(x is not None for x in turned):
        own = [table(at, interval(at, first, last))] if grown else []
        return [*own, *(x for x in turned if x is not None)]
    return [sought(at, rest, first, last, what)]


def _turned(at: Frame, x: Coordinate) -> Pattern | None:
    """Runs of queries for each key, where the bounds of the queries only grow or only fall."""
    for low, high, value in ((x.low, x.high, x.value), (-x.high, -x.low, -x.value)):
        if (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all():
            first = np.searchsorted(high, value, side="left").astype(np.int64)
            last = np.searchsorted(low, value, side="right").astype(np.int64)
            zones = algebra.transpose(interval(Frame(at.n_k, at.n), first, last))
            return table(at, zones)
    return None
