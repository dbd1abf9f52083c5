# patterncc dkdv: the gradients of K and V, one column of tiles a program.
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
        "n", "n_k", "heads", "group", "lines", "zone_count",
    ]
)
def dkdv_kernel(
    q, k, v, grad, lse2, delta, grad_k, grad_v, ptr, run, zone, bits,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, grad_batch,
    grad_head, grad_row, grad_k_batch, grad_k_head, grad_k_row, grad_v_batch, grad_v_head,
    grad_v_row,
    scale, n, n_k, heads, group, lines, zone_count,
):
    # One program: 64 keys of one key head, read by every query head of its group in turn.
    pid = tl.program_id(0)
    steps_across = tl.cdiv(n_k, 64)
    column = pid % steps_across
    unit = pid // steps_across
    kv_heads = heads // group
    batch = (unit // kv_heads).to(tl.int64)
    kv_head = (unit % kv_heads).to(tl.int64)
    first = (column * 64).to(tl.int64)
    rows = tl.arange(0, 64)
    cols = tl.arange(0, 64)
    there = column * 64 + cols < n_k
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
    dk_acc = tl.zeros([64, 128], tl.float32)
    dv_acc = tl.zeros([64, 64], tl.float32)
    for member in range(0, group):
        head = kv_head * group + member
        q_base = q + batch * q_batch + head * q_head
        q_base += rows[:, None] * q_row + dims[None, :]
        grad_base = grad + batch * grad_batch + head * grad_head
        grad_base += rows[:, None] * grad_row + vdims[None, :]
        lse2_base = lse2 + (batch * heads + head) * n
        delta_base = delta + (batch * heads + head) * n
        line = column // 2
        at = tl.load(ptr + line)
        end = tl.load(ptr + line + 1)
        steps = (tl.load(run + 4 * end + 3) - tl.load(run + 4 * at + 3)) * 2
        at_q = tl.load(run + 4 * at) * 128
        left = tl.load(run + 4 * at + 1) * 2
        word = tl.load(run + 4 * at + 2)
        # The next run is held in registers, one run ahead: no load of the loop waits for an index.
        next_tile = tl.load(run + 4 * at + 4)
        next_count = tl.load(run + 4 * at + 5)
        next_word = tl.load(run + 4 * at + 6)
        at += 2
        for _ in range(0, steps):
            live = at_q + rows < n
            q_tile = tl.load(
                q_base + at_q.to(tl.int64) * q_row,
                mask=live[:, None] & (dims < 80)[None, :], other=0.0,
            )
            s = tl.dot(k_tile, q_tile.T)
            if word > 0:
                # Tile-local; the offset is left to run time, so no mask is held across the loop.
                own = cols[:, None] + column % 2 * 64
                across = rows[None, :] + at_q % 128
                if word <= zone_count:
                    keep = in_zones(zone, word, across, own)
                else:
                    keep = in_bits(bits, word - 1 - zone_count, own, at_q % 128)
                s = tl.where(keep, s, -INF)
            # Past the last query lse is +inf: p is 0 there, and so is every gradient.
            lse_tile = tl.load(lse2_base + at_q + rows, mask=live, other=INF)
            p = tl.math.exp2(s * scale2 - lse_tile[None, :])
            grad_tile = tl.load(
                grad_base + at_q.to(tl.int64) * grad_row,
                mask=live[:, None], other=0.0,
            )
            dv_acc = tl.dot(p.to(tl.bfloat16), grad_tile, dv_acc)
            dp = tl.dot(v_tile, grad_tile.T)
            delta_tile = tl.load(delta_base + at_q + rows, mask=live, other=0.0)
            ds = p * (dp - delta_tile[None, :])
            dk_acc = tl.dot(ds.to(tl.bfloat16), q_tile, dk_acc)
            # One step on; at the end of a run, over to the next one.
            at_q += 64
            left -= 1
            switch = left == 0
            at_q = tl.where(switch, next_tile * 128, at_q)
            left = tl.where(switch, next_count * 2, left)
            word = tl.where(switch, next_word, word)
            next_tile = tl.load(run + 4 * at, mask=switch, other=next_tile)
            next_count = tl.load(run + 4 * at + 1, mask=switch, other=next_count)
            next_word = tl.load(run + 4 * at + 2, mask=switch, other=next_word)
            at += switch.to(tl.int32)
    dk_acc = dk_acc * scale
    grad_k_at = grad_k + batch * grad_k_batch + kv_head * grad_k_head + first * grad_k_row
    tl.store(
        grad_k_at + (cols[:, None] * grad_k_row + dims[None, :]),
        dk_acc.to(tl.bfloat16), mask=there[:, None] & (dims < 80)[None, :],
    )
    grad_v_at = grad_v + batch * grad_v_batch + kv_head * grad_v_head + first * grad_v_row
    tl.store(
        grad_v_at + (cols[:, None] * grad_v_row + vdims[None, :]),
        dv_acc.to(tl.bfloat16), mask=there[:, None],
    )
