# patterncc gather: the parts of lines that were split, added up.
# Generated from plan 88870f0000023f68 by emitter 2.
# sm_90, bfloat16, head dim 64, tiles 128 x 128, steps 64 x 128, 8 warps, 3 stages.
# Lengths, windows and documents are data: they come in through the run and mask tables.
#
#   kind = gather
#   target = sm_90
#   dtype = bfloat16
#   head_dim = 64
#   value_dim = 64
#   block = (128, 128)
#   bm = 64
#   bn = 128
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
        "length", "heads", "members", "slots",
    ]
)
def gather_kernel(
    x, whole, parts,
    whole_batch, whole_head, whole_row,
    length, heads, members, slots,
):
    # One program: 64 rows of a line that was cut into several parts.  They are added in the
    # order of slots: the sum has the same bits every time.
    pid = tl.program_id(0)
    part = pid % 2
    slot = pid // 2 % slots
    unit = pid // 2 // slots
    item = parts + 4 * slot
    count = tl.load(item + 2)  # 0 at all but the first slot of a line
    batch = unit.to(tl.int64)
    head = tl.load(item + 1).to(tl.int64)
    first = (tl.load(item) * 128 + part * 64).to(tl.int64)
    rows = tl.arange(0, 64)
    dims = tl.arange(0, 64)
    count = tl.where(head % members == 0, count, 0)
    seen = first + rows < tl.where(count > 0, length, 0)
    at = x + ((unit.to(tl.int64) * slots + slot) * 128 + part * 64) * 64
    at += rows[:, None] * 64 + dims[None, :]
    kept = seen[:, None]
    acc = tl.zeros([64, 64], tl.float32)
    for _ in range(0, count):
        acc += tl.load(at, mask=kept, other=0.0)
        at += 128 * 64
    to = whole + batch * whole_batch + head // members * whole_head + first * whole_row
    to += rows[:, None] * whole_row + dims[None, :]
    tl.store(to, acc.to(whole.dtype.element_ty), mask=kept)
