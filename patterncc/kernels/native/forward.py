"""C++ text of the forward pass.

One item is up to 64 queries of one head.  Its tiles are read in steps of up to 128 keys; for each
step and each group of `G` queries: S = K Q^T, masks and the running maximum as S leaves registers,
P = 2^(S - base), O^T += V^T P.  Keys that none of the 64 queries reads are left out of a step.
"""

from __future__ import annotations

import textwrap

from patterncc.kernels.emit.pieces import join
from patterncc.kernels.emit.templates import indented, piece
from patterncc.kernels.native import forward_text as t
from patterncc.kernels.native import score
from patterncc.kernels.native.call import INPUTS, LAYOUT, SCORE, SHARED, Field, struct_text
from patterncc.kernels.native.masks import MASKS
from patterncc.kernels.native.micro import micro
from patterncc.kernels.native.plan import NativePlan

FIELDS: tuple[Field, ...] = (
    *INPUTS,
    ("out", "void *"),
    ("lse", "float *"),
    ("parts", "float *"),
    ("done", "int32_t *"),
    ("heavy", "long"),
    ("cuts", "long"),
    *LAYOUT,
    *SCORE,
    *SHARED,
)
"""Of what `patterncc_forward` takes; out [batch, heads, n, DV] and lse are contiguous.

heavy: so many of the longest lines of each pattern are cut into `cuts` items each.  parts: memory
for what those find, `part_size` floats an item; done: one 0 for each 64 queries of them.
"""


def part_size(plan: NativePlan) -> int:
    """Floats that an item of a cut line leaves behind: O^T, base and sum of 64 queries."""
    return 64 * (plan.value_dim + 2)


def forward(plan: NativePlan) -> str:
    """The whole source, after its header comment."""
    pieces = [
        micro(plan),
        struct_text(FIELDS),
        piece(MASKS),
        score.functions(plan),
        _state(plan),
        piece(t.LOAD_QUERY_PAIRS if plan.dot else t.LOAD_QUERIES),
        piece(t.OPEN_GROUP, positions=_inside(_positions(plan), 1)),
        piece(_keys(plan)),
        _scores(plan),
        piece(t.PROBABILITIES, body=_placed(piece(t.IN_PAIRS if plan.dot else t.IN_FP32), 1)),
        _values(plan),
        _attend(plan),
        piece(
            t.FINISH,
            unit=score.unit(plan),
            sink=_inside(piece(score.SINK) if plan.sinks else "", 2),
        ),
        piece(t.MERGE, to_base_2=score.to_base_2(plan)),
        _item(plan),
    ]
    return "\n\n".join(p for p in pieces if p) + "\n"


def _inside(text: str, levels: int) -> str:
    """Lines that follow on the line before them; nothing where there are none."""
    return "\n" + indented(text, levels) if text else ""


def _placed(text: str, levels: int) -> str:
    """Lines at the place of a name that is indented already."""
    return indented(text, levels).lstrip()


def _state(plan: NativePlan) -> str:
    stored = "int32_t" if plan.dot else "float"
    bits = [f"1 << {lane}" for lane in range(plan.lanes)]
    return piece(
        t.STATE,
        lane_bits=_placed(textwrap.fill(", ".join(bits), 84), 1),
        q_type=stored,
        q_rows="PAIRS" if plan.dot else "D",
        k_type=stored,
        k_row="PAIRS" if plan.dot else "D",
        v_type=stored,
        v_rows="STEP / 2" if plan.dot else "STEP",
    )


def _positions(plan: NativePlan) -> str:
    return (
        piece(t.POSITIONS, query_at=score.query_at(plan, "slot")) if score.positioned(plan) else ""
    )


def _keys(plan: NativePlan) -> str:
    if plan.dot:
        return t.LOAD_PAIRS
    return t.LOAD_IN_PLACE if plan.dtype == "float32" else t.LOAD_WIDENED


def _scores(plan: NativePlan) -> str:
    product = (
        "multiply_pairs<R, 2>(c, PAIRS, keys.k + j * PAIRS, PAIRS, 1, g.q, G);"
        if plan.dot
        else "multiply<R, 2>(c, D, keys.k + j * D, D, 1, g.q, G);"
    )
    lines = score.lines(plan, "g.at[n]", "s.at[j + m]")
    return piece(
        t.SCORES,
        opening=_inside(score.opening(plan), 1),
        product=product,
        lines=_inside(lines, 4),
    )


def _values(plan: NativePlan) -> str:
    product = (
        "multiply_pairs<R, 2>(c, (high - low + 1) / 2, keys.v + low / 2 * DV + d, 1, DV,\n"
        "                             (int32_t *)s.s + low / 2 * G, G);"
        if plan.dot
        else "multiply<R, 2>(c, high - low, keys.v + low * keys.v_row + d, 1, keys.v_row,\n"
        "                       s.s + low * G, G);"
    )
    return piece(t.VALUES, product=product)


def _attend(plan: NativePlan) -> str:
    even = "if (low & 1) low--, all = false;  // pairs start at even keys" if plan.dot else ""
    at = score.key_at(plan, "first + (holes ? s.index[j] : j)")
    positions = f"for (long j = 0; j < kept; j++) s.at[j] = {at};"
    text = piece(
        t.ATTEND,
        to_base_2=score.to_base_2(plan),
        even=even or "@",
        key_positions=_inside(positions if score.positioned(plan) else "", 1),
    )
    return "\n".join(x for x in text.splitlines() if x.strip() != "@")


def _item(plan: NativePlan) -> str:
    walk = join(
        "" if plan.keys else piece(t.WALK_FULL),
        piece(t.WALK, padding=_inside(piece(t.PADDING) if plan.keys else "", 2)),
    )
    keys = "const char *keys = (const char *)call.keys + batch * call.n_k;"
    return piece(
        t.ITEM,
        walk=_placed(walk, 2),
        keys=_inside(keys if plan.keys else "", 1),
    )
