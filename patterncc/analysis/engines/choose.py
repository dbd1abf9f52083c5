"""The reach engines behind one interface: a question in, a curve out; the cheapest exact one runs.

offsets  causal layers that are the same for every query: sums of offsets, exact
zones    symbolic composition, exact, at a cost that does not know the length
tiles    Boolean products of tiles: exact where edges fill tiles, else certified bounds
rows     every source by itself, token by token: exact; or of a sample of them, an estimate
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from patterncc.analysis.curve import Curve, Depth, Figure, fraction
from patterncc.analysis.engines import offsets, rows, tiles, zones
from patterncc.analysis.engines.symbolic import State
from patterncc.analysis.topology import Pairs, Topology
from patterncc.errors import PatternValueError, SizeError
from patterncc.zones import ZoneSet

Name = Literal["auto", "offsets", "zones", "tiles", "rows"]
ENGINES: tuple[Name, ...] = ("auto", "offsets", "zones", "tiles", "rows")
MAX_DEPTH = 100_000
SOURCES = 512
EXACT_WORK = 2.0**34  # words that an exact run may touch unasked: several seconds
QUICK_WORK = 2.0**28  # the same where nothing quicker need be tried: less than a tenth of a second
LAST_PAIRS = 2**21  # pairs of zones in one composition where nothing else would be exact
FEW_PAIRS = 2**7  # pairs of zones in one composition that take no longer than quick rows
SCATTERED = 2**18  # zones of a layer of which tiles could tell nothing: they touch every tile
ROWS_A_WORD = 0.5  # of the time that tiles take for a word: rows stay in cache


@dataclass(frozen=True, eq=False)
class Question:
    """A stack, the pairs T, the depth of the curve; and how many sources are sampled, by which
    seed, where every exact way is too long (0: none, only certain bounds; None: SOURCES).  The rows
    engine asked for by name samples a number that is given, whatever exact rows would take.
    """

    t: Topology
    pairs: Pairs
    depth: int
    sources: int | None = None
    seed: int = 0

    @property
    def sample(self) -> int:
        """How many sources a sample has."""
        return SOURCES if self.sources is None else self.sources


def follow(q: Question, engine: Name = "auto") -> Curve:
    """The reach curve and the depth to full, by one engine or by the cheapest.

    Raises PatternValueError where the engine asked for cannot follow this stack, SizeError where it
    would take too long.
    """
    try:
        match engine:
            case "auto":
                return _cheapest(q)
            case "offsets":
                if (why := offsets.refusal(q.t, q.pairs)) is not None:
                    raise PatternValueError(f'{why}; use engine="auto"')
                return offsets.follow(q.t, q.pairs, q.depth, [offsets.start(q.t, q.pairs)])
            case "zones":
                return zones.follow(q.t, q.pairs, q.depth, _start(q), zones.MOST_PAIRS)
            case "tiles":
                return tiles.follow(tiles.prepare(q.t, q.pairs, _start(q)), q.depth, _start(q))
            case "rows":
                quick = q.sources is None and _all_rows(q, max(1, q.depth)) <= EXACT_WORK
                if quick or not q.sample:
                    return rows.follow(q.t, q.pairs, q.depth)
                return _sampled(q, ())
    except (SizeError, PatternValueError) as refused:
        if engine == "auto":
            raise
        raise type(refused)(f'engine="{engine}": {refused}') from None
    assert_never(engine)


def _start(q: Question) -> list[State[ZoneSet]]:
    return [zones.start(q.t, q.pairs)]


def _cheapest(q: Question) -> Curve:
    """Offsets where they suit, else zones for as long as they are few, else what is left."""
    if offsets.refusal(q.t, q.pairs) is None:
        sums = [offsets.start(q.t, q.pairs)]
        try:
            return offsets.follow(q.t, q.pairs, q.depth, sums)
        except SizeError:
            return _beyond(q, [offsets.as_zones(q.t, s) for s in sums])
    if _all_rows(q, max(1, q.depth)) <= QUICK_WORK:
        return _quick(q)
    states = _start(q)
    try:
        return zones.follow(q.t, q.pairs, q.depth, states, _limit(q.t))
    except SizeError:
        return _beyond(q, states)


def _quick(q: Question) -> Curve:
    """Zones while they are very few, else all rows; and zones once more for as long as they are
    affordable, where only their doubling gets to a depth to full that is far away."""
    if max(len(level.zones) for level in q.t.levels) <= FEW_PAIRS:
        with suppress(SizeError):
            return zones.follow(q.t, q.pairs, q.depth, _start(q), FEW_PAIRS)
    curve = rows.follow(q.t, q.pairs, q.depth)
    if curve.full.decided:
        return curve
    try:
        return zones.follow(q.t, q.pairs, q.depth, _start(q), _limit(q.t))
    except SizeError:
        return curve


def _limit(t: Topology) -> int:
    """Pairs of zones in one composition up to which zones cost less than exact rows would."""
    if t.frame.n <= tiles.TOKEN_GRAIN:
        return zones.MAX_PAIRS // 32
    return zones.MAX_PAIRS // 4 if t.frame.n <= tiles.MOST_ROWS else zones.MAX_PAIRS


def _beyond(q: Question, states: Sequence[State[ZoneSet]]) -> Curve:
    """From the last exact state on: tiles or all rows, whichever is exact for less; where neither
    is, zones though they are many; else certain bounds by tiles, and a sample of rows where they
    are wide."""
    layers = max(1, q.depth - len(states) + 1)
    words = _all_rows(q, layers)
    scattered = max(len(level.zones) for level in q.t.levels) > SCATTERED
    if q.sample and scattered:
        return _sampled(q, states)
    if words > EXACT_WORK and not scattered and not tiles.only_boxes(q.t):
        with suppress(SizeError):
            return zones.follow(q.t, q.pairs, q.depth, _start(q), LAST_PAIRS)
    run = tiles.prepare(q.t, q.pairs, states)
    by_tiles = layers * run.words if run.exact else float("inf")
    if words <= EXACT_WORK and ROWS_A_WORD * words < by_tiles:
        return rows.follow(q.t, q.pairs, q.depth, states=states)
    curve = tiles.follow(run, q.depth, states)
    if run.exact or not q.sample or all(f.exact for f in curve.figures):
        return curve
    try:
        sampled = _sampled(q, states)
    except SizeError as refused:
        return replace(curve, notes=(*curve.notes, f"nothing was sampled: {refused}"))
    return _both(q, curve, sampled)


def _sampled(q: Question, states: Sequence[State[ZoneSet]]) -> Curve:
    curve = rows.follow(q.t, q.pairs, q.depth, sources=q.sample, seed=q.seed, states=states)
    if all(f.certain for f in curve.figures):
        return curve  # as many sources as there are
    note = (
        f"figures called estimates are of {q.sample} sampled sources (seed {q.seed}); "
        "sources=0 gives certain bounds instead"
    )
    return replace(curve, notes=(*curve.notes, note))


def _all_rows(q: Question, layers: int) -> float:
    """Words that all rows touch; a lower bound, told without a look at the edges, where that is
    too much already."""
    n = q.t.frame.n
    least = 2.0 * layers * n * n / 64
    return least if least > EXACT_WORK else rows.work(q.t, layers, None)


def _both(q: Question, bounds: Curve, sampled: Curve) -> Curve:
    """Of each layer the narrower figure; of the depth to full all that is proved."""
    total = q.pairs.count
    figures = tuple(
        _narrower(a, b, total) for a, b in zip(bounds.figures, sampled.figures, strict=True)
    )
    a, b = bounds.full, sampled.full
    never = a.never or b.never
    full = Depth(max(a.lo, b.lo), None if never else a.hi, never, max(a.searched, b.searched))
    notes = (*bounds.notes, *sampled.notes)
    return Curve(figures, full, bounds.witness or sampled.witness, notes)


def _narrower(bound: Figure, estimate: Figure, total: int) -> Figure:
    if estimate.certain or bound.hi - bound.lo <= estimate.hi - estimate.lo:
        return estimate if estimate.exact else bound
    lo, hi = max(bound.lo, estimate.lo), min(bound.hi, estimate.hi)
    if lo > hi:  # the sample misleads, as one in twenty may
        return bound
    share = min(max(estimate.share, fraction(lo, total)), fraction(hi, total))
    return replace(estimate, lo=lo, hi=hi, share=share)
