"""Mask words of a layout as tiles of bools: the CPU's reading of zones and bits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ABSENT = -1  # stands for a tile that a row does not touch


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of a layout: `zones` int32 [count, 4, 6], `bits` (u)int32 [count, BM, words].

    >>> m = Masks((16, 16), np.array([[[0, 2, 0, 3, -9, 9]] + [[0] * 6] * 3]), np.zeros((0, 16, 1)))
    >>> m.bounds(np.array([[ABSENT, 1]]))
    (0, 2, 16, 19)
    >>> m.allowed(np.array([[ABSENT, 1]])).sum()
    np.int64(6)
    """

    block: tuple[int, int]
    zones: NDArray[np.int32]
    bits: NDArray[np.uint32]

    def tile(self, word: int, low: int = 0, high: int | None = None) -> NDArray[np.bool_]:
        """Queries low .. high (default: all) of a mask word's tile, bool [high - low, BN]."""
        side_k = self.block[1]
        high = self.block[0] if high is None else high
        if word in (ABSENT, 0):
            return np.full((high - low, side_k), word == 0)
        if word > len(self.zones):
            packed = np.ascontiguousarray(self.bits[word - 1 - len(self.zones), low:high])
            ordered = packed.view(np.uint32).astype("<u4").view(np.uint8)
            return np.unpackbits(ordered, axis=-1, bitorder="little")[:, :side_k].astype(bool)
        i, j = np.arange(low, high)[:, None], np.arange(side_k)[None, :]
        tile = np.zeros((high - low, side_k), dtype=bool)
        for i0, i1, j0, j1, d0, d1 in self.zones[word - 1].tolist():
            if i0 < i1:  # else an unused slot
                first, last = np.maximum(j0, i + d0), np.minimum(j1, i + d1)
                tile |= (i0 <= i) & (i < i1) & (first <= j) & (j < last)
        return tile

    @cached_property
    def _boxes(self) -> dict[int, tuple[int, int, int, int]]:
        return {}

    def box(self, word: int) -> tuple[int, int, int, int]:
        """First query, past the last, first key, past the last of a mask; empty: (BM, 0, BN, 0)."""
        if word not in self._boxes:
            tile = self.tile(word)
            i, j = np.flatnonzero(tile.any(axis=1)), np.flatnonzero(tile.any(axis=0))
            empty = (self.block[0], 0, self.block[1], 0)
            self._boxes[word] = (
                (int(i[0]), int(i[-1]) + 1, int(j[0]), int(j[-1]) + 1) if len(i) else empty
            )
        return self._boxes[word]

    def bounds(self, words: NDArray[np.int32]) -> tuple[int, int, int, int]:
        """The box of a whole table of words, int32 [tile rows, tiles]."""
        edges = [
            (
                r * self.block[0] + i0,
                r * self.block[0] + i1,
                c * self.block[1] + j0,
                c * self.block[1] + j1,
            )
            for (r, c), word in np.ndenumerate(words)
            for i0, i1, j0, j1 in [self.box(int(word))]
            if i0 < i1
        ]
        if not edges:
            return (0, 0, 0, 0)
        i0, i1, j0, j1 = zip(*edges)
        return min(i0), max(i1), min(j0), max(j1)

    def allowed(self, words: NDArray[np.int32]) -> NDArray[np.bool_]:
        """The pairs of a table of words: int32 [..., R, T] to bool [..., R * BM, T * BN]."""
        side_q, side_k = self.block
        distinct, index = np.unique(words, return_inverse=True)
        tiles = np.stack([self.tile(int(w)) for w in distinct])
        picked = tiles[index.reshape(words.shape)]  # [..., R, T, BM, BN]
        *lead, r, t = words.shape
        return np.ascontiguousarray(np.swapaxes(picked, -3, -2)).reshape(
            *lead, r * side_q, t * side_k
        )
