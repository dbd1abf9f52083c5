"""Layouts on the CPU: torch's flash kernel on a schedule's calls, merged by LSE, exact both ways.

The kernel's backward takes the *global* output and LSE, so the gradients of the calls add up to the
exact gradient however the keys were cut.  Nothing as large as queries x keys is ever made: a call's
temporaries stay near `step.TEMPORARY` bytes, and the rest is of the size of the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patterncc.kernels.cpu import scored
from patterncc.kernels.cpu.cache import Prepared, prepared
from patterncc.kernels.cpu.decode import decode
from patterncc.kernels.cpu.heads import (
    check,
    fold_keys,
    fold_queries,
    head_groups,
    merged,
    of_group,
    same_width,
    sequence_groups,
    wide,
)
from patterncc.kernels.cpu.scored import Options
from patterncc.kernels.cpu.step import Step, steps
from patterncc.kernels.score import Grads, Score, with_sinks

if TYPE_CHECKING:
    from patterncc.kernels.spec import Spec

__all__ = ["backward", "decode", "forward"]

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec, score: Score
) -> tuple[Tensor, Tensor]:
    """Attention over a layout's edges.

    q [B, H, n, D], k [B, Hkv, n_k, D] and v [B, Hkv, n_k, Dv] give the output [B, H, n, Dv] in q's
    dtype and the LSE [B, H, n] in fp32, fp64 for fp64 inputs.  A query that reads nothing: output
    0, LSE -inf.

    Raises: TensorError for a dtype or device that the kernel does not take.
    """
    check(q)
    width = v.shape[-1]
    q, k, v = same_width(q, k, v)
    sequences = sequence_groups(tensors[0], spec.sequences)
    if len(sequences) == 1:
        out, lse = _forward_alike(q, k, v, sequences[0][1], tensors, spec, score)
    else:
        out = torch.empty(q.shape, dtype=q.dtype)
        lse = torch.empty(q.shape[:-1], dtype=wide(q.dtype))
        for pick, patterns in sequences:
            some, of_some = (q[pick], k[pick], v[pick]), _picked(score, pick)
            out[pick], lse[pick] = _forward_alike(*some, patterns, tensors, spec, of_some)
    out = out[..., :width]
    return (out, lse) if score.sinks is None else with_sinks(out, lse, score.sinks)


def _picked(score: Score, pick: Tensor | slice) -> Score:
    """The options of some sequences."""
    return score if score.keys is None else replace(score, keys=score.keys[pick])


def _forward_alike(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    head_pattern: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
) -> tuple[Tensor, Tensor]:
    """`forward` of sequences with the same patterns, tensors of one width."""
    key_heads = k.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[:-1], dtype=wide(q.dtype))
    groups = list(head_groups(head_pattern, q.shape[1], key_heads))
    for pattern, keys, members in groups:
        plan = prepared(tensors, spec, pattern)
        (group_q,) = fold_queries([q], keys, members, key_heads)
        group_k, group_v = fold_keys([k, v], keys)
        given = group_q, group_k, group_v, plan
        if score.products:
            part = _forward_group(*given, score)
        else:
            options = Options.of(score, spec, len(q), keys, members, key_heads)
            part = scored.forward_group(*given, options)
        if len(groups) == 1:
            out, lse = part[0].to(q.dtype).view(q.shape), part[1].view(q.shape[:-1])
            break
        for whole, value in zip((out, lse), part):
            place = of_group(whole, keys, members, key_heads)
            place.copy_(value.view(place.shape))
    return out, lse


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
    repeatable: bool = True,
) -> Grads:
    """The gradients of q, k and v, from the output and LSE that `forward` gave.

    Raises: TensorError for a dtype or device that the kernel does not take.
    """
    check(q)
    width_k, width_v = k.shape[-1], v.shape[-1]
    q, k, v, grad_out, out = same_width(q, k, v, grad_out, out)
    # a query without keys: with LSE +inf its probabilities are exp(-inf) = 0, with -inf NaN
    lse = lse.to(wide(q.dtype)).masked_fill(lse == -torch.inf, torch.inf)
    grads = [torch.zeros(x.shape, dtype=wide(q.dtype)) for x in (q, k, v)]
    inputs = [grad_out, q, k, v, out, lse]
    of_options = _option_sums(score)
    for pick, head_pattern in sequence_groups(tensors[0], spec.sequences):
        some = [x[pick] for x in inputs]
        parts = [x[pick] if isinstance(pick, slice) else torch.zeros_like(x[pick]) for x in grads]
        of_some = _picked(score, pick)
        _backward_alike(some, parts, of_options, head_pattern, tensors, spec, of_some)
        if not isinstance(pick, slice):  # of an index, the parts are copies
            for whole, part in zip(grads, parts):
                whole[pick] = part
    dq, dk, dv = (x.to(q.dtype) for x in grads)
    return Grads(dq[..., :width_k], dk[..., :width_k], dv[..., :width_v], *of_options)


def _option_sums(score: Score) -> tuple[Tensor | None, Tensor | None]:
    """Zeros for the gradients of slopes and bias, where they are asked for."""
    of_slopes = of_bias = None
    if score.slopes is not None and score.slopes_grad:
        of_slopes = torch.zeros_like(score.slopes)
    if score.bias is not None and score.bias_grad:
        of_bias = torch.zeros_like(score.bias)
    return of_slopes, of_bias


def _backward_alike(
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    of_options: tuple[Tensor | None, Tensor | None],
    head_pattern: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
) -> None:
    """Add the gradients of sequences with the same patterns to `grads` and `of_options`.

    inputs: gradient of the output, q, k, v, output, LSE.  grads: of q, k and v.
    of_options: of slopes and bias, all heads.
    """
    grad_out, q, k, v, out, lse = inputs
    key_heads = k.shape[1]
    for pattern, keys, members in head_groups(head_pattern, q.shape[1], key_heads):
        plan = prepared(tensors, spec, pattern)
        group_q = fold_queries([grad_out, q, out, lse], keys, members, key_heads)
        given = group_q, fold_keys([k, v], keys), plan
        if score.products:
            part = _backward_group(*given, score)
        else:
            options = Options.of(score, spec, len(q), keys, members, key_heads)
            part = scored.backward_group(*given, options)
            options.add_to(of_options, keys, members, key_heads)
        places = [
            of_group(grads[0], keys, members, key_heads),
            grads[1][:, keys],
            grads[2][:, keys],
        ]
        for place, value in zip(places, part):
            place.add_(value.view(place.shape))


def _forward_group(
    q: Tensor, k: Tensor, v: Tensor, plan: Prepared, score: Score
) -> tuple[Tensor, Tensor]:
    """q [X, G, n, D], k and v [X, n_k, D] -> output [X, G, n, D] and LSE [X, G, n]."""
    dtype = wide(q.dtype) if plan.forward.merges else q.dtype
    out = torch.zeros(q.shape, dtype=dtype)
    lse = torch.full(q.shape[:-1], -torch.inf, dtype=wide(q.dtype))
    for step in steps(plan, plan.forward, q, copies=0):
        keys, values = step.keys(k), step.keys(v)
        for member in step.members(q):
            part, part_lse = _flash(
                step.queries(q, member),
                step.repeat(keys, member, q.shape[1]),
                step.repeat(values, member, q.shape[1]),
                attn_mask=step.add,
                scale=score.scale,
            )
            _put(step, member, part, part_lse, out, lse)
    return out, lse


def _put(
    step: Step, member: int | None, part: Tensor, part_lse: Tensor, out: Tensor, lse: Tensor
) -> None:
    """Write or merge one call's result."""
    if step.dead is not None:  # where the kernel says 0
        part_lse = part_lse.masked_fill(step.dead, -torch.inf)
    if not step.call.fresh:
        old, old_lse = step.queries(out, member), step.queries(lse, member)
        part, part_lse = merged(old, old_lse, part, part_lse, step.dead)
    step.write(out, member, part)
    step.write(lse, member, part_lse)


def _backward_group(
    over_queries: Sequence[Tensor], over_keys: Sequence[Tensor], plan: Prepared, score: Score
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, shaped as in `_forward_group` and summed in `wide` precision.

    over_queries: gradient of the output, q, output, LSE.  over_keys: k, v.
    """
    grad_out, q, out, lse = over_queries
    k, v = over_keys
    dq, dk, dv = (torch.zeros(x.shape, dtype=wide(q.dtype)) for x in (q, k, v))
    for step in steps(plan, plan.backward, q, copies=2):
        keys, values = step.keys(k), step.keys(v)
        for member in step.members(q):
            grad_q, grad_k, grad_v = _flash_backward(
                step.queries(grad_out, member),
                step.queries(q, member),
                step.repeat(keys, member, q.shape[1]),
                step.repeat(values, member, q.shape[1]),
                step.queries(out, member),
                step.queries(lse, member),
                0.0,
                False,
                attn_mask=step.add,
                scale=score.scale,
            )
            step.add_queries(dq, member, grad_q)
            step.add_keys(dk, member, grad_k)
            step.add_keys(dv, member, grad_v)
    return dq, dk, dv
