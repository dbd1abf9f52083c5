"""How the backward pass cuts a layout: units of even work, and who adds to which rows of dQ.

A unit is a stretch of tile columns, or a stretch of one column's tile rows where that column alone
is much work.  What units there are depends on the layout and the number of heads, never on threads:
sums over units then have one order, and gradients are the same on any machine with these kernels.

Two units that read the same queries each need rows of dQ of their own.  Only tile rows that a unit
touches get some, and where they would come to more than `SPARE` times dQ, units become fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNITS = 64  # over all key heads of a batch, where the layout is large enough
SPARE = 4  # most tile rows of partial sums, as a multiple of those of dQ
HEAVY = 1.5  # a column of so many times its share is cut


@dataclass(frozen=True, eq=False)
class Columns:
    """The tile columns of a layout: `ptr` [patterns * columns + 1] into `run` [runs, 3]."""

    ptr: NDArray[np.int32]
    run: NDArray[np.int32]
    columns: int
    rows: int

    @property
    def patterns(self) -> int:
        """How many patterns the columns are of."""
        return (len(self.ptr) - 1) // self.columns if self.columns else 0

    def tiles(self) -> NDArray[np.int64]:
        """Tiles of each column, [patterns, columns]."""
        before = np.zeros(len(self.run) + 1, dtype=np.int64)
        np.cumsum(self.run[:, 1], out=before[1:])
        return np.diff(before[self.ptr]).reshape(self.patterns, self.columns)


@dataclass(frozen=True, eq=False)
class Parts:
    """The units of a layout, most work first, and the rows of dQ that they add to.

    units: int32 [units, 5], first and last column, first and last tile row, and a slot for dK and
    dV, -1 where no other unit has that column.
    touched: the tile rows of each unit, ascending; unit u of pattern p has those from
    touched_ptr[p * units + u] on.  adders: for tile row r of pattern p, from adders_ptr[p * rows +
    r] on, which of the pattern's touched rows they are.
    cut: int32 [columns that are cut, 3], the column, its first slot, how many.
    """

    units: NDArray[np.int32]
    touched_ptr: NDArray[np.int32]
    touched: NDArray[np.int32]
    adders_ptr: NDArray[np.int32]
    adders: NDArray[np.int32]
    cut: NDArray[np.int32]

    @property
    def slots(self) -> int:
        """Parts of columns that are summed later."""
        return int(self.cut[:, 2].sum())

    def rows_of(self, pattern: int) -> int:
        """Tile rows of partial sums that a head of this pattern needs."""
        first = pattern * len(self.units)
        return int(self.touched_ptr[first + len(self.units)] - self.touched_ptr[first])


def parts(columns: Columns, weight: NDArray[np.int64], wanted: int) -> Parts:
    """Cut a layout into about `wanted` units, fewer where their rows of dQ would be too many.

    weight: [patterns], how many heads have each pattern.

    >>> window = np.array([[0, 2, 0], [0, 3, 0], [1, 3, 0], [2, 2, 0]], dtype=np.int32)
    >>> some = parts(Columns(np.arange(5, dtype=np.int32), window, 4, 4), np.array([1]), 2)
    >>> some.units.tolist(), some.rows_of(0)
    ([[0, 2, 0, 4, -1], [2, 4, 0, 4, -1]], 6)
    """
    tiles = columns.tiles()
    work = (tiles * weight[:, None]).sum(0)
    for count in _fewer(max(1, min(wanted, int(work.sum())))):
        units, cut = _units(columns, work, count)
        touched = _touched(columns, units)
        rows = (touched.sum((1, 2)) * weight).sum()
        if count == 1 or rows <= SPARE * columns.rows * weight.sum():
            break
    touched_ptr, listed, adders_ptr, adders = _listed(touched)
    return Parts(units, touched_ptr, listed, adders_ptr, adders, cut)


def _fewer(count: int) -> list[int]:
    """`count`, then halves of it down to 1."""
    return [count >> k for k in range(count.bit_length())]


def _units(
    columns: Columns, work: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`count` units or some more, most work first, and the columns that are cut."""
    share = max(1.0, float(work.sum()) / count)
    listed: list[tuple[float, tuple[int, ...]]] = []
    cut: list[tuple[int, int, int]] = []
    first, done, slots = 0, 0, 0
    for column, some in enumerate(work.tolist()):
        pieces = min(columns.rows, round(some / share))
        if count > 1 and pieces > 1 and some > HEAVY * share:
            if first < column:  # even where nobody reads them: their gradients are zeros
                listed.append((done, (first, column, 0, columns.rows, -1)))
            for k in range(pieces):
                low, high = (columns.rows * x // pieces for x in (k, k + 1))
                listed.append((some / pieces, (column, column + 1, low, high, slots + k)))
            cut.append((column, slots, pieces))
            first, done, slots = column + 1, 0, slots + pieces
            continue
        done += some
        if done >= share * 0.999:
            listed.append((done, (first, column + 1, 0, columns.rows, -1)))
            first, done = column + 1, 0
    if first < len(work):
        listed.append((done, (first, len(work), 0, columns.rows, -1)))
    listed.sort(key=lambda unit: -unit[0])
    units = np.array([unit for _, unit in listed], dtype=np.int32).reshape(-1, 5)
    return units, np.array(cut, dtype=np.int32).reshape(-1, 3)


def _touched(columns: Columns, units: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which tile rows a unit touches, bool [patterns, units, rows]."""
    touched = np.zeros((columns.patterns, len(units), columns.rows), dtype=bool)
    for p in range(columns.patterns):
        ptr = columns.ptr[p * columns.columns : (p + 1) * columns.columns + 1]
        for u, (first, last, top, bottom, _) in enumerate(units.tolist()):
            run = columns.run[ptr[first] : ptr[last]]
            edges = np.zeros(columns.rows + 1, dtype=np.int64)
            np.add.at(edges, run[:, 0], 1)
            np.add.at(edges, run[:, 0] + run[:, 1], -1)
            touched[p, u, top:bottom] = np.cumsum(edges[:-1])[top:bottom] > 0
    return touched


def _listed(touched: NDArray[np.bool_]) -> tuple[NDArray[np.int32], ...]:
    """touched_ptr, touched, adders_ptr and adders of `Parts`."""
    patterns, units, rows = touched.shape
    pattern, _, row = touched.nonzero()
    ptr = np.zeros(patterns * units + 1, dtype=np.int32)
    np.cumsum(touched.sum(2).reshape(-1), out=ptr[1:])
    place = np.arange(len(row)) - ptr[pattern * units]
    order = np.argsort(pattern * rows + row, kind="stable")
    adders_ptr = np.zeros(patterns * rows + 1, dtype=np.int32)
    np.cumsum(touched.sum(1).reshape(-1), out=adders_ptr[1:])
    return ptr, row.astype(np.int32), adders_ptr, place[order].astype(np.int32)
