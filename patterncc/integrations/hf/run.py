"""The two functions that transformers calls: the mask of a pass, the attention of a layer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from patterncc.errors import BackendError, PatternError
from patterncc.integrations.hf.bias import table_of
from patterncc.integrations.hf.checks import check_call
from patterncc.integrations.hf.cross import first_query
from patterncc.integrations.hf.layouts import of_own
from patterncc.integrations.hf.own_mask import OwnMask
from patterncc.integrations.hf.placement import Placement
from patterncc.integrations.hf.reading import held_by
from patterncc.integrations.hf.serve import serve, serve_across
from patterncc.integrations.hf.state import NAME, STATE, Kept, Patterned
from patterncc.integrations.hf.step import step


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
    short = step(state, attention_mask, query, key, value, dropout, scaling, kwargs)
    if short is not None:
        return short, None
    place = attention_mask if isinstance(attention_mask, Placement) else None
    first = _first_query(state, place, query.shape[2], key.shape[2])
    call = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
    if isinstance(state, Kept):
        return _dense(module, state.before, query, key, value, attention_mask, call)
    if state is None or not state.dense or held_by(key) is not None:
        return _sparse(module, state, first, query, key, value, attention_mask, call)
    try:
        return _sparse(module, state, first, query, key, value, attention_mask, call)
    except PatternError as trouble:
        if getattr(call.get("position_bias"), "ndim", 4) != 4:
            raise  # the model was made to hand on a table, which other attention does not take
        state.record.dense[state.name, str(trouble)] += 1
        return _dense(module, state.before, query, key, value, attention_mask, call)


def _sparse(
    module: torch.nn.Module,
    state: Patterned | None,
    first: int | Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Placement | Tensor | None,
    call: dict[str, Any],
) -> tuple[Tensor, None]:
    name = type(module).__name__ if state is None else state.name
    ignored = state is not None and state.dropout == "ignore"
    check_call(name, module, mask, call["dropout"], ignored, call)
    place = mask if isinstance(mask, Placement) else _unsaid(module, q, k, call["is_causal"])
    options = {
        "scale": call["scaling"],
        "enable_gqa": q.shape[1] != k.shape[1],
        "softcap": call.get("softcap"),
        "sinks": call.get("s_aux"),
        "backend": "auto" if state is None else state.backend,
    }
    bias = call.get("position_bias")
    if bias is not None:
        options["relative_bias"] = table_of(name, module, bias, int(first), state is not None)
    held = held_by(k)
    if held is not None:
        held.check(place, options)
    if state is None:
        _check_no_more_keys(name, place, k.shape[2])
        own = place.own
        layouts = of_own(own.past, own.left, own.right, own.chunk)
        # both ways: an encoder, or a decoder that reads one
        out = (serve if own.past else serve_across)(layouts, place, q, k, v, **options)
    elif held is not None and q.shape[2] == 1:
        out = held.attend(q, place, options)
    elif state.part == "cross":
        out = serve_across(state.layouts, place, q, k, v, first=first, **options)
    else:
        if state.part == "encoder" and place.own.past and not state.layouts.only_past:
            raise BackendError(
                f"{name}: the model masks what is ahead of a token, as decoders do, and the "
                f"pattern reads it: {state.layouts.layer}; intersect it with pc.causal()"
            )
        if state.part == "decoder" and state.record.packed is not None and place.packed is None:
            # the model tells its mask nothing of packed sequences, as gpt-oss does not
            place.memo["own"] = replace(place.own, packed=state.record.packed)
        out = serve(state.layouts, place, q, k, v, strict=True, **options)
    return out.transpose(1, 2).contiguous(), None


def _check_no_more_keys(name: str, place: Placement, n_k: int) -> None:
    said = place.given.get("kv_length")
    if isinstance(said, int) and n_k > said:
        raise BackendError(
            f"{name}: {n_k} keys, and the model asked for a mask of {said}; what it adds to its "
            "keys (compressed ones, say) is under no mask that is known here"
        )


def _first_query(
    state: Patterned | Kept | None, place: Placement | None, n: int, n_k: int
) -> int | Tensor:
    """The position of the first query; self-attention leaves it for its layer's cross-attention."""
    if isinstance(state, Patterned) and state.part == "cross":
        return first_query(state.name, state.seat, state.layouts.layer)
    first = max(0, n_k - n) if place is None else place.q_offset
    if state is not None and state.seat is not None:
        padding = None if place is None else place.padding(n_k)
        state.seat.first = first
        state.seat.shift = None if padding is None else padding.shift
    return first


def _unsaid(module: Any, q: Tensor, k: Tensor, is_causal: bool | None) -> Placement:
    """Where queries stand if the model asked for no mask: the last ones, or all of them."""
    causally = getattr(module, "is_causal", False) if is_causal is None else is_causal
    own = OwnMask(past=bool(causally))
    first = max(0, k.shape[2] - q.shape[2]) if causally else 0
    return Placement(first, 0, None, {}, {"own": own})


def _dense(
    module: Any,
    implementation: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Placement | Tensor | None,
    call: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The attention that a module had before, with the model's own mask."""
    if implementation == NAME:
        return _sparse(module, None, 0, q, k, v, mask, call)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if isinstance(mask, Placement):
        mask = mask.dense(implementation, k.shape[2])
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    run: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    answer: tuple[Tensor, Tensor | None] = run(module, q, k, v, mask, **call)
    return answer


def mask(
    *sizes: Any,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    attention_mask: Tensor | Placement | None = None,
    **given: Any,
) -> Placement:
    """What AttentionMaskInterface asks for: a `Placement` in the place of a mask."""
    if isinstance(attention_mask, Placement):
        return attention_mask
    if sizes:
        given |= dict(zip(("batch_size", "q_length", "kv_length"), sizes, strict=False))
    given |= {"attention_mask": attention_mask, "kv_offset": kv_offset}
    given.setdefault("mask_function", None)
    if isinstance(kv_offset, Tensor):  # as assisted decoding leaves it in transformers 5.17
        kv_offset = int(kv_offset)
    if isinstance(q_offset, Tensor):
        q_offset = q_offset.clone()  # a static cache counts on in this tensor as layers write
    tokens = None if attention_mask is None else attention_mask.bool()
    return Placement(q_offset, kv_offset, tokens, given)
