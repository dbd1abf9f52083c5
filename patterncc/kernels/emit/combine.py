"""The kernel that merges the parts of cut rows by their LSE."""

from __future__ import annotations

from patterncc.kernels.emit import score
from patterncc.kernels.emit import templates as t
from patterncc.kernels.emit.items import owner
from patterncc.kernels.emit.pieces import join, sizes, store_own
from patterncc.kernels.emit.templates import piece
from patterncc.kernels.plan import Plan

WHICH_SLOT = """
    # One program: $step_q rows of a line that was cut, of one of `units` heads.  Its parts are
    # merged in the order of their slots: the result has the same bits every time.
    pid = tl.program_id(0)
    part = pid % $programs
    slot = pid // $programs % slots
    unit = pid // $programs // slots
    item = parts + 4 * slot
    count = tl.load(item + 2)  # 0 at all but the first slot of a line
"""

MERGE = """
    start = tl.load(item) * $tile_q + part * $step_q
    first = start.to(tl.int64)
    rows = tl.arange(0, $step_q)
    vdims = tl.arange(0, $vdim)
    seen = start + rows < tl.where(count > 0, n, 0)
    m = tl.full([$step_q], -INF, tl.float32)
    l = tl.zeros([$step_q], tl.float32)
    acc = tl.zeros([$step_q, $vdim], tl.float32)
    at = (unit.to(tl.int64) * slots + slot) * $tile_q + part * $step_q + rows
    for _ in range(0, count):
        lse_tile = tl.load(part_lse + at, mask=seen, other=-INF)
        out_ptrs = part_out + at[:, None] * $vdim + vdims[None, :]
        out_tile = tl.load(out_ptrs, mask=seen[:, None], other=0.0)
        m_next = tl.maximum(m, lse_tile)
        base = tl.where(m_next == -INF, 0.0, m_next)  # a row that has read nothing yet
        fade = tl.math.exp2(m - base)
        weight = tl.math.exp2(lse_tile - base)
        l = l * fade + weight
        acc = acc * fade[:, None] + out_tile * weight[:, None]
        m = m_next
        at += $tile_q
"""


def combine(plan: Plan) -> str:
    """The body of the kernel."""
    s = sizes(plan)
    programs = s.tile_q // s.step_q
    sink = score.finish(plan)
    return join(
        piece(WHICH_SLOT, programs=programs, **vars(s)),
        owner(plan),
        score.opening(plan, "head") if sink else "",
        piece(MERGE, **vars(s)),
        sink,
        piece(t.NORMALISE),
        store_own(plan, "out", "acc", "head", "rows", "seen"),
        "tl.store(lse + (batch * heads + head) * n + first + rows, lse_tile * LN2, mask=seen)",
    )
