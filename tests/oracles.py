"""Slow, obvious answers that every stage is held to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from patterncc.zones import Frame, ZoneSet

Mask = NDArray[np.bool_]


def zone_mask(rows: list[tuple[int, ...]], frame: Frame) -> Mask:
    """The bool mask of a union of zones, from the definition, pair by pair."""
    i = frame.q_offset + np.arange(frame.n)[:, None]
    j = frame.k_offset + np.arange(frame.n_k)[None, :]
    mask = np.zeros((frame.n, frame.n_k), dtype=bool)
    for i0, i1, j0, j1, d0, d1 in rows:
        mask |= (i0 <= i) & (i < i1) & (j0 <= j) & (j < j1) & (d0 <= j - i) & (j - i < d1)
    return mask


def is_tight(z: ZoneSet) -> bool:
    """Every bound of every zone is attained by an edge of that zone."""
    for row in z.table.tolist():
        i0, i1, j0, j1, d0, d1 = row
        members = [(i, j) for i in range(i0, i1) for j in range(max(j0, i + d0), min(j1, i + d1))]
        if not members:
            return False
        i, j = np.array(members).T
        bounds = (i.min(), i.max() + 1, j.min(), j.max() + 1, (j - i).min(), (j - i).max() + 1)
        if tuple(row) != bounds:
            return False
    return True
