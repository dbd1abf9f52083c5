"""Path lengths in a skeleton: the mean number of hops between two different positions.

With u(l) the ordered pairs that are more than l hops apart, the sum of all distances is u(0) + u(1)
+ ...  Ways, tried in turn: a closed form for one window; the zones engine, which gives u(l) one by
one, or at a few l by doubling, and u never grows; search from every position of a small graph;
search from a few.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.engines import columns
from patterncc.analysis.engines.sample import column_counts
from patterncc.analysis.graph.skeleton import Skeleton
from patterncc.analysis.graph.value import Value, mean_of
from patterncc.errors import SizeError
from patterncc.zones import Frame, ZoneSet
from patterncc.zones.algebra import (
    areas,
    count_pairs,
    expand,
    merge_intervals,
    pack,
    refuse_above,
    take,
)
from patterncc.zones.sweep import disjoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]
    Bits = NDArray[np.uint64]

FEW_ZONES = 128  # zones of a skeleton that composition is tried on
MOST_PAIRS = 2**14  # pairs of zones that one composition may meet
MOST_ZONES = 512  # zones that it may make: counting cuts them at every crossing
LAYERS = 24  # hops that are composed one by one before they are doubled
LARGEST = 16  # zones that are composed to see whether a hub joins all
EVALUATIONS = 256  # hops at which u is evaluated
NARROW = 0.005  # of the value: bounds that are narrow enough
ALL_SOURCES = 2**20  # words of bits up to which every position is a source
MOST_LOOKUPS = 2**21  # of a zone in a row, for such a hop
SPARSE = 8  # of so many positions, one that holds anything: hops go from there alone
MOST_SEARCHED = 2**24  # positions up to which a search is tried
WORK = 2.0**31  # words that a search may touch: several seconds
WORDS = 2**20  # of a search's state that are worth it unasked
LANDMARKS = 8
"""Positions whose distances to all others bound those of every position: they make the range of a
sample sure.  They are the same whatever the seed, so that the sample knows nothing of them."""


@dataclass(frozen=True)
class Apart:
    """Why there is no mean distance, in words."""

    why: str


TOO_LONG = Apart(
    "the path length would cost too much: there are too many positions or hops to search, and the "
    "zones have no closed form; ask for fewer tokens"
)


def path_length(s: Skeleton, sources: int | None, seed: int, risk: float) -> Value | Apart:
    """L, the mean distance over all pairs of different positions."""
    if s.size < 2:
        return Apart(f"{s.size} positions have no pairs, so no path length")
    if s.edges < s.size - 1 or _uncrossed(s):
        return _disconnected()
    if not len(s.others) or s.block > 1:
        found = _window(s) or _by_zones(s)
        if found is not None:
            return found
    if s.size > MOST_SEARCHED:
        return _between_windows(s, TOO_LONG)
    try:
        hops = operator(s)
    except SizeError as refused:
        return Apart(f"the path length would cost too much: {refused}")
    least = (s.size - 1) // _farthest(s)  # hops from one end to the other
    if least * s.size * hops.passes > WORK:
        return _between_windows(s, TOO_LONG)
    if s.size * -(-s.size // 64) <= ALL_SOURCES:
        return _from_all(s, hops)
    return _from_some(s, hops, sources, seed, risk)


def _uncrossed(s: Skeleton) -> bool:
    """Whether nothing reaches over some place between two neighbours: surely not connected."""
    if len(s.others) > MOST_LOOKUPS:
        return False
    joining = s.zones[(s.zones[:, 4] != 0) | (s.zones[:, 5] != 1)]  # self-loops reach nowhere
    row = s.owners
    first = np.append(np.minimum(joining[:, 0], joining[:, 2]), np.minimum(row, s.others)) + 1
    last = np.append(np.maximum(joining[:, 1], joining[:, 3]), np.maximum(row, s.others) + 1)
    crossed = merge_intervals(np.stack([first, last], axis=1)[first < last])
    return s.blocks > 1 and crossed.tolist() != [[1, s.blocks]]


def _disconnected() -> Apart:
    return Apart("the skeleton is not connected: some positions have no path between them")


def _mean(total: int, size: int) -> float:
    return total / (size * (size - 1))


def _window(s: Skeleton) -> Value | None:
    """One window over all positions."""
    if s.block > 1 or len(s.others) or len(s.zones) != 1:
        return None
    i0, i1, j0, j1, d0, d1 = s.zones[0].tolist()
    whole = (i0, i1, j0, j1, d0) == (0, s.size, 0, s.size, 1 - d1)
    return Value.exactly(_of_window(s.size, d1 - 1)) if whole else None


def _of_window(size: int, w: int) -> float:
    """L of a window of w on each side: hops are distances over w, rounded up."""
    most = size - 1
    hops = -(-most // w)  # u(l) = (most - l w)(most - l w + 1) for l = 0 .. hops - 1
    ones, squares = hops * (hops - 1) // 2, (hops - 1) * hops * (2 * hops - 1) // 6
    total = hops * most * (most + 1) - w * (2 * most + 1) * ones + w * w * squares
    return _mean(total, size)


def _between_windows(s: Skeleton, otherwise: Apart) -> Value | Apart:
    """Bounds where paths are too long to search: fewer edges make them longer, more shorter, and
    the widest window inside the zones and the narrowest around all edges have closed forms."""
    if s.block > 1 or not len(s.zones):
        return otherwise
    d0, d1 = s.zones[:, 4], s.zones[:, 5]
    around = _farthest(s)
    whole = (s.zones[:, :4] == [0, s.size, 0, s.size]).all(axis=1) & (d0 == 1 - d1)
    inside = int((d1[whole] - 1).max(initial=0))
    if not inside:
        return otherwise
    high = _of_window(s.size, inside)
    return Value.between(_of_window(s.size, around), high)


def _farthest(s: Skeleton) -> int:
    """How far the longest edge reaches."""
    around = int((s.zones[:, 5] - 1).max(initial=0))
    if len(s.others):
        around = max(around, int(np.abs(s.owners - s.others).max()))
    return (around + 1) * s.block - 1


def _by_zones(s: Skeleton) -> Value | Apart | None:
    """By composing zones; None where they become too many."""
    everything = s.size * s.size
    apart = [everything - s.size, everything - s.size - 2 * s.edges]
    once = ZoneSet(Frame.of(s.blocks), s.zones)
    if not apart[1] or _joins_all(once):
        return Value.exactly(_mean(sum(apart), s.size))
    if len(s.zones) > FEW_ZONES or len(s.others) or s.block > 1:
        return None
    try:
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


def _joins_all(once: ZoneSet) -> bool:
    """Whether two hops through the largest zones alone join all pairs (a global token does)."""
    i0, i1, j0, j1, _, _ = once.table.T
    size = (i1 - i0) * (j1 - j0).astype(np.float64)
    hub = ZoneSet(once.frame, take(once.table, np.argsort(-size, kind="stable")[:LARGEST]))
    return _count(_compose(hub, hub)) == once.frame.n**2


def _compose(a: ZoneSet, b: ZoneSet) -> ZoneSet:
    """One step and then another, merged (both hold every self-loop)."""
    x, y = a.table, b.table
    if len(x) * len(y) > MOST_PAIRS:
        meeting = count_pairs(x[:, 2], x[:, 3], y[:, 0], y[:, 1])
        refuse_above(meeting, "pairs of zones in one composition", MOST_PAIRS)
    both = (a @ b).simplify()
    refuse_above(len(both), "zones to count", MOST_ZONES)
    return both


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


def operator(s: Skeleton) -> columns.Operator:
    """One hop on bit columns (see `columns`); the columns hold what has been reached so far.

    Raises SizeError where its indices would be too many.
    """
    if s.block == 1:
        op = columns.operator(s.zones, s.size)
        return replace(op, gathers=op.gathers + tuple(_gathers(s)))
    row = s.owners
    single = pack((row, row + 1, s.others, s.others + 1, 0, 0)) if len(row) else s.zones[:0]
    i0, i1, j0, j1 = (
        np.minimum(x * s.block, s.size) for x in np.concatenate([s.zones, single])[:, :4].T
    )
    return columns.operator(pack((i0, i1, j0, j1, j0 - i1 + 1, j1 - i0)), s.size)


def _gathers(s: Skeleton) -> Iterator[columns.Ranked]:
    """Single edges, the k-th of every position that has so many."""
    counts = np.diff(s.first)
    itself = np.arange(s.size, dtype=np.int64)
    for k in range(int(counts.max(initial=0)) if len(s.others) else 0):
        rows = np.flatnonzero(counts > k)
        picked = s.others[s.first[rows] + k]
        if 2 * len(rows) < s.size:
            yield columns.Ranked(rows, picked)
        else:
            whole = itself.copy()
            whole[rows] = picked
            yield columns.Ranked(None, whole)


def _hop(s: Skeleton, hops: columns.Operator, state: Bits) -> Bits:
    """What is reached with one more hop; few positions that hold anything tell their neighbours."""
    some = np.flatnonzero(state.any(axis=1))
    if SPARSE * len(some) <= s.size and len(some) * len(s.zones) <= MOST_LOOKUPS:
        at, low, high = s.rows(some)
        if SPARSE * int((high - low).sum()) <= s.size:
            part, other = expand(low, high)
            out = state.copy()
            np.bitwise_or.at(out, other, state[some[at[part]]])
            return out
    size, words = state.shape
    out, made = np.empty_like(state), columns.ready(hops, state)
    step = min(columns.block_rows(hops, words), size)
    room = columns.scratch(hops, step, words)
    for a in range(0, size, step):
        columns.apply_block(hops, made, state, state, out, (a, min(a + step, size)), room)
    return out


def _start(size: int, sources: I64) -> Bits:
    """Every source at its own position: uint64 [positions, words], bit b of word w is source
    64 * w + b."""
    state = np.zeros((size, -(-len(sources) // 64)), dtype=np.uint64)
    column = np.arange(len(sources))
    bit = np.uint64(1) << (column % 64).astype(np.uint64)
    np.bitwise_or.at(state, (sources, column // 64), bit)
    return state


def _from_all(s: Skeleton, hops: columns.Operator) -> Value | Apart:
    """Search from every position."""
    state = _start(s.size, np.arange(s.size))
    reached, whole, total, work = s.size, s.size * s.size, 0, 0.0
    while reached < whole:
        total += whole - reached
        work += state.size * hops.passes
        if work > WORK:
            return _between_windows(s, TOO_LONG)
        state = _hop(s, hops, state)
        new = int(np.bitwise_count(state).sum(dtype=np.int64))
        if new == reached:
            return _disconnected()
        reached = new
    return Value.exactly(_mean(total, s.size))


def _from_some(
    s: Skeleton, hops: columns.Operator, sources: int | None, seed: int, risk: float
) -> Value | Apart:
    """Search from drawn positions and from landmarks, whose distances make the range sure.

    A position at distance d from a landmark has a mean distance within d of the landmark's.
    """
    if sources is None:
        sources = 64 * int(np.clip(WORDS // s.size, 1, 8)) - LANDMARKS
    drawn = np.random.default_rng(seed).integers(0, s.size, sources)
    marks = _landmarks(s)
    found = _search(s, hops, np.concatenate([marks, drawn]), len(marks))
    if isinstance(found, Apart):
        return _between_windows(s, found) if found is TOO_LONG else found
    means, distances = found[0] / (s.size - 1), found[1]
    low, high = _range(means[: len(marks)], distances, s.size)
    value = mean_of(means[len(marks) :], float(low.min()), float(high.max()), risk)
    lo, hi = max(value.lo, float(low.mean())), min(value.hi, float(high.mean()))
    if lo >= hi:  # the landmarks alone say it
        return Value.exactly(lo)
    return Value(min(max(value.value, lo), hi), lo, hi, "estimate")


def _landmarks(s: Skeleton) -> I64:
    """Positions with wide zones, which are near to many, and positions spread evenly."""
    width = np.minimum(s.zones[:, 3] - s.zones[:, 2], s.zones[:, 5] - s.zones[:, 4])
    hubs = s.zones[np.argsort(-width, kind="stable")[: LANDMARKS // 2], 0] * s.block
    evenly = np.linspace(0, s.size - 1, LANDMARKS - len(hubs)).astype(np.int64)
    return np.concatenate([hubs, evenly])


def _range(centre: F64, distances: NDArray[np.int32], size: int) -> tuple[F64, F64]:
    """Sure bounds on every position's mean distance from the landmarks' (distances [marks, n])."""
    low, high = np.ones(size), np.full(size, np.inf)
    for mean, row in zip(centre.tolist(), distances, strict=True):
        d = row * (1 - 1 / (size - 1))  # over the others: the landmark's own term is off by d
        np.maximum(low, mean - d, out=low)
        np.minimum(high, mean + d, out=high)
    return low, np.maximum(low, high)


def _search(
    s: Skeleton, hops: columns.Operator, sources: I64, marked: int
) -> tuple[F64, NDArray[np.int32]] | Apart:
    """Sums of the distances from each source; the distances [marked, n] from the first few."""
    many, size, work = len(sources), hops.size, 0.0
    state = _start(size, sources)
    sums = np.zeros(many)
    distances = np.zeros((size, 8), dtype=np.int32)
    reached = column_counts(state)[:many]
    while (reached < size).any():
        sums += size - reached
        work += state.size * hops.passes
        if work > WORK:
            return TOO_LONG
        first = state[:, :1].astype("<u8", copy=False).view(np.uint8)[:, :1]
        distances += np.unpackbits(~first, axis=1, bitorder="little")
        state = _hop(s, hops, state)
        new = column_counts(state)[:many]
        if (new == reached).all():
            return _disconnected()
        reached = new
    return sums, distances[:, :marked].T
