"""Cores: leaves that are boxes in an order of their own, and the rectangles that they are there.

| core | order | its edges in slots |
|---|---|---|
| strided(s), so also dilation and the axes of axial | residue classes | a box a class |
| one segment length and rate of LongNet | residue classes | a box a segment |
| clusters, routing | by label | a box a label |
| summary(stride, width) | summary keys first | one box |
| edges | Cuthill-McKee or METIS | its edges, moved one by one |
| grid | Morton, by squares | its bands, moved run by run |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from patterncc import primitives as leaf
from patterncc.pattern import Pattern, Transpose
from patterncc.zones.algebra import MAX_ZONES
from patterncc.zones.choice import chosen
from patterncc.zones.labels import label_pairs
from patterncc.zones.lower import RULES
from patterncc.zones.orders.order import Order
from patterncc.zones.orders.places import Places
from patterncc.zones.site import Region, Site, integers
from patterncc.zones.zoneset import Frame, ZoneSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

MAX_PERIOD = 2**20
"""The longest stride that is laid out by residue classes."""


@dataclass(frozen=True, eq=False)
class Where:
    """What lowering by terms may look at, as in `lower`.

    orders: made once and shared between heads.  known: graphs of this head, lowered already.
    unasked: a graph gets the best order found, and none that saves no tiles.
    """

    frame: Frame
    layer: int = 0
    head: int = 0
    bindings: Mapping[str, object] = field(default_factory=dict)
    orders: dict[object, Order] = field(default_factory=dict)
    known: dict[Pattern, ZoneSet] = field(default_factory=dict)
    unasked: bool = False

    @property
    def site(self) -> Site:
        """The same place for the rules of `lower`."""
        region = Region(*self.frame.box).meet(Region(*self.frame.box))
        return Site(self.frame, region, self.layer, self.head, MAX_ZONES, self.bindings)


def kind_of(p: Pattern) -> str | None:
    """The name of the order that a leaf (or the transpose of one) is a core of."""
    match p:
        case leaf.Strided(stride) if 1 < stride <= MAX_PERIOD:
            return "residue"
        case leaf.LongNet(rates=(rate,)) if 1 < rate <= MAX_PERIOD:
            return "residue"
        case leaf.Clusters() | leaf.Routing():
            return "clusters"
        case leaf.Summary(stride, width) | Transpose(leaf.Summary(stride, width)) if width < stride:
            return "summary"
        case leaf.Edges() | Transpose(leaf.Edges()):
            return "graph"
        case leaf.Grid() | Transpose(leaf.Grid()):
            return "grid"
    return None


def period_of(p: Pattern) -> int:
    """The stride that a leaf repeats at, 1 where it has none."""
    match p:
        case leaf.Strided(stride):
            return stride
        case leaf.LongNet(rates=(rate,)):
            return rate
    return 1


def places_of(core: Pattern, period: int, where: Where) -> Places:
    """The rectangles of a core, in an order by `period` where it is laid out by residues."""
    match core:
        case leaf.Strided() | leaf.LongNet():
            return residues(core, period_of(core), period, where)
        case leaf.Clusters() | leaf.Routing():
            return _clusters(core, where)
        case leaf.Summary():
            return _summary(core, where)
        case Transpose(leaf.Summary() as turned):
            return _turned(_summary(turned, _seen_from_keys(where)), where)
    raise AssertionError(f"{core} is no core")


def residues(core: Pattern, base: int, period: int, where: Where) -> Places:
    """The rectangles of a stride or a part of LongNet among classes modulo `period`, which stand
    in the order of their classes modulo `base`; the core's own stride divides the period."""
    f = where.frame
    stride = period_of(core)
    if isinstance(core, leaf.LongNet):
        (size,) = core.segments
        a, b = max(f.q_offset, f.k_offset), min(f.q_offset + f.n, f.k_offset + f.n_k)
        first = np.arange(a // size, max(a // size, -(-b // size)), dtype=np.int64) * size
        own = (first + where.head % stride) % stride
        first = first + where.head % stride  # what stands before it in its segment is of no class
        size -= where.head % stride
    else:
        size, own = 2**42, np.arange(stride, dtype=np.int64)
        first = np.zeros_like(own)
    fine = np.arange(0, period, stride, dtype=np.int64)
    shape = (len(own), len(fine), len(fine))
    first = np.broadcast_to(first[:, None, None], shape).ravel()
    q_class = np.broadcast_to(own[:, None, None] + fine[None, :, None], shape).ravel()
    k_class = np.broadcast_to(own[:, None, None] + fine[None, None, :], shape).ravel()
    order, q_start, k_start = _by_residue(base, period, where)
    q0, q1 = _within(q_class, first, size, f.n, f.q_offset, period, q_start)
    k0, k1 = _within(k_class, first, size, f.n_k, f.k_offset, period, k_start)
    some = (q0 < q1) & (k0 < k1)
    return Places(f, order, q0[some], q1[some], k0[some], k1[some], period, base=base)


def _by_residue(base: int, period: int, where: Where) -> tuple[Order, I64, I64]:
    """The order by class modulo `base`, then modulo `period`, then position; the first slot of each
    class modulo `period`, of queries and of keys."""
    f, key = where.frame, ("residue", base, period)
    if key not in where.orders:
        name = f"residue {base}" if base == period else f"residue {base} in {period}"
        queries = _by_class(f.n, f.q_offset, base, period)
        square = f.n == f.n_k and f.q_offset == f.k_offset
        keys = queries if square else _by_class(f.n_k, f.k_offset, base, period)
        where.orders[key] = Order(name, queries, keys)
    q_start = _starts(f.n, f.q_offset, base, period)
    return where.orders[key], q_start, _starts(f.n_k, f.k_offset, base, period)


def _by_class(count: int, offset: int, base: int, period: int) -> NDArray[np.int32]:
    """Tokens sorted by their classes, counted from the first."""
    local = (_classes(base, period) - offset) % period
    rows = -(-count // period)
    tokens = np.arange(rows * period, dtype=np.int32).reshape(rows, period)[:, local].T.ravel()
    return np.ascontiguousarray(tokens[tokens < count])


def _starts(count: int, offset: int, base: int, period: int) -> I64:
    """The first slot of each class modulo `period`."""
    classes = _classes(base, period)
    sizes = np.maximum(0, -(-(count - (classes - offset) % period) // period))
    start = np.empty(period, dtype=np.int64)
    start[classes] = np.cumsum(sizes) - sizes
    return start


def _classes(base: int, period: int) -> I64:
    """The classes modulo `period`, those of one class modulo `base` together."""
    return np.arange(period, dtype=np.int64).reshape(-1, base).T.ravel()


def _within(
    residue: I64, first: I64, size: int, count: int, offset: int, period: int, start: I64
) -> tuple[I64, I64]:
    """Slots of the tokens of a class that lie in [first, first + size)."""
    base = (residue - offset) % period  # of the first token of the class, counted in the frame
    low, high = first - offset - base, first + size - offset - base
    length = np.maximum(0, -(-(count - base) // period))
    a, b = np.clip(-(-low // period), 0, length), np.clip(-(-high // period), 0, length)
    return start[residue] + a, start[residue] + b


def labels_of(core: Pattern, where: Where) -> tuple[I64, I64]:
    """The labels of queries and of keys, by position, checked as lowering checks them."""
    at = where.site
    i0, _, j0, _ = where.frame.box
    assert isinstance(core, leaf.Clusters | leaf.Routing)
    RULES[type(core)](core, at.within(Region(i0, i0 + 1, j0, j0 + 1)))
    if isinstance(core, leaf.Routing):
        values = integers("routing", "routing", chosen(core, at))
        return values, values
    values = _listed(core.labels, at)
    return values, values if core.keys is None else _listed(core.keys, at)


def _listed(given: object, at: Site) -> I64:
    """Labels as an array: bound to a name, packed in bytes, or a plain sequence."""
    if isinstance(given, str):
        return integers("clusters", given, at.bound("clusters", given))
    data = getattr(given, "data", None)
    if isinstance(data, bytes):
        return np.frombuffer(data, dtype=np.int64)
    return np.array(given, dtype=np.int64)


def _clusters(core: Pattern, where: Where) -> Places:
    """Tokens by label, in the order of positions within a label; those of none come last."""
    f = where.frame
    sides = []
    for given, first, last in zip(labels_of(core, where), f.box[0::2], f.box[1::2]):
        part = given[first:last]
        top = int(part.max(initial=0)) + 1
        ranked = np.where(part < 0, top, part)
        # numpy sorts 16 bits by radix
        narrow = ranked.astype(np.uint16) if top < 2**16 else ranked
        sides.append((np.argsort(narrow, kind="stable").astype(np.int32), ranked, top))
    square = np.array_equal(sides[0][1], sides[1][1]) and f.q_offset == f.k_offset
    digest = hashlib.sha256(sides[0][0].tobytes() + sides[1][0].tobytes()).digest()
    made = Order("clusters", sides[0][0], sides[0][0] if square else sides[1][0])
    order = where.orders.setdefault(digest, made)
    label, q0, q1 = _label_slots(sides[0][1][order.queries], sides[0][2])
    other, k0, k1 = _label_slots(sides[1][1][order.keys], sides[1][2])
    _, at, to = np.intersect1d(label, other, assume_unique=True, return_indices=True)
    return Places(f, order, q0[at], q1[at], k0[to], k1[to], 0, alike=square)


def pairs_of_runs(core: Pattern, where: Where) -> tuple[int, int] | None:
    """How many boxes clusters are in token order, and how many labels have any: told from counts,
    without listing one.  Where both are equal, no label comes again.  None for another core."""
    if kind_of(core) != "clusters":
        return None
    queries, keys = labels_of(core, where)
    i0, i1, j0, j1 = where.frame.box
    same = queries is keys and (i0, i1) == (j0, j1)
    return label_pairs(queries[i0:i1], None if same else keys[j0:j1])


def _label_slots(ordered: I64, top: int) -> tuple[I64, I64, I64]:
    """The labels among sorted ones, those of none left out: label, first slot, past the last."""
    first = np.flatnonzero(np.append(True, np.diff(ordered) != 0)[: len(ordered)])
    end = np.append(first[1:], len(ordered))[: len(first)]
    kept = ordered[first] < top
    return ordered[first][kept], first[kept].astype(np.int64), end[kept].astype(np.int64)


def _summary(core: leaf.Summary, where: Where) -> Places:
    """Summary keys first, the others after them; queries as they come."""
    f = where.frame
    at = np.arange(f.k_offset, f.k_offset + f.n_k, dtype=np.int64)
    held = at % core.stride >= core.stride - core.width
    count = int(np.count_nonzero(held))
    keys = np.concatenate([np.flatnonzero(held), np.flatnonzero(~held)]).astype(np.int32)
    made = Order("summary", np.arange(f.n, dtype=np.int32), keys)
    order = where.orders.setdefault(("summary", core, f), made)
    some = 1 if f.n and count else 0
    q0, q1, k0, k1 = (np.full(some, x, dtype=np.int64) for x in (0, f.n, 0, count))
    return Places(f, order, q0, q1, k0, k1, 0)


def _seen_from_keys(where: Where) -> Where:
    return Where(where.frame.T, where.layer, where.head, where.bindings, where.orders)


def _turned(places: Places, where: Where) -> Places:
    """The same rectangles with queries and keys exchanged."""
    order = where.orders.setdefault(("turned", id(places.order)), places.order.T)
    return Places(
        where.frame, order, places.k0, places.k1, places.q0, places.q1, places.step, places.alike
    )
