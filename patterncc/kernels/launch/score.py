"""The options of a score as kernels take them: what their plan holds, and their arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from patterncc.kernels.plan import Kind, Plan
    from patterncc.kernels.score import Score
    from patterncc.kernels.spec import Spec

BARE = ("delta", "gather")  # kinds that look at no score
SINKING = ("forward", "combine", "decode")  # kinds that end a row's sum


def with_options(plan: Plan, score: Score) -> Plan:
    """The plan of a plain kernel with a score's options, its steps cut where they take registers.

    Where, was found by compiling bf16 at head dim 128 for each target: docs/scores.md.
    """
    plan = replace(plan, **plan_options(plan.kind, score))
    if plan.head_dim <= 64 or plan.dtype == "float32":
        return plan
    bm, bn = _largest(plan)
    return replace(plan, bm=min(plan.bm, bm), bn=min(plan.bn, bn))


def _largest(plan: Plan) -> tuple[int, int]:
    """The largest sides (queries, keys) of a step beside a plan's options.

    A tile of biases passes through shared memory, distances and the derivative of a softcap live
    beside the scores.  On sm_80 steps are small as they are.
    """
    free = 256
    both = plan.softcap and plan.slopes
    crowded = both or (plan.bias and (plan.softcap or plan.slopes))
    target = "sm_90" if plan.target == "interpreter" else plan.target
    match target, plan.kind:
        case ("sm_100", "forward") if plan.bias or plan.slopes:
            return free, 64
        case ("sm_100", "dq") if crowded:
            return free, 32
        case ("sm_100", "single") if plan.bias or plan.softcap:
            return 32, free
        case ("sm_90", "forward") if plan.bias or both:
            return free, 64
        case ("sm_90", "dq") if plan.bias or both:
            return free, 32
        case ("sm_90", "single") if plan.bias and (plan.softcap or plan.slopes):
            return 16, free
        case ("sm_90", "dkdv" | "single") if plan.bias or plan.softcap:
            return 32, free
    return free, free


def plan_options(kind: Kind, score: Score) -> dict[str, Any]:
    """The fields of a plan that say which options its kernel holds code for.

    >>> from patterncc.kernels.score import Score
    >>> plan_options("forward", Score(0.1, softcap=30.0))["softcap"]
    True
    """
    options: dict[str, Any] = dict.fromkeys(
        ("softcap", "slopes", "bias", "sinks", "keys", "placed"), False
    )
    options["sinks"] = kind in SINKING and score.sinks is not None
    if kind in (*BARE, "combine"):
        return options
    by_place = score.slopes is not None or score.bias is not None
    return options | {
        "softcap": score.softcap > 0,
        "slopes": score.slopes is not None,
        "bias": score.bias is not None,
        "keys": score.keys is not None,
        "placed": by_place and score.query_at is not None,
    }


def arguments(score: Score, spec: Spec) -> dict[str, Any]:
    """The scale and the arguments of the options, by name."""
    given: dict[str, Any] = {
        "scale": score.scale,
        "softcap": score.softcap,
        "skew": spec.k_offset - spec.q_offset,
        "slopes": score.slopes,
        "bias": score.bias,
        "sinks": score.sinks,
        "keys": None if score.keys is None else _bytes(score.keys),
        "query_at": score.query_at,
        "key_at": score.key_at,
    }
    if score.bias is not None:
        given["radius"] = score.bias.shape[1] // 2
    return given


def _bytes(keys: Tensor) -> Tensor:
    """Bools as the bytes that they are, rows without gaps."""
    return keys.contiguous().view(torch.uint8)
