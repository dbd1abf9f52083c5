# patterncc slopes: the gradient of ALiBi slopes, partial sums.
# Generated from plan bd7ba1dd72870340 by emitter 2.
# sm_90, bfloat16, head dim 64, tiles 128 x 128, steps 64 x 16, 4 warps, 1 stages.
# Mask classes: full, zones (up to 1 a mask).
# Lengths, windows and documents are data: they come in through the run and mask tables.
#
#   kind = slopes
#   target = sm_90
#   dtype = bfloat16
#   head_dim = 64
#   value_dim = 64
#   block = (128, 128)
#   bm = 64
#   bn = 16
#   warps = 4
#   stages = 1
#   full = True
#   zones = 1
#   bits = False
#   per_head = False
#   per_sequence = False
#   heads = 1
#   precision = ieee
#   upcast = False
#   descriptors = False
#   softcap = False
#   slopes = True
#   bias = False
#   sinks = False
#   keys = False
#   placed = True
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
        "n", "n_k", "heads", "group", "lines", "programs", "partly", "skew",
    ]
)
def slopes_kernel(
    q, k, v, grad, lse2, delta, partial, ptr, run, zone, slopes, query_at, key_at,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, grad_batch,
    grad_head, grad_row,
    scale, n, n_k, heads, group, lines, programs, partly, skew,
):
    # One program: every `programs`-th row of steps of one head.
    pid = tl.program_id(0)
    unit = pid // programs
    batch = (unit // heads).to(tl.int64)
    head = (unit % heads).to(tl.int64)
    kv_head = head // group
    rows = tl.arange(0, 64)
    cols = tl.arange(0, 16)
    dims = tl.arange(0, 64)
    vdims = tl.arange(0, 64)
    scale2 = scale * LOG2E
    k_base = k + batch * k_batch + kv_head * k_head
    k_base += cols[:, None] * k_row + dims[None, :]
    v_base = v + batch * v_batch + kv_head * v_head
    v_base += cols[:, None] * v_row + vdims[None, :]
    slope2 = tl.load(slopes + head) * LOG2E
    total = tl.zeros([64], tl.float32)
    for row in range(pid % programs, tl.cdiv(n, 64), programs):
        start = row * 64
        first = start.to(tl.int64)
        seen = start + rows < n
        at_row = unit.to(tl.int64) * n + first + rows
        lse_tile = tl.load(lse2 + at_row, mask=seen, other=INF)
        delta_tile = tl.load(delta + at_row, mask=seen, other=0.0)
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
        line = row // 2
        distance = tl.zeros([64], tl.float32)
        exact = tl.zeros([64], tl.float32)
        at = tl.load(ptr + line)
        end = tl.load(ptr + line + 1)
        steps = (tl.load(run + 4 * end + 3) - tl.load(run + 4 * at + 3)) * 8
        col = tl.load(run + 4 * at) * 128
        left = tl.load(run + 4 * at + 1) * 8
        word = tl.load(run + 4 * at + 2)
        # The next run is held in registers, one run ahead: no load of the loop waits for an index.
        next_tile = tl.load(run + 4 * at + 4)
        next_count = tl.load(run + 4 * at + 5)
        next_word = tl.load(run + 4 * at + 6)
        at += 2
        for _ in range(0, steps):
            k_tile = tl.load(
                k_base + col.to(tl.int64) * k_row,
                mask=(col + cols < n_k)[:, None], other=0.0,
            )
            s = tl.dot(q_tile, k_tile.T)
            s = s * scale2
            query_slot = (start + rows)[:, None]
            key_slot = (col + cols)[None, :]
            query_place = tl.load(query_at + query_slot, mask=query_slot < n, other=0)
            key_place = tl.load(key_at + key_slot, mask=key_slot < n_k, other=0) + skew
            query_at_f = query_place.to(tl.float32)
            key_at_f = key_place.to(tl.float32)
            s -= slope2 * tl.abs(key_at_f - query_at_f)
            if word > 0:
                # Tile-local; the offset is left to run time, so no mask is held across the loop.
                own = rows[:, None] + row % 2 * 64
                across = cols[None, :] + col % 128
                s = tl.where(in_zones(zone, word, own, across), s, -INF)
            p = tl.math.exp2(s - lse_tile[:, None])
            v_tile = tl.load(
                v_base + col.to(tl.int64) * v_row,
                mask=(col + cols < n_k)[:, None], other=0.0,
            )
            dp = tl.dot(grad_tile, v_tile.T)
            ds = p * (dp - delta_tile[:, None])
            far = tl.abs(key_at_f - query_at_f)
            total -= tl.sum(ds * far, 1)
            distance += tl.sum(p * far, 1)
            exact += tl.sum(p * dp, 1)
            # One step on; at the end of a run, over to the next one.
            col += 16
            left -= 1
            switch = left == 0
            col = tl.where(switch, next_tile * 128, col)
            left = tl.where(switch, next_count * 8, left)
            word = tl.where(switch, next_word, word)
            next_tile = tl.load(run + 4 * at, mask=switch, other=next_tile)
            next_count = tl.load(run + 4 * at + 1, mask=switch, other=next_count)
            next_word = tl.load(run + 4 * at + 2, mask=switch, other=next_word)
            at += switch.to(tl.int32)
        if partly == 0:
            total += (exact - delta_tile) * distance
    tl.store(partial + pid, tl.sum(total, 0))
