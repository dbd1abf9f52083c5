"""The rows engine: bit columns of sources, all of them or a sample."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reach_oracles import layer_masks, patterns, sharing_stacks, slow_depth, slow_reach

from patterncc import SizeError, Stack, causal, documents, random_edges, window
from patterncc import primitives as pc
from patterncc.analysis.engines import columns, operator, rows, sample, strips, tiles, zones
from patterncc.analysis.topology import Pairs, Topology, allowed_pairs, topology
from patterncc.zones import Frame, ZoneSet
from patterncc.zones.lower import lower

Mask = NDArray[np.bool_]


def _ready(stack: object, n: int, name: str | None = None) -> tuple[Topology, Pairs]:
    t = topology(stack, n)
    return t, allowed_pairs(t, name, {})


@given(patterns, st.integers(1, 90), st.integers(1, 90))
@settings(deadline=None)
def test_a_layer_ors_the_rows_that_it_reads(p: object, n: int, sources: int) -> None:
    table = lower(p, n).table
    rng = np.random.default_rng(n)
    state = rng.random((n, sources)) < 0.1
    words = np.zeros((n, -(-sources // 64) * 64), dtype=bool)
    words[:, :sources] = state
    packed = np.packbits(words, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    expected = state | (lower(p, n).dense().astype(int) @ state.astype(int) > 0)
    for tall, few in ((256, 64), (4, 0), (1, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(operator, "TALL", tall)
            patch.setattr(operator, "FEW", few)
            patch.setattr(columns, "FEW", few)
            op = operator.operator(table, n)
            out, made = np.empty_like(packed), columns.ready(op, packed)
            room = columns.scratch(op, 7, packed.shape[1])
            for a in range(0, n, 7):
                columns.apply_block(op, made, packed, packed, out, (a, min(a + 7, n)), room)
        found = np.unpackbits(out.view(np.uint8), axis=1, bitorder="little")[:, :sources]
        assert (found.astype(bool) == expected).all()


def _truth(t: Topology, allowed: Pairs, depth: int) -> list[Mask]:
    """The pairs of T reached after 0 .. depth layers."""
    reach = slow_reach(layer_masks(t.stack, t.n), depth, t.stack.kv_from)
    return [r & allowed.zones.dense() for r in reach]


@given(sharing_stacks(), st.integers(1, 40), st.sampled_from([None, "causal", "all"]))
@settings(deadline=None)
def test_all_sources_agree_with_boolean_products(stack: Stack, n: int, name: str | None) -> None:
    t, allowed = _ready(stack, n, name)
    curve = rows.follow(t, allowed, 5)
    assert [f.lo for f in curve.figures] == [int(r.sum()) for r in _truth(t, allowed, 5)]
    assert all(f.exact for f in curve.figures)
    full = slow_depth(layer_masks(stack, n), allowed.zones.dense(), stack.kv_from)
    assert curve.full.decided and (None if curve.full.never else curve.full.lo) == full
    if curve.full.never:
        assert curve.witness is not None and allowed.zones.dense()[curve.witness]
        assert not _truth(t, allowed, 3 * n + len(stack))[-1][curve.witness]


@given(sharing_stacks(), st.integers(1, 40))
@settings(deadline=None)
def test_engines_agree(stack: Stack, n: int) -> None:
    t, allowed = _ready(stack, n)
    ours = rows.follow(t, allowed, 3)
    states = [zones.start(t, allowed)]
    theirs = tiles.follow(tiles.prepare(t, allowed, states, side=1), 3, states)
    assert [f.lo for f in ours.figures] == [f.lo for f in theirs.figures]
    if theirs.full.decided and not theirs.full.never:
        assert ours.full.lo == theirs.full.lo


@given(sharing_stacks(), st.integers(1, 40), st.integers(1, 20), st.integers(0, 3))
@settings(deadline=None)
def test_what_a_sample_proves_is_true(stack: Stack, n: int, sources: int, seed: int) -> None:
    t, allowed = _ready(stack, n)
    curve = rows.follow(t, allowed, 4, sources=sources, seed=seed)
    whole = sources >= t.frame.n or int(strips.key_pairs(allowed).astype(bool).sum()) <= sources
    assert whole or curve.full.hi is None
    full = slow_depth(layer_masks(stack, n), allowed.zones.dense(), stack.kv_from)
    assert full is None or (not curve.full.never and curve.full.lo <= full)
    if curve.full.never:
        assert full is None and curve.witness is not None
        assert not _truth(t, allowed, 3 * n + len(stack))[-1][curve.witness]
    for figure, truth in zip(curve.figures, _truth(t, allowed, 4)):
        assert not figure.exact or figure.lo == int(truth.sum())


@pytest.mark.parametrize(
    "pattern",
    [
        window(1, 1) | random_edges(1),  # sources alike: without replacement
        causal() & (window(2) | random_edges(1)),  # drawn by their pairs, with replacement
        documents([40, 2, 100, 58]) & (window(3) | random_edges(2)),
    ],
    ids=str,
)
def test_intervals_hold_the_truth(pattern: pc.Pattern) -> None:
    """Nineteen times in twenty at least, and they are no wider than they have to be."""
    t, allowed = _ready(Stack([pattern] * 4), 200)
    truth = [f.lo for f in rows.follow(t, allowed, 4).figures]
    runs = [rows.follow(t, allowed, 4, sources=60, seed=seed) for seed in range(60)]
    held = [[f.lo <= true <= f.hi for f, true in zip(r.figures, truth)] for r in runs]
    assert np.mean(held, axis=0).min() >= 0.9
    width = np.mean([[f.hi - f.lo for f in r.figures] for r in runs], axis=0) / allowed.count
    assert width.max() < 0.35
    again = rows.follow(t, allowed, 4, sources=60, seed=7)
    assert again.figures == runs[7].figures != runs[8].figures


@pytest.mark.parametrize("population", [None, 300])
@pytest.mark.parametrize("kind", ["coins", "rare", "narrow", "spread"])
def test_betting_misses_at_most_one_mean_in_twenty(kind: str, population: int | None) -> None:
    rng = np.random.default_rng(3)
    values = {
        "coins": (rng.random(300) < 0.5).astype(float),
        "rare": (rng.random(300) < 0.02).astype(float),
        "narrow": 0.6 + 0.01 * rng.random(300),
        "spread": rng.random(300),
    }[kind]
    missed = 0
    for _ in range(200):
        picked = rng.choice(values, 100, replace=population is None)
        low, high = sample.interval(picked, population)
        missed += not low <= values.mean() <= high
    assert missed <= 10


def test_intervals_close_on_the_whole() -> None:
    values = np.random.default_rng(1).random(400)
    low, high = sample.interval(values, 400)
    assert low <= values.mean() <= high and high - low < 0.02
    low, high = sample.interval(np.ones(512), None)
    assert high == 1.0 and low > 0.99


@given(st.integers(0, 200), st.integers(1, 3), st.integers(0, 9))
def test_column_counts(count: int, words: int, seed: int) -> None:
    made = np.random.default_rng(seed).integers(0, 2**64, (count, words), dtype=np.uint64)
    bits = np.unpackbits(made.view(np.uint8), axis=1, bitorder="little")
    assert sample.column_counts(made).tolist() == bits.sum(axis=0, dtype=int).tolist()


@given(patterns, st.integers(1, 60))
def test_pairs_of_each_key(p: pc.Pattern, n: int) -> None:
    zones_ = lower(p, n)
    allowed = Pairs("all", "", zones_, zones_.count(), True)
    assert strips.key_pairs(allowed).tolist() == zones_.dense().sum(axis=0).tolist()


def test_no_matrix_is_held() -> None:
    n = 16384  # a bit matrix of it is 32 MiB, and a run would hold two
    t, allowed = _ready(window(2, 2) | random_edges(2), n)
    tracemalloc.start()
    try:
        curve = rows.follow(t, allowed, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert curve.full.decided and peak < 16 * 2**20 * max(1, rows.THREADS / 2)


def test_refusals() -> None:
    frame = Frame.of(2**30)
    t, allowed = _ready(causal() & window(3), 2**30)
    assert allowed.zones.frame == frame
    with pytest.raises(SizeError, match="positions"):
        rows.follow(t, allowed, 1, sources=64)
    t, allowed = _ready(causal() & window(3), 2**20)
    with pytest.raises(SizeError, match="words"):
        rows.follow(t, allowed, 1000)
    with pytest.raises(SizeError, match="edges"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator, "MAX_ENTRIES", 10)
        operator.operator(lower(random_edges(2), 64).table, 64)
    assert isinstance(t.identity, ZoneSet)
