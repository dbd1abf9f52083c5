"""Clustering of a skeleton: how often two neighbours of a position are neighbours themselves.

The local clustering of position i with k_i others is c_i = (joined pairs of others) / (all pairs of
them), 0 where k_i < 2, and C is the mean of c_i over all positions: the definition of Watts and
Strogatz 1998, for which the lattice's 3(k - 2) / (4(k - 1)) and the random graph's k / n that C is
held against were given (Humphries and Gurney 2008 name it C^ws; Telesford et al. 2011 use it).

With closed neighbourhoods N[i], t_i = #{(u, v) : u, v in N[i], v in N[u]} counts every joined pair
of others twice, the k_i + 1 loops, and 2 k_i pairs with i, so c_i = (t_i - 3 k_i - 1) / (k_i (k_i -
1)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.graph.skeleton import Skeleton
from patterncc.analysis.graph.value import Value, mean_of
from patterncc.zones.algebra import expand

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]

MOST_TERMS = 2**17  # (stretch, interval, interval, zone) that the closed form will look at
MOST_RAMP = 2**22  # rows of changing degree that it adds one by one
MOST_WEDGES = 2**22  # intervals of neighbours that are looked at one by one
FEW_NEIGHBOURS = 32  # of a sampled position, all are looked at up to here, else as many drawn
INTERVALS = 2**21  # intervals of neighbours that a sample may hold
WORTH = 1024  # positions below which fewer neighbours of each are drawn instead


def clustering(s: Skeleton, samples: int, seed: int, risk: float) -> Value:
    """C, in closed form for a few zones, by counting in small graphs, else from sampled positions.

    A sample draws positions evenly, and for each some of its others (all where they are few); the
    mean over them of (their common others) / (k_i - 1) has the mean c_i, so the whole has the mean
    C.
    """
    if not s.size or not s.edges:
        return Value.exactly(0.0)
    if not len(s.others) and s.block == 1:
        found = closed_form(s)
        if found is not None:
            return Value.exactly(found)
    if _wedges(s) <= MOST_WEDGES:
        index = np.arange(0, s.size, s.block, dtype=np.int64)
        weights = np.minimum(index + s.block, s.size) - index
        return Value.exactly(float((local(s, index) * weights).sum()) / s.size)
    rng = np.random.default_rng(seed)
    width = max(1, len(s.rows(rng.integers(0, s.size, 64))[0]) // 64)
    each = int(np.clip(INTERVALS // (width * WORTH), 1, FEW_NEIGHBOURS))
    count = min(samples, max(64, INTERVALS // (width * each)))
    return mean_of(sampled(s, rng.integers(0, s.size, count), rng, each), 0.0, 1.0, risk)


def _wedges(s: Skeleton) -> float:
    """How many intervals the neighbourhoods of all blocks' neighbours have."""
    if s.blocks > MOST_WEDGES // 8:
        return np.inf
    at, low, high = s.rows(np.arange(0, s.size, s.block, dtype=np.int64))
    intervals = np.bincount(at, minlength=s.blocks).astype(np.float64)
    neighbours = np.bincount(at, -(-(high - low) // s.block), s.blocks)  # symmetric: read by
    return float((intervals * neighbours).sum())


@dataclass(frozen=True, eq=False)
class _Members:
    """Closed neighbourhoods of some positions, ready to count members below a bound."""

    scale: int
    low: I64
    high: I64
    before: I64

    @staticmethod
    def of(size: int, at: I64, low: I64, high: I64) -> _Members:
        scale = size + 1
        before = np.cumsum(high - low) - (high - low)
        return _Members(scale, at * scale + low, at * scale + high, before)

    def below(self, at: I64, bound: I64) -> I64:
        """Members of all earlier neighbourhoods, and those of neighbourhood `at` below `bound`."""
        place = at * self.scale + bound
        k = np.maximum(np.searchsorted(self.low, place, side="right") - 1, 0)
        inside = np.clip(np.minimum(place, self.high[k]) - self.low[k], 0, None)
        return np.asarray(self.before[k] + inside)


def local(s: Skeleton, index: I64) -> F64:
    """c_i of the given positions, exactly: every neighbour is looked at, one a block."""
    at, low, high = s.rows(index)
    members = _Members.of(s.size, at, low, high)
    k = np.bincount(at, high - low, len(index)).astype(np.int64) - 1
    part, block = expand(low // s.block, -(-high // s.block))
    slot, other = at[part], block * s.block
    weights = np.minimum(other + s.block, s.size) - other
    t = np.bincount(slot, weights * _shared(s, members, slot, other), len(index))
    return np.asarray((t - 3 * k - 1) / np.maximum(k * (k - 1.0), 1))


def sampled(s: Skeleton, index: I64, rng: np.random.Generator, most: int) -> F64:
    """Estimates of c_i, each with the mean c_i: from `most` drawn others where there are more."""
    at, low, high = s.rows(index)
    members = _Members.of(s.size, at, low, high)
    counts = np.bincount(at, high - low, len(index)).astype(np.int64)
    few = np.flatnonzero(counts <= most + 1)
    starts = np.cumsum(counts) - counts
    slot, place = expand(starts[few], (starts + counts)[few])
    drawn = np.repeat(np.flatnonzero(counts > most + 1), most)
    # one place is the position's own: draw among the others and step over it
    own = members.below(drawn, index[drawn])
    picked = starts[drawn] + rng.integers(0, np.maximum(counts[drawn] - 1, 1))
    slot, place = np.append(few[slot], drawn), np.append(place, picked + (picked >= own))
    part = np.searchsorted(members.before, place, side="right") - 1
    other = low[part] + place - members.before[part]
    away = other != index[slot]
    slot, other = slot[away], other[away]
    common = _shared(s, members, slot, other) - 2  # both are in both neighbourhoods
    per = np.bincount(slot, minlength=len(index)) * (counts - 2.0)
    return np.asarray(np.bincount(slot, common, len(index)) / np.maximum(per, 1))


def _shared(s: Skeleton, members: _Members, slot: I64, other: I64) -> I64:
    """How many members of neighbourhood slot[x] are in the closed neighbourhood of other[x]."""
    at, low, high = s.rows(other)
    owner = slot[at]
    shared = members.below(owner, high) - members.below(owner, low)
    return np.bincount(at, shared, len(other)).astype(np.int64)


def closed_form(s: Skeleton) -> float | None:
    """C of a skeleton of a few zones, at a cost that does not know the length; None where the
    zones are too many.

    Rows are cut into stretches where the same zones give their intervals, each end still or moving
    by one.  There t_i is the sum, over two of the intervals and a zone, of the zone's edges
    between the two: a polynomial of degree 2 in i between the few rows where bounds cross.
    """
    stretches = _Stretches.of(s)
    terms = _terms(s, stretches)
    if terms is None:
        return None
    total = 0.0
    where, first, last, values = _quadratics(s.apart, stretches, *terms)
    order = np.argsort(where, kind="stable")
    where, first, last, values = where[order], first[order], last[order], values[order]
    cuts = np.searchsorted(where, np.arange(len(stretches.first) + 1))
    ramps = 0
    for k in range(len(stretches.first)):
        part = slice(cuts[k], cuts[k + 1])
        degree, slope = stretches.degree(k)
        length = int(stretches.last[k] - stretches.first[k])
        if slope and length > 1:
            ramps += length
            if ramps > MOST_RAMP:
                return None
            total += _ramp(length, degree, slope, first[part], last[part], values[part])
        elif degree >= 2:
            whole = _sum(last[part] - first[part], values[part])
            total += (whole - length * (3 * degree + 1)) / (degree * (degree - 1))
    return total / s.size


@dataclass(frozen=True, eq=False)
class _Stretches:
    """Rows [first[k], last[k]) over which row r's intervals are [low + low_moves * r, high +
    high_moves * r) for the entries begin[k] .. begin[k + 1] of the four arrays."""

    first: I64
    last: I64
    begin: I64
    low: I64
    low_moves: I64
    high: I64
    high_moves: I64

    @staticmethod
    def of(s: Skeleton) -> _Stretches:
        i0, i1, j0, j1, d0, d1 = s.apart.T
        turn_low, turn_high = np.clip(j0 - d0, i0, i1), np.clip(j1 - d1 + 1, i0, i1)
        cuts = np.unique(np.concatenate([i0, i1, turn_low, turn_high]))
        first, last = cuts[:-1], cuts[1:]
        zone, k = expand(np.searchsorted(cuts, i0), np.searchsorted(cuts, i1))
        order = np.argsort(k, kind="stable")
        zone, k = zone[order], k[order]
        low_moves = (first[k] >= turn_low[zone]).astype(np.int64)
        high_moves = (first[k] < turn_high[zone]).astype(np.int64)
        low = np.where(low_moves == 1, d0[zone], j0[zone])
        high = np.where(high_moves == 1, d1[zone], j1[zone])
        begin = np.searchsorted(k, np.arange(len(first) + 1))
        return _Stretches(first, last, begin, low, low_moves, high, high_moves)

    def degree(self, k: int) -> tuple[int, int]:
        """How many others the first row has, and by how much that grows from row to row."""
        part = slice(self.begin[k], self.begin[k + 1])
        slope = int((self.high_moves[part] - self.low_moves[part]).sum())
        length = int((self.high[part] - self.low[part]).sum()) + slope * int(self.first[k])
        return length - 1, slope


def _terms(s: Skeleton, stretches: _Stretches) -> tuple[I64, I64, I64, I64] | None:
    """Every (stretch, interval, interval, zone), or None when they are too many."""
    counts = np.diff(stretches.begin)
    if float((counts.astype(np.float64) ** 2).sum()) * len(s.apart) > MOST_TERMS:
        return None
    k, p = expand(stretches.begin[:-1], stretches.begin[1:])
    pair, q = expand(stretches.begin[k], stretches.begin[k + 1])
    k, p = k[pair], p[pair]
    zone = np.arange(len(s.apart))
    many = len(zone)
    return (
        np.repeat(k, many),
        np.repeat(p, many),
        np.repeat(q, many),
        np.tile(zone, len(k)).astype(np.int64),
    )


Forms = tuple["I64", "I64"]  # constants and slopes: constant + slope * row


def _quadratics(
    zones: I64, s: _Stretches, k: I64, p: I64, q: I64, zone: I64
) -> tuple[I64, I64, I64, I64]:
    """The zone's edges between two intervals as pieces: stretch, first and last row counted from
    the stretch's, and the values at the first three rows (fewer rows: zeros)."""
    i0, i1, j0, j1, d0, d1 = (zones[:, c][zone] for c in range(6))
    still = np.zeros_like(k)
    ends_p: list[Forms] = [(s.low[p], s.low_moves[p]), (s.high[p], s.high_moves[p])]
    ends_q: list[Forms] = [(s.low[q], s.low_moves[q]), (s.high[q], s.high_moves[q])]
    forms: list[Forms] = []
    for (c, m), box in [(e, b) for e in ends_p for b in (i0, i1)] + [
        (e, b) for e in ends_q for b in (j0, j1)
    ]:
        forms.append((c - box, m))
    for a, am in (*ends_p, (i0, still), (i1, still)):
        for b, bm in (*ends_q, (j0, still), (j1, still)):
            forms += [(a + d - 1 - b, am - bm) for d in (d0, d1)]
    begin, end = s.first[k], s.last[k]
    roots = [np.clip(np.where(m == 0, begin, -c * m), begin, end) for c, m in forms]
    cuts = np.sort(np.stack([begin, *roots, end]), axis=0)
    first, last = cuts[:-1].ravel(), cuts[1:].ravel()
    alive = np.flatnonzero(first < last)
    first, last = first[alive], last[alive]
    term = alive % len(k)
    values = np.zeros((len(term), 3), dtype=np.int64)
    for step in range(3):
        row = np.minimum(first + step, last - 1)
        values[:, step] = _between(
            np.maximum(i0[term], s.low[p[term]] + s.low_moves[p[term]] * row),
            np.minimum(i1[term], s.high[p[term]] + s.high_moves[p[term]] * row),
            np.maximum(j0[term], s.low[q[term]] + s.low_moves[q[term]] * row),
            np.minimum(j1[term], s.high[q[term]] + s.high_moves[q[term]] * row),
            d0[term],
            d1[term],
        )
    some = values.any(axis=1)
    first, last, term = (first - begin[term])[some], (last - begin[term])[some], term[some]
    return k[term], first, last, values[some]


def _between(u0: I64, u1: I64, v0: I64, v1: I64, d0: I64, d1: I64) -> I64:
    """#{(u, v) : u0 <= u < u1, v0 <= v < v1, d0 <= v - u < d1} by four triangles a band end."""
    empty = (u0 >= u1) | (v0 >= v1)
    under = _corners(u0, u1, v0, v1, d1) - _corners(u0, u1, v0, v1, d0)
    return np.where(empty, 0, under)


def _corners(u0: I64, u1: I64, v0: I64, v1: I64, d: I64) -> I64:
    """Pairs of the box with v - u < d."""
    total = np.zeros_like(u0)
    for u, v, sign in ((u1, v0, 1), (u0, v0, -1), (u1, v1, -1), (u0, v1, 1)):
        side = np.maximum(u + d - 1 - v, 0)
        total += sign * (side * (side + 1) // 2)
    return total


def _sum(length: I64, values: I64) -> int:
    """The sum of quadratics over their first `length` rows, from the values at the first three."""
    total = 0
    a, b, c = values.T
    for m, x, d1, d2 in np.stack([length, a, b - a, c - 2 * b + a], axis=1).tolist():
        slope, bend = (d1 if m > 1 else 0), (d2 if m > 2 else 0)
        total += m * x + m * (m - 1) // 2 * slope + m * (m - 1) * (m - 2) // 6 * bend
    return total


def _ramp(length: int, degree: int, slope: int, first: I64, last: I64, values: I64) -> float:
    """The sum of c over rows whose degree changes by `slope` a row: t is rebuilt row by row."""
    a, b, c = values.T
    size = last - first
    d1, d2 = np.where(size > 1, b - a, 0), np.where(size > 2, c - 2 * b + a, 0)
    # a piece in row r is x + y * r + z * r * r / 2, with the numbers doubled to stay whole
    x2 = 2 * a - 2 * d1 * first + d2 * first * (first + 1)
    y2 = 2 * d1 - d2 * (2 * first + 1)
    rows = np.arange(length, dtype=np.int64)
    t2 = np.zeros(length, dtype=np.int64)
    for weight, power in ((x2, 0), (y2, 1), (d2, 2)):
        change = np.zeros(length + 1, dtype=np.int64)
        np.add.at(change, first, weight)
        np.add.at(change, last, -weight)
        t2 += np.cumsum(change[:-1]) * rows**power
    k = degree + slope * rows
    good = k >= 2
    k, t = k[good], t2[good] // 2
    return float(((t - 3 * k - 1) / (k * (k - 1.0))).sum())
