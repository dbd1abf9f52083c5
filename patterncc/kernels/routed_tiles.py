"""Tiles of slots that read intervals: which there are, which are full, and the bits of the others.

Where clusters lie follows from their number and width alone, and so do the tiles that they touch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patterncc.kernels.fragments import fragment_order
from patterncc.layout.layout import Layout, Runs
from patterncc.layout.runs import lay, merged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from patterncc.kernels.routed_slots import Slots

    I64 = NDArray[np.int64]

AT_ONCE = 2**20  # words of tiles that one pass draws


@dataclass(frozen=True, eq=False)
class Grid:
    """Tiles of `total` slots and an empty one: the line and column of each, line by line."""

    total: int
    block: tuple[int, int]
    line: Tensor
    column: Tensor

    @property
    def slots(self) -> int:
        """All slots."""
        return self.total + 1

    @property
    def lines(self) -> int:
        """Rows of tiles."""
        return -(-self.slots // self.block[0])

    @property
    def columns(self) -> int:
        """Columns of tiles."""
        return -(-self.slots // self.block[1])


@lru_cache(maxsize=32)
def grid_of(clusters: int, width: int, block: tuple[int, int], causal: bool) -> Grid:
    """The tiles that clusters of one width touch, side by side from slot 0 on.

    >>> made = grid_of(2, 24, (16, 16), causal=True)
    >>> list(zip(made.line.tolist(), made.column.tolist()))
    [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)]
    """
    total = clusters * width
    height, side = block
    top = np.arange(0, total, height)
    last = np.minimum(top + height, total) - 1
    first = top // width * width // side
    past = (last if causal else (last // width + 1) * width - 1) // side + 1
    count = past - first
    before = np.cumsum(count) - count
    line = np.repeat(np.arange(len(top)), count)
    column = np.arange(len(line)) + np.repeat(first - before, count)
    return Grid(total, block, torch.from_numpy(line), torch.from_numpy(column))


def row_major(width: int) -> Tensor:
    """[b]: bits 0 .. b - 1 of a row of `width` columns, int32 [width + 1, words]."""
    words = -(-width // 32)
    held = (torch.arange(width + 1)[:, None] - 32 * torch.arange(words)).clamp(0, 32)
    ones = (torch.ones_like(held) << held) - 1
    return torch.where(ones >= 2**31, ones - 2**32, ones).to(torch.int32)


@lru_cache(maxsize=16)
def in_fragments(width: int, device: torch.device) -> Tensor:
    """`row_major` in the order in which a thread holds a product, on a device."""
    words = row_major(width).numpy().view(np.uint32)
    return torch.from_numpy(fragment_order(words[None])[0]).to(device)


def drawn(
    slots: Slots, line: Tensor, column: Tensor, block: tuple[int, int], below: Tensor
) -> Tensor:
    """The bits of some tiles, int32 [tiles, block[0], words].

    below: [block[1] + 1, words], bits 0 .. b - 1 of a row in the order that is wanted.
    """
    height, width = block
    missing = -len(slots.start) % height
    left = (column * width)[:, None]

    def between(low: Tensor, high: Tensor) -> Tensor:
        first, past = (
            torch.nn.functional.pad(x, (0, missing))  # rows past the last read nothing
            .view(-1, height)
            .index_select(0, line)
            .sub_(left)
            .clamp_(0, width)
            .flatten()
            for x in (low, high)
        )
        return below.index_select(0, past) & ~below.index_select(0, first)

    words = between(slots.start, slots.end)
    for low, high in slots.cuts:
        words &= ~between(low, high)
    return words.view(-1, height, below.shape[1])


def layout_of(slots: Slots, grid: Grid) -> Layout:
    """The tiles on the CPU: runs of full tiles, bits where a tile is cut, nothing where empty."""
    whole, some = told_apart(slots, grid)
    below = row_major(grid.block[1])
    bits = np.zeros((0, grid.block[0], below.shape[1]), dtype=np.int32)
    line, column = grid.line[some], grid.column[some]
    step = max(1, AT_ONCE // (grid.block[0] * below.shape[1]))
    parts = [
        drawn(slots, line[k : k + step], column[k : k + step], grid.block, below).numpy()
        for k in range(0, len(line), step)
    ]
    bits = np.concatenate([bits, *parts])
    held = np.flatnonzero(bits.any(axis=(1, 2)))
    bits = bits if len(held) == len(bits) else bits[held]
    partial = line.numpy()[held], column.numpy()[held]
    full = grid.line[whole].numpy(), grid.column[whole].numpy()
    return assembled(grid, full, partial, bits.view(np.uint32))


def told_apart(slots: Slots, grid: Grid) -> tuple[Tensor, Tensor]:
    """Which tiles are surely full, and which others may hold something."""
    height, width = grid.block
    missing = grid.lines * height - len(slots.start)

    def of_lines(x: Tensor, *, largest: bool, fill: int) -> Tensor:
        rows = torch.nn.functional.pad(x, (0, missing), value=fill).view(-1, height)
        return (rows.amax(1) if largest else rows.amin(1))[grid.line]

    left = grid.column * width
    right = left + width
    far = grid.slots
    start, end = slots.start, slots.end
    full = of_lines(start, largest=True, fill=far) <= left  # no row may be missing
    full &= of_lines(end, largest=False, fill=far) >= right
    some = of_lines(torch.where(start < end, start, far), largest=False, fill=far) < right
    some &= of_lines(end, largest=True, fill=0) > left
    for low, high in slots.cuts:
        real = low < high
        near = of_lines(torch.where(real, low, far), largest=False, fill=far) < right
        near &= of_lines(torch.where(real, high, 0), largest=True, fill=0) > left
        full &= ~near
    return full, some & ~full


def assembled(
    grid: Grid,
    full: Sequence[I64],
    partial: Sequence[I64],
    bits: NDArray[np.uint32],
) -> Layout:
    """A layout of one pattern from the lines and columns of full tiles, and of those with bits."""
    word = np.arange(1, len(bits) + 1, dtype=np.int32)
    runs = []
    sides = grid.lines, grid.columns
    for own, across in ((0, 1), (1, 0)):
        stride = sides[across] + 1
        keys = (x[own] * stride + x[across] for x in (full, partial))
        whole, key = keys
        order = np.argsort(key, kind="stable") if own else slice(None)
        first, last = merged(whole, whole + 1)
        runs.append(
            Runs(sides[own], *lay(first, last, key[order], word[order], sides[own], sides[across]))
        )
    return Layout(
        n=grid.slots,
        n_k=grid.slots,
        q_offset=0,
        k_offset=0,
        block=grid.block,
        head_pattern=np.zeros(1, dtype=np.int32),
        rows=runs[0],
        cols=runs[1],
        zones=np.zeros((0, 4, 6), dtype=np.int32),
        bits=bits,
        edges=(_edges(grid, full, bits),),
        varies=True,
    )


def _edges(grid: Grid, full: Sequence[I64], bits: NDArray[np.uint32]) -> int:
    """How many pairs the tiles hold; rows past the last slot hold none."""
    return len(full[0]) * grid.block[0] * grid.block[1] + int(
        np.bitwise_count(bits).sum(dtype=np.int64)
    )
