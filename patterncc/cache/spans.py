"""Spans: the step that reads each key last, as straight pieces in closed form.

In one tight causal zone key j is read last by query min(i1 - 1, j - d0): a slanted piece, then a
level one.  Over many zones it is the upper envelope of such pieces, found by a sort and one pass
of maxima: near linear in the zones, whatever the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.zones import algebra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

_NONE = -1  # a level piece that is not there
_BELOW = -(2**62)  # a slanted piece that is not there


@dataclass(frozen=True, eq=False)
class Spans:
    """For every key the last step that reads it.

    table: int64 [pieces, 4], columns first, last, slope, offset: keys first <= j < last are read
    last at step ``offset + slope * j``, slope 0 or 1.  Pieces ascend and are apart; keys in none of
    them are never read.  No key is read last before its own step.

    >>> from patterncc import causal, lower, sink, window
    >>> print(Spans.of(lower(causal() & (window(3) | sink(1)), 100).table))
    keys [0, 1): last read at step 99
    keys [1, 97): last read 3 steps after their own
    keys [97, 100): last read at step 99
    """

    table: I64

    @staticmethod
    def of(zones: I64) -> Spans:
        """The spans of a table of tight causal zones (no key after its query)."""
        i1, j0, j1, d0 = (zones[:, k] for k in (1, 2, 3, 4))
        turn = np.clip(i1 + d0, j0, j1)  # from here on the last query of the zone is the reader
        if bool((j0[1:] >= j1[:-1]).all()):  # no two zones share a key: documents, chunks
            return Spans(_settled(_interleaved((j0, turn, 1, -d0), (turn, j1, 0, i1 - 1))))
        points = _points(zones)
        level = _covering(points, turn, j1, i1 - 1, _NONE)
        slant = _covering(points, j0, turn, -d0, _BELOW)
        return Spans(_envelope(points, level, slant))

    @cached_property
    def keys(self) -> I64:
        """The keys that some step reads, int64 [m, 2], sorted and apart."""
        return algebra.merge_intervals(self.table[:, :2])

    def last(self, key: int) -> int | None:
        """The step that reads a key last, None for a key that none reads."""
        place = int(np.searchsorted(self.table[:, 0], key, side="right")) - 1
        if place < 0:
            return None
        _, last, slope, offset = self.table[place].tolist()
        return offset + slope * key if key < last else None

    def read_at_or_after(self, step: int, written: int) -> I64:
        """Keys below `written` that some query from `step` on reads, int64 [m, 2]."""
        first, last, slope, offset = self.table.T
        low = np.where(slope == 1, np.maximum(first, step - offset), first)
        high = np.minimum(np.where((slope == 0) & (offset < step), first, last), written)
        some = low < high
        return algebra.merge_intervals(np.stack([low[some], high[some]], axis=1))

    def read_last_at(self, step: int) -> I64:
        """Keys that `step` is the last to read, int64 [m, 2]."""
        first, last, slope, offset = self.table.T
        low = np.where(slope == 1, np.maximum(first, step - offset), first)
        high = np.where(slope == 1, np.minimum(last, step - offset + 1), last)
        some = (low < high) & ((slope == 1) | (offset == step))
        return algebra.merge_intervals(np.stack([low[some], high[some]], axis=1))

    def __str__(self) -> str:
        lines = []
        for first, last, slope, offset in self.table[:20].tolist():
            when = f"{offset} steps after their own" if slope else f"at step {offset}"
            when = "at their own step" if slope and not offset else when
            lines.append(f"keys [{first}, {last}): last read {when}")
        more = [f"... {len(self.table) - 20} more pieces"] if len(self.table) > 20 else []
        return "\n".join([*lines, *more]) or "no key is read"

    __repr__ = __str__


def _points(zones: I64) -> I64:
    """Where pieces may begin and end, ascending; every key between two of them sees the same."""
    if not len(zones):
        return np.zeros(0, dtype=np.int64)
    i1, j0, j1, d0 = (zones[:, k] for k in (1, 2, 3, 4))
    low, high = int(j0.min()), int(j1.max())
    if high - low < 2 * len(zones):  # fewer keys than ends: no sort
        return np.arange(low, high + 1, dtype=np.int64)
    ends = np.sort(np.concatenate([j0, j1, np.clip(i1 + d0, j0, j1)]))
    points: I64 = ends[np.append(True, ends[1:] != ends[:-1])]
    return points


def _covering(points: I64, first: I64, last: I64, value: I64, none: int) -> I64:
    """For each stretch between two points the largest value of the intervals that hold it.

    An interval is covered by two whose length is a power of two; lengths are halved from the
    longest down, each passing what it holds to its halves: E log E for E stretches.
    """
    best = np.full(max(0, len(points) - 1), none, dtype=np.int64)
    some = first < last
    a, b = _places(points, first[some]), _places(points, last[some])
    value = value[some]
    level = np.frexp((b - a).astype(np.float64))[1] - 1
    order = np.argsort(level, kind="stable")
    ends = np.searchsorted(level[order], np.arange(int(level.max(initial=0)) + 2))
    for k in range(len(ends) - 2, -1, -1):
        part = order[ends[k] : ends[k + 1]]
        np.maximum.at(best, a[part], value[part])
        np.maximum.at(best, b[part] - 2**k, value[part])
        if k:
            half = 2 ** (k - 1)
            best[half:] = np.maximum(best[half:], best[:-half])
    return best


def _places(points: I64, wanted: I64) -> I64:
    """Where each of some points stands among all."""
    consecutive = len(points) and int(points[-1] - points[0]) == len(points) - 1
    places: I64 = wanted - points[0] if consecutive else np.searchsorted(points, wanted)
    return places


def _envelope(points: I64, level: I64, slant: I64) -> I64:
    """Pieces of max(level, slant + key) over the stretches, equal neighbours joined."""
    start, stop = points[:-1], points[1:]
    cross = np.clip(level - slant + 1, start, stop)  # from here on the slanted piece is above
    return _settled(_interleaved((start, cross, 0, level), (cross, stop, 1, slant)))


def _interleaved(first: tuple[Any, ...], second: tuple[Any, ...]) -> I64:
    """Rows of two tables in turn, given by their columns; stored column by column."""
    flat = np.empty((4, len(first[0]), 2), dtype=np.int64)
    for k in range(4):
        flat[k, :, 0], flat[k, :, 1] = first[k], second[k]
    return flat.reshape(4, -1).T


def _settled(table: I64) -> I64:
    """Pieces that hold some key, equal ones joined; the only form of these spans."""
    table = _joined(algebra.take(table, (table[:, 0] < table[:, 1]) & (table[:, 3] >= 0)))
    # a single key is level, so that equal spans have equal tables
    alone = (table[:, 1] - table[:, 0] == 1) & (table[:, 2] == 1)
    table[alone, 3] += table[alone, 0]
    table[alone, 2] = 0
    return _joined(table) if alone.any() else table


def _joined(table: I64) -> I64:
    """Neighbours on one line as one piece."""
    first, last, slope, offset = table.T
    opens = np.ones(len(table), dtype=bool)
    opens[1:] = (first[1:] != last[:-1]) | (slope[1:] != slope[:-1]) | (offset[1:] != offset[:-1])
    joined = algebra.take(table, opens)
    if len(table):
        joined[:, 1] = last[np.append(opens[1:], True)]
    return joined
