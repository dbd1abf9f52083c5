"""Launches of the forward kernels: items of the work list, then the parts of cut rows merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patterncc.kernels.emit.pieces import padded
from patterncc.kernels.launch.call import launch, of_layout, of_work, plan_for, rows_together
from patterncc.kernels.launch.score import arguments as options
from patterncc.kernels.score import Score, with_sinks
from patterncc.kernels.spec import Spec


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec, score: Score
) -> tuple[Tensor, Tensor]:
    """Attention over a layout's edges: out [B, H, n, Dv] in q's dtype, lse fp32 [B, H, n].

    Bitwise repeatable: what is cut follows from the layout, the device and the number of heads.
    """
    q, k, v = rows_together(q, k, v)
    batch, heads, n, _ = q.shape
    out = q.new_empty(batch, heads, n, v.shape[-1])
    lse = q.new_empty(batch, heads, n, dtype=torch.float32)
    if not (n and k.shape[2]):  # a descriptor cannot be empty
        nothing = out.zero_(), lse.fill_(-torch.inf)
        return nothing if score.sinks is None else with_sinks(*nothing, score.sinks)
    plan = plan_for("forward", q, v, spec, score)
    arguments = of_layout(q, k, tensors, spec, "rows") | of_work(q, k, v, tensors, spec)
    arguments |= {"q": q, "k": k, "v": v, "out": out, "lse": lse} | options(score, spec)
    units, slots = arguments["units"], arguments["slots"]
    room = (units, slots, spec.block[0])
    arguments |= {
        "part_out": lse.new_empty(*room, padded(v.shape[-1])),
        "part_lse": lse.new_empty(*room),
    }
    launch(plan, arguments["item_count"] * units * (spec.block[0] // plan.bm), arguments)
    if slots:
        plan = plan_for("combine", q, v, spec, score)
        launch(plan, slots * units * (spec.block[0] // plan.bm), arguments)
    return out, lse
