"""The reach engines: one interface, chosen by cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from patterncc.analysis import tiles, zones
from patterncc.analysis.curve import Curve, Depth, Figure
from patterncc.analysis.topology import Pairs, Topology, witness
from patterncc.errors import SizeError

Engine = Literal["auto", "zones", "tiles"]
ENGINES: tuple[Engine, ...] = ("auto", "zones", "tiles")
MAX_DEPTH = 100_000


def follow(t: Topology, pairs: Pairs, depth: int, engine: Engine) -> Curve:
    """The reach curve, by zones for as long as they stay few, by tiles from there."""
    if engine == "tiles":
        return tiles.follow(t, pairs, depth, [zones.start(t, pairs)])
    limit = _limit(t) if engine == "auto" else zones.MOST_PAIRS
    states = [zones.start(t, pairs)]
    try:
        for state in _steps(t, pairs, depth, limit):
            states.append(state)
        return _finish(t, pairs, depth, states, limit)
    except SizeError as refused:
        if engine == "zones":
            raise SizeError(f'engine="zones": {refused}') from None
    return tiles.follow(t, pairs, depth, states)


def _limit(t: Topology) -> int:
    """Pairs of zones in one composition up to which zones cost less than exact tiles would."""
    if t.frame.n <= tiles.TOKEN_GRAIN:
        return zones.MAX_PAIRS // 32
    return zones.MAX_PAIRS // 4 if t.frame.n <= tiles.MOST_ROWS else zones.MAX_PAIRS


def _steps(t: Topology, pairs: Pairs, depth: int, limit: int) -> Iterator[zones.Symbolic]:
    """R_1 .. R_depth; once reach is full or stands still for a period, the same state again."""
    state, still = zones.start(t, pairs), 0
    for index in range(depth):
        if state.count < pairs.count and still < t.period:
            new = zones.step(t, pairs, state, t.level(index).zones, limit)
            still = still + 1 if new.size == state.size else 0
            state = new
        yield state


def _finish(
    t: Topology, pairs: Pairs, depth: int, states: list[zones.Symbolic], limit: int
) -> Curve:
    """Figures of all states, and the depth to full, searched past the last of them."""
    figures = tuple(Figure.of(s.count, s.count, pairs.count, "zones") for s in states)
    reached = next((l for l, s in enumerate(states) if s.count == pairs.count), None)
    if reached is not None:
        return Curve(figures, Depth(reached, reached, False, depth), None, ())
    found = zones.search(t, pairs, depth, states[-1], limit)
    if found.depth is not None:
        return Curve(figures, Depth(found.depth, found.depth, False, found.depth), None, ())
    pair = witness(pairs, zones.reached(t, pairs, found.end.zones))
    assert pair is not None
    return Curve(figures, Depth(depth + 1, None, True, depth), pair, ())
