"""The decode kernel: a few query rows against a cache, whose keys are split over programs."""

from __future__ import annotations

from dataclasses import replace

from patterncc.kernels.emit import decode_text as d
from patterncc.kernels.emit import score
from patterncc.kernels.emit import templates as t
from patterncc.kernels.emit.items import STEP_ON, SWITCH, without_words
from patterncc.kernels.emit.pieces import cast, dim_test, dims, dot, join, load, sizes, store
from patterncc.kernels.emit.templates import indented, piece
from patterncc.kernels.plan import Plan

ROWS = 16  # of a product's left side, at least


def rows_of(plan: Plan) -> int:
    """Rows of a program's tile.

    >>> rows_of(Plan("decode", "sm_90", "float16", 64, 64, (64, 64), 16, 64, 4, 3, heads=32))
    32
    """
    return max(ROWS, plan.heads)


def decode(plan: Plan) -> str:
    """The body of the kernel."""
    rows, s = rows_of(plan), sizes(plan)
    ratio = s.tile_k // s.step_k
    named = vars(s) | {"rows": rows, "here": "col", "tile": s.tile_k, "step": s.step_k}
    named |= {"times": f" * {ratio}" if ratio > 1 else "", "over": f" // {ratio}" * (ratio > 1)}
    step = join(
        _there(plan),
        _read(plan),
        _stream(plan, "k"),
        f"s = {dot(plan, 'q_tile', 'k_tile.T')}",
        score.scores(replace(plan, keys=False), "place[:, None]", "(col + cols)[None, :]"),
        f"s = tl.where({'keep' if plan.masked else 'there[None, :]'}, s, -INF)",
        _softmax(plan),
        _stream(plan, "v"),
        f"acc = {dot(plan, cast(plan, 'p'), 'v_tile', 'acc')}",
    )
    loop = join(
        piece(d.SHARE, **named),
        _page(plan),
        "for _ in range(0, steps):",
        indented(join(step, piece(STEP_ON, **named), piece(SWITCH, **named), _page(plan))),
    )
    return join(
        piece(d.WHICH_ROWS, **named),
        _pattern(plan),
        piece(d.STEPS, **named),
        dims(plan),
        "scale2 = scale * LOG2E",
        "q_at = q + batch * q_batch + head.to(tl.int64) * q_head + token.to(tl.int64) * q_row",
        load(
            plan,
            "q",
            "q_at[:, None] + dims[None, :]",
            "mine[:, None]",
            dim_test(plan.head_dim, "dims"),
        ),
        _base(plan, "k", "dims"),
        _base(plan, "v", "vdims"),
        "table = block_table + batch * table_width" if plan.page else "",
        f"m = tl.full([{rows}], -INF, tl.float32)",
        f"l = tl.zeros([{rows}], tl.float32)",
        f"acc = tl.zeros([{rows}, {s.vdim}], tl.float32)",
        score.opening(plan, "head"),
        loop if plan.masked else without_words(loop),
        piece(d.MEET, **named),
        "if turn == parts - 1:",
        indented(
            join(
                piece(d.MERGE, **named),
                piece(d.CLEAR),
                score.finish(plan),
                piece(t.NORMALISE),
                "out_at = out + batch * out_batch + head.to(tl.int64) * out_head",
                "out_at += token.to(tl.int64) * out_row",
                store(
                    plan,
                    "out_at[:, None] + vdims[None, :]",
                    "acc",
                    "written[:, None]",
                    dim_test(plan.value_dim, "vdims"),
                ),
                "lse_at = lse + (batch * heads + head) * count + token",
                "tl.store(lse_at, lse_tile * LN2, mask=written)",
            )
        ),
    )


def _pattern(plan: Plan) -> str:
    """Where the lines of this program's pattern start."""
    if plan.per_sequence:
        return piece(d.PATTERN_OF_SEQUENCE)
    return d.PATTERN_OF_HEAD if plan.per_head else ""


def _base(plan: Plan, x: str, columns: str) -> str:
    """Where the steps of K or V start; offsets are 64-bit, for a cache may be large."""
    if plan.page and plan.page < plan.bn:
        along, first = f"(cols % {plan.page})", ""
    else:
        along, first = "cols", "" if plan.page else f" + batch * {x}_batch"
    return join(
        f"{x}_base = {x} + kv_head * {x}_head{first}",
        f"{x}_base += {along}.to(tl.int64)[:, None] * {x}_row + {columns}[None, :]",
    )


def _stream(plan: Plan, x: str) -> str:
    """The keys or values of one step; zeros where no key is."""
    dim, columns = (plan.head_dim, "dims") if x == "k" else (plan.value_dim, "vdims")
    if not plan.page:
        at = f"{x}_base + col.to(tl.int64) * {x}_row"
    elif plan.page < plan.bn:
        at = f"{x}_base + page.to(tl.int64)[:, None] * {x}_batch"
    else:
        within = f"(col % {plan.page}).to(tl.int64) * {x}_row"
        at = f"{x}_base + (page.to(tl.int64) * {x}_batch + {within})"
    return load(
        plan, x, at, f"{'read' if plan.masked else 'there'}[:, None]", dim_test(dim, columns)
    )


def _page(plan: Plan) -> str:
    """The page of a step, loaded a step ahead."""
    if not plan.page:
        return ""
    return piece(d.PAGES if plan.page < plan.bn else d.PAGE, page=plan.page)


def _there(plan: Plan) -> str:
    """Which keys of a step count."""
    there = "there = col + cols < length"
    if plan.page:
        there = d.PAGES_THERE if plan.page < plan.bn else d.PAGE_THERE
    return join(there, d.COUNTED if plan.keys else "")


def _read(plan: Plan) -> str:
    """Which pairs are edges (`keep`), and which keys some row reads (`read`)."""
    if not plan.masked:
        return ""
    kept = d.KEEP_BOTH if plan.zones and plan.bits else d.KEEP_ZONES if plan.zones else d.KEEP_BITS
    body = piece(
        d.MASKED,
        tile_q=plan.block[0],
        across=f"across = cols[None, :] + col % {plan.block[1]}" if plan.zones else "",
        keep=piece(kept, tile_k=plan.block[1]),
    ).replace("\n\n", "\n")
    return join(piece(d.READ), f"if word > 0:\n{indented(body)}" if plan.full else body)


def _softmax(plan: Plan) -> str:
    """The running maximum and sum, guarded: a row may have read nothing yet."""
    return piece(
        t.SOFTMAX,
        guard=t.GUARD,
        shift="base",
        largest=score.largest(plan, 1),
        exponent=score.exponent(plan, "base[:, None]"),
    )
