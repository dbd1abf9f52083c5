"""FlexAttention's schedule of a mask, counted: its blocks of 128 x 128, in token order.

What its templates do: a program for each row of blocks walks the partial ones, evaluating the mask
function, then the full ones; the backward pass is one launch whose programs own a column (dK and
dV, the query heads of a key head one after another) or a row (dQ), 7 products in all.  Rows are
never split, and programs start in the order of rows, then batches, then heads.  Its index tables
are as wide as the sequence, full and partial, for rows and for columns.

Source: torch/_inductor/kernel/flex/templates and torch.nn.attention.flex_attention, torch 2.11 to
2.13; `tests/test_bench_plan.py` holds the blocks and the bytes to its own create_block_mask.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.bench.plan_counts import Lines, Shape, lines_of, measure
from patterncc.kernels.work import START

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout

BLOCK = 128
DQ, DKDV = 3, 4  # products of each half of the backward pass
FORWARD = 2


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of each line of a mask, and the pattern of each head.

    frame: queries and keys.  heads: int64 [batch x heads], in the order of the launch: batches
    inside heads.  tables: heads for which there are index tables.
    """

    frame: tuple[int, int]
    rows: Lines
    cols: Lines
    heads: NDArray[np.int64]
    tables: int


def from_layout(layout: Layout, batch: int) -> Blocks:
    """The blocks that create_block_mask finds, from a layout of that block in token order.

    It pads the last rows with False: blocks that reach past the last query are partial there.
    """
    weight = np.bincount(layout.head_pattern, minlength=layout.patterns).astype(np.int64) * batch
    rows, cols = lines_of(layout.rows, weight), lines_of(layout.cols, weight)
    if layout.n % layout.block[0]:
        below = np.zeros_like(rows.full)
        below[:, -1] = rows.full[:, -1]
        rows = Lines(rows.full - below, rows.masked + below, weight)
        ends = layout.cols.run[:, 0] + layout.cols.run[:, 1] == layout.lines
        ends &= layout.cols.run[:, 2] == 0
        line = np.repeat(np.arange(len(layout.cols.ptr) - 1), np.diff(layout.cols.ptr))
        at = np.bincount(line[ends], minlength=cols.full.size).reshape(cols.full.shape)
        cols = Lines(cols.full - at, cols.masked + at, weight)
    heads = np.repeat(layout.head_pattern.astype(np.int64), batch)
    return Blocks((layout.n, layout.n_k), rows, cols, heads, len(layout.head_pattern))


def from_pairs(pairs: NDArray[np.int64], n: int, patterns: NDArray[np.int64], batch: int) -> Blocks:
    """The same from the number of pairs in each block, [patterns, lines, columns].

    patterns: of the listed heads.
    """
    full = pairs == BLOCK * BLOCK
    masked = (pairs > 0) & ~full
    weight = np.bincount(patterns).astype(np.int64) * batch
    rows, cols = (Lines(full.sum(axis), masked.sum(axis), weight) for axis in (2, 1))
    return Blocks((n, n), rows, cols, np.repeat(patterns, batch), len(patterns))


def counts(blocks: Blocks, shape: Shape, processors: int) -> dict[str, Any]:
    """What FlexAttention does with a mask: passes, bytes of tables, balance."""
    block, frame = (BLOCK, BLOCK), blocks.frame
    dq = measure("dq", blocks.rows, block, shape, frame=frame)
    dkdv = measure("dkdv", blocks.cols, block, shape, frame=frame)
    return {
        "forward": measure("forward", blocks.rows, block, shape, frame=frame).to_dict(),
        "backward": (dq + dkdv).to_dict(),
        "table_bytes": table_bytes(blocks),
        "forward_balance": balance(_forward(blocks), processors),
        "backward_balance": balance(_backward(blocks, shape.group), processors),
    }


def table_bytes(blocks: Blocks) -> int:
    """Counts and indices, full and partial, of rows and columns: int32, as wide as can be."""
    lines, columns = blocks.rows.full.shape[1], blocks.cols.full.shape[1]
    size: int = 4 * blocks.tables * 2 * (lines + columns + 2 * lines * columns)
    return size


def _forward(blocks: Blocks) -> Iterable[float]:
    """The tiles of each program, in the order of the launch."""
    for head in blocks.heads:
        yield from blocks.rows.tiles[head].tolist()


def _backward(blocks: Blocks, group: int) -> Iterable[float]:
    """Columns of a key head, then the rows of its query heads, in tiles of a forward pass."""
    for shared in blocks.heads.reshape(-1, group):
        yield from (DKDV / FORWARD * blocks.cols.tiles[shared].sum(axis=0)).tolist()
        yield from (DQ / FORWARD * blocks.rows.tiles[shared]).reshape(-1).tolist()


def balance(costs: Iterable[float], processors: int) -> dict[str, float]:
    """Time of a launch over the ideal, the same work spread evenly; what a program costs beside
    its tiles is counted in `over_ideal` and left out in `over_ideal_tiles`."""
    tiles = list(costs)
    programs = [t + START for t in tiles]
    even, ideal = sum(tiles) / processors, sum(programs) / processors
    time = finish(programs, processors)
    return {
        "time": time,
        "ideal": ideal,
        "over_ideal": time / ideal if ideal else 1.0,
        "over_ideal_tiles": finish(tiles, processors) / even if even else 1.0,
    }


def finish(costs: Iterable[float], processors: int) -> float:
    """When the last program ends; each starts, in order, where a processor is free first.

    >>> finish([3, 1, 1, 1], 2), finish([1, 1, 1, 3], 2)
    (3, 4)
    """
    free: list[float] = [0] * processors
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)
