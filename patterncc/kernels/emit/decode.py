"""The decode kernel."""

from __future__ import annotations

from patterncc.kernels.emit import templates as t
from patterncc.kernels.emit.pieces import (
    cast,
    dim_test,
    dims,
    dot,
    join,
    line,
    load,
    loop,
    mask,
    sizes,
    softmax,
    store,
    stream,
    stream_base,
)
from patterncc.kernels.emit.templates import piece
from patterncc.kernels.plan import Plan


def decode(plan: Plan) -> str:
    """The body of the kernel."""
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
