"""A layout's tables in the form that generated kernels read, all int32, on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import SizeError
from patterncc.kernels.fragments import fragment_order, on_their_side
from patterncc.kernels.spec import Spec
from patterncc.kernels.work import LEVELS, WorkList, work_list

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout, Runs


def kernel_tables(layout: Layout, spec: Spec, device: torch.device) -> list[Tensor]:
    """The op's tensors in the form that kernels read, all int32 on `device`.

    head_pattern [heads or 1]; ptr [lines + 1] and run [runs + 2, 4] of rows, then of columns: first
    tile, tile count, mask word, tiles before the run; two sentinels end a table.
    zone [count, K, 8]; bits of rows, then of columns, as `fragment_order` gives them.
    Then items and parts of each level of `work.LEVELS`, of rows and of columns.
    """
    slots = max(1, spec.zones)
    zone = np.zeros((len(layout.zones), slots, 8), dtype=np.int32)
    zone[:, :, :6] = layout.zones[:, :slots]
    rows, cols = layout.rows, layout.cols
    tables = [layout.head_pattern, rows.ptr, _counted(rows), cols.ptr, _counted(cols), zone]
    by_key = on_their_side(layout.bits, layout.block[1])
    tables += [fragment_order(layout.bits), fragment_order(by_key)]
    made = [torch.from_numpy(np.array(t)).to(device) for t in tables]
    listed = layout.head_pattern if spec.patterns > 1 else layout.head_pattern[:1]
    made += _work(rows, listed, spec.q_lines, layout.block[1], device)
    return made + _work(cols, listed, spec.k_lines, layout.block[0], device)


def _counted(runs: Runs) -> NDArray[np.int32]:
    """Runs with a fourth column, the tiles before each, and the two sentinels."""
    before = np.zeros(len(runs.run) + 1, dtype=np.int64)
    np.cumsum(runs.run[:, 1], out=before[1:])
    if before[-1] >= 2**31 or len(runs.run) >= 2**29:  # 32-bit offsets into the table
        raise SizeError(
            f"a layout of {before[-1]} tiles in {len(runs.run)} runs passes the kernels' "
            f"{2**31 - 1} and {2**29 - 1}; use larger blocks"
        )
    table = np.zeros((len(runs.run) + 2, 4), dtype=np.int32)
    table[:-2, :3] = runs.run
    table[:-1, 3] = before
    return table


PROCESSORS = 132
"""Of a device that cannot be asked."""


@dataclass(frozen=True, eq=False)
class Work:
    """One work list on a device: `work.WorkList`."""

    items: Tensor
    parts: Tensor


@dataclass(frozen=True, eq=False)
class Tables:
    """What `kernel_tables` lists, by name."""

    head_pattern: Tensor
    row_ptr: Tensor
    row_run: Tensor
    col_ptr: Tensor
    col_run: Tensor
    zone: Tensor
    bits: Tensor
    bits_by_key: Tensor
    row_work: tuple[Work, ...]
    col_work: tuple[Work, ...]

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> Tables:
        """The op's list of tensors by name."""
        first = len(tensors) - 4 * len(LEVELS)
        work = [Work(*tensors[at : at + 2]) for at in range(first, len(tensors), 2)]
        each = len(LEVELS)
        head_pattern, row_ptr, row_run, col_ptr, col_run, zone, bits, bits_by_key = tensors[:first]
        runs = row_ptr, row_run, col_ptr, col_run
        masks = zone, bits, bits_by_key
        return Tables(head_pattern, *runs, *masks, tuple(work[:each]), tuple(work[each:]))


def level(units: int) -> int:
    """Which work list fits a number of heads that run at once.

    >>> level(1), level(16), level(1000)
    (0, 2, 3)
    """
    return max(k for k, least in enumerate(LEVELS) if least <= max(1, units))


def _work(
    runs: Runs, listed: NDArray[np.int32], lines: int, width: int, device: torch.device
) -> list[Tensor]:
    """Items and parts of every level; equal lists are one tensor."""
    made: list[Tensor] = []
    last: WorkList | None = None
    for units in LEVELS:
        work = work_list(runs, listed, lines, units, processors_of(device), width)
        if last is not None and np.array_equal(work.items, last.items):
            made += made[-2:]
        else:
            made += [torch.from_numpy(x).to(device) for x in (work.items, work.parts)]
        last = work
    return made


CACHE = 50 * 2**20
"""Bytes of the last cache of a device that cannot be asked."""


def cache_of(device: torch.device) -> int:
    """Bytes of a GPU's last cache; CACHE elsewhere."""
    if device.type != "cuda":
        return CACHE
    found: int = torch.cuda.get_device_properties(device).L2_cache_size
    return found or CACHE


def processors_of(device: torch.device) -> int:
    """Multiprocessors of a GPU; PROCESSORS elsewhere."""
    if device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
