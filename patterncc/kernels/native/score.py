"""The lines that the options of a score add to native kernels; an absent option leaves no trace.

Without softcap, slopes and bias a score stays the raw product until its exponential, where
`to_base_2` brings it to base 2 in the same instruction; with one of them it is scaled first.
"""

from __future__ import annotations

from patterncc.kernels.emit.pieces import join
from patterncc.kernels.emit.templates import piece
from patterncc.kernels.native.plan import NativePlan

SOFTCAP = """
    // cap * tanh(x / cap): a polynomial near 0, where 1 - 2 / (e^2y + 1) would lose digits.
    INLINE vec softened(vec x, float cap)
    {
        vec y = x / cap, far = y < 0.0f ? -y : y, square = y * y;
        vec p = splat($t4);
        p = p * square + $t3;
        p = p * square + $t2;
        p = p * square + $t1;
        p = p * square + $t0;
        vec near = y + y * square * p;
        vec rest = 1.0f - 2.0f / (exp2_of(larger(splat(-20.0f), -far) * (-2 * LOG2E)) + 1.0f);
        return rounded(cap * (far < 0.625f ? near : y < 0.0f ? -rest : rest));
    }
"""

DISTANCE = """
    // |i - j| of the positions of queries and of one key.
    INLINE vec distance(ivec i, int32_t j)
    {
        ivec far = i - j;
        return __builtin_convertvector(far < 0 ? -far : far, vec);
    }
"""

BIAS = """
    // bias[clamp(j - i, -reach, reach) + reach], a lane at a time.
    INLINE vec bias_at(const float *bias, long reach, ivec i, int32_t j)
    {
        vec x;
        for (long lane = 0; lane < W; lane++) {
            long far = (long)j - i[lane];
            x[lane] = bias[(far < -reach ? -reach : far > reach ? reach : far) + reach];
        }
        return x;
    }
"""

SINK = """
    double sink = call.sinks[s.head], less = sink - base * unit;
    if (less > 0) {
        fade = __builtin_exp(-less);
        sum = sum * fade + 1;
        base = sink / unit;
    } else if (sum != 0) {
        sum += __builtin_exp(less);
    }
"""

# tanh(y) = y + y^3 (t0 + t1 y^2 + ...) for |y| < 0.625: reweighted least squares
TANH = (-0.333332819, 0.1333144, -0.053739524, 0.0206384343, -0.0057042269)


def functions(plan: NativePlan) -> str:
    """Functions that the lines call."""
    series = {f"t{k}": f"{c:.9g}f" for k, c in enumerate(TANH)}
    return "\n\n".join(
        [
            *([piece(SOFTCAP, **series)] if plan.softcap else []),
            *([piece(DISTANCE)] if plan.slopes else []),
            *([piece(BIAS)] if plan.bias else []),
        ]
    )


def to_base_2(plan: NativePlan) -> str:
    """What a score is multiplied by in the exponent of 2."""
    return "LOG2E" if plan.scored else "call.scale * LOG2E"


def unit(plan: NativePlan) -> str:
    """How much of a score in base e one of what the kernel keeps is."""
    return "1.0" if plan.scored else "(double)call.scale"


def opening(plan: NativePlan) -> str:
    """Lines before a loop over keys: numbers of one head."""
    return join(
        "const float slope = call.slopes[s.head];" if plan.slopes else "",
        "const float *bias = call.bias + s.head * (2 * call.reach + 1);" if plan.bias else "",
    )


def lines(plan: NativePlan, i: str, j: str) -> str:
    """Lines that turn a raw product `x` into a score; i: positions of queries, j: of the key."""
    return join(
        "x = rounded(x * call.scale);" if plan.scored else "",
        "x = softened(x, call.softcap);" if plan.softcap else "",
        f"x -= slope * distance({i}, {j});" if plan.slopes else "",
        f"x += bias_at(bias, call.reach, {i}, {j});" if plan.bias else "",
    )


def positioned(plan: NativePlan) -> bool:
    """Scores depend on where queries and keys stand."""
    return plan.slopes or plan.bias


def key_at(plan: NativePlan, key: str) -> str:
    """The position of a key."""
    return f"(int32_t)(call.k_offset + {f'call.key_at[{key}]' if plan.placed else key})"


def query_at(plan: NativePlan, query: str) -> str:
    """The position of a query."""
    return f"(int32_t)(call.q_offset + {f'call.query_at[{query}]' if plan.placed else query})"
