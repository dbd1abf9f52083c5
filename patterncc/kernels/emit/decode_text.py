"""The text of the decode kernel, in pieces; `decode` chooses among them and joins them."""

from __future__ import annotations

WHICH_ROWS = """
    # One program: a part of the keys that up to $rows packed rows read.  Packed are, for each query
    # row in turn, the heads that share a key head and a pattern.
    pid = tl.program_id(0)
    split = pid % splits
    job = pid // splits
    lap = job % laps
    chunk = job // laps % chunks
    unit = job // laps // chunks % units
    batch = (job // laps // chunks // units).to(tl.int64)
    packed = chunk * $rows + tl.arange(0, $rows)
    mine = packed < count * pack
    token = packed // pack
    head = unit * pack + packed % pack
    kv_head = (unit * pack // group).to(tl.int64)
    cols = tl.arange(0, $step_k)
    # This program serves the rows of one tile row, `lap` tile rows after the first row's; a row
    # that the layout does not have reads nothing, and counts among the first.
    start = tl.load(position + batch).to(tl.int64) - q_offset
    place = start + token
    inside = (place >= 0) & (place < n)
    line = tl.maximum(start + chunk * $rows // pack, 0) // $tile_q
    written = mine & (tl.where(inside, place // $tile_q - line, 0) == lap)
    here = written & inside
    line += lap
    place = tl.where(here, place, 0).to(tl.int32)
    any_here = tl.max(here.to(tl.int32), 0) > 0
"""

PATTERN_OF_SEQUENCE = """
    line += tl.load(head_pattern + batch * listed + unit * pack % listed) * lines
"""
PATTERN_OF_HEAD = "line += tl.load(head_pattern + unit * pack) * lines"

# A run is first tile, tile count, mask word, tiles before it; two sentinels end the table, so that
# reading one run ahead is always within it.
STEPS = """
    # The line's runs, and its steps: those that start before `length`, the keys that count.
    first = tl.load(ptr + line, mask=any_here, other=0)
    last = tl.load(ptr + line + 1, mask=any_here, other=0)
    before = tl.load(run + 4 * first + 3)
    steps = (tl.load(run + 4 * last + 3) - before)$times
    length = n_k
    if has_lengths != 0:
        length = tl.minimum(tl.maximum(tl.load(key_lengths + batch), 0), n_k)
        low = first
        high = last
        while low < high:
            middle = (low + high) // 2
            early = tl.load(run + 4 * middle) * $tile_k < length
            low = tl.where(early, middle + 1, low)
            high = tl.where(early, high, middle)
        at = tl.maximum(low - 1, first)
        reached = tl.cdiv(length - tl.load(run + 4 * at) * $tile_k, $step_k)
        reached = tl.minimum(reached, tl.load(run + 4 * at + 1)$times)
        reached += (tl.load(run + 4 * at + 3) - before)$times
        steps = tl.where(low > first, reached, 0)
"""

SHARE = """
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
        early = tl.load(run + 4 * middle + 3) - before <= skip$over
        at = tl.where(early, middle, at)
        last = tl.where(early, last, middle)
    skip -= (tl.load(run + 4 * at + 3) - before)$times
    col = tl.load(run + 4 * at) * $tile_k + skip * $step_k
    left = tl.load(run + 4 * at + 1)$times - skip
    word = tl.load(run + 4 * at + 2)
    # The next run is held in registers, one run ahead: no load of the loop waits for an index.
    next_tile = tl.load(run + 4 * at + 4)
    next_count = tl.load(run + 4 * at + 5)
    next_word = tl.load(run + 4 * at + 6)
    at += 2
"""

# Pages no smaller than a step: one number a step.
PAGE = "page = tl.load(table + col // $page, mask=col < length, other=-1)"
PAGE_THERE = "there = col + cols < tl.where((page >= 0) & (page < pages), length, 0)"
# Smaller pages: a number for each key.
PAGES = "page = tl.load(table + (col + cols) // $page, mask=col + cols < length, other=-1)"
PAGES_THERE = "there = (page >= 0) & (page < pages)"

COUNTED = "there &= tl.load(keys_at + col + cols, mask=there, other=0) != 0"

# Known before K and V are asked for: keys that no row reads are not, and whatever stands there
# stays away from the products.
READ = """
    live = here[:, None] & there[None, :]
    keep = live
    read = there
"""

KEEP_ZONES = "keep = in_zones(zone, word, own, across)"
KEEP_BITS = "keep = in_bits(bits, word - 1 - zone_count, own, col % $tile_k)"
KEEP_BOTH = """
    if word <= zone_count:
        keep = in_zones(zone, word, own, across)
    else:
        keep = in_bits(bits, word - 1 - zone_count, own, col % $tile_k)
"""

MASKED = """
    # Tile-local; the offset is left to run time, so no mask is held across the loop.
    own = place[:, None] % $tile_q
    $across
    $keep
    keep = keep & live
    read = tl.max(keep.to(tl.int32), 0) > 0
"""

MEET = """
    # The parts of a row meet in memory: the last program to arrive merges them, in their order.
    turn = parts - 1
    slot = job.to(tl.int64) * splits
    if parts > 1:
        own_slot = (slot + split) * $rows + tl.arange(0, $rows)
        out_ptrs = part_out + (own_slot[:, None] * $vdim + vdims[None, :])
        tl.store(out_ptrs, acc, mask=here[:, None])
        tl.store(part_m + own_slot, m, mask=here)
        tl.store(part_l + own_slot, l, mask=here)
        # Every thread's stores stand before the ticket, which releases them.
        tl.debug_barrier()
        turn = tl.atomic_add(tickets + job, 1, sem="acq_rel", scope="gpu")
"""

MERGE = """
    if parts > 1:
        # Every thread's loads stand behind the ticket, which acquired the parts of the others.
        tl.debug_barrier()
        tl.store(tickets + job, 0)  # as the next launch expects it
        m = tl.full([$rows], -INF, tl.float32)
        l = tl.zeros([$rows], tl.float32)
        acc = tl.zeros([$rows, $vdim], tl.float32)
        for other in range(0, parts):
            at_slot = (slot + other) * $rows + tl.arange(0, $rows)
            m_part = tl.load(part_m + at_slot, mask=here, other=-INF, cache_modifier=".cg")
            l_part = tl.load(part_l + at_slot, mask=here, other=0.0, cache_modifier=".cg")
            out_ptrs = part_out + (at_slot[:, None] * $vdim + vdims[None, :])
            acc_part = tl.load(out_ptrs, mask=here[:, None], other=0.0, cache_modifier=".cg")
            m_next = tl.maximum(m, m_part)
            base = tl.where(m_next == -INF, 0.0, m_next)
            fade = tl.math.exp2(m - base)
            grow = tl.math.exp2(m_part - base)
            l = l * fade + l_part * grow
            acc = acc * fade[:, None] + acc_part * grow[:, None]
            m = m_next
"""

CLEAR = """
    # Rows of other lines, or of none, have read what was not theirs.
    m = tl.where(here, m, -INF)
    l = tl.where(here, l, 0.0)
    acc = tl.where(here[:, None], acc, 0.0)
"""
