"""The zones engine: reach by symbolic composition, exact, at a cost that knows no length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patterncc.analysis.curve import Curve
from patterncc.analysis.engines import offsets, symbolic
from patterncc.analysis.engines.symbolic import State
from patterncc.analysis.topology import Pairs, Topology
from patterncc.errors import SizeError
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import MAX_ZONES, areas, count_pairs, intersect, refuse_above, take
from patterncc.zones.sweep import in_turn

MAX_PAIRS = 2**19  # pairs of zones that one composition may meet before another engine takes over
FEW = 64  # zones up to which all pairs are compared
MOST_PAIRS = MAX_ZONES  # the same where the zones engine was asked for by name


def follow(t: Topology, pairs: Pairs, depth: int, states: list[State[ZoneSet]], most: int) -> Curve:
    """The reach curve by zones; `states`, which begins with R_0, is left with what was found.

    Raises SizeError when more than `most` pairs of zones meet.
    """
    return symbolic.follow(Zones(t, pairs, most), depth, states)


def start(t: Topology, pairs: Pairs) -> State[ZoneSet]:
    """R_0: every token has only itself."""
    return Zones(t, pairs).start()


@dataclass(frozen=True, eq=False)
class Zones:
    """Edge sets as zones; a composition that meets more than `most` pairs of zones is refused."""

    t: Topology
    pairs: Pairs
    most: int = MAX_PAIRS
    name: str = "zones"

    def start(self) -> State[ZoneSet]:
        """R_0: every token has only itself."""
        return self.measured(ZoneSet.make(self.t.frame, []))

    def edges(self, index: int) -> ZoneSet:
        """A_index, counted cyclically."""
        return self.t.level(index).zones

    def zones(self, value: ZoneSet) -> ZoneSet:
        """The set itself."""
        return value

    def union(self, a: ZoneSet, b: ZoneSet) -> ZoneSet:
        """Edges of either, merged."""
        return _without_contained(a | b).simplify()

    def measured(self, value: ZoneSet) -> State[ZoneSet]:
        """The zones with the exact count of the pairs of T in them, the identity added.

        Raises SizeError when counting would cut the zones into more than 8 * most pieces.
        """
        count = _count(reached(self.t, self.pairs, value), 8 * self.most)
        if self.pairs.closed:
            return State(value, count, count)
        whole = with_identity(self.t, value)
        return State(value, count, _count(whole, 8 * self.most))

    def step(self, state: State[ZoneSet], source: ZoneSet, index: int) -> State[ZoneSet]:
        """One more layer.

        Where the composition would be refused, that of the largest zones alone may already be full
        (a global token over many random blocks): then it is the answer, because nothing can be
        added.
        """
        try:
            carried = self.after(source, self.edges(index))
            return self.measured(
                carried if source is state.value else self.union(state.value, carried)
            )
        except SizeError:
            most = self.measured(self.after(_largest(source), _largest(self.edges(index))))
            if most.count == self.pairs.count:
                return most
            raise

    def after(self, first: ZoneSet, then: ZoneSet) -> ZoneSet:
        """What two steps carry, the identity left out: I | result = (I | then) @ (I | first).

        Raises SizeError before composing when more than `most` pairs of zones meet.
        """
        if not len(first) or not len(then):
            return first if len(first) else then
        a, b = then.table, first.table
        if len(a) * len(b) > self.most:
            meeting = count_pairs(a[:, 2], a[:, 3], b[:, 0], b[:, 1])
            refuse_above(meeting, "pairs of zones in one composition", self.most)
        result = _without_contained(then | first | (then @ first))
        # a few zones that did not become more need no search for ones to merge
        return result if len(result) <= len(first) <= FEW else result.simplify()


def reached(t: Topology, pairs: Pairs, zones: ZoneSet) -> ZoneSet:
    """The pairs of T in I | zones."""
    whole = with_identity(t, zones)
    return whole if pairs.closed else (whole & pairs.zones)


def with_identity(t: Topology, zones: ZoneSet) -> ZoneSet:
    """Zones and the identity, which is not repeated where a zone holds it."""
    own, table = t.identity.table, zones.table
    if len(own) and len(table) > FEW:
        low, high = table[:, 0::2] <= own[0, 0::2], table[:, 1::2] >= own[0, 1::2]
        if (low & high).all(axis=1).any():
            return zones
    return _without_contained(t.identity | zones)


def _count(zones: ZoneSet, most: int) -> int:
    """The exact count; of two zones by what they share, which is quicker than a sweep.

    Raises SizeError before cutting the zones into more than `most` pieces.
    """
    table = zones.table
    if len(table) > 1024 and not in_turn(table):
        first, last = table[:, 0], table[:, 1]
        cuts = np.sort(np.concatenate([first, last]))
        pieces = int((np.searchsorted(cuts, last) - np.searchsorted(cuts, first)).sum())
        refuse_above(pieces, "pieces of zones to count", most)
    if len(table) != 2:
        return offsets.count(zones)
    common = intersect(table[:1], table[1:])
    return int(sum(areas(table).tolist()) - sum(areas(common).tolist()))


def _largest(zones: ZoneSet) -> ZoneSet:
    """The zones with the largest boxes, at most FEW."""
    height, width = (zones.table[:, k + 1] - zones.table[:, k] for k in (0, 2))
    order = np.argsort(-height.astype(np.float64) * width, kind="stable")
    return ZoneSet(zones.frame, take(zones.table, order[:FEW]))


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
