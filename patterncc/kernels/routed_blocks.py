"""Layouts of chosen key blocks, built on the CPU: tiles in token order, static edges among them.

A stretch of tile rows at a time: which blocks each row of queries chose becomes which tiles are
touched, which are full, and the bits of the rest, united with the static layout's own tile there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import PatternValueError, SizeError
from patterncc.layout import masks
from patterncc.layout.build import Grid, edges_of
from patterncc.layout.layout import Layout, Runs
from patterncc.layout.limits import MAX_BITS, MAX_LENGTH
from patterncc.layout.runs import lay, merged, ordering

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Bits = NDArray[np.uint32]

AT_ONCE = 2**24  # entries of a stretch's table of rows and blocks
NONE = -1  # in place of a mask word: a tile that nobody reads


@dataclass(frozen=True, eq=False)
class Choice:
    """Key blocks that groups of queries chose, int64 [B * H, groups, count], -1 for none.

    which: the static layout's pattern for each of B * H heads.
    """

    chosen: I64
    n: int
    block: int
    grain: int
    causal: bool
    tile: tuple[int, int]
    static: Layout | None
    which: NDArray[np.int32]

    @property
    def grid(self) -> Grid:
        """Its tiles, a pattern for each head of each sequence."""
        return Grid(self.n, self.n, self.tile, len(self.which))

    @property
    def units(self) -> tuple[int, int]:
        """Rows of a tile that choose alike, and columns of a tile that are one block's."""
        return math.gcd(self.grain, self.tile[0]), math.gcd(self.block, self.tile[1])


@dataclass(frozen=True, eq=False)
class _Tiles:
    """Tiles of some lines: line over all patterns, column, mask word; bits that they draw."""

    line: I64
    column: I64
    word: I64
    bits: Bits


def sides_for(block: int, grain: int) -> tuple[int, int]:
    """Tiles for blocks of one size: whole blocks where they are large, several where small.

    >>> sides_for(64, 64), sides_for(256, 1), sides_for(16, 128)
    ((64, 64), (64, 128), (128, 64))
    """
    height, width = (128 if x % 128 == 0 else 64 for x in (grain, block))
    return height, width


def layout_of_blocks(c: Choice, sequences: int) -> Layout:
    """The layout, a pattern for each head of each sequence.

    Raises SizeError where the choice makes too many bits.
    """
    grid, static = c.grid, c.static
    zones = np.zeros((0, 4, 6), dtype=np.int32) if static is None else static.zones
    own = [np.zeros((0, c.tile[0], -(-c.tile[1] // 32)), dtype=np.uint32)]
    if static is not None:
        own.append(static.bits)
    first = 1 + len(zones) + sum(map(len, own))
    parts = []
    for lines in _stretches(c):
        some = _tiles(c, lines, first)
        first += len(some.bits)
        own.append(some.bits)
        parts.append(some)
        if sum(x.nbytes for x in own) > MAX_BITS:
            raise SizeError(
                f"routed_blocks: the choice of {c.chosen.shape[2]} blocks for every {c.grain} "
                f"queries leaves tiles partly read that take over {MAX_BITS} bytes as bits; use a "
                "grain of whole tiles (64 queries or more), or fewer sequences at a time"
            )
    columns = ("line", "column", "word")
    line, column, word = (np.concatenate([getattr(p, x) for p in parts]) for x in columns)
    pattern, row = np.divmod(line, grid.lines)
    rows = _runs(line, column, word, grid)
    turned = _runs(pattern * grid.columns + column, row, word, grid.T)
    bits = np.concatenate(own)
    return Layout(
        n=c.n,
        n_k=c.n,
        q_offset=0,
        k_offset=0,
        block=c.tile,
        head_pattern=np.arange(len(c.chosen), dtype=np.int32),
        rows=rows,
        cols=turned,
        zones=zones,
        bits=bits,
        edges=edges_of(rows, zones, bits, grid),
        sequences=sequences,
        varies=True,
    )


def _stretches(c: Choice) -> Iterator[I64]:
    """Lines, over all patterns, a table of rows and blocks at a time."""
    entries = c.tile[0] // c.units[0] * c.grid.columns * (c.tile[1] // c.units[1])
    step = max(1, AT_ONCE // max(1, entries))
    total = len(c.chosen) * c.grid.lines
    for first in range(0, total, step):
        yield np.arange(first, min(first + step, total))


def _tiles(c: Choice, lines: I64, first: int) -> _Tiles:
    """The tiles of some lines; first: the mask word of the first tile that they draw."""
    pattern, row = np.divmod(lines, c.grid.lines)
    picked = _picked(c, pattern, row)
    top = row * c.tile[0]
    left = np.arange(c.grid.columns) * c.tile[1]
    touched = picked.any(axis=(1, 3))
    full = picked.all(axis=(1, 3)) & (left + c.tile[1] <= c.n)
    if c.causal:
        touched &= left <= np.minimum(top + c.tile[0], c.n)[:, None] - 1
        full &= left + c.tile[1] - 1 <= top[:, None]
    word = static_words(c, pattern, row)
    cut = touched & ~full & (word != 0)
    word[touched & full] = 0
    at, column = np.nonzero(cut)
    bits = _drawn(c, picked[at, :, column], top[at], left[column])
    beside = word[at, column]
    held = beside > 0
    if c.static is not None and held.any():
        bits[held] |= _static_bits(c.static, beside[held])
    some = bits.any(axis=(1, 2))
    at, column, bits = at[some], column[some], bits[some]
    word[at, column] = np.arange(first, first + len(bits))
    at, column = np.nonzero(word != NONE)
    return _Tiles(lines[at], column, word[at, column], bits)


def _picked(c: Choice, pattern: I64, row: I64) -> NDArray[np.bool_]:
    """Bool [lines, row units of a tile, columns, column units of a tile]: it chose this block."""
    height, width = c.units
    rows = c.tile[0] // height
    unit = row[:, None] * rows + np.arange(rows)
    group = np.minimum(unit * height // c.grain, c.chosen.shape[1] - 1)
    chosen = c.chosen[pattern[:, None], group]
    count = -(-c.n // c.block)
    table = np.zeros((len(row), rows, count + 1), dtype=bool)  # the last entry takes what is none
    np.put_along_axis(table, np.where(chosen < 0, count, chosen), True, axis=2)
    columns = c.grid.columns * (c.tile[1] // width)
    if width == c.block and columns == count:
        by_unit = table[..., :-1]
    else:
        table[..., -1] = False
        by_unit = table[..., np.minimum(np.arange(columns) * width // c.block, count)]
    return by_unit.reshape(len(row), rows, c.grid.columns, c.tile[1] // width)


def _drawn(c: Choice, picked: NDArray[np.bool_], top: I64, left: I64) -> Bits:
    """The bits of tiles, from which units of their rows and columns are chosen."""
    height, width = c.units
    rows = top[:, None] + np.arange(c.tile[0])
    end = np.where(rows < c.n, np.minimum(rows + 1, c.n) if c.causal else c.n, 0)
    below = _below(c.tile[1])
    words = np.zeros((*rows.shape, below.shape[1]), dtype=np.uint32)
    for unit in range(picked.shape[2]):
        mask = below[(unit + 1) * width] & ~below[unit * width]
        chosen = np.repeat(picked[:, :, unit], height, axis=1)
        words |= np.where(chosen[..., None], mask, np.uint32(0))
    words &= below[np.clip(end - left[:, None], 0, c.tile[1])]
    return words


def _below(width: int) -> Bits:
    """[b]: bits 0 .. b - 1 of a row, uint32 [width + 1, words]."""
    held = np.arange(width + 1)[:, None] - 32 * np.arange(-(-width // 32))
    ones: Bits = masks.ONES[np.clip(held, 0, 32)]
    return ones


def static_words(c: Choice, pattern: I64, row: I64) -> I64:
    """The static layout's mask word of every tile of some lines, NONE where it has no tile."""
    word = np.full((len(row), c.grid.columns), NONE, dtype=np.int64)
    if c.static is None:
        return word
    runs = c.static.rows
    line = c.which[pattern] * np.int64(c.grid.lines) + row
    count = runs.ptr[line + 1].astype(np.int64) - runs.ptr[line]
    before = np.cumsum(count) - count
    at = np.repeat(np.arange(len(row)), count)
    run = runs.run[np.arange(count.sum()) + np.repeat(runs.ptr[line] - before, count)]
    tiles = run[:, 1].astype(np.int64)
    column = np.arange(tiles.sum()) + np.repeat(run[:, 0] - (np.cumsum(tiles) - tiles), tiles)
    word[np.repeat(at, tiles), column] = np.repeat(run[:, 2], tiles)
    return word


def _static_bits(static: Layout, word: I64) -> Bits:
    """Masks of the static layout as bits."""
    zones = len(static.zones)
    distinct, place = np.unique(word, return_inverse=True)
    few = distinct[distinct <= zones]
    drawn = [
        masks.raster(static.zones[few - 1], static.block),
        static.bits[distinct[len(few) :] - 1 - zones],
    ]
    made: Bits = np.concatenate(drawn)[place]
    return made


def _runs(line: I64, position: I64, word: I64, grid: Grid) -> Runs:
    """Tiles, one by one, as runs."""
    key = line * (grid.columns + 1) + position
    order = ordering(key)
    if order is not None:
        key, word = key[order], word[order]
    full = key[word == 0]
    partial = word != 0
    lines = grid.patterns * grid.lines
    first, last = merged(full, full + 1)
    ptr, run = lay(first, last, key[partial], word[partial].astype(np.int32), lines, grid.columns)
    return Runs(grid.lines, ptr, run)


def check_chosen(chosen: object, n: int, block: int, grain: int) -> Tensor:
    """Refuse what names no blocks of n tokens; on the CPU by value too.

    Raises PatternValueError.
    """
    groups, blocks = -(-n // grain), -(-n // block)
    if not isinstance(chosen, Tensor) or chosen.dim() != 4 or chosen.dtype != torch.int64:
        given = (
            f"{chosen.dtype} of shape {tuple(chosen.shape)}"
            if isinstance(chosen, Tensor)
            else type(chosen).__name__
        )
        raise PatternValueError(
            f"routed_blocks: chosen is {given}; give an int64 tensor (batch, heads, groups, count)"
            " of key blocks, -1 for none"
        )
    if not all(chosen.shape[:2]) or chosen.shape[2] != groups:
        raise PatternValueError(
            f"routed_blocks: chosen has shape {tuple(chosen.shape)}; {n} queries in groups of "
            f"{grain} are {groups} groups, of at least one head of one sequence"
        )
    if chosen.device.type == "cpu" and chosen.numel():
        low, high = int(chosen.min()), int(chosen.max())
        if low < -1 or high >= blocks:
            raise PatternValueError(
                f"routed_blocks: chosen names blocks {low} to {high}; {n} keys in blocks of "
                f"{block} are blocks 0 to {blocks - 1}, and -1 is none"
            )
    if chosen.shape[0] * chosen.shape[1] * n > MAX_LENGTH:
        raise SizeError(
            f"routed_blocks: {chosen.shape[0]} x {chosen.shape[1]} heads of {n} tokens pass "
            f"{MAX_LENGTH} rows: split the batch"
        )
    return chosen
