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
BY_KEY = ("dkdv", "single")  # kinds that keep keys and walk queries
SINKING = ("forward", "combine", "decode")  # kinds that end a row's sum


def with_options(plan: Plan, score: Score) -> Plan:
    """The plan of a plain kernel with a score's options, its steps cut where they take registers.

    Found by compiling for sm_90, and used on every target: a tile of biases passes through shared
    memory, and the derivative of a softcap lives beside the scores.
    """
    plan = replace(plan, **plan_options(plan.kind, score))
    heavy = plan.bias or (plan.softcap and (plan.slopes or plan.kind in BY_KEY))
    if not heavy or plan.head_dim <= 64 or plan.dtype == "float32" or plan.kind == "decode":
        return plan
    if plan.kind in BY_KEY:
        return replace(plan, bm=min(plan.bm, 32))
    return replace(plan, bn=min(plan.bn, 64 if plan.kind == "forward" else 32))


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
