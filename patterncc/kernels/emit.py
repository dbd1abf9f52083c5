"""Plan -> Triton source: a pure function of typed numbers and names.

Imports neither torch nor triton.  The text looks hand-written because people read it: `patterncc
compile` leaves it beside the layout, and the cache keeps it under its own hash.  A mask class that
the plan lacks leaves no trace.
"""

from __future__ import annotations

from typing import assert_never

from patterncc.kernels import templates as t
from patterncc.kernels.pieces import (
    cast,
    dim_test,
    dims,
    divided,
    dot,
    join,
    line,
    load,
    load_own,
    local,
    loop,
    mask,
    mask_tests,
    masking,
    signature,
    sizes,
    softmax,
    store,
    store_own,
    stream,
    stream_base,
)
from patterncc.kernels.plan import VERSION, Plan
from patterncc.kernels.templates import indented, piece

PURPOSE = {
    "forward": "out and lse, one row of tiles a program",
    "delta": "row sums that both gradients need",
    "dq": "the gradient of Q, one row of tiles a program",
    "dkdv": "the gradients of K and V, one column of tiles a program",
    "decode": "out and lse of single query rows",
}


def emit(plan: Plan) -> str:
    """The module of one kernel: header, constants, mask tests, and the kernel named `entry(plan)`.

    >>> from patterncc.kernels.plan import Plan
    >>> source = emit(Plan("forward", "sm_90", "float16", 64, 64, (128, 128), 128, 64, 8, 3))
    >>> "in_zones" in source, source.count("@triton.jit")
    (False, 1)
    """
    match plan.kind:
        case "forward":
            body = _forward(plan)
        case "delta":
            body = _delta(plan)
        case "dq":
            body = _dq(plan)
        case "dkdv":
            body = _dkdv(plan)
        case "decode":
            body = _decode(plan)
        case _:
            assert_never(plan.kind)
    tests = [] if plan.kind == "delta" else mask_tests(plan)
    kernel = signature(plan, entry(plan)) + "\n" + indented(body)
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
        *([f"# Mask classes: {', '.join(classes)}."] if plan.kind != "delta" else []),
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
    if plan.kind in ("forward", "decode"):
        lines.append("LN2 = tl.constexpr(0.6931471805599453)")
    return "\n".join(lines)


def _forward(plan: Plan) -> str:
    s = sizes(plan)
    parts = s.tile_q // s.step_q
    there = "(col + cols < n_k)[:, None]" if plan.masked else ""
    step = join(
        stream(plan, "k", "kv_head", "col", there),
        f"s = {dot(plan, 'q_tile', 'k_tile.T')}",
        mask(
            plan,
            local("rows[:, None]", "row", parts, s.step_q),
            "cols[None, :]",
            f"col % {s.tile_k}",
        ),
        softmax(plan),
        stream(plan, "v", "kv_head", "col", there),
        f"acc = {dot(plan, cast(plan, 'p'), 'v_tile', 'acc')}",
    )
    return join(
        piece(t.WHICH_ROW, **vars(s)),
        dims(plan),
        "scale2 = scale * LOG2E",
        load_own(plan, "q", "head", "rows", "seen"),
        stream_base(plan, "k", "kv_head", "cols"),
        stream_base(plan, "v", "kv_head", "cols"),
        f"m = tl.full([{s.step_q}], -INF, tl.float32)",
        f"l = tl.zeros([{s.step_q}], tl.float32)",
        f"acc = tl.zeros([{s.step_q}, {s.vdim}], tl.float32)",
        line(plan, divided("row", parts), "head"),
        loop(plan, "col", s.tile_k, s.step_k, step),
        piece(t.FINISH),
        store_own(plan, "out", "acc", "head", "rows", "seen"),
        "tl.store(lse + unit.to(tl.int64) * n + first + rows, lse_tile, mask=seen)",
    )


def _delta(plan: Plan) -> str:
    s = sizes(plan)
    seen = masking("seen[:, None]", dim_test(plan.value_dim, "vdims"))
    return piece(t.DELTA_BODY, step_q=s.step_q, vdim=s.vdim, mask=seen)


def _dq(plan: Plan) -> str:
    s = sizes(plan)
    parts = s.tile_q // s.step_q
    there = "(col + cols < n_k)[:, None]" if plan.masked else ""
    step = join(
        stream(plan, "k", "kv_head", "col", there),
        f"s = {dot(plan, 'q_tile', 'k_tile.T')}",
        mask(
            plan,
            local("rows[:, None]", "row", parts, s.step_q),
            "cols[None, :]",
            f"col % {s.tile_k}",
        ),
        "p = tl.math.exp2(s * scale2 - lse_tile[:, None])",
        stream(plan, "v", "kv_head", "col", there),
        f"dp = {dot(plan, 'grad_tile', 'v_tile.T')}",
        "ds = p * (dp - delta_tile[:, None])",
        f"acc = {dot(plan, cast(plan, 'ds'), 'k_tile', 'acc')}",
    )
    return join(
        piece(t.WHICH_ROW, **vars(s)),
        dims(plan),
        "scale2 = scale * LOG2E",
        load_own(plan, "q", "head", "rows", "seen"),
        load_own(plan, "grad", "head", "rows", "seen"),
        "at_row = unit.to(tl.int64) * n + first + rows",
        "lse_tile = tl.load(lse2 + at_row, mask=seen, other=INF)",
        "delta_tile = tl.load(delta + at_row, mask=seen, other=0.0)",
        stream_base(plan, "k", "kv_head", "cols"),
        stream_base(plan, "v", "kv_head", "cols"),
        f"acc = tl.zeros([{s.step_q}, {s.dim}], tl.float32)",
        line(plan, divided("row", parts), "head"),
        loop(plan, "col", s.tile_k, s.step_k, step),
        "acc = acc * scale",
        store_own(plan, "grad_q", "acc", "head", "rows", "seen"),
    )


def _dkdv(plan: Plan) -> str:
    s = sizes(plan)
    parts = s.tile_k // s.step_k
    step = join(
        "live = at_q + rows < n",
        stream(plan, "q", "head", "at_q", "live[:, None]"),
        f"s = {dot(plan, 'k_tile', 'q_tile.T')}",
        mask(
            plan,
            local("cols[:, None]", "column", parts, s.step_k),
            "rows[None, :]",
            f"at_q % {s.tile_q}",
        ),
        "# Past the last query lse is +inf: p is 0 there, and so is every gradient.",
        "lse_tile = tl.load(lse2_base + at_q + rows, mask=live, other=INF)",
        "p = tl.math.exp2(s * scale2 - lse_tile[None, :])",
        stream(plan, "grad", "head", "at_q", "live[:, None]"),
        f"dv_acc = {dot(plan, cast(plan, 'p'), 'grad_tile', 'dv_acc')}",
        f"dp = {dot(plan, 'v_tile', 'grad_tile.T')}",
        "delta_tile = tl.load(delta_base + at_q + rows, mask=live, other=0.0)",
        "ds = p * (dp - delta_tile[None, :])",
        f"dk_acc = {dot(plan, cast(plan, 'ds'), 'q_tile', 'dk_acc')}",
    )
    of_head = join(
        "head = kv_head * group + member",
        stream_base(plan, "q", "head", "rows"),
        stream_base(plan, "grad", "head", "rows"),
        "lse2_base = lse2 + (batch * heads + head) * n",
        "delta_base = delta + (batch * heads + head) * n",
        line(plan, divided("column", parts), "head"),
        loop(plan, "at_q", s.tile_q, s.step_q, step),
    )
    return join(
        piece(t.WHICH_COLUMN, **vars(s)),
        dims(plan),
        "scale2 = scale * LOG2E",
        load_own(plan, "k", "kv_head", "cols", "there"),
        load_own(plan, "v", "kv_head", "cols", "there"),
        f"dk_acc = tl.zeros([{s.step_k}, {s.dim}], tl.float32)",
        f"dv_acc = tl.zeros([{s.step_k}, {s.vdim}], tl.float32)",
        "for member in range(0, group):\n" + indented(of_head),
        "dk_acc = dk_acc * scale",
        store_own(plan, "grad_k", "dk_acc", "kv_head", "cols", "there"),
        store_own(plan, "grad_v", "dv_acc", "kv_head", "cols", "there"),
    )


def _decode(plan: Plan) -> str:
    s = sizes(plan)
    packed, rows = plan.heads > 1, max(16, plan.heads)
    there = "(col + cols < n_k)[:, None]" if plan.masked else ""
    q_at = "q_at + (head[:, None].to(tl.int64) * q_head + dims[None, :])"
    out_at = "out_at + (head[:, None].to(tl.int64) * out_head + vdims[None, :])"
    step = join(
        stream(plan, "k", "kv_head", "col", there),
        f"s = {dot(plan, 'q_tile', 'k_tile.T')}",
        mask(plan, f"place % {s.tile_q}", "cols[None, :]", f"col % {s.tile_k}"),
        softmax(plan),
        stream(plan, "v", "kv_head", "col", there),
        f"acc = {dot(plan, cast(plan, 'p'), 'v_tile', 'acc')}",
    )
    return join(
        piece(t.WHICH_TOKEN_PACKED if packed else t.WHICH_TOKEN),
        piece(t.TOKEN_ROW, rows=rows, packed="group" if packed else 1, step_k=s.step_k),
        dims(plan),
        "scale2 = scale * LOG2E",
        "q_at = q + batch * q_batch + token.to(tl.int64) * q_row",
        load(plan, "q", q_at, "mine[:, None]", dim_test(plan.head_dim, "dims")),
        stream_base(plan, "k", "kv_head", "cols"),
        stream_base(plan, "v", "kv_head", "cols"),
        f"m = tl.full([{rows}], -INF, tl.float32)",
        f"l = tl.zeros([{rows}], tl.float32)",
        f"acc = tl.zeros([{rows}, {s.vdim}], tl.float32)",
        line(plan, f"place // {s.tile_q}", "first_head"),
        loop(plan, "col", s.tile_k, s.step_k, step).replace(
            "for _ in range(0, steps):",
            "steps = tl.where(inside, steps, 0)\nfor _ in range(0, steps):",
        ),
        piece(t.FINISH),
        "out_at = out + batch * out_batch + token.to(tl.int64) * out_row",
        store(plan, out_at, "acc", "mine[:, None]", dim_test(plan.value_dim, "vdims")),
        "tl.store(lse + (batch * heads + head) * count + token, lse_tile, mask=mine)",
    )
