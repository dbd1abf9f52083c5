"""The reach engines behind one interface: each takes a question to a curve, the cheapest exact one
first.

    offsets  causal layers that are the same for every query: sums of offsets, exact
    zones    symbolic composition, exact, at a cost that does not know the length
    tiles    Boolean products of tiles: exact where edges fill tiles, else certified bounds
    rows     every source by itself, token by token: exact; or of a sample of them, an estimate
"""

from __future__ import annotations

from typing import Literal

from patterncc.analysis import offsets, tiles, zones
from patterncc.analysis.curve import Curve
from patterncc.analysis.symbolic import State
from patterncc.analysis.topology import Pairs, Topology
from patterncc.errors import PatternValueError, SizeError

Engine = Literal["auto", "offsets", "zones", "tiles"]
ENGINES: tuple[Engine, ...] = ("auto", "offsets", "zones", "tiles")
MAX_DEPTH = 100_000


def follow(t: Topology, pairs: Pairs, depth: int, engine: Engine = "auto") -> Curve:
    """The reach curve and the depth to full.

    "auto" takes offsets where they suit, else zones for as long as they stay few, and tiles from
    there.
    """
    match engine:
        case "offsets":
            if (why := offsets.refusal(t, pairs)) is not None:
                raise PatternValueError(f'engine="offsets": {why}; use engine="auto"')
            return offsets.follow(t, pairs, depth, [offsets.Offsets(t, pairs).start()])
        case "zones":
            try:
                return zones.follow(t, pairs, depth, [zones.start(t, pairs)], zones.MOST_PAIRS)
            except SizeError as refused:
                raise SizeError(f'engine="zones": {refused}') from None
        case "tiles":
            return tiles.follow(t, pairs, depth, [zones.start(t, pairs)])
    return _cheapest(t, pairs, depth)


def _cheapest(t: Topology, pairs: Pairs, depth: int) -> Curve:
    states = [zones.start(t, pairs)]
    try:
        if offsets.refusal(t, pairs) is not None:
            return zones.follow(t, pairs, depth, states, _limit(t))
        algebra = offsets.Offsets(t, pairs)
        sums = [algebra.start()]
        try:
            return offsets.follow(t, pairs, depth, sums)
        finally:
            states = [State(algebra.zones(s.value), s.count, s.size) for s in sums]
    except SizeError:
        return tiles.follow(t, pairs, depth, states)


def _limit(t: Topology) -> int:
    """Pairs of zones in one composition up to which zones cost less than exact tiles would."""
    if t.frame.n <= tiles.TOKEN_GRAIN:
        return zones.MAX_PAIRS // 32
    return zones.MAX_PAIRS // 4 if t.frame.n <= tiles.MOST_ROWS else zones.MAX_PAIRS
