"""A transformers model that decodes through a planned cache gives the logits of a whole pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import patterncc as pc
from patterncc.errors import BackendError, PatternValueError
from patterncc.fidelity import named_text, open_model
from patterncc.integrations.hf import apply
from patterncc.integrations.hf.evicting import evicting

SINKS = pc.causal() & (pc.window(11) | pc.sink(4))


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[Any, torch.Tensor]]:
    """A pretrained model of 4 layers and 2 key/value heads, and 48 tokens of real text; one thread,
    since tensors here are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = open_model("glassllm")
    yield found.model, torch.tensor([found.encode(named_text("kjv").words[:4000])[:48]])
    torch.set_num_threads(threads)


@pytest.mark.parametrize("prefill", [0, 20])
@pytest.mark.parametrize(
    "stack",
    [
        pc.Stack(SINKS),
        pc.Stack([pc.heads([SINKS, pc.causal() & pc.chunked(16)] * 2), pc.causal()]),
        pc.Stack(pc.causal() & (pc.window(3) | pc.random_edges(2))),
    ],
    ids=["sinks", "heads", "random"],
)
def test_logits_are_those_of_a_whole_pass(
    model: tuple[Any, torch.Tensor], stack: pc.Stack, prefill: int
) -> None:
    llama, ids = model
    n = ids.shape[1]
    with torch.no_grad(), apply(llama, stack):
        whole = llama(ids, use_cache=False).logits
    with torch.no_grad(), evicting(llama, stack, n, prefill=prefill, poison=True) as cache:
        parts = [llama(ids[:, :prefill], use_cache=False).logits] if prefill else []
        for t in range(prefill, n):
            at = torch.tensor([[t]])
            parts.append(llama(ids[:, t : t + 1], position_ids=at, use_cache=False).logits)
        got = torch.cat(parts, dim=1)
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-4)
    assert cache.nbytes == cache.plan.capacity_bytes <= cache.plan.full_bytes


def test_what_is_left_is_the_model_as_it_was(model: tuple[Any, torch.Tensor]) -> None:
    llama, ids = model
    with torch.no_grad():
        before = llama(ids, use_cache=False).logits
        with evicting(llama, SINKS, 64):
            pass
        assert torch.equal(llama(ids, use_cache=False).logits, before)


def test_a_cache_of_the_models_own_is_refused(model: tuple[Any, torch.Tensor]) -> None:
    llama, ids = model
    with (
        torch.no_grad(),
        evicting(llama, SINKS, 64),
        pytest.raises(BackendError, match="use_cache=False one token a call"),
    ):
        past = llama(ids[:, :1], use_cache=True).past_key_values
        llama(ids[:, 1:2], past_key_values=past, use_cache=True)


def test_stacks_that_cannot_be_decoded(model: tuple[Any, torch.Tensor]) -> None:
    llama, _ = model
    with pytest.raises(PatternValueError, match="layer 0 reads later positions"):
        evicting(llama, pc.window(3, 3), 64).__enter__()
    with pytest.raises(BackendError, match="a memory of 8 positions, which the model does not"):
        evicting(llama, pc.Stack(SINKS, memory=8), 64).__enter__()
