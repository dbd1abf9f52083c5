"""The pieces that kernels are put together from: short stretches of Triton source with $names.

`emit` chooses and joins them; nothing is decided here.  Every piece is text at column 0; it is
indented where it is placed.  Vectors that appear in many pieces: `rows` and `cols` count the
queries and keys of one step, `dims` and `vdims` the columns of Q, K and of V.
"""

from __future__ import annotations

import textwrap
from string import Template


def piece(text: str, **names: object) -> str:
    """`text` without its common indentation and with $names filled in.

    >>> piece('''
    ...     x = $a
    ... ''', a=3)
    'x = 3'
    """
    return Template(textwrap.dedent(text).strip("\n")).substitute(names)


def indented(text: str, levels: int = 1) -> str:
    """`text` moved right by 4 spaces a level."""
    return textwrap.indent(text, "    " * levels)


IN_ZONE = """
    @triton.jit
    def in_zone(at, i, j):
        # One zone of a mask, i0 <= i < i1, j0 <= j < j1, d0 <= j - i < d1, counted within the tile.
        # For each query it is an interval of keys, so a pair costs two compares.
        low = tl.maximum(tl.load(at + 2), i + tl.load(at + 4))
        high = tl.minimum(tl.load(at + 3), i + tl.load(at + 5))
        high = tl.where((i >= tl.load(at)) & (i < tl.load(at + 1)), high, low)
        return (j >= low) & (j < high)
"""

IN_ZONE_BY_KEY = """
    @triton.jit
    def in_zone(at, i, j):
        # One zone of a mask, i0 <= i < i1, j0 <= j < j1, d0 <= j - i < d1, counted within the tile.
        # For each key it is an interval of queries, so a pair costs two compares.
        low = tl.maximum(tl.load(at), j + 1 - tl.load(at + 5))
        high = tl.minimum(tl.load(at + 1), j + 1 - tl.load(at + 4))
        high = tl.where((j >= tl.load(at + 2)) & (j < tl.load(at + 3)), high, low)
        return (i >= low) & (i < high)
"""

IN_ZONES_HEAD = """
    @triton.jit
    def in_zones(zone, word, i, j):
        at = zone + (word - 1) * $stride
        keep = in_zone(at, i, j)
"""

IN_ZONES_MORE = "    keep |= in_zone(at + $offset, i, j)"

IN_BITS = """
    @triton.jit
    def in_bits(bits, index, own, start):
        # One bit a pair.  Bit 2 t + b of word q is column 8 t + 2 q + b of a group of 128: a thread
        # holds a product in this order, so that a row of a step is four words.
        at = bits + index.to(tl.int64) * $tile_words + start // 128 * 4
        words = tl.load(at + (own * $row_words + tl.arange(0, 4)[None, :]))
        eight = tl.arange(0, $eights)[None, :, None, None]
        pair = tl.arange(0, 2)[None, None, None, :]
        keep = (words[:, None, :, None] >> (start % 128 // 4 + 2 * eight + pair)) & 1
        return keep.reshape($rows, $columns) != 0
"""

# A mask word is 0 for a full tile, then zones, then bits.  Indices are tile-local; the offset
# within the tile stays a run-time value on purpose: masks are computed where they are used and not
# kept in registers across the loop.
KEEP_ZONES = "keep = in_zones(zone, word, $i, $j)"
KEEP_BITS = "keep = in_bits(bits, word - 1 - zone_count, $own, $start)"
KEEP_BOTH = """
    if word <= zone_count:
        keep = in_zones(zone, word, $i, $j)
    else:
        keep = in_bits(bits, word - 1 - zone_count, $own, $start)
"""

# Where both classes are in use each branch masks for itself: on sm_90 and up a mask that leaves its
# branch is held in registers, one a score.  On sm_80 scores that leave a branch would change their
# order among threads, so there the mask does (KEEP_BOTH).
MASK_ZONES = "s = tl.where(in_zones(zone, word, $i, $j), s, -INF)"
MASK_BITS = "s = tl.where(in_bits(bits, word - 1 - zone_count, $own, $start), s, -INF)"
MASK_KEPT = "    s = tl.where(keep, s, -INF)\n"
MASK_BOTH = """
    if word <= zone_count:
        s = tl.where(in_zones(zone, word, $i, $j), s, -INF)
    else:
        s = tl.where(in_bits(bits, word - 1 - zone_count, $own, $start), s, -INF)
"""

# The runs of a line, and the loop's state.  A run is first tile, tile count, mask word, tiles
# before it; two sentinels end the table, so that reading one run ahead is always within it.
OPEN_LINE = """
    at = tl.load(ptr + line)
    end = tl.load(ptr + line + 1)
    steps = (tl.load(run + 4 * end + 3) - tl.load(run + 4 * at + 3)) * $ratio
    $here = tl.load(run + 4 * at) * $tile
    left = tl.load(run + 4 * at + 1) * $ratio
    word = tl.load(run + 4 * at + 2)
    # The next run is held in registers, one run ahead: no load of the loop waits for an index.
    next_tile = tl.load(run + 4 * at + 4)
    next_count = tl.load(run + 4 * at + 5)
    next_word = tl.load(run + 4 * at + 6)
    at += 2
"""

ADVANCE = """
    # One step on; at the end of a run, over to the next one.
    $here += $step
    left -= 1
    switch = left == 0
    $here = tl.where(switch, next_tile * $tile, $here)
    left = tl.where(switch, next_count * $ratio, left)
    word = tl.where(switch, next_word, word)
    next_tile = tl.load(run + 4 * at, mask=switch, other=next_tile)
    next_count = tl.load(run + 4 * at + 1, mask=switch, other=next_count)
    next_word = tl.load(run + 4 * at + 2, mask=switch, other=next_word)
    at += switch.to(tl.int32)
"""

SOFTMAX = """
    m_next = tl.maximum(m, $largest)
    $guard
    p = tl.math.exp2($exponent)
    fade = tl.math.exp2(m - $shift)
    l = l * fade + tl.sum(p, 1)
    acc = acc * fade[:, None]
    m = m_next
"""

GUARD = "base = tl.where(m_next == -INF, 0.0, m_next)  # a row that has read nothing yet"

FINISH = """
    # A row that read nothing has m = -inf and l = 0: its out is 0 and its lse -inf.
    l = tl.where(l == 0.0, 1.0, l)
    acc = acc / l[:, None]
    lse_tile = (m + tl.math.log2(l)) * LN2
"""

NORMALISE = """
    # A row that read nothing has m = -inf and l = 0: its out is 0 and its lse -inf.
    l = tl.where(l == 0.0, 1.0, l)
    acc = acc / l[:, None]
    lse_tile = m + tl.math.log2(l)  # in base 2
"""

DELTA_BODY = """
    # delta = rowsum(out * grad_out); lse in base 2, +inf for a row that reads nothing, so that
    # exp2(score - lse2) is 0 there and never NaN.
    pid = tl.program_id(0)
    steps_down = tl.cdiv(n, $step_q)
    row = pid % steps_down
    unit = (pid // steps_down).to(tl.int64)
    batch = unit // heads
    head = unit % heads
    first = (row * $step_q).to(tl.int64)
    rows = tl.arange(0, $step_q)
    vdims = tl.arange(0, $vdim)
    seen = row * $step_q + rows < n
    out_at = out + batch * out_batch + head * out_head + first * out_row
    out_ptrs = out_at + (rows[:, None] * out_row + vdims[None, :])
    o = tl.load(out_ptrs$mask)
    grad_at = grad + batch * grad_batch + head * grad_head + first * grad_row
    grad_ptrs = grad_at + (rows[:, None] * grad_row + vdims[None, :])
    g = tl.load(grad_ptrs$mask)
    at = unit * n + first + rows
    tl.store(delta + at, tl.sum(o.to(tl.float32) * g.to(tl.float32), 1), mask=seen)
    natural = tl.load(lse + at, mask=seen, other=0.0)
    tl.store(lse2 + at, tl.where(natural == -INF, INF, natural * LOG2E), mask=seen)
"""
