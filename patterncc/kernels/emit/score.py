"""The lines that the options of a score add to a kernel; an absent option leaves no trace.

A kernel holds the raw products in `s`.  Without softcap, slopes and bias, the scale is part of the
exponent (`s * scale2 - m`, one instruction); with one of them `scores` brings `s` to base 2 before
the mask, and the exponent is `s - m`.  `d_scores` takes the gradient `ds` by the score back to that
by the scaled product.
"""

from __future__ import annotations

from patterncc.kernels.plan import Plan


def pointers(plan: Plan) -> tuple[str, ...]:
    """Further tensor arguments of a kernel, after its tables."""
    return ()


def scalars(plan: Plan) -> tuple[str, ...]:
    """Further numbers, after its other numbers."""
    return ()


def opening(plan: Plan, head: str) -> str:
    """Lines before the loop: numbers and pointers of one head."""
    return ""


def scores(plan: Plan, i: str, j: str) -> str:
    """Lines after the product: `s` in base 2 where `plan.scored`, -inf at padded keys.

    i, j: expressions that broadcast to the tile: query rows and key columns, counted from the
    layout's first.
    """
    return ""


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
    return ""


def finish(plan: Plan) -> str:
    """Lines before a row's sum is used: the sink joins `m` and `l`."""
    return ""
