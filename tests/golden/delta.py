# patterncc delta: row sums that both gradients need.
# Generated from plan eca8de0e3cd64621 by emitter 2.
# sm_90, bfloat16, head dim 64, tiles 128 x 128, steps 128 x 64, 8 warps, 3 stages.
# Lengths, windows and documents are data: they come in through the run and mask tables.
#
#   kind = delta
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


@triton.jit(
    do_not_specialize=[
        "n", "heads",
    ]
)
def delta_kernel(
    out, grad, lse, delta, lse2,
    out_batch, out_head, out_row, grad_batch, grad_head, grad_row,
    n, heads,
):
    # delta = rowsum(out * grad_out); lse in base 2, +inf for a row that reads nothing, so that
    # exp2(score - lse2) is 0 there and never NaN.
    pid = tl.program_id(0)
    steps_down = tl.cdiv(n, 128)
    row = pid % steps_down
    unit = (pid // steps_down).to(tl.int64)
    batch = unit // heads
    head = unit % heads
    first = (row * 128).to(tl.int64)
    rows = tl.arange(0, 128)
    vdims = tl.arange(0, 64)
    seen = row * 128 + rows < n
    out_at = out + batch * out_batch + head * out_head + first * out_row
    out_ptrs = out_at + (rows[:, None] * out_row + vdims[None, :])
    o = tl.load(out_ptrs, mask=seen[:, None], other=0.0)
    grad_at = grad + batch * grad_batch + head * grad_head + first * grad_row
    grad_ptrs = grad_at + (rows[:, None] * grad_row + vdims[None, :])
    g = tl.load(grad_ptrs, mask=seen[:, None], other=0.0)
    at = unit * n + first + rows
    tl.store(delta + at, tl.sum(o.to(tl.float32) * g.to(tl.float32), 1), mask=seen)
    natural = tl.load(lse + at, mask=seen, other=0.0)
    tl.store(lse2 + at, tl.where(natural == -INF, INF, natural * LOG2E), mask=seen)
