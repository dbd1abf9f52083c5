"""Layouts as FlashInfer's block-sparse matrices: what BlockSparseAttentionWrapper.plan takes.

Source: flashinfer/sparse.py (FlashInfer 0.6), BlockSparseAttentionWrapper and the
conversion of its masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternValueError
from patterncc.integrations.tiles import (
    allow,
    blocks,
    in_token_order,
    pattern_of,
    tile_counts,
    tiles_of,
)
from patterncc.layout.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class FlashInferBlocks:
    """A block-sparse matrix of M queries and N keys in blocks of R x C, as FlashInfer plans it.

    indptr: int32 [M / R rounded up, + 1]; indices: int32 [nnz], the key blocks of each query block,
    ascending; mask: bool [nnz, R, C], or None where every block is full.
    N is a multiple of C: `padding` keys and values (any finite ones, zeros say) are to follow the
    real ones, and the mask leaves them out.
    """

    indptr: NDArray[np.int32]
    indices: NDArray[np.int32]
    M: int
    N: int
    R: int
    C: int
    mask: NDArray[np.bool_] | None
    padding: int

    @property
    def flat_mask(self) -> NDArray[np.bool_] | None:
        """The mask as the kernel reads it, bool [nnz * R * C]: block row by block row, each row of
        queries over all its blocks.  `plan` makes it from `mask`."""
        if self.mask is None:
            return None
        rows = np.split(self.mask, self.indptr[1:-1])
        parts = [row.transpose(1, 0, 2).reshape(-1) for row in rows]
        return np.concatenate([np.zeros(0, dtype=bool), *parts])

    def plan(self, device: object = "cuda") -> dict[str, Any]:
        """The keyword arguments of `plan` that say which edges there are; heads, head_dim and
        dtypes are yours to add: ``wrapper.plan(**blocks.plan(), num_qo_heads=32, ...)``."""
        import torch

        where = torch.device(str(device))
        return {
            "indptr": torch.tensor(self.indptr, device=where),
            "indices": torch.tensor(self.indices, device=where),
            **{"M": self.M, "N": self.N, "R": self.R, "C": self.C},
            "mask": None if self.mask is None else torch.tensor(self.mask, device=where),
        }


def to_flashinfer(
    layout: Layout,
    *,
    head: int | None = None,
    sequence: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> FlashInferBlocks:
    """One mask of a layout as a block-sparse matrix for FlashInfer's BlockSparseAttentionWrapper.

    The wrapper has one mask for all heads: where they differ, choose with head= and sequence=, one
    plan each.  Its queries are [M, heads, D], its keys and values [N, kv heads, D].

    max_bytes: what the mask may take, a byte a pair of every touched block.

    >>> from patterncc import causal, compile, window
    >>> b = to_flashinfer(compile(causal() & window(20), 96, block=32))
    >>> b.indptr.tolist(), b.indices.tolist(), b.mask.shape
    ([0, 1, 3, 5], [0, 0, 1, 1, 2], (5, 32, 32))

    Raises LayoutError for a layout in another order, PatternValueError where heads differ or there
    is no edge (`plan` takes no empty matrix), SizeError for a mask of more than max_bytes.
    """
    layout = in_token_order("to_flashinfer", layout)
    pattern = pattern_of("to_flashinfer", layout, head, sequence)
    count, (height, width) = int(tile_counts(layout)[pattern]), layout.block
    if not count:
        raise PatternValueError(
            "to_flashinfer: this mask has no edge, and FlashInfer plans no empty matrix; "
            "the output of such a head is 0"
        )
    what = f"masks of {count} blocks of {height} x {width}"
    remedy = "compile with a smaller block, or raise max_bytes"
    allow("to_flashinfer", what, count * height * width, max_bytes, remedy)
    found = tiles_of(layout, pattern)
    ragged = layout.n_k % width
    padding = width - ragged if ragged else 0
    indptr = np.zeros(layout.lines + 1, dtype=np.int32)
    np.cumsum(np.bincount(found.row, minlength=layout.lines), out=indptr[1:])
    return FlashInferBlocks(
        indptr,
        found.column.astype(np.int32),
        *(layout.n, layout.n_k + padding, height, width),
        blocks(layout, found.row, found.word) if found.word.any() else None,
        padding,
    )
