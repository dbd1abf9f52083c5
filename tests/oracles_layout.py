"""A layout built the slow way, from a bool mask, with every partial tile as bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from patterncc.layout import Layout, Runs


def layout_of_mask(
    masks: NDArray[np.bool_], block: tuple[int, int], head_pattern: list[int] | None = None
) -> Layout:
    """masks: [patterns, n, n_k].  One run a tile; equal masks are not shared."""
    patterns, n, n_k = masks.shape
    bm, bn = block
    down, across = -(-n // bm), -(-n_k // bn)
    whole = np.zeros((patterns, down * bm, across * bn), dtype=bool)
    whole[:, :n, :n_k] = masks
    tiles = whole.reshape(patterns, down, bm, across, bn).transpose(0, 1, 3, 2, 4)
    word: dict[tuple[int, int, int], int] = {}
    bits = []
    for place in np.argwhere(tiles.any(axis=(3, 4))).tolist():
        tile = tiles[tuple(place)]
        real = tile[: n - place[1] * bm]
        if real.all() and (place[2] + 1) * bn <= n_k:
            word[tuple(place)] = 0
        else:
            bits.append(np.pad(tile, ((0, 0), (0, -bn % 32))))
            word[tuple(place)] = len(bits)
    packed = np.packbits(
        np.array(bits, dtype=bool).reshape(-1, bm, -(-bn // 32) * 32), -1, "little"
    )
    rows = [
        [(c, 1, word[u, r, c]) for c in range(across) if (u, r, c) in word]
        for u in range(patterns)
        for r in range(down)
    ]
    cols = [
        [(r, 1, word[u, r, c]) for r in range(down) if (u, r, c) in word]
        for u in range(patterns)
        for c in range(across)
    ]
    heads = np.array(head_pattern or [0], dtype=np.int32)
    edges = tuple(int(m.sum()) for m in masks)
    zones, words = np.zeros((0, 4, 6), dtype=np.int32), packed.view(np.uint32)
    return Layout(
        n, n_k, 0, 0, block, heads, _runs(rows, down), _runs(cols, across), zones, words, edges
    )


def _runs(lines: list[list[tuple[int, int, int]]], count: int) -> Runs:
    ptr = np.cumsum([0, *map(len, lines)]).astype(np.int32)
    run = np.array([r for line in lines for r in line], dtype=np.int32).reshape(-1, 3)
    return Runs(count, ptr, run)
