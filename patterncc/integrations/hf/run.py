"""The two functions that transformers calls: the mask of a pass, the attention of a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patterncc.attend import attention as sparse
from patterncc.errors import BackendError
from patterncc.integrations.hf.bias import table_of
from patterncc.integrations.hf.cross import Seat, first_query
from patterncc.integrations.hf.layouts import Layouts
from patterncc.integrations.hf.modules import Part
from patterncc.integrations.hf.own_mask import OwnMask, own_mask
from patterncc.integrations.hf.placement import Placement
from patterncc.primitives import causal, full

STATE = "_patterncc"
"""The attribute of an attention module that says what it runs; absent where nothing was applied."""


@dataclass(frozen=True, eq=False)
class Patterned:
    """An attention module with a pattern.  seat: shared by the modules of a layer with cross."""

    name: str
    layouts: Layouts
    backend: str
    part: Part = "decoder"
    seat: Seat | None = None


@dataclass(frozen=True, eq=False)
class Kept:
    """An attention module that keeps the attention it had, beside others with patterns."""

    name: str
    implementation: str
    part: Part = "decoder"
    seat: Seat | None = None


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Placement | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What AttentionInterface asks for: out [B, n, H, Dv], and no weights.

    query [B, H, n, D], key and value [B, Hkv, n_k, D].
    """
    state = getattr(module, STATE, None)
    place = attention_mask if isinstance(attention_mask, Placement) else None
    first = _first_query(state, place)
    if isinstance(state, Kept):
        mask = attention_mask.dense() if isinstance(attention_mask, Placement) else attention_mask
        run = _implementation(module, state.implementation)
        kwargs |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        answer: tuple[Tensor, Tensor | None] = run(module, query, key, value, mask, **kwargs)
        return answer
    name = state.name if state is not None else type(module).__name__
    _check(name, attention_mask, dropout, kwargs)
    n, n_k = query.shape[2], key.shape[2]
    q_offset = int(first)
    k_offset = 0 if place is None else place.k_offset
    bias = table_of(name, module, kwargs.get("position_bias"), q_offset, state is not None)
    if state is None:
        state = _own(module, place)
    out = sparse(
        query,
        key,
        value,
        state.layouts.of(n, n_k, q_offset, k_offset),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        backend=state.backend,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        relative_bias=bias,
        key_mask=None if place is None else place.keys,
    )
    return out.transpose(1, 2).contiguous(), None


def _first_query(state: Patterned | Kept | None, place: Placement | None) -> int | Tensor:
    """The position of the first query; self-attention leaves it for its layer's cross-attention."""
    first = 0 if place is None else place.q_offset
    if state is None or state.seat is None:
        return first
    if state.part == "cross":
        return first_query(state.name, state.seat)
    state.seat.first = first
    return first


def _own(module: Any, place: Placement | None) -> Patterned:
    """The model's own mask as a pattern, for models that ask for patterncc and nothing else."""
    if place is not None:
        pattern = place.own.pattern
    else:
        pattern = causal() if getattr(module, "is_causal", False) else full()
    return Patterned(type(module).__name__, Layouts(pattern, 0, {}), "auto")


def _check(name: str, mask: object, dropout: float, kwargs: dict[str, Any]) -> None:
    if isinstance(mask, Tensor):
        raise BackendError(
            f"{name}: a mask of shape {tuple(mask.shape)} was given by hand; state it as a pattern "
            "(pc.from_mask_mod, pc.from_scipy), and give attention_mask as [batch, tokens]"
        )
    if dropout:
        raise BackendError(
            f"{name}: attention dropout {dropout} is not supported; set it to 0 in the config"
        )
    if kwargs.get("output_attentions"):
        raise BackendError(
            f"{name}: output_attentions asks for weights, which are never formed; leave it out"
        )


def _implementation(module: Any, name: str) -> Callable[..., Any]:
    """The attention function that a module had before."""
    import sys

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    return found


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | Placement | None = None,
    config: Any = None,
    **kwargs: Any,
) -> Placement:
    """What AttentionMaskInterface asks for: a `Placement` in the place of a mask."""
    if isinstance(attention_mask, Placement):
        return attention_mask
    own = OwnMask(full()) if mask_function is None else own_mask(mask_function)
    keys = None
    if attention_mask is not None and not bool(attention_mask.all()):
        keys = torch.nn.functional.pad(
            attention_mask, (0, max(0, kv_length + kv_offset - attention_mask.shape[1]))
        )[:, kv_offset : kv_offset + kv_length].bool()
    dense = partial(
        _dense,
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        config=config,
        **kwargs,
    )
    return Placement(q_offset, kv_offset, kv_length, keys, own, dense)


def _dense(**given: Any) -> Any:
    """The mask that the implementation before would have been given."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    before = getattr(given["config"], "_patterncc_before", "sdpa")
    return ALL_MASK_ATTENTION_FUNCTIONS[before](**given)
