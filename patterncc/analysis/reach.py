"""analyze: choose an engine, follow reach over the layers, and put every figure into a Report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from patterncc.analysis import cost
from patterncc.analysis.content import Content, choices, guaranteed, possible, unbound
from patterncc.analysis.curve import Curve
from patterncc.analysis.engines.choose import ENGINES, MAX_DEPTH, Name, Question, follow
from patterncc.analysis.flow.rollout import ALPHA, check_alpha
from patterncc.analysis.lint import run as lint
from patterncc.analysis.report import Report
from patterncc.analysis.topology import PairsName, Topology, allowed_pairs, topology
from patterncc.errors import PatternValueError, suggest
from patterncc.pattern import Pattern, check_int
from patterncc.stack import Heads, Stack, check_stack
from patterncc.zones.lower import check_bindings


def analyze(
    stack: Stack | Pattern | Heads,
    n: int,
    depth: int | None = None,
    *,
    pairs: PairsName | None = None,
    engine: Name = "auto",
    head_dim: int = cost.HEAD_DIM,
    alpha: float = ALPHA,
    sources: int | None = None,
    seed: int = 0,
    **bindings: Any,
) -> Report:
    """What a stack of sparse layers lets through at n tokens, and what it costs.

    R_0 = I and R_l = (I | A_l) @ R_(l-1): the pairs (i, j) such that position i after l layers
    can depend on input j.  `depth` is the stack's length unless given; past its end the stack
    repeats cyclically. `pairs` is T, the pairs that the model allows ("causal", "all" or
    "documents"); left out, it is inferred and the report says how.  The depth to full is searched
    past `depth`; "never" is a proof.

    `engine` is "offsets" (causal layers that are the same for every query), "zones" (exact at any
    length, refuses where zones explode), "tiles" (exact where edges fill whole tiles, certified
    bounds elsewhere), "rows" (exact token by token, or an estimate) or "auto", the cheapest exact
    one.  Where none is affordable, `sources` tokens (512) are sampled by `seed`, and figures are
    estimates with their error at 95%; sources=0 gives certified bounds instead, and a number given
    with engine="rows" is sampled whatever all rows would take.  `head_dim` is D in
    FLOPs and KV bytes, `alpha` the weight of the residual stream in influence.  Other keyword
    arguments bind names in the patterns.

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
    if sources is not None:
        check_int("analyze", "sources", sources, 0, 2**16)
    check_int("analyze", "seed", seed, 0, 2**63)
    check_stack("analyze", stack)
    asked = stack if isinstance(stack, Stack) else Stack(stack)
    check_bindings("analyze", asked.patterns, bindings, analyze)
    t = topology(possible(asked, bindings), n, **bindings)
    layers = len(t.levels)
    depth = layers if depth is None else check_int("analyze", "depth", depth, 0, MAX_DEPTH)
    chosen = choices(asked, bindings)
    most = topology(possible(asked), n, **bindings) if any(c.bound for c in chosen) else t
    allowed = allowed_pairs(most, pairs, bindings)
    question = Question(t, allowed, depth, sources, seed)
    content = _content(asked, question, most, engine) if chosen else None
    curve = follow(question, engine) if content is None else content.known(allowed.count)
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
        costs=cost.costs(t, allowed, depth, head_dim, asked),
        findings=_findings(t, asked, curve, depth),
        notes=notes,
        stack=str(asked),
        topology=t,
        asked=asked,
        content=content,
        alpha=check_alpha(alpha),
    )


def _content(asked: Stack, q: Question, most: Topology, engine: Name) -> Content:
    """The curves of a stack with layers that choose by content, `most` having every choice."""
    bindings = q.t.bindings
    least = topology(guaranteed(asked), q.t.n, **bindings)
    return Content(
        guaranteed=follow(replace(q, t=least), engine),
        possible=follow(replace(q, t=most), engine),
        traced=None if unbound(asked, bindings) else follow(q, engine),
    )


def _findings(t: Topology, asked: Stack, curve: Curve, depth: int) -> tuple[lint.Finding, ...]:
    found = lint.lint(t, asked)
    if curve.full.never:
        return (*found, lint.never_full(curve.witness))
    if curve.full.lo > depth:
        return (*found, lint.not_full(depth, curve.full.lo))
    return found
