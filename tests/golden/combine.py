# patterncc combine: the parts of cut rows merged by their LSE.
# Generated from plan c6781cb9e6471d68 by emitter 2.
# sm_90, bfloat16, head dim 64, tiles 128 x 128, steps 16 x 16, 4 warps, 1 stages.
# Lengths, windows and documents are data: they come in through the run and mask tables.
#
#   kind = combine
#   target = sm_90
#   dtype = bfloat16
#   head_dim = 64
#   value_dim = 64
#   block = (128, 128)
#   bm = 16
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


@triton.jit(
    do_not_specialize=[
        "n", "heads", "slots",
    ]
)
def combine_kernel(
    out, lse, part_out, part_lse, parts,
    out_batch, out_head, out_row,
    n, heads, slots,
):
    # One program: 16 rows of a line that was cut, of one of `units` heads.  Its parts are
    # merged in the order of their slots: the result has the same bits every time.
    pid = tl.program_id(0)
    part = pid % 8
    slot = pid // 8 % slots
    unit = pid // 8 // slots
    item = parts + 4 * slot
    count = tl.load(item + 2)  # 0 at all but the first slot of a line
    batch = (unit // heads).to(tl.int64)
    head = (unit % heads).to(tl.int64)
    start = tl.load(item) * 128 + part * 16
    first = start.to(tl.int64)
    rows = tl.arange(0, 16)
    vdims = tl.arange(0, 64)
    seen = start + rows < tl.where(count > 0, n, 0)
    m = tl.full([16], -INF, tl.float32)
    l = tl.zeros([16], tl.float32)
    acc = tl.zeros([16, 64], tl.float32)
    at = (unit.to(tl.int64) * slots + slot) * 128 + part * 16 + rows
    for _ in range(0, count):
        lse_tile = tl.load(part_lse + at, mask=seen, other=-INF)
        out_ptrs = part_out + at[:, None] * 64 + vdims[None, :]
        out_tile = tl.load(out_ptrs, mask=seen[:, None], other=0.0)
        m_next = tl.maximum(m, lse_tile)
        base = tl.where(m_next == -INF, 0.0, m_next)  # a row that has read nothing yet
        fade = tl.math.exp2(m - base)
        weight = tl.math.exp2(lse_tile - base)
        l = l * fade + weight
        acc = acc * fade[:, None] + out_tile * weight[:, None]
        m = m_next
        at += 128
    # A row that read nothing has m = -inf and l = 0: its out is 0 and its lse -inf.
    l = tl.where(l == 0.0, 1.0, l)
    acc = acc / l[:, None]
    lse_tile = m + tl.math.log2(l)  # in base 2
    out_at = out + batch * out_batch + head * out_head + first * out_row
    tl.store(
        out_at + (rows[:, None] * out_row + vdims[None, :]),
        acc.to(tl.bfloat16), mask=seen[:, None],
    )
    tl.store(lse + (batch * heads + head) * n + first + rows, lse_tile * LN2, mask=seen)
