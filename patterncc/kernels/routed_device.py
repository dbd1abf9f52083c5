"""Clusters' tiles in the form that generated kernels read, made where the members live.

Which tiles there are follows from the number and width of the clusters: runs and work lists are
made once for each size, by the host, and stay.  A step draws the bits of all tiles from both sides
and says which tiles are full; nothing waits for the device, and no value is read on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patterncc.kernels.routed_tiles import Grid, assembled, drawn, grid_of, in_fragments, told_apart
from patterncc.kernels.spec import Spec
from patterncc.kernels.tables import kernel_tables

if TYPE_CHECKING:
    from patterncc.kernels.routed_slots import Slots


@dataclass(frozen=True, eq=False)
class SlotTables:
    """What the kernels read of one step's clusters: `tables.kernel_tables`, on the device."""

    spec: Spec
    tables: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of what a step makes: runs and bits."""
        made = (self.tables[2], self.tables[4], *self.tables[6:8])
        return sum(x.numel() * x.element_size() for x in made)


@dataclass(frozen=True, eq=False)
class _Fixed:
    """What the sizes of clusters alone say.

    grid: on the device.  tables: all of them, each tile with a mask word of its own.
    turned: the place of each tile of the columns among those of the rows.
    rows, columns: bits 0 .. b - 1 of a row of a tile, and of a column, as kernels hold them.
    """

    grid: Grid
    spec: Spec
    tables: list[Tensor]
    turned: Tensor
    rows: Tensor
    columns: Tensor


def slot_tables(
    by_query: Slots,
    by_key: Slots,
    clusters: int,
    width: int,
    block: tuple[int, int],
    causal: bool,
) -> SlotTables:
    """The tables of `clusters` clusters side by side; slots say what each reads, and who reads it.

    Every shape follows from the sizes.
    """
    fixed = _fixed(clusters, width, block, causal, by_query.start.device)
    grid = fixed.grid
    count = len(grid.line)
    full, _ = told_apart(by_query, grid)
    word = torch.arange(1, count + 1, dtype=torch.int32, device=full.device)
    word = torch.where(full, 0, word)
    row_run, col_run = fixed.tables[2].clone(), fixed.tables[4].clone()
    row_run[:count, 2] = word
    col_run[:count, 2] = word[fixed.turned]
    bits = (
        drawn(by_query, grid.line, grid.column, block, fixed.rows),
        drawn(by_key, grid.column, grid.line, block[::-1], fixed.columns),
    )
    tables = list(fixed.tables)
    tables[2], tables[4] = row_run, col_run
    tables[6:8] = bits
    return SlotTables(fixed.spec, tuple(tables))


@lru_cache(maxsize=32)
def _fixed(
    clusters: int, width: int, block: tuple[int, int], causal: bool, device: torch.device
) -> _Fixed:
    grid = grid_of(clusters, width, block, causal)
    none = np.zeros(0, dtype=np.int64)
    bits = np.zeros((len(grid.line), block[0], -(-block[1] // 32)), dtype=np.uint32)
    layout = assembled(grid, (none, none), (grid.line.numpy(), grid.column.numpy()), bits)
    spec = replace(Spec.of(layout, "triton"), zones=0)
    tables = kernel_tables(layout, spec, device)
    turned = torch.from_numpy(layout.cols.run[:, 2].astype(np.int64) - 1).to(device)
    grid = replace(grid, line=grid.line.to(device), column=grid.column.to(device))
    below = (in_fragments(side, device) for side in block[::-1])
    return _Fixed(grid, spec, tables, turned, *below)
