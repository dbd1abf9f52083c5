"""The touched tiles of a pattern, cut into segments: neighbouring tiles that one chunk reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from patterncc.kernels.cpu.mask import ABSENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

FULL_KEYS = 2048  # a full stretch at least so long is cut out of a masked segment
BIAS_KEYS = 2048  # a masked segment is cut into pieces of at most so many keys

RowRuns = tuple[tuple[int, int, int], ...]  # one tile row: (first tile, tiles, mask word)


@dataclass(frozen=True, eq=False)
class Rows:
    """The tile rows of one pattern: `ptr` int32 [lines + 1] into `run` int32 [runs, 3]."""

    ptr: NDArray[np.int32]
    run: NDArray[np.int32]
    n: int
    n_k: int
    block: tuple[int, int]

    def line(self, r: int) -> list[tuple[int, int, int]]:
        """The runs of tile row r as integers, runs that continue each other joined."""
        joined: list[tuple[int, int, int]] = []
        for first, count, word in self.run[self.ptr[r] : self.ptr[r + 1]].tolist():
            if joined and joined[-1][2] == word and sum(joined[-1][:2]) == first:
                joined[-1] = (joined[-1][0], joined[-1][1] + count, word)
            elif count:
                joined.append((first, count, word))
        return joined


@dataclass(frozen=True)
class Segment:
    """Neighbouring key tiles `first .. first + tiles` that one chunk reads.

    rows[r]: the runs of the chunk's tile row r, counted from `first`.
    """

    chunk: int
    first: int
    tiles: int
    rows: tuple[RowRuns, ...]

    @property
    def full(self) -> bool:
        """Every tile is full."""
        return all(row == ((0, self.tiles, 0),) for row in self.rows)


def cut(rows: Rows, size: int) -> Iterator[list[Segment]]:
    """The segments of each chunk of `size` tile rows, in order."""
    lines = len(rows.ptr) - 1
    for chunk, r in enumerate(range(0, lines, size)):
        yield _segments(
            chunk, [rows.line(x) for x in range(r, min(r + size, lines))], rows.block[1]
        )


def _segments(chunk: int, lines: list[list[tuple[int, int, int]]], side: int) -> list[Segment]:
    """Cut the tiles of a chunk where no row reads, around long full stretches, and at BIAS_KEYS."""
    pieces = []
    for first, last in _union(lines):
        segment = _clip(chunk, lines, first, last)
        cuts = [first, last]
        if not segment.full:
            for a, b in _full(lines, first, last):
                if (b - a) * side >= FULL_KEYS:
                    cuts += [a, b]
        cuts = sorted(set(cuts))
        for a, b in pairwise(cuts):
            piece = _clip(chunk, lines, a, b)
            step = (b - a) if piece.full else max(1, BIAS_KEYS // side)
            pieces += [_clip(chunk, lines, x, min(x + step, b)) for x in range(a, b, step)]
    return pieces


def _union(lines: list[list[tuple[int, int, int]]]) -> list[tuple[int, int]]:
    """Maximal stretches of tiles that some row reads."""
    spans: list[tuple[int, int]] = []
    for first, count, _ in sorted(run for line in lines for run in line):
        if spans and first <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], first + count))
        else:
            spans.append((first, first + count))
    return spans


def _full(lines: list[list[tuple[int, int, int]]], first: int, last: int) -> list[tuple[int, int]]:
    """Stretches within first .. last that are full in every row."""
    common = [(first, last)]
    for line in lines:
        whole = [(a, a + count) for a, count, word in line if word == 0]
        common = [
            (max(a, c), min(b, d)) for a, b in common for c, d in whole if max(a, c) < min(b, d)
        ]
    return common


def _clip(chunk: int, lines: list[list[tuple[int, int, int]]], first: int, last: int) -> Segment:
    rows = tuple(
        tuple(
            (max(a, first) - first, min(a + count, last) - max(a, first), word)
            for a, count, word in line
            if a < last and a + count > first
        )
        for line in lines
    )
    return Segment(chunk, first, last - first, rows)


def words_of(s: Segment) -> NDArray[np.int32]:
    """A segment's mask words, int32 [tile rows, tiles]; ABSENT where a row does not read a tile."""
    words = np.full((len(s.rows), s.tiles), ABSENT, dtype=np.int32)
    for r, row in enumerate(s.rows):
        for first, count, word in row:
            words[r, first : first + count] = word
    return words
