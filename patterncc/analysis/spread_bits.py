"""Breadth-first search from 64 positions at once: one bit a source, one word a position.

A hop replaces every word by the OR of its closed neighbourhood.  A zone's rows read intervals, so
its ORs are running ones (an end moves) or windows of doubled width (both move): slices, whatever
the number of edges.  Many boxes share the ORs of the stretches between their ends; single edges
are gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.skeleton import FEW, Skeleton
from patterncc.zones.algebra import expand, refuse_above, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Words = NDArray[np.uint64]
    Step = Callable[[Words, Words], None]

MOST_RUNS = 2**23
_LANES = np.uint64(0x0101010101010101)
_OR = np.bitwise_or


@dataclass(frozen=True, eq=False)
class Spreader:
    """A skeleton made ready: each step ORs some edges' words into the result."""

    size: int
    steps: tuple[Step, ...]

    def hop(self, words: Words) -> Words:
        """The words of all closed neighbourhoods."""
        out = words.copy()
        for step in self.steps:
            step(words, out)
        return out


def spreader(s: Skeleton) -> Spreader:
    """Sort the zones into the ways in which they are applied.

    Raises SizeError where many narrow slanted zones have too many rows.
    """
    i0, i1, j0, j1, d0, d1 = s.zones.T
    slanted = (d0 > j0 - i1 + 1) | (d1 < j1 - i0)
    boxes, bands = take(s.zones, ~slanted), take(s.zones, slanted)
    steps: list[Step] = []
    if len(boxes) > FEW:
        steps.append(_boxes(boxes))
        boxes = boxes[:0]
    if len(bands) > 8 * FEW:
        steps.append(_runs(bands))
        bands = bands[:0]
    for zone in np.concatenate([boxes, bands]).tolist():
        steps += [partial(_slice, *row) for row in _rows(*zone) if row[2:] != (0, True, 1, True)]
    if len(s.others):
        steps.append(_singles(s.first, s.others))
    return Spreader(s.size, tuple(steps))


def _rows(
    i0: int, i1: int, j0: int, j1: int, d0: int, d1: int
) -> Iterator[tuple[int, int, int, bool, int, bool]]:
    """A zone's rows, cut where an end of their keys begins or stops moving: first row, past the
    last, and both ends, counted from the row where they move."""
    turn_low, turn_high = min(max(j0 - d0, i0), i1), min(max(j1 - d1 + 1, i0), i1)
    for a, b in pairwise(sorted({i0, turn_low, turn_high, i1})):
        low, high = a >= turn_low, a < turn_high
        yield a, b, d0 if low else j0, low, d1 if high else j1, high


def _slice(
    a: int, b: int, low: int, low_moves: bool, high: int, high_moves: bool, words: Words, out: Words
) -> None:
    """out[r] |= OR of words[low:high] for the rows a <= r < b, either end moving along with r."""
    match low_moves, high_moves:
        case False, False:
            out[a:b] |= _OR.reduce(words[low:high])
        case False, True:
            running = _OR.accumulate(words[low : high + b - 1])
            out[a:b] |= running[high + a - 1 - low :]
        case True, False:
            running = _OR.accumulate(words[low + a : high][::-1])[::-1]
            out[a:b] |= running[: b - a]
        case _:
            width, done = high - low, 1
            window = words[low + a : high + b - 1]
            while 2 * done <= width:
                window = window[:-done] | window[done:]
                done *= 2
            out[a:b] |= window[: b - a]
            if done < width:
                out[a:b] |= window[width - done :]


def _boxes(table: I64) -> Step:
    """Boxes: OR of the key stretches in each, then of the boxes over each stretch of rows."""
    i0, i1, j0, j1, _, _ = table.T
    keys, rows = (np.unique(np.concatenate(ends)) for ends in ((j0, j1), (i0, i1)))
    _, stretch = expand(np.searchsorted(keys, j0), np.searchsorted(keys, j1))
    spans = np.searchsorted(keys, j1) - np.searchsorted(keys, j0)
    refuse_above(len(stretch), "stretches of keys in boxes")
    begin = np.cumsum(spans) - spans
    box, slab = expand(np.searchsorted(rows, i0), np.searchsorted(rows, i1))
    refuse_above(len(slab), "stretches of rows in boxes")
    order = np.argsort(slab, kind="stable")
    box, slab = box[order], slab[order]
    opens = np.flatnonzero(np.append(True, slab[1:] != slab[:-1]))
    lengths = np.zeros(len(rows) - 1, dtype=np.int64)
    lengths[slab[opens]] = 1

    def step(words: Words, out: Words) -> None:
        part = _OR.reduceat(words[: keys[-1]], keys[:-1])
        whole = _OR.reduceat(part[stretch], begin)
        found = np.zeros(len(rows) - 1, dtype=np.uint64)
        found[slab[opens]] = _OR.reduceat(whole[box], opens)
        out[rows[0] : rows[-1]] |= np.repeat(found, np.diff(rows))

    return step


def _runs(table: I64) -> Step:
    """Rows of many zones one by one: each the OR of two windows of 2**level words."""
    zone, row = expand(table[:, 0], table[:, 1])
    refuse_above(len(row), "rows of narrow zones", MOST_RUNS)
    low = np.maximum(table[zone, 2], row + table[zone, 4])
    high = np.minimum(table[zone, 3], row + table[zone, 5])
    level = np.frexp((high - low).astype(np.float64))[1].astype(np.int64) - 1
    order = np.lexsort((row, level))
    row, low, high, level = row[order], low[order], high[order], level[order]
    parts = []
    for k in range(int(level[-1]) + 1):
        a, b = np.searchsorted(level, [k, k + 1])
        opens = (
            np.flatnonzero(np.append(True, row[a + 1 : b] != row[a : b - 1])) if b > a else row[:0]
        )
        parts.append((row[a:b][opens], opens, low[a:b], high[a:b] - 2**k))

    def step(words: Words, out: Words) -> None:
        window = words
        for k, (rows, opens, first, second) in enumerate(parts):
            if k:
                half = 2 ** (k - 1)
                window = window[:-half] | window[half:]
            if len(rows):
                out[rows] |= _OR.reduceat(window[first] | window[second], opens)

    return step


def _singles(first: I64, others: I64) -> Step:
    """Single edges, by the position that they lead from."""
    some = np.flatnonzero(first[1:] > first[:-1])
    begin = first[some]
    everywhere = len(some) == len(first) - 1

    def step(words: Words, out: Words) -> None:
        found = _OR.reduceat(words[others], begin)
        if everywhere:
            np.bitwise_or(out, found, out=out)
        else:
            out[some] |= found

    return step


def start(size: int, sources: I64) -> Words:
    """Every source at its own position: bit b belongs to sources[b] (at most 64)."""
    words = np.zeros(size, dtype=np.uint64)
    np.bitwise_or.at(words, sources, np.uint64(1) << np.arange(len(sources), dtype=np.uint64))
    return words


def tally(words: Words) -> I64:
    """How many positions have each bit: int64 [64].

    Bits k, k + 8, ... of a word are moved into one byte each, and bytes of 255 words added at once.

    >>> tally(np.array([5, 4, 2**63], dtype=np.uint64))[[0, 1, 2, 63]].tolist()
    [1, 0, 2, 1]
    """
    counts = np.zeros(64, dtype=np.int64)
    whole = len(words) - len(words) % 255
    padded = np.zeros(255, dtype=np.uint64)
    padded[: len(words) - whole] = words[whole:]
    for part in (words[:whole], padded):
        for first in range(0, len(part), 255 * 64):
            some = part[first : first + 255 * 64]
            for k in range(8):
                lanes = ((some >> np.uint64(k)) & _LANES).reshape(-1, 255).sum(axis=1)
                counts[k::8] += lanes.view(np.uint8).reshape(-1, 8).sum(axis=0, dtype=np.int64)
    return counts
