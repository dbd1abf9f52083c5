"""Path lengths in a skeleton: the mean number of hops between two different positions.

With u(l) the ordered pairs that are more than l hops apart, the sum of all distances is u(0) + u(1)
+ ...  Ways, tried in turn: a closed form for one window; the zones engine, which gives u(l) one by
one, or at a few l by doubling, and u never grows; search from every position of a small graph;
search from a few.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.skeleton import Skeleton
from patterncc.analysis.spread_bits import Spreader, spreader, start, tally
from patterncc.analysis.value import Value, mean_of
from patterncc.errors import SizeError
from patterncc.zones import Frame, ZoneSet
from patterncc.zones.algebra import areas, count_pairs, refuse_above
from patterncc.zones.sweep import disjoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]

FEW_ZONES = 128  # zones of a skeleton that composition is tried on
MOST_PAIRS = 2**14  # pairs of zones that one composition may meet
LAYERS = 24  # hops that are composed one by one before they are doubled
EVALUATIONS = 256  # hops at which u is evaluated
NARROW = 0.005  # of the value: bounds that are narrow enough
ALL_SOURCES = 2**20  # words of bits up to which every position is a source
WORK = 2**27  # positions times hops that a search may touch
LANDMARKS = 8
"""Positions whose distances to all others bound those of every position: they make the range of a
sample sure.  They are the same whatever the seed, so that the sample knows nothing of them."""


@dataclass(frozen=True)
class Apart:
    """Why there is no mean distance, in words."""

    why: str


def path_length(s: Skeleton, sources: int, seed: int, risk: float) -> Value | Apart:
    """L, the mean distance over all pairs of different positions."""
    if s.size < 2:
        return Apart(f"{s.size} positions have no pairs, so no path length")
    if s.edges < s.size - 1:
        return _disconnected()
    if not len(s.others):
        found = _window(s) or _by_zones(s)
        if found is not None:
            return found
    try:
        ready = spreader(s)
    except SizeError as refused:
        return Apart(f"the path length would cost too much: {refused}")
    if s.size * -(-s.size // 64) <= ALL_SOURCES:
        return _from_all(s, ready)
    return _from_some(s, ready, sources, seed, risk)


def _disconnected() -> Apart:
    return Apart("the skeleton is not connected: some positions have no path between them")


def _too_long() -> Apart:
    return Apart(
        "the path length would cost too much: paths are long and the zones have no closed form; "
        "ask for fewer tokens"
    )


def _mean(total: int, size: int) -> float:
    return total / (size * (size - 1))


def _window(s: Skeleton) -> Value | None:
    """One window over all positions: hops are distances over its width, rounded up."""
    if len(s.zones) != 1:
        return None
    i0, i1, j0, j1, d0, d1 = s.zones[0].tolist()
    if (i0, i1, j0, j1, d0) != (0, s.size, 0, s.size, 1 - d1):
        return None
    most, w = s.size - 1, d1 - 1
    hops = -(-most // w)  # u(l) = (most - l w)(most - l w + 1) for l = 0 .. hops - 1
    ones, squares = hops * (hops - 1) // 2, (hops - 1) * hops * (2 * hops - 1) // 6
    total = hops * most * (most + 1) - w * (2 * most + 1) * ones + w * w * squares
    return Value.exactly(_mean(total, s.size))


def _by_zones(s: Skeleton) -> Value | Apart | None:
    """By composing zones; None where they become too many."""
    everything = s.size * s.size
    apart = [everything - s.size, everything - s.size - 2 * s.edges]
    if not apart[1]:
        return Value.exactly(_mean(sum(apart), s.size))
    once = ZoneSet(Frame.of(s.size), s.zones)
    try:
        if _joins_all(s, everything):
            return Value.exactly(_mean(sum(apart), s.size))
        if len(s.zones) > FEW_ZONES:
            return None
        state = once
        while len(apart) <= LAYERS:
            state = _compose(state, once)
            apart.append(everything - _count(state))
            if not apart[-1]:
                return Value.exactly(_mean(sum(apart), s.size))
            if apart[-1] == apart[-2]:
                return _disconnected()
        return _by_doubling(s, once, state, apart)
    except SizeError:
        return None


def _joins_all(s: Skeleton, everything: int) -> bool:
    """Whether two hops through the largest zones alone join all pairs (a global token does)."""
    hub = ZoneSet(Frame.of(s.size), s.largest)
    return _count(_compose(hub, hub)) == everything


def _compose(a: ZoneSet, b: ZoneSet) -> ZoneSet:
    """One step and then another, merged (both hold every self-loop)."""
    x, y = a.table, b.table
    if len(x) * len(y) > MOST_PAIRS:
        meeting = count_pairs(x[:, 2], x[:, 3], y[:, 0], y[:, 1])
        refuse_above(meeting, "pairs of zones in one composition", MOST_PAIRS)
    return (a @ b).simplify()


def _count(z: ZoneSet) -> int:
    return sum(areas(disjoint(z.table)).tolist())


def _by_doubling(s: Skeleton, once: ZoneSet, state: ZoneSet, apart: list[int]) -> Value | Apart:
    """Bounds on the sum of u from its values at a few l, the widest gap halved first."""
    everything = s.size * s.size
    powers, known = [once], {len(apart) - 1: state}
    while True:  # until all is joined: the last power of two bounds the number of hops
        powers.append(_compose(powers[-1], powers[-1]))
        left = everything - _count(powers[-1])
        if not left:
            break
        if 2 ** (len(powers) - 1) > s.size:
            return _disconnected()
    ends = dict(enumerate(apart))
    gaps: list[tuple[int, int, int]] = []
    first, last = len(apart) - 1, 2 ** (len(powers) - 1)
    ends[last] = 0
    heapq.heappush(gaps, (-(last - first - 1) * apart[-1], first, last))
    low = sum(apart)
    unsure = (last - first - 1) * apart[-1]
    for _ in range(EVALUATIONS):
        if not gaps or unsure <= NARROW * low:
            break
        _, a, b = heapq.heappop(gaps)
        step = (b - a).bit_length() - 2
        middle = a + 2 ** max(0, step)
        known[middle] = _compose(known[a], powers[max(0, step)])
        ends[middle] = everything - _count(known[middle])
        unsure -= (b - a - 1) * (ends[a] - ends[b])
        low -= (b - a - 1) * ends[b]
        low += ends[middle]
        for c, d in ((a, middle), (middle, b)):
            low += (d - c - 1) * ends[d]
            unsure += (d - c - 1) * (ends[c] - ends[d])
            if d - c > 1 and ends[c] > ends[d]:
                heapq.heappush(gaps, (-(d - c - 1) * (ends[c] - ends[d]), c, d))
    return Value.between(_mean(low, s.size), _mean(low + unsure, s.size))


def _from_all(s: Skeleton, ready: Spreader) -> Value | Apart:
    """Search from every position; a budget on the hops keeps long paths from taking for ever."""
    total, work = 0, 0
    for first in range(0, s.size, 64):
        sources = np.arange(first, min(first + 64, s.size), dtype=np.int64)
        words, reached = start(s.size, sources), len(sources)
        whole = len(sources) * s.size
        while reached < whole:
            total += whole - reached
            words = ready.hop(words)
            new = int(np.bitwise_count(words).sum(dtype=np.int64))
            if new == reached:
                return _disconnected()
            reached = new
            work += s.size
            if work > WORK:
                return _too_long()
    return Value.exactly(_mean(total, s.size))


def _from_some(s: Skeleton, ready: Spreader, sources: int, seed: int, risk: float) -> Value | Apart:
    """Search from drawn positions and from landmarks, whose distances make the range sure.

    A position v at distance d from a landmark has a mean distance within d of the landmark's.
    """
    drawn = np.random.default_rng(seed).integers(0, s.size, max(1, sources))
    marks = np.linspace(0, s.size - 1, LANDMARKS).astype(np.int64)
    batch = 64 - LANDMARKS
    means: list[F64] = []
    low = high = np.zeros(0)
    for first in range(0, len(drawn), batch):
        part = drawn[first : first + batch]
        marked = marks if not first else marks[:0]
        found = _search(ready, np.concatenate([part, marked]), len(marked))
        if isinstance(found, Apart):
            return found
        sums, distances = found
        means.append(sums[: len(part)] / (s.size - 1))
        if not first:
            centre = sums[len(part) :] / (s.size - 1)
            low, high = _range(centre, distances, s.size)
    sure_low, sure_high = float(low.mean()), float(high.mean())
    value = mean_of(np.concatenate(means), float(low.min()), float(high.max()), risk)
    lo, hi = max(value.lo, sure_low), min(value.hi, sure_high)
    return Value(min(max(value.value, lo), hi), lo, hi, "estimate")


def _range(centre: F64, distances: NDArray[np.int32], size: int) -> tuple[F64, F64]:
    """Sure bounds on every position's mean distance from the landmarks' (distances [marks, n])."""
    d = distances.astype(np.float64)
    low = np.maximum(1.0, (centre[:, None] - d + d / (size - 1)).max(axis=0))
    high = (centre[:, None] + d - d / (size - 1)).min(axis=0)
    return low, np.maximum(low, high)


def _search(ready: Spreader, sources: I64, marked: int) -> tuple[F64, NDArray[np.int32]] | Apart:
    """Sums of the distances from each source, and the distances [marked, n] from the last few."""
    many, size, work = len(sources), ready.size, 0
    words = start(size, sources)
    sums = np.zeros(many)
    distances = np.zeros((marked, size), dtype=np.int32)
    reached = tally(words)[:many]
    while (reached < size).any():
        sums += size - reached
        for k in range(marked):
            distances[k] += ((words >> np.uint64(many - marked + k)) & np.uint64(1)) == 0
        words = ready.hop(words)
        new = tally(words)[:many]
        if (new == reached).all():
            return _disconnected()
        reached, work = new, work + size
        if work > WORK:
            return _too_long()
    return sums, distances
