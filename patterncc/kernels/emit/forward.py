"""The forward kernel."""

from __future__ import annotations

from patterncc.kernels.emit import templates as t
from patterncc.kernels.emit.pieces import (
    cast,
    dims,
    divided,
    dot,
    join,
    line,
    load_own,
    local,
    loop,
    mask,
    sizes,
    softmax,
    store_own,
    stream,
    stream_base,
)
from patterncc.kernels.emit.templates import piece
from patterncc.kernels.plan import Plan


def forward(plan: Plan) -> str:
    """The body of the kernel."""
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
