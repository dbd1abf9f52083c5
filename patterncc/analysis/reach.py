"""analyze: choose an engine, follow reach over the layers, and put every figure into a Report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from patterncc.analysis import cost, lint, tiles, zones
from patterncc.analysis.curve import Curve, Depth, Figure
from patterncc.analysis.report import Report
from patterncc.analysis.topology import Pairs, PairsName, Topology, allowed_pairs, topology, witness
from patterncc.errors import PatternValueError, SizeError, suggest
from patterncc.pattern import Pattern, check_int
from patterncc.stack import Heads, Stack, check_stack

Engine = Literal["auto", "zones", "tiles"]
ENGINES: tuple[Engine, ...] = ("auto", "zones", "tiles")
MAX_DEPTH = 100_000


def analyze(
    stack: Stack | Pattern | Heads,
    n: int,
    depth: int | None = None,
    *,
    pairs: PairsName | None = None,
    engine: Engine = "auto",
    head_dim: int = cost.HEAD_DIM,
    **bindings: Any,
) -> Report:
    """What a stack of sparse layers lets through at n tokens, and what it costs.

    R_0 = I and R_l = (I | A_l) @ R_(l-1): the pairs (i, j) such that position i after l layers
    can depend on input j.  `depth` is the stack's length unless given; past its end the stack
    repeats cyclically. `pairs` is T, the pairs that the model allows ("causal", "all" or
    "documents"); left out, it is inferred and the report says how.  The depth to full is searched
    past `depth`; "never" is a proof.

    `engine` is "zones" (exact at any length, refuses where zones explode), "tiles" (exact where
    edges fill whole tiles, certified bounds elsewhere) or "auto", which starts with zones and
    hands over. `head_dim` is D in FLOPs and KV bytes.  Other keyword arguments bind names in the
    patterns.

    >>> from patterncc import causal, window
    >>> r = analyze(causal() & window(15), 256, depth=4)
    >>> r.depth_to_full, r.reach[4].lo, r.reach[4].badge
    (17, 13786, 'exact')

    Raises PatternValueError for sizes and names that cannot be, SizeError where engine="zones"
    would need too many zones.
    """
    if engine not in ENGINES:
        raise PatternValueError(f"engine: unknown name {engine!r}; {suggest(str(engine), ENGINES)}")
    check_int("analyze", "head_dim", head_dim, 1, 2**20)
    check_stack("analyze", stack)
    t = topology(stack, n, **bindings)
    layers = len(t.levels)
    depth = layers if depth is None else check_int("analyze", "depth", depth, 0, MAX_DEPTH)
    allowed = allowed_pairs(t, pairs, bindings)
    curve = follow(t, allowed, depth, engine)
    notes = curve.notes
    if depth > layers:
        notes = (f"{depth} layers asked of a stack of {layers}: it repeats cyclically", *notes)
    return Report(
        n=t.n,
        depth=depth,
        layers=layers,
        pairs=allowed.count,
        pairs_name=allowed.name,
        pairs_how=allowed.how,
        reach=curve.figures,
        full=curve.full,
        witness=curve.witness,
        costs=cost.costs(t, allowed, depth, head_dim),
        findings=_findings(t, curve, depth),
        notes=notes,
        stack=str(t.stack),
        topology=t,
    )


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


def _findings(t: Topology, curve: Curve, depth: int) -> tuple[lint.Finding, ...]:
    found = lint.lint(t)
    if curve.full.never:
        return (*found, lint.never_full(curve.witness))
    if curve.full.lo > depth:
        return (*found, lint.not_full(depth, curve.full.lo))
    return found
