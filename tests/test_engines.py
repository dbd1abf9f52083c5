"""Every reach engine against networkx on generated stacks: what is exact, what is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import networkx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc.analysis import Report
from patterncc.analysis.engines import choose as engine
from patterncc.analysis.engines import tiles, zones
from patterncc.analysis.engines.choose import ENGINES, Name
from patterncc.analysis.topology import PairsName, allowed_pairs
from patterncc.stack import Heads, Stack
from tests.reach_oracles import Mask, layer_masks, layers, slow_depth, slow_reach

EXACT = [name for name in ENGINES if name not in ("auto", "tiles")]
PAIRS: tuple[PairsName | None, ...] = (None, None, "causal", "all")


def unrolled_reach(stack: Stack, n: int, depth: int) -> list[Mask]:
    """R_0 .. R_depth: what each (layer, position) is joined to at the bottom of the unrolled stack.

    Node (l, i) is the state of position i after l layers.
    """
    size = stack.memory + n
    dag: networkx.DiGraph[tuple[int, int]] = networkx.DiGraph()
    masks = layer_masks(stack, n)
    dag.add_nodes_from((l, i) for l in range(depth + 1) for i in range(size))
    for l in range(depth):
        at = l % len(masks)
        source = l - at + stack.kv_from[at]
        dag.add_edges_from(((l + 1, i), (l, i)) for i in range(size))
        dag.add_edges_from(((l + 1, int(i)), (source, int(j))) for i, j in np.argwhere(masks[at]))
    reach = [np.eye(size, dtype=bool) for _ in range(depth + 1)]
    for l, i in dag:
        reach[l][i, [j for below, j in networkx.descendants(dag, (l, i)) if below == 0]] = True
    return reach


@st.composite
def questions(draw: st.DrawFn, most: int = 18) -> tuple[Stack, int]:
    """A stack and a length: composed patterns, random graphs, heads, memory, shared keys and
    values; a third of them causal, a third inside one and the same documents."""
    n = draw(st.integers(1, most))
    memory = draw(st.sampled_from([0, 0, 0, 1, 4]))
    node = st.integers(0, memory + n - 1)
    graph = st.lists(st.tuples(node, node), max_size=3 * n).map(_edges)
    listed = draw(st.lists(st.one_of(layers, graph), min_size=1, max_size=4))
    kind = draw(st.sampled_from(["any", "causal", "documents"]))
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    limit = {"any": pc.full(), "causal": pc.causal(), "documents": pc.documents(lengths)}[kind]
    listed = [
        pc.heads([limit & p for p in x.patterns]) if isinstance(x, Heads) else limit & x
        for x in listed
    ]
    return Stack(listed, memory, kv_from=draw(_sources(len(listed)))), n


def _edges(pairs: list[tuple[int, int]]) -> pc.Pattern:
    return pc.edges(np.array(sorted(set(pairs)), dtype=np.int64).reshape(-1, 2))


@st.composite
def _sources(draw: st.DrawFn, count: int) -> list[int]:
    """Whose keys and values each layer reads: mostly its own."""
    sources: list[int] = []
    for l in range(count):
        own = [k for k, source in enumerate(sources) if k == source]
        sources.append(draw(st.sampled_from([l, l, *own])))
    return sources


def asked(name: Name, stack: Stack, n: int, depth: int, pairs: Any) -> Report | None:
    """The report by one engine, or None where it says that the stack is not its kind."""
    try:
        return pc.analyze(stack, n, depth, engine=name, pairs=pairs)
    except pc.PatternValueError as refused:
        assert name == "offsets" and 'engine="offsets": ' in str(refused), refused
        return None


def allowed_mask(report: Report, pairs: PairsName | None) -> Mask:
    """T: by its definition where it was asked for by name."""
    memory, size = report.topology.memory, report.topology.frame.n
    mask = np.ones((size, size), dtype=bool)
    match pairs:
        case "causal":
            mask = np.tri(size, dtype=bool)
        case None:
            mask = allowed_pairs(report.topology, None, {}).zones.dense()
    mask[:memory] = False
    return mask


@settings(max_examples=100)
@given(questions(), st.integers(0, 6), st.sampled_from(PAIRS))
@example(
    (Stack([_edges([(4, 1), (1, 6), (6, 3), (6, 6)])]), 7), 4, "causal"
)  # leaves T, comes back
def test_every_engine_holds_what_networkx_finds(
    question: tuple[Stack, int], depth: int, pairs: PairsName | None
) -> None:
    stack, n = question
    reach = unrolled_reach(stack, n, depth)
    for name in ENGINES:
        r = asked(name, stack, n, depth, pairs)
        if r is None:
            continue
        allowed = allowed_mask(r, pairs)
        assert r.pairs == allowed.sum()
        assert len(r.reach) == depth + 1
        for figure, mask in zip(r.reach, reach, strict=True):
            truth = int((mask & allowed).sum())
            assert figure.lo <= truth <= figure.hi, (name, figure, truth)
            assert figure.exact == (figure.badge == "exact")
            assert figure.exact or name not in EXACT
        depth_holds(r, stack, n, allowed, name in EXACT)


def depth_holds(r: Report, stack: Stack, n: int, allowed: Mask, exact: bool) -> None:
    """Depth to full, never and its witness, against a search that goes on until nothing moves."""
    masks = layer_masks(stack, n)
    truth = slow_depth(masks, allowed, stack.kv_from)
    if r.full.never:
        assert truth is None and r.witness is not None and allowed[r.witness]
        assert not slow_reach(masks, (n + 2) * len(stack), stack.kv_from)[-1][r.witness]
        return
    assert r.witness is None
    assert not (exact and truth is None)
    if truth is None:
        assert r.full.hi is None
    else:
        assert r.full.lo <= truth
        assert r.full.hi is None or truth <= r.full.hi
        assert not exact or r.depth_to_full == truth


@settings(max_examples=40)
@given(questions(), st.integers(1, 4))
def test_figures_that_follow_from_reach_are_the_same_by_every_engine(
    question: tuple[Stack, int], depth: int
) -> None:
    """At these lengths a tile is a token, so that every engine is exact."""
    stack, n = question
    reports = [r for e in ENGINES if (r := asked(e, stack, n, depth, None)) is not None]
    for one, other in pairwise(reports):
        assert [(f.lo, f.hi) for f in one.reach] == [(f.lo, f.hi) for f in other.reach]
        assert one.hops == other.hops and one.mean_hops == other.mean_hops
        assert one.full.never == other.full.never
        assert one.depth_to_full == other.depth_to_full


@pytest.fixture(scope="module")
def pinched() -> Iterator[None]:
    """Limits so low that a few dozen tokens are a long sequence: coarse tiles, no exact rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TOKEN_GRAIN", 0)
        patch.setattr(tiles, "MOST_ROWS", 6)
        patch.setattr(tiles, "BOUND_ROWS", 6)
        patch.setattr(zones, "MAX_PAIRS", 24)
        patch.setattr(engine, "EXACT_WORK", 0.0)
        patch.setattr(engine, "QUICK_WORK", 0.0)
        patch.setattr(engine, "LAST_PAIRS", 24)
        yield


@settings(max_examples=150)
@given(
    questions(most=40),
    st.integers(0, 5),
    st.sampled_from(PAIRS),
    st.sampled_from(["tiles", "auto", "rows"]),
    st.sampled_from([0, 0, 1, 5]),
)
def test_what_is_certain_holds_where_nothing_exact_is_affordable(
    pinched: None,
    question: tuple[Stack, int],
    depth: int,
    pairs: PairsName | None,
    name: Name,
    sources: int,
) -> None:
    stack, n = question
    r = pc.analyze(stack, n, depth, engine=name, pairs=pairs, sources=sources)
    allowed = allowed_mask(r, pairs)
    for figure, mask in zip(r.reach, slow_reach(layer_masks(stack, n), depth, stack.kv_from)):
        truth = int((mask & allowed).sum())
        assert figure.certain or sources
        assert not figure.certain or figure.lo <= truth <= figure.hi, (figure, truth)
        assert 0 <= figure.lo <= figure.hi <= r.pairs
        assert figure.badge.split()[0] in ("exact", "bounds", "estimate")
    if name == "rows" and not all(f.certain for f in r.reach):
        assert r.full.hi is None  # a sample never says that reach is full
    depth_holds(r, stack, n, allowed, exact=False)


def test_limits_are_pinched(pinched: None) -> None:
    """Bounds and estimates are really what the test above sees."""
    stack = Stack([pc.window(1) | pc.random_edges(1)] * 3)
    bounds = pc.analyze(stack, 40, engine="tiles")
    assert any(f.badge.startswith("bounds") for f in bounds.reach)
    sampled = pc.analyze(stack, 40, engine="rows", sources=5)
    assert any(f.badge.startswith("estimate") for f in sampled.reach)
    assert sampled.full.hi is None
    both = pc.analyze(stack, 40, sources=5)
    assert {f.engine for f in both.reach} > {"zones"}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_the_shortest_lengths(name: Name, n: int) -> None:
    r = asked(name, Stack([pc.causal()] * 2), n, 2, None)
    assert r is not None
    assert [f.lo for f in r.reach] == [n, n * (n + 1) // 2, n * (n + 1) // 2]
    assert r.depth_to_full == (1 if n > 1 else 0)


def test_a_name_that_is_no_engine_is_refused_with_the_nearest() -> None:
    with pytest.raises(pc.PatternValueError, match="unknown name 'zonse'; did you mean 'zones'"):
        pc.analyze(pc.causal(), 8, engine="zonse")  # type: ignore[arg-type]
