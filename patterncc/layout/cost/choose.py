"""The tile size, chosen by the cost model when the user gives none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.layout.cost.model import price
from patterncc.layout.cost.tables import device
from patterncc.layout.cost.work import part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.layout.cost.tables import Device
    from patterncc.zones.zoneset import ZoneSet

CANDIDATES = ((128, 128), (128, 64), (64, 128), (64, 64))
"""Tile sizes that are weighed, the preferred one first.

Kernels take larger tiles in steps of 128, so that these hold more pairs and save nothing.
"""

NEAR = 1.05
"""Times the least seconds within which the preferred size is taken: the model tells no finer."""


def choose_block(
    zone_sets: Sequence[ZoneSet],
    *,
    target: str | Device = "sm_90",
    weights: Sequence[float] | None = None,
) -> tuple[int, int]:
    """The candidate of least predicted time, or one as good that stands before it.

    weights: heads of each pattern; equal ones unless given.

    >>> from patterncc import lower, random_blocks, window
    >>> choose_block([lower(window(2000), 8192)])
    (128, 128)
    >>> choose_block([lower(random_blocks(3, block=64), 8192)])
    (64, 64)
    """
    found, parts = device(target), [part(z, quick=True) for z in zone_sets]
    costs = {b: price(parts, b, found, weights=weights).seconds for b in CANDIDATES}
    least = min(costs.values())
    return next(b for b in CANDIDATES if costs[b] <= NEAR * least)
