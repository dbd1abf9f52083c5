"""The zones of a layer sorted into the ways in which bit columns are carried through them.

    slides   tall bands: sliding ORs, the window doubled until it is wide enough
    scans    tall zones with one end that stands still: running ORs
    gathers  short runs of keys in short zones: the k-th key of every row in one gather
    ranges   everything else: one OR for each range of keys, then one gather for each k-th range

Each costs what the rows cost, however wide the zones are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.zones.algebra import expand, refuse_above, single_rows, take

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

TALL = 256  # rows from which a zone is worth slices of its own
SHORT = 4  # keys of a run that are gathered one by one
FEW = 64  # stretches of rows up to which each is a slice
MAX_ENTRIES = 2**26  # numbers that the indices of one layer may hold


@dataclass(frozen=True, eq=False)
class Ranked:
    """Members of rows in layers of at most one a row: row[x] of layer k takes index[x].

    Where most rows have a k-th member, `row` is None and `index` has one entry a row (rows without
    one take themselves, which adds nothing).
    """

    row: I64 | None
    index: I64


@dataclass(frozen=True, eq=False)
class Ranges:
    """Rows that read ranges of keys: range r is [first[r], last[r]); stretch s of rows begins at
    starts[s] and reads those ranges that the layers of `members` give it."""

    first: I64
    last: I64
    starts: I64  # one more than stretches: where each begins, and where the last ends
    members: tuple[Ranked, ...]
    of_row: I64 | None  # the stretch of each row where they are many


@dataclass(frozen=True, eq=False)
class Operator:
    """A layer made ready for states of `size` positions."""

    size: int
    slides: tuple[tuple[int, ...], ...]
    scans: tuple[tuple[int, ...], ...]
    gathers: tuple[Ranked, ...]
    ranges: Ranges | None

    @property
    def passes(self) -> float:
        """Words touched for each word of a state, roughly: what a layer costs."""
        tall = sum(
            (z[1] - z[0]) * (2 + (z[5] - z[4] - 1).bit_length()) for z in self.slides + self.scans
        )
        taken = 3 * sum(len(g.index) for g in self.gathers)
        if self.ranges is not None:
            longest = int((self.ranges.last - self.ranges.first).max())
            taken += self.size * (3 + longest.bit_length())
        return 2 + (tall + taken) / max(1, self.size)


def operator(table: I64, size: int) -> Operator:
    """Sort the zones of a layer into the ways in which they are applied.

    >>> from patterncc import lower, random_edges, window
    >>> op = operator(lower(window(8, 8) | random_edges(2), 1024).table, 1024)
    >>> len(op.slides), [len(g.index) for g in op.gathers], op.ranges
    (1, [1024, 1024], None)

    Raises SizeError when the indices would hold more than MAX_ENTRIES numbers.
    """
    single = single_rows(table, SHORT)
    rest = take(table, ~single)
    i0, i1, j0, j1, d0, d1 = rest.T
    low_moves, high_moves = d0 > j0 - i1 + 1, d1 < j1 - i0
    height, width = i1 - i0, np.minimum(j1 - j0, d1 - d0)
    slanted = (low_moves | high_moves) & (height > 1)
    tall = slanted & (height >= TALL)
    scan = tall & ~(low_moves & high_moves)
    short = ~tall & (width <= SHORT) & (height < TALL)
    edges = [_edges(take(rest, short)), _single_rows(table, single)]
    row, key = (np.concatenate(part) for part in zip(*edges, strict=True))
    loose = ~tall & ~short
    return Operator(
        size,
        tuple(tuple(map(int, zone)) for zone in rest[tall & ~scan].tolist()),
        tuple(tuple(map(int, zone)) for zone in rest[scan].tolist()),
        _ranked(row, key, size, fill=True),
        _ranges(take(rest, loose), slanted[loose], size),
    )


def _single_rows(table: I64, single: NDArray[np.bool_]) -> tuple[I64, I64]:
    """The edges of zones of one row and a few keys."""
    row, key, last = (table[:, k][single] for k in (0, 2, 3))
    refuse_above(len(row) * SHORT, "single edges", MAX_ENTRIES)
    wide = last - key > 1
    if not wide.any():
        return row, key
    at, more = expand(key[wide] + 1, last[wide])
    return np.concatenate([row, row[wide][at]]), np.concatenate([key, more])


def _edges(table: I64) -> tuple[I64, I64]:
    """The edges of short and narrow zones."""
    refuse_above(int((table[:, 1] - table[:, 0]).sum()) * SHORT, "single edges", MAX_ENTRIES)
    zone, row = expand(table[:, 0], table[:, 1])
    low = np.maximum(table[zone, 2], row + table[zone, 4])
    high = np.minimum(table[zone, 3], row + table[zone, 5])
    at, key = expand(low, high)
    return row[at], key


def _ranked(row: I64, index: I64, size: int, *, fill: bool) -> tuple[Ranked, ...]:
    """(row, index) in layers of at most one a row; with `fill` one where most rows are in it has an
    entry for every row."""
    if bool((row[1:] < row[:-1]).any()):
        order = np.argsort(row, kind="stable")
        row, index = row[order], index[order]
    counts = np.bincount(row, minlength=size)
    most = int(counts.max(initial=0))
    if fill and most * size == len(row):
        columns = np.ascontiguousarray(index.reshape(size, most).T)
        return tuple(Ranked(None, column) for column in columns)
    before = np.cumsum(counts) - counts
    layers = []
    for k in range(most):
        rows = np.flatnonzero(counts > k)
        picked = index[before[rows] + k]
        if not fill or 2 * len(rows) < size:
            layers.append(Ranked(rows, picked))
            continue
        whole = np.arange(size, dtype=np.int64)
        whole[rows] = picked
        layers.append(Ranked(None, whole))
    return tuple(layers)


def _ranges(table: I64, slanted: NDArray[np.bool_], size: int) -> Ranges | None:
    """Boxes as they are, slanted zones row by row, as stretches of rows that read ranges."""
    if not len(table):
        return None
    sloped = take(table, slanted)
    refuse_above(int((sloped[:, 1] - sloped[:, 0]).sum()), "rows of short zones", MAX_ENTRIES)
    zone, row = expand(sloped[:, 0], sloped[:, 1])
    box = take(table, ~slanted)
    top, bottom = np.concatenate([box[:, 0], row]), np.concatenate([box[:, 1], row + 1])
    first = np.concatenate([box[:, 2], np.maximum(sloped[zone, 2], row + sloped[zone, 4])])
    last = np.concatenate([box[:, 3], np.minimum(sloped[zone, 3], row + sloped[zone, 5])])
    order = np.lexsort((last, first))
    opens = np.ones(len(order), dtype=bool)
    opens[1:] = (np.diff(first[order]) != 0) | (np.diff(last[order]) != 0)
    range_of = np.empty(len(order), dtype=np.int64)
    range_of[order] = np.cumsum(opens) - 1
    starts = _distinct(np.concatenate([top, bottom]))
    begin, end = np.searchsorted(starts, top), np.searchsorted(starts, bottom)
    refuse_above(int((end - begin).sum()), "stretches of rows", MAX_ENTRIES)
    owner, stretch = expand(begin, end)
    members = _ranked(stretch, range_of[owner], len(starts) - 1, fill=False)
    of_row = None
    if len(starts) - 1 > FEW:
        of_row = np.searchsorted(starts, np.arange(starts[0], starts[-1]), side="right") - 1
    kept = order[opens]
    return Ranges(first[kept], last[kept], starts, members, of_row)


def _distinct(x: I64) -> I64:
    x = np.sort(x)
    fresh: I64 = x[np.append(True, x[1:] != x[:-1])]
    return fresh
