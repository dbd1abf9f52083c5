"""Bad input from the command line: a sentence that names the field and the remedy, exit status 2,
nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import patterncc as pc
from patterncc.analysis import hub_load, influence
from patterncc.analysis.saving import write_whole
from patterncc.cli import main

NEAR = "edges:\n  near: causal() & window(15)\n"
MISTRAL = {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 64}
GEMMA = {"model_type": "gemma3_text"}
HYBRID = """
edges:
  fast: recurrent()
  near: causal() & window(7)
layers:
  - edges: near
  - edges: fast
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with one good pattern file."""
    monkeypatch.chdir(tmp_path)
    Path("near.yaml").write_text(NEAR)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def refused(*words: str) -> str:
    """The message of a command that must refuse, the same in plain and in JSON."""
    before = sorted(Path().iterdir())
    plain, told = run(*words), run(*words, "--json")
    for done in (plain, told):
        assert done.exit_code == 2, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
    error = json.loads(told.stdout)["error"]
    assert error["message"] in plain.stderr
    assert sorted(Path().iterdir()) == before
    return str(error["message"])


def config(fields: Any) -> str:
    Path("config.json").write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return "config.json"


NOT_A_MODEL = {
    "a tokenizer": {"version": "1.0", "added_tokens": [], "model": {"type": "BPE"}},
    "an adapter": {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]},
    "generation settings": {"bos_token_id": 1, "temperature": 0.6},
    "nothing": {},
    "a list": [1, 2],
    "a number": 3,
    "no JSON": "hello",
    "no text": "\x00\x01",
}


@pytest.mark.parametrize("kind", list(NOT_A_MODEL))
@pytest.mark.parametrize("command", ["analyze", "compare", "show"])
def test_a_file_that_is_no_models_config(kind: str, command: str) -> None:
    message = refused(command, config(NOT_A_MODEL[kind]))
    assert message.startswith("config.json")
    assert "not a model's config" in message or "not JSON" in message
    (told,) = json.loads(run("check", "config.json", "--json").stdout)["files"]
    assert told["status"] == "error" and told["message"] == message


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"model_type": "mistrl", "sliding_window": None}, "model_type", "did you mean 'mistral'"),
        ({"model_type": "zzz", "sliding_window": None}, "model_type 'zzz'", "write its layers as"),
        ({"model_type": ["mistral"]}, "model_type", "it is a name, as 'llama'"),
        ({"model_type": "t5"}, "is_encoder_decoder", "a pattern file for each stack"),
        ({"model_type": "clip", "text_config": {"a": 1}}, "text_config", "give the config.json"),
        ({"num_hidden_layers": -2}, "num_hidden_layers", "at least 1, not -2"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers", "at most 100000"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers", "an integer, not 'two'"),
        ({"num_hidden_layers": None, "model_type": "new"}, "num_hidden_layers", "an integer"),
        ({"sliding_window": -64}, "sliding_window", "at least 1, not -64"),
        ({"sliding_window": 64.5}, "sliding_window", "an integer, not 64.5"),
        ({"sliding_window": 10**30}, "sliding_window", "at most"),
        ({**GEMMA, "layer_types": ["full_attention"]}, "layer_types", "one entry for each layer"),
        (
            {**GEMMA, "layer_types": ["full_atention"] * 2},
            "layer_types[0]",
            "did you mean 'full_attention'",
        ),
        (
            {"num_attention_heads": 8, "num_key_value_heads": 3},
            "num_key_value_heads is 3 and num_attention_heads 8",
            "divides their number",
        ),
        (
            {"model_type": "llama4_text", "attention_chunk_size": 0},
            "attention_chunk_size",
            "at least 1, not 0",
        ),
        (
            {"model_type": "gemma3n_text", "num_hidden_layers": 6, "num_kv_shared_layers": 6},
            "num_kv_shared_layers is 6 of 6 layers",
            "make it smaller",
        ),
    ],
)
def test_a_field_out_of_range_is_named_with_its_remedy(
    changes: dict[str, Any], field: str, remedy: str
) -> None:
    message = refused("analyze", config({**MISTRAL, **changes}), "--n", "256")
    assert message.startswith("config.json: ")
    assert field in message and remedy in message


def test_an_unknown_family_that_says_its_layers_is_read_with_a_note() -> None:
    done = run("analyze", config({**MISTRAL, "model_type": "mistrl"}), "--n", "256", "--json")
    assert done.exit_code == 0
    notes = " ".join(json.loads(done.stdout)["notes"])
    assert "model_type 'mistrl' is not known here" in notes and "did you mean 'mistral'" in notes


def test_influence_of_a_layer_that_is_not_attention() -> None:
    """Asked for, it is refused; in a report it is null, with the sentence beside it."""
    Path("hybrid.yaml").write_text(HYBRID)
    stack = pc.load("hybrid.yaml").stack
    for ask in (influence, hub_load):
        with pytest.raises(pc.PatternValueError, match=r"layer 1 is recurrent\(\), not attention"):
            ask(stack, 64)
    done = run("analyze", "hybrid.yaml", "--n", "64", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report["influence"] is None and report["hub_load"] is None
    why = report["why_not"]["influence"]
    assert "layer 1 is recurrent()" in why and "leave that layer out" in why
    assert report["depth_to_full"]["value"] == 2
    assert "not attention" in " ".join(run("analyze", "hybrid.yaml", "--n", "64").output.split())
    assert "recurrent()" in refused("compile", "hybrid.yaml", "--n", "64", "-o", "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--alpha", "1.5"), "alpha is the weight of the residual stream, within [0, 1], not 1.5"),
        (("--alpha", "nan"), "alpha"),
        (("--sources", "70000"), "sources must be at most 65536"),
        (("--seed", "-1"), "must be at least 0"),
        (("--n", "2**41"), "n must be at most 1099511627776"),
        (("--depth", "100001"), "depth must be at most 100000"),
        (("--engine", "rowz"), "did you mean 'rows'?"),
        (("--engine", "offsets", "--pairs", "all"), 'use engine="auto"'),
        (("--engine", "rows", "--n", "2**30"), "positions of bit columns, more than the limit"),
        (("--pairs", "documents"), 'use pairs="causal" or pairs="all"'),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["analyze", "compare"])
def test_options_out_of_range(command: str, words: tuple[str, ...], said: str) -> None:
    assert said in refused(command, "near.yaml", *words)


def test_certain_bounds_can_be_asked_for() -> None:
    assert run("analyze", "near.yaml", "--n", "64", "--sources", "0").exit_code == 0


GRAPHS = {
    "not a number": ("0 1\n1 x\n", "line 2 is '1 x'; each line is two integers"),
    "three numbers": ("0 1 2\n", "line 1 is '0 1 2'"),
    "a negative node": ("0 -1\n", "node -1 is not one of the positions 0 .. 63; number the nodes"),
    "past the end": ("0 99\n", "lower with n > 99"),
    "half a number": ("0 1.5\n", "two integers"),
}


@pytest.mark.parametrize("kind", list(GRAPHS))
def test_graph_files_that_are_none(kind: str) -> None:
    text, said = GRAPHS[kind]
    Path("graph.txt").write_text(text)
    Path("graph.yaml").write_text('edges:\n  a: edges("graph.txt")\n')
    assert said in refused("analyze", "graph.yaml", "--n", "64")


def test_a_graph_too_large_to_export_is_refused_before_memory_is_taken() -> None:
    """Peak memory in a process of its own: 3 million edges would take over a gigabyte."""
    code = """
import resource, sys
import patterncc as pc
pc.to_networkx(pc.causal(), 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for n in (2500, 2**20, 2**40):
    try:
        pc.to_networkx(pc.causal(), n)
    except pc.SizeError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *messages, grown = done.stdout.splitlines()
    assert len(messages) == 3
    assert "3,126,250 edges, more than max_edges=1,000,000; take a shorter n" in messages[0]
    assert int(grown) < 20 * 1024  # KiB on Linux


OUTPUTS = ["report.html", "report.json", "report.txt"]


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("command", ["analyze", "compare"])
def test_an_output_that_cannot_be_written(command: str, name: str) -> None:
    Path(name).mkdir()
    assert f"cannot write '{name}'" in refused(command, "near.yaml", "--n", "64", "-o", name)
    assert "make it first" in refused(command, "near.yaml", "--n", "64", "-o", f"none/{name}")
    assert "no folder" in refused(command, "near.yaml", "--n", "64", "-o", f"near.yaml/{name}")
    assert "use .html" in refused(command, "near.yaml", "--n", "64", "-o", "report.pdf")
    assert "too long" in refused(command, "near.yaml", "--n", "64", "-o", "x" * 250 + name)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk_leaves_the_report_that_was_there(name: str) -> None:
    Path(name).write_text("the old one")
    done = subprocess.run(
        [sys.executable, "-m", "patterncc", "analyze", "near.yaml", "--n", "64", "-o", name],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert f"cannot write '{name}'" in done.stderr and "Traceback" not in done.stderr
    assert Path(name).read_text() == "the old one"
    assert sorted(p.name for p in Path().iterdir()) == ["near.yaml", name]


def test_an_interrupted_report_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    Path("report.txt").write_text("the old one")
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(Path("report.txt"), "half")
    assert Path("report.txt").read_text() == "the old one"
    assert sorted(p.name for p in Path().iterdir()) == ["near.yaml", "report.txt"]


def test_names_that_are_no_text_or_that_are_markup() -> None:
    for name in (os.fsdecode(b"d\xe9"), "<script>alert(1)<"):
        Path(name).mkdir()
        (Path(name) / "config.json").write_text(json.dumps(MISTRAL))
        for output in OUTPUTS:
            for command in (["analyze"], ["compare", "near.yaml"]):
                done = run(*command, f"{name}/config.json", "--n", "64", "-o", output)
                assert done.exit_code == 0, done.output
                assert "<script>alert" not in Path(output).read_text() or output != "report.html"


def test_a_slip_in_a_keyword_binds_nothing() -> None:
    near = pc.causal() & pc.window(3)
    packed = near & pc.documents("docs")
    for wrong, said in (
        (lambda: pc.analyze(near, 64, aplha=0.9), "did you mean 'alpha'"),
        (lambda: pc.analyze(packed, 64, dosc=[64]), "did you mean 'docs'"),
        (lambda: influence(near, 64, alhpa=1), "did you mean 'alpha'"),
        (lambda: pc.compile(near, 64, blokc=16), "did you mean 'block'"),
        (lambda: pc.compare({"a": near}, 64, foo=3), "nothing in them takes data"),
        (lambda: pc.compare({1: near, "1": near}, 64), "a name of its own"),  # type: ignore[dict-item]
        (lambda: pc.Stack([pc.heads([near] * 3)], kv_heads=2), "does not divide"),
    ):
        with pytest.raises(pc.PatternError, match=said):
            wrong()
    found = pc.compare({"a": packed, "b": near}, 64, docs=[64])
    assert [c.name for c in found.candidates] == ["a", "b"]


def test_layouts_are_carried_one_or_several() -> None:
    stack = pc.compile(pc.Stack([pc.causal(), pc.window(2), pc.causal()]), 64)
    carried = pc.carry(stack, "cpu")
    assert [x.n for x in carried] == [64, 64, 64]
    with pytest.raises(pc.PatternError, match=r"carry: give a layout.* pc\.compile\(pattern, n\)"):
        pc.carry(pc.causal())  # type: ignore[call-overload]


@pytest.mark.parametrize("bounds", [[0, 3, 5], np.array([0, 3, 5], dtype=np.int32)])
def test_documents_of_lists_and_arrays(bounds: Any) -> None:
    assert pc.documents_of(bounds, 7).tolist() == [0, 0, 0, 1, 1, -1, -1]


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ([0.0, 3.0], "not torch.float64"),
        ([0, 5, 3], r"cu_seqlens\[2\] is 3, less than the 5"),
        ([1, 5], "starts with 1, not with 0"),
        ([[0, 1], [0]], "not list"),
        ([], "integers in one dimension"),
        ("0,3", "not str"),
    ],
)
def test_documents_of_what_is_no_lengths(bounds: Any, said: str) -> None:
    with pytest.raises(pc.PatternError, match=said):
        pc.documents_of(bounds, 7)


def test_a_dtype_in_words() -> None:
    layout = pc.compile(pc.causal(), 8)
    with pytest.raises(pc.PatternError, match=r"dtype is 'float16'; give a dtype of torch"):
        pc.to_sdpa(layout, kind="bias", dtype="float16")  # type: ignore[arg-type]
