"""bench swap and bench train run, say what they measured and leave nothing behind; nothing here is
timed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from patterncc.bench import swap, train
from patterncc.integrations import hf
from patterncc.integrations.hf import run as integration
from patterncc.kernels import op


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_swap_measures_each_phase_and_puts_everything_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AttentionInterface

    monkeypatch.setattr(swap, "TOKENS", 3)
    before = op.attention, op.decode
    result = swap.run(n=96, repeats=2, width=32)
    assert json.loads(json.dumps(result)) == result
    assert [case["phase"] for case in result["cases"]] == ["prefill", "training", "decoding"]
    for case in result["cases"]:
        assert set(case["seconds"]) == {"swapped", "direct", "op", "added"}
        assert 0 < case["share"]["median"] < 1
        assert case["reached"] == (case["share"]["median"] < case["goal"])
    shown = swap.text(result)
    assert "decoding, 96 tokens" in shown and "of a step; goal below 2%" in shown
    assert (op.attention, op.decode) == before
    assert AttentionInterface()[hf.NAME] is integration.attention


def test_what_is_direct_computes_what_the_pattern_computes() -> None:
    """Both copies give the same loss: the clocks stand around the same work."""
    clock = swap.Clock()
    ids = torch.arange(64)[None]
    with swap._op_clocked(clock), torch.no_grad():
        swapped, direct = swap._models(64, 32)
        with hf.apply(swapped, train.pattern_of(64)), swap._functions_clocked(clock, swapped):
            here = swapped(ids, labels=ids).loss
            assert len(clock.calls) == swap.LAYERS and clock.inside > clock.op > 0
            there = direct(ids, labels=ids).loss
        assert not clock.calls and here == there
        assert not any(m._forward_pre_hooks for m in swapped.modules())  # undone, clocks and all


def test_train_measures_both_precisions_and_the_loss_is_that_of_masked_dense() -> None:
    result = train.run(n=200, repeats=1, width=32)
    assert json.loads(json.dumps(result)) == result
    assert [case["dtype"] for case in result["cases"]] == ["float32", "bfloat16 autocast"]
    for case, limit in zip(result["cases"], (1e-5, 1e-2)):
        assert case["loss_difference"] < limit
    assert 0.08 < result["causal_share"] <= 0.1
    assert "times as fast as dense; goal 2.0" in train.text(result)
