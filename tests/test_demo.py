"""The demo's parts: the converted model, patterns inside it, the long run, the page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import patterncc as pc
from patterncc.demo import fidelity, longrun, pretrained, run
from patterncc.integrations.hf import apply


@pytest.fixture(scope="module")
def model() -> object:
    torch.set_num_threads(1)
    return pretrained.load()


def test_the_converted_model_is_the_original(model: tuple) -> None:
    llama, tokenizer = model
    ids = pretrained.batches(tokenizer, 2, 128)
    with torch.no_grad():
        logits = llama(ids, use_cache=False).logits
    original = torch.from_numpy(pretrained.original_logits(ids.numpy()))
    assert (logits - original).abs().max() < 1e-4


def test_a_causal_pattern_changes_nothing_and_leaves_no_trace(model: tuple) -> None:
    llama, tokenizer = model
    ids = pretrained.batches(tokenizer, 2, 100)
    before = fidelity.dense_log_probs(llama, ids)
    same = fidelity.compare(llama, ids, pc.Stack([pc.causal()]), before)
    assert same.kl < 1e-6 and same.top1 == 1.0
    assert llama.config._attn_implementation == "sdpa"
    assert torch.equal(fidelity.dense_log_probs(llama, ids), before)


def test_each_layer_runs_its_own_pattern(model: tuple) -> None:
    llama, tokenizer = model
    ids = pretrained.batches(tokenizer, 1, 64)
    layers = [pc.causal() & pc.window(7), pc.causal(), pc.causal() & pc.sink(2) | pc.window(0)]
    with torch.no_grad():
        with apply(llama, pc.Stack(layers).repeated(4)):
            found = llama(ids, use_cache=False).logits
        masks = [torch.from_numpy(pc.lower(p, 64).dense()) for p in layers]
        truth = _masked(llama, ids, masks)
    assert (found - truth).abs().max() < 1e-4


def _masked(llama: object, ids: torch.Tensor, masks: list[torch.Tensor]) -> torch.Tensor:
    """The same model in eager attention with a dense mask for each layer, given by a hook."""
    hooks = []
    for layer in llama.model.layers:  # type: ignore[attr-defined]
        mask = masks[layer.self_attn.layer_idx % len(masks)]
        bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[None, None]

        def give(_: object, args: tuple, kwargs: dict, bias: torch.Tensor = bias) -> tuple:
            return args, kwargs | {"attention_mask": bias}

        hooks.append(layer.self_attn.register_forward_pre_hook(give, with_kwargs=True))
    try:
        return llama(ids, use_cache=False).logits  # type: ignore[operator, no-any-return]
    finally:
        for hook in hooks:
            hook.remove()


def test_what_is_not_answered_is_refused(model: tuple) -> None:
    llama, _ = model
    stack = pc.Stack([pc.causal()])
    with (
        apply(llama, stack),
        pytest.raises(pc.BackendError, match="already carries a pattern"),
    ):
        apply(llama, stack)
    with pytest.raises(pc.BackendError, match="has no module that takes its attention"):
        apply(torch.nn.Linear(2, 2), stack)


def test_the_long_run_is_exact_and_the_whole_demo_leaves_a_page(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    said: list[str] = []
    files = (("streaming-llm", {"recent": 32}), ("gpt-oss", {"sliding_window": 16}))
    found = run.main(tmp_path, say=said.append, files=files, long=2048)
    assert all(t["difference"] < 0.1 for t in found["long"]["runs"])
    assert all(t["difference"] < 1e-5 for t in found["long"]["runs"] if t["dtype"] == "float32")
    assert [row["pattern"] for row in found["patterns"]] == ["streaming-llm", "gpt-oss"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "gpt-oss.png",
        "index.html",
        "streaming-llm.png",
    ]
    text = (tmp_path / "index.html").read_text()
    HTMLParser().feed(text)
    assert "http" not in text and "streaming-llm.png" in text
    assert any("full at" in line for line in said)


def test_timing_ratio() -> None:
    assert longrun.Timing("float32", "forward", 0.5, 2.0, 0.0).ratio == 4.0
