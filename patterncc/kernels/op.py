"""The registered torch ops: plain tensors and one line of text, never a Python object.

So they trace, compile and export as one node each.  `layout` is what `upload.prepared` gives for a
layout, `plan` the text of its `Spec` or, where it has an order or a rest, of its `Terms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, assert_never

import torch
from torch import Tensor

from patterncc.kernels import terms
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec
from patterncc.kernels.terms import Terms, parsed

if TYPE_CHECKING:
    from types import ModuleType


@torch.library.custom_op("patterncc::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, layout: Sequence[Tensor], plan: str, scale: float
) -> tuple[Tensor, Tensor]:
    """out [B, H, n, Dv] in q's dtype and lse [B, H, n], without gradient; fp32, fp64 for fp64."""
    spec = parsed(plan)
    out, lse = _way(spec).forward(q, k, v, layout, spec, Score(scale))
    return out.contiguous(), lse.to(_lse_dtype(q)).contiguous()


@attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, layout: Sequence[Tensor], plan: str, scale: float
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    return out, q.new_empty(q.shape[:3], dtype=_lse_dtype(q))


@torch.library.custom_op("patterncc::attention_backward", mutates_args=())
def attention_backward(
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
    """The gradients of q, k and v."""
    spec = parsed(plan)
    grads = _way(spec).backward(grad_out, q, k, v, out, lse, layout, spec, Score(scale))
    grad_q, grad_k, grad_v = (g.contiguous() for g in grads[:3])
    return grad_q, grad_k, grad_v


@attention_backward.register_fake
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
def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Sequence[Tensor],
    plan: str,
    scale: float,
    position: Tensor,
) -> tuple[Tensor, Tensor]:
    """out and lse of q's rows, which stand at `position` .. (int32 [B]); without gradient."""
    spec = parsed(plan)
    out, lse = _way(spec).decode(q, k, v, layout, spec, Score(scale), position)
    return out.contiguous(), lse.to(_lse_dtype(q)).contiguous()


@decode.register_fake
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
    return out, q.new_empty(q.shape[:3], dtype=_lse_dtype(q))


def _lse_dtype(q: Tensor) -> torch.dtype:
    """Gradients start from the LSE: for float64 it is kept as wide."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, layout, plan, scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, *layout)
    ctx.plan, ctx.scale = plan, scale


def _differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[object, ...]:
    q, k, v, out, lse, *layout = ctx.saved_tensors
    grads = attention_backward(grad_out, q, k, v, out, lse, layout, ctx.plan, ctx.scale)
    return *grads, [None] * len(layout), None, None


attention.register_autograd(_differentiate, setup_context=_save)


def _way(spec: Spec | Terms) -> ModuleType:
    """The module that runs a layout: its backend, or what runs that on each term."""
    match spec:
        case Spec():
            return terms.backend(spec.backend)
        case Terms():
            return terms
        case _:
            assert_never(spec)
