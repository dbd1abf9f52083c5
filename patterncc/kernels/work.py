"""Work lists: the rows (or columns) of tiles cut into items of even work, longest first.

An item is a stretch of one line of tiles.  A line that would take longer than its share of the
device is cut into several items; each writes its part to a *slot*, and slots are merged by LSE (or
summed, for gradients).  Everything here is numbers about a layout: no torch.

Columns of an item, int32 [items, 8]:

    0 row      tile row (tile column in the transposed direction)
    1 owner    the head pattern listed at this place reads it; 0 where one serves all
    2 run      its first run, a row of the run table
    3 skip     tiles of that run which belong to the item before
    4 steps    its tiles
    5 slot     where its part goes; -1: it is the whole line and writes the result itself
    6, 7       0

Columns of a part, int32 [slots, 4]: row, owner, then at the first slot of a line how many it has
(0 at its others), and 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Runs

LEVELS = (1, 8, 64)
"""Heads (batch x heads) that run at once for which a list is made: few heads need more cuts."""


@dataclass(frozen=True, eq=False)
class WorkList:
    """Items and parts of one direction of a layout."""

    items: NDArray[np.int32]
    parts: NDArray[np.int32]


def work_list(
    runs: Runs, head_pattern: NDArray[np.int32], lines: int, units: int, processors: int
) -> WorkList:
    """The items of all listed heads, longest first.

    lines: tile rows of one pattern.  units: how often the list runs at once (batch x heads, or the
    batch alone where heads are listed).  processors: of the device.
    """
    owners = np.arange(len(head_pattern), dtype=np.int64)
    line = (head_pattern.astype(np.int64)[:, None] * lines + np.arange(lines)).reshape(-1)
    before = np.zeros(len(runs.run) + 1, dtype=np.int64)
    np.cumsum(runs.run[:, 1], out=before[1:])
    items = np.zeros((len(line), 8), dtype=np.int32)
    items[:, 0] = np.tile(np.arange(lines), len(owners))
    items[:, 1] = np.repeat(owners, lines)
    items[:, 2] = runs.ptr[line]
    items[:, 4] = before[runs.ptr[line + 1]] - before[runs.ptr[line]]
    items[:, 5] = -1
    order = np.argsort(-items[:, 4], kind="stable")
    return WorkList(items[order], np.zeros((0, 4), dtype=np.int32))
