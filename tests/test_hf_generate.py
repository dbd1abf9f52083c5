"""`generate` under patterns: the model's own mask gives the same tokens, any other those of whole
passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracles_hf import FAMILIES, eager, model_of, text
from transformers import DynamicCache

import patterncc as pc

SINKS = pc.causal() & (pc.window(4) | pc.sink(2))
NEW = 14  # past the tiny models' windows


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokens(model: Any, ids: torch.Tensor, **given: Any) -> torch.Tensor:
    torch.manual_seed(5)
    options = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
    made: torch.Tensor = model.generate(ids, **{**options, **given})
    return made


def unequal() -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of 5 and 11 tokens, padded on the left, and its mask."""
    ids = text(2, 11)
    ids[0, :6] = 0
    return ids, (ids != 0).long()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_own_mask_gives_the_same_tokens(family: str) -> None:
    model, ids = model_of(family), text(2, 7)
    want = tokens(model, ids)
    assert len(want[0, 7:].unique()) > 3  # else a wrong mask would not show
    assert torch.equal(tokens(model_of(family, "patterncc"), ids), want)
    with pc.hf.apply(model, pc.Stack.from_hf(model.config.to_dict())) as handle:
        assert torch.equal(tokens(model, ids), want)
    assert not handle.notes  # its sliding caches hold all that is read
    assert torch.equal(tokens(model, ids), want)


WAYS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "beams": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 3},
    "no cache": {"use_cache": False},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_other_ways_to_generate(family: str, way: str) -> None:
    model, ids = model_of(family), text(1 if way == "lookup" else 2, 7)
    want = tokens(model, ids, **WAYS[way])
    assert torch.equal(tokens(model_of(family, "patterncc"), ids, **WAYS[way]), want)
    with pc.hf.apply(model, pc.Stack.from_hf(model.config.to_dict())):
        assert torch.equal(tokens(model, ids, **WAYS[way]), want)


@pytest.mark.parametrize("way", ["beams", "static", "chunks"])
def test_batches_of_unequal_lengths(way: str) -> None:
    model, (ids, mask) = model_of("gemma3"), unequal()
    given = {**WAYS[way], "attention_mask": mask}
    want = tokens(model, ids, **given)
    assert torch.equal(tokens(model_of("gemma3", "patterncc"), ids, **given), want)
    with pc.hf.apply(model, pc.Stack.from_hf(model.config.to_dict())):
        assert torch.equal(tokens(model, ids, **given), want)


@torch.no_grad()
def greedy(model: Any, ids: torch.Tensor, pattern: pc.Pattern) -> torch.Tensor:
    """Tokens of whole passes in eager attention under the dense mask."""
    for _ in range(NEW):
        logits = eager(model, ids, pattern)[:, -1].clone()
        logits[:, 2] = -torch.inf  # no end: so many tokens were asked for
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_a_pattern_gives_the_tokens_of_whole_passes(family: str, cache: str) -> None:
    model, (ids, mask) = model_of(family), unequal()
    want = [greedy(model, ids[:1, 6:], SINKS), greedy(model, ids[1:], SINKS)]
    given = {} if cache == "dynamic" else {"cache_implementation": "static"}
    with pc.hf.apply(model, SINKS) as handle:
        got = tokens(model, ids, attention_mask=mask, **given)
        assert torch.equal(tokens(model, ids[1:], **given), want[1])
    assert torch.equal(got[:1, 6:], want[0]) and torch.equal(got[1:], want[1])
    slides = DynamicCache(config=model.config).is_sliding
    assert len(handle.notes) == sum(slides)
    assert all("the pattern reads further back" in note for note in handle.notes)


def test_assisted_decoding_takes_back_what_was_not_accepted() -> None:
    model, helper, ids = model_of("llama"), model_of("llama", num_hidden_layers=1), text(1, 7)
    want = greedy(model, ids, SINKS)
    with pc.hf.apply(model, SINKS):
        assert torch.equal(tokens(model, ids, assistant_model=helper), want)


def test_a_conversation_goes_on_in_its_cache() -> None:
    model, ids = model_of("llama"), text(1, 7)
    want = greedy(model, torch.cat([greedy(model, ids, SINKS), text(1, 4)], 1), SINKS)
    with pc.hf.apply(model, SINKS):
        cache = DynamicCache()
        first = tokens(model, ids, past_key_values=cache)
        more = torch.cat([first, text(1, 4)], 1)
        assert torch.equal(tokens(model, more, past_key_values=cache), want)
