"""Launches of the forward kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patterncc.kernels.launch.call import launch, of_layout, plan_for, rows_together
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec, score: Score
) -> tuple[Tensor, Tensor]:
    """Attention over a layout's edges: out [B, H, n, Dv] in q's dtype, lse fp32 [B, H, n]."""
    q, k, v = rows_together(q, k, v)
    batch, heads, n, _ = q.shape
    out = q.new_empty(batch, heads, n, v.shape[-1])
    lse = q.new_empty(batch, heads, n, dtype=torch.float32)
    if not (n and k.shape[2]):  # a descriptor cannot be empty
        return out.zero_(), lse.fill_(-torch.inf)
    plan = plan_for("forward", q, v, spec)
    arguments = {"q": q, "k": k, "v": v, "out": out, "lse": lse, "scale": score.scale}
    programs = -(-n // plan.bm) * batch * heads
    launch(plan, programs, arguments | of_layout(q, k, tensors, spec, "rows"))
    return out, lse
