"""Tiles of chosen blocks in the form that generated kernels read, made where the choice lives.

What each tile is stands in a map of all tiles, one number a tile: whether its queries chose its
keys, and the static layout's own tile there.  Runs are that map with what nobody reads left out.
Every shape follows from the sizes and the static layout: nothing is read on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import SizeError
from patterncc.kernels.dynamic_tables import whole_lines
from patterncc.kernels.fragments import fragment_order, on_their_side
from patterncc.kernels.routed_blocks import NONE, Choice, layout_of_blocks, static_words
from patterncc.kernels.routed_tiles import in_fragments
from patterncc.kernels.spec import Spec
from patterncc.kernels.tables import kernel_tables
from patterncc.kernels.unread import unread_keys
from patterncc.layout import masks
from patterncc.layout.layout import Layout
from patterncc.layout.limits import MAX_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class BlockTables:
    """What the kernels read of one step's blocks, on the device; the last tensor: unread keys.

    sizes: the choice but for the blocks, which `chosen` names.
    """

    spec: Spec
    tables: tuple[Tensor, ...]
    unread: Tensor
    chosen: Tensor
    sizes: Choice

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return sum(x.numel() * x.element_size() for x in self.tables)

    def on_host(self) -> Layout:
        """The same edges as a layout on the CPU; waits for the device."""
        chosen = self.chosen.cpu().numpy()
        return layout_of_blocks(replace(self.sizes, chosen=chosen), self.spec.sequences)


@dataclass(frozen=True, eq=False)
class _Beside:
    """A static layout on a device, tile by tile.

    word: int64 [B * H or 1, lines, columns], NONE where it has no tile.  drawn: its mask words as
    bits, by queries and by keys, as kernels hold them; none for word 0.  zone, bits: its tables,
    those of bits by queries and by keys.  unread: bool [B * H or 1, n].
    """

    word: Tensor
    drawn: tuple[Tensor, Tensor]
    zone: Tensor
    bits: tuple[Tensor, Tensor]
    zones: int
    unread: Tensor


_kept: WeakKeyDictionary[Layout, dict[tuple[object, ...], _Beside]] = WeakKeyDictionary()


def block_tables(chosen: Tensor, c: Choice, sequences: int) -> BlockTables:
    """The tables of chosen [B * H, groups, count]; of `c` all but what was chosen counts.

    Raises SizeError where tiles partly read may take too many bits.
    """
    heads, device, grid = chosen.shape[0], chosen.device, c.grid
    beside = _beside(c, sequences, heads, device)
    top = torch.arange(grid.lines, device=device) * c.tile[0]
    left = torch.arange(grid.columns, device=device) * c.tile[1]
    picked = _picked(chosen, c)
    touched, full = picked.any(4).any(2), picked.all(4).all(2)
    full &= left + c.tile[1] <= c.n
    if c.causal:
        touched &= left <= torch.clamp(top + c.tile[0], max=c.n)[:, None] - 1
        full &= left + c.tile[1] - 1 <= top[:, None]
    full &= touched
    word = torch.where(full, 0, beside.word)
    cut = touched & (word != 0)
    most = _most_cut(c, chosen.shape[2])
    place, column = _places(cut, most)
    bits, by_key = _drawn(picked, column, word, beside, c)
    first = 1 + len(beside.zone) + len(beside.bits[0])
    word = torch.where(cut, first + place, word)
    rows, columns = _compact(word), _compact(word.transpose(1, 2))
    tables = [
        torch.arange(heads, dtype=torch.int32, device=device),
        *(*rows, *columns, beside.zone),
        torch.cat([beside.bits[0], bits.flatten(0, 2)]),
        torch.cat([beside.bits[1], by_key.flatten(0, 2)]),
        *whole_lines(*rows, heads),
        *whole_lines(*columns, heads),
    ]
    read = full.any(1)[..., None].expand(-1, -1, c.tile[1]).clone()
    some = by_key.any(-1) & (column < grid.columns)[..., None]
    spot = torch.clamp(column, max=grid.columns - 1).flatten(1)[..., None].expand(-1, -1, c.tile[1])
    read = read.to(torch.int32).scatter_add_(1, spot, some.flatten(1, 2).to(torch.int32)) > 0
    unread = beside.unread & ~read.flatten(1)[:, : c.n]
    spec = _spec(c, sequences, heads, beside.zones)
    return BlockTables(spec, tuple(tables), unread.view(sequences, -1, c.n), chosen, c)


def _spec(c: Choice, sequences: int, heads: int, zones: int) -> Spec:
    """What the op is told: the mask classes that any choice may need."""
    return Spec(
        n=c.n,
        n_k=c.n,
        q_offset=0,
        k_offset=0,
        block=c.tile,
        patterns=heads,
        full=True,
        zones=zones,
        bits=True,
        layout_hash="",
        backend="triton",
        share=int(heads > sequences),
        sequences=sequences,
    )


def _beside(c: Choice, sequences: int, heads: int, device: torch.device) -> _Beside:
    """The static layout, made once for each device and number of heads; none is an empty one."""
    if c.static is None:
        return _nothing(c.n, c.tile, device)
    kept, key = _kept.setdefault(c.static, {}), (sequences, heads, device)
    if key not in kept:
        kept[key] = _made(c, c.static, sequences, device)
    return kept[key]


@lru_cache(maxsize=32)
def _nothing(n: int, tile: tuple[int, int], device: torch.device) -> _Beside:
    """No static layout: no tile, and no key that is read."""
    sides = -(-n // tile[0]), -(-n // tile[1])
    bits = np.zeros((1, tile[0], -(-tile[1] // 32)), dtype=np.uint32)
    return _Beside(
        torch.full((1, *sides), NONE, dtype=torch.int64, device=device),
        _sides(bits, tile[1], device),
        torch.zeros(0, 1, 8, dtype=torch.int32, device=device),
        _sides(bits[:0], tile[1], device),
        0,
        torch.ones(1, n, dtype=torch.bool, device=device),
    )


def _made(c: Choice, static: Layout, sequences: int, device: torch.device) -> _Beside:
    grid, heads = c.grid, len(c.which)
    spec = Spec.of(static, "triton")
    zone, by_query, by_key = kernel_tables(static, spec, device)[5:8]
    none = np.zeros((1, *static.bits.shape[1:]), dtype=np.uint32)
    bits = np.concatenate([none, masks.raster(static.zones, static.block), static.bits])
    found = unread_keys(static)
    unread = np.zeros((heads, c.n), dtype=bool)
    if found.size:
        unread |= np.broadcast_to(found, (sequences, heads // sequences, c.n)).reshape(heads, c.n)
    pattern, row = np.divmod(np.arange(heads * grid.lines), grid.lines)
    word = static_words(c, pattern, row).reshape(heads, grid.lines, grid.columns)
    return _Beside(
        torch.from_numpy(word).to(device),
        _sides(bits, c.tile[1], device),
        zone,
        (by_query, by_key),
        spec.zones,
        torch.from_numpy(unread).to(device),
    )


def _sides(bits: NDArray[np.uint32], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row-major bits as kernels hold them, by queries and by keys."""
    both = fragment_order(bits), fragment_order(on_their_side(bits, width))
    by_query, by_key = (torch.from_numpy(x).to(device) for x in both)
    return by_query, by_key


def _picked(chosen: Tensor, c: Choice) -> Tensor:
    """Bool [B * H, lines, row units, columns, column units]: these queries chose these keys."""
    (height, width), grid, device = c.units, c.grid, chosen.device
    rows, columns = c.tile[0] // height, c.tile[1] // width
    count = -(-c.n // c.block)
    unit = torch.arange(grid.lines * rows, device=device)
    group = torch.clamp(unit * height // c.grain, max=chosen.shape[1] - 1)
    of_unit = chosen.index_select(1, group)
    table = torch.zeros(*of_unit.shape[:2], count + 1, dtype=torch.bool, device=device)
    table.scatter_(2, torch.where(of_unit < 0, count, of_unit), value=True)
    real = torch.arange(count + 1, device=device) < count  # the last entry took what is none
    at = torch.clamp(
        torch.arange(grid.columns * columns, device=device) * width // c.block, max=count
    )
    by_unit = (table & real).index_select(2, at)
    return by_unit.view(len(chosen), grid.lines, rows, grid.columns, columns)


def _most_cut(c: Choice, count: int) -> int:
    """How many tiles of a line a choice may leave partly read.

    Raises SizeError where their bits would be too many.
    """
    (height, width), grid = c.units, c.grid
    if (height, width) == c.tile:  # chosen whole: the diagonal cuts some, and the last key one
        most = 1 + (c.tile[0] - 1) // c.tile[1] + 1 if c.causal else 1
    else:
        each = 1 if c.tile[1] % c.block == 0 else (c.block - 2) // c.tile[1] + 2
        most = c.tile[0] // height * count * each
    most = max(1, min(most, grid.columns))
    size = 2 * len(c.which) * grid.lines * most * c.tile[0] * c.tile[1] // 8
    if size > MAX_BITS:
        raise SizeError(
            f"routed_blocks: a choice of {count} blocks of {c.block} for every {c.grain} queries "
            f"may leave {most} tiles of a row partly read, {size} bytes of bits for {len(c.which)} "
            f"heads of {c.n} tokens, more than {MAX_BITS}; use a grain and blocks of whole tiles "
            "(multiples of 64), or fewer sequences at a time"
        )
    return most


def _places(cut: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Where the bits of each tile that is cut stand, and the column of each of these places."""
    heads, lines, columns = cut.shape
    first = torch.arange(heads * lines, device=cut.device).view(heads, lines, 1) * most
    place = first + torch.cumsum(cut, 2) - 1
    at = torch.arange(columns, device=cut.device)
    return place, torch.where(cut, at, columns).sort(2).values[..., :most]


def _drawn(
    picked: Tensor, column: Tensor, word: Tensor, beside: _Beside, c: Choice
) -> tuple[Tensor, Tensor]:
    """The bits of the tiles at [B * H, lines, places], by queries and by keys."""
    (height, width), (bm, bn), device = c.units, c.tile, column.device
    near = torch.clamp(column, max=c.grid.columns - 1)
    units = (*picked.shape[:3], near.shape[2], picked.shape[4])
    chose = picked.gather(3, near[:, :, None, :, None].expand(units)).transpose(2, 3)
    row = torch.arange(c.grid.lines, device=device)[:, None, None] * bm + torch.arange(
        bm, device=device
    )
    key = near[..., None] * bn + torch.arange(bn, device=device)
    end = torch.where(row < c.n, torch.clamp(row + 1, max=c.n) if c.causal else c.n, 0)
    past = torch.clamp(end - near[..., None] * bn, 0, bn)
    first = key - row[..., :1] if c.causal else torch.zeros_like(key)
    there = torch.clamp(torch.full_like(key, c.n) - row[..., :1], 0, bm)
    columns, rows = (in_fragments(side, device) for side in (bn, bm))
    by_query = _united(chose.repeat_interleave(height, 3), columns, width) & columns[past]
    by_key = _united(chose.transpose(3, 4).repeat_interleave(width, 3), rows, height)
    by_key &= torch.where((key < c.n)[..., None], rows[there] & ~rows[torch.clamp(first, 0, bm)], 0)
    own = torch.clamp(word.gather(2, near), min=0)
    return by_query | beside.drawn[0][own], by_key | beside.drawn[1][own]


def _united(chose: Tensor, below: Tensor, width: int) -> Tensor:
    """Words of rows [..., units] that chose some units of `width` columns."""
    words = torch.zeros(*chose.shape[:-1], below.shape[1], dtype=torch.int32, device=chose.device)
    for unit in range(chose.shape[-1]):
        mask = below[(unit + 1) * width] & ~below[unit * width]
        words |= torch.where(chose[..., unit, None], mask, 0)
    return words


def _compact(word: Tensor) -> tuple[Tensor, Tensor]:
    """ptr and run of a map [patterns, lines, tiles]: a run for each tile but those of NONE."""
    patterns, lines, tiles = word.shape
    kept = (word != NONE).flatten()
    place = torch.cumsum(kept, 0, dtype=torch.int32)
    size = len(kept)
    run = torch.zeros(size + 3, 4, dtype=torch.int32, device=word.device)
    run[:, 3] = place[-1]
    target = torch.where(kept, place - 1, size + 2).long()  # the last entry takes what is dropped
    position = torch.arange(tiles, dtype=torch.int32, device=word.device)
    position = position.expand(patterns, lines, -1).flatten()
    columns = [position, torch.ones_like(position), word.flatten().to(torch.int32), place - 1]
    run.index_copy_(0, target, torch.stack(columns, 1))
    ends = place.view(-1, tiles)[:, -1]
    return torch.nn.functional.pad(ends, (1, 0)), run[:-1]
