"""Configs of Hugging Face models: each family's layers, and what is refused."""

from __future__ import annotations

import json

import pytest

from patterncc import Stack, causal, chunked, full, recurrent, window
from patterncc.errors import PatternError, PatternValueError

LOCAL, WIDE = "sliding_attention", "full_attention"


def stack(**config: object) -> list[object]:
    return list(Stack.from_hf({"num_hidden_layers": 6, **config}))


def near(w: int) -> object:
    return causal() & window(w - 1)


def test_families_without_layer_types():
    assert stack(model_type="llama") == [causal()] * 6
    assert stack(model_type="mistral", sliding_window=4096) == [near(4096)] * 6
    assert stack(model_type="mistral", sliding_window=None) == [causal()] * 6
    assert stack(model_type="gemma2", sliding_window=8) == [near(8), causal()] * 3
    assert stack(model_type="gemma3_text", sliding_window=8) == [near(8)] * 5 + [causal()]
    assert stack(model_type="qwen2", sliding_window=8) == [causal()] * 6
    windowed = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4}
    assert stack(model_type="qwen2", **windowed) == [causal()] * 4 + [near(8)] * 2
    local = causal() & chunked(64)
    found = stack(model_type="llama4_text", attention_chunk_size=64)
    assert found == [local] * 3 + [causal()] + [local] * 2
    assert stack(model_type="bert") == [full()] * 6


def test_layer_types_are_read():
    assert stack(layer_types=[LOCAL, WIDE] * 3, sliding_window=128) == [near(128), causal()] * 3
    assert stack(layer_types=["linear_attention"] * 6) == [recurrent()] * 6


def test_the_language_model_inside_a_multimodal_one():
    inner = {"num_hidden_layers": 2, "model_type": "gemma3_text", "sliding_window": 8}
    assert list(Stack.from_hf({"text_config": inner, "model_type": "gemma3"})) == [near(8)] * 2


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({}, "num_hidden_layers"),
        ({"num_hidden_layers": "six"}, "integer"),
        ({"num_hidden_layers": 0}, "at least 1"),
        ({"num_hidden_layers": 10**9}, "at most"),
        ({"num_hidden_layers": 2, "layer_types": [WIDE]}, "one entry"),
        ({"num_hidden_layers": 1, "layer_types": ["slidng_attention"]}, "did you mean"),
        ({"num_hidden_layers": 1, "layer_types": [LOCAL]}, "sliding_window is missing"),
        ({"num_hidden_layers": 1, "sliding_window": -4}, "at least 1"),
        ({"num_hidden_layers": 1, "is_encoder_decoder": True}, "two stacks"),
    ],
)
def test_what_a_config_cannot_be(config, word):
    with pytest.raises(PatternValueError, match=word):
        Stack.from_hf(config)


def test_files(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"num_hidden_layers": 3, "model_type": "llama"}))
    assert len(Stack.from_hf(path)) == 3
    for text in ("[", "[]", "[" * 100_000, '"' + "x" * 2**20 + '"'):
        path.write_text(text)
        with pytest.raises(PatternError, match=r"config\.json"):
            Stack.from_hf(path)
    with pytest.raises(PatternError, match="cannot read"):
        Stack.from_hf(tmp_path / "none.json")
