"""Launches of the kernels for the gradients of slopes and bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patterncc.kernels.launch.call import launch, of_layout, plan_for
from patterncc.kernels.plan import Plan
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec
from patterncc.kernels.tables import processors_of

ROOM = 2**26  # bytes that partial sums of a bias may take


def option_grads(
    shared: dict[str, Any], tensors: Sequence[Tensor], spec: Spec, score: Score
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of slopes [H] and bias [H, 2 R + 1], where they are asked for, in fp32.

    shared: the arguments that all backward kernels have, with row sums `delta` and `lse2`.
    """
    of_slopes = of_bias = None
    if score.slopes is not None and score.slopes_grad:
        of_slopes = _summed("slopes", 1, shared, tensors, spec, score)[:, 0]
    if score.bias is not None and score.bias_grad:
        of_bias = _summed("bias", score.bias.shape[1], shared, tensors, spec, score)
    return of_slopes, of_bias


def _summed(
    kind: Any,
    width: int,
    shared: dict[str, Any],
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
) -> Tensor:
    """The sums of all programs of a head, [H, width]."""
    q: Tensor = shared["q"]
    k, v = shared["k"], shared["v"]
    batch, heads = q.shape[:2]
    plan = plan_for(kind, q, v, spec, score)
    programs = _programs(plan, q, width)
    partial = q.new_zeros(batch, heads, programs, width, dtype=torch.float32)
    arguments = shared | of_layout(q, k, tensors, spec, "rows")
    arguments |= {"partial": partial, "programs": programs, "partly": int(score.partly)}
    launch(plan, batch * heads * programs, arguments)
    return partial.sum((0, 2))


def _programs(plan: Plan, q: Tensor, width: int) -> int:
    """Programs of one head: enough to fill the device, each with a partial sum of its own."""
    units = max(1, q.shape[0] * q.shape[1])
    rows = -(-q.shape[2] // plan.bm)
    wanted = -(-8 * processors_of(q.device) // units)
    return max(1, min(rows, wanted, ROOM // (4 * width * units)))
