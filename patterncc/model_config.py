"""From the config of a Hugging Face model to the pattern of each of its layers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from patterncc.errors import PatternError, PatternValueError, suggest
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import causal, chunked, convolution, full, recurrent, window

MAX_BYTES = 2**20  # of a config.json
MAX_LAYERS = 100_000
ENCODERS = ("albert", "bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
KINDS = (
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "linear_attention",
    "mamba",
    "conv",
)


def read_config(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The JSON object in a file.

    Raises PatternError where the file cannot be read or is not one.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise PatternError(f"cannot read the config '{name}': {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise PatternError(f"{name} is larger than {MAX_BYTES} bytes; is it a model's config.json?")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PatternError(f"{name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise PatternError(f"{name} is not a model's config: a JSON object is needed")
    return found


def layers_of(config: Mapping[str, Any]) -> list[Pattern]:
    """One pattern a layer.

    >>> layers_of({"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 4096})
    [causal() & window(4095), causal() & window(4095)]

    Raises PatternValueError for what the config does not say, or says of attention unknown here.
    """
    if config.get("is_encoder_decoder"):
        raise PatternValueError(
            "config: an encoder-decoder has two stacks; write a pattern file for each"
        )
    inner = config.get("text_config")
    if isinstance(inner, Mapping):  # the language model inside a multimodal one
        return layers_of(inner)
    count = config.get("num_hidden_layers", config.get("n_layer"))
    if count is None:
        raise PatternValueError("config: no num_hidden_layers; is it a model's config.json?")
    count = check_int("config", "num_hidden_layers", count, 1, MAX_LAYERS)
    if config.get("model_type") in ENCODERS and not config.get("is_decoder"):
        return [full()] * count
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [_kind(config, l) for l in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count:
        raise PatternValueError(
            f"config: layer_types must be a list with one entry for each of {count} layers"
        )
    made = {kind: _pattern(config, kind) for kind in dict.fromkeys(map(str, kinds))}
    return [made[str(kind)] for kind in kinds]


def _kind(config: Mapping[str, Any], l: int) -> str:
    """What layer `l` is, for families whose configs do not list it."""
    name = config.get("model_type")
    every = config.get("sliding_window_pattern")
    match name:
        case "llama4_text" | "llama4":
            every = config.get("no_rope_layer_interval", 4)
            local = "chunked_attention"
        case "gemma2":
            every, local = 2, "sliding_attention"
        case "gemma3_text" | "gemma3" | "cohere2":
            every = every or (4 if name == "cohere2" else 6)
            local = "sliding_attention"
        case "qwen2" | "qwen3" | "qwen2_moe" | "qwen3_moe":
            from_layer = config.get("max_window_layers", 0)
            wide = not config.get("use_sliding_window") or l < from_layer
            return "full_attention" if wide else "sliding_attention"
        case _:
            narrow = config.get("sliding_window") is not None
            return "sliding_attention" if narrow else "full_attention"
    every = check_int("config", "layers from one full layer to the next", every, 1)
    return "full_attention" if (l + 1) % every == 0 else local


def _pattern(config: Mapping[str, Any], kind: str) -> Pattern:
    match kind:
        case "full_attention":
            return causal()
        case "sliding_attention":
            return causal() & window(_size(config, "sliding_window") - 1)
        case "chunked_attention":
            return causal() & chunked(_size(config, "attention_chunk_size"))
        case "linear_attention" | "mamba":
            return recurrent()
        case "conv":
            return convolution(_size(config, "conv_L_cache"))
        case _:
            raise PatternValueError(f"config: unknown layer type '{kind}'; {suggest(kind, KINDS)}")


def _size(config: Mapping[str, Any], key: str) -> int:
    if config.get(key) is None:
        raise PatternValueError(f"config: some layers are local, but {key} is missing")
    return check_int("config", key, config[key], 1)
