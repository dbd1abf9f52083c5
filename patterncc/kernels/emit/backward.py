"""The backward kernels: row sums, the gradient of Q, those of K and V, all three at once.

`dq` and `dkdv` add in a fixed order and use no atomic, so they give the same bits every time.
`single` computes each probability once instead of twice and adds the gradient of Q atomically.
"""

from __future__ import annotations

from patterncc.kernels.emit import backward_text as own
from patterncc.kernels.emit import score
from patterncc.kernels.emit import templates as t
from patterncc.kernels.emit.backward_pieces import (
    kept,
    local,
    store_result,
    stream_member,
    walk_groups,
)
from patterncc.kernels.emit.items import owner, walk
from patterncc.kernels.emit.pieces import (
    cast,
    dim_test,
    dims,
    dot,
    join,
    load_own,
    mask,
    masking,
    sizes,
    stream,
    stream_base,
)
from patterncc.kernels.emit.templates import piece
from patterncc.kernels.plan import Plan


def delta(plan: Plan) -> str:
    """The row sums that the others need."""
    s = sizes(plan)
    seen = masking("seen[:, None]", dim_test(plan.value_dim, "vdims"))
    return piece(t.DELTA_BODY, step_q=s.step_q, vdim=s.vdim, mask=seen)


def dq(plan: Plan) -> str:
    """The gradient of Q, an item of a row of tiles a program."""
    s = sizes(plan)
    there = "(col + cols < n_k)[:, None]" if plan.masked else ""
    step = join(
        stream(plan, "k", "kv_head", "col", there),
        f"s = {dot(plan, 'q_tile', 'k_tile.T')}",
        score.scores(plan, "(start + rows)[:, None]", "(col + cols)[None, :]"),
        mask(plan, local(plan, "rows"), "cols[None, :]", f"col % {s.tile_k}"),
        f"p = tl.math.exp2({score.exponent(plan, 'lse_tile[:, None]')})",
        stream(plan, "v", "kv_head", "col", there),
        f"dp = {dot(plan, 'grad_tile', 'v_tile.T')}",
        "ds = p * (dp - delta_tile[:, None])",
        score.d_scores(plan),
        f"acc = {dot(plan, cast(plan, 'ds'), 'k_tile', 'acc')}",
    )
    return join(
        kept(plan, "rows"),
        dims(plan),
        "scale2 = scale * LOG2E",
        load_own(plan, "q", "head", "rows", "seen"),
        load_own(plan, "grad", "head", "rows", "seen"),
        "at_row = (batch * heads + head) * n + first + rows",
        "lse_tile = tl.load(lse2 + at_row, mask=seen, other=INF)",
        "delta_tile = tl.load(delta + at_row, mask=seen, other=0.0)",
        stream_base(plan, "k", "kv_head", "cols"),
        stream_base(plan, "v", "kv_head", "cols"),
        f"acc = tl.zeros([{s.step_q}, {s.dim}], tl.float32)",
        score.opening(plan, "head"),
        walk(plan, "col", step),
        "acc = acc * scale",
        "slot = tl.load(item + 5)",
        store_result(plan, "rows", "grad_q", "acc"),
    )


def dkdv(plan: Plan) -> str:
    """The gradients of K and V, an item of a column of tiles a program."""
    return _by_column(plan, "")


def single(plan: Plan) -> str:
    """dkdv, and each step's share of the gradient of Q added to a sum in memory."""
    there = dim_test(plan.head_dim, "dims")
    if plan.target in ("sm_80", "interpreter") or plan.bm >= 64:
        share = dot(plan, f"{cast(plan, 'ds')}.T", "k_tile")
        place, live = "(at_row + rows)[:, None] * $ + dims[None, :]", "live[:, None]"
    else:  # wgmma has 64 rows at least: fewer queries stand as its columns
        share = dot(plan, "k_tile.T", cast(plan, "ds"))
        place, live = "(at_row + rows)[None, :] * $ + dims[:, None]", "live[None, :]"
        there = there.replace("[None, :]", "[:, None]")
    mask = " & ".join(filter(None, (live, there)))
    return _by_column(
        plan,
        join(
            f"dq = {share}",
            f"to_q = sum_q + ({place.replace('$', str(plan.head_dim))})",
            f'tl.atomic_add(to_q, dq, mask={mask}, sem="relaxed")',
        ),
    )


def _by_column(plan: Plan, more: str) -> str:
    """The kernels that keep keys and walk queries; `more` stands at the end of a step."""
    s = sizes(plan)
    step = join(
        "# Past the last query lse is +inf: p is 0 there, and so is every gradient.",
        "live = at_q + rows < n",
        "reader = head + member",
        "at_row = (batch * heads + reader) * n + at_q",
        score.opening(plan, "reader"),
        stream_member(plan, "q"),
        f"s = {dot(plan, 'k_tile', 'q_tile.T')}",
        score.scores(plan, "(at_q + rows)[None, :]", "(start + cols)[:, None]"),
        mask(plan, local(plan, "columns"), "rows[None, :]", f"at_q % {s.tile_q}"),
        "lse_tile = tl.load(lse2 + at_row + rows, mask=live, other=INF)",
        f"p = tl.math.exp2({score.exponent(plan, 'lse_tile[None, :]')})",
        stream_member(plan, "grad"),
        f"dv_acc = {dot(plan, cast(plan, 'p'), 'grad_tile', 'dv_acc')}",
        f"dp = {dot(plan, 'v_tile', 'grad_tile.T')}",
        "delta_tile = tl.load(delta + at_row + rows, mask=live, other=0.0)",
        "ds = p * (dp - delta_tile[None, :])",
        score.d_scores(plan),
        f"dk_acc = {dot(plan, cast(plan, 'ds'), 'q_tile', 'dk_acc')}",
        more,
    )
    return join(
        kept(plan, "columns"),
        dims(plan),
        "scale2 = scale * LOG2E",
        load_own(plan, "k", "kv_head", "cols", "there"),
        load_own(plan, "v", "kv_head", "cols", "there"),
        stream_base(plan, "q", "head", "rows"),
        stream_base(plan, "grad", "head", "rows"),
        f"dk_acc = tl.zeros([{s.step_k}, {s.dim}], tl.float32)",
        f"dv_acc = tl.zeros([{s.step_k}, {s.vdim}], tl.float32)",
        walk_groups(plan, step),
        "dk_acc = dk_acc * scale",
        "slot = tl.load(item + 5)",
        "summed = head // members",
        store_result(plan, "columns", "grad_k", "dk_acc"),
        store_result(plan, "columns", "grad_v", "dv_acc"),
    )


def gather(plan: Plan) -> str:
    """The parts of split lines, added up; rows and columns, Q, K and V alike."""
    s = sizes(plan)
    seen = " & ".join(filter(None, ("seen[:, None]", dim_test(plan.head_dim, "dims"))))
    parts, step = plan.block[0] // plan.bm, plan.bm
    named = {"parts": parts, "step": step, "tile": plan.block[0], "dim": s.dim, "seen": seen}
    return join(
        piece(own.WHICH_SLOT, **named),
        owner(plan, members=True),
        piece(own.GATHER_BODY, width=plan.head_dim, **named),
    )
