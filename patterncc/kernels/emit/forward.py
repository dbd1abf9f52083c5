"""The forward kernel."""

from __future__ import annotations

from patterncc.kernels.emit import score
from patterncc.kernels.emit import templates as t
from patterncc.kernels.emit.items import owner, walk, which_item
from patterncc.kernels.emit.pieces import (
    cast,
    dims,
    dot,
    join,
    load_own,
    mask,
    sizes,
    softmax,
    store_own,
    stream,
    stream_base,
)
from patterncc.kernels.emit.templates import indented, piece
from patterncc.kernels.plan import Plan

OWN_ROWS = """
    kv_head = head // group
    start = tl.load(item) * $tile_q$part
    first = start.to(tl.int64)
    rows = tl.arange(0, $step_q)
    cols = tl.arange(0, $step_k)
    seen = start + rows < n
"""

STORE_PART = """
    # A part of a cut line, in fp32; the combine kernel merges them.
    place = (unit.to(tl.int64) * slots + slot) * $tile_q$part + rows
    tl.store(part_out + place[:, None] * $vdim + vdims[None, :], acc)
    tl.store(part_lse + place, lse_tile)
"""


def forward(plan: Plan) -> str:
    """The body of the kernel."""
    s = sizes(plan)
    programs = s.tile_q // s.step_q
    part = f" + part * {s.step_q}" if programs > 1 else ""
    there = "(col + cols < n_k)[:, None]" if plan.masked else ""
    step = join(
        stream(plan, "k", "kv_head", "col", there),
        f"s = {dot(plan, 'q_tile', 'k_tile.T')}",
        score.scores(plan, "(start + rows)[:, None]", "(col + cols)[None, :]"),
        mask(plan, f"rows[:, None]{part}", "cols[None, :]", f"col % {s.tile_k}"),
        softmax(plan),
        stream(plan, "v", "kv_head", "col", there),
        f"acc = {dot(plan, cast(plan, 'p'), 'v_tile', 'acc')}",
    )
    sink = score.finish(plan)
    whole = join(
        store_own(plan, "out", "acc", "head", "rows", "seen"),
        "tl.store(lse + (batch * heads + head) * n + first + rows, lse_tile * LN2, mask=seen)",
    )
    return join(
        which_item(plan, programs),
        owner(plan),
        piece(OWN_ROWS, part=part, **vars(s)),
        dims(plan),
        "scale2 = scale * LOG2E",
        load_own(plan, "q", "head", "rows", "seen"),
        stream_base(plan, "k", "kv_head", "cols"),
        stream_base(plan, "v", "kv_head", "cols"),
        f"m = tl.full([{s.step_q}], -INF, tl.float32)",
        f"l = tl.zeros([{s.step_q}], tl.float32)",
        f"acc = tl.zeros([{s.step_q}, {s.vdim}], tl.float32)",
        score.opening(plan, "head"),
        "slot = tl.load(item + 5)",
        walk(plan, "col", step),
        f"if slot < 0:\n{indented(sink)}" if sink else "",
        piece(t.NORMALISE),
        f"if slot < 0:\n{indented(whole)}",
        f"else:\n{indented(piece(STORE_PART, part=part, **vars(s)))}",
    )
