"""What a layout would hold, counted from strips: tiles, runs and the longest row, none listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.layout.runs import merged
from patterncc.zones.tiles import local, strips

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.zones.zoneset import ZoneSet

MANY_STRIPS = 2_000_000  # more are not counted one by one


@dataclass(frozen=True)
class Work:
    """What one pattern's tiles amount to.

    full, partial: tiles.  records: (tile, zone) pairs among the touched, full ones not counted.
    runs: of the forward direction, at most.  rows: tile rows that hold a tile.
    longest: tiles of the longest row.
    exact: whether `full` and `partial` are the layout's; else `full` is a lower and
    `full + partial` an upper bound.
    """

    full: int
    partial: int
    records: int
    runs: int
    rows: int
    longest: int
    exact: bool

    @property
    def tiles(self) -> int:
        """Tiles touched."""
        return self.full + self.partial


def work(zones: ZoneSet, block: tuple[int, int]) -> Work:
    """Count one pattern's tiles; a bound where there are more than MANY_STRIPS strips.

    >>> from patterncc import causal, lower
    >>> w = work(lower(causal(), 1024), (128, 128))
    >>> w.full, w.partial, w.longest, w.exact
    (28, 8, 8, True)
    """
    table, frame = local(zones), zones.frame
    height, width = block
    met = (table[:, 1] - 1) // height - table[:, 0] // height + 1
    if int(met.sum(dtype=np.int64)) > MANY_STRIPS:
        return _bounded(table, met, frame.n, frame.n_k, block)
    s = strips(table, frame.n, frame.n_k, block)
    if not len(s):
        return Work(0, 0, 0, 0, 0, 0, True)
    # a tile that reaches past the last key is not full in a layout
    full_last = np.maximum(np.minimum(s.full_last, frame.n_k // width), s.full_first)
    wide, filled = s.last - s.first, full_last - s.full_first
    records = int((wide - filled).sum(dtype=np.int64))
    parts = (s.full_first > s.first, filled > 0, s.last > full_last)
    runs = sum(int(np.count_nonzero(p)) for p in parts)
    if len(table) == 1:
        full = int(filled.sum(dtype=np.int64))
        return Work(full, records, records, runs, len(s), int(wide.max()), True)
    stride = -(-frame.n_k // width) + 1
    line = s.row.astype(np.int64) * stride
    first, last = merged(line + s.first, line + s.last)
    some = filled > 0
    full_first, full_ends = merged((line + s.full_first)[some], (line + full_last)[some])
    touched, full = int((last - first).sum()), int((full_ends - full_first).sum())
    rows = np.bincount(first // stride, weights=last - first)
    alone = records == touched - full
    return Work(
        full,
        touched - full,
        records,
        min(runs, touched),
        int(np.count_nonzero(rows)),
        int(rows.max()),
        alone,
    )


def _bounded(
    table: NDArray[Any], met: NDArray[Any], n: int, n_k: int, block: tuple[int, int]
) -> Work:
    """An upper bound on the tiles, from each zone's box and band alone."""
    height, width = block
    lines, columns = -(-n // height), -(-n_k // width)
    box = (table[:, 3] - 1) // width - table[:, 2] // width + 1
    band = (table[:, 5] - table[:, 4] + (height - 1 + width - 2)) // width + 1
    touched = np.minimum(box, band)
    records = int((touched * met.astype(np.int64)).sum(dtype=np.int64))
    tiles = min(records, lines * columns)
    longest = min(columns, max(int(touched.max()), -(-tiles // max(1, lines))))
    return Work(0, tiles, records, tiles, min(lines, tiles), longest, False)
