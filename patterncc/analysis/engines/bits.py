"""Boolean matrices as bit rows, and their product with a matrix of runs.

A matrix [K, K] is uint64 [K, ceil(K / 64)]: bit b of word w of row r is column 64 * w + b.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from patterncc.zones.algebra import expand, merge_intervals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Bits = NDArray[np.uint64]

_CHUNK = 2**22  # bytes of a column strip that is worked on at once, so that it stays in cache
_ONES = np.uint64(2**64 - 1)


@dataclass(frozen=True, eq=False)
class RunRows:
    """A Boolean matrix as runs: row[x] holds the columns [first[x], last[x]); sorted, disjoint."""

    size: int
    row: I64
    first: I64
    last: I64

    @staticmethod
    def of(size: int, row: I64, first: I64, last: I64) -> RunRows:
        """Runs in any order, overlapping or empty, merged.

        >>> x = np.array
        >>> r = RunRows.of(8, x([1, 0, 1]), x([0, 4, 2]), x([3, 6, 5]))
        >>> r.row.tolist(), r.first.tolist(), r.last.tolist()
        ([0, 1], [4, 0], [6, 5])
        """
        alive = first < last
        base = row[alive].astype(np.int64) * (size + 1)  # one apart, so that rows never join
        merged = merge_intervals(np.stack([base + first[alive], base + last[alive]], axis=1))
        row = merged[:, 0] // (size + 1)
        return RunRows(size, row, merged[:, 0] - row * (size + 1), merged[:, 1] - row * (size + 1))

    def same(self, other: RunRows) -> bool:
        """Equal as matrices."""
        return (
            np.array_equal(self.row, other.row)
            and np.array_equal(self.first, other.first)
            and np.array_equal(self.last, other.last)
        )

    def bits(self) -> Bits:
        """The same matrix as bit rows."""
        out = zeros(self.size)
        word0, word1 = self.first // 64, (self.last - 1) // 64
        run, word = expand(word0, word1 + 1)
        low = np.maximum(self.first[run] - 64 * word, 0).astype(np.uint64)
        high = np.minimum(self.last[run] - 64 * word, 64).astype(np.uint64)
        mask = (_ONES << low) & (_ONES >> (np.uint64(64) - high))
        np.bitwise_or.at(out, (self.row[run], word), mask)
        return out


def zeros(size: int) -> Bits:
    """The empty matrix."""
    return np.zeros((size, -(-size // 64)), dtype=np.uint64)


def eye(size: int) -> Bits:
    """The identity."""
    out = zeros(size)
    index = np.arange(size)
    out[index, index // 64] = np.uint64(1) << (index % 64).astype(np.uint64)
    return out


def picked(bits: Bits, row: I64, column: I64) -> NDArray[np.bool_]:
    """The entries at (row, column)."""
    word = bits[row, column // 64] >> (column % 64).astype(np.uint64)
    return (word & np.uint64(1)).astype(bool)


def total(bits: Bits) -> int:
    """How many entries are set."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def product(left: RunRows, right: Bits) -> Bits:
    """The Boolean product: row r is the OR of the rows of `right` that the runs of row r name.

    The OR of a run is that of two windows of 2**k rows; windows of all rows double from level to
    level, so a run costs the same whatever its length.
    """
    out = np.zeros_like(right)
    if not len(left.row):
        return out
    passes = _passes(left)
    width = max(1, _CHUNK // (8 * max(1, left.size)))
    for start in range(0, right.shape[1], width):
        window = right[:, start : start + width].copy()
        target = np.zeros_like(window)
        for level, steps in enumerate(passes):
            if level:
                step = 2 ** (level - 1)
                window[:-step] |= window[step:]
            for rows, first, second in steps:
                target[rows] |= window[first] | window[second]
        out[:, start : start + width] = target
    return out


Step = tuple["I64", "I64", "I64"]


def _passes(runs: RunRows) -> list[list[Step]]:
    """For each level k, groups of runs of 2**k .. 2**(k+1) - 1 rows, no row twice in a group."""
    length = runs.last - runs.first
    levels = np.frexp(length.astype(np.float64))[1] - 1
    result: list[list[Step]] = []
    for level in range(int(levels.max()) + 1):
        index = np.flatnonzero(levels == level)
        row, first = runs.row[index], runs.first[index]
        second = runs.last[index] - 2**level
        opens = np.flatnonzero(np.append(True, row[1:] != row[:-1])) if len(row) else row
        rank = np.arange(len(row)) - np.repeat(opens, np.diff(np.append(opens, len(row))))
        order = np.argsort(rank, kind="stable")
        cuts = np.searchsorted(rank[order], np.arange(int(rank.max(initial=-1)) + 2))
        result.append(
            [
                (row[part], first[part], second[part])
                for part in (order[a:b] for a, b in pairwise(cuts.tolist()))
            ]
        )
    return result
