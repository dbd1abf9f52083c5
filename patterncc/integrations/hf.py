"""Patterns inside a Hugging Face transformers model: whole-sequence passes, exact undo.

    with patterned(model, pc.Stack([pc.causal() & pc.window(31)])):
        logits = model(ids, use_cache=False).logits

Layer l of the model runs layer l of the stack (cyclically).  Only passes over a whole, unpadded
sequence are taken; a KV cache or a padding mask is refused by name rather than answered wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from patterncc.attend import attention
from patterncc.errors import BackendError
from patterncc.layout import Layout, compile
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Layer, Stack

NAME = "patterncc"


@dataclass
class _Applied:
    """What one attention module runs: its layer of the stack, and the layouts made so far."""

    layer: Layer
    index: int
    bindings: dict[str, Any]
    backend: str
    layouts: dict[int, Layout] = field(default_factory=dict)

    def layout(self, n: int) -> Layout:
        if n not in self.layouts:
            made = compile(self.layer, n, layer=self.index, **self.bindings)
            assert isinstance(made, Layout)
            self.layouts[n] = made
        return self.layouts[n]


_APPLIED: WeakKeyDictionary[torch.nn.Module, _Applied] = WeakKeyDictionary()


@contextmanager
def patterned(
    model: Any, stack: Stack | Pattern | Heads, *, backend: str = "auto", **bindings: Any
) -> Iterator[Any]:
    """The model with its attention replaced, layer by layer, for the length of the block.

    Weights, hooks and the configured attention are left as they were when the block ends.

    Raises BackendError where the model does not route its attention through transformers'
    AttentionInterface, or already carries a pattern.
    Source: transformers' AttentionInterface and AttentionMaskInterface (version 5.17 and up).
    """
    _register()
    stack = stack if isinstance(stack, Stack) else Stack(stack)
    modules = [m for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    modules = [m for m in modules if hasattr(m, "scaling")]
    if not modules:
        raise BackendError(
            f"{type(model).__name__} has no attention modules with a layer_idx and a scaling; "
            "patterncc replaces attention that goes through transformers' AttentionInterface"
        )
    if any(m in _APPLIED for m in modules):
        raise BackendError("this model already carries a pattern; leave that block first")
    before = model.config._attn_implementation
    for module in modules:
        _APPLIED[module] = _Applied(
            stack.layer(module.layer_idx), module.layer_idx, bindings, backend
        )
    model.set_attn_implementation(NAME)
    try:
        yield model
    finally:
        model.set_attn_implementation(before)
        for module in modules:
            del _APPLIED[module]


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    applied = _APPLIED[module]
    n, n_k = query.shape[2], key.shape[2]
    if n != n_k:
        raise BackendError(
            f"layer {applied.index}: {n} queries against {n_k} cached keys; "
            "run the model with use_cache=False on the whole sequence"
        )
    if dropout:
        raise BackendError(
            f"layer {applied.index}: attention dropout {dropout} is not supported; set it to 0"
        )
    out = attention(
        query,
        key,
        value,
        applied.layout(n),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        backend=applied.backend,
    )
    return out.transpose(1, 2).contiguous(), None


def _mask(
    batch_size: int, q_length: int, kv_length: int, *, attention_mask: Any = None, **kwargs: Any
) -> None:
    if attention_mask is not None and not bool(attention_mask.all()):
        raise BackendError(
            "the batch is padded; a pattern is laid on token positions, so give sequences of one "
            "length without padding"
        )


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
