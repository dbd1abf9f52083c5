"""Plan -> Triton source: a pure function of typed numbers and names.

The text looks hand-written because people read it: `patterncc
compile` leaves it beside the layout, and the cache keeps it under its own hash.  A mask class that
the plan lacks leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable

from patterncc.kernels.emit.backward import delta, dkdv, dq, gather, single
from patterncc.kernels.emit.combine import combine
from patterncc.kernels.emit.decode import decode
from patterncc.kernels.emit.forward import forward
from patterncc.kernels.emit.pieces import mask_tests, signature
from patterncc.kernels.emit.score_grads import bias, slopes
from patterncc.kernels.emit.templates import indented
from patterncc.kernels.plan import VERSION, Kind, Plan

BODIES: dict[Kind, Callable[[Plan], str]] = {
    "forward": forward,
    "combine": combine,
    "delta": delta,
    "dq": dq,
    "dkdv": dkdv,
    "single": single,
    "gather": gather,
    "slopes": slopes,
    "bias": bias,
    "decode": decode,
}
"""What writes the body of each kind; a kind is listed when its kernel exists."""

UNMASKED = ("combine", "delta", "gather")  # kinds that look at no tile

PURPOSE = {
    "forward": "out and lse, an item of a row of tiles a program",
    "combine": "the parts of cut rows merged by their LSE",
    "delta": "row sums that both gradients need",
    "dq": "the gradient of Q, an item of a row of tiles a program",
    "dkdv": "the gradients of K and V, an item of a column of tiles a program",
    "single": "all three gradients in one pass over columns, that of Q by atomic sums",
    "gather": "the parts of lines that were split, added up",
    "slopes": "the gradient of ALiBi slopes, partial sums",
    "bias": "the gradient of a relative bias, partial sums",
    "decode": "out and lse of single query rows",
}


def emit(plan: Plan) -> str:
    """The module of one kernel: header, constants, mask tests, and the kernel named `entry(plan)`.

    >>> from patterncc.kernels.plan import Plan
    >>> source = emit(Plan("forward", "sm_90", "float16", 64, 64, (128, 128), 128, 64, 8, 3))
    >>> "in_zones" in source, source.count("@triton.jit")
    (False, 1)
    """
    tests = [] if plan.kind in UNMASKED else mask_tests(plan)
    kernel = signature(plan, entry(plan)) + "\n" + indented(BODIES[plan.kind](plan))
    return "\n\n\n".join([_header(plan), *tests, kernel]) + "\n"


def entry(plan: Plan) -> str:
    """The name of the kernel in the emitted module."""
    return f"{plan.kind}_kernel"


def _header(plan: Plan) -> str:
    classes = [
        *(["full"] if plan.full else []),
        *([f"zones (up to {plan.zones} a mask)"] if plan.zones else []),
        *(["bits"] if plan.bits else []),
    ]
    same = plan.head_dim == plan.value_dim
    dim = f"{plan.head_dim}" if same else f"{plan.head_dim} / {plan.value_dim}"
    lines = [
        f"# patterncc {plan.kind}: {PURPOSE[plan.kind]}.",
        f"# Generated from plan {plan.digest} by emitter {VERSION}.",
        f"# {plan.target}, {plan.dtype}, head dim {dim}, tiles {plan.block[0]} x {plan.block[1]}, "
        f"steps {plan.bm} x {plan.bn}, {plan.warps} warps, {plan.stages} stages.",
        *([f"# Mask classes: {', '.join(classes)}."] if plan.kind not in UNMASKED else []),
        "# Lengths, windows and documents are data: they come in through the run and mask tables.",
        "#",
        *(f"#   {name} = {value}" for name, value in plan.values()),
        "",
        "import triton",
        "import triton.language as tl",
        "",
        'INF = tl.constexpr(float("inf"))',
        "LOG2E = tl.constexpr(1.4426950408889634)",
    ]
    if plan.kind in ("forward", "combine", "decode"):
        lines.append("LN2 = tl.constexpr(0.6931471805599453)")
    return "\n".join(lines)
