"""A stack at one length: the exact zones of every layer, and the pairs that the model allows.

Equal layers are lowered once.  The frame of a stack with memory holds the memory's positions first;
memory positions are read but read nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from patterncc.analysis.parts import attention_part, is_carrier
from patterncc.errors import PatternError, PatternValueError, suggest
from patterncc.pattern import (
    Difference,
    Intersection,
    Pattern,
    Transpose,
    Union,
    check_int,
)
from patterncc.primitives import Documents, Recurrent
from patterncc.stack import Heads, Layer, Stack, check_stack, patterns_of
from patterncc.zones import Frame, ZoneSet
from patterncc.zones.lower import check_bindings, keyed, leaves, lower

PairsName = Literal["causal", "all", "documents"]
PAIRS: tuple[PairsName, ...] = ("causal", "all", "documents")
Kind = Literal["dense", "sparse", "recurrent", "convolution", "hybrid", "none"]
MOST_POSITIONS = 2**40


@dataclass(frozen=True, eq=False)
class Level:
    """One layer at one length: the zones of each distinct head pattern, and their union.

    `head_zones[head_index[h]]` are head h's edges; a layer whose heads agree has one entry.  `kind`
    is "dense" where every query reads every earlier (or every) key, "none" where every query
    reads itself alone, "hybrid" for attention beside a recurrence or a convolution.
    """

    text: str
    kind: Kind
    head_zones: tuple[ZoneSet, ...]
    head_index: tuple[int, ...]
    zones: ZoneSet


@dataclass(frozen=True, eq=False)
class Topology:
    """A stack lowered at n queries: `levels[l % len(levels)]` is layer l, in the square `frame`.

    `bindings` are the names bound in the patterns.
    """

    stack: Stack
    n: int
    frame: Frame
    levels: tuple[Level, ...]
    bindings: Mapping[str, Any]

    @cached_property
    def period(self) -> int:
        """After how many layers the stack, repeated cyclically, starts over: 1 when all are
        equal."""
        lags = [l - source for l, source in enumerate(self.stack.kv_from)]
        ids = list(zip(map(id, self.levels), lags, strict=True))
        size = len(ids)
        return next(p for p in range(1, size + 1) if size % p == 0 and ids == ids[:p] * (size // p))

    @property
    def shared(self) -> bool:
        """Some layer reads the keys and values of another."""
        return any(l != source for l, source in enumerate(self.stack.kv_from))

    @cached_property
    def settled(self) -> int:
        """Layers without any change after which nothing can change any more."""
        lags = [l - source for l, source in enumerate(self.stack.kv_from)]
        return self.period + max(lags)

    def source(self, index: int) -> int:
        """The layer that made the keys and values that layer `index` reads: it reads the states
        after `source(index)` layers."""
        size = len(self.levels)
        return index - index % size + self.stack.kv_from[index % size]

    @property
    def memory(self) -> int:
        """Positions that stand before the first query."""
        return self.frame.n - self.n

    def level(self, index: int) -> Level:
        """The layer at `index`, counted cyclically."""
        return self.levels[index % len(self.levels)]

    @cached_property
    def identity(self) -> ZoneSet:
        """Every query reads itself: the residual stream (memory positions left out)."""
        first, last = self.memory, self.frame.n
        return ZoneSet.make(self.frame, [(first, last, first, last, 0, 1)])


@dataclass(frozen=True, eq=False)
class Pairs:
    """T, the pairs that the model allows: what "full" means.

    `how` says in words where it comes from; `closed` says that no layer leaves it, so that no
    stack of these layers can.
    """

    name: str
    how: str
    zones: ZoneSet
    count: int
    closed: bool


def topology(stack: Stack | Pattern | Heads, n: int, **bindings: Any) -> Topology:
    """Lower every distinct layer of a stack at n queries.

    >>> from patterncc import causal, window
    >>> t = topology(Stack([causal() & window(3)] * 4), 16)
    >>> len(t.levels), t.levels[0] is t.levels[3]
    (4, True)
    """
    if not isinstance(stack, Stack):
        stack = Stack(stack)
    n = check_int("analyze", "n", n, 0, MOST_POSITIONS)
    frame = Frame.of(stack.memory + n)
    known: dict[object, Level] = {}
    levels = []
    for index, layer in enumerate(stack.layers):
        key = _key(layer, index, bindings)
        if key not in known:
            known[key] = _level(layer, index, n, frame, bindings)
        levels.append(known[key])
    return Topology(stack, n, frame, tuple(levels), bindings)


def checked(
    owner: str,
    stack: Stack | Pattern | Heads,
    n: int,
    bindings: Mapping[str, Any],
    caller: Callable[..., object],
) -> Topology:
    """`topology` for a function that people call: what it was given is looked at first."""
    check_stack(owner, stack)
    stack = stack if isinstance(stack, Stack) else Stack(stack)
    check_bindings(owner, stack.patterns, bindings, caller)
    return topology(stack, n, **bindings)


def _level(layer: Layer, index: int, n: int, frame: Frame, bindings: dict[str, Any]) -> Level:
    patterns = patterns_of(layer)
    places: dict[object, int] = {}
    zones: list[ZoneSet] = []
    head_index = []
    for head, pattern in enumerate(patterns):
        key = (pattern, head if keyed(pattern, bindings)[1] else None)
        if key not in places:
            places[key] = len(zones)
            part = lower(pattern, n, frame.n, frame.n - n, layer=index, head=head, **bindings)
            zones.append(ZoneSet(frame, part.table))
        head_index.append(places[key])
    union = zones[0]
    for more in zones[1:]:
        union = union | more
    union = union.simplify()
    return Level(str(layer), _kind(patterns, union, n), tuple(zones), tuple(head_index), union)


def _kind(patterns: tuple[Pattern, ...], zones: ZoneSet, n: int) -> Kind:
    other = {type(p) for pattern in patterns for p in leaves(pattern) if is_carrier(p)}
    attending = [attention_part(pattern) if other else pattern for pattern in patterns]
    if attending != list(patterns):
        if any(part is not None for part in attending):
            return "hybrid"
        return "recurrent" if Recurrent in other else "convolution"
    table, last = zones.table, zones.frame.n
    whole = [last - n, last, 0, last, 1 - last]
    if len(table) == 1 and table[0, :5].tolist() == whole and int(table[0, 5]) in (1, n):
        return "dense"
    return "sparse" if ((table[:, 4] < 0) | (table[:, 5] > 1)).any() else "none"


def _key(layer: Layer, index: int, bindings: Mapping[str, Any]) -> object:
    """Layers with equal keys have equal edges: a layer with random edges draws its own."""
    patterns = patterns_of(layer)
    drawn = any(keyed(p, bindings)[0] for p in patterns)
    return (layer, index if drawn else None)


def is_causal(zones: ZoneSet) -> bool:
    """No query reads a later key (rows are tight, so their bands say it)."""
    return not len(zones) or int(zones.table[:, 5].max()) <= 1


def allowed_pairs(t: Topology, name: PairsName | None, bindings: Mapping[str, Any]) -> Pairs:
    """T as asked for, or inferred: per document if every layer lies inside the same documents, the
    causal triangle if every layer lies inside it, both if both, else all pairs."""
    causal = all(is_causal(level.zones) for level in t.levels)
    documents = shared_documents(t.stack)
    match name:
        case None:
            chosen, how = documents, "inferred"
        case "documents":
            if documents is None:
                raise PatternValueError(
                    'pairs="documents": the layers do not all lie inside the same documents(...); '
                    'use pairs="causal" or pairs="all"'
                )
            chosen, how = documents, "as asked"
        case "causal" | "all":
            chosen, how = None, "as asked"
        case _:
            raise PatternValueError(f"pairs: unknown name {name!r}; {suggest(str(name), PAIRS)}")
    inside = []
    if causal and name != "all":
        inside.append("inside the causal triangle")
    if chosen is not None:
        inside.append(f"inside {chosen}")
    if name is None:
        how = f"inferred: {_inferred(inside)}"
    triangle = name == "causal" or (causal and name != "all")
    zones = _pairs_zones(t, triangle, chosen, bindings)
    label = {(0, 0): "all", (1, 0): "causal", (0, 1): "documents", (1, 1): "causal, per document"}
    closed = not triangle or causal
    return Pairs(label[int(triangle), int(chosen is not None)], how, zones, zones.count(), closed)


def _inferred(inside: list[str]) -> str:
    if not inside:
        return "some layer reads later positions, so every pair is allowed"
    return "every layer lies " + " and ".join(inside)


def _pairs_zones(
    t: Topology, triangle: bool, documents: Documents | None, bindings: Mapping[str, Any]
) -> ZoneSet:
    size = t.frame.n
    zones = ZoneSet.make(t.frame, [(t.memory, size, 0, size, -size, 1 if triangle else size)])
    if documents is not None:
        apart = lower(documents, t.n, size, t.memory, **bindings)
        zones = zones & ZoneSet(t.frame, apart.table) | t.identity
    return zones.simplify()


def shared_documents(stack: Stack) -> Documents | None:
    """The documents(...) node that confines every head of every layer, if there is one.

    >>> from patterncc import causal, documents, window
    >>> shared_documents(Stack([causal() & documents([3, 5]), window(2) & documents([3, 5])]))
    documents([3, 5])
    """
    common: frozenset[Documents] | None = None
    for layer in set(stack.layers):
        for pattern in patterns_of(layer):
            found = _confining(pattern)
            common = found if common is None else common & found
    return min(common, key=str) if common else None


def _confining(pattern: Pattern) -> frozenset[Documents]:
    """Documents nodes that hold every edge of the pattern inside one document."""
    match pattern:
        case Documents():
            return frozenset([pattern])
        case Intersection(parts):
            return frozenset[Documents]().union(*map(_confining, parts))
        case Union(parts):
            return frozenset.intersection(*map(_confining, parts))
        case Difference(left, _):
            return _confining(left)
        case Transpose(of):
            return _confining(of)
    return frozenset()


def witness(pairs: Pairs, reached: ZoneSet) -> tuple[int, int] | None:
    """The first pair found of T that is not reached, as (query, key); None when there is none."""
    missing = pairs.zones - reached
    if not len(missing):
        return None
    i0, _, j0, _, d0, _ = missing.table[int(np.argmin(missing.table[:, 0]))].tolist()
    return i0, max(j0, i0 + d0)


def check_position(t: Topology, name: str, position: int, first: int) -> int:
    """A position inside the frame, or an error that says what the positions are."""
    position = check_int("position", name, position, 0, MOST_POSITIONS)
    if not first <= position < t.frame.n:
        memory = f" ({t.memory} memory positions come first)" if t.memory else ""
        raise PatternError(
            f"{name} {position} is outside [{first}, {t.frame.n}){memory}; positions count from 0"
        )
    return position
