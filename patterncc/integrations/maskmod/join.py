"""Several comparisons at once: row i reads keys j with lo(i) <= v(j) <= hi(i) for every v.

`Coordinate` holds one function v of the key and both bounds.  Where v only grows, its bounds are a
run of keys; where it starts again and again (a column of a grid, a place inside a document), keys
are sought in its pieces, or in an index sorted by all coordinates, whichever has less to do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patterncc.errors import SizeError
from patterncc.integrations.maskmod.tables import (
    I64,
    MOST_RUNS,
    Column,
    Frame,
    expanded,
    interval,
    ranked,
    row_runs,
    table,
)
from patterncc.pattern import Pattern
from patterncc.zones import algebra


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
    return [_sought(at, rest, first, last, what)]


def _turned(at: Frame, x: Coordinate) -> Pattern | None:
    """Runs of queries for each key, where the bounds of the queries only grow or only fall."""
    for low, high, value in ((x.low, x.high, x.value), (-x.high, -x.low, -x.value)):
        if (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all():
            first = np.searchsorted(high, value, side="left").astype(np.int64)
            last = np.searchsorted(low, value, side="right").astype(np.int64)
            zones = algebra.transpose(interval(Frame(at.n_k, at.n), first, last))
            return table(at, zones)
    return None


def _sought(at: Frame, rest: list[Coordinate], first: I64, last: I64, what: str) -> Pattern:
    """The keys of every run of equal rows, by pieces or by the index."""
    if not at.n or not at.n_k:
        empty = np.zeros(0, dtype=np.int64)
        return row_runs(at, empty, empty, empty, empty)
    params = np.stack([first, last, *(x.low for x in rest), *(x.high for x in rest)])
    fresh = np.append(True, (np.diff(params, axis=1) != 0).any(axis=0))
    i0 = np.flatnonzero(fresh)
    i1 = np.append(i0[1:], at.n)
    rows = [Coordinate(x.value, x.low[i0], x.high[i0]) for x in rest]
    first, last = first[i0], last[i0]
    falls = np.zeros(at.n_k - 1, dtype=bool)
    for x in rest:
        falls |= np.diff(x.value) < 0
    piece = np.append(0, np.cumsum(falls))
    met = _pieces_met(piece, first, last)
    wide = _wide(rows)
    if min(met.sum(dtype=float), wide.sum(dtype=float)) > MOST_RUNS:
        raise SizeError(
            f"{what} marks more than {MOST_RUNS} runs of keys ({int(min(met.sum(), wide.sum()))} "
            "would be looked at); read a shorter n, or intersect it with a window"
        )
    if met.sum() <= wide.sum():
        row, start, end = _by_pieces(rows, piece, first, last, met)
    else:
        row, start, end = _by_index(rows, first, last, wide)
    keep = start < end
    row, start, end = _merged(row[keep], start[keep], end[keep])
    return row_runs(at, i0[row], i1[row], start, end)


def _pieces_met(piece: I64, first: I64, last: I64) -> I64:
    """In how many pieces the run of keys of each row lies."""
    some = last > first
    low, high = piece[np.where(some, first, 0)], piece[np.where(some, last - 1, 0)]
    return np.where(some, high - low + 1, 0)


def _by_pieces(
    rows: list[Coordinate], piece: I64, first: I64, last: I64, met: I64
) -> tuple[I64, I64, I64]:
    """In a piece every coordinate grows: one run of keys for a row and a piece."""
    row, nth = expanded(met)
    which = piece[np.minimum(first[row], len(piece) - 1)] + nth
    start, end = first[row], last[row]
    for x in rows:
        size = int(max(x.value.max(), x.high.max(), 0)) + 2
        place = piece * size + x.value
        low, high = np.maximum(x.low[row], 0), np.maximum(x.high[row], -1)
        low, high = np.minimum(low, size - 1), np.minimum(high, size - 1)
        start = np.maximum(start, np.searchsorted(place, which * size + low, side="left"))
        end = np.minimum(end, np.searchsorted(place, which * size + high, side="right"))
    return row, start, end


def _wide(rows: list[Coordinate]) -> I64:
    """How many settings of all coordinates each row asks for."""
    total = np.ones(len(rows[0].low))
    for x in rows:
        total *= np.maximum(0, x.high - x.low + 1)
    return total.astype(np.float64).clip(0, 2.0**60).astype(np.int64)


def _by_index(rows: list[Coordinate], first: I64, last: I64, wide: I64) -> tuple[I64, I64, I64]:
    """Runs of keys with equal coordinates, sorted by these: a stretch of them for a row and a
    setting of all coordinates."""
    n_k = len(rows[0].value)
    values = np.stack([x.value for x in rows])
    begin = np.flatnonzero(np.append(True, (np.diff(values, axis=1) != 0).any(axis=0)))
    ends = np.append(begin[1:], n_k)
    row, nth = expanded(wide)
    code, asked, known = _coded(rows, begin, row, nth)
    order = np.argsort(code, kind="stable")
    step = len(begin) + 1
    place = code[order] * step + order
    head = np.searchsorted(begin, first, side="right") - 1  # the run that holds the first key
    tail = np.searchsorted(begin, last, side="left")
    low = np.searchsorted(place, asked * step + head[row], side="left")
    high = np.searchsorted(place, asked * step + tail[row], side="left")
    count = np.where(known, np.maximum(0, high - low), 0)
    if count.sum() > MOST_RUNS:
        raise SizeError(
            f"the mask marks {int(count.sum())} scattered runs of keys, more than {MOST_RUNS}; "
            "read a shorter n, or intersect it with a window"
        )
    which, more = expanded(count)
    run, row = order[low[which] + more], row[which]
    return row, np.maximum(begin[run], first[row]), np.minimum(ends[run], last[row])


def _coded(
    rows: list[Coordinate], begin: I64, row: I64, nth: I64
) -> tuple[I64, I64, NDArray[np.bool_]]:
    """One integer for the coordinates of every run of keys and of every setting asked for."""
    code = np.zeros(len(begin), dtype=np.int64)
    asked = np.zeros(len(row), dtype=np.int64)
    known = np.ones(len(row), dtype=bool)
    for x in rows:
        width = (x.high - x.low + 1)[row]
        value = x.low[row] + nth % width
        nth = nth // width
        size = int(x.value.max()) + 1
        there, code = ranked(code * size + x.value[begin])
        sought = asked * size + value
        known &= (value >= 0) & (value < size)
        place = np.minimum(np.searchsorted(there, sought), len(there) - 1)
        known &= there[place] == sought
        asked = place
    return code, asked, known


def _merged(row: I64, start: I64, end: I64) -> tuple[I64, I64, I64]:
    """Runs sorted by row and key, those that touch joined; no two of a row overlap."""
    order = np.lexsort((start, row))
    row, start, end = row[order], start[order], end[order]
    if not len(row):
        return row, start, end
    fresh = np.append(True, (row[1:] != row[:-1]) | (start[1:] > end[:-1]))
    begin = np.flatnonzero(fresh)
    return row[begin], start[begin], end[np.append(begin[1:], len(row)) - 1]
