"""The backward kernels: row sums, the gradient of Q, those of K and V."""

from __future__ import annotations

from patterncc.kernels.emit import templates as t
from patterncc.kernels.emit.pieces import (
    cast,
    dim_test,
    dims,
    divided,
    dot,
    join,
    line,
    load_own,
    local,
    loop,
    mask,
    masking,
    sizes,
    store_own,
    stream,
    stream_base,
)
from patterncc.kernels.emit.templates import indented, piece
from patterncc.kernels.plan import Plan


def delta(plan: Plan) -> str:
    """The row sums that the other two need."""
    s = sizes(plan)
    seen = masking("seen[:, None]", dim_test(plan.value_dim, "vdims"))
    return piece(t.DELTA_BODY, step_q=s.step_q, vdim=s.vdim, mask=seen)


def dq(plan: Plan) -> str:
    """The gradient of Q, one row of tiles a program."""
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


def dkdv(plan: Plan) -> str:
    """The gradients of K and V, one column of tiles a program."""
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
