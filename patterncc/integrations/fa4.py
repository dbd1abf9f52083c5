"""Layouts as block-sparse tensors of FlashAttention 4, with the tables of the mask function.

Source: flash_attn/cute/block_sparsity.py (BlockSparseTensorsTorch) and tests/cute of
flash-attention; its kernels run on CUDA only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternValueError
from patterncc.integrations.lookup import Tables, edge, table_bytes, tables
from patterncc.integrations.tiles import (
    allow,
    head_patterns,
    in_token_order,
    longest,
    sides,
)
from patterncc.layout.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I32 = NDArray[np.int32]

MAX_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class FA4Blocks:
    """One direction: fields are named as those of FlashAttention 4's BlockSparseTensorsTorch.

    mask_block_cnt: int32 [B, H, M], how many partial tiles each line of tiles has.
    mask_block_idx: int32 [B, H, M, width], which, ascending, 0 behind the last.  The width is that
    of the longest line: the kernels take a compact index.
    full_block_cnt, full_block_idx: the same for full tiles; None where there is none.
    block_size: (queries, keys) of a tile.
    B and H are 1 where sequences or heads do not differ.
    """

    mask_block_cnt: I32
    mask_block_idx: I32
    full_block_cnt: I32 | None
    full_block_idx: I32 | None
    block_size: tuple[int, int]

    def tensors(self, device: object = "cuda") -> dict[str, Any]:
        """The keyword arguments of BlockSparseTensorsTorch."""
        import torch

        where = torch.device(str(device))
        return {
            name: torch.tensor(x, device=where) if isinstance(x, np.ndarray) else x
            for name, x in vars(self).items()
        }


@dataclass(frozen=True, eq=False)
class FA4Mask:
    """A layout for FlashAttention 4.

    forward: key tiles of each row of query tiles; backward: query tiles of each column of key
    tiles (`block_sparse_tensors` and `block_sparse_tensors_bwd` of its interface).
    aux_tensors: int32 arrays for the mask function: patterns, pages, codes, bits, as
    `patterncc.integrations.lookup.Tables` states them; `numbers` are its lines and two shifts.
    """

    forward: FA4Blocks
    backward: FA4Blocks
    aux_tensors: tuple[I32, I32, I32, I32]
    numbers: tuple[int, int, int]

    def mask(self, b: Any, h: Any, i: Any, j: Any) -> Any:
        """What the mask function is to answer, from the tables alone; numpy indices broadcast."""
        return edge(Tables(*self.aux_tensors, *self.numbers), b, h, i, j)


def to_fa4(layout: Layout, *, max_bytes: int = MAX_BYTES) -> FA4Mask:
    """The layout as FlashAttention 4's block-sparse tensors, both directions, and mask tables.

    Its sparse blocks are multiples of its own tiles: keys 128; queries 128 on Hopper, 256 on
    Blackwell (two tiles a block).  Compile with block=128 or (256, 128).
    The mask function is yours to write in CuTe: docs/exporters.md has the formula.

    >>> from patterncc import causal, compile, window
    >>> m = to_fa4(compile(causal() & window(300), 1024, block=128))
    >>> m.forward.mask_block_cnt.tolist(), m.forward.full_block_cnt.tolist()
    ([[[1, 1, 2, 3, 3, 3, 3, 3]]], [[[0, 1, 1, 1, 1, 1, 1, 1]]])
    >>> m.forward.mask_block_idx.shape
    (1, 1, 8, 3)

    Raises LayoutError for a layout in another order, PatternValueError for tiles that its kernels
    have no multiple of, SizeError for more than max_bytes.
    """
    layout = in_token_order("to_fa4", layout)
    height, width = layout.block
    if height % 64 or width % 64:
        raise PatternValueError(
            f"to_fa4: tiles of {height} x {width} are smaller than its kernels'; compile with "
            "block=128 (Hopper) or block=(256, 128) (Blackwell)"
        )
    heads = head_patterns(layout)
    size = table_bytes(layout)
    for columns in (False, True):
        lines = layout.columns if columns else layout.lines
        size += 4 * heads.size * lines * sum(longest(layout, columns=columns))
    remedy = "compile with a larger block, or raise max_bytes"
    allow("to_fa4", f"lists of {heads.size} x {layout.lines} rows", size, max_bytes, remedy)
    held = tables(layout)
    return FA4Mask(
        _direction(layout, False),
        _direction(layout, True),
        (held.patterns, held.pages, held.codes, held.bits),
        (held.lines, held.row_shift, held.column_shift),
    )


def _direction(layout: Layout, columns: bool) -> FA4Blocks:
    heads = head_patterns(layout)
    found = sides(layout, columns=columns, compact=True)
    return FA4Blocks(
        found.partial.count[heads],
        found.partial.index[heads],
        found.full.count[heads] if found.full else None,
        found.full.index[heads] if found.full else None,
        layout.block,
    )
