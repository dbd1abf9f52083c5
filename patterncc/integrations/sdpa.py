"""Layouts as dense masks: torch's scaled_dot_product_attention, xFormers, ONNX."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

from patterncc.errors import PatternValueError, PatternWarning, suggest
from patterncc.integrations.tiles import allow, check_layout
from patterncc.layout.layout import Layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_BYTES = 2**30
_LARGE = 2**28  # bytes from which on a dense mask is remarked upon

Kind = Literal["bool", "bias"]


def to_sdpa(
    layout: Layout,
    *,
    kind: Kind = "bool",
    dtype: torch.dtype | None = None,
    device: object = None,
    max_bytes: int = MAX_BYTES,
) -> Tensor:
    """The layout as `attn_mask` of scaled_dot_product_attention: [sequences, heads, n, n_k].

    1 for sequences or heads that do not differ.  Any layout will do, in any order: the mask is by
    original positions.

    kind: "bool", True where a query reads a key; or "bias", 0 there and -inf elsewhere, which is
    what xFormers takes as `attn_bias` and ONNX as `attn_mask`, heads expanded where they want it.
    dtype: of a bias, float32 by default; give that of the queries.
    max_bytes: what the mask may take; a quarter of the default is remarked upon already.

    Rows that read nothing: torch since 2.5 gives them output 0 and gradients 0, as `attention`
    does.  Older ones, and most runtimes of ONNX, give NaN.

    >>> from patterncc import causal, compile, window
    >>> to_sdpa(compile(causal() & window(1), 3, block=16)).int()
    tensor([[[[1, 0, 0],
              [1, 1, 0],
              [0, 1, 1]]]], dtype=torch.int32)

    Raises SizeError, before anything is made, for a mask of more than max_bytes.
    Warns (PatternWarning) of a mask of more than 256 MiB.
    """
    layout = check_layout("to_sdpa", layout)
    if kind not in ("bool", "bias"):
        raise PatternValueError(
            f"to_sdpa: no kind {kind!r}; {suggest(str(kind), ['bool', 'bias'])}"
        )
    import torch

    if not isinstance(dtype, torch.dtype | None):
        raise PatternValueError(
            f"to_sdpa: dtype is {dtype!r}; give a dtype of torch, as dtype=torch.float16"
        )
    if kind == "bool" and dtype not in (None, torch.bool):
        raise PatternValueError(f'to_sdpa: a bool mask has no dtype {dtype}; give kind="bias"')
    wanted = (dtype or torch.float32) if kind == "bias" else torch.bool
    if kind == "bias" and not wanted.is_floating_point:
        raise PatternValueError(f"to_sdpa: a bias is 0 and -inf, which {wanted} cannot hold")
    shape = (layout.sequences, layout.heads or 1, layout.n, layout.n_k)
    size = wanted.itemsize * shape[0] * shape[1] * shape[2] * shape[3]
    what = f"a dense mask {' x '.join(map(str, shape))} of {wanted}"
    allow("to_sdpa", what, size, max_bytes, "pc.attention runs the layout as it is; or slice it")
    if size > _LARGE:
        warnings.warn(
            f"to_sdpa: {what} takes {size:,} bytes, its layout {layout.nbytes:,}; "
            "pc.attention runs the layout as it is",
            PatternWarning,
            stacklevel=2,
        )
    where = torch.device(str(device or layout.device or "cpu"))
    mask = torch.from_numpy(layout.dense().reshape(shape)).to(where)
    if kind == "bool":
        return mask
    return torch.zeros(shape, dtype=wanted, device=where).masked_fill_(~mask, -torch.inf)
