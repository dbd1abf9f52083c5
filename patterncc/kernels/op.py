"""The registered torch ops: plain tensors, numbers and one line of text, never a Python object.

So they trace, compile and export as one node each.  `layout` is what `upload.prepared` gives for a
layout, `plan` the text of its `Spec` or, where it has an order or a rest, of its `Terms`; the
options of a score are those of `score.Score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from patterncc.errors import TensorError
from patterncc.kernels.cpu.heads import wide
from patterncc.kernels.fits import Carried, check_call, check_grads, planned
from patterncc.kernels.op_decode import decode
from patterncc.kernels.score import Score, sink_grads, without_unread
from patterncc.kernels.ways import way

__all__ = ["attention", "attention_backward", "decode"]


@torch.library.custom_op("patterncc::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Sequence[Tensor],
    plan: str,
    scale: float,
    softcap: float = 0.0,
    slopes: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    keys: Tensor | None = None,
    deterministic: bool = True,
) -> tuple[Tensor, Tensor]:
    """out [B, H, n, Dv] in q's dtype and lse [B, H, n], without gradient; fp32, fp64 for fp64.

    deterministic: whether the backward pass must be bitwise repeatable.
    """
    spec, carried = planned(plan, q, k), Carried.of(layout)
    score = Score(scale, softcap, slopes, bias, sinks, keys)
    check_call(q, k, v, carried, spec, score)
    k, v = without_unread(k, v, carried.unread, keys)
    out, lse = way(spec).forward(q, k, v, carried.tables, spec, score)
    return out.contiguous(), lse.to(wide(q.dtype)).contiguous()


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: object, **_more: object) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    return out, q.new_empty(q.shape[:3], dtype=wide(q.dtype))


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
    softcap: float = 0.0,
    slopes: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    keys: Tensor | None = None,
    deterministic: bool = True,
    slopes_grad: bool = False,
    bias_grad: bool = False,
    sinks_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k and v; of slopes, bias and sinks where asked for, else empty."""
    spec, carried = planned(plan, q, k), Carried.of(layout)
    score = Score(scale, softcap, slopes, bias, sinks, keys)
    score = replace(score, slopes_grad=slopes_grad, bias_grad=bias_grad)
    check_call(q, k, v, carried, spec, score)
    check_grads(q, v, grad_out, out, lse)
    k, v = without_unread(k, v, carried.unread, keys)
    grads = way(spec).backward(
        grad_out, q, k, v, out, lse, carried.tables, spec, score, repeatable=deterministic
    )
    grad_q, grad_k, grad_v = (g.contiguous() for g in grads[:3])
    sunk = sink_grads(grad_out, out, lse, sinks) if sinks_grad and sinks is not None else None
    of_slopes, of_bias, of_sinks = (
        q.new_empty(0) if given is None or grad is None else grad.to(given.dtype).contiguous()
        for given, grad in ((slopes, grads.slopes), (bias, grads.bias), (sinks, sunk))
    )
    return grad_q, grad_k, grad_v, of_slopes, of_bias, of_sinks


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
    softcap: float = 0.0,
    slopes: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    keys: Tensor | None = None,
    deterministic: bool = True,
    slopes_grad: bool = False,
    bias_grad: bool = False,
    sinks_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_slopes, of_bias, of_sinks = (
        x.new_empty(x.shape) if x is not None and asked else q.new_empty(0)
        for x, asked in ((slopes, slopes_grad), (bias, bias_grad), (sinks, sinks_grad))
    )
    given = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    return *given, of_slopes, of_bias, of_sinks


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, layout, ctx.plan, ctx.scale, ctx.softcap, *options, ctx.deterministic = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, *options, *layout)


def _differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[object, ...]:
    q, k, v, out, lse, slopes, bias, sinks, keys, *layout = ctx.saved_tensors
    given = len(ctx.needs_input_grad)  # torch drops arguments at the end that are the defaults
    asked = [*ctx.needs_input_grad[7:10], False, False, False][:3]
    grads = attention_backward(
        *(grad_out, q, k, v, out, lse, layout, ctx.plan, ctx.scale, ctx.softcap),
        *(slopes, bias, sinks, keys, ctx.deterministic, *asked),
    )
    of_options = (g if wanted else None for g, wanted in zip(grads[3:], asked, strict=True))
    every = (*grads[:3], [None] * len(layout), None, None, None, *of_options, None, None)
    return every[:given]


attention.register_autograd(_differentiate, setup_context=_save)


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Gradients have none."""


def _refuse_twice(ctx: Any, *grads: Tensor) -> None:
    raise TensorError(
        "attention: its gradients have no gradient (a second backward pass, create_graph=True); "
        "take dense attention under the layout's mask (pc.to_sdpa) where you need second "
        "derivatives"
    )


attention_backward.register_autograd(_refuse_twice, setup_context=_save_nothing)
