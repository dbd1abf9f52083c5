"""Caches that slide, and what is looked at before a model runs.

Models with sliding windows keep the last keys of such a layer alone.  A pattern that reads further
back would lose edges without a word, so before each pass such layers of a cache are replaced by
ones of full length; those whose pattern fits the window stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from patterncc.errors import BackendError
from patterncc.integrations.hf.layouts import Layouts
from patterncc.integrations.hf.own_mask import PACKED_IN_A_TRACE, Packed, packed_of
from patterncc.integrations.hf.state import NAME, Record

WATCH = "_patterncc_watch"
"""The attribute of a model that says what is looked at before it runs."""


@dataclass(frozen=True, eq=False)
class Watch:
    """full: cache layers that must be of full length, and whose they are.  placed: some pattern
    depends on where a sequence begins.  dense: calls that cannot be served run densely.
    configs: those that say which attention runs.  arguments: names of what the model takes, in
    order."""

    full: Mapping[int, str]
    placed: bool
    dense: bool
    record: Record
    configs: tuple[Any, ...] = ()
    arguments: tuple[str, ...] = ()


def stays(layouts: Layouts, window: int) -> bool:
    """Whether a cache of the last `window` keys holds all that a pattern reads."""
    return layouts.relative and layouts.fits(window - 1)


def windows(config: Any) -> dict[int, int]:
    """Layers whose cache slides, and how many keys it keeps, the token itself counted."""
    from transformers import DynamicCache

    config = config.get_text_config(decoder=True)
    said = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if said == [None, None]:
        return {}
    layers = DynamicCache(config=config).layers
    return {
        l: layer.sliding_window
        for l, layer in enumerate(layers)
        if getattr(layer, "is_sliding", False)
    }


def watch(model: Any, watched: Watch) -> None:
    """Look at every call of the models inside `model`."""
    from transformers import PreTrainedModel

    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        arguments = tuple(inspect.signature(module.forward).parameters)
        setattr(module, WATCH, replace(watched, arguments=arguments))
        module.register_forward_pre_hook(_before, with_kwargs=True)


def unwatch(module: Any) -> None:
    """Look at a model's calls no longer; by the function, so that copies of models are undone."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _before:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _before(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """The arguments of a call, with a cache that holds what the patterns read."""
    watched: Watch | None = getattr(module, WATCH, None)
    if watched is None:  # a copy of a model, whose pattern was undone
        return args, given
    _check_in_place(watched.configs)
    if "past_key_values" not in watched.arguments:
        return args, given
    if args:
        given = dict(zip(watched.arguments, args, strict=False)) | given
    if given.get("output_attentions") and not watched.dense:
        raise BackendError(
            "output_attentions asks for weights, which are never formed while a pattern is "
            "applied; leave it out"
        )
    if watched.full:
        with suppress(BackendError) if watched.dense else nullcontext():
            given = _with_full_cache(module, given, watched)
    cached, watched.record.packed = _cached(module, given), None
    if given.get("attention_mask") is None:
        if not cached:
            watched.record.packed = _packed(given)
        elif watched.placed and not watched.dense and not torch.compiler.is_compiling():
            _check_positions(module, given)
    return (), given


def _check_in_place(configs: tuple[Any, ...]) -> None:
    """Refuse a pass of a model that was told to run other attention: no pattern would run."""
    for config in configs:
        if vars(config)["_attn_implementation_internal"] != NAME:  # configs look names up slowly
            raise BackendError(
                "a pattern is applied, and the model was since told to run "
                f"attn_implementation={config._attn_implementation_internal!r} (by "
                "set_attn_implementation, or by undoing the pattern of another model with the same "
                "config object); undo the pattern, then choose, then apply it again"
            )


def _cached(module: Any, given: Mapping[str, Any]) -> bool:
    use = given.get("use_cache")
    use = getattr(module.config, "use_cache", False) if use is None else use
    return bool(use) or given.get("past_key_values") is not None


def _packed(given: Mapping[str, Any]) -> Packed | None:
    """Sequences behind each other as position_ids tell, which not every model tells its mask."""
    positions = given.get("position_ids")
    tokens = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    if not (isinstance(positions, Tensor) and positions.ndim == 2 and isinstance(tokens, Tensor)):
        return None
    positions = positions.expand(len(tokens), -1)
    begins = positions[:, 1:] != positions[:, :-1] + 1
    if torch.compiler.is_compiling():
        torch._assert_async(~begins.any(), PACKED_IN_A_TRACE)
        return None
    if not bool(begins.any()):
        return None
    return packed_of(torch.nn.functional.pad(begins.cumsum(1), (1, 0)), positions)


def _with_full_cache(module: Any, given: dict[str, Any], watched: Watch) -> dict[str, Any]:
    cache = given.get("past_key_values")
    if cache is None and _cached(module, given) and not module.config.is_encoder_decoder:
        from transformers import DynamicCache

        cache = DynamicCache(config=module.config)
        given = {**given, "past_key_values": cache}
    if cache is not None:
        widen(getattr(cache, "self_attention_cache", cache), watched, module)
    return given


def widen(cache: Any, watched: Watch, model: Any) -> None:
    """Replace sliding layers of a cache by ones of full length, in place.

    Raises BackendError for a cache that has dropped keys, or of a kind that is not known.
    """
    for l, name in watched.full.items():
        if l < len(cache.layers) and getattr(cache.layers[l], "is_sliding", False):
            cache.layers[l] = _full(cache.layers[l], name, cache, model)
            watched.record.notes[
                f"{name}: its cache kept a window of keys, the pattern reads further back; it is "
                "given one of full length"
            ] = None


def _full(layer: Any, name: str, cache: Any, model: Any) -> Any:
    from transformers import cache_utils

    seen, kept = layer.get_seq_length(), layer.get_max_length()
    if type(layer) is cache_utils.DynamicSlidingWindowLayer:
        if seen >= kept:
            raise _dropped(name, seen, kept - 1)
        full = cache_utils.DynamicLayer()
        if seen:
            full.update(layer.keys, layer.values)
        return full
    if type(layer) is cache_utils.StaticSlidingWindowLayer:
        if seen:
            raise _dropped(name, seen, kept)
        others = [x.max_cache_len for x in cache.layers if type(x) is cache_utils.StaticLayer]
        most = max(others, default=getattr(model, "_previous_max_cache_length", None))
        if most is None:
            raise BackendError(
                f"{name}: a StaticCache of windows of {kept} keys, and the pattern reads further "
                'back; let generate make it (cache_implementation="static"), or give the model '
                "a DynamicCache"
            )
        return cache_utils.StaticLayer(max_cache_len=most)
    raise BackendError(
        f"{name}: its cache is a {type(layer).__name__}, which keeps a window of {kept} keys, and "
        "the pattern reads further back; give the model a DynamicCache, or intersect the pattern "
        f"with window({kept - 1})"
    )


def _dropped(name: str, seen: int, kept: int) -> BackendError:
    return BackendError(
        f"{name}: the cache has seen {seen} tokens and holds the last {kept}, and the pattern "
        "reads further back; begin with an empty cache while the pattern is applied, or intersect "
        f"the pattern with window({kept})"
    )


def _check_positions(module: Any, given: Mapping[str, Any]) -> None:
    """Refuse calls from which it shows that slots are not positions, where nothing tells these."""
    ids, positions = given.get("input_ids"), given.get("position_ids")
    if isinstance(ids, Tensor) and ids.shape[-1] == 1:
        return  # one token shows nothing
    cache = given.get("past_key_values")
    seen = 0 if cache is None else cache.get_seq_length()
    if isinstance(positions, Tensor) and positions.ndim == 2:
        if positions.shape[1] > 1 and _jump(positions):
            raise BackendError(
                "position_ids jump and there is a cache, so that nothing tells where a pattern's "
                "sinks and chunks stand; for a batch padded on the left give attention_mask as "
                "well, for sequences packed behind each other use_cache=False"
            )
        return
    pad = getattr(module.config, "pad_token_id", None)
    first = ("bos_token_id", "decoder_start_token_id")  # T5 begins with its padding token
    special = [getattr(module.config, name, None) for name in (*first, "eos_token_id")]
    ends = special[-1] if isinstance(special[-1], list) else [special[-1]]
    if not isinstance(ids, Tensor) or pad is None or pad in (*special[:-1], *ends):
        return
    if isinstance(seen, int) and not seen and ids.shape[1] > 1 and bool((ids[:, 0] == pad).any()):
        raise BackendError(
            f"a sequence begins with the padding token {pad} and there is no attention_mask: with "
            "padding on the left, positions are not known; give attention_mask=, as the tokenizer "
            "returns it"
        )


def _jump(positions: Tensor) -> bool:
    steps = positions[:, 1:] - positions[:, :-1]
    return bool((steps != 1).any() | (positions != positions[:1]).any())
