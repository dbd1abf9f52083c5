"""Rollout against dense matrices, and the facts that it is held to."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from patterncc import primitives as pc
from patterncc.analysis.flow import sweep_vectors
from patterncc.analysis.flow.hubs import hub_load, hub_load_of
from patterncc.analysis.flow.influence import heuristic_range, influence, influence_of
from patterncc.analysis.flow.rollout import rollout
from patterncc.analysis.flow.sweep_vectors import Entries, carrier, mixing, row_counts
from patterncc.analysis.topology import topology
from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.pattern import Pattern
from patterncc.stack import Stack, heads
from patterncc.zones import Frame, ZoneSet, sweep
from patterncc.zones.algebra import areas
from patterncc.zones.lower import lower
from tests.reach_oracles import slow_reach, stacks
from tests.strategies import zone_rows

F64 = NDArray[np.float64]


def slow_rollout(stack: Stack, n: int, depth: int, alpha: float) -> list[F64]:
    """P_depth ... P_(l+1) for l = 0 .. depth, dense, from the definition."""
    size = stack.memory + n
    product = np.eye(size)
    products = [product]
    for l in reversed(range(depth)):
        index = l % len(stack)
        mean = np.zeros((size, size))
        for head, pattern in enumerate(stack.heads(index)):
            a = np.eye(size)
            edges = lower(pattern, n, size, stack.memory, layer=index, head=head).dense()
            for i, row in enumerate(edges, start=stack.memory):
                if row.any():
                    a[i] = row / row.sum()
            mean += a / len(stack.heads(index))
        product = product @ (alpha * np.eye(size) + (1 - alpha) * mean)
        products.append(product)
    return products[::-1]


@settings(max_examples=150)
@given(
    stacks(),
    st.integers(1, 36),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.25, 0.5, 0.95, 1.0]),
    st.integers(0, 35),
    st.sampled_from([0, 1, 64]),
)
def test_rollout_is_the_dense_product(
    stack: Stack, n: int, depth: int, alpha: float, back: int, few: int
) -> None:
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sweep_vectors, "FEW", few)  # small stacks through the ways of large ones too
        m.setattr(sweep_vectors, "CHUNK", 5)
        m.setattr(sweep_vectors, "BLOCK", 7)
        r = rollout(stack, n, alpha, depth)
        query = stack.memory + n - 1 - back % n
        found, load = influence_of(r, query, bins=5), hub_load_of(r)
    products = slow_rollout(stack, n, depth, alpha)
    phi = products[0]
    np.testing.assert_allclose(found.row, phi[query], atol=1e-12)
    np.testing.assert_allclose(load.load, phi.sum(axis=0), atol=1e-11)
    assert found.mass == pytest.approx(1, abs=1e-12)
    assert load.load.sum() == pytest.approx(stack.memory + n)
    masks = [m | np.eye(len(m), dtype=bool) for m in _masks(stack, n)]
    assert not found.row[~slow_reach(masks, depth)[depth][query]].any()
    assert found.row.min() >= 0
    heaviest = sorted(enumerate(load.load.tolist()), key=lambda x: (-x[1], x[0]))
    assert list(load.busiest) == heaviest[:16]
    assert load.share_of(3 if n > 2 else 1) == pytest.approx(
        sum(x for _, x in heaviest[: 3 if n > 2 else 1]) / len(heaviest)
    )
    for l, p in enumerate(products):
        sums = p.sum(axis=0)
        assert load.n_eff[l] == pytest.approx(sums.sum() ** 2 / (sums**2).sum())
        bins = np.split(p[query], found.edges[1:-1])
        np.testing.assert_allclose(found.cone[l], [b.sum() for b in bins], atol=1e-12)


def _masks(stack: Stack, n: int) -> list[NDArray[np.bool_]]:
    t = topology(stack, n)
    return [level.zones.dense() for level in t.levels]


@given(zone_rows(low=0, high=30), st.sampled_from([0, 1, 64]), st.integers(0, 9))
def test_carrying_is_a_product(rows: list[tuple[int, ...]], few: int, seed: int) -> None:
    z = ZoneSet.make(Frame.of(30), rows).disjoint()
    u = np.random.default_rng(seed).random(30)
    sums, out = np.concatenate([[0], np.cumsum(u)]), np.zeros(30)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sweep_vectors, "FEW", few)
        carrier(z.table, 30).add(sums, out)
        counts = row_counts(z.table, 30)
    np.testing.assert_allclose(out, u @ z.dense(), atol=1e-12)
    assert (counts == z.dense().sum(axis=1)).all()


@given(stacks(), st.integers(1, 36), st.sampled_from([0.0, 0.5, 0.95]))
def test_dilution_from_its_definitions(stack: Stack, n: int, alpha: float) -> None:
    found = influence(stack, n, alpha=alpha)
    p = found.row[found.row > 0]
    assert found.entropy == pytest.approx(-sum(x * math.log(x) for x in p), abs=1e-9)
    assert found.participation == pytest.approx(1 / sum(x * x for x in p))
    far = np.abs(np.arange(len(found.row)) - found.query)
    for q, distance in ((0.5, found.q50), (0.9, found.q90), (0.99, found.q99)):
        assert found.row[far <= distance].sum() >= q - 1e-9
        assert found.row[far < distance].sum() < q + 1e-9
    profile = found.by_distance()
    for first, last, mass in profile:
        assert mass == pytest.approx(found.row[(first <= far) & (far < last)].sum())
    assert sum(mass for *_, mass in profile) == pytest.approx(1)
    assert json.loads(json.dumps(found.to_json()))["q99"] == found.q99


def test_windows_spread_as_the_central_limit_says() -> None:
    # far from the start a hop is 0 with alpha, else uniform on 0..w: hops add up over the layers
    w, depth, alpha, n = 255, 48, 0.5, 16384
    found = influence(pc.causal() & pc.window(w), n, alpha=alpha, depth=depth)
    hop = (1 - alpha) * w / 2
    variance = (1 - alpha) * w * (2 * w + 1) / 6 - hop**2
    far = n - 1 - np.arange(n)
    mean = float(found.row @ far)
    assert mean == pytest.approx(depth * hop)
    assert float(found.row @ (far - mean) ** 2) == pytest.approx(depth * variance)
    spread = math.sqrt(depth * variance)
    assert abs(found.q50 - mean) < spread / 10
    assert found.q90 == pytest.approx(mean + 1.2816 * spread, rel=0.02)
    assert found.entropy == pytest.approx(math.log(spread * math.sqrt(2 * math.pi * math.e)), 0.01)


def test_a_sink_gathers_load_and_a_full_layer_spreads_it() -> None:
    near = pc.causal() & pc.window(15)
    alone, sunk = hub_load(near, 1024, depth=24), hub_load(near | pc.sink(1), 1024, depth=24)
    assert sunk.busiest[0][0] == 0 and sunk.busiest[0][1] > 0.5 * 1024
    assert sunk.n_eff[0] < 5 < alone.n_eff[0]
    assert sunk.top_share > 0.5 > alone.top_share
    assert hub_load(pc.full(), 64, depth=3).n_eff == pytest.approx((64,) * 4)
    assert hub_load(near, 64, depth=3, layer=3).load.tolist() == [1] * 64
    assert sunk.share_of(1024) == pytest.approx(1) and sunk.share_of(0) == 0
    assert json.loads(json.dumps(sunk.to_json()))["positions"] == 1024


def test_heads_are_normalised_before_they_are_averaged() -> None:
    layer = heads([pc.window(0), pc.causal()])
    row = influence(layer, 4, alpha=0.0).row
    np.testing.assert_allclose(row, [0.125, 0.125, 0.125, 0.625])


def test_rows_without_keys_and_memory_keep_what_they_have() -> None:
    stack = Stack([pc.sink(2)], memory=2)
    np.testing.assert_allclose(influence(stack, 3, alpha=0.5).row, [0.25, 0.25, 0, 0, 0.5])
    np.testing.assert_allclose(hub_load(stack, 3).load, [1.75, 1.75, 0.5, 0.5, 0.5])
    empty = pc.causal() - pc.causal()
    assert influence(empty, 4).row.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "pattern",
    [
        pc.causal() & (pc.window(300) | pc.sink(4)),
        pc.causal() & pc.chunked(64),
        pc.window(40, 40) | pc.random_blocks(3, block=32) | pc.global_tokens(range(8)),
        pc.window(3, 3) | pc.random_edges(2),
        pc.causal() & pc.strided(37),
        pc.causal() & pc.documents([700, 100, 1, 400] * 2),
        pc.causal() & pc.summary(64, 4) | pc.window(20),
    ],
    ids=str,
)
def test_longer_patterns_by_every_way(pattern: Pattern) -> None:
    n, rng = 2048, np.random.default_rng(0)
    edges = lower(pattern, n)
    p = mixing([edges.table], [1.0], n, 0.5)
    dense = edges.dense()
    keys = dense.sum(axis=1, keepdims=True)
    truth = 0.5 * np.eye(n) + 0.5 * np.where(keys, dense / np.maximum(keys, 1), np.eye(n))
    v, out, sums = rng.random(n), np.empty(n), np.empty(n + 1)
    p.pull(v, out, sums)
    np.testing.assert_allclose(out, v @ truth, rtol=1e-9, atol=1e-12)


@given(zone_rows(most=3, low=0, high=30), st.integers(0, 60), st.integers(0, 9))
def test_apart_is_the_same_edges_once(rows: list[tuple[int, ...]], cells: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, 30, (cells, 2)).tolist()
    table = [*rows, *((i, i + 1, j, j + 1, j - i, j - i + 1) for i, j in drawn)]
    z = ZoneSet.make(Frame.of(30), table)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sweep, "FEW", 4)
        once = sweep.disjoint(z.table)
    assert (ZoneSet(z.frame, once).dense() == z.dense()).all()
    assert areas(once).sum() == z.dense().sum()


def test_overlapping_entries_of_a_key_add_up() -> None:
    entries = Entries(np.array([1, 1, 3]), np.array([0, 1, 0]), np.array([1, 3, 2]))
    out = np.zeros(5)
    entries.add(np.arange(6.0), out)
    assert out.tolist() == [0, 3, 0, 2, 0]


def test_a_long_sequence_costs_a_few_numbers_a_position() -> None:
    n = 2**18
    stack = Stack([pc.causal() & (pc.window(1023) | pc.sink(4))] * 8)
    tracemalloc.start()
    found, load = influence(stack, n), hub_load(stack, n)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 14 * 8 * n
    assert found.mass == pytest.approx(1, abs=1e-10)
    assert load.load.sum() == pytest.approx(n, rel=1e-10)


def test_the_heuristic_range_is_only_for_one_window() -> None:
    near = pc.causal() & pc.window(63)
    assert heuristic_range(topology(near, 256)) == 96
    assert heuristic_range(topology(Stack([near, pc.causal()]), 256)) is None
    assert heuristic_range(topology(Stack([near, pc.window(31)]), 256)) is None


def test_what_rollout_refuses() -> None:
    hybrid = Stack([pc.causal(), pc.recurrent()])
    for ask in (influence, hub_load):
        with pytest.raises(
            PatternValueError, match=r"layer 1 is recurrent\(\), not attention.*lea"
        ):
            ask(hybrid, 16)
        with pytest.raises(PatternValueError, match="layer 0 is convolution"):
            ask(heads([pc.causal(), pc.convolution(4)]), 16)
        with pytest.raises(PatternValueError, match=r"alpha is .* not 1\.5"):
            ask(pc.causal(), 16, alpha=1.5)
        with pytest.raises(PatternValueError, match="n must be at least 1"):
            ask(pc.causal(), 0)
        with pytest.raises(SizeError, match="shorter n"):
            ask(pc.causal(), 2**30)
        with pytest.raises(PatternError, match="first argument"):
            ask([pc.causal()], 16)  # type: ignore[arg-type]
    with pytest.raises(PatternError, match="query 16 is outside"):
        influence(pc.causal(), 16, query=16)
    with pytest.raises(PatternError, match="query 1 is outside"):
        influence(Stack([pc.causal()], memory=2), 16, query=1)
    with pytest.raises(PatternValueError, match="past the depth 1"):
        hub_load(pc.causal(), 16, layer=2)
