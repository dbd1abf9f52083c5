"""The tile size, chosen by the cost model when the user gives none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.layout.cost import estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.zones.zoneset import ZoneSet

CANDIDATES = ((128, 128), (128, 64), (64, 64))
"""Tile sizes that are weighed, the preferred one first."""


def choose_block(zone_sets: Sequence[ZoneSet], *, target: str = "sm_90") -> tuple[int, int]:
    """The candidate of least predicted time.

    >>> from patterncc import lower, window
    >>> choose_block([lower(window(2000), 8192)]), choose_block([lower(window(8), 8192)])
    ((128, 128), (64, 64))
    """
    costs = {block: estimate(zone_sets, block, target=target).seconds for block in CANDIDATES}
    return min(CANDIDATES, key=lambda block: costs[block])
