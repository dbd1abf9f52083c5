"""Layouts as FlexAttention block masks, with a mask function that is exact for every pair.

Source: torch.nn.attention.flex_attention, as of torch 2.13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternValueError
from patterncc.integrations.lookup import Tables, edge, table_bytes, tables
from patterncc.integrations.tiles import (
    Lists,
    allow,
    head_patterns,
    in_token_order,
    longest,
    sides,
)
from patterncc.layout.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

MAX_BYTES = 2**30
_NAMES = [
    f"{kind}{side}_{what}"
    for side in ("kv", "q")
    for kind in ("", "full_")
    for what in ("num_blocks", "indices")
]


def to_flex(
    layout: Layout,
    *,
    device: object = None,
    backward: bool = True,
    compact: bool = False,
    max_bytes: int = MAX_BYTES,
) -> BlockMask:
    """The layout as a BlockMask for torch's flex_attention, exact token by token.

    Block lists are int32 [sequences, heads, rows, columns] and their transposes, 1 for sequences or
    heads that do not differ.  Its `mask_mod` holds the whole mask, since FlexAttention without
    torch.compile looks at nothing else; queries and keys count from the layout's first.

    device: where its tensors go; the layout's device, else the CPU.  Name it here: BlockMask.to
    leaves the tensors of a mask_mod where they are.
    backward: also the transposed lists, which only gradients need.
    compact: rows of indices overlap in what nobody reads.  FlexAttention wants indices as wide as
    the sequence, rows x columns of them up to four times (1 GiB at 1,048,576 tokens and block 128),
    and reads the start of each row; a compact row is stored up to the length of the longest list.
    `BlockMask.to` and `BlockMask.to_dense` write it out.
    max_bytes: what all tensors may take.

    A compiled kernel wants blocks that are multiples of its own tiles: on CUDA compile the layout
    with block=128, or give `kernel_options` with a smaller BLOCK_M and BLOCK_N.

    >>> import torch
    >>> from patterncc import causal, compile, window
    >>> layout = compile(causal() & window(100), 300, block=128)
    >>> mask = to_flex(layout)
    >>> mask.kv_num_blocks.tolist(), mask.BLOCK_SIZE
    ([[[1, 2, 2]]], (128, 128))
    >>> i = torch.arange(300)
    >>> int(mask.mask_mod(0, 0, i[:, None], i).sum()) == layout.edges[0]
    True

    Raises LayoutError for a layout in another order, PatternValueError for one without queries or
    keys, SizeError for tensors of more than max_bytes.
    """
    layout = in_token_order("to_flex", layout)
    if not layout.n or not layout.n_k:
        raise PatternValueError(
            f"to_flex: a BlockMask has queries and keys, this layout {layout.n} and {layout.n_k}"
        )
    heads = head_patterns(layout)
    directions = (False, True) if backward else (False,)
    size = table_bytes(layout) + 4 * heads.size * sum(
        _indices(layout, columns, compact) for columns in directions
    )
    ways = ["compact=True"] * (not compact) + [
        "backward=False where no gradient is needed"
    ] * backward
    remedy = ", ".join([*ways, "a larger block in pc.compile, or a larger max_bytes"])
    shape = f"{heads.size} x {layout.lines} x {layout.columns}"
    allow("to_flex", f"a mask of {shape} blocks", size, max_bytes, f"use {remedy}")
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    where = torch.device(str(device or layout.device or "cpu"))
    lists: dict[str, Any] = dict.fromkeys(_NAMES)
    for columns in directions:
        found = sides(layout, columns=columns, compact=compact)
        width = layout.lines if columns else layout.columns
        for kind, each in (("", found.partial), ("full_", found.full)):
            name = f"{kind}{'q' if columns else 'kv'}_"
            if each is not None:
                count, index = _tensors(each, heads, width, where)
                lists[f"{name}num_blocks"], lists[f"{name}indices"] = count, index
    return BlockMask(
        seq_lengths=(layout.n, layout.n_k),
        BLOCK_SIZE=layout.block,
        mask_mod=mask_function(tables(layout), where),
        **lists,
    )


def _indices(layout: Layout, columns: bool, compact: bool) -> int:
    """How many indices one head's lists of a direction hold."""
    lines, across = layout.lines, layout.columns
    if columns:
        lines, across = across, lines
    if not compact:
        return lines * across * (2 if layout.full_tiles else 1)
    return sum(lines * most + across for most in longest(layout, columns=columns) if most)


def mask_function(
    found: Tables, where: torch.device
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A mask_mod over tables that are moved to a device."""
    held = found._replace(
        patterns=_moved(found.patterns, where),
        pages=_moved(found.pages, where),
        codes=_moved(found.codes, where),
        bits=_moved(found.bits, where),
    )

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        read: Tensor = edge(held, b, h, q_idx, kv_idx)
        return read

    return mask_mod


def _tensors(
    made: Lists, heads: NDArray[np.int32], width: int, where: torch.device
) -> tuple[Tensor, Tensor]:
    """Counts [sequences, heads, lines] and indices [sequences, heads, lines, width]."""
    lines, own = made.index.shape[1:]
    count = _moved(made.count[heads], where)
    if own == width:
        return count, _moved(made.index[heads] if heads.size > 1 else made.index[None], where)
    # row r begins at r * own and is `width` long: it runs on into the rows that follow it
    stored = np.zeros((*heads.shape, lines * own + width - own), dtype=np.int32)
    stored[..., : lines * own] = made.index.reshape(len(made.index), -1)[heads]
    moved = _moved(stored, where)
    strides = (moved.stride(0), moved.stride(1), own, 1)
    return count, moved.as_strided((*heads.shape, lines, width), strides)


def _moved(array: NDArray[np.int32], where: torch.device) -> Tensor:
    """A tensor of the array, which is nobody else's: on the CPU it keeps its memory."""
    import torch

    return torch.from_numpy(array).to(where)
