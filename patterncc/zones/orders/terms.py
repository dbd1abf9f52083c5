"""Terms: a pattern as disjoint parts, each the zones of its edges in an order of its own.

A pattern P with a *core* L, a leaf that is boxes in another order, is split at L:

    P = (L & P1)  +  (P0 - L)          P1, P0: the pattern with L taken as everything, as nothing
    P = (L & (P1 - P0))  +  P0         where L only ever adds edges, so that P0 lies in P1

What is left beside L is split at the next core, and the rest stands in token order.  Inside the
boxes of L a condition in positions (causal, a window) is zones again, exactly: `places`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from patterncc import primitives as leaf
from patterncc.errors import SizeError
from patterncc.pattern import (
    Complement,
    Difference,
    Intersection,
    Pattern,
    Transpose,
    Union,
)
from patterncc.zones import algebra, sweep
from patterncc.zones.lower import lower
from patterncc.zones.orders.cores import Where, kind_of, period_of, places_of, residues
from patterncc.zones.orders.graph import MAX_GRAPH, best_order, graph_order, grid_order
from patterncc.zones.orders.moves import MAX_MOVED, edges_of, moved, slot_frame
from patterncc.zones.orders.order import Order
from patterncc.zones.orders.places import Places
from patterncc.zones.zoneset import ZoneSet

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

KINDS = {
    "residue": "residue",
    "clusters": "clusters",
    "summary": "summary",
    "rcm": "graph",
    "metis": "graph",
    "morton": "grid",
}
"""The orders that leaves of patterns bring along, and what kind of leaf does."""

BOXES = ("residue", "clusters", "summary")
"""Orders in which a leaf is boxes, so that what else is asked of its edges stays zones."""

MAX_CORES = 16
"""Cores of a pattern that are looked at."""

_NOTHING = Complement(leaf.Full())
_MOST_CLASSES = 2**20  # pairs of residue classes


@dataclass(frozen=True, eq=False)
class Term:
    """Some of a pattern's edges, as zones.

    order: None for zones in positions, in the frame of the pattern; else zones count slots, in
    ``Frame(n, n_k)``.
    """

    order: Order | None
    zones: ZoneSet


def prepared(p: Pattern) -> Pattern:
    """The same edges with leaves that show their cores: dilation as a stride within a window,
    LongNet and axial as unions of parts, transposes at the leaves.

    >>> from patterncc import dilated
    >>> prepared(dilated(8, step=4).T)
    strided(4) & window(0, 8)
    """
    match p:
        case Union(parts):
            return _union([prepared(x) for x in parts])
        case Intersection(parts):
            return _intersection([prepared(x) for x in parts])
        case Difference(left, right):
            return _difference(prepared(left), prepared(right))
        case Complement(of):
            return _complement(prepared(of))
        case Transpose(of):
            return _transposed(prepared(of))
        case leaf.Dilated(left, right, step) if step > 1:
            return _intersection([leaf.Strided(step), leaf.Window(left, right)])
        case leaf.LongNet(segments, rates):
            return _union([leaf.LongNet((s,), (r,)) for s, r in zip(segments, rates)])
        case leaf.Axial(shape):
            return _axes(shape)
    return p


def _axes(shape: Sequence[int]) -> Pattern:
    """A chunk for the last axis; for another one, strides within the span of that axis."""
    whole = leaf.Prefix(math.prod(shape))
    parts = []
    for axis in reversed(range(len(shape))):
        step = math.prod(shape[axis + 1 :])
        chunk = leaf.Chunked(step * shape[axis])
        parts.append(
            _intersection([leaf.Strided(step), chunk, whole] if step > 1 else [chunk, whole])
        )
    return _union(parts)


def cores(p: Pattern, names: Collection[str] = BOXES) -> list[Pattern]:
    """The different cores of a prepared pattern, from left to right."""
    kinds = {KINDS[name] for name in names}
    return list(dict.fromkeys(x for x in _leaves(p) if kind_of(x) in kinds))


def _leaves(p: Pattern) -> Iterator[Pattern]:
    """The leaves, a transposed one as it stands."""
    match p:
        case Union(parts) | Intersection(parts):
            for part in parts:
                yield from _leaves(part)
        case Difference(left, right):
            yield from _leaves(left)
            yield from _leaves(right)
        case Complement(of):
            yield from _leaves(of)
        case _:
            yield p


def terms(p: Pattern, where: Where, names: Collection[str] = BOXES) -> list[Term]:
    """The terms of a pattern, split at its cores of some kinds; the rest in token order.

    >>> from patterncc import causal, strided, window
    >>> from patterncc.zones.zoneset import Frame
    >>> p = causal() & (strided(4) | window(1))
    >>> for t in terms(p, Where(Frame.of(8))):
    ...     print(t.order.name if t.order else "token", t.zones.count())
    residue 4 4
    token 15

    Raises SizeError where a part stays too large.
    """
    rest = prepared(p)
    made: list[Term] = []
    # clusters first: what is split before them would list them in positions
    found = sorted(cores(rest, names)[:MAX_CORES], key=lambda x: kind_of(x) == "clusters")
    for core in reversed(found):
        inside, outside = _put(rest, core, leaf.Full()), _put(rest, core, _NOTHING)
        grows = _grows(rest, core)
        piece = _difference(inside, outside) if grows else inside
        if _nothing(piece):
            continue
        term = _core_term(core, piece, where, names)
        if len(term.zones):
            made.append(term)
        rest = outside if grows else _difference(outside, core)
    if not _nothing(rest):
        zones = _lowered(rest, where)
        if len(zones):
            made.append(Term(None, zones))
    return made or [Term(None, _lowered(_NOTHING, where))]


def plain_term(p: Pattern, where: Where) -> Term:
    """The whole pattern in token order."""
    zones = _lowered(p, where)
    if cores(p, ("rcm",)):  # an order for the graph would ask for it again
        where.known[p] = zones
    return Term(None, zones)


def _core_term(core: Pattern, piece: Pattern, where: Where, names: Collection[str]) -> Term:
    """The edges of a core that are in a piece, in an order of the core's."""
    kind, frame = kind_of(core), slot_frame(where.frame)
    if kind not in ("graph", "grid"):
        places = places_of(core, _period(core, piece), where)
        try:
            return Term(places.order, ZoneSet(frame, _within(piece, places, where)))
        except SizeError:  # few edges may still be moved one by one
            zones = _lowered(_intersection([core, piece]), where)
            return Term(places.order, moved(zones, places.order))
    zones = _lowered(_intersection([core, piece]), where)
    (name,) = (x for x in names if KINDS[x] == kind)
    key = (name, core, piece)
    if key not in where.orders:
        where.orders[key] = _found(name, core, zones, where.unasked)
    order = where.orders[key]
    return Term(order, moved(zones, order, MAX_GRAPH if kind == "graph" else MAX_MOVED))


def _found(name: str, core: Pattern, zones: ZoneSet, unasked: bool) -> Order:
    """The order of a graph or a grid."""
    if name == "morton":
        grid = core.of if isinstance(core, Transpose) else core
        assert isinstance(grid, leaf.Grid)
        return grid_order(grid, zones.frame)
    i, j = edges_of(zones, MAX_GRAPH)
    return best_order(i, j, zones.frame) if unasked else graph_order(name, i, j, zones.frame)


def _lowered(p: Pattern, where: Where) -> ZoneSet:
    if p in where.known:
        return where.known[p]
    f = where.frame
    drawn = {"layer": where.layer, "head": where.head}
    return lower(p, f.n, f.n_k, f.q_offset, f.k_offset, **drawn, **where.bindings)  # type: ignore[arg-type]


def _period(core: Pattern, piece: Pattern) -> int:
    """A period in which the core's classes and those of what is asked inside it are whole."""
    own = period_of(core)
    least = reduce(math.lcm, (period_of(x) for x in cores(piece, ("residue",))), own)
    return least if own > 1 and least * (least // own) <= _MOST_CLASSES else own


def _within(p: Pattern, places: Places, where: Where) -> I64:
    """The edges of a pattern inside the rectangles, in slots."""
    if not any(_by_class(x, places) for x in _leaves(p)):
        return places.seen(_lowered(p, where).table)
    match p:
        case Union(parts):
            return np.concatenate([_within(x, places, where) for x in parts])
        case Intersection(parts):
            return _met(parts, places, where)
        case Difference(left, right):
            return sweep.difference(_within(left, places, where), _within(right, places, where))
        case Complement(of):
            return sweep.difference(places.table(), _within(of, places, where))
        case leaf.Strided(stride):
            return places.only(stride).table()
        case leaf.LongNet():
            own = residues(p, places.base, places.step, where)
            return algebra.intersect(places.table(), own.table())
        case leaf.Chunked():  # tokens of one class lie in different chunks
            same, others = places.only(places.step), places.only(places.step, apart=True)
            alone = same.seen(_lowered(leaf.Window(0), where).table)
            return np.concatenate([alone, others.seen(_lowered(p, where).table)])
    raise AssertionError(f"{p} has no classes")


def _by_class(p: Pattern, places: Places) -> bool:
    """A leaf that is settled class by class, without its zones in positions."""
    match p:
        case leaf.Strided(stride) if stride > 1:
            return places.step % stride == 0 and places.step > 0
        case leaf.LongNet(rates=(rate,)) if rate > 1:
            return places.step % rate == 0 and places.step > 0
        case leaf.Chunked(size) if size > 1:
            return size <= places.step
    return False


def _met(parts: Sequence[Pattern], places: Places, where: Where) -> I64:
    """Parts without classes are met in positions, where they are few zones."""
    plain = [x for x in parts if not any(_by_class(y, places) for y in _leaves(x))]
    asked = [*([_intersection(plain)] if plain else []), *(x for x in parts if x not in plain)]
    return reduce(algebra.intersect, (_within(x, places, where) for x in asked))


def _put(p: Pattern, core: Pattern, value: Pattern) -> Pattern:
    """The pattern with a value in the place of a core, simplified."""
    match p:
        case _ if p is core or p == core:
            return value
        case Union(parts):
            return _union([_put(x, core, value) for x in parts])
        case Intersection(parts):
            return _intersection([_put(x, core, value) for x in parts])
        case Difference(left, right):
            return _difference(_put(left, core, value), _put(right, core, value))
        case Complement(of):
            return _complement(_put(of, core, value))
    return p


def _grows(p: Pattern, core: Pattern) -> bool:
    """Whether the core stands nowhere in what is taken away."""
    match p:
        case Union(parts) | Intersection(parts):
            return all(_grows(x, core) for x in parts)
        case Difference(left, right):
            return _grows(left, core) and core not in _leaves(right)
        case Complement(of):
            return core not in _leaves(of)
    return True


def _nothing(p: Pattern) -> bool:
    return isinstance(p, Complement) and isinstance(p.of, leaf.Full)


def _union(parts: Sequence[Pattern]) -> Pattern:
    kept = [x for x in parts if not _nothing(x)]
    if any(isinstance(x, leaf.Full) for x in kept):
        return leaf.Full()
    return reduce(lambda a, b: a | b, kept) if kept else _NOTHING


def _intersection(parts: Sequence[Pattern]) -> Pattern:
    kept = [x for x in parts if not isinstance(x, leaf.Full)]
    if any(_nothing(x) for x in kept):
        return _NOTHING
    return reduce(lambda a, b: a & b, kept) if kept else leaf.Full()


def _difference(left: Pattern, right: Pattern) -> Pattern:
    if _nothing(left) or isinstance(right, leaf.Full) or left == right:
        return _NOTHING
    if _nothing(right):
        return left
    return _complement(right) if isinstance(left, leaf.Full) else left - right


def _complement(of: Pattern) -> Pattern:
    return leaf.Full() if _nothing(of) else ~of


def _transposed(p: Pattern) -> Pattern:
    """The transpose of a prepared pattern, at its leaves."""
    match p:
        case Union(parts):
            return _union([_transposed(x) for x in parts])
        case Intersection(parts):
            return _intersection([_transposed(x) for x in parts])
        case Difference(left, right):
            return _difference(_transposed(left), _transposed(right))
        case Complement(of):
            return _complement(_transposed(of))
        case leaf.Window(left, right, block):
            return leaf.Window(right, left, block)
        case leaf.Clusters(labels, keys) if keys is not None:
            return leaf.Clusters(keys, labels)
        case _ if isinstance(p, _SYMMETRIC):
            return p
    return p.T


_SYMMETRIC = (
    leaf.Full,
    leaf.Strided,
    leaf.Chunked,
    leaf.Prefix,
    leaf.LongNet,
    leaf.Documents,
    leaf.Clusters,
    leaf.Routing,
)
"""Leaves that read both ways alike."""
