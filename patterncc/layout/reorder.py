"""Which token order a layer gets: the candidates that its leaves bring, weighed by the cost model.

    a leaf that could gain?  ----- no -->  token order; nothing else is asked
    token order near the edges' own area, or small?  ----- yes -->  token order
    each candidate as terms  -->  predicted seconds  -->  the least

A head is weighed by itself; terms of several heads in one order are one layout.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternError, PatternValueError, SizeError, suggest
from patterncc.layout.cost.choose import CANDIDATES
from patterncc.layout.cost.model import Estimate, in_terms, price
from patterncc.layout.cost.tables import device
from patterncc.layout.cost.work import SLAB, part
from patterncc.layout.cost.work import Part as Counted
from patterncc.pattern import Pattern
from patterncc.stack import Layer, patterns_of
from patterncc.zones.algebra import areas, expand
from patterncc.zones.lower import attention_only, keyed
from patterncc.zones.orders.cores import Where, pairs_of_runs
from patterncc.zones.orders.moves import moved, slot_frame
from patterncc.zones.orders.order import Order
from patterncc.zones.orders.terms import BOXES, KINDS, Term, cores, plain_term, prepared, terms
from patterncc.zones.tiles import local
from patterncc.zones.zoneset import Frame, ZoneSet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from patterncc.layout.cost.tables import Device

    Block = tuple[int, int] | None

NAMES = ("token", *KINDS)
"""What `order` may be called."""

WORTH = 2**24
"""Pairs in touched tiles below which token order is left as it is: a launch costs more."""

NEAR = 4.0
"""Pairs in touched tiles to edges up to which token order is near enough to the least."""

MAX_LISTED = 2**20
"""Zones times tile rows above which token order is never near enough: tiles of many zones each."""

GAIN = 0.9
"""What another order must save: its time against that of token order."""

CROWDED = 8
"""Edges to a touched tile from which a graph's own numbers are left as they are, where most of the
tiles of a row are untouched."""

MAX_COUNTED = 2**17
"""Zones times slabs of rows up to which tiles are counted exactly before orders are compared."""

MAX_SEARCH = 2**21
"""Zones of a graph up to which an order is searched unasked: beyond, that takes many seconds."""

MAX_PAIRS = 2**17
"""Pairs of runs of one label above which token order is not even lowered to be compared: there the
tokens of a label are scattered, and their own order is dense."""

MAX_MORTON = 2**18
"""Pieces of bands up to which Morton order is tried unasked: beyond, cutting takes seconds."""


_SIDE = 128  # of the tiles that are counted roughly
_MANY = 4096  # zones from which some tile rows tell about all
_ROWS = 32


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to lay out a layer, as it was weighed.

    name: of the order, "token" or as in `NAMES`.  seconds: predicted, one forward pass of a head,
    the mean over heads; infinite where the way was refused.  full, partial: tiles, heads added up.
    terms: how many.  note: why it was refused, or empty.
    """

    name: str
    seconds: float
    full: int
    partial: int
    terms: int
    note: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """One term of a layer: an order, the distinct masks in it, and which of them each head has."""

    order: Order | None
    zone_sets: tuple[ZoneSet, ...]
    head_pattern: tuple[int, ...]

    @property
    def weights(self) -> list[int]:
        """How many heads each mask has."""
        return [self.head_pattern.count(u) for u in range(len(self.zone_sets))]


@dataclass(frozen=True, eq=False)
class Setting:
    """What all heads of a layer share while orders are weighed."""

    frame: Frame
    block: Block
    layer: int
    bindings: Mapping[str, Any]
    orders: dict[object, Order]
    target: str | Device = "sm_90"

    def where(self, head: int) -> Where:
        """The place of one head; orders are shared between heads."""
        return Where(self.frame, self.layer, head, self.bindings, self.orders)


def arranged(each: Layer, order: object, setting: Setting) -> list[Part]:
    """The terms of a layer under an order: None for the cost model's choice, a name, permutations.

    Raises PatternValueError for what is no order, or one that no head can take; SizeError where
    even the best candidate is too large.
    """
    given = _given(order, setting.frame)
    if isinstance(given, str) and given != "token" and not takes(each, given):
        raise PatternValueError(_cannot(each, given))
    found: dict[object, list[Term]] = {}
    heads = []
    for head, p in enumerate(patterns_of(each)):
        drawn = head if keyed(p, dict(setting.bindings))[1] else 0
        if (p, drawn) not in found:
            found[p, drawn] = _terms(attention_only(p), given, setting, setting.where(drawn))
        heads.append(found[p, drawn])
    return _parts(heads, setting.frame)


def weigh(
    each: Layer,
    frame: Frame,
    *,
    block: Block = None,
    layer: int = 0,
    bindings: Mapping[str, Any] | None = None,
    target: str = "sm_90",
) -> list[Candidate]:
    """Every order that a layer could take, weighed, the best first; token order is always there.

    Nothing is skipped, however clear the case: this is what explains a choice.

    >>> from patterncc import causal, strided
    >>> for c in weigh(causal() & strided(64), Frame.of(8192), block=(128, 128)):
    ...     print(c.name, c.full, c.partial)
    residue 0 64
    token 0 2080
    """
    setting = Setting(frame, block, layer, bindings or {}, {}, target)
    names = dict.fromkeys(["token", *(n for p in patterns_of(each) for n in _names(p))])
    weighed = [_candidate(name, each, setting) for name in names]
    return sorted(weighed, key=lambda c: c.seconds)


def takes(each: Layer, name: str) -> bool:
    """Whether some head of a layer has a leaf that the named order is for."""
    return name == "token" or any(cores(prepared(p), (name,)) for p in patterns_of(each))


def check_order(order: object) -> None:
    """Refuse a name that is none, with the near one."""
    if isinstance(order, str) and order not in NAMES:
        raise PatternValueError(
            f"order {order!r} is not known; {suggest(order, NAMES)}, or give a permutation "
            "of the tokens, or a pair (queries, keys)"
        )


def _candidate(name: str, each: Layer, setting: Setting) -> Candidate:
    """One named order for all heads that can take it, the others in token order."""
    totals = [0.0, 0, 0, 0]
    heads = patterns_of(each)
    made: dict[object, list[float]] = {}
    for head, p in enumerate(heads):
        drawn = head if keyed(p, dict(setting.bindings))[1] else 0
        if (p, drawn) not in made:
            own = name if name in _names(p) else "token"
            try:
                found = _terms(attention_only(p), own, setting, setting.where(drawn))
                made[p, drawn] = _price(found, setting)
            except (SizeError, PatternError) as refused:
                return Candidate(name, float("inf"), 0, 0, 0, str(refused))
        totals = [a + b for a, b in zip(totals, made[p, drawn])]
    seconds, full, partial, count = totals
    return Candidate(name, seconds / len(heads), int(full), int(partial), int(count) // len(heads))


def _price(found: Sequence[Term], setting: Setting) -> list[float]:
    """Predicted seconds, full and partial tiles, terms."""
    parts = [_estimate(t, setting) for t in found]
    return [in_terms(parts), sum(e.full for e in parts), sum(e.partial for e in parts), len(parts)]


def _estimate(term: Term, setting: Setting) -> Estimate:
    """A term in the tile size that it would get."""
    ready, target = [_counted(term.zones)], device(setting.target)
    sizes = [setting.block] if setting.block else CANDIDATES
    priced = [price(ready, size, target, order=term.order) for size in sizes]
    return min(priced, key=lambda e: e.seconds)


def _counted(zones: ZoneSet) -> Counted:
    """The zones as the cost model counts them; where they meet very many rows, some slabs of rows,
    one drawn from each of equal stretches, stand for all."""
    table, slabs = local(zones), -(-zones.frame.n // SLAB)
    begin, end = table[:, 0] // SLAB, (table[:, 1] - 1) // SLAB
    if slabs < 4 * _ROWS or int((end - begin + 1).sum(dtype=np.int64)) <= MAX_COUNTED:
        return part(zones)
    drawn = np.arange(_ROWS) + np.random.default_rng(0).random(_ROWS)
    slab = (drawn * (slabs / _ROWS)).astype(np.int64)
    zone, place = expand(np.searchsorted(slab, begin), np.searchsorted(slab, end, side="right"))
    cut, start = table[zone], (slab[place] * SLAB).astype(table.dtype)
    cut[:, 0] = np.maximum(cut[:, 0], start)
    cut[:, 1] = np.minimum(cut[:, 1], start + SLAB)
    weight = np.full(_ROWS, slabs / _ROWS)
    return Counted(zones.frame, cut, place, weight, len(table), sampled=True)


def _terms(p: Pattern, given: str | Order | None, setting: Setting, where: Where) -> list[Term]:
    """The terms of one head."""
    match given:
        case Order():
            return [Term(given, moved(plain_term(p, where).zones, given))]
        case "token":
            return [plain_term(p, where)]
        case str(name):
            return terms(p, where, (name,)) if takes(p, name) else [plain_term(p, where)]
        case None:
            return _best(p, setting, where)


def _best(p: Pattern, setting: Setting, where: Where) -> list[Term]:
    """The terms of least predicted time; the reason of token order where none can be made."""
    names = _names(p)
    if not names:
        return [plain_term(p, where)]
    counts = [x for core in cores(prepared(p)) if (x := pairs_of_runs(core, where)) is not None]
    if all(pairs == labels for pairs, labels in counts):  # runs of one label each: documents
        names = [x for x in names if x != "clusters"]
    if not names:
        return [plain_term(p, where)]
    found: list[list[Term]] = []
    apart = any(pairs > MAX_PAIRS for pairs, _ in counts)
    if not apart:
        try:
            found.append([plain_term(p, where)])
            if _fine(found[0][0].zones, graph=all(KINDS[n] == "graph" for n in names)):
                return found[0]
        except SizeError:
            pass  # another order may be small
    token = len(found)
    for tried in sorted(_unasked(names, found), key=lambda tried: "clusters" not in tried):
        if apart and found and "clusters" not in tried:
            break  # it would list the clusters too
        try:
            found.append(terms(p, replace(where, unasked=True), tried))
        except SizeError:
            continue
    if len(found) < 2:
        return found[0] if found else [plain_term(p, where)]  # which says what is too large
    prices = [_price(ts, setting)[0] for ts in found]
    best = int(np.argmin(prices))
    return found[0 if token and prices[best] > GAIN * prices[0] else best]


def _unasked(names: Sequence[str], found: list[list[Term]]) -> list[tuple[str, ...]]:
    """The sets of orders that are tried: each by itself, and all orders of boxes together."""
    left_out = {"metis", "morton"}  # "rcm" stands for the better of both
    if found and len(found[0][0].zones) > MAX_SEARCH:
        left_out.add("rcm")
    tried: list[tuple[str, ...]] = [(n,) for n in names if n not in left_out]
    boxes = tuple(n for n in names if n in BOXES)
    if len(boxes) > 1:
        tried.append(boxes)
    if "morton" in names and found:
        table = found[0][0].zones.table
        if int((table[:, 1] - table[:, 0]).sum()) // 8 <= MAX_MORTON:  # cut at runs of 16, twice
            tried.append(("morton",))
    return tried


def _fine(zones: ZoneSet, graph: bool) -> bool:
    """Whether token order touches few tiles, or hardly more than its edges need; counted roughly,
    zone by zone, and of a graph in some tile rows."""
    if graph and len(zones) > MAX_SEARCH:
        return True
    table = local(zones)
    if graph and len(table) > _MANY and _crowded(table):
        return True
    rows = (table[:, 1] - 1) // _SIDE - table[:, 0] // _SIDE + 1
    box = (table[:, 3] - 1) // _SIDE - table[:, 2] // _SIDE + 1
    band = (table[:, 5] - table[:, 4] + 2 * _SIDE - 3) // _SIDE + 1
    if not graph and int(rows.sum(dtype=np.int64)) > MAX_LISTED:
        return False
    everything = -(-zones.frame.n // _SIDE) * -(-zones.frame.n_k // _SIDE)
    tiles = (rows * np.minimum(box, band).astype(np.float64)).sum()
    touched = min(float(tiles), everything) * _SIDE * _SIDE
    if touched <= WORTH:
        return True
    return touched <= NEAR * float(areas(table).sum(dtype=np.float64))


def _crowded(table: NDArray[Any]) -> bool:
    """Whether the edges of some tile rows stand many to a tile."""
    line = table[:, 0] // _SIDE
    picked = np.zeros(int(line.max()) + 1, dtype=bool)
    picked[np.random.default_rng(0).integers(0, len(picked), _ROWS)] = True
    part = table[picked[line]].astype(np.int64)
    zone, column = expand(part[:, 2] // _SIDE, (part[:, 3] - 1) // _SIDE + 1)
    width = int(table[:, 3].max()) // _SIDE + 1
    key = np.unique(part[zone, 0] // _SIDE * width + column)
    lines = len(np.unique(key // width))
    few = 2 * len(key) <= lines * width
    return few and float(areas(part).sum(dtype=np.float64)) >= CROWDED * len(key)


def _names(p: Pattern) -> list[str]:
    """The orders that a pattern's leaves bring along."""
    ready = prepared(p)
    return [name for name in KINDS if cores(ready, (name,))]


def _given(order: object, frame: Frame) -> str | Order | None:
    """What the caller asked for, checked."""
    if order is None:
        return None
    if isinstance(order, str):
        check_order(order)
        return order
    if isinstance(order, Order):
        made = order
    elif isinstance(order, tuple | list) and len(order) == 2 and all(map(np.ndim, order)):
        made = Order.of("given", *order)
    else:
        made = Order.of("given", order, None if frame.n == frame.n_k else np.arange(frame.n_k))
    for side, tokens, count in (("queries", made.queries, frame.n), ("keys", made.keys, frame.n_k)):
        if len(tokens) != count:
            raise PatternValueError(
                f"compile: the order holds {len(tokens)} {side}, the layout {count}; give each "
                "of them a place, or a pair (queries, keys) where they differ"
            )
    return made


def _cannot(each: Layer, name: str) -> str:
    needs = {
        "residue": "strided, dilated, longnet or axial",
        "clusters": "clusters or routing",
        "summary": "summary",
        "graph": "edges",
        "grid": "grid",
    }[KINDS[name]]
    text = str(each)
    text = text if len(text) <= 80 else f"{text[:76]} ..."
    return (
        f"compile: order {name!r} is for patterns with {needs}, and {text} has none; leave out "
        "order for the cost model's choice, or give a permutation"
    )


def _parts(heads: Sequence[Sequence[Term]], frame: Frame) -> list[Part]:
    """One part an order: each head's zones in it, none where it has none; token order first."""
    orders: dict[int, Order | None] = {}
    for found in heads:
        for term in found:
            orders.setdefault(id(term.order), term.order)
    parts = []
    for order in sorted(orders.values(), key=lambda o: o is not None):
        sets: list[ZoneSet] = []
        seen: dict[object, int] = {}
        head_pattern = []
        for found in heads:
            mine = [t.zones for t in found if t.order is order]
            key: object = tuple(map(id, mine))
            if key not in seen:
                zones = _joined(mine, frame if order is None else slot_frame(frame))
                digest = hashlib.sha256(zones.table.tobytes()).digest() if len(heads) > 1 else b""
                seen[key] = seen.setdefault(digest, len(sets))
                if seen[key] == len(sets):
                    sets.append(zones)
            head_pattern.append(seen[key])
        parts.append(Part(order, tuple(sets), tuple(head_pattern)))
    return parts


def _joined(mine: Sequence[ZoneSet], frame: Frame) -> ZoneSet:
    """The zones of one head in one order; its terms are disjoint."""
    if len(mine) == 1:
        return mine[0]
    tables = [z.table for z in mine]
    return ZoneSet.make(frame, np.concatenate(tables) if tables else [])
