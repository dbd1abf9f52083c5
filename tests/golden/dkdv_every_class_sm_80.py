# patterncc dkdv: the gradients of K and V, an item of a column of tiles a program.
# Generated from plan bf99fac184d5db36 by emitter 2.
# sm_80, bfloat16, head dim 80 / 64, tiles 128 x 128, steps 64 x 64, 8 warps, 3 stages.
# Mask classes: full, zones (up to 4 a mask), bits.
# Lengths, windows and documents are data: they come in through the run and mask tables.
#
#   kind = dkdv
#   target = sm_80
#   dtype = bfloat16
#   head_dim = 80
#   value_dim = 64
#   block = (128, 128)
#   bm = 64
#   bn = 64
#   warps = 8
#   stages = 3
#   full = True
#   zones = 4
#   bits = True
#   per_head = False
#   per_sequence = False
#   heads = 1
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


@triton.jit
def in_zone(at, i, j):
    # One zone of a mask, i0 <= i < i1, j0 <= j < j1, d0 <= j - i < d1, counted within the tile.
    # For each key it is an interval of queries, so a pair costs two compares.
    low = tl.maximum(tl.load(at), j + 1 - tl.load(at + 5))
    high = tl.minimum(tl.load(at + 1), j + 1 - tl.load(at + 4))
    high = tl.where((j >= tl.load(at + 2)) & (j < tl.load(at + 3)), high, low)
    return (i >= low) & (i < high)


@triton.jit
def in_zones(zone, word, i, j):
    at = zone + (word - 1) * 32
    keep = in_zone(at, i, j)
    keep |= in_zone(at + 8, i, j)
    keep |= in_zone(at + 16, i, j)
    keep |= in_zone(at + 24, i, j)
    return keep


@triton.jit
def in_bits(bits, index, own, start):
    # One bit a pair.  Bit 2 t + b of word q is column 8 t + 2 q + b of a group of 128: a thread
    # holds a product in this order, so that a row of a step is four words.
    at = bits + index.to(tl.int64) * 512 + start // 128 * 4
    words = tl.load(at + (own * 4 + tl.arange(0, 4)[None, :]))
    eight = tl.arange(0, 8)[None, :, None, None]
    pair = tl.arange(0, 2)[None, None, None, :]
    keep = (words[:, None, :, None] >> (start % 128 // 4 + 2 * eight + pair)) & 1
    return keep.reshape(64, 64) != 0


@triton.jit(
    do_not_specialize=[
        "n", "n_k", "heads", "group", "members", "item_count", "section", "units", "slots",
        "zone_count",
    ]
)
def dkdv_kernel(
    q, k, v, grad, lse2, delta, grad_k, grad_v, part_grad_k, part_grad_v, items, run, zone,
    bits,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, grad_batch,
    grad_head, grad_row, grad_k_batch, grad_k_head, grad_k_row, grad_v_batch, grad_v_head,
    grad_v_row,
    scale, n, n_k, heads, group, members, item_count, section, units, slots, zone_count,
):
    # One program: one item of the work list, for one of `units` heads.  The items that lead run for
    # all heads first.  Then heads stand in sections whose keys and values fit in the cache; in each
    # come the other items, longest first, heads inner.
    pid = tl.program_id(0)
    lead = tl.load(items + 6) * 2
    first_unit = 0
    beside = units
    if pid >= lead * units:
        others = item_count * 2 - lead
        pid -= lead * units
        first_unit = pid // (others * section) * section
        beside = tl.minimum(section, units - first_unit)
        pid += lead * beside - first_unit * others
    unit = first_unit + pid % beside
    item = items + pid // beside // 2 * 8
    part = pid // beside % 2
    batch = (unit // (heads // members)).to(tl.int64)
    head = (unit % (heads // members) * members).to(tl.int64)
    kv_head = head // group
    start = tl.load(item) * 128 + part * 64
    first = start.to(tl.int64)
    rows = tl.arange(0, 64)
    cols = tl.arange(0, 64)
    there = start + cols < n_k
    dims = tl.arange(0, 128)
    vdims = tl.arange(0, 64)
    scale2 = scale * LOG2E
    k_at = k + batch * k_batch + kv_head * k_head + first * k_row
    k_tile = tl.load(
        k_at + (cols[:, None] * k_row + dims[None, :]),
        mask=there[:, None] & (dims < 80)[None, :], other=0.0,
    )
    v_at = v + batch * v_batch + kv_head * v_head + first * v_row
    v_tile = tl.load(
        v_at + (cols[:, None] * v_row + vdims[None, :]),
        mask=there[:, None], other=0.0,
    )
    q_base = q + batch * q_batch + head * q_head
    q_base += rows[:, None] * q_row + dims[None, :]
    grad_base = grad + batch * grad_batch + head * grad_head
    grad_base += rows[:, None] * grad_row + vdims[None, :]
    dk_acc = tl.zeros([64, 128], tl.float32)
    dv_acc = tl.zeros([64, 64], tl.float32)
    # The item's runs, from inside the first one if a part before this one ended there.
    at = tl.load(item + 2)
    skip = tl.load(item + 3)
    steps = tl.load(item + 4) * 2
    at_q = (tl.load(run + 4 * at) + skip) * 128
    left = (tl.load(run + 4 * at + 1) - skip) * 2
    word = tl.load(run + 4 * at + 2)
    # The next run is held in registers, one run ahead: no load of the loop waits for an index.
    next_tile = tl.load(run + 4 * at + 4)
    next_count = tl.load(run + 4 * at + 5)
    next_word = tl.load(run + 4 * at + 6)
    at += 2
    member = 0
    for _ in range(0, steps * members):
        # Past the last query lse is +inf: p is 0 there, and so is every gradient.
        live = at_q + rows < n
        reader = head + member
        at_row = (batch * heads + reader) * n + at_q
        q_tile = tl.load(
            q_base + (member.to(tl.int64) * q_head + at_q.to(tl.int64) * q_row),
            mask=live[:, None] & (dims < 80)[None, :], other=0.0,
        )
        s = tl.dot(k_tile, q_tile.T)
        if word > 0:
            # Tile-local; the offset is left to run time, so no mask is held across the loop.
            own = cols[:, None] + part * 64
            across = rows[None, :] + at_q % 128
            if word <= zone_count:
                keep = in_zones(zone, word, across, own)
            else:
                keep = in_bits(bits, word - 1 - zone_count, own, at_q % 128)
            s = tl.where(keep, s, -INF)
        lse_tile = tl.load(lse2 + at_row + rows, mask=live, other=INF)
        p = tl.math.exp2(s * scale2 - lse_tile[None, :])
        grad_tile = tl.load(
            grad_base + (member.to(tl.int64) * grad_head + at_q.to(tl.int64) * grad_row),
            mask=live[:, None], other=0.0,
        )
        dv_acc = tl.dot(p.to(tl.bfloat16), grad_tile, dv_acc)
        dp = tl.dot(v_tile, grad_tile.T)
        delta_tile = tl.load(delta + at_row + rows, mask=live, other=0.0)
        ds = p * (dp - delta_tile[None, :])
        dk_acc = tl.dot(ds.to(tl.bfloat16), q_tile, dk_acc)
        # The next head of the group, then one step on; at the end of a run, over to the next one.
        member += 1
        turn = member == members
        member = tl.where(turn, 0, member)
        at_q = tl.where(turn, at_q + 64, at_q)
        left -= turn.to(tl.int32)
        switch = left == 0
        at_q = tl.where(switch, next_tile * 128, at_q)
        left = tl.where(switch, next_count * 2, left)
        word = tl.where(switch, next_word, word)
        next_tile = tl.load(run + 4 * at, mask=switch, other=next_tile)
        next_count = tl.load(run + 4 * at + 1, mask=switch, other=next_count)
        next_word = tl.load(run + 4 * at + 2, mask=switch, other=next_word)
        at += switch.to(tl.int32)
    dk_acc = dk_acc * scale
    slot = tl.load(item + 5)
    summed = head // members
    kept = there[:, None] & (dims < 80)[None, :]
    if slot < 0:
        at_grad_k = grad_k + batch * grad_k_batch + summed * grad_k_head + first * grad_k_row
        at_grad_k += cols[:, None] * grad_k_row + dims[None, :]
        tl.store(at_grad_k, dk_acc.to(grad_k.dtype.element_ty), mask=kept)
    else:
        part_at = part_grad_k + ((unit.to(tl.int64) * slots + slot) * 128 + part * 64) * 80
        part_at += cols[:, None] * 80 + dims[None, :]
        tl.store(part_at, dk_acc, mask=kept)
    kept = there[:, None]
    if slot < 0:
        at_grad_v = grad_v + batch * grad_v_batch + summed * grad_v_head + first * grad_v_row
        at_grad_v += cols[:, None] * grad_v_row + vdims[None, :]
        tl.store(at_grad_v, dv_acc.to(grad_v.dtype.element_ty), mask=kept)
    else:
        part_at = part_grad_v + ((unit.to(tl.int64) * slots + slot) * 128 + part * 64) * 64
        part_at += cols[:, None] * 64 + vdims[None, :]
        tl.store(part_at, dv_acc, mask=kept)
