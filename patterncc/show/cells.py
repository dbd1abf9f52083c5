"""How many edges stand in each cell of a grid over a mask, exactly, at any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.errors import PatternValueError, SizeError
from patterncc.zones import algebra, sweep

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.show.selection import Mask
    from patterncc.zones.zoneset import Frame, ZoneSet

    F64 = NDArray[np.float64]

MOST_PIECES = 2**25  # (zone, cell) pairs that one drawing may look at
_CHUNK = 2**19


@dataclass(frozen=True, eq=False)
class Panel:
    """One drawing; `share`, float64 [rows, columns], is each cell's edges over its pairs.

    `parts` are the same shares for each named part of the mask; parts may overlap.
    """

    title: str
    frame: Frame
    edges: int
    share: F64
    parts: tuple[tuple[str, F64], ...] = ()

    @property
    def pairwise(self) -> bool:
        """Whether each cell is a single (query, key) pair."""
        return self.share.shape == (self.frame.n, self.frame.n_k)

    @property
    def density(self) -> float:
        """Edges over all pairs of the frame."""
        return self.edges / (self.frame.n * self.frame.n_k)

    @property
    def caption(self) -> str:
        """Edges and density in words."""
        return f"{self.edges:,} edges, density {self.density:.3g}"


def panel(mask: Mask, most: int) -> Panel:
    """A drawing of a mask on at most `most` cells each way."""
    frame = mask.zones.frame
    if not frame.n or not frame.n_k:
        raise PatternValueError(f"show: nothing to draw, {frame.n} queries and {frame.n_k} keys")
    rows, columns = _grid(frame.n, frame.n_k, most)
    i0, i1, j0, j1 = frame.box
    heights, widths = np.diff(_cuts(i0, i1, rows)), np.diff(_cuts(j0, j1, columns))
    pairs = heights[:, None].astype(np.float64) * widths
    counts = cell_counts(mask.zones, rows, columns)
    parts = [(label, cell_counts(zones, rows, columns) / pairs) for label, zones in mask.parts]
    return Panel(mask.title, frame, int(counts.sum()), counts / pairs, tuple(parts))


def _grid(n: int, n_k: int, most: int) -> tuple[int, int]:
    """Rows and columns: a cell a pair if they fit, else square cells, of equal size if some are.

    >>> _grid(8, 8, 64), _grid(2048, 2048, 45), _grid(1000, 2000, 45)
    ((8, 8), (32, 32), (20, 40))
    """
    longest = max(n, n_k)
    if longest <= most:
        return n, n_k
    even = [c for c in range(most, most // 2, -1) if longest % c == 0]
    cells = even[0] if even else most
    return max(1, round(cells * n / longest)), max(1, round(cells * n_k / longest))


def cell_counts(zones: ZoneSet, rows: int, columns: int) -> NDArray[np.int64]:
    """Edges in each cell of a grid over the frame, exactly: int64 [rows, columns].

    Row r holds the queries from ``n * r // rows`` up to the next row's; columns likewise.

    >>> from patterncc import lower, causal
    >>> cell_counts(lower(causal(), 8), 2, 2).tolist()
    [[10, 0], [16, 10]]
    """
    i0, i1, j0, j1 = zones.frame.box
    if (i1 - i0) * (j1 - j0) >= 2**62:
        raise SizeError(f"show: {i1 - i0:,} x {j1 - j0:,} pairs; draw at most 2**31 tokens")
    across, down = _cuts(j0, j1, columns), _cuts(i0, i1, rows)
    table = sweep.disjoint(zones.table)
    total = np.zeros(rows * columns, dtype=np.int64)
    pieces = 0
    for start in range(0, len(table), _CHUNK):
        bands, row = _split(table[start : start + _CHUNK], 0, down)
        for part in range(0, len(bands), _CHUNK):
            some = bands[part : part + _CHUNK]
            cells, column, owner = _split_columns(some, across)
            pieces += len(cells)
            if pieces > MOST_PIECES:
                raise SizeError(
                    f"show: more than {MOST_PIECES:,} pieces to count; draw fewer cells (--cells)"
                )
            flat = row[part : part + _CHUNK][owner] * columns + column
            np.add.at(total, flat, algebra.areas(cells).astype(np.int64))
    return total.reshape(rows, columns)


def _cuts(first: int, last: int, parts: int) -> NDArray[np.int64]:
    """Where the cells begin: `parts` + 1 bounds from first to last."""
    return np.array([first + (last - first) * k // parts for k in range(parts + 1)], dtype=np.int64)


def _split(
    table: NDArray[np.int64], axis: int, cuts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Tight zones cut along queries (axis 0) or keys (axis 2), and the cell of each piece."""
    owner, cell = algebra.expand(
        np.searchsorted(cuts, table[:, axis], side="right") - 1,
        np.searchsorted(cuts, table[:, axis + 1], side="left"),
    )
    pieces = algebra.take(table, owner).copy(order="F")
    pieces[:, axis] = np.maximum(pieces[:, axis], cuts[cell])
    pieces[:, axis + 1] = np.minimum(pieces[:, axis + 1], cuts[cell + 1])
    # a tight zone has an edge in each of its queries and keys, so no piece is empty
    return algebra.tighten(pieces), cell


def _split_columns(
    table: NDArray[np.int64], cuts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.intp], NDArray[np.intp]]:
    """As `_split` along keys, with the index of the zone that each piece comes from."""
    pieces, column = _split(table, 2, cuts)
    counts = np.searchsorted(cuts, table[:, 3], side="left") - (
        np.searchsorted(cuts, table[:, 2], side="right") - 1
    )
    return pieces, column, np.repeat(np.arange(len(table)), counts)
