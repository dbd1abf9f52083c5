"""The gradients of ALiBi slopes and of a relative bias: sums over all edges of a head.

They run only where they are asked for, so they are plain: each program walks some rows of tiles of
one head, computes the probabilities again, and keeps a partial sum of its own.  No atomic is used:
the same bits come every time.
"""

from __future__ import annotations

from patterncc.kernels.emit import score
from patterncc.kernels.emit.pieces import (
    dim_test,
    dims,
    divided,
    dot,
    join,
    line,
    load,
    local,
    loop,
    mask,
    sizes,
    stream,
    stream_base,
)
from patterncc.kernels.emit.templates import indented, piece
from patterncc.kernels.plan import Plan

WHICH_HEAD = """
    # One program: every `programs`-th row of steps of one head.
    pid = tl.program_id(0)
    unit = pid // programs
    batch = (unit // heads).to(tl.int64)
    head = (unit % heads).to(tl.int64)
    kv_head = head // group
    rows = tl.arange(0, $step_q)
    cols = tl.arange(0, $step_k)
"""

OWN_ROW = """
    start = row * $step_q
    first = start.to(tl.int64)
    seen = start + rows < n
    at_row = unit.to(tl.int64) * n + first + rows
    lse_tile = tl.load(lse2 + at_row, mask=seen, other=INF)
    delta_tile = tl.load(delta + at_row, mask=seen, other=0.0)
"""

SLOPES = """
    far = tl.abs(key_at_f - query_at_f)
    total -= tl.sum(ds * far, 1)
    distance += tl.sum(p * far, 1)
    exact += tl.sum(p * dp, 1)
"""

ROW_SUMS = """
    distance = tl.zeros([$step_q], tl.float32)
    exact = tl.zeros([$step_q], tl.float32)
"""

# Distances multiply what delta is off by, since it comes from an output that is rounded.  A term
# among several sees a part of the row's keys, and has nothing to compare delta with.
CORRECTED = """
    if partly == 0:
        total += (exact - delta_tile) * distance
"""

# Each row moved left by its number: column c then holds one diagonal, or two, the second wrapped
# around.  `above` are those from the tile's corner to the right, `below` those left of it.
DIAGONALS_BY_ROW = """
    skewed = tl.gather(ds, (rows[:, None] + cols[None, :]) % $step_k, 1)
    wrapped = rows[:, None] + cols[None, :] >= $step_k
    above = tl.sum(tl.where(wrapped, 0.0, skewed), 0)
    below = tl.sum(tl.where(wrapped, skewed, 0.0), 0)
    above_apart = col - start + skew + cols
    below_apart = above_apart - $step_k
"""

# The same with columns moved up: step rows are more than step columns.
DIAGONALS_BY_COLUMN = """
    skewed = tl.gather(ds, (rows[:, None] + cols[None, :]) % $step_q, 0)
    wrapped = rows[:, None] + cols[None, :] >= $step_q
    below = tl.sum(tl.where(wrapped, 0.0, skewed), 1)
    above = tl.sum(tl.where(wrapped, skewed, 0.0), 1)
    below_apart = col - start + skew - rows
    above_apart = below_apart + $step_q
"""

BINS = """
    # Distances within the table: one column each.  Those past its ends meet in two sums.
    above_at = mine + above_apart + radius
    below_at = mine + below_apart + radius
    above_in = (above_apart > -radius) & (above_apart < radius)
    below_in = (below_apart > -radius) & (below_apart < radius)
    tl.store(above_at, tl.load(above_at, mask=above_in, other=0.0) + above, mask=above_in)
    tl.store(below_at, tl.load(below_at, mask=below_in, other=0.0) + below, mask=below_in)
    before += tl.sum(tl.where((above_apart <= -radius) | (radius == 0), above, 0.0), 0)
    before += tl.sum(tl.where((below_apart <= -radius) | (radius == 0), below, 0.0), 0)
    after += tl.sum(tl.where((above_apart >= radius) & (radius > 0), above, 0.0), 0)
    after += tl.sum(tl.where((below_apart >= radius) & (radius > 0), below, 0.0), 0)
    tl.debug_barrier()  # the next step adds to columns that other threads wrote
"""

# Where an order moved tokens no diagonal has one distance: column by column.
PLACED_BINS = """
    nearest = tl.min(tl.min(column, 1), 0)
    furthest = tl.max(tl.max(column, 1), 0)
    for one in range(nearest, furthest + 1):
        more = tl.sum(tl.sum(tl.where(column == one, ds, 0.0), 1), 0)
        tl.store(mine + one, tl.load(mine + one) + more)
        tl.debug_barrier()
"""

ENDS = """
    tl.store(mine, before)
    tl.store(mine + 2 * radius, after, mask=radius > 0)
"""


def slopes(plan: Plan) -> str:
    """The gradient of the slopes: of each program one number."""
    s = sizes(plan)
    return join(
        _opening(plan),
        f"total = tl.zeros([{s.step_q}], tl.float32)",
        _rows(plan, piece(SLOPES), piece(ROW_SUMS, **vars(s)), piece(CORRECTED)),
        "tl.store(partial + pid, tl.sum(total, 0))",
    )


def bias(plan: Plan) -> str:
    """The gradient of the bias: of each program a row of the table."""
    s = sizes(plan)
    by_row = s.step_q <= s.step_k
    diagonals = piece(DIAGONALS_BY_ROW if by_row else DIAGONALS_BY_COLUMN, **vars(s))
    apart = join(diagonals, piece(BINS))
    return join(
        _opening(plan),
        "mine = partial + pid.to(tl.int64) * (2 * radius + 1)",
        "" if plan.placed else "before = 0.0\nafter = 0.0",
        _rows(plan, piece(PLACED_BINS) if plan.placed else apart),
        "" if plan.placed else piece(ENDS),
    )


def _opening(plan: Plan) -> str:
    """The program's head."""
    return join(
        piece(WHICH_HEAD, **vars(sizes(plan))),
        dims(plan),
        "scale2 = scale * LOG2E",
        stream_base(plan, "k", "kv_head", "cols"),
        stream_base(plan, "v", "kv_head", "cols"),
        score.opening(plan, "head"),
    )


def _rows(plan: Plan, body: str, before: str = "", after: str = "") -> str:
    """The walk over the program's rows; `body` adds up `ds`, the gradient by the score.

    before, after: lines around the steps of one row.
    """
    s = sizes(plan)
    parts = s.tile_q // s.step_q
    there = "(col + cols < n_k)[:, None]" if plan.masked else ""
    step = join(
        stream(plan, "k", "kv_head", "col", there),
        f"s = {dot(plan, 'q_tile', 'k_tile.T')}",
        score.scores(plan, "(start + rows)[:, None]", "(col + cols)[None, :]"),
        mask(
            plan,
            local("rows[:, None]", "row", parts, s.step_q),
            "cols[None, :]",
            f"col % {s.tile_k}",
        ),
        f"p = tl.math.exp2({score.exponent(plan, 'lse_tile[:, None]')})",
        stream(plan, "v", "kv_head", "col", there),
        f"dp = {dot(plan, 'grad_tile', 'v_tile.T')}",
        "ds = p * (dp - delta_tile[:, None])",
        body,
    )
    walk = join(
        piece(OWN_ROW, **vars(s)),
        _own(plan, "q", "dims", plan.head_dim),
        _own(plan, "grad", "vdims", plan.value_dim),
        line(plan, divided("row", parts), "head"),
        before,
        loop(plan, "col", s.tile_k, s.step_k, step),
        after,
    )
    opened = f"for row in range(pid % programs, tl.cdiv(n, {s.step_q}), programs):"
    return f"{opened}\n{indented(walk)}"


def _own(plan: Plan, x: str, columns: str, dim: int) -> str:
    """A tile of the row's queries, or of their gradients."""
    base = f"{x}_at = {x} + batch * {x}_batch + head * {x}_head + first * {x}_row"
    at = f"{x}_at + (rows[:, None] * {x}_row + {columns}[None, :])"
    return join(base, load(plan, x, at, "seen[:, None]", dim_test(dim, columns)))
