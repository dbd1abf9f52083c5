"""The lines that the options of a score add to a kernel; an absent option leaves no trace.

A kernel holds the raw products in `s`.  Without softcap, slopes and bias, the scale is part of the
exponent (`s * scale2 - m`, one instruction); with one of them `scores` brings `s` to base 2 before
the mask, and the exponent is `s - m`.  `d_scores` takes the gradient `ds` by the score back to that
by the scaled product.
"""

from __future__ import annotations

from patterncc.kernels.emit.templates import piece
from patterncc.kernels.plan import Plan

# tanh(y) = 1 - 2 / (e + 1) with e = exp(2 y), on the unit that makes exponentials.
SOFTCAP = """
    limited = 1.0 - 2.0 / (tl.math.exp2(s * rate) + 1.0)
    s = limited * most2
"""

# In fp32 the difference above would lose digits of a small score: there the series of tanh.
SOFTCAP_EXACT = """
    near = s * part_of_most
    far = 1.0 - 2.0 / (tl.math.exp2(s * rate) + 1.0)
    y2 = near * near
    near *= 1.0 - y2 * (0.33333334 - y2 * (0.13333334 - y2 * (0.053968254 - y2 * 0.021869488)))
    limited = tl.where(y2 < 0.09, near, far)
    s = limited * most2
"""

BIAS = """
    column = tl.minimum(tl.maximum($apart, -radius), radius) + radius
    s += tl.load(bias_at + column) * LOG2E
"""

SINK = """
    # The sink joins the sum of its row: a key without a value.
    top = tl.maximum(m, sink2)
    base = tl.where(top == -INF, 0.0, top)
    fade = tl.math.exp2(m - base)
    l = l * fade + tl.math.exp2(sink2 - base)
    acc = acc * fade[:, None]
    m = top
"""


def pointers(plan: Plan) -> tuple[str, ...]:
    """Further tensor arguments of a kernel, after its tables."""
    return (
        *(("slopes",) if plan.slopes else ()),
        *(("bias",) if plan.bias else ()),
        *(("sinks",) if plan.sinks else ()),
        *(("keys",) if plan.keys else ()),
        *(("query_at", "key_at") if plan.placed else ()),
    )


def scalars(plan: Plan) -> tuple[str, ...]:
    """Further numbers, after its other numbers.

    skew: position of the first key minus that of the first query.  radius: of the bias's table.
    """
    return (
        *(("softcap",) if plan.softcap else ()),
        *(("skew",) if plan.slopes or plan.bias else ()),
        *(("radius",) if plan.bias else ()),
    )


def opening(plan: Plan, head: str) -> str:
    """Lines before the loop: numbers and pointers of one head.

    In decode `head` is a vector, one a row, of which only those with `mine` exist.
    """
    many = plan.kind == "decode"
    column, guard = ("[:, None]", ", mask=mine, other=0.0") if many else ("", "")
    row = f"tl.where(mine, {head}, 0)" if many else head
    lines = []
    if plan.softcap:
        lines += ["rate = 2.0 * scale2 / softcap", "most2 = softcap * LOG2E"]
        lines += ["part_of_most = scale / softcap"] if plan.dtype == "float32" else []
    if plan.slopes:
        lines.append(f"slope2 = tl.load(slopes + {head}{guard}){column} * LOG2E")
    if plan.bias:
        lines.append(f"bias_at = bias + {row}{column} * (2 * radius + 1)")
    if plan.sinks:
        lines.append(f"sink2 = tl.load(sinks + {head}{guard}) * LOG2E")
    if plan.keys:
        lines.append("keys_at = keys + batch.to(tl.int64) * n_k")
    return "\n".join(lines)


def scores(plan: Plan, i: str, j: str) -> str:
    """Lines after the product: `s` in base 2 where `plan.scored`, -inf at padded keys.

    i, j: expressions that broadcast to the tile: query rows and key columns, counted from the
    layout's first.
    """
    lines = []
    if plan.softcap:
        lines.append(piece(SOFTCAP_EXACT if plan.dtype == "float32" else SOFTCAP))
    elif plan.scored:
        lines.append("s = s * scale2")
    lines.append(distances(plan, i, j))
    if plan.slopes:
        lines.append("s -= slope2 * tl.abs(key_at_f - query_at_f)")
    if plan.bias:
        lines.append(piece(BIAS, apart="key_place - query_place"))
    if plan.keys:
        lines.append(f"key_slot = {j}")
        lines.append("readable = tl.load(keys_at + key_slot, mask=key_slot < n_k, other=0)")
        lines.append("s = tl.where(readable != 0, s, -INF)")
    return "\n".join(x for x in lines if x)


def distances(plan: Plan, i: str, j: str) -> str:
    """Lines that say where queries and keys of a tile stand; nothing where no option asks."""
    if not (plan.slopes or plan.bias):
        return ""
    lines = [f"query_place = {i}", f"key_place = {j} + skew"]
    if plan.placed:
        lines = [
            *(f"query_slot = {i}", f"key_slot = {j}"),
            "query_place = tl.load(query_at + query_slot, mask=query_slot < n, other=0)",
            "key_place = tl.load(key_at + key_slot, mask=key_slot < n_k, other=0) + skew",
        ]
    if plan.slopes:  # vectors become floats, not the tile: half the work
        lines += ["query_at_f = query_place.to(tl.float32)", "key_at_f = key_place.to(tl.float32)"]
    return "\n".join(lines)


def largest(plan: Plan, axis: int) -> str:
    """The largest score of each row, in base 2.

    >>> largest(Plan("delta", "sm_90", "float16", 64, 64, (64, 64), 64, 64, 4, 1), 1)
    'tl.max(s, 1) * scale2'
    """
    return f"tl.max(s, {axis})" if plan.scored else f"tl.max(s, {axis}) * scale2"


def exponent(plan: Plan, shift: str) -> str:
    """The exponent of 2 that makes the probability.

    >>> exponent(Plan("delta", "sm_90", "float16", 64, 64, (64, 64), 64, 64, 4, 1), "m[:, None]")
    's * scale2 - m[:, None]'
    """
    return f"s - {shift}" if plan.scored else f"s * scale2 - {shift}"


def d_scores(plan: Plan) -> str:
    """Lines that turn `ds`, the gradient by the score, into that by the scaled product."""
    return "ds *= 1.0 - limited * limited" if plan.softcap else ""


def finish(plan: Plan) -> str:
    """Lines before a row's sum is used: the sink joins `m` and `l`."""
    return piece(SINK) if plan.sinks else ""
