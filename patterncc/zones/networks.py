"""Lowering of networks on positions or blocks: butterfly, LongNet, trees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.primitives import Butterfly, LongNet, Tree
from patterncc.zones.site import Site

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


def butterfly(p: Butterfly, at: Site) -> I64:
    """A box for each block row and bit; bit 0 and the block itself share the box of two blocks.

    Blocks of one token make bands: half of an aligned group reads the other half at one distance.
    """
    r, size = at.region, p.block
    blocks = -(-max(r.i1, r.j1) // size)
    top = max(0, blocks - 1).bit_length()
    bits = list(range(top)) if p.level is None else [p.level] if p.level < top else []
    pair = 2 * size if p.level in (None, 0) else size
    own = (max(r.i0, r.j0) // pair, -(-min(r.i1, r.j1) // pair))
    groups = {b: _bit_groups(at, size, b) for b in bits if b > 0}
    at.allow(
        max(0, own[1] - own[0]) + sum(max(0, last - first) for first, last in groups.values()), p
    )
    start = np.arange(own[0], own[1], dtype=np.int64) * pair
    tables = [at.rows(start, start + pair, start, start + pair)]
    for bit, (first, last) in groups.items():
        unit = np.arange(first, last, dtype=np.int64)
        if size == 1:  # unit counts half groups
            half = 2**bit
            i, j = unit * half, (unit ^ 1) * half
            tables.append(at.rows(i, i + half, j, j + half, j - i, j - i + 1))
        else:
            i, j = unit * size, (unit ^ (1 << bit)) * size
            keep = (j < r.j1) & (j + size > r.j0)
            i, j = i[keep], j[keep]
            tables.append(at.rows(i, i + size, j, j + size))
    return np.concatenate(tables)


def _bit_groups(at: Site, size: int, bit: int) -> tuple[int, int]:
    """Blocks (half groups, if a block is one token) with queries of the region: [first, last)."""
    grain = 2**bit if size == 1 else size
    return at.region.i0 // grain, -(-at.region.i1 // grain)


def longnet(p: LongNet, at: Site) -> I64:
    """Segments of rate 1 are boxes; of a higher rate, every edge is a zone of its own.

    (A zone with two edges of a dilated segment also holds a pair between them, which is no edge.)
    """
    tables = [at.none()]
    for segment, rate in zip(p.segments, p.rates):
        tables += _dilated_segments(p, at, segment, rate, sum(map(len, tables)))
    return np.concatenate(tables)


def _dilated_segments(p: LongNet, at: Site, segment: int, rate: int, made: int) -> list[I64]:
    """Zones of the segments that hold both a query and a key of the region."""
    r = at.region
    first = max(r.i0, r.j0) // segment
    last = -(-min(r.i1, r.j1) // segment)
    if first >= last:
        return []
    if rate == 1:
        at.allow(made + last - first, p)
        start = np.arange(first, last, dtype=np.int64) * segment
        return [at.rows(start, start + segment, start, start + segment)]
    # the first and the last may be cut by the region; those between lie inside it
    ends = [
        (_chosen(at, segment, rate, s, r.i0, r.i1), _chosen(at, segment, rate, s, r.j0, r.j1))
        for s in sorted({first, last - 1})
    ]
    inner = range(at.head % rate, segment, rate)
    middle = range(first + 1, last - 1)
    at.allow(made + sum(len(q) * len(k) for q, k in ends) + len(middle) * len(inner) ** 2, p)
    pairs = [(np.array(q)[:, None], np.array(k)[None, :]) for q, k in ends if len(q) and len(k)]
    if len(middle):  # only then is it known that `inner` is short
        offsets = np.array(inner, dtype=np.int64)
        starts = np.array(middle, dtype=np.int64)[:, None, None] * segment
        pairs.append((starts + offsets[:, None], starts + offsets[None, :]))
    return [at.rows(q, q + 1, k, k + 1) for q, k in pairs]


def _chosen(at: Site, segment: int, rate: int, s: int, low: int, high: int) -> range:
    """The positions of segment s that its residue class holds within [low, high)."""
    first = s * segment + at.head % rate
    first += max(0, -(-(low - first) // rate)) * rate
    return range(first, min(high, (s + 1) * segment), rate)


def tree(p: Tree, at: Site) -> I64:
    """The diagonal, a triangle for each chain of consecutive nodes, boxes for what is above them.

    A box: consecutive nodes with the same ancestors, by a stretch of consecutive ancestors.
    """
    parents = np.array(p.parents, dtype=np.int64)
    if not len(parents):
        return at.none()
    node = np.arange(len(parents))
    # a chain: each node after the first is the child of the one before it
    head = np.maximum.accumulate(np.where(parents != node - 1, node, 0))
    starts = np.flatnonzero(head == node)
    ends = np.append(starts[1:], len(node))
    long = ends - starts > 1
    boxes = _ancestor_boxes(parents, head, starts, ends, at)
    at.allow(1 + int(long.sum()) + sum(len(b[0]) for b in boxes), "tree")
    a, b = starts[long], ends[long]
    tables = [at.rows(i1=len(node), d0=0, d1=1), at.rows(a, b, a, b, d1=1)]
    return np.concatenate([*tables, *(at.rows(*box) for box in boxes)])


def _ancestor_boxes(
    parents: I64, head: I64, starts: I64, ends: I64, at: Site
) -> list[tuple[I64, I64, I64, I64]]:
    """Climb from all groups at once, one stretch of consecutive ancestors a step."""
    above = parents[starts]
    # neighbouring chains under one parent have the same ancestors
    opens = np.diff(above, prepend=-2) != 0
    closes = np.append(opens[1:], True)[: len(opens)]
    first, last, now = starts[opens], ends[closes], above[opens]
    wanted = (first < at.region.i1) & (last > at.region.i0)
    first, last, now = first[wanted], last[wanted], now[wanted]
    boxes: list[tuple[I64, I64, I64, I64]] = []
    made = 0
    while True:
        alive = now >= max(0, at.region.j0)
        first, last, now = first[alive], last[alive], now[alive]
        if not len(now):
            return boxes
        made += len(now)
        at.allow(made, "tree")
        boxes.append((first, last, head[now], now + 1))
        now = parents[head[now]]
