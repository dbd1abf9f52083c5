"""Vectors carried through zones: u -> u A by prefix sums, at a cost that does not know the edges.

With S[k] = u[0] + ... + u[k - 1], the zone i0 i1 j0 j1 d0 d1 gives key j of [j0, j1)

    S[min(i1, j - d0 + 1)] - S[max(i0, j - d1 + 1)]

the sum over the queries of the zone that read j.  Both ends are constant or move along with j, so a
wide zone is at most three slices; many small zones are one sorted pass.  S never falls, so nothing
becomes negative, and a key whose readers all carry 0 gets exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from patterncc.zones.algebra import clip, expand, take, tighten, transpose
from patterncc.zones.sweep import disjoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]

FEW = 64  # zones up to which each is worth its own slices
NARROW = 512  # keys of a zone below which an index is quicker than slices
CHUNK = 2**15  # keys that one slice operation touches: what a core's cache holds
BLOCK = 2**14  # numbers that are summed before they are added to the sum of those before


@dataclass(frozen=True, eq=False)
class Slices:
    """Wide zones: for keys [j0, j1) add S[high] - S[low]; a moving end starts at its value."""

    rows: tuple[tuple[int, int, int, bool, int, bool], ...]  # j0 j1 low moves high moves

    def add(self, sums: F64, out: F64) -> None:
        """out[j0:j1] += S[high] - S[low] for every row."""
        for j0, j1, low, low_moves, high, high_moves in self.rows:
            if not low_moves and not high_moves:
                out[j0:j1] += sums[high] - sums[low]
                continue
            for a in range(0, j1 - j0, CHUNK):
                b = min(a + CHUNK, j1 - j0)
                top = sums[high + a : high + b] if high_moves else sums[high]
                out[j0 + a : j0 + b] += top - (sums[low + a : low + b] if low_moves else sums[low])


@dataclass(frozen=True, eq=False)
class Boxes:
    """Many boxes: keys are cut into stretches where no box begins or ends; box -> stretch pairs."""

    i0: I64
    i1: I64
    box: NDArray[np.intp]
    stretch: NDArray[np.intp]
    first: int
    lengths: I64

    def add(self, sums: F64, out: F64) -> None:
        """Each stretch gets the sum over its boxes, each key its stretch's."""
        weight = (sums[self.i1] - sums[self.i0])[self.box]
        value = np.bincount(self.stretch, weight, len(self.lengths))
        out[self.first : self.first + int(self.lengths.sum())] += np.repeat(value, self.lengths)


@dataclass(frozen=True, eq=False)
class Singles:
    """Many single edges, in any order."""

    query: I64
    key: I64

    def add(self, sums: F64, out: F64) -> None:
        """out[key] += S[query + 1] - S[query]."""
        for a in range(0, len(self.key), 2**22):
            query, key = self.query[a : a + 2**22], self.key[a : a + 2**22]
            out += np.bincount(key, sums[query + 1] - sums[query], len(out))


@dataclass(frozen=True, eq=False)
class Entries:
    """Many small slanted zones: one entry a key of each zone."""

    key: I64
    low: I64
    high: I64

    def add(self, sums: F64, out: F64) -> None:
        """out[key] += S[high] - S[low], entries of one key summed."""
        for a in range(0, len(self.key), 2**20):
            part = slice(a, a + 2**20)
            key = self.key[part]
            first = int(key[0])
            found = np.bincount(key - first, sums[self.high[part]] - sums[self.low[part]])
            out[first : first + len(found)] += found


@dataclass(frozen=True, eq=False)
class Carrier:
    """One set of edges made ready to carry vectors of `size` positions."""

    size: int
    steps: tuple[Slices | Singles | Boxes | Entries, ...]

    @property
    def entries(self) -> int:
        """Numbers that its indices hold, for a budget of memory."""
        total = 0
        for step in self.steps:
            match step:
                case Slices(rows):
                    total += 6 * len(rows)
                case Singles(key=key):
                    total += 2 * len(key)
                case Boxes(box=box, lengths=lengths):
                    total += 4 * len(box) + len(lengths)
                case Entries(key=key):
                    total += 3 * len(key)
        return total

    def add(self, sums: F64, out: F64) -> None:
        """out += u A, where sums[k] = u[0] + ... + u[k - 1] (size + 1 numbers)."""
        for step in self.steps:
            step.add(sums, out)


def carrier(table: I64, size: int) -> Carrier:
    """Sort disjoint tight zones into the ways in which they are carried.

    >>> from patterncc import causal, lower, window
    >>> carrier(lower(causal() & window(3), 64).table, 64).steps
    (Slices(rows=((0, 61, 0, True, 4, True), (61, 64, 61, True, 64, False))),)
    """
    steps: list[Slices | Singles | Boxes | Entries] = []
    single = (table[:, 1] - table[:, 0] == 1) & (table[:, 3] - table[:, 2] == 1)
    if np.count_nonzero(single) > size // 16:
        steps.append(Singles(table[single, 0], table[single, 2]))
        table = take(table, ~single)
    i0, i1, j0, j1, d0, d1 = table.T
    slanted = (d0 > j0 - i1 + 1) | (d1 < j1 - i0)
    boxes, bands = take(table, ~slanted), take(table, slanted)
    if len(boxes) > FEW:
        steps.append(_boxes(boxes))
        boxes = boxes[:0]
    if len(bands) > FEW:
        narrow = bands[:, 3] - bands[:, 2] < NARROW
        if narrow.any():
            steps.append(_entries(take(bands, narrow)))
            bands = take(bands, ~narrow)
    return Carrier(size, (wide_slices(np.concatenate([boxes, bands])), *steps))


def wide_slices(table: I64) -> Slices:
    """Every zone of a table as slices."""
    return Slices(tuple(row for zone in table.tolist() for row in _slices(*zone)))


def _slices(
    i0: int, i1: int, j0: int, j1: int, d0: int, d1: int
) -> list[tuple[int, int, int, bool, int, bool]]:
    """A zone's keys, cut where an end of its queries begins or stops moving."""
    stops, starts = min(max(i1 + d0, j0), j1), min(max(i0 + d1 - 1, j0), j1)
    cuts = sorted({j0, stops, starts, j1})
    rows = []
    for a, b in pairwise(cuts):
        low, high = (a >= starts, a - d1 + 1), (a < stops, a - d0 + 1)
        rows.append((a, b, low[1] if low[0] else i0, low[0], high[1] if high[0] else i1, high[0]))
    return rows


def _boxes(table: I64) -> Boxes:
    i0, i1, j0, j1, _, _ = table.T
    cuts = np.sort(np.concatenate([j0, j1]))
    cuts = cuts[np.append(True, cuts[1:] != cuts[:-1])]
    box, stretch = expand(np.searchsorted(cuts, j0), np.searchsorted(cuts, j1))
    return Boxes(i0.copy(), i1.copy(), box, stretch, int(cuts[0]), np.diff(cuts))


def _entries(table: I64) -> Entries:
    table = take(table, np.argsort(table[:, 2], kind="stable"))
    i0, i1, j0, j1, d0, d1 = table.T
    zone, key = expand(j0, j1)
    order = np.argsort(key, kind="stable")
    zone, key = zone[order], key[order]
    low, high = np.maximum(i0[zone], key - d1[zone] + 1), np.minimum(i1[zone], key - d0[zone] + 1)
    return Entries(key, low, high)


def prefix_sums(v: F64, weights: F64, out: F64) -> F64:
    """S[0] = 0 and S[k] = u[0] + ... + u[k - 1] for u = v * weights, into `out` (one longer).

    Summed block by block: the rounding error grows with the block and the number of blocks, not
    with their product, and every block stays in the cache.  S never falls.
    """
    out[0] = before = 0.0
    for a in range(0, len(v), BLOCK):
        u = v[a : a + BLOCK] * weights[a : a + BLOCK]
        part = out[a + 1 : a + 1 + BLOCK]
        np.cumsum(u, out=part)
        part += before
        before = float(part[-1])
    return out


def dot(a: F64, b: F64) -> float:
    """The sum of products, in this thread: BLAS would start others for less than a millisecond."""
    return float(np.einsum("i,i->", a, b))


def row_counts(table: I64, size: int) -> F64:
    """How many keys each query of disjoint zones reads, exactly (below 2**53)."""
    counts = np.zeros(size)
    carrier(transpose(table), size).add(np.arange(size + 1, dtype=np.float64), counts)
    return counts


@dataclass(frozen=True, eq=False)
class Part:
    """Heads that agree: weights[i] = (1 - alpha) * their share of the heads / keys of query i.

    `table` are their zones, disjoint; a query without keys has weight 0.
    """

    table: I64
    weights: F64
    carried: Carrier


@dataclass(frozen=True, eq=False)
class Mixing:
    """One layer's P = alpha I + (1 - alpha) * mean over heads of D^-1 A, ready to carry vectors.

    `kept` is alpha and, where heads have empty rows (an array then), their share of (1 - alpha).
    """

    parts: tuple[Part, ...]
    kept: F64 | float

    @property
    def entries(self) -> int:
        """Numbers that it holds."""
        return sum(len(p.weights) + p.table.size + p.carried.entries for p in self.parts)

    @property
    def few(self) -> bool:
        """So few zones that cutting them to the positions in use is worth it."""
        return all(len(p.table) <= FEW for p in self.parts)

    def pull(self, v: F64, out: F64, sums: F64) -> None:
        """v P into `out`; `sums` is scratch, one longer than v."""
        np.multiply(v, self.kept, out=out)
        self.read(v, out, sums)

    def read(self, v: F64, out: F64, sums: F64) -> None:
        """Only what attention brings, without what stays, added to `out`."""
        for part in self.parts:
            part.carried.add(prefix_sums(v, part.weights, sums), out)

    def pull_within(self, v: F64, out: F64, sums: F64, now: I64) -> None:
        """The same where v and what `out` held are 0 outside the intervals `now`."""
        for a, b in now.tolist():
            kept = self.kept if isinstance(self.kept, float) else self.kept[a:b]
            out[a:b] = v[a:b] * kept
        size = len(v)
        for part in self.parts:
            for a, b in now.tolist():
                prefix_sums(v[a:b], part.weights[a:b], sums[a : b + 1])
                cut = tighten(clip(part.table, (a, b, 0, size)))
                wide_slices(cut).add(sums, out)


def mixing(tables: list[I64], shares: list[float], size: int, alpha: float) -> Mixing:
    """P of a layer from each distinct head's zones and the share of heads that have them."""
    parts, kept = [], np.full(size, alpha)
    for table, share in zip(tables, shares, strict=True):
        zones = disjoint(table)
        counts = row_counts(zones, size)
        empty = counts == 0
        kept[empty] += (1 - alpha) * share
        weights = (1 - alpha) * share / np.maximum(counts, 1)
        weights[empty] = 0
        parts.append(Part(zones, weights, carrier(zones, size)))
    same = bool((kept == alpha).all())
    return Mixing(tuple(parts), alpha if same else kept)
