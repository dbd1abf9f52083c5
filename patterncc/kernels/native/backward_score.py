"""C++ text of what the options of a score add to the backward pass; an absent one leaves no trace.

`x` is a vector of scores on its way from scaled product to exponent, `d` one of gradients on its
way back: `scores` and `d_scores` stand where `backward.PRODUCTS` has both.
"""

from __future__ import annotations

from dataclasses import replace

from patterncc.kernels.emit.pieces import join
from patterncc.kernels.emit.templates import piece
from patterncc.kernels.native.plan import NativePlan
from patterncc.kernels.native.score import functions

SOFTCAP = """
    x = softened(x, call.softcap);
    vec share = x / call.softcap;  // its square is what the slope of tanh lacks of 1
    store(ds + m * G + n * W, 1.0f - share * share);
"""

BIAS = """
    INLINE long clamped(long far, long reach)
    {
        return (far < -reach ? -reach : far > reach ? reach : far) + reach;
    }

    // The biases of a vector of distances.
    INLINE vec bias_of(const float *bias, long reach, ivec far)
    {$neighbours
        vec x;
        for (long lane = 0; lane < W; lane++) x[lane] = bias[clamped(far[lane], reach)];
        return x;
    }
"""

NEIGHBOURS = """
    if (-reach <= far[0] && far[W - 1] <= reach) return load(bias + far[0] + reach);
"""

BY_DIAGONAL = """
    // What the diagonals of a step add to the gradient of the biases.
    static void fold_diagonals(const Call &call, Scratch &s, long each)
    {
        if (!s.dbias) return;
        for (long first = 0; first < s.count; first += each) {
            float *sums = s.diagonals[first / each];
            long far = s.key_at[0] - s.query_at[first] - (each - 1);
            for (long x = 0; x < each - 1 + KEYS; x++) {
                s.dbias[clamped(far + x, call.reach)] += sums[x];
                sums[x] = 0;
            }
        }
    }
"""

FOLD_SLOPES = """
    if (s.dslope)
        for (long n = 0; n < 2; n++) {
            for (long lane = 0; lane < W; lane++) *s.dslope += s.by_distance[n][lane];
            s.by_distance[n] = splat(0);
        }
"""

POSITIONS = """
    for (long i = 0; i < each; i++) {
        long at = first + (i < rows ? i : 0);
        s.query_at[s.count + i] = (int32_t)(call.q_offset + $query);
    }
"""

KEY_POSITIONS = """
    for (long j = 0; j < KEYS; j++) {
        long at = key + $beyond;
        s.key_at[j] = (int32_t)(call.k_offset + $key);
    }
"""

KEY_MASK = """
    const uint8_t *may = (const uint8_t *)call.keys + batch * call.n_k + key;
    for (long j = 0; j < keys; j++)
        if (!may[j]) s.shown[j / 32] &= ~(1u << j % 32);
"""


def distances(plan: NativePlan) -> bool:
    """Scores depend on how far apart query and key stand."""
    return plan.slopes or plan.bias


def fields(plan: NativePlan) -> str:
    """Further members of a thread's scratch memory."""
    return join(
        "int32_t query_at[ROWS], key_at[KEYS];  // positions" if distances(plan) else "",
        "float slope;" if plan.slopes else "",
        "double *dslope;  // null where not asked for" if plan.slopes else "",
        "alignas(64) vec by_distance[2];" if plan.slopes else "",
        "const float *bias;" if plan.bias else "",
        "double *dbias;" if plan.bias else "",
        "float diagonals[PIECES][ROWS + KEYS];" if _diagonals(plan) else "",
    )


def tools(plan: NativePlan) -> str:
    """Functions that `scores` and `d_scores` call."""
    near = "" if plan.placed else "\n" + piece(NEIGHBOURS)
    return join(
        functions(replace(plan, slopes=False, bias=False)) if plan.softcap else "",
        piece(BIAS, neighbours=near.replace("\n", "\n    ")) if plan.bias else "",
        piece(BY_DIAGONAL) if _diagonals(plan) else "",
    )


def scores(plan: NativePlan) -> str:
    """Lines that make a score of the scaled product x."""
    return join(
        piece(SOFTCAP) if plan.softcap else "",
        _far(plan),
        "x -= s.slope * __builtin_convertvector(far < 0 ? -far : far, vec);" if plan.slopes else "",
        "x += bias_of(s.bias, call.reach, far);" if plan.bias else "",
    )


def d_scores(plan: NativePlan) -> str:
    """Lines that take d, the gradient of the score, to that of the scaled product."""
    apart = "__builtin_convertvector(far < 0 ? -far : far, vec)"
    return join(
        _far(plan),
        f"if (s.dslope) s.by_distance[n] -= d * {apart};" if plan.slopes else "",
        piece(SPREAD if plan.placed else ALONG) if plan.bias else "",
        "d = pick(x == 0, splat(0), d * load(ds + m * G + n * W));" if plan.softcap else "",
    )


ALONG = """
    if (s.dbias) {
        float *sums = s.diagonals[(i + m) / each] + each - 1 - (i + m) % each + panel * G + n * W;
        store(sums, load(sums) + d);
    }
"""

SPREAD = """
    if (s.dbias)
        for (long lane = 0; lane < W; lane++)
            s.dbias[clamped(far[lane], call.reach)] += d[lane];
"""


def opening(plan: NativePlan) -> str:
    """Lines at the start of an item."""
    return join(
        "s.by_distance[0] = s.by_distance[1] = splat(0);" if plan.slopes else "",
        piece("""
            for (long x = 0; x < PIECES; x++)
                for (long y = 0; y < ROWS + KEYS; y++) s.diagonals[x][y] = 0;
        """)
        if _diagonals(plan)
        else "",
    )


def of_head(plan: NativePlan) -> str:
    """Lines once the query head is known; `at` counts heads of all items."""
    slot = "long at = ((batch * call.key_heads + key_head) * call.unit_count + u) * group + member;"
    return join(
        slot if distances(plan) else "",
        "s.slope = call.slopes[h.head];" if plan.slopes else "",
        "s.dslope = call.dslopes ? (double *)call.dslopes + at : nullptr;" if plan.slopes else "",
        "long distances = 2 * call.reach + 1;" if plan.bias else "",
        "s.bias = call.bias + h.head * distances;" if plan.bias else "",
        "s.dbias = call.dbias ? (double *)call.dbias + at * distances : nullptr;"
        if plan.bias
        else "",
    )


def of_rows(plan: NativePlan) -> str:
    """Lines where queries join a step."""
    query = "call.query_at[at]" if plan.placed else "at"
    return piece(POSITIONS, query=query) if distances(plan) else ""


def of_keys(plan: NativePlan) -> str:
    """Lines where a column of keys is packed."""
    return join(
        piece(KEY_MASK) if plan.keys else "",
        _key_positions(plan) if distances(plan) else "",
    )


def after_step(plan: NativePlan) -> str:
    """Lines after a step, before its rows are forgotten."""
    return join(
        piece(FOLD_SLOPES) if plan.slopes else "",
        "fold_diagonals(call, s, each);" if _diagonals(plan) else "",
    )


def _far(plan: NativePlan) -> str:
    far = "ivec far = iload(s.key_at + panel * G + n * W) - s.query_at[i + m];"
    return far if distances(plan) else ""


def _diagonals(plan: NativePlan) -> bool:
    """Pairs of one distance stand on a diagonal of the tile."""
    return plan.bias and not plan.placed


def _key_positions(plan: NativePlan) -> str:
    if plan.placed:
        return piece(KEY_POSITIONS, beyond="(j < keys ? j : 0)", key="call.key_at[at]")
    return piece(KEY_POSITIONS, beyond="j", key="at")
