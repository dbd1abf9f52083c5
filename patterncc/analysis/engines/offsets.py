"""The offsets engine: causal layers that are the same for every query; offsets are added, exactly.

A zone is a whole causal band when it holds every pair of the frame with d0 <= j - i < d1, d1 <= 1.
Paths through such bands never leave the frame (j <= k <= i), so composing two sets of bands adds
their offsets: R_L(i, j) holds if and only if j - i is a sum of offsets.  Merged bands are disjoint,
and counting them is a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.fft import irfft, rfft

from patterncc.analysis.curve import Curve
from patterncc.analysis.engines import symbolic
from patterncc.analysis.engines.symbolic import State
from patterncc.analysis.topology import Pairs, Topology
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import areas, merge_intervals, refuse_above

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]
    I64 = NDArray[np.int64]

MAX_SUMS = 2**21
MOST_DENSE = 2**22  # positions up to which sums are convolutions where intervals are many


def refusal(t: Topology, pairs: Pairs) -> str | None:
    """Why the engine cannot follow a stack, or None where it can."""
    if pairs.name != "causal" or t.memory:
        return "it follows reach in the causal triangle, without memory"
    for index, level in enumerate(t.levels):
        if bands(level.zones) is None:
            return f"the edges of layer {index} are not the same offsets for every query"
    return None


def follow(t: Topology, pairs: Pairs, depth: int, states: list[State[I64]]) -> Curve:
    """The reach curve by sums of offsets; `states`, which begins with R_0, is left with what was
    found.

    Raises SizeError before more than MAX_SUMS pairs of intervals are added.
    """
    return symbolic.follow(Offsets(t, pairs), depth, states)


def start(t: Topology, pairs: Pairs) -> State[I64]:
    """R_0: every token has only itself."""
    return Offsets(t, pairs).start()


def as_zones(t: Topology, state: State[I64]) -> State[ZoneSet]:
    """The same state as another engine goes on from."""
    return State(_zones(t.identity, state.value), state.count, state.size)


@dataclass(frozen=True, eq=False)
class Offsets:
    """Edge sets as sorted disjoint intervals of offsets j - i, int64 [bands, 2]."""

    t: Topology
    pairs: Pairs
    most: int = MAX_SUMS
    name: str = "offsets"

    def start(self) -> State[I64]:
        """R_0: every token has only itself."""
        return self.measured(np.empty((0, 2), dtype=np.int64))

    def edges(self, index: int) -> I64:
        """A_index, counted cyclically."""
        found = bands(self.t.level(index).zones)
        assert found is not None
        return found

    def after(self, first: I64, then: I64) -> I64:
        """Offsets of one step, of the other, and of both."""
        if len(first) * len(then) > self.most and self.t.frame.n <= MOST_DENSE:
            return self._dense_after(first, then)
        refuse_above(len(first) * len(then), "sums of offsets", self.most)
        low = (first[:, None, 0] + then[:, 0]).ravel()
        high = (first[:, None, 1] + then[:, 1] - 1).ravel()
        inside = high > 1 - self.t.frame.n
        sums = np.stack([np.maximum(low, 1 - self.t.frame.n), high], axis=1)[inside]
        return merge_intervals(np.concatenate([first, then, sums]))

    def _dense_after(self, first: I64, then: I64) -> I64:
        """The same where intervals are many: as a convolution of the two sets.

        Its numbers are counts of sums, integers up to n; rounding moves them by far less than 1/2.
        """
        n = self.t.frame.n
        size = 1 << (2 * n - 1).bit_length()
        sets = [_indicator(part, n) for part in (first, then)]
        sums = irfft(rfft(sets[0], size) * rfft(sets[1], size), size)[:n] > 0.5
        sums |= (sets[0] > 0) | (sets[1] > 0)
        edges = np.flatnonzero(np.diff(sums, prepend=False, append=False)).reshape(-1, 2)
        return np.ascontiguousarray(1 - edges[::-1, ::-1], dtype=np.int64)

    def union(self, a: I64, b: I64) -> I64:
        """Offsets of either."""
        return merge_intervals(np.concatenate([a, b]))

    def measured(self, value: I64) -> State[I64]:
        """The offsets with the exact count of their pairs, the identity added."""
        with_self = self.union(value, np.array([[0, 1]], dtype=np.int64))
        found = areas(_zones(self.t.identity, with_self).table)
        count = sum(int(area) for area in found.tolist())
        return State(value, count, count)

    def step(self, state: State[I64], source: I64, index: int) -> State[I64]:
        """One more layer."""
        carried = self.after(source, self.edges(index))
        return self.measured(carried if source is state.value else self.union(state.value, carried))

    def zones(self, value: I64) -> ZoneSet:
        """Whole bands with these offsets."""
        return _zones(self.t.identity, value)


def bands(zones: ZoneSet) -> I64 | None:
    """The offsets of a set of whole causal bands, as sorted disjoint intervals; None for others.

    >>> from patterncc import lower, strided, causal, window
    >>> bands(lower(causal() & strided(4), 10)).tolist()
    [[-8, -7], [-4, -3], [0, 1]]
    >>> bands(lower(window(1, 1), 10)) is None
    True
    """
    i0, i1, j0, j1, _, d1 = zones.table.T
    n = zones.frame.n
    square = zones.frame.box == (0, n, 0, n)
    whole = (d1 <= 1) & (i0 == 1 - d1) & (i1 == n) & (j0 == 0) & (j1 == n + d1 - 1)
    if not square or not whole.all():
        return None
    return merge_intervals(zones.table[:, 4:6])


def _indicator(offsets: I64, n: int) -> F64:
    """1 at every distance 0 .. n - 1 whose negative is one of the offsets."""
    ends = np.zeros(n + 1)
    np.add.at(ends, 1 - offsets[:, 1], 1)
    np.add.at(ends, 1 - offsets[:, 0], -1)
    return np.cumsum(ends)[:n]


def count(zones: ZoneSet) -> int:
    """The exact count, by a sum where the zones are whole causal bands."""
    if len(zones) > 2 and (offsets := bands(zones)) is not None:
        return sum(int(area) for area in areas(_zones(zones, offsets).table).tolist())
    return zones.count()


def _zones(frame: ZoneSet, offsets: I64) -> ZoneSet:
    """Whole bands with these offsets, in the frame of a set."""
    n = frame.frame.n
    rows = np.zeros((len(offsets), 6), dtype=np.int64)
    rows[:, 1] = rows[:, 3] = n
    rows[:, 4:6] = offsets
    return ZoneSet.make(frame.frame, rows)
