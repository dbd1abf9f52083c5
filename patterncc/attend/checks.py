"""What `attention` refuses, before anything runs: messages quote both sides."""

from __future__ import annotations

import torch
from torch import Tensor

from patterncc.errors import TensorError
from patterncc.kernels.carried import CarriedLayout
from patterncc.kernels.dynamic import DynamicLayout
from patterncc.kernels.plan import HEAD_DIMS
from patterncc.kernels.spec import Backend
from patterncc.layout.layout import Layout

AnyLayout = Layout | DynamicLayout | CarriedLayout
"""What `attention` takes: made on the host, on the device, or on the host and carried to it."""

DTYPES: dict[Backend, tuple[torch.dtype, ...]] = {
    "triton": (torch.float16, torch.bfloat16, torch.float32),
    "cpu": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    "reference": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


def check_tensors(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    """Refuse tensors that do not fit each other."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TensorError(f"attention: {name} is a {type(x).__name__}, not a tensor")
        if x.dim() != 4:
            raise TensorError(
                f"attention: {name} has shape {shape(x)}; "
                "it must be (batch, heads, length, head dim)"
            )
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype or x.device != q.device:
            raise TensorError(
                f"attention: q is {q.dtype} on {q.device}, {name} is {x.dtype} on {x.device}; "
                "they must be equal"
            )
    if k.shape[:3] != v.shape[:3]:
        raise TensorError(
            f"attention: k has shape {shape(k)} and v {shape(v)}; "
            "batch, heads and length must agree"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise TensorError(
            f"attention: q has shape {shape(q)} and k {shape(k)}; batch and head dim must agree"
        )
    heads, kv_heads = q.shape[1], k.shape[1]
    if kv_heads == 0 or heads % kv_heads:
        raise TensorError(
            f"attention: q has {heads} heads and k {kv_heads}; q's must be a multiple of k's"
        )
    if heads != kv_heads and not enable_gqa:
        raise TensorError(
            f"attention: q has {heads} heads and k {kv_heads}; pass enable_gqa=True if groups of "
            f"{heads // kv_heads} query heads are meant to share keys"
        )


def check_layout(q: Tensor, k: Tensor, layout: AnyLayout, position: object) -> None:
    """Refuse tensors that do not fit the layout."""
    rows = q.shape[2]
    if k.shape[2] != layout.n_k or (position is None and rows != layout.n):
        raise TensorError(
            f"attention: q has shape {shape(q)} and k {shape(k)}, the layout is for {layout.n} "
            f"queries and {layout.n_k} keys; compile one for n={rows}, n_k={k.shape[2]}"
            + (", or give position= for a decode step" if rows < layout.n else "")
        )
    if layout.heads not in (None, q.shape[1]):
        raise TensorError(
            f"attention: q has {q.shape[1]} heads (shape {shape(q)}), the layout is for "
            f"{layout.heads}"
        )
    if layout.sequences not in (1, len(q)):
        raise TensorError(
            f"attention: q has a batch of {len(q)} (shape {shape(q)}), the layout holds a mask "
            f"for each of {layout.sequences} sequences; compile one for the sequences of this batch"
        )


def check_backend(q: Tensor, v: Tensor, backend: Backend) -> None:
    """Refuse dtypes and head dims that the backend does not take."""
    if q.dtype not in DTYPES[backend]:
        known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES[backend])
        raise TensorError(f"attention: q is {q.dtype}; the {backend} backend takes {known}")
    least, most = HEAD_DIMS
    for name, x in (("q and k", q), ("v", v)):
        dim = x.shape[-1]
        if backend == "triton" and not least <= dim <= most:
            raise TensorError(
                f"attention: {name} have head dim {dim}; the triton backend takes {least} to {most}"
            )


def positions(position: int | Tensor, q: Tensor, layout: AnyLayout) -> Tensor:
    """The first row's absolute position in each sequence, int32 [B] on q's device."""
    first, last = layout.q_offset, layout.q_offset + layout.n
    if isinstance(position, Tensor):
        if position.dtype not in (torch.int32, torch.int64) or position.numel() not in (1, len(q)):
            raise TensorError(
                f"attention: position is {position.dtype} of shape {shape(position)}; it must be "
                f"an int or int32 of shape ({len(q)},), one for each sequence of q {shape(q)}"
            )
        moved = position.reshape(-1).to(device=q.device, dtype=torch.int32)
        return moved.expand(len(q)).contiguous()
    if isinstance(position, bool) or not isinstance(position, int):
        raise TensorError(
            f"attention: position must be an int or an int32 tensor, not {position!r}"
        )
    if not first <= position <= position + q.shape[2] <= last:
        raise TensorError(
            f"attention: {q.shape[2]} rows at position {position} are outside the layout's queries "
            f"[{first}, {last})"
        )
    return row(position, q)


def row(position: int, q: Tensor) -> Tensor:
    """One position for all sequences, as a tensor."""
    return torch.full((len(q),), position, dtype=torch.int32, device=q.device)


def shape(x: Tensor) -> str:
    """A shape as messages quote it."""
    return f"({', '.join(map(str, x.shape))})"
