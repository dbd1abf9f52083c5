"""Launches of the backward kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patterncc.kernels.launch.call import launch, of_layout, plan_for, rows_together
from patterncc.kernels.score import Grads, Score
from patterncc.kernels.spec import Spec


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
    """The gradients of q, k and v; bitwise repeatable: no atomic is used."""
    q, k, v, out, grad_out = rows_together(q, k, v, out, grad_out)
    lse = lse.contiguous()
    batch, heads, n, _ = q.shape
    if not (n and k.shape[2]):
        return Grads(torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
    delta, lse2 = torch.empty_like(lse), torch.empty_like(lse)
    grad_q, grad_k, grad_v = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)
    )
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "out": out,
        "grad": grad_out,
        "lse": lse,
        "scale": score.scale,
    }
    arguments |= {
        "delta": delta,
        "lse2": lse2,
        "grad_q": grad_q,
        "grad_k": grad_k,
        "grad_v": grad_v,
    }
    by_rows = arguments | of_layout(q, k, tensors, spec, "rows")
    plan = plan_for("delta", q, v, spec)
    launch(plan, -(-n // plan.bm) * batch * heads, by_rows)
    plan = plan_for("dq", q, v, spec)
    launch(plan, -(-n // plan.bm) * batch * heads, by_rows)
    plan = plan_for("dkdv", q, v, spec)
    programs = -(-k.shape[2] // plan.bn) * batch * k.shape[1]
    launch(plan, programs, arguments | of_layout(q, k, tensors, spec, "cols"))
    return Grads(grad_q, grad_k, grad_v)
