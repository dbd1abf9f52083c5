"""Reach against boolean matrix powers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from patterncc import primitives as pc
from patterncc.analysis import Report, analyze
from patterncc.analysis.engines import offsets, tiles, zones
from patterncc.analysis.topology import allowed_pairs, topology
from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.pattern import Pattern
from patterncc.stack import Stack, heads
from patterncc.zones.algebra import merge_intervals
from patterncc.zones.lower import lower
from tests.reach_oracles import Mask, layer_masks, sharing_stacks, slow_depth, slow_reach, stacks


def dense_pairs(stack: Stack, n: int) -> Mask:
    t = topology(stack, n)
    return allowed_pairs(t, None, {}).zones.dense()


@settings(max_examples=150)
@given(st.one_of(stacks(), sharing_stacks()), st.integers(0, 36), st.integers(0, 9))
def test_zones_engine_is_exact(stack: Stack, n: int, depth: int) -> None:
    r = analyze(stack, n, depth, engine="zones")
    allowed = dense_pairs(stack, n)
    masks = layer_masks(stack, n)
    truth = slow_reach(masks, depth, stack.kv_from)
    assert r.pairs == allowed.sum()
    assert [(f.lo, f.hi) for f in r.reach] == [(int((m & allowed).sum()),) * 2 for m in truth]
    if n:
        # what is allowed is never left, except for the memory's own identity rows
        assert not (truth[-1] & ~allowed)[stack.memory :].any()
    assert r.depth_to_full == slow_depth(masks, allowed, stack.kv_from)
    if r.depth_to_full is None:
        assert r.witness is not None and allowed[r.witness]
        assert not slow_reach(masks, 3 * n + len(stack), stack.kv_from)[-1][r.witness]
    else:
        assert r.witness is None
    edges = [
        int(lower(p, n, n + stack.memory, stack.memory, layer=l, head=h).count())
        for l in range(min(depth, len(stack)))
        for h, p in enumerate(stack.heads(l))
    ]
    assert [e for c in r.costs[: len(stack)] for e in c.edges] == edges


@given(st.lists(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6))), min_size=1, max_size=2))
@example([{(4, 1), (1, 6), (6, 3)}])
def test_reach_that_leaves_the_allowed_pairs_and_comes_back(graphs: list[set[Any]]) -> None:
    graphs = [graph | {(6, 6)} for graph in graphs]
    stack = Stack([pc.edges(np.array(sorted(graph))) for graph in graphs])
    masks, allowed = layer_masks(stack, 7), np.tri(7, dtype=bool)
    r = analyze(stack, 7, 4, pairs="causal", engine="zones")
    assert [f.lo for f in r.reach] == [int((m & allowed).sum()) for m in slow_reach(masks, 4)]
    assert r.depth_to_full == slow_depth(masks, allowed)


causal_bands = st.one_of(
    st.builds(pc.window, st.integers(0, 9)),
    st.builds(pc.dilated, st.integers(0, 20), st.just(0), st.integers(1, 6)),
    st.builds(lambda s: pc.causal() & pc.strided(s), st.integers(1, 9)),
    st.just(pc.logsparse()),
    st.just(pc.causal() - pc.window(5)),
)


@settings(max_examples=100)
@given(st.data(), st.integers(1, 40), st.integers(0, 9))
def test_offsets_engine_is_exact(data: st.DataObject, n: int, depth: int) -> None:
    layers = data.draw(st.lists(causal_bands, min_size=1, max_size=4))
    share = data.draw(st.booleans())
    kv_from = [max(0, l - 1) if l == 1 else l for l in range(len(layers))] if share else None
    stack = Stack(layers, kv_from=kv_from)
    r = analyze(stack, n, depth, engine="offsets")
    allowed, masks = dense_pairs(stack, n), layer_masks(stack, n)
    truth = slow_reach(masks, depth, stack.kv_from)
    assert [(f.lo, f.hi) for f in r.reach] == [(int((m & allowed).sum()),) * 2 for m in truth]
    assert r.depth_to_full == slow_depth(masks, allowed, stack.kv_from)
    assert {f.engine for f in r.reach} == {f.engine for f in analyze(stack, n).reach} == {"offsets"}


bands_of_40 = st.lists(st.tuples(st.integers(-39, 0), st.integers(1, 6)), min_size=1, max_size=6)


@given(bands_of_40, bands_of_40)
def test_many_offsets_are_added_as_a_convolution(
    first: list[tuple[int, int]], then: list[tuple[int, int]]
) -> None:
    t = topology(pc.causal(), 40)
    few = offsets.Offsets(t, allowed_pairs(t, None, {}))
    many = offsets.Offsets(t, allowed_pairs(t, None, {}), most=0)
    a, b = (
        merge_intervals(np.array([(low, min(1, low + size)) for low, size in x]))
        for x in (first, then)
    )
    assert few.after(a, b).tolist() == many.after(a, b).tolist()


@pytest.mark.parametrize("n", [2, 300, 2**30])
def test_residues_that_never_mix_are_proved_at_once(n: int) -> None:
    both = analyze(pc.dilated(10_000, 10_000, 7), n)
    assert both.depth_to_full is None and both.witness is not None
    assert (both.witness[0] - both.witness[1]) % 7
    apart = Stack([pc.dilated(99, 0, 6), pc.dilated(99, 0, 9)])
    assert analyze(apart, n).witness == (1, 0)


def test_offsets_engine_refuses_what_it_cannot_add() -> None:
    with pytest.raises(PatternValueError, match=r'engine="offsets".*layer 1'):
        analyze(Stack([pc.causal(), pc.causal() & pc.sink(4)]), 64, engine="offsets")
    with pytest.raises(PatternValueError, match=r'engine="offsets".*causal'):
        analyze(pc.window(3, 3), 64, engine="offsets")


@settings(max_examples=150)
@given(
    st.one_of(stacks(), sharing_stacks()),
    st.integers(0, 36),
    st.integers(0, 7),
    st.integers(1, 9),
    st.integers(0, 2),
)
def test_tile_bounds_hold_the_truth(
    stack: Stack, n: int, depth: int, side: int, exact_layers: int
) -> None:
    t = topology(stack, n)
    pairs = allowed_pairs(t, None, {})
    states = [zones.start(t, pairs)]
    for l in range(exact_layers):
        algebra = zones.Zones(t, pairs)
        states.append(algebra.step(states[-1], states[t.source(l)].value, l))
    curve = tiles.follow(tiles.prepare(t, pairs, states, side), depth, states)
    allowed, masks = pairs.zones.dense(), layer_masks(stack, n)
    reaches = slow_reach(masks, depth, stack.kv_from)
    for figure, mask in zip(curve.figures, reaches, strict=True):
        truth = int((mask & allowed).sum())
        assert figure.lo <= truth <= figure.hi
        if side == 1:
            assert figure.exact
    depth_to_full = slow_depth(masks, allowed, stack.kv_from)
    if curve.full.never:
        assert depth_to_full is None
        assert curve.witness is not None and allowed[curve.witness]
        assert not slow_reach(masks, 3 * n + len(stack), stack.kv_from)[-1][curve.witness]
    elif depth_to_full is None:
        assert curve.full.hi is None
    else:
        assert curve.full.lo <= depth_to_full
        assert curve.full.hi is None or depth_to_full <= curve.full.hi
        if side == 1:
            assert curve.full.lo == curve.full.hi == depth_to_full


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 9),
    st.integers(1, 4),
    st.booleans(),
)
def test_tiles_are_exact_on_block_patterns_of_any_length(
    rows: int, left: int, right: int, rest: int, depth: int, hub: bool
) -> None:
    p: Pattern = pc.window(left, right, block=10) | pc.random_blocks(1, block=10)
    if hub:
        p = p | pc.global_tokens(range(10))
    n = 10 * rows + rest
    t = topology(Stack([p] * 2), n)
    pairs = allowed_pairs(t, None, {})
    states = [zones.start(t, pairs)]
    curve = tiles.follow(tiles.prepare(t, pairs, states, 10), depth, states)
    exact = analyze(Stack([p] * 2), n, depth, engine="zones")
    assert [(f.lo, f.hi) for f in curve.figures] == [(f.lo, f.hi) for f in exact.reach]
    assert curve.full.decided


def test_a_trillion_tokens_are_exact() -> None:
    n = 2**40
    r = analyze(Stack([pc.causal() & (pc.window(4095) | pc.sink(4))] * 48), n)
    back = 48 * 4095
    window = n * (back + 1) - back * (back + 1) // 2
    sinks = sum(max(0, n - back - 1 - s) for s in range(4))
    assert r.reach[48].lo == r.reach[48].hi == window + sinks
    assert r.depth_to_full == -(-(n - 5) // 4095)  # the sinks are read by all at once
    assert json.loads(json.dumps(r.to_json()))["reach"][48]["lo"] == window + sinks


def test_big_bird_goes_to_tiles_where_zones_explode() -> None:
    near = pc.window(1, 1, block=64) | pc.random_blocks(2, block=64)
    r = analyze(Stack([near] * 8), 65_536)
    assert {f.engine for f in r.reach} == {"zones", "tiles"}
    assert all(f.exact for f in r.reach)
    assert isinstance(r.depth_to_full, int)
    hub = analyze(Stack([near | pc.global_tokens(range(64))] * 8), 65_536)
    assert hub.depth_to_full == 2


def test_bounds_never_claim_more_than_they_prove() -> None:
    r = analyze(pc.window(66), 20_000, depth=3, engine="tiles")
    exact = analyze(pc.window(66), 20_000, depth=3)
    assert all(a.lo <= b.lo <= a.hi for a, b in zip(r.reach, exact.reach, strict=True))
    assert r.reach[3].badge.startswith("bounds [")
    assert not r.full.decided
    assert r.depth_bounds[0] <= 304
    with pytest.raises(PatternValueError, match=r"not decided at n=20000"):
        r.depth_to_full  # noqa: B018


def test_pairs_are_inferred_and_settable() -> None:
    docs = pc.documents([100, 28])
    packed = analyze(pc.causal() & docs, 128)
    assert packed.pairs_name == "causal, per document"
    assert packed.depth_to_full == 1
    assert analyze(pc.causal() & docs, 128, pairs="causal").depth_to_full is None
    assert analyze(pc.causal(), 8).pairs == 36
    assert analyze(pc.causal(), 8, pairs="all").pairs == 64
    assert analyze(pc.full(), 8, pairs="causal").reach[1].lo == 36
    named = analyze(pc.documents("docs"), 9, docs=[4, 5])
    assert named.pairs == 41 and named.depth_to_full == 1
    with pytest.raises(PatternValueError, match="do not all lie inside the same documents"):
        analyze(pc.causal(), 8, pairs="documents")
    with pytest.raises(PatternValueError, match="did you mean 'causal'"):
        analyze(pc.causal(), 8, pairs="casual")  # type: ignore[arg-type]


def test_memory_positions_are_read_but_read_nothing() -> None:
    stack = Stack([pc.causal() & pc.window(3)] * 2, memory=8)
    r = analyze(stack, 8)
    assert r.pairs == sum(9 + i for i in range(8))
    assert r.depth_to_full is None  # no query reads memory positions 0 .. 4
    assert r.witness is not None and r.witness[1] < 5
    assert r.reach[1].lo == 8 * 4


def test_hop_histogram_and_means() -> None:
    r = analyze(pc.causal() & pc.window(1), 4, depth=5)
    assert r.hops == ((4, 4), (3, 3), (2, 2), (1, 1), (0, 0), (0, 0))
    assert r.mean_hops == pytest.approx((3 + 2 * 2 + 3) / 6)
    assert analyze(pc.window(0), 4).mean_hops is None


def test_cost_is_per_head_and_against_allowed_pairs() -> None:
    r = analyze(heads([pc.causal()] * 3 + [pc.window(3)]), 16, head_dim=64)
    (c,) = r.costs
    assert c.edges == (136, 136, 136, 58)
    assert c.density == pytest.approx((3 * 136 + 58) / (4 * 256))
    assert c.flops == 4 * 64 * (3 * 136 + 58) / 4 and c.full_flops == 4 * 64 * 136
    assert c.kv_bytes == 2 * 64 * 2 * (3 * 16 + 4) / 4 and c.full_kv_bytes == 2 * 64 * 2 * 16


def test_more_layers_than_there_are_repeat_and_it_says_so() -> None:
    r = analyze(Stack([pc.window(3), pc.causal()]), 32, depth=5)
    assert len(r.reach) == 6
    assert "repeats cyclically" in r.notes[0]


def test_random_layers_differ_and_each_counts() -> None:
    stack = Stack([pc.expander(2, block=2), heads([pc.random_edges(1)] * 2)] * 2)
    masks = layer_masks(stack, 24)
    assert not (masks[0] == masks[2]).all() and not (masks[1] == masks[3]).all()
    truth = slow_reach(masks, 4)
    for engine in ("zones", "tiles"):
        assert [f.lo for f in analyze(stack, 24, engine=engine).reach] == [m.sum() for m in truth]


def codes(r: Report) -> list[tuple[str, str]]:
    return [(f.code, f.severity) for f in r.findings]


def test_lint() -> None:
    assert codes(analyze(pc.causal(), 16)) == []
    assert codes(analyze(pc.documents([16]) - pc.full(), 16))[0] == ("PCC101", "error")
    assert ("PCC102", "warning") in codes(analyze(pc.window(3) - pc.window(0), 16))
    r = analyze(pc.documents([10]), 16)
    assert [c for c, _ in codes(r)] == ["PCC102", "PCC103"]
    assert "6 of 16 queries read no key, the first is 10" in r.findings[0].message
    leak = analyze(Stack([pc.causal()] * 3 + [pc.window(2, 1)]), 16)
    assert codes(leak) == [("PCC104", "error"), ("PCC106", "note")]
    assert "layer 3 reads the future while most layers are causal: query 14 reads key 15" in (
        leak.findings[0].message
    )
    assert ("PCC105", "warning") in codes(analyze(pc.causal() & pc.chunked(4), 16))
    assert ("PCC106", "note") in codes(analyze(pc.window(3), 16))


def test_bad_input_is_refused_with_a_sentence() -> None:
    with pytest.raises(PatternValueError, match="n must be at most"):
        analyze(pc.causal(), 2**41)
    with pytest.raises(PatternValueError, match="depth must be at least 0"):
        analyze(pc.causal(), 8, depth=-1)
    with pytest.raises(
        PatternValueError, match="engine: unknown name 'zone'; did you mean 'zones'"
    ):
        analyze(pc.causal(), 8, engine="zone")  # type: ignore[arg-type]
    with pytest.raises(PatternError, match="a Stack, a Pattern"):
        analyze("causal()", 8)  # type: ignore[arg-type]
    p = pc.random_blocks(64, block=16)
    with pytest.raises(SizeError, match='engine="zones"'):
        analyze(Stack([p] * 2), 2**16, engine="zones")


def test_zones_that_meet_too_many_tile_rows_get_coarser_tiles() -> None:
    t = topology(pc.causal() & (pc.summary(128, 8) | pc.window(128)), 2**20)
    pairs = allowed_pairs(t, None, {})
    run = tiles.prepare(t, pairs, [zones.start(t, pairs)])
    assert run.size <= tiles.MOST_ROWS and not run.exact
