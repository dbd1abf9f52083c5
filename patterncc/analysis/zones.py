"""The zones engine: reach by symbolic composition, exact, at a cost that does not know the length.

    R_0 = I,   R_l = (I | A_l) @ R_(l-1)

The identity is kept apart: R_l = I | S_l with S_l = A_l | S_(l-1) | A_l @ S_(l-1).  Reach only
grows, so equal sizes mean equal sets: "full" and "nothing changes any more" are comparisons of
integers.  The second looks at all of R: outside T reach may grow on and come back into it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patterncc.analysis import offsets
from patterncc.analysis.topology import Pairs, Topology
from patterncc.errors import SizeError
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import MAX_ZONES, areas, count_pairs, intersect, refuse_above, take

MAX_PAIRS = 2**19  # pairs of zones that one composition may meet before the tiles engine takes over
FEW = 64  # zones up to which all pairs are compared
SLOW_LAYERS = 256  # layers that are tried one by one where doubling is refused
MOST_PAIRS = MAX_ZONES  # the same where the zones engine was asked for by name


@dataclass(frozen=True, eq=False)
class Symbolic:
    """Exact reach so far: S as zones (the identity left out), how many pairs of T are reached, and
    how many in all."""

    zones: ZoneSet
    count: int
    size: int


def start(t: Topology, pairs: Pairs) -> Symbolic:
    """R_0: every token has only itself."""
    return measured(t, pairs, ZoneSet.make(t.frame, []))


def measured(t: Topology, pairs: Pairs, zones: ZoneSet, max_pairs: int = MAX_PAIRS) -> Symbolic:
    """`zones` with the exact count of the pairs of T in it, the identity added.

    Raises SizeError when counting would cut the zones into more than 8 * max_pairs pieces.
    """
    count = _count(reached(t, pairs, zones), 8 * max_pairs)
    if pairs.closed:
        return Symbolic(zones, count, count)
    return Symbolic(zones, count, _count(_without_contained(t.identity | zones), 8 * max_pairs))


def _count(zones: ZoneSet, most: int) -> int:
    """The exact count; of two zones by what they share, which is quicker than a sweep.

    Raises SizeError before cutting the zones into more than `most` pieces.
    """
    table = zones.table
    if len(table) > 1024 and offsets.bands(zones) is None:
        first, last = table[:, 0], table[:, 1]
        cuts = np.sort(np.concatenate([first, last]))
        pieces = int((np.searchsorted(cuts, last) - np.searchsorted(cuts, first)).sum())
        refuse_above(pieces, "pieces of zones to count", most)
    if len(table) != 2:
        return offsets.count(zones)
    common = intersect(table[:1], table[1:])
    return int(sum(areas(table).tolist()) - sum(areas(common).tolist()))


def reached(t: Topology, pairs: Pairs, zones: ZoneSet) -> ZoneSet:
    """The pairs of T in I | zones."""
    whole = _without_contained(t.identity | zones)
    return whole if pairs.closed else (whole & pairs.zones)


def step(
    t: Topology, pairs: Pairs, state: Symbolic, layer: ZoneSet, max_pairs: int = MAX_PAIRS
) -> Symbolic:
    """One more layer.

    Where the composition would be refused, that of the largest zones alone may already be full (a
    global token over many random blocks): then it is the answer, because nothing can be added.
    """
    try:
        return measured(t, pairs, after(state.zones, layer, max_pairs), max_pairs)
    except SizeError:
        most = measured(t, pairs, after(_largest(state.zones), _largest(layer)), max_pairs)
        if most.count == pairs.count:
            return most
        raise


def _largest(zones: ZoneSet) -> ZoneSet:
    """The zones with the largest boxes, at most FEW."""
    height, width = (zones.table[:, k + 1] - zones.table[:, k] for k in (0, 2))
    order = np.argsort(-height.astype(np.float64) * width, kind="stable")
    return ZoneSet(zones.frame, take(zones.table, order[:FEW]))


def after(first: ZoneSet, then: ZoneSet, max_pairs: int = MAX_PAIRS) -> ZoneSet:
    """What two steps carry, the identity left out of both and of the result: I | result =
    (I | then) @ (I | first).

    Raises SizeError before composing when more than `max_pairs` pairs of zones meet.
    """
    if not len(first) or not len(then):
        return first if len(first) else then
    a, b = then.table, first.table
    if len(a) * len(b) > FEW:
        added, adding = offsets.bands(first), offsets.bands(then)
        if added is not None and adding is not None:
            return offsets.after(first, added, adding)
    if len(a) * len(b) > max_pairs:
        meeting = count_pairs(a[:, 2], a[:, 3], b[:, 0], b[:, 1])
        refuse_above(meeting, "pairs of zones in one composition", max_pairs)
    result = _without_contained(then | first | (then @ first))
    # a few zones that did not become more need no search for ones to merge
    return result if len(result) <= len(first) <= FEW else result.simplify()


def _without_contained(zones: ZoneSet) -> ZoneSet:
    """Zones inside another one dropped, in one comparison of all pairs (short tables only)."""
    table = zones.table
    if not 1 < len(table) <= FEW:
        return zones
    low, high = table[:, 0::2], table[:, 1::2]
    inside = (low[:, None] >= low).all(axis=2) & (high[:, None] <= high).all(axis=2)
    twins = inside & inside.T  # of equal zones the first one stays
    inside &= ~twins | np.tri(len(table), k=-1, dtype=bool)
    kept = np.asarray(~inside.any(axis=1))
    return zones if kept.all() else ZoneSet(zones.frame, take(table, kept))


@dataclass(frozen=True)
class Found:
    """What the search past the given depth found: the depth to full, or None for never, and R
    there."""

    depth: int | None
    end: Symbolic


def search(
    t: Topology, pairs: Pairs, depth: int, at: Symbolic, max_pairs: int = MAX_PAIRS
) -> Found:
    """The least depth past `depth` at which reach is full, or that it never is.

    Raises SizeError where that would take too many zones, or too many layers one by one.
    """
    try:
        return _search_by_doubling(t, pairs, depth, at, max_pairs)
    except SizeError:
        return _search_by_layers(t, pairs, depth, at, max_pairs)


def _search_by_doubling(
    t: Topology, pairs: Pairs, depth: int, at: Symbolic, max_pairs: int
) -> Found:
    """Whole periods are doubled until reach is full or stands still, then halved back: the cost
    grows with the logarithm of the answer."""
    cycle = ZoneSet.make(t.frame, [])
    for index in range(depth, depth + t.period):
        cycle = after(cycle, t.level(index).zones, max_pairs)
    powers = [cycle]  # powers[k] is 2**k periods
    last = at
    while True:
        new = measured(t, pairs, after(at.zones, powers[-1], max_pairs), max_pairs)
        if new.count == pairs.count:
            break
        if new.size == last.size:
            return Found(None, new)
        last = new
        powers.append(after(powers[-1], powers[-1], max_pairs))
    now, periods = at, 0
    for k in reversed(range(len(powers) - 1)):
        tried = measured(t, pairs, after(now.zones, powers[k], max_pairs), max_pairs)
        if tried.count < pairs.count:
            now, periods = tried, periods + 2**k
    return _search_by_layers(t, pairs, depth + periods * t.period, now, max_pairs)


def _search_by_layers(t: Topology, pairs: Pairs, depth: int, at: Symbolic, max_pairs: int) -> Found:
    """One layer at a time: powers of a stack can need more zones than its reach does."""
    still, handled = 0, 0
    for index in range(depth, depth + max(SLOW_LAYERS, t.period)):
        new = step(t, pairs, at, t.level(index).zones, max_pairs)
        handled += len(new.zones)
        refuse_above(handled, "zones on the way to full reach", max_pairs)
        if new.count == pairs.count:
            return Found(index + 1, new)
        still = still + 1 if new.size == at.size else 0
        at = new
        if still >= t.period:
            return Found(None, at)
    raise SizeError(f"the depth to full is more than {SLOW_LAYERS} layers past layer {depth}")
