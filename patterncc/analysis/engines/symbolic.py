"""Exact reach by an algebra of edge sets: what the zones and the offsets engine have in common.

    S_0 = nothing,   S_(l+1) = S_l | A_l | A_l @ S_source(l)

S is reach without the identity, which every R keeps: R_l = I | S_l.  source(l) is l, but for a
layer that reads another's keys and values.  Reach only grows, so equal sizes mean equal sets:
"full" and "nothing changes any more" are comparisons of integers.  The second looks at all of R:
outside T reach may grow on and come back into it.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from patterncc.analysis.curve import Curve, Depth, Figure
from patterncc.analysis.engines.steps import never_crossed
from patterncc.analysis.topology import Pairs, Topology, witness
from patterncc.errors import SizeError
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import refuse_above

S = TypeVar("S", bound=Sized)
SLOW_LAYERS = 256  # layers that are tried one by one where doubling is refused


@dataclass(frozen=True, eq=False)
class State(Generic[S]):
    """Exact reach so far: S, how many pairs of T are reached, and how many in all."""

    value: S
    count: int
    size: int


class Algebra(Protocol[S]):
    """Edge sets of one kind, for one stack and one T; `most` pieces may meet in one operation."""

    @property
    def name(self) -> str: ...
    @property
    def most(self) -> int: ...
    @property
    def t(self) -> Topology: ...
    @property
    def pairs(self) -> Pairs: ...

    def start(self) -> State[S]:
        """R_0: every token has only itself."""
        ...

    def edges(self, index: int) -> S:
        """A_index, counted cyclically."""
        ...

    def after(self, first: S, then: S) -> S:
        """What two steps carry, the identity left out: I | result = (I | then) @ (I | first)."""
        ...

    def union(self, a: S, b: S) -> S:
        """Edges of either."""
        ...

    def measured(self, value: S) -> State[S]:
        """The set with its exact counts, the identity added."""
        ...

    def step(self, state: State[S], source: S, index: int) -> State[S]:
        """`state` and what layer `index` carries from `source`."""
        ...

    def zones(self, value: S) -> ZoneSet:
        """The set as zones."""
        ...


def follow(algebra: Algebra[S], depth: int, states: list[State[S]]) -> Curve:
    """The reach curve and the depth to full.

    `states` grows from R_0 to R_depth; where an algebra refuses, it holds what was found.
    Raises SizeError where the sets become too many pieces.
    """
    t, pairs = algebra.t, algebra.pairs
    still = 0
    for index in range(depth):
        state = states[-1]
        if state.count < pairs.count and still < t.settled:
            new = algebra.step(state, _source(t, states, index).value, index)
            still = still + 1 if new.size == state.size else 0
            state = new
        states.append(state)
    figures = tuple(Figure.of(s.count, s.count, pairs.count, algebra.name) for s in states)
    reached = next((l for l, s in enumerate(states) if s.count == pairs.count), None)
    if reached is not None:
        return Curve(figures, Depth(reached, reached, False, depth), None, ())
    apart = never_crossed(t, pairs)
    if apart is not None:
        return Curve(figures, Depth(depth + 1, None, True, depth), apart, ())
    found = _search(algebra, depth, states)
    if found.depth is not None:
        return Curve(figures, Depth(found.depth, found.depth, False, found.depth), None, ())
    end = t.identity | algebra.zones(found.end.value)
    pair = witness(pairs, end if pairs.closed else end & pairs.zones)
    assert pair is not None
    return Curve(figures, Depth(depth + 1, None, True, depth), pair, ())


def _source(t: Topology, states: Sequence[State[S]], index: int) -> State[S]:
    """The state that layer `index` reads; states[-1] is that after `index` layers."""
    return states[t.source(index) - index - 1]


@dataclass(frozen=True)
class _Found(Generic[S]):
    """The depth to full, or None for never, and R there."""

    depth: int | None
    end: State[S]


def _search(algebra: Algebra[S], depth: int, states: Sequence[State[S]]) -> _Found[S]:
    """The least depth past `depth` at which reach is full, or that it never is."""
    try:
        return _by_doubling(algebra, depth, states)
    except SizeError:
        return _by_layers(algebra, depth, states, SLOW_LAYERS)


def _by_doubling(algebra: Algebra[S], depth: int, states: Sequence[State[S]]) -> _Found[S]:
    """Whole periods are doubled until reach is full or stands still, then halved back: the cost
    grows with the logarithm of the answer.

    A period begins where no layer reads keys and values from before it.
    """
    t, total = algebra.t, algebra.pairs.count
    if t.shared and depth % t.period:
        ahead = t.period - depth % t.period
        found, states = _walk(algebra, depth, states, ahead)
        if found is not None:
            return found
        depth += ahead
    at, cycle = states[-1], _cycle(algebra, depth)
    powers = [cycle]  # powers[k] is 2**k periods
    last = at
    while True:
        new = algebra.measured(algebra.after(at.value, powers[-1]))
        if new.count == total:
            break
        if new.size == last.size:
            return _Found(None, new)
        last = new
        powers.append(algebra.after(powers[-1], powers[-1]))
    now, periods = at, 0
    for k in reversed(range(len(powers) - 1)):
        tried = algebra.measured(algebra.after(now.value, powers[k]))
        if tried.count < total:
            now, periods = tried, periods + 2**k
    before = states[:-1] if now is at else ()
    return _by_layers(algebra, depth + periods * t.period, [*before, now], t.period)


def _cycle(algebra: Algebra[S], first: int) -> S:
    """What the layers first .. first + period - 1 carry together, the identity left out."""
    t = algebra.t
    values = [algebra.start().value]
    for index in range(first, first + t.period):
        lag = index - t.source(index)
        carried = algebra.after(values[-1 - lag], algebra.edges(index))
        values.append(algebra.union(values[-1], carried) if lag else carried)
    return values[-1]


def _by_layers(algebra: Algebra[S], depth: int, states: Sequence[State[S]], most: int) -> _Found[S]:
    """Layer by layer: powers of a stack can need more pieces than its reach does."""
    found, _ = _walk(algebra, depth, states, max(most, algebra.t.settled))
    if found is None:
        raise SizeError(f"the depth to full is more than {most} layers past layer {depth}")
    return found


def _walk(
    algebra: Algebra[S], depth: int, states: Sequence[State[S]], layers: int
) -> tuple[_Found[S] | None, list[State[S]]]:
    """Some layers on from R_depth, the last of `states`, or until reach is full or settled."""
    t, walked, still, handled = algebra.t, list(states), 0, 0
    for index in range(depth, depth + layers):
        new = algebra.step(walked[-1], _source(t, walked, index).value, index)
        still = still + 1 if new.size == walked[-1].size else 0
        walked.append(new)
        handled += len(new.value)
        refuse_above(handled, f"{algebra.name} on the way to full reach", algebra.most)
        if new.count == algebra.pairs.count:
            return _Found(index + 1, new), walked
        if still >= t.settled:
            return _Found(None, new), walked
    return None, walked
