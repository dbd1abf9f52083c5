"""Layout: which tiles of a mask are touched, as runs, and the masks of those that are only partly full.

A tile is `block[0]` queries x `block[1]` keys; tile row r starts at query ``r * block[0]`` counted from
query 0 of the layout, tile column c at key ``c * block[1]`` counted from its key 0.  Touched tiles
stand in *runs*: consecutive tiles of a row with one mask word each.

    mask word 0            full: every pair of the tile is an edge (and all its keys exist)
    1 .. len(zones)        `zones[word - 1]`: the union of up to 4 tile-local zones
    above                  `bits[word - 1 - len(zones)]`: one bit a pair, row-major

A tile that reaches past the last key is never "full": its mask leaves the missing keys out.  Missing
queries (rows past n) may be set or not; nobody reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Runs:
    """One direction of a layout, CSR: the runs of line u * lines + r are ``run[ptr[l] : ptr[l + 1]]``.

    `ptr` is int32 [patterns * lines + 1], `run` int32 [runs, 3]: first tile, tile count, mask word.
    Tiles ascend within a line and runs do not overlap.
    """

    lines: int
    ptr: NDArray[np.int32]
    run: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Layout:
    """A compiled mask for n queries and n_k keys; heads with equal patterns share their runs.

    rows: runs over key tiles for each query tile row (the forward pass and dQ).
    cols: runs over query tiles for each key tile column (dK and dV), same tiles and same mask words.
    head_pattern: int32 [heads], the pattern number of each head; length 1 serves any number of heads.
    zones: int32 [count, 4, 6], tile-local i0 i1 j0 j1 d0 d1 (d = j - i, both tile-local), half-open;
    unused slots are all zero, which no pair satisfies.
    bits: uint32 [count, block[0], ceil(block[1] / 32)], bit b of word w is key column 32 * w + b.
    edges: the exact count of edges of each pattern.
    """

    n: int
    n_k: int
    q_offset: int
    k_offset: int
    block: tuple[int, int]
    head_pattern: NDArray[np.int32]
    rows: Runs
    cols: Runs
    zones: NDArray[np.int32]
    bits: NDArray[np.uint32]
    edges: tuple[int, ...]
    pattern: str = ""
    device: str | None = None
