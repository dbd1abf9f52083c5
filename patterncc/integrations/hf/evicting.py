"""Decoding through a cache that holds only what can still be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from patterncc.attend import attention
from patterncc.cache import cache_plan
from patterncc.errors import BackendError
from patterncc.integrations.planned_cache import PlannedCache
from patterncc.layout import Layout, compile
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Layer, Stack

NAME = "patterncc_evicting"


@dataclass
class _Applied:
    """What one attention module runs: its layer of the stack, and the layouts made so far."""

    layer: Layer
    index: int
    bindings: dict[str, Any]
    backend: str
    layouts: dict[int, Layout] = field(default_factory=dict)
    cache: PlannedCache | None = None

    def layout(self, n: int) -> Layout:
        if n not in self.layouts:
            most = n if self.cache is None else max(n, self.cache.plan.stop)
            made = compile(self.layer, most, layer=self.index, **self.bindings)
            assert isinstance(made, Layout)
            self.layouts[n] = made.at(n)  # of a longer one: random edges depend on the length
        return self.layouts[n]


_APPLIED: WeakKeyDictionary[torch.nn.Module, _Applied] = WeakKeyDictionary()


@contextmanager
def evicting(
    model: Any,
    stack: Stack | Pattern | Heads,
    n: int,
    *,
    batch: int = 1,
    prefill: int = 0,
    poison: bool = False,
    backend: str = "auto",
    **bindings: Any,
) -> Iterator[PlannedCache]:
    """The model decoding n tokens through a cache that holds what `cache_plan` says, and no more.

    Give it one token a call, with its position, and no cache of its own:

        with evicting(model, stack, n) as cache:
            for t in range(n):
                at = torch.tensor([[t]])
                logits = model(ids[:, t : t + 1], position_ids=at, use_cache=False).logits

    With `prefill` the first call holds that many tokens.  poison: as in `PlannedCache`.

    Raises BackendError as `apply` does, PatternValueError for patterns that cannot be decoded.
    """
    modules = _attention_modules(model)
    stack = stack if isinstance(stack, Stack) else Stack(stack)
    if stack.memory:
        raise BackendError(
            f"the stack has a memory of {stack.memory} positions, which the model does not have; "
            "give those tokens as prefill="
        )
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    stack = stack.repeated(1 + max(m.layer_idx for m in modules))
    plan = cache_plan(
        stack,
        n,
        prefill=prefill,
        head_dim=size,
        kv_heads=getattr(config, "num_key_value_heads", config.num_attention_heads),
        dtype=str(model.dtype).removeprefix("torch."),
        **bindings,
    )
    cache = PlannedCache(plan, batch, dtype=model.dtype, device=model.device, poison=poison)
    applied = {
        m: _Applied(stack.layer(m.layer_idx), m.layer_idx, bindings, backend, cache=cache)
        for m in modules
    }
    with _replaced(model, applied):
        yield cache


def _attention_modules(model: Any) -> list[Any]:
    """The modules whose attention can be replaced, or a BackendError that says why there are
    none."""
    _register()
    modules = [m for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    modules = [m for m in modules if hasattr(m, "scaling")]
    if not modules:
        raise BackendError(
            f"{type(model).__name__} has no attention modules with a layer_idx and a scaling; "
            "patterncc replaces attention that goes through transformers' AttentionInterface"
        )
    if any(m in _APPLIED for m in modules):
        raise BackendError("this model already carries a pattern; leave that block first")
    return modules


@contextmanager
def _replaced(model: Any, applied: Mapping[Any, _Applied]) -> Iterator[None]:
    before = model.config._attn_implementation
    _APPLIED.update(applied)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        for module in applied:
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
        how = "one token a call" if applied.cache else "on the whole sequence"
        raise BackendError(
            f"layer {applied.index}: {n} queries against {n_k} cached keys; "
            f"run the model with use_cache=False {how}"
        )
    if dropout:
        raise BackendError(
            f"layer {applied.index}: attention dropout {dropout} is not supported; set it to 0"
        )
    if applied.cache is not None and _decodes(applied.cache, applied.index, key, value):
        seen = applied.cache.attend(applied.index, query, scale=scaling)
        return seen.transpose(1, 2).contiguous(), None
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


def _decodes(cache: PlannedCache, layer: int, key: Tensor, value: Tensor) -> bool:
    """Write the keys of a call; False for the prefill, which is answered without the cache."""
    prefill = cache.position(layer) == 0 and cache.plan.start > 0
    if cache.plan.layers[layer].layer == layer:
        cache.append(layer, key, value)
    return not prefill


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
