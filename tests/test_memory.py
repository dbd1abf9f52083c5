"""No tensor of n x n entries ever exists: models at 32,768 tokens, forward, backward and decoding.

Two watches.  `Made` sees what every operation of torch gives, the registered op included, and adds
it up: the largest tensor is one row of the model's widest layer for each token, and the sum grows
with n and not with n squared.  What a kernel takes inside, and numpy for a layout, shows in the
most memory that the process ever held: it grows by less than an n x n tensor of single bytes, so
that not even a mask fits in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import patterncc as pc
from patterncc.integrations import hf

N = 32_768
WIDTH, VOCABULARY = 32, 64
SPARSE = pc.causal() & (pc.window(63) | pc.sink(4))

Step = Callable[[Any, Tensor], None]


class Made(TorchDispatchMode):
    """The storages that operations make: the largest, and the sum of their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.sum = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        given = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in {x.untyped_storage().data_ptr(): x for x in _tensors(result)}.values():
            size = storage.untyped_storage().nbytes()
            self.largest = max(self.largest, size)
            self.sum += 0 if storage.untyped_storage().data_ptr() in given else size
        return result


def _tensors(tree: object) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**sizes()))


def sizes() -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": VOCABULARY,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": N,
    }


def trains(model: Any, ids: Tensor) -> None:
    model(ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad()


def trains_padded(model: Any, ids: Tensor) -> None:
    """With padding on the left, as a tokenizer gives it."""
    mask = torch.ones_like(ids)
    mask[:, : ids.shape[1] // 8] = 0
    model(ids, attention_mask=mask, labels=ids, use_cache=False).loss.backward()
    model.zero_grad()


def generates(model: Any, ids: Tensor) -> None:
    """Prefill and three tokens."""
    model.generate(
        ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None, use_cache=True
    )


def most_held() -> int:
    """Bytes: the most memory that the process held since `forget`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def forget() -> int:
    """Start counting anew; what is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return most_held()


@pytest.mark.parametrize("step", [trains, trains_padded, generates])
def test_no_tensor_is_n_by_n_in_a_model_with_a_pattern(step: Step) -> None:
    model = llama()
    with hf.apply(model, SPARSE):
        step(model, torch.randint(1, VOCABULARY, (1, 256)))  # what is made once is made
        half, whole = Made(), Made()
        with half:
            step(model, torch.randint(1, VOCABULARY, (1, N // 2)))
        held = forget()
        with whole:
            step(model, torch.randint(1, VOCABULARY, (1, N)))
        grown = most_held() - held
    assert whole.largest <= 4 * N * VOCABULARY
    assert whole.sum < 2.05 * half.sum
    assert grown < N * N


def test_a_models_own_window_makes_none_either() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    hf.register()
    config = MistralConfig(**sizes(), sliding_window=64, attn_implementation="patterncc")
    model, made = MistralForCausalLM(config), Made()
    held = forget()
    with made:
        trains(model, torch.randint(1, VOCABULARY, (1, N)))
    assert made.largest <= 4 * N * VOCABULARY
    assert most_held() - held < N * N


def test_the_watch_sees_what_it_is_to_see() -> None:
    """The same model with the attention that it came with makes its n x n tensor, and is seen."""
    model, made, n = llama(), Made(), 4096  # 64 MiB: more than an allocator keeps for later
    model.set_attn_implementation("eager")
    held = forget()
    with made, torch.no_grad():
        trains_not = model(torch.randint(1, VOCABULARY, (1, n)), use_cache=False)
    assert trains_not.logits.shape[1] == n
    assert made.largest >= 4 * n * n
    assert most_held() - held >= 4 * n * n
