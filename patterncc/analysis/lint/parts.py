"""Findings about parts of a pattern: unions that repeat themselves, intersections that cut nothing.

A part is useless when the pattern without it has the same edges.  Every question is one of
containment: are the edges of one pattern all in some others?  A few corner edges usually say no at
once; else the zones are subtracted, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import and_, or_
from typing import Literal, assert_never

import numpy as np

from patterncc.analysis.lint.finding import Finding
from patterncc.analysis.lint.places import Family, Spot, quoted
from patterncc.analysis.topology import MOST_POSITIONS, Topology, is_causal
from patterncc.errors import PatternError, SizeError
from patterncc.pattern import Difference, Intersection, Pattern, Primitive, Transpose, Union
from patterncc.primitives import (
    Boxes,
    Causal,
    Clusters,
    Documents,
    Edges,
    Full,
    Recurrent,
    Routing,
    Spans,
    Topk,
)
from patterncc.zones import algebra, sweep
from patterncc.zones.lower import leaves, lower

MOST_LOWERED = 2**18  # zones of a part that is looked at
MOST_PIECES = 2**18  # pieces into which zones are cut to be subtracted
MOST_FOUND = 8  # useless parts that are told of one pattern
MOST_PROBED = 512  # zones whose corner edges are looked up first
_COMPARED = 2**20  # pairs of a corner edge and a zone that holds its query
_LONGER = 4  # what holds at n and at 4 n is not for the length's sake
_NO_ZONES = np.empty((0, 6), dtype=np.int64)
_DATA = (Documents, Clusters, Routing, Topk, Edges, Spans, Boxes)  # they change from batch to batch

Kind = Literal["adds", "cuts", "takes"]
Wrap = Callable[[Pattern], Pattern]


@dataclass(frozen=True)
class Part:
    """A part of a pattern, useless when every edge of `alone` is in one of `rest`.

    A part of a union *adds* edges, one of an intersection *cuts* them, the right side of a
    difference *takes* them.  `without` is the pattern without the part; of a union `most` is all
    that its place allows, and `always` says that another part holds everything at any length.
    """

    kind: Kind
    part: Pattern
    alone: Pattern
    rest: tuple[Pattern, ...]
    without: Pattern
    most: Pattern = field(default_factory=Full)
    always: bool = False


def useless_parts(t: Topology, families: tuple[Family, ...]) -> Iterator[Finding]:
    """PCC107 parts that add no edge, PCC108 parts that cut nothing, PCC114 what was too large."""
    for family in families:
        if not family.masked or not all(len(s.zones) for s in family.spots):
            continue
        pattern = family.pattern
        data = any(isinstance(p, _DATA) for p in leaves(pattern))
        draws = [_Draw(t, s, {(pattern, t.n): s.zones.table}) for s in family.spots]
        for _ in range(MOST_FOUND):
            unknown = None
            for part in parts_of(pattern):
                useless = _useless(draws, part, data)
                if useless:
                    break
                if useless is None:
                    unknown = unknown or part
            else:
                if unknown:
                    yield _unknown(family, unknown)
                break
            yield _finding(t.n, family, pattern, part)
            pattern = part.without


def parts_of(pattern: Pattern) -> Iterator[Part]:
    """Every part that may be useless; later parts of a union first, so that of two the first stays.

    >>> from patterncc import causal, sink, window
    >>> for p in parts_of(causal() & (window(3) | sink(1))):
    ...     print(p.kind, p.part, "->", p.without)
    adds sink(1) -> causal() & window(3)
    adds window(3) -> causal() & sink(1)
    cuts window(3) | sink(1) -> causal()
    """
    yield from _parts(pattern, lambda p: p, lambda p: p, ())


def _parts(p: Pattern, alone: Wrap, whole: Wrap, beside: tuple[Pattern, ...]) -> Iterator[Part]:
    """Parts of a node: `alone` puts a pattern in its place, `whole` with what stands beside it."""
    match p:
        case Union(parts):
            for k in reversed(range(len(parts))):
                others = parts[:k] + parts[k + 1 :]
                rest = (*map(alone, others), *beside)
                left = reduce(or_, others)
                always = any(isinstance(q, Causal | Full | Recurrent) for q in others)
                yield Part(
                    *("adds", parts[k], alone(parts[k]), rest, whole(left), alone(Full()), always)
                )
                yield from _parts(parts[k], alone, _in(whole, or_, left), rest)
        case Intersection(parts):
            for k, part in enumerate(parts):
                left = reduce(and_, parts[:k] + parts[k + 1 :])
                yield from _parts(part, _in(alone, and_, left), _in(whole, and_, left), beside)
                if not isinstance(part, Causal | Full):  # they say what is meant
                    yield Part(*("cuts", part, alone(left), (alone(p), *beside), whole(left)))
        case Difference(left, right):
            yield from _parts(left, lambda x: alone(x - right), lambda x: whole(x - right), beside)
            yield Part("takes", right, alone(left), (alone(p), *beside), whole(left))
        case Transpose(of):
            yield from _parts(of, lambda x: alone(x.T), lambda x: whole(x.T), beside)


def _in(wrap: Wrap, join: Callable[[Pattern, Pattern], Pattern], left: Pattern) -> Wrap:
    """A pattern joined with what stands beside it, then put in its place."""
    return lambda x: wrap(join(left, x))


@dataclass(frozen=True, eq=False)
class _Draw:
    """Where parts are lowered: as the layer and head of a spot; `tables` holds what was."""

    t: Topology
    spot: Spot
    tables: dict[tuple[Pattern, int], algebra.I64]

    def table(self, pattern: Pattern, n: int) -> algebra.I64:
        """The zones of a pattern at n queries; SizeError above MOST_LOWERED."""
        if (pattern, n) not in self.tables:
            self.tables[pattern, n] = self._lowered(pattern, n, self.t.memory, self.t.memory + n)
        return self.tables[pattern, n]

    def _lowered(self, pattern: Pattern, rows: int, first: int, size: int) -> algebra.I64:
        at = {"layer": self.spot.layer, "head": self.spot.head, "max_zones": MOST_LOWERED}
        return lower(pattern, rows, size, first, **at, **self.t.bindings).table

    def covered(self, inner: Pattern, outer: tuple[Pattern, ...], n: int = 0) -> bool | None:
        """Whether the outer patterns hold all edges of the inner one; None: too many zones to say.

        An inner pattern that is too large while the outer ones are not is taken as not covered.
        """
        n = n or self.t.n
        try:
            tables = [self.table(p, n) for p in outer]
        except SizeError:
            return self._covered_in_rows(inner, outer, n)
        try:
            return covered(self.table(inner, n), np.concatenate([_NO_ZONES, *tables]))
        except SizeError:
            return False

    def _covered_in_rows(
        self, inner: Pattern, outer: tuple[Pattern, ...], n: int
    ) -> Literal[False] | None:
        """False where a query in the middle or the last one reads a key by the inner pattern alone;
        None, for all that two queries can say, where they do not."""
        first = self.t.memory
        for query in (first + n // 2, first + n - 1):
            try:
                tables = [self._lowered(p, 1, query, first + n) for p in (inner, *outer)]
            except SizeError:
                continue
            if not covered(tables[0], np.concatenate([_NO_ZONES, *tables[1:]])):
                return False
        return None


def _useless(draws: list[_Draw], part: Part, data: bool) -> bool | None:
    """Whether a part changes no edge, in every draw and not for the length's sake; None where the
    zones are too many to say."""
    if data and part.kind != "adds":
        return False
    for draw in draws:
        if not (verdict := draw.covered(part.alone, part.rest)):
            return verdict
    first = draws[0]
    if part.kind == "adds" and isinstance(part.part, Primitive) and first.covered(part.part, ()):
        return False  # switched off by its own arguments: sink(0), global_tokens([])
    return not _for_the_length(first, part, data)


def _for_the_length(draw: _Draw, part: Part, data: bool) -> bool:
    """The sequence is so short that the part has nothing left to add or to cut."""
    allowed = Causal() if is_causal(draw.spot.zones) else Full()
    match part.kind:
        case "adds":
            most = part.most if data else allowed
            short = not part.always and draw.covered(most, part.rest)
        case "cuts":
            short = draw.covered(allowed, (part.part,)) or draw.covered(allowed, part.rest[1:])
        case "takes":
            short = draw.covered(part.part, ())
        case _:
            assert_never(part.kind)
    longer = _LONGER * draw.t.n
    if short or draw.t.memory + longer > MOST_POSITIONS:
        return bool(short)
    try:
        return draw.covered(part.alone, part.rest, longer) is False
    except PatternError:  # labels and graphs have a length of their own
        return False


def covered(inner: algebra.I64, outer: algebra.I64) -> bool | None:
    """Whether every edge of one table is in the other; None where they are too large to subtract.

    >>> inside, table = np.array([[4, 8, 0, 2, -7, 2]]), np.array([[0, 8, 0, 3, -7, 3]])
    >>> covered(inside, table), covered(table, inside)
    (True, False)
    """
    if not len(inner):
        return True
    if not len(outer) or not _corners_inside(inner, outer):
        return False
    inner = _in_no_single(inner, outer)
    if not len(inner):
        return True
    low, high = inner.min(axis=0), inner.max(axis=0)
    meets = (outer[:, 0::2] < high[1::2]).all(axis=1) & (outer[:, 1::2] > low[0::2]).all(axis=1)
    outer = algebra.take(outer, meets)
    both = np.concatenate([inner, outer])
    cuts = np.sort(np.concatenate([both[:, 0], both[:, 1]]))
    pieces = np.searchsorted(cuts, both[:, 1]) - np.searchsorted(cuts, both[:, 0])
    if int(pieces.sum()) > MOST_PIECES:
        return None
    return not len(sweep.difference(inner, outer))


def _in_no_single(inner: algebra.I64, outer: algebra.I64) -> algebra.I64:
    """The zones of one table that do not lie inside a single zone of the other; all where too many
    pairs would have to be looked at."""
    axes = [(inner[:, k], inner[:, k + 1], outer[:, k], outer[:, k + 1]) for k in (0, 2, 4)]
    counts = [algebra.count_pairs(*axis) for axis in axes]
    if min(counts) > _COMPARED:
        return inner
    left, right = algebra.overlapping_pairs(*axes[int(np.argmin(counts))])
    a, b = algebra.take(inner, left), algebra.take(outer, right)
    inside = (a[:, 0::2] >= b[:, 0::2]).all(axis=1) & (a[:, 1::2] <= b[:, 1::2]).all(axis=1)
    alone = np.ones(len(inner), dtype=bool)
    alone[left[inside]] = False
    return algebra.take(inner, alone)


def _corners_inside(inner: algebra.I64, outer: algebra.I64) -> bool:
    """Whether ends and middle of the first, middle and last row of some zones are in `outer`."""
    most = min(len(inner), MOST_PROBED)
    picked = algebra.take(inner, np.linspace(0, len(inner) - 1, most).astype(np.int64))
    i0, i1, j0, j1, d0, d1 = picked.T
    i = np.concatenate([i0, (i0 + i1) // 2, i1 - 1])
    low = np.maximum(np.tile(j0, 3), i + np.tile(d0, 3))
    high = np.minimum(np.tile(j1, 3), i + np.tile(d1, 3)) - 1
    i, j = np.tile(i, 3), np.concatenate([low, (low + high) // 2, high])
    while len(i) > 9 and algebra.count_pairs(i, i + 1, outer[:, 0], outer[:, 1]) > _COMPARED:
        i, j = i[::2], j[::2]
    point, zone = algebra.overlapping_pairs(i, i + 1, outer[:, 0], outer[:, 1])
    _, _, b0, b1, c0, c1 = algebra.take(outer, zone).T
    i_at, j_at = i[point], j[point]
    held = (b0 <= j_at) & (j_at < b1) & (c0 <= j_at - i_at) & (j_at - i_at < c1)
    return len(np.unique(point[held])) == len(i)


def _finding(n: int, family: Family, pattern: Pattern, part: Part) -> Finding:
    text = quoted(part.part)
    match part.kind:
        case "adds":
            again = isinstance(pattern, Union) and pattern.parts.count(part.part) > 1
            why = (
                "it stands there twice"
                if again
                else "all of its edges are in the other parts of the union"
            )
            return Finding.of(
                "PCC107",
                f"{family.place()}: {text} adds no edge at n={n}: {why}",
                "remove it; or let it read more, if it was meant to",
            )
        case "cuts":
            message = f"{text} cuts nothing at n={n}: what it is intersected with lies inside it"
        case "takes":
            message = f"- {text} takes nothing away at n={n}: no edge to its left is in it"
    return Finding.of(
        "PCC108",
        f"{family.place()}: {message}",
        "remove it; or narrow it, if it was meant to cut",
    )


def _unknown(family: Family, part: Part) -> Finding:
    return Finding.of(
        "PCC114",
        f"{family.place()}: whether {quoted(part.part)} changes any edge was not looked at: it "
        f"would cut the zones into more than {MOST_PIECES:,} pieces",
        "lint a shorter length: patterncc check --n 4096 FILE",
    )
