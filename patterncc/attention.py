"""`attention`: one registered torch op over a layout, with gradients; and a module around it.

The op takes plain tensors and one line of text, never a Python object, so it traces, compiles and
exports as one node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, assert_never, overload

import torch
from torch import Tensor

from patterncc.errors import TensorError
from patterncc.kernels import runtime
from patterncc.kernels.plan import HEAD_DIMS, Backend, Spec
from patterncc.layout.layout import Layout

if TYPE_CHECKING:
    from types import ModuleType

DTYPES: dict[Backend, tuple[torch.dtype, ...]] = {
    "triton": (torch.float16, torch.bfloat16, torch.float32),
    "cpu": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    "reference": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


# --- the ops


@torch.library.custom_op("patterncc::attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, layout: Sequence[Tensor], plan: str, scale: float
) -> tuple[Tensor, Tensor]:
    spec = Spec.parse(plan)
    out, lse = _backend(spec.backend).forward(q, k, v, layout, spec, scale)
    return out.contiguous(), lse.contiguous()


@_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, layout: Sequence[Tensor], plan: str, scale: float
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("patterncc::attention_backward", mutates_args=())
def _attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: Sequence[Tensor],
    plan: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    spec = Spec.parse(plan)
    grads = _backend(spec.backend).backward(grad_out, q, k, v, out, lse, layout, spec, scale)
    grad_q, grad_k, grad_v = (g.contiguous() for g in grads)
    return grad_q, grad_k, grad_v


@_attention_backward.register_fake
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: Sequence[Tensor],
    plan: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@torch.library.custom_op("patterncc::decode", mutates_args=())
def _decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Sequence[Tensor],
    plan: str,
    scale: float,
    position: Tensor,
) -> tuple[Tensor, Tensor]:
    spec = Spec.parse(plan)
    out, lse = _backend(spec.backend).decode(q, k, v, layout, spec, scale, position)
    return out.contiguous(), lse.contiguous()


@_decode.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Sequence[Tensor],
    plan: str,
    scale: float,
    position: Tensor,
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, layout, plan, scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, *layout)
    ctx.plan, ctx.scale = plan, scale


def _differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[object, ...]:
    q, k, v, out, lse, *layout = ctx.saved_tensors
    grads = _attention_backward(grad_out, q, k, v, out, lse, layout, ctx.plan, ctx.scale)
    return *grads, [None] * len(layout), None, None


_attention.register_autograd(_differentiate, setup_context=_save)


def _backend(name: Backend) -> ModuleType:
    """The module that runs an op: each has forward, backward and decode."""
    match name:
        case "triton":
            from patterncc.kernels import launch

            return launch
        case "cpu":
            from patterncc.kernels import cpu

            return cpu
        case "reference":
            from patterncc.kernels import reference

            return reference
        case _:
            assert_never(name)


# --- the public function


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[False] = False,
    position: int | Tensor | None = None,
    backend: str = "auto",
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[True],
    position: int | Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    position: int | Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over the edges of a layout, and nothing else.

    q [B, H, n, D], k [B, Hkv, n_k, D], v [B, Hkv, n_k, Dv] give [B, H, n, Dv]; H a multiple of
    Hkv, a larger one only with enable_gqa.  scale: default 1 / sqrt(D).  return_lse: also the
    natural log of each row's sum, fp32 [B, H, n], without gradient.  A row that reads nothing gives
    out 0, lse -inf and gradients 0.

    position: a decode step, without gradient: q holds the rows that stand at the absolute positions
    position, position + 1, .. (int, or int32 [B], one for each sequence), among the layout's
    queries [q_offset, q_offset + n).  A tensor's values are not checked on a GPU: a row that the
    layout lacks reads nothing.  k and v still have n_k rows, a cache's buffer say: rows that the
    queries may not read need not be filled, but must be finite.

    backend: "auto" is Triton on CUDA and torch's flash kernels on the CPU; "triton", "cpu",
    "reference".

    >>> from patterncc import causal, window
    >>> from patterncc.layout import compile
    >>> layout = compile(causal() & window(15), 100)
    >>> q, k, v = torch.randn(3, 1, 2, 100, 32).unbind()
    >>> attention(q, k, v, layout).shape
    torch.Size([1, 2, 100, 32])

    Raises TensorError for tensors that do not fit each other or the layout, BackendError for a
    backend that cannot run here.
    """
    if not isinstance(layout, Layout):
        raise TensorError(
            f"attention: the layout is a {type(layout).__name__}; give what pc.compile returns, "
            "one layer at a time"
        )
    _check_tensors(q, k, v, enable_gqa)
    _check_layout(q, k, layout, position)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if not 0 < scale < math.inf:
        raise TensorError(f"attention: scale must be positive and finite, not {scale}")
    tensors, plan, runs_on = _prepared(layout, q.device, backend)
    _check_backend(q, v, runs_on)
    if position is None:
        out, lse = _attention(q, k, v, tensors, plan, scale)
    else:
        at = _positions(position, q, layout)
        out, lse = _decode(q, k, v, tensors, plan, scale, at)
    return (out, lse) if return_lse else out


# a graph treats a layout's tables as constants, guarded by the layout itself
_prepared: Callable[[Layout, torch.device, str], runtime.Prepared] = (
    torch.compiler.assume_constant_result(runtime.prepared)  # type: ignore[no-untyped-call]
)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TensorError(f"attention: {name} is a {type(x).__name__}, not a tensor")
        if x.dim() != 4:
            raise TensorError(
                f"attention: {name} has shape {_shape(x)}; "
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
            f"attention: k has shape {_shape(k)} and v {_shape(v)}; "
            "batch, heads and length must agree"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise TensorError(
            f"attention: q has shape {_shape(q)} and k {_shape(k)}; batch and head dim must agree"
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


def _check_layout(q: Tensor, k: Tensor, layout: Layout, position: object) -> None:
    rows = q.shape[2]
    if k.shape[2] != layout.n_k or (position is None and rows != layout.n):
        raise TensorError(
            f"attention: q has shape {_shape(q)} and k {_shape(k)}, the layout is for {layout.n} "
            f"queries and {layout.n_k} keys; compile one for n={rows}, n_k={k.shape[2]}"
            + (", or give position= for a decode step" if rows < layout.n else "")
        )
    heads = len(layout.head_pattern)
    if heads not in (1, q.shape[1]):
        raise TensorError(
            f"attention: q has {q.shape[1]} heads (shape {_shape(q)}), the layout is for {heads}"
        )


def _check_backend(q: Tensor, v: Tensor, backend: Backend) -> None:
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


def _positions(position: int | Tensor, q: Tensor, layout: Layout) -> Tensor:
    """The first row's absolute position in each sequence, int32 [B] on q's device."""
    first, last = layout.q_offset, layout.q_offset + layout.n
    if isinstance(position, Tensor):
        if position.dtype not in (torch.int32, torch.int64) or position.numel() not in (1, len(q)):
            raise TensorError(
                f"attention: position is {position.dtype} of shape {_shape(position)}; it must be "
                f"an int or int32 of shape ({len(q)},), one for each sequence of q {_shape(q)}"
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
    return torch.full((len(q),), position, dtype=torch.int32, device=q.device)


def _shape(x: Tensor) -> str:
    return f"({', '.join(map(str, x.shape))})"
