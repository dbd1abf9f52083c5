"""The keys that one row of an ordered term may read, so that a decode step copies no others.

A row reads tiles of its tile row only.  Their slots are found from the runs on the device; how many
there may be is known beforehand, so nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from patterncc.kernels.spec import Spec


def slots_of_row(
    slot: Tensor, reach: int, before: Tensor, tables: Sequence[Tensor], spec: Spec
) -> Tensor:
    """Key slots of all tiles in the tile rows of query slots [B], int64 [B, m], some repeated.

    reach: tiles of the longest tile row.  before: tiles before each run, int64 [runs + 1].
    tables: a backend's, of which `ptr` [1] and `run` [2] of the rows are read.
    """
    ptr, run = tables[1], tables[2]
    device, width = slot.device, spec.block[1]
    pattern = torch.arange(spec.patterns, device=device) * spec.q_lines
    line = slot.clamp(0, spec.n - 1)[:, None].long() // spec.block[0] + pattern
    first, last = before[ptr[line].long()], before[ptr[line + 1].long()]
    tile = first[..., None] + torch.arange(reach, device=device)
    of = (torch.searchsorted(before, tile, right=True) - 1).clamp(max=len(before) - 2)
    column = torch.where(tile < last[..., None], run[of, 0] + tile - before[of], 0)
    slots = column[..., None] * width + torch.arange(width, device=device)
    return slots.flatten(1).clamp(max=spec.n_k - 1)


def fill(buffer: Tensor, x: Tensor, slots: Tensor, order: Tensor) -> None:
    """Write the keys of slots [B, m] into a buffer by slots, from x [B, Hkv, S, D] by tokens.

    A token past the S that there are gives the last one.
    """
    sequence = torch.arange(len(x), device=x.device)[:, None]
    buffer[sequence, :, slots] = x[sequence, :, order[slots].long().clamp(max=x.shape[2] - 1)]
