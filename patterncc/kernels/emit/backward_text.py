"""The pieces of the backward kernels' source, in the manner of `templates`."""

from __future__ import annotations

OWN_ROWS = """
    kv_head = head // group
    start = tl.load(item) * $tile_q$part
    first = start.to(tl.int64)
    rows = tl.arange(0, $step_q)
    cols = tl.arange(0, $step_k)
    seen = start + rows < n
"""

OWN_COLUMNS = """
    kv_head = head // group
    start = tl.load(item) * $tile_k$part
    first = start.to(tl.int64)
    rows = tl.arange(0, $step_q)
    cols = tl.arange(0, $step_k)
    there = start + cols < n_k
"""

# Where heads are listed one by one, the first of those that share their runs works for all.
LEADER = """
    leads = head % members == 0
    there = start + cols < tl.where(leads, n_k, 0)
    steps = tl.where(leads, steps, 0)
"""

NEXT_MEMBER = """
    # The next head of the group, then one step on; at the end of a run, over to the next one.
    member += 1
    turn = member == members
    member = tl.where(turn, 0, member)
    $here = tl.where(turn, $here + $step, $here)
    left -= turn.to(tl.int32)
    switch = left == 0
"""

# A line that is one item is written where it belongs, a stretch of a cut one to its slot.
STORE = """
    kept = $seen
    if slot < 0:
        at_$x = $x + batch * ${x}_batch + $head * ${x}_head + first * ${x}_row
        at_$x += $along[:, None] * ${x}_row + $columns[None, :]
        tl.store(at_$x, $name.to($x.dtype.element_ty), mask=kept)
    else:
        part_at = part_$x + ((unit.to(tl.int64) * slots + slot) * $tile$part) * $dim
        part_at += $along[:, None] * $dim + $columns[None, :]
        tl.store(part_at, $name, mask=kept)
"""

WHICH_SLOT = """
    # One program: $step rows of a line that was cut into several parts.  They are added in the
    # order of slots: the sum has the same bits every time.
    pid = tl.program_id(0)
    part = pid % $parts
    slot = pid // $parts % slots
    unit = pid // $parts // slots
    item = parts + 4 * slot
    count = tl.load(item + 2)  # 0 at all but the first slot of a line
"""

GATHER_BODY = """
    first = (tl.load(item) * $tile + part * $step).to(tl.int64)
    rows = tl.arange(0, $step)
    dims = tl.arange(0, $dim)
    count = tl.where(head % members == 0, count, 0)
    seen = first + rows < tl.where(count > 0, length, 0)
    at = x + ((unit.to(tl.int64) * slots + slot) * $tile + part * $step) * $width
    at += rows[:, None] * $width + dims[None, :]
    kept = $seen
    acc = tl.zeros([$step, $dim], tl.float32)
    for _ in range(0, count):
        acc += tl.load(at, mask=kept, other=0.0)
        at += $tile * $width
    to = whole + batch * whole_batch + head // members * whole_head + first * whole_row
    to += rows[:, None] * whole_row + dims[None, :]
    tl.store(to, acc.to(whole.dtype.element_ty), mask=kept)
"""
