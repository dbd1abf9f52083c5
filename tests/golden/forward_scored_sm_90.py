# patterncc forward: out and lse, an item of a row of tiles a program.
# Generated from plan ad14e6bf1e771f71 by emitter 2.
# sm_90, bfloat16, head dim 64, tiles 128 x 128, steps 128 x 64, 8 warps, 3 stages.
# Mask classes: full, zones (up to 1 a mask).
# Lengths, windows and documents are data: they come in through the run and mask tables.
#
#   kind = forward
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
#   per_head = False
#   per_sequence = False
#   heads = 1
#   precision = ieee
#   upcast = False
#   descriptors = True
#   softcap = True
#   slopes = True
#   bias = True
#   sinks = True
#   keys = True
#   placed = False
#   page = 0

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


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
        "n", "n_k", "heads", "group", "item_count", "section", "units", "slots", "softcap",
        "skew", "radius",
    ]
)
def forward_kernel(
    q, k, v, out, lse, part_out, part_lse, items, run, zone, slopes, bias, sinks, keys,
    q_batch, q_head, q_row, out_batch, out_head, out_row,
    scale, n, n_k, heads, group, item_count, section, units, slots, softcap, skew, radius,
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
    batch = (unit // heads).to(tl.int64)
    head = (unit % heads).to(tl.int64)
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
    m = tl.full([128], -INF, tl.float32)
    l = tl.zeros([128], tl.float32)
    acc = tl.zeros([128, 64], tl.float32)
    rate = 2.0 * scale2 / softcap
    most2 = softcap * LOG2E
    slope2 = tl.load(slopes + head) * LOG2E
    bias_at = bias + head * (2 * radius + 1)
    sink2 = tl.load(sinks + head) * LOG2E
    keys_at = keys + batch.to(tl.int64) * n_k
    slot = tl.load(item + 5)
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
        limited = 1.0 - 2.0 / (tl.math.exp2(s * rate) + 1.0)
        s = limited * most2
        query_place = (start + rows)[:, None]
        key_place = (col + cols)[None, :] + skew
        query_at_f = query_place.to(tl.float32)
        key_at_f = key_place.to(tl.float32)
        s -= slope2 * tl.abs(key_at_f - query_at_f)
        column = tl.minimum(tl.maximum(key_place - query_place, -radius), radius) + radius
        s += tl.load(bias_at + column) * LOG2E
        key_slot = (col + cols)[None, :]
        readable = tl.load(keys_at + key_slot, mask=key_slot < n_k, other=0)
        s = tl.where(readable != 0, s, -INF)
        if word > 0:
            # Tile-local; the offset is left to run time, so no mask is held across the loop.
            own = rows[:, None]
            across = cols[None, :] + col % 128
            s = tl.where(in_zones(zone, word, own, across), s, -INF)
        m_next = tl.maximum(m, tl.max(s, 1))
        base = tl.where(m_next == -INF, 0.0, m_next)  # a row that has read nothing yet
        p = tl.math.exp2(s - base[:, None])
        fade = tl.math.exp2(m - base)
        l = l * fade + tl.sum(p, 1)
        acc = acc * fade[:, None]
        m = m_next
        v_tile = v.load([batch.to(tl.int32), kv_head.to(tl.int32), col, 0]).reshape(64, 64)
        acc = tl.dot(p.to(tl.bfloat16), v_tile, acc)
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
    if slot < 0:
        # The sink joins the sum of its row: a key without a value.
        top = tl.maximum(m, sink2)
        base = tl.where(top == -INF, 0.0, top)
        fade = tl.math.exp2(m - base)
        l = l * fade + tl.math.exp2(sink2 - base)
        acc = acc * fade[:, None]
        m = top
    # A row that read nothing has m = -inf and l = 0: its out is 0 and its lse -inf.
    l = tl.where(l == 0.0, 1.0, l)
    acc = acc / l[:, None]
    lse_tile = m + tl.math.log2(l)  # in base 2
    if slot < 0:
        out_at = out + batch * out_batch + head * out_head + first * out_row
        tl.store(
            out_at + (rows[:, None] * out_row + vdims[None, :]),
            acc.to(tl.bfloat16), mask=seen[:, None],
        )
        tl.store(lse + (batch * heads + head) * n + first + rows, lse_tile * LN2, mask=seen)
    else:
        # A part of a cut line, in fp32; the combine kernel merges them.
        place = (unit.to(tl.int64) * slots + slot) * 128 + rows
        tl.store(part_out + place[:, None] * 64 + vdims[None, :], acc)
        tl.store(part_lse + place, lse_tile)
