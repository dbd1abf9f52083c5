"""Edges of a layer that chooses by content, where what it chose is not bound: at least, at most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import and_

import numpy as np

from patterncc.analysis.engines import offsets
from patterncc.analysis.flow.sweep_vectors import row_counts
from patterncc.analysis.parts import rewritten
from patterncc.analysis.spread import read_by, single, size
from patterncc.analysis.topology import Topology
from patterncc.pattern import Difference, Intersection, Pattern, Union
from patterncc.primitives import Full, Routing, Topk
from patterncc.zones import ZoneSet
from patterncc.zones.choice import Chooser, is_bound
from patterncc.zones.lower import leaves, lower

MOST_ROWS = 2**22  # queries up to which the bound is taken row by row


@dataclass(frozen=True, eq=False)
class Chosen:
    """One head of a layer: how many edges it has at least and at most, how many keys its last query
    reads at most, all edges that are possible, and in words what bounds them."""

    least: int
    most: int
    last: int
    possible: ZoneSet
    how: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Chooses:
    """A place in a lowered stack: a layer and one of its heads."""

    t: Topology
    layer: int
    head: int

    def measure(self, p: Pattern | None) -> Chosen:
        """The bounds of a head's pattern, or the exact figures where all of it is bound; None is a
        head without attention."""
        if p is None:
            return Chosen(0, 0, 0, self._zones(None), ())
        least, all_of_it = self._count(self._bound(p, False)), self._zones(self._bound(p, True))
        free = list(self._free(p))
        return Chosen(
            least=least,
            most=self._most(p) if free else least,
            last=self._last(p),
            possible=all_of_it if free else self._zones(_everything(p)),
            how=tuple(dict.fromkeys(map(_words, free))),
        )

    def _most(self, p: Pattern) -> int:
        """Edges at most: those that are possible, and no more than the parts allow."""
        whole = self._count(self._bound(p, True))
        if not self._open(p):
            return whole
        rows = self.t.n
        match p:
            case Topk():
                return min(whole, rows * p.count * p.block)
            case Union(parts):
                return min(whole, sum(map(self._most, parts)))
            case Intersection(parts):
                known = [q for q in parts if not self._open(q)]
                rest = [q for q in parts if self._open(q)]
                fixed = self._zones(reduce(and_, known)) if known else None
                bounds = [self._in_rows(fixed, self._row(q)) for q in rest]
                return min(whole, *bounds, *map(self._most, rest))
            case Difference(left, _):
                return min(whole, self._most(left))
        return whole

    def _in_rows(self, fixed: ZoneSet | None, most: int) -> int:
        """Edges of `fixed` (all pairs where None) if each query keeps at most so many."""
        if fixed is None or self.t.frame.n > MOST_ROWS:
            return self.t.n * most
        counts = row_counts(fixed.disjoint().table, self.t.frame.n)
        return int(np.minimum(counts, most).sum())

    def _row(self, p: Pattern) -> int:
        """Keys of one query at most."""
        keys = self.t.frame.n
        match p:
            case Topk() if self._open(p):
                return min(keys, p.count * p.block)
            case Union(parts):
                return min(keys, sum(map(self._row, parts)))
            case Intersection(parts):
                return min(map(self._row, parts))
            case Difference(left, _):
                return self._row(left)
        if self._open(p) or keys > MOST_ROWS:
            return keys
        return int(row_counts(self._zones(p).disjoint().table, keys).max(initial=0))

    def _last(self, p: Pattern) -> int:
        """Keys of the last query at most; exactly where all of the pattern is bound."""
        if not self.t.n:
            return 0
        query = single(self.t.frame.n - 1)
        whole = size(read_by(self._zones(self._bound(p, True)), query))
        if not self._open(p):
            return whole
        match p:
            case Topk():
                return min(whole, p.count * p.block)
            case Union(parts):
                return min(whole, sum(map(self._last, parts)))
            case Intersection(parts):
                return min(whole, *map(self._last, parts))
            case Difference(left, _):
                return min(whole, self._last(left))
        return whole

    def _free(self, p: Pattern) -> Iterator[Chooser]:
        """The leaves whose choice is not bound."""
        for x in leaves(p):
            if isinstance(x, Chooser) and not is_bound(x, self.t.bindings, self.layer, self.head):
                yield x

    def _open(self, p: Pattern) -> bool:
        return next(self._free(p), None) is not None

    def _bound(self, p: Pattern, everything: bool) -> Pattern | None:
        free = set(self._free(p))
        if not free:
            return p
        return rewritten(
            p, lambda x, up: x if x not in free else Full() if up == everything else None
        )

    def _count(self, p: Pattern | None) -> int:
        return 0 if p is None else offsets.count(self._zones(p))

    def _zones(self, p: Pattern | None) -> ZoneSet:
        t = self.t
        if p is None:
            return ZoneSet.make(t.frame, [])
        place, bindings = {"layer": self.layer, "head": self.head}, t.bindings
        return ZoneSet(t.frame, lower(p, t.n, t.frame.n, t.memory, **place, **bindings).table)


def chooses(p: Pattern) -> bool:
    """Some part of the pattern chooses by content."""
    return any(isinstance(x, Chooser) for x in leaves(p))


def _everything(p: Pattern) -> Pattern | None:
    return rewritten(p, lambda x, up: x if not isinstance(x, Chooser) else Full() if up else None)


def _words(leaf: Chooser) -> str:
    match leaf:
        case Topk(count, block):
            return f"{leaf} chooses at most {count * block} keys for a query"
        case Routing(clusters):
            return (
                f"{leaf} joins the tokens of one cluster: if balanced, about 1/{clusters} of what "
                "is possible"
            )
