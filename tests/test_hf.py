"""Decoder models under patterns: outputs, gradients, caches, padding; held to eager attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracles_hf import FAMILIES, OTHERS, dense, eager, floats, model_of, text
from transformers import DynamicCache, StaticCache

import patterncc as pc

SINKS = pc.causal() & (pc.window(4) | pc.sink(2))
PLACED = pc.causal() & (pc.window(2) | pc.chunked(7) | pc.strided(9))
RELATIVE = pc.causal() & (pc.window(4) | pc.dilated(12, step=3))
N = 21
CHUNKS = [(0, 9), (9, 12), *((t, t + 1) for t in range(12, N))]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_chunks(model: Any, ids: torch.Tensor, cache: Any, **given: Any) -> torch.Tensor:
    """Logits of a prefill in chunks and decode steps."""
    parts = []
    for a, b in CHUNKS:
        now = {k: x[:, :b] if k == "attention_mask" else x[:, a:b] for k, x in given.items()}
        parts.append(model(ids[:, a:b], past_key_values=cache, use_cache=True, **now).logits)
    return torch.cat(parts, 1)


def padded_left(ids: torch.Tensor, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The batch with its first sequence behind so much padding and cut at the end."""
    ids = ids.clone()
    ids[0] = torch.cat([ids.new_zeros(count), ids[0, :-count]])
    mask = (ids != 0).long()
    return ids, {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_the_dense_mask(family: str) -> None:
    model, ids = model_of(family).train(), text(2, N)
    want = eager(model, ids, SINKS)
    want.square().mean().backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with pc.hf.apply(model, SINKS) as handle:
        got = model(ids, use_cache=False).logits
        got.square().mean().backward()
    close(got, want)
    for k, p in model.named_parameters():
        assert (p.grad is None) == (k not in gradients)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradients[k], rtol=1e-3, atol=1e-4)
    assert set(handle.layers.values()) == {str(SINKS)} and not handle.fallbacks


@pytest.mark.parametrize("family", OTHERS)
@torch.no_grad()
def test_further_families(family: str) -> None:
    model, ids = model_of(family), text(2, N)
    want, own = eager(model, ids, SINKS), model(ids, use_cache=False).logits
    close(model_of(family, "patterncc")(ids, use_cache=False).logits, own)
    with pc.hf.apply(model, SINKS):
        close(in_chunks(model, ids, DynamicCache(config=model.config)), want)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_in_a_growing_cache_is_the_whole_pass(family: str) -> None:
    model, ids = model_of(family), text(2, N)
    want = eager(model, ids, PLACED)
    with pc.hf.apply(model, PLACED) as handle:
        close(in_chunks(model, ids, DynamicCache(config=model.config)), want)
        assert bool(handle.notes) == any(DynamicCache(config=model.config).is_sliding)


@pytest.mark.parametrize("pattern", [SINKS, RELATIVE], ids=["sinks", "relative"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@torch.no_grad()
def test_decoding_in_a_static_cache_is_the_whole_pass(family: str, pattern: pc.Pattern) -> None:
    model, ids = model_of(family), text(2, N)
    want = eager(model, ids, pattern)
    with pc.hf.apply(model, pattern):
        close(in_chunks(model, ids, StaticCache(model.config, max_cache_len=30)), want)


@pytest.mark.parametrize("pattern", [SINKS, PLACED, RELATIVE], ids=["sinks", "placed", "relative"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
@torch.no_grad()
def test_padding_on_the_left_moves_the_pattern_along(family: str, pattern: pc.Pattern) -> None:
    model, ids, pad = model_of(family), text(2, N), 6
    want = eager(model, ids, pattern)
    moved, given = padded_left(ids, pad)
    with pc.hf.apply(model, pattern):
        whole = model(moved, use_cache=False, **given).logits
        stepped = in_chunks(model, moved, DynamicCache(), **given)
        static = in_chunks(model, moved, StaticCache(model.config, max_cache_len=30), **given)
    for got in (whole, stepped, static) if family != "gpt_oss" else (whole, stepped):
        close(got[0, pad:], want[0, : N - pad])
        close(got[1], want[1])
        assert got.isfinite().all()


def test_a_padded_batch_trains() -> None:
    model, ids = model_of("llama"), text(2, N)
    moved, given = padded_left(ids, 6)
    masks = [torch.zeros(N, N, dtype=torch.bool), dense(SINKS, N)]
    masks[0][6:, 6:] = dense(SINKS, N - 6)
    told = given["attention_mask"].bool()
    position_ids = given["position_ids"]
    eager_given = {"attention_mask": floats(masks), "position_ids": position_ids}
    want = model(moved, use_cache=False, **eager_given).logits[told]
    want.square().mean().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    with pc.hf.apply(model, SINKS):
        got = model(moved, use_cache=False, **given).logits[told]
        got.square().mean().backward()
    close(got, want)
    for p, g in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_padding_on_the_right_is_not_read() -> None:
    model, ids = model_of("llama"), text(2, N)
    both_ways = pc.window(3, 3) | pc.sink(1)
    mask = torch.ones_like(ids)
    mask[0, 15:] = 0
    with pc.hf.apply(model, both_ways, ahead=True):
        got = model(ids, attention_mask=mask, use_cache=False).logits
        alone = model(ids[:1, :15], use_cache=False).logits
    close(got[:1, :15], alone)
    assert got.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
@torch.no_grad()
def test_packed_sequences_have_positions_of_their_own(family: str) -> None:
    model, ids = model_of(family), text(2, N)
    lengths = [[8, 13], [12, 9]]
    positions = torch.tensor([[*range(a), *range(b)] for a, b in lengths])
    alone = [eager(model, row[None], SINKS)[0] for b in (0, 1) for row in ids[b].split(lengths[b])]
    with pc.hf.apply(model, SINKS):
        got = model(ids, position_ids=positions, use_cache=False).logits
    close(got.flatten(0, 1), torch.cat(alone))


@torch.no_grad()
def test_layers_and_heads_have_patterns_of_their_own() -> None:
    model, ids = model_of("llama"), text(2, N)
    heads = [SINKS, PLACED, SINKS, pc.causal()]
    with pc.hf.apply(model, pc.Stack([pc.heads(heads), pc.causal()])) as handle:
        got = model(ids, use_cache=False).logits
        close(in_chunks(model, ids, DynamicCache()), got)
    assert list(handle.layers.values())[1] == "causal()"
    mask = floats([torch.stack([dense(p, N) for p in heads])] * 2)[:, 0]
    first = model.model.layers[0].self_attn.forward

    def under(*args: Any, **given: Any) -> Any:
        return first(*args, **{**given, "attention_mask": mask})

    model.model.layers[0].self_attn.forward = under
    close(got, model(ids, use_cache=False).logits)


@torch.no_grad()
def test_a_graph_of_one_length_is_cut_to_shorter_ones() -> None:
    model, ids = model_of("llama", num_hidden_layers=1), text(2, N)
    pattern = pc.causal() & (pc.random_blocks(1, block=4) | pc.window(2))
    want = model(ids, attention_mask=floats([dense(pattern, 32)[:N, :N]] * 2)).logits
    with pc.hf.apply(model, pattern, length=32):
        close(model(ids, use_cache=False).logits, want)
        close(in_chunks(model, ids, DynamicCache()), want)
        with pytest.raises(pc.PatternValueError, match="40 positions, but the pattern was"):
            model(text(1, 40), use_cache=False)


@torch.no_grad()
def test_a_cache_that_slides_stays_where_the_pattern_fits() -> None:
    model, ids = model_of("gemma3"), text(2, N)
    narrow = pc.causal() & pc.window(5)
    want = eager(model, ids, narrow)
    with pc.hf.apply(model, narrow) as handle:
        cache = DynamicCache(config=model.config)
        close(in_chunks(model, ids, cache), want)
    assert not handle.notes and cache.is_sliding == [True, False]
    assert cache.layers[0].keys.shape[2] == 7


@torch.no_grad()
def test_layers_that_slide_grow_together() -> None:
    """One mask serves all sliding layers, so that their caches begin at one slot."""
    model, ids = model_of("mistral"), text(2, N)
    stack = pc.Stack([pc.causal() & pc.window(3), SINKS])
    with pc.hf.apply(model, stack) as handle:
        whole = model(ids, use_cache=False).logits
        close(in_chunks(model, ids, DynamicCache(config=model.config)), whole)
    assert len(handle.notes) == 2


@torch.no_grad()
def test_steps_share_one_layout_and_layers_share_layouts() -> None:
    model = model_of("llama")
    with pc.hf.apply(model, SINKS):
        state = [layer.self_attn._patterncc for layer in model.model.layers]
        assert state[0].layouts is state[1].layouts
        model.generate(text(1, 5), max_new_tokens=40, min_new_tokens=40, pad_token_id=0)
        assert list(state[0].layouts.made) == [(5, 5, 0, 0), (256, 256, 0, 0)]
