"""The tile size, chosen by a cost model when the user gives none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.zones.tiles import MAX_STRIPS, local, strips

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.zones.zoneset import ZoneSet

CANDIDATES = ((128, 128), (128, 64), (64, 64))
"""Tile sizes that are weighed, the preferred one first."""

OVERHEAD = 2200
"""What a tile costs beyond its area, in pairs.

With it 64 x 64 tiles reach 450 TFLOP/s where 128 x 128 reach 610, the goals on an H100.
"""


def choose_block(zone_sets: Sequence[ZoneSet]) -> tuple[int, int]:
    """The candidate of least cost: touched tiles x (area + OVERHEAD).

    A tile that two zones touch counts twice: enough to compare sizes, and no tile is listed.

    >>> from patterncc import lower, window
    >>> choose_block([lower(window(2000), 8192)]), choose_block([lower(window(8), 8192)])
    ((128, 128), (64, 64))
    """
    costs = {block: _cost(zone_sets, block) for block in CANDIDATES}
    return min(CANDIDATES, key=lambda block: costs[block])


def _cost(zone_sets: Sequence[ZoneSet], block: tuple[int, int]) -> float:
    tiles = 0
    for zones in zone_sets:
        table = local(zones)
        met = int(((table[:, 1] - 1) // block[0] - table[:, 0] // block[0] + 1).sum(dtype=np.int64))
        if met > MAX_STRIPS:
            return float("inf")
        s = strips(table, zones.frame.n, zones.frame.n_k, block)
        tiles += int((s.last - s.first).sum(dtype=np.int64))
    return float(tiles) * (block[0] * block[1] + OVERHEAD)
