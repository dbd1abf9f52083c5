# patterncc dq: the gradient of Q, an item of a row of tiles a program.
# Generated from plan 0507ed906ad5b889 by emitter 2.
# sm_90, bfloat16, head dim 64, tiles 128 x 128, steps 128 x 64, 8 warps, 3 stages.
# Mask classes: full, zones (up to 1 a mask).
# Lengths, windows and documents are data: they come in through the run and mask tables.
#
#   kind = dq
#   target = sm_90
#   dtype = bfloat16
#   head_dim = 64
#   value_dim = 64
#   block = (128, 128)
#   bm = 128
#   bn = 64
#   warps = 8
#   stages = 3
#   full = True
#   zones = 1
#   bits = False
#   per_head = True
#   per_sequence = False
#   heads = 1
#   precision = ieee
#   upcast = False
#   descriptors = True
#   softcap = False
#   slopes = False
#   bias = False
#   sinks = False
#   keys = False
#   placed = False
#   page = 0

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def in_zone(at, i, j):
    # One zone of a mask, i0 <= i < i1, j0 <= j < j1, d0 <= j - i < d1, counted within the tile.
    # For each query it is an interval of keys, so a pair costs two compares.
    low = tl.maximum(tl.load(at + 2), i + tl.load(at + 4))
    high = tl.minimum(tl.load(at + 3), i + tl.load(at + 5))
    high = tl.where((i >= tl.load(at)) & (i < tl.load(at + 1)), high, low)
    return (j >= low) & (j < high)


@triton.jit
def in_zones(zone, word, i, j):
    at = zone + (word - 1) * 8
    keep = in_zone(at, i, j)
    return keep


@triton.jit(
    do_not_specialize=[
        "n", "n_k", "heads", "group", "item_count", "section", "units", "slots",
    ]
)
def dq_kernel(
    q, k, v, grad, lse2, delta, grad_q, part_grad_q, items, run, zone,
    q_batch, q_head, q_row, grad_batch, grad_head, grad_row, grad_q_batch, grad_q_head,
    grad_q_row,
    scale, n, n_k, heads, group, item_count, section, units, slots,
):
    # One program: one item of the work list, for one of `units` heads.  The items that lead run for
    # all heads first.  Then heads stand in sections whose keys and values fit in the cache; in each
    # come the other items, longest first, heads inner.
    pid = tl.program_id(0)
    lead = tl.load(items + 6)
    first_unit = 0
    beside = units
    if pid >= lead * units:
        others = item_count - lead
        pid -= lead * units
        first_unit = pid // (others * section) * section
        beside = tl.minimum(section, units - first_unit)
        pid += lead * beside - first_unit * others
    unit = first_unit + pid % beside
    item = items + pid // beside * 8
    batch = unit.to(tl.int64)
    head = tl.load(item + 1).to(tl.int64)
    kv_head = head // group
    start = tl.load(item) * 128
    first = start.to(tl.int64)
    rows = tl.arange(0, 128)
    cols = tl.arange(0, 64)
    seen = start + rows < n
    dims = tl.arange(0, 64)
    vdims = tl.arange(0, 64)
    scale2 = scale * LOG2E
    q_at = q + batch * q_batch + head * q_head + first * q_row
    q_tile = tl.load(
        q_at + (rows[:, None] * q_row + dims[None, :]),
        mask=seen[:, None], other=0.0,
    )
    grad_at = grad + batch * grad_batch + head * grad_head + first * grad_row
    grad_tile = tl.load(
        grad_at + (rows[:, None] * grad_row + vdims[None, :]),
        mask=seen[:, None], other=0.0,
    )
    at_row = (batch * heads + head) * n + first + rows
    lse_tile = tl.load(lse2 + at_row, mask=seen, other=INF)
    delta_tile = tl.load(delta + at_row, mask=seen, other=0.0)
    acc = tl.zeros([128, 64], tl.float32)
    # The item's runs, from inside the first one if a part before this one ended there.
    at = tl.load(item + 2)
    skip = tl.load(item + 3)
    steps = tl.load(item + 4) * 2
    col = (tl.load(run + 4 * at) + skip) * 128
    left = (tl.load(run + 4 * at + 1) - skip) * 2
    word = tl.load(run + 4 * at + 2)
    # The next run is held in registers, one run ahead: no load of the loop waits for an index.
    next_tile = tl.load(run + 4 * at + 4)
    next_count = tl.load(run + 4 * at + 5)
    next_word = tl.load(run + 4 * at + 6)
    at += 2
    for _ in range(0, steps):
        k_tile = k.load([batch.to(tl.int32), kv_head.to(tl.int32), col, 0]).reshape(64, 64)
        s = tl.dot(q_tile, k_tile.T)
        if word > 0:
            # Tile-local; the offset is left to run time, so no mask is held across the loop.
            own = rows[:, None]
            across = cols[None, :] + col % 128
            s = tl.where(in_zones(zone, word, own, across), s, -INF)
        p = tl.math.exp2(s * scale2 - lse_tile[:, None])
        v_tile = v.load([batch.to(tl.int32), kv_head.to(tl.int32), col, 0]).reshape(64, 64)
        dp = tl.dot(grad_tile, v_tile.T)
        ds = p * (dp - delta_tile[:, None])
        acc = tl.dot(ds.to(tl.bfloat16), k_tile, acc)
        # One step on; at the end of a run, over to the next one.
        col += 64
        left -= 1
        switch = left == 0
        col = tl.where(switch, next_tile * 128, col)
        left = tl.where(switch, next_count * 2, left)
        word = tl.where(switch, next_word, word)
        next_tile = tl.load(run + 4 * at, mask=switch, other=next_tile)
        next_count = tl.load(run + 4 * at + 1, mask=switch, other=next_count)
        next_word = tl.load(run + 4 * at + 2, mask=switch, other=next_word)
        at += switch.to(tl.int32)
    acc = acc * scale
    slot = tl.load(item + 5)
    kept = seen[:, None]
    if slot < 0:
        at_grad_q = grad_q + batch * grad_q_batch + head * grad_q_head + first * grad_q_row
        at_grad_q += rows[:, None] * grad_q_row + dims[None, :]
        tl.store(at_grad_q, acc.to(grad_q.dtype.element_ty), mask=kept)
    else:
        part_at = part_grad_q + ((unit.to(tl.int64) * slots + slot) * 128) * 64
        part_at += rows[:, None] * 64 + dims[None, :]
        tl.store(part_at, acc, mask=kept)
