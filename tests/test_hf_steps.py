"""Decode steps by the short way: the numbers of the long one, and few tensors made outside the op.

Nothing is timed: what a step makes is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import patterncc as pc
from patterncc.errors import PatternValueError
from patterncc.integrations.hf import run as integration

PATTERN = pc.causal() & (pc.window(5) | pc.sink(2))
LAYERS = 3
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()


def gemma2() -> Any:
    """With a softcap, and windows in every other layer."""
    config = transformers.Gemma2Config(**SIZES, head_dim=8, sliding_window=64)
    return transformers.Gemma2ForCausalLM(config).eval()


def static(model: Any) -> Any:
    return transformers.StaticCache(config=model.config, max_cache_len=24)


def growing(model: Any) -> Any:
    return transformers.DynamicCache(config=model.config)


def decoded(model: Any, cache: Any, steps: int = 4, batch: int = 2) -> list[Tensor]:
    """The logits of steps after a prompt."""
    ids = torch.arange(batch * (9 + steps)).reshape(batch, -1) % 31 + 1
    model(input_ids=ids[:, :9], past_key_values=cache)
    each = (ids[:, at : at + 1] for at in range(9, 9 + steps))
    return [model(input_ids=x, past_key_values=cache).logits for x in each]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of attention, whether it went the short way."""
    seen: list[bool] = []
    own = integration.step

    def step(*given: Any) -> Tensor | None:
        found = own(*given)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(integration, "step", step)
    return seen


@pytest.mark.parametrize("model", [llama, gemma2])
@pytest.mark.parametrize("cache", [growing, static])
def test_short_steps_give_the_bits_of_long_ones(
    model: Any, cache: Any, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model()
    with pc.hf.apply(made, PATTERN), torch.no_grad():
        short = decoded(made, cache(made))
        assert taken == [False] * LAYERS + [True] * LAYERS * 4
        monkeypatch.setattr(integration, "step", lambda *_: None)
        for one, other in zip(short, decoded(made, cache(made)), strict=True):
            assert torch.equal(one, other)


class Counted(TorchDispatchMode):
    """The names of what torch runs while `on`."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.on:
            self.names.append(str(func).removesuffix(".default"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("cache", "asked"),
    [(growing, []), (static, ["aten._local_scalar_dense"])],
    ids=["growing", "static"],
)
def test_a_layer_of_a_step_makes_nothing_but_what_the_op_makes(
    cache: Any, asked: list[str]
) -> None:
    counted, own = Counted(), integration.attention
    layers: list[list[str]] = []

    def attention(*given: Any, **named: Any) -> Any:
        counted.on, counted.names = True, []
        found = own(*given, **named)
        counted.on = False
        layers.append(counted.names)
        return found

    made = llama()
    with pc.hf.apply(made, PATTERN), torch.no_grad():
        held = cache(made)
        decoded(made, held, steps=2)
        transformers.AttentionInterface.register(pc.hf.NAME, attention)
        try:
            with counted:
                made(input_ids=torch.tensor([[1], [2]]), past_key_values=held)
        finally:
            pc.hf.register()
    op, turned = "patterncc.decode", "aten.transpose.int"
    first = [*asked, "aten.full", op, turned]  # where the pass stands, once for all layers
    assert layers == [first] + [[op, turned]] * (LAYERS - 1)


@pytest.mark.parametrize(
    ("why", "given"),
    [
        ("a mask of padding", {"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}),
        ("a gradient", {}),
        ("two tokens", {}),
    ],
)
def test_what_is_unusual_goes_the_long_way(
    why: str, given: dict[str, Tensor], taken: list[bool]
) -> None:
    model = llama()
    with pc.hf.apply(model, PATTERN):
        cache = growing(model)
        with torch.no_grad():
            first = {x: y[:, :2] for x, y in given.items()}
            model(input_ids=torch.ones(2, 2, dtype=torch.long), past_key_values=cache, **first)
        count = 2 if why == "two tokens" else 1
        with nullcontext() if why == "a gradient" else torch.no_grad():
            model(input_ids=torch.ones(2, count, dtype=torch.long), past_key_values=cache, **given)
    assert taken and not any(taken)


def test_a_mask_of_ones_goes_the_short_way(taken: list[bool]) -> None:
    model = llama()
    with pc.hf.apply(model, PATTERN), torch.no_grad():
        model.generate(
            torch.ones(1, 4, dtype=torch.long),
            attention_mask=torch.ones(1, 4, dtype=torch.long),
            max_new_tokens=4,
            pad_token_id=0,
        )
    assert sum(taken) == LAYERS * 3


def test_a_pattern_that_is_drawn_for_one_length_is_refused_as_before(taken: list[bool]) -> None:
    model = llama()
    drawn = pc.causal() & (pc.window(3) | pc.random_blocks(1))
    with pc.hf.apply(model, drawn), torch.no_grad():
        cache = growing(model)
        model(input_ids=torch.ones(1, 4, dtype=torch.long), past_key_values=cache)
        with pytest.raises(PatternValueError, match="drawn for one length"):
            model(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=cache)
    assert not any(taken)
