"""Keys that lie between bounds in several functions at once, where no order makes them one run.

A function of the key that starts again and again (a column of a grid, a place inside a document)
grows in pieces.  Keys are sought piece by piece, or in an index sorted by all functions, whichever
has less to do; either way a part of the rows at a time, so that memory follows the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from patterncc.errors import SizeError
from patterncc.integrations.maskmod.tables import (
    I64,
    MOST_RUNS,
    Column,
    Frame,
    ranked,
    row_runs,
)
from patterncc.pattern import Pattern
from patterncc.zones.algebra import expand

_AT_ONCE = 2**20  # things that are looked at together


@dataclass(frozen=True)
class Coordinate:
    """low[i] <= value[j] <= high[i], in ranks: int64 [n_k], [n], [n]."""

    value: I64
    low: I64
    high: I64

    @staticmethod
    def of(value: Column, low: Column | None, high: Column | None, n: int) -> Coordinate:
        """Ranks among the values that keys have: the first at or above `low`, the last at or
        below `high`; any values that can be ordered."""
        there, rank = ranked(value)
        first = np.zeros(n, dtype=np.int64)
        last = np.full(n, len(there) - 1, dtype=np.int64)
        if low is not None:
            first = np.searchsorted(there, low, side="left").astype(np.int64)
        if high is not None:
            last = np.searchsorted(there, high, side="right").astype(np.int64) - 1
        return Coordinate(rank, first, last)

    @property
    def grows(self) -> bool:
        """No key has a smaller value than the one before it."""
        return bool((np.diff(self.value) >= 0).all())

    def flipped(self) -> Coordinate:
        """The same with ranks counted from the other end."""
        top = int(self.value.max(initial=0))
        return Coordinate(top - self.value, top - self.high, top - self.low)


class Found(NamedTuple):
    """Runs of keys: the row each belongs to, the first key, and the one past the last."""

    row: I64
    start: I64
    end: I64


class Search(ABC):
    """A way to find the keys of rows; about `cost[r]` things are looked at for row r."""

    cost: NDArray[np.float64]

    @abstractmethod
    def runs(self, rows: slice) -> Found:
        """Runs of keys of some rows, in any order; runs of a row do not overlap."""


def sought(at: Frame, rest: list[Coordinate], first: I64, last: I64, what: str) -> Pattern:
    """Keys first[i] <= j < last[i] between the bounds of all coordinates.

    Raises SizeError for more than MOST_RUNS runs of keys, or as many things to look at.
    """
    params = np.stack([first, last, *(x.low for x in rest), *(x.high for x in rest)])
    i0 = np.flatnonzero(np.append(True, (np.diff(params, axis=1) != 0).any(axis=0)))
    i1 = np.append(i0[1:], at.n)
    rows = [Coordinate(x.value, x.low[i0], x.high[i0]) for x in rest]
    ways: list[Search] = [Pieces(rows, first[i0], last[i0]), Index(rows, first[i0], last[i0])]
    way = min(ways, key=lambda x: float(x.cost.sum()))
    _few_enough(way.cost.sum(), what)
    parts, total = [], 0
    for some in _slices(way.cost):
        parts.append(_merged(way.runs(some)))
        total += len(parts[-1].row)
        _few_enough(total, what)
    row, start, end = (np.concatenate(x) for x in zip(*parts))
    return row_runs(at, i0[row], i1[row], start, end)


def _few_enough(count: float, what: str) -> None:
    if count > MOST_RUNS:
        shown = what if len(what) <= 160 else f"{what[:156]} ..."
        raise SizeError(
            f"`{shown}` marks scattered keys: {int(count)} runs of them are more than {MOST_RUNS}; "
            "read a shorter n, or intersect the mask with a window"
        )


def _slices(cost: NDArray[np.float64]) -> Iterator[slice]:
    """Rows in parts of about _AT_ONCE things to look at."""
    part = (np.cumsum(cost) // _AT_ONCE).astype(np.int64)
    begin = np.append(np.flatnonzero(np.diff(part, prepend=-1)), len(cost))
    for a, b in zip(begin[:-1].tolist(), begin[1:].tolist()):
        yield slice(a, b)


class Pieces(Search):
    """In a piece every coordinate grows: one run of keys for a row and a piece that it meets."""

    def __init__(self, rows: list[Coordinate], first: I64, last: I64) -> None:
        self._rows, self._first, self._last = rows, first, last
        falls = np.zeros(len(rows[0].value) - 1, dtype=bool)
        for x in rows:
            falls |= np.diff(x.value) < 0
        self._piece = np.append(0, np.cumsum(falls))
        some = last > first
        low = self._piece[np.where(some, first, 0)]
        high = self._piece[np.where(some, last - 1, 0)]
        self.cost = np.where(some, high - low + 1, 0).astype(np.float64)

    def runs(self, rows: slice) -> Found:
        """Runs of keys of some rows."""
        first, last = self._first[rows], self._last[rows]
        cost = self.cost[rows].astype(np.int64)
        row, nth = expand(np.zeros_like(cost), cost)
        which = self._piece[np.minimum(first[row], len(self._piece) - 1)] + nth
        start, end = first[row], last[row]
        for x in self._rows:
            size = int(x.value.max()) + 2
            place = self._piece * size + x.value
            low = np.clip(x.low[rows][row], 0, size - 1)
            high = np.clip(x.high[rows][row], -1, size - 1)
            start = np.maximum(start, np.searchsorted(place, which * size + low, side="left"))
            end = np.minimum(end, np.searchsorted(place, which * size + high, side="right"))
        keep = start < end
        return Found(row[keep] + rows.start, start[keep], end[keep])


class Index(Search):
    """Runs of keys with equal coordinates, sorted by these: for a row and a setting of all
    coordinates but the last, the runs that the last one's bounds allow stand together.

    Where rows read a part of the keys only, the position is the last coordinate.
    """

    def __init__(self, rows: list[Coordinate], first: I64, last: I64) -> None:
        self._first, self._last = first, last
        n_k = len(rows[0].value)
        values = np.stack([x.value for x in rows])
        self._begin = np.flatnonzero(np.append(True, (np.diff(values, axis=1) != 0).any(axis=0)))
        self._end = np.append(self._begin[1:], n_k)
        axes = [Coordinate(x.value[self._begin], x.low, x.high) for x in rows]
        axes.sort(key=lambda x: float((x.high - x.low).sum()))
        if (first > 0).any() or (last < n_k).any():
            head = np.searchsorted(self._begin, first, side="right") - 1
            tail = np.searchsorted(self._begin, last, side="left")
            axes.append(Coordinate(np.arange(len(self._begin)), head, tail - 1))
        *self._axes, self._ranged = axes
        self._settings = np.ones(len(first))
        share = np.ones(len(first))  # of all runs, were they spread evenly over the settings
        for x in axes:
            width = np.maximum(0, x.high - x.low + 1)
            self._settings *= width if x is not self._ranged else 1
            share *= np.minimum(1.0, width / (int(x.value.max()) + 1))
        self.cost = self._settings + share * len(self._begin)
        self._known: list[I64] = []  # codes of the settings that keys have, axis by axis
        code = np.zeros(len(self._begin), dtype=np.int64)
        for x in self._axes:
            there, code = ranked(code * (int(x.value.max()) + 1) + x.value)
            self._known.append(there)
        place = code * (int(self._ranged.value.max()) + 1) + self._ranged.value
        self._order = np.argsort(place, kind="stable")
        self._place = place[self._order]

    def runs(self, rows: slice) -> Found:
        """Runs of keys of some rows."""
        settings = self._settings[rows].astype(np.int64)
        row, nth = expand(np.zeros_like(settings), settings)
        code, found = np.zeros(len(row), dtype=np.int64), np.ones(len(row), dtype=bool)
        for x, there in zip(self._axes, self._known):
            low, high, size = x.low[rows], x.high[rows], int(x.value.max()) + 1
            width = (high - low + 1)[row]
            value, nth = low[row] + nth % width, nth // width
            asked = code * size + value
            code = np.minimum(np.searchsorted(there, asked), len(there) - 1)
            found &= (value >= 0) & (value < size) & (there[code] == asked)
        row, code = row[found], code[found]
        size = int(self._ranged.value.max()) + 1
        low = np.maximum(self._ranged.low[rows][row], 0)
        high = np.minimum(self._ranged.high[rows][row], size - 1)
        start = np.searchsorted(self._place, code * size + low, side="left")
        end = np.searchsorted(self._place, code * size + high, side="right")
        count = np.where(high >= low, np.maximum(0, end - start), 0)
        _few_enough(float(count.sum()), "a mask")
        which, more = expand(np.zeros_like(count), count)
        run, row = self._order[start[which] + more], row[which]
        begin = np.maximum(self._begin[run], self._first[rows][row])
        stop = np.minimum(self._end[run], self._last[rows][row])
        keep = begin < stop
        return Found(row[keep] + rows.start, begin[keep], stop[keep])


def _merged(found: Found) -> Found:
    """Runs sorted by row and key, those that touch joined."""
    order = np.lexsort((found.start, found.row))
    row, start, end = (x[order] for x in found)
    if not len(row):
        return found
    fresh = np.append(True, (row[1:] != row[:-1]) | (start[1:] > end[:-1]))
    begin = np.flatnonzero(fresh)
    return Found(row[begin], start[begin], end[np.append(begin[1:], len(row)) - 1])
