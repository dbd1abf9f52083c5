"""`patterncc cache`: the table, the JSON, the picture, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import patterncc as pc
from patterncc.cache.text import picture, stays
from patterncc.cli import main
from patterncc.errors import PatternValueError


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["cache", *map(str, words)])


def as_json(*words: object) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_table_of_a_model() -> None:
    result = run("mistral-7b", "--n", "128Ki", "--kv-heads", 8)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "mistral-7b: KV cache of 131,072 steps, 128 numbers of bf16 a key and head",
        "  layers  heads   peak  of full    bytes  what stays",
        "  0..31       8  4,096    3.12%  512 MiB  the last 4,096",
        "at most 512 MiB alive at one time (step 4,095), 512 MiB in buffers of each head's peak: "
        "3.12% of 16 GiB",
    ]


@pytest.mark.parametrize("name", ["mistral-7b", "gpt-oss", "llama-4"])
def test_models_of_the_gallery_have_their_key_heads(name: str) -> None:
    told = as_json(name, "--n", 512)
    assert {x["heads"] for x in told["layers"]} == {8}
    assert told["notes"] == []


def test_a_guess_says_what_to_pass() -> None:
    assert "pass --kv-heads 8" in run("gemma-3", "--n", 64).output


def test_json_says_all_of_it() -> None:
    told = as_json("gemma-3", "--n", 4096, "--head-dim", 64, "--dtype", "fp32", "--kv-heads", 2)
    layers = told["layers"]
    assert [x["peak"] for x in layers] == [1024] * 5 + [4096]
    assert layers[0]["stays"] == "the last 1,024"
    assert layers[5]["spans"] == [{"pieces": 1, "first": [[0, 4096, 0, 4095]]}]
    assert told["full_bytes"] == 6 * 2 * 4096 * 2 * 64 * 4
    assert told["capacity_bytes"] == sum(x["bytes"] for x in layers)
    assert told["start"] == told["n"] - 4096 == 0


def test_a_config_shares_its_key_heads(tmp_path: Path) -> None:
    config = {
        "model_type": "mistral",
        "num_hidden_layers": 2,
        "sliding_window": 100,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    layers = as_json(tmp_path / "config.json", "--n", 1000)["layers"]
    assert [(x["heads"], x["peak"]) for x in layers] == [(2, 100)] * 2


def test_a_prefill_and_a_picture() -> None:
    assert "pass prefill=" in run("prefix-lm", "--n", 256).output
    told = run("prefix-lm", "--n", 256, "--prefill", 128, "--draw", 0).output
    assert "KV cache of 128 steps after 128 positions" in told
    assert "keys of layer 0, 0 .. 255" in told
    assert told.count("\nstep ") == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bigbird", "--n", 4096), "layer 0 reads later positions"),
        (("gemma-3", "--n", 64, "--draw", 6), "--draw 6, and gemma-3 has layers 0 .. 5"),
        (("gemma-3",), "Missing option '--n'"),
        (("gemma-3", "--n", 64, "--prefill", 65), "prefill must be"),
    ],
)
def test_bad_input(words: tuple[object, ...], message: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (pc.causal(), "every key"),
        (pc.causal() & pc.window(9), "the last 10"),
        (pc.causal() & pc.window(0), "each for its own step"),
        (pc.causal() & pc.chunked(8), "its stretch of up to 8"),
        (pc.causal() & (pc.window(9) | pc.sink(4)), "the first 4 and the last 10"),
        (pc.causal() & pc.summary(50), "2 keys in 2 stretches"),
        (pc.sink(0), "nothing"),
        (
            pc.heads([pc.causal(), pc.causal() & pc.window(3), pc.causal()]),
            "2 heads: every key; 1 head: the last 4",
        ),
    ],
    ids=str,
)
def test_what_stays_in_words(p: pc.Pattern, words: str) -> None:
    assert stays(pc.cache_plan(p, 100).layers[0]) == words


def test_pictures_of_every_size() -> None:
    cache = pc.cache_plan(pc.causal() & pc.chunked(7), 40).layers[0]
    for rows, columns in ((1, 1), (40, 40), (3, 17), (99, 99)):
        shown = picture(cache, rows=rows, columns=columns).splitlines()
        assert len(shown) == min(rows, 40)
    with pytest.raises(PatternValueError, match="picture: rows must be at least 1"):
        picture(cache, rows=0)
    with pytest.raises(PatternValueError, match="the plan has no step"):
        picture(pc.cache_plan(pc.causal(), 0).layers[0])
