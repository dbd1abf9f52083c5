"""Exact counts of a pass over tiles: products, bytes and masked tiles, of any schedule.

What is counted is the same for ours and for FlexAttention, so that only the tiles and the number of
products differ:

    forward       2 products a tile: Q K^T and P V
    dQ            3: Q K^T, dO V^T, dS K
    dK and dV     4: Q K^T, dO V^T, P^T dO, dS^T Q
    both at once  5, with dQ added to memory

A product's size is in multiply-adds, of whole tiles, as tensor cores run them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout, Runs

    I64 = NDArray[np.int64]

FP32 = 4  # bytes
Way = str
"""forward, dq, dkdv or single."""

PRODUCTS = {"forward": (1, 1), "dq": (2, 1), "dkdv": (2, 2), "single": (3, 2)}
"""Products over the head dim of Q and K, and over that of V, of each kind of kernel."""


@dataclass(frozen=True)
class Shape:
    """Tensors of one call: batch x heads and batch x key heads at once, head dim, bytes a value."""

    heads: int = 16
    kv_heads: int = 16
    head_dim: int = 128
    width: int = 2

    @property
    def group(self) -> int:
        """Query heads that share keys and values."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, eq=False)
class Lines:
    """Touched tiles of each line, [patterns, lines], and how many heads have each pattern."""

    full: I64
    masked: I64
    weight: I64

    @property
    def tiles(self) -> I64:
        """Tiles of each line, [patterns, lines]."""
        return self.full + self.masked

    def total(self, values: I64) -> int:
        """A figure of each line added up over all heads."""
        return int((values.sum(axis=1) * self.weight).sum())


@dataclass(frozen=True)
class Pass:
    """One kernel over all heads.

    multiply_adds: of its products.  tiles, full_tiles, masked_tiles: visited.  pairs: of a query
    and a key in them; masked_pairs: of those in masked tiles.  empty_lines: lines that read
    nothing.  line_bytes: tensors read or written once a line.  tile_bytes: tensors read (or added
    to) at each tile.  part_bytes: partial results of split lines, written and read again.
    """

    multiply_adds: int
    tiles: int
    full_tiles: int
    masked_tiles: int
    pairs: int
    masked_pairs: int
    empty_lines: int
    line_bytes: int
    tile_bytes: int
    part_bytes: int = 0

    def __add__(self, other: Pass) -> Pass:
        mine, theirs = asdict(self), asdict(other)
        return Pass(**{name: mine[name] + theirs[name] for name in mine})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, and all bytes together."""
        return {**asdict(self), "bytes": self.line_bytes + self.tile_bytes + self.part_bytes}


def lines_of(runs: Runs, weight: I64) -> Lines:
    """Full and masked tiles of every line of a layout's direction."""
    tiles, is_full = runs.run[:, 1].astype(np.int64), runs.run[:, 2] == 0
    line = np.repeat(np.arange(len(runs.ptr) - 1), np.diff(runs.ptr))
    shape = (len(weight), runs.lines)
    count = len(runs.ptr) - 1
    held = [np.zeros(count, dtype=np.int64) for _ in range(2)]
    for where, chosen in zip(held, (is_full, ~is_full)):
        np.add.at(where, line[chosen], tiles[chosen])
    return Lines(held[0].reshape(shape), held[1].reshape(shape), weight)


def weights(layout: Layout, heads: int) -> I64:
    """How many of `heads` have each pattern; a layout that lists heads is repeated over a batch."""
    listed = np.bincount(layout.head_pattern, minlength=layout.patterns).astype(np.int64)
    return listed * batch_of(layout, heads)


def batch_of(layout: Layout, heads: int) -> int:
    """Sequences that make about `heads` batch x heads with the heads that a layout lists."""
    return max(1, round(heads / len(layout.head_pattern)))


def measure(
    kind: Way,
    lines: Lines,
    block: tuple[int, int],
    shape: Shape,
    *,
    frame: tuple[int, int],
    repeats: int = 1,
    parts: int = 0,
) -> Pass:
    """The counts of one kernel.

    lines: of tile rows (forward, dq) or tile columns (dkdv, single).  block: queries x keys of a
    tile.  frame: queries and keys that there are.  repeats: programs that share a line, each of
    which loads its tiles.  parts: partial results of all heads.
    """
    rows, keys = block
    d, width = shape.head_dim, shape.width
    over_d, over_v = PRODUCTS[kind]
    tiles, masked = lines.total(lines.tiles), lines.total(lines.masked)
    heads = int(lines.weight.sum())
    kv_heads = heads // shape.group
    query_rows, key_rows = heads * frame[0], kv_heads * frame[1]
    sums = FP32 * 2  # LSE and delta of a row
    match kind:
        case "forward":  # Q in, O and LSE out; K and V stream
            line_bytes = query_rows * (2 * d * width + FP32)
            tile_bytes, part = keys * 2 * d * width, rows * (d + 1) * FP32
        case "dq":  # Q, dO and their sums in, dQ out; K and V stream
            line_bytes = query_rows * (3 * d * width + sums)
            tile_bytes, part = keys * 2 * d * width, rows * d * FP32
        case "dkdv":  # K and V in, dK and dV out; Q, dO and their sums stream
            line_bytes = key_rows * 4 * d * width
            tile_bytes, part = rows * (2 * d * width + sums), keys * 2 * d * FP32
        case _:  # the same, and dQ is added to in fp32; at last it is read and rounded
            line_bytes = key_rows * 4 * d * width + query_rows * d * (2 * FP32 + width)
            tile_bytes, part = rows * (2 * d * width + sums + d * FP32), keys * 2 * d * FP32
    return Pass(
        multiply_adds=tiles * rows * keys * d * (over_d + over_v),
        tiles=tiles,
        full_tiles=tiles - masked,
        masked_tiles=masked,
        pairs=tiles * rows * keys,
        masked_pairs=masked * rows * keys,
        empty_lines=lines.total((lines.tiles == 0).astype(np.int64)),
        line_bytes=line_bytes,
        tile_bytes=tile_bytes * tiles * repeats,
        part_bytes=2 * parts * part,
    )
