# patterncc decode: out and lse of single query rows.
# Generated from plan cffeab8eca1416fe by emitter 2.
# sm_90, bfloat16, head dim 64, tiles 128 x 128, steps 16 x 64, 4 warps, 3 stages.
# Mask classes: full, zones (up to 1 a mask).
# Lengths, windows and documents are data: they come in through the run and mask tables.
#
#   kind = decode
#   target = sm_90
#   dtype = bfloat16
#   head_dim = 64
#   value_dim = 64
#   block = (128, 128)
#   bm = 16
#   bn = 64
#   warps = 4
#   stages = 3
#   full = True
#   zones = 1
#   bits = False
#   per_head = False
#   per_sequence = False
#   heads = 16
#   precision = ieee
#   upcast = False
#   descriptors = False
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
        "n", "n_k", "heads", "group", "lines", "count", "q_offset",
    ]
)
def decode_kernel(
    q, k, v, out, lse, position, ptr, run, zone,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head,
    out_row,
    scale, n, n_k, heads, group, lines, count, q_offset,
):
    # One program: one query row, one key head and the query heads that read it.
    pid = tl.program_id(0)
    units = heads // group
    kv_head = (pid % units).to(tl.int64)
    first_head = pid % units * group
    token = pid // units % count
    batch = (pid // units // count).to(tl.int64)
    members = tl.arange(0, 16)
    head = first_head + members
    mine = members < group
    cols = tl.arange(0, 64)
    # The layout's row of this query; one that the layout does not have reads nothing.
    place = tl.load(position + batch) + token - q_offset
    inside = (place >= 0) & (place < n)
    place = tl.where(inside, place, 0)
    dims = tl.arange(0, 64)
    vdims = tl.arange(0, 64)
    scale2 = scale * LOG2E
    q_at = q + batch * q_batch + token.to(tl.int64) * q_row
    q_tile = tl.load(
        q_at + (head[:, None].to(tl.int64) * q_head + dims[None, :]),
        mask=mine[:, None], other=0.0,
    )
    k_base = k + batch * k_batch + kv_head * k_head
    k_base += cols[:, None] * k_row + dims[None, :]
    v_base = v + batch * v_batch + kv_head * v_head
    v_base += cols[:, None] * v_row + vdims[None, :]
    m = tl.full([16], -INF, tl.float32)
    l = tl.zeros([16], tl.float32)
    acc = tl.zeros([16, 64], tl.float32)
    line = place // 128
    at = tl.load(ptr + line)
    end = tl.load(ptr + line + 1)
    steps = (tl.load(run + 4 * end + 3) - tl.load(run + 4 * at + 3)) * 2
    col = tl.load(run + 4 * at) * 128
    left = tl.load(run + 4 * at + 1) * 2
    word = tl.load(run + 4 * at + 2)
    # The next run is held in registers, one run ahead: no load of the loop waits for an index.
    next_tile = tl.load(run + 4 * at + 4)
    next_count = tl.load(run + 4 * at + 5)
    next_word = tl.load(run + 4 * at + 6)
    at += 2
    steps = tl.where(inside, steps, 0)
    for _ in range(0, steps):
        k_tile = tl.load(
            k_base + col.to(tl.int64) * k_row,
            mask=(col + cols < n_k)[:, None], other=0.0,
        )
        s = tl.dot(q_tile, k_tile.T)
        if word > 0:
            # Tile-local; the offset is left to run time, so no mask is held across the loop.
            own = place % 128
            across = cols[None, :] + col % 128
            keep = in_zones(zone, word, own, across)
            s = tl.where(keep, s, -INF)
        m_next = tl.maximum(m, tl.max(s, 1) * scale2)
        base = tl.where(m_next == -INF, 0.0, m_next)  # a row that has read nothing yet
        p = tl.math.exp2(s * scale2 - base[:, None])
        fade = tl.math.exp2(m - base)
        l = l * fade + tl.sum(p, 1)
        acc = acc * fade[:, None]
        m = m_next
        v_tile = tl.load(
            v_base + col.to(tl.int64) * v_row,
            mask=(col + cols < n_k)[:, None], other=0.0,
        )
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
    # A row that read nothing has m = -inf and l = 0: its out is 0 and its lse -inf.
    l = tl.where(l == 0.0, 1.0, l)
    acc = acc / l[:, None]
    lse_tile = (m + tl.math.log2(l)) * LN2
    out_at = out + batch * out_batch + token.to(tl.int64) * out_row
    tl.store(
        out_at + (head[:, None].to(tl.int64) * out_head + vdims[None, :]),
        acc.to(tl.bfloat16), mask=mine[:, None],
    )
    tl.store(lse + (batch * heads + head) * count + token, lse_tile, mask=mine)
