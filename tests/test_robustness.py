"""What a lost relay costs, against dense matrices."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc import primitives as pc
from patterncc.analysis import analyze
from patterncc.analysis.engines import choose as engine
from patterncc.analysis.robustness import robustness
from patterncc.analysis.topology import allowed_pairs, topology
from patterncc.errors import PatternError
from patterncc.stack import Stack
from tests.reach_oracles import layer_masks, slow_reach, stacks


@settings(max_examples=80)
@given(stacks(), st.integers(1, 16), st.integers(0, 5), st.integers(0, 40))
def test_the_loss_is_that_of_dense_matrices(stack: Stack, n: int, depth: int, at: int) -> None:
    token = at % (stack.memory + n)
    found = robustness(stack, n, token, depth, engine="zones")
    allowed = allowed_pairs(topology(stack, n), None, {}).zones.dense().copy()
    allowed[token], allowed[:, token] = False, False
    masks = layer_masks(stack, n)
    cut = [m.copy() for m in masks]
    for m in cut:
        m[token], m[:, token] = False, False
    assert found.pairs == allowed.sum()
    for figure, layers in ((found.before, masks), (found.after, cut)):
        truth = int((slow_reach(layers, depth)[-1] & allowed).sum())
        assert (figure.lo, figure.hi) == (truth, truth)
    for full, layers in ((found.full_before, masks), (found.full_after, cut)):
        truth_depth = _depth(layers, allowed)
        assert full.decided
        assert (None if full.never else full.lo) == truth_depth
    assert json.loads(json.dumps(found.to_json()))["token"] == token


def _depth(masks: list[np.ndarray], allowed: np.ndarray) -> int | None:
    """As slow_depth; reach may grow outside `allowed` on its way."""
    reaches = slow_reach(masks, len(allowed) * len(masks))
    return next((l for l, r in enumerate(reaches) if (r | ~allowed).all()), None)


def test_facts() -> None:
    lost = robustness(pc.window(8, 8) | pc.global_tokens([0]), 129, token=0, depth=2)
    assert lost.before.share == 1 and lost.after.share < 0.3 and lost.lost > 0.7
    assert (lost.full_before.lo, lost.full_after.lo) == (2, 16)
    # a causal sink relays nothing forward, so that losing it costs nothing
    sink = robustness(pc.causal() & (pc.window(15) | pc.sink(1)), 256, token=0, depth=8)
    assert sink.lost == 0 and sink.full_before == sink.full_after
    # of two global tokens one is enough
    spare = robustness(pc.window(8, 8) | pc.global_tokens([0, 1]), 129, token=0, depth=2)
    assert spare.lost == 0 and spare.full_after.lo == 2


def test_deep_stacks_are_decided() -> None:
    far = robustness(pc.causal() & pc.window(7), 10_001, token=5000)
    assert (far.full_before.lo, far.full_before.hi) == (1429, 1429)
    assert far.full_after.lo == 1429 and "-> 1429" in str(far)


def test_random_blocks_by_tiles() -> None:
    stack = Stack([pc.window(1, 1, block=16) | pc.random_blocks(2, block=16)] * 4)
    found = robustness(stack, 512, 100, engine="tiles")
    assert found.before.lo <= found.before.hi <= found.pairs
    assert 0 <= found.lost <= 1


def test_a_token_outside_the_frame() -> None:
    with pytest.raises(PatternError, match="token 64 is outside"):
        robustness(pc.causal(), 64, 64)
    with pytest.raises(PatternError, match="first argument"):
        robustness("window(3)", 64, 0)  # type: ignore[arg-type]


def test_an_estimate_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every exact way is too long, reach without the relay is an estimate too."""
    p = pc.window(2, 2) | pc.random_edges(1)
    found = robustness(p, 6000, token=7, depth=3, engine="rows")
    monkeypatch.setattr(engine, "EXACT_WORK", 0.0)
    sampled = robustness(p, 6000, token=7, depth=3, engine="rows")
    for estimate, exact in ((sampled.before, found.before), (sampled.after, found.after)):
        assert exact.badge == "exact" and not estimate.certain
        assert estimate.badge.startswith("estimate +-")
        assert estimate.lo <= exact.lo <= estimate.hi
        assert estimate.lo / found.pairs <= estimate.share <= estimate.hi / found.pairs


def test_a_report_tries_no_relay_where_that_takes_long() -> None:
    """Without a token, layers that were the same for every query no longer are."""
    report = analyze(Stack([pc.logsparse()] * 12), 4096)
    assert report.robustness == () and "ask patterncc" in report.why_not["robustness"]
    report = analyze(Stack([pc.causal() & (pc.window(63) | pc.sink(4))] * 12), 4096)
    assert len(report.robustness) == 3
