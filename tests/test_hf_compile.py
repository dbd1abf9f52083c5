"""Models under patterns in torch.compile and with checkpointing: the same numbers, one graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracles_hf import eager, model_of, text
from torch._dynamo.utils import counters
from transformers import CompileConfig, StaticCache

import patterncc as pc

SINKS = pc.causal() & (pc.window(4) | pc.sink(2))
NARROW = pc.causal() & pc.window(4)


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch.set_num_threads(threads)


def traced(model: Any, backend: str = "eager") -> Any:
    return torch.compile(model, backend=backend, fullgraph=True)


def step(run: Any, model: Any, ids: torch.Tensor, **given: Any) -> list[torch.Tensor]:
    """Loss and gradients of one training step."""
    model.zero_grad()
    loss = run(ids, labels=ids, use_cache=False, **given).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def test_a_training_step_is_one_graph() -> None:
    model, ids = model_of("gemma3").train(), text(2, 17)
    with pc.hf.apply(model, SINKS):
        want = step(model, model, ids)
        torch.testing.assert_close(step(traced(model, "aot_eager"), model, ids), want)


def test_a_padded_step_is_one_graph() -> None:
    model, ids = model_of("llama", num_hidden_layers=1).train(), text(2, 17)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    for pattern in (SINKS, NARROW):
        with pc.hf.apply(model, pattern):
            want = step(model, model, ids, **given)
            torch.testing.assert_close(step(traced(model), model, ids, **given), want)


@torch.no_grad()
def test_a_models_own_mask_is_traced() -> None:
    ids = text(2, 17)
    want = model_of("gemma3")(ids, use_cache=False).logits
    got = traced(model_of("gemma3", "patterncc"))(ids, use_cache=False).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_steps_in_a_static_cache_trace_once() -> None:
    model, ids = model_of("mistral"), text(2, 20)
    want = eager(model, ids, SINKS)
    model._previous_max_cache_length = 32  # as generate notes it
    with pc.hf.apply(model, SINKS):
        cache = StaticCache(model.config, max_cache_len=32)
        parts, run = [model(ids[:, :8], past_key_values=cache).logits], traced(model)
        for t in range(8, 20):
            at = torch.tensor([[t]])
            parts.append(run(ids[:, t : t + 1], past_key_values=cache, position_ids=at).logits)
    torch.testing.assert_close(torch.cat(parts, 1), want, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1


def test_generate_compiles_its_steps_once() -> None:
    model, ids = model_of("llama"), text(2, 7)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    told = CompileConfig(backend="eager", fullgraph=True, mode=None)
    told._compile_all_devices = True  # transformers leaves the CPU out otherwise
    static = {"cache_implementation": "static", "compile_config": told}
    with pc.hf.apply(model, SINKS):
        want = model.generate(ids, **options)
        assert torch.equal(model.generate(ids, **options, **static), want)
    assert counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_packed_sequences_are_refused_in_a_trace() -> None:
    positions = torch.tensor([[*range(7), *range(10)]])
    for implementation in ("eager", "patterncc"):
        model = model_of("llama", implementation, num_hidden_layers=1)
        if implementation == "eager":
            pc.hf.apply(model, SINKS)
        run = traced(model)
        run(text(1, 17), use_cache=False)
        with pytest.raises(RuntimeError, match="sequences were packed behind each"):
            run(text(1, 17), position_ids=positions, use_cache=False)


def test_checkpointed_layers_run_again() -> None:
    model, ids = model_of("gemma3").train(), text(2, 17)
    with pc.hf.apply(model, SINKS):
        want = step(model, model, ids)
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
                module._gradient_checkpointing_func = checkpoint
        torch.testing.assert_close(step(model, model, ids), want)


def checkpoint(run: Any, *args: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(run, *args, use_reentrant=False)
