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
        "n", "n_k", "heads", "group", "lines", "count", "q_offset", "pack", "units", "chunks",
        "laps", "splits", "least", "has_lengths",
    ]
)
def decode_kernel(
    q, k, v, out, lse, position, key_lengths, part_out, part_m, part_l, tickets, ptr, run, zone,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head,
    out_row,
    scale, n, n_k, heads, group, lines, count, q_offset, pack, units, chunks, laps, splits,
    least, has_lengths,
):
    # One program: a part of the keys that up to 16 packed rows read.  Packed are, for each query
    # row in turn, the heads that share a key head and a pattern.
    pid = tl.program_id(0)
    split = pid % splits
    job = pid // splits
    lap = job % laps
    chunk = job // laps % chunks
    unit = job // laps // chunks % units
    batch = (job // laps // chunks // units).to(tl.int64)
    packed = chunk * 16 + tl.arange(0, 16)
    mine = packed < count * pack
    token = packed // pack
    head = unit * pack + packed % pack
    kv_head = (unit * pack // group).to(tl.int64)
    cols = tl.arange(0, 64)
    # This program serves the rows of one tile row, `lap` tile rows after the first row's; a row
    # that the layout does not have reads nothing, and counts among the first.
    start = tl.load(position + batch).to(tl.int64) - q_offset
    place = start + token
    inside = (place >= 0) & (place < n)
    line = tl.maximum(start + chunk * 16 // pack, 0) // 128
    written = mine & (tl.where(inside, place // 128 - line, 0) == lap)
    here = written & inside
    line += lap
    place = tl.where(here, place, 0).to(tl.int32)
    any_here = tl.max(here.to(tl.int32), 0) > 0
    # The line's runs, and its steps: those that start before `length`, the keys that count.
    first = tl.load(ptr + line, mask=any_here, other=0)
    last = tl.load(ptr + line + 1, mask=any_here, other=0)
    before = tl.load(run + 4 * first + 3)
    steps = (tl.load(run + 4 * last + 3) - before) * 2
    length = n_k
    if has_lengths != 0:
        length = tl.minimum(tl.maximum(tl.load(key_lengths + batch), 0), n_k)
        low = first
        high = last
        while low < high:
            middle = (low + high) // 2
            early = tl.load(run + 4 * middle) * 128 < length
            low = tl.where(early, middle + 1, low)
            high = tl.where(early, high, middle)
        at = tl.maximum(low - 1, first)
        reached = tl.cdiv(length - tl.load(run + 4 * at) * 128, 64)
        reached = tl.minimum(reached, tl.load(run + 4 * at + 1) * 2)
        reached += (tl.load(run + 4 * at + 3) - before) * 2
        steps = tl.where(low > first, reached, 0)
    dims = tl.arange(0, 64)
    vdims = tl.arange(0, 64)
    scale2 = scale * LOG2E
    q_at = q + batch * q_batch + head.to(tl.int64) * q_head + token.to(tl.int64) * q_row
    q_tile = tl.load(q_at[:, None] + dims[None, :], mask=mine[:, None], other=0.0)
    k_base = k + kv_head * k_head + batch * k_batch
    k_base += cols.to(tl.int64)[:, None] * k_row + dims[None, :]
    v_base = v + kv_head * v_head + batch * v_batch
    v_base += cols.to(tl.int64)[:, None] * v_row + vdims[None, :]
    m = tl.full([16], -INF, tl.float32)
    l = tl.zeros([16], tl.float32)
    acc = tl.zeros([16, 64], tl.float32)
    # The steps fall evenly to at most `splits` programs, none of less than `least` unless alone.
    parts = tl.maximum(tl.minimum(splits, steps // least), 1)
    if split >= parts:
        return
    skip = steps // parts * split + tl.minimum(split, steps % parts)
    steps = steps // parts + (split < steps % parts).to(tl.int32)
    # The run in which this part starts: the last one with no more tiles before it.
    at = first
    while at + 1 < last:
        middle = (at + last) // 2
        early = tl.load(run + 4 * middle + 3) - before <= skip // 2
        at = tl.where(early, middle, at)
        last = tl.where(early, last, middle)
    skip -= (tl.load(run + 4 * at + 3) - before) * 2
    col = tl.load(run + 4 * at) * 128 + skip * 64
    left = tl.load(run + 4 * at + 1) * 2 - skip
    word = tl.load(run + 4 * at + 2)
    # The next run is held in registers, one run ahead: no load of the loop waits for an index.
    next_tile = tl.load(run + 4 * at + 4)
    next_count = tl.load(run + 4 * at + 5)
    next_word = tl.load(run + 4 * at + 6)
    at += 2
    for _ in range(0, steps):
        there = col + cols < length
        live = here[:, None] & there[None, :]
        keep = live
        read = there
        if word > 0:
            # Tile-local; the offset is left to run time, so no mask is held across the loop.
            own = place[:, None] % 128
            across = cols[None, :] + col % 128
            keep = in_zones(zone, word, own, across)
            keep = keep & live
            read = tl.max(keep.to(tl.int32), 0) > 0
        k_tile = tl.load(k_base + col.to(tl.int64) * k_row, mask=read[:, None], other=0.0)
        s = tl.dot(q_tile, k_tile.T)
        s = tl.where(keep, s, -INF)
        m_next = tl.maximum(m, tl.max(s, 1) * scale2)
        base = tl.where(m_next == -INF, 0.0, m_next)  # a row that has read nothing yet
        p = tl.math.exp2(s * scale2 - base[:, None])
        fade = tl.math.exp2(m - base)
        l = l * fade + tl.sum(p, 1)
        acc = acc * fade[:, None]
        m = m_next
        v_tile = tl.load(v_base + col.to(tl.int64) * v_row, mask=read[:, None], other=0.0)
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
    # The parts of a row meet in memory: the last program to arrive merges them, in their order.
    turn = parts - 1
    slot = job.to(tl.int64) * splits
    if parts > 1:
        own_slot = (slot + split) * 16 + tl.arange(0, 16)
        out_ptrs = part_out + (own_slot[:, None] * 64 + vdims[None, :])
        tl.store(out_ptrs, acc, mask=here[:, None])
        tl.store(part_m + own_slot, m, mask=here)
        tl.store(part_l + own_slot, l, mask=here)
        # Every thread's stores stand before the ticket, which releases them.
        tl.debug_barrier()
        turn = tl.atomic_add(tickets + job, 1, sem="acq_rel", scope="gpu")
    if turn == parts - 1:
        if parts > 1:
            # Every thread's loads stand behind the ticket, which acquired the parts of the others.
            tl.debug_barrier()
            tl.store(tickets + job, 0)  # as the next launch expects it
            m = tl.full([16], -INF, tl.float32)
            l = tl.zeros([16], tl.float32)
            acc = tl.zeros([16, 64], tl.float32)
            for other in range(0, parts):
                at_slot = (slot + other) * 16 + tl.arange(0, 16)
                m_part = tl.load(part_m + at_slot, mask=here, other=-INF, cache_modifier=".cg")
                l_part = tl.load(part_l + at_slot, mask=here, other=0.0, cache_modifier=".cg")
                out_ptrs = part_out + (at_slot[:, None] * 64 + vdims[None, :])
                acc_part = tl.load(out_ptrs, mask=here[:, None], other=0.0, cache_modifier=".cg")
                m_next = tl.maximum(m, m_part)
                base = tl.where(m_next == -INF, 0.0, m_next)
                fade = tl.math.exp2(m - base)
                grow = tl.math.exp2(m_part - base)
                l = l * fade + l_part * grow
                acc = acc * fade[:, None] + acc_part * grow[:, None]
                m = m_next
        # Rows of other lines, or of none, have read what was not theirs.
        m = tl.where(here, m, -INF)
        l = tl.where(here, l, 0.0)
        acc = tl.where(here[:, None], acc, 0.0)
        # A row that read nothing has m = -inf and l = 0: its out is 0 and its lse -inf.
        l = tl.where(l == 0.0, 1.0, l)
        acc = acc / l[:, None]
        lse_tile = m + tl.math.log2(l)  # in base 2
        out_at = out + batch * out_batch + head.to(tl.int64) * out_head
        out_at += token.to(tl.int64) * out_row
        tl.store(out_at[:, None] + vdims[None, :], acc.to(tl.bfloat16), mask=written[:, None])
        lse_at = lse + (batch * heads + head) * count + token
        tl.store(lse_at, lse_tile * LN2, mask=written)
