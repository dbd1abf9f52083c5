"""The command line: exit codes, one JSON object, errors without tracebacks, whole files."""

from __future__ import annotations

import json
import os
import pty
import resource
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from patterncc import Layout
from patterncc.cli import main, measure
from patterncc.gallery import folder

NEAR = """\
name: near
params:
  w: 16
edges:
  near: causal() & window(w - 1)
layers:
  - repeat: 4
    edges: near
expect:
  - depth_to_full(n=256) == 17
"""


@pytest.fixture
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A pattern file, alone in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    Path("near.yaml").write_text(NEAR)
    return "near.yaml"


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words])


def as_json(*words: object, status: int = 0) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == status, result.output
    found = json.loads(result.stdout)  # exactly one value: json.loads refuses a second
    assert isinstance(found, dict)
    return found


def refused(*words: object) -> str:
    """The message of a command that must fail as bad input, both as text and as JSON."""
    before = sorted(Path().rglob("*"))
    told = as_json(*words, status=2)["error"]
    result = run(*words)
    assert result.exit_code == 2
    assert not result.stdout
    assert "Traceback" not in result.stderr
    assert sorted(Path().rglob("*")) == before
    assert told["message"].splitlines()[0] in result.stderr
    return str(told["message"])


def test_without_a_command_help_is_printed():
    result = run()
    assert result.exit_code == 0
    assert "check" in result.output and "Exit status" in result.output


@pytest.mark.parametrize("command", list(main.commands))
def test_every_command_has_help_and_json(command: str):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output


def test_check_says_what_holds(near: str):
    assert run("check", near).output == f"ok      {near}  (1 of 1 expectations hold)\n"
    found = as_json("check", near)
    assert found["ok"] is True
    assert found["files"][0]["expect"][0]["holds"] is True


def test_check_fails_with_1_where_an_expectation_does(near: str):
    result = run("check", near, "-p", "w=32")
    assert result.exit_code == 1
    assert "near.yaml:10:5" in result.output and "^^^" in result.output
    assert as_json("check", near, "-p", "w=32", status=1)["ok"] is False


def test_check_fails_with_1_where_lint_finds_an_error(near: str):
    Path(near).write_text("layers:\n  - edges: causal() & ~causal()\n")
    result = run("check", near)
    assert result.exit_code == 1
    assert "PCC101" in result.output


def test_check_reads_all_files_though_one_is_broken(near: str):
    Path("bad.yaml").write_text("edges:\n  a: windw(3)\nlayers:\n  - edges: b\n")
    result = run("check", "bad.yaml", near)
    assert result.exit_code == 2
    assert "did you mean 'window'?" in result.output and "bad.yaml:4" in result.output
    assert "ok      near.yaml" in result.output
    statuses = [f["status"] for f in as_json("check", "bad.yaml", near, status=2)["files"]]
    assert statuses == ["error", "ok"]


def test_show_draws_in_the_terminal(near: str):
    result = run("show", near, "--n", 8, "-p", "w=2")
    assert result.output.splitlines()[2] == "0 █▄"
    found = as_json("show", near, "--n", 8, "-p", "w=2")
    assert found["masks"] == [
        {"title": "all layers", "n": 8, "n_k": 8, "edges": 15, "density": 15 / 64}
    ]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_show_writes_a_picture(near: str, ending: str):
    result = run("show", near, "-o", f"mask.{ending}")
    assert result.output == f"wrote mask.{ending}\n"
    head = Path(f"mask.{ending}").read_bytes()[:8]
    assert head.startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_analyze_prints_and_saves_a_report(near: str):
    assert "full at 17 layers" in run("analyze", near, "--n", 256).output
    found = as_json("analyze", near, "--n", 256, "-o", "report.html")
    assert found["depth_to_full"]["value"] == 17
    assert Path("report.html").read_text().startswith("<!DOCTYPE html>")


def test_analyze_in_a_terminal_is_the_same_text_in_colours(near: str):
    from patterncc import analyze, load
    from patterncc.cli.styled import report_text

    report = analyze(load(near).stack, 256)
    shown = report_text(report, 80)
    assert shown.plain.replace("\N{FULL BLOCK}", "#") == str(report)
    marked = {(shown.plain[s.start : s.end], s.style) for s in shown.spans}
    assert ("exact", "green") in marked and ("17 layers", "bold") in marked
    assert ("note PCC106", "bold cyan") in marked
    assert max(map(len, report_text(report, 200).plain.splitlines())) <= 120


def test_a_terminal_gets_colours_and_a_pipe_does_not(near: str):
    def bytes_seen(*command: str) -> bytes:
        """What a terminal of 80 columns is sent."""
        ours, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
        env.pop("NO_COLOR", None)
        with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env) as process:
            os.close(theirs)
            seen = b""
            with suppress(OSError):  # how a terminal says that the other end is closed
                while part := os.read(ours, 65536):
                    seen += part
        os.close(ours)
        assert process.returncode == 0
        return seen

    command = [sys.executable, "-m", "patterncc", "analyze", near, "--n", "256"]
    assert b"\x1b[32mexact" in bytes_seen(*command)
    assert b"\x1b" not in subprocess.run(command, capture_output=True, check=True).stdout


def test_analyze_says_what_it_is_doing(near: str, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(measure, "working", lambda what: nullcontext(said.append))
    assert run("analyze", near, "--n", 256, "-o", "r.html").exit_code == 0
    assert said[:3] == ["reach", "influence of the last token", "hub load"]
    assert said[-1] == "writing r.html"


def test_analyze_takes_alpha(near: str):
    one, other = (as_json("analyze", near, "--n", 256, "--alpha", a) for a in (0.5, 0.95))
    assert one["influence"]["alpha"] == 0.5
    assert one["influence"]["q50"] > other["influence"]["q50"]


def test_analyze_answers_at_a_trillion_tokens(near: str):
    found = as_json("analyze", near, "--n", "2**40")
    assert found["n"] == 2**40
    assert found["reach"][4]["badge"] == "exact"


def test_analyze_reads_a_models_config(near: str):
    config = {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 16}
    Path("config.json").write_text(json.dumps(config))
    assert as_json("analyze", "config.json", "--n", 256)["depth_to_full"]["value"] == 17
    assert "no parameters" in refused("analyze", "config.json", "-p", "w=3")
    Path("config.json").write_text("{")
    assert "not JSON" in refused("analyze", "config.json")


def test_a_config_is_laid_out_for_the_length_asked_for(near: str):
    config = {"model_type": "big_bird", "num_hidden_layers": 1, "block_size": 16}
    Path("config.json").write_text(json.dumps(config))
    for words in (("--n", 512), ("-p", "length=512")):
        found = as_json("analyze", "config.json", *words)
        assert found["n"] == 512 and any("laid for 512 tokens" in note for note in found["notes"])


def test_shared_keys_of_a_config_reach_the_report(near: str):
    config = {"model_type": "gemma3n_text", "num_hidden_layers": 10, "num_kv_shared_layers": 5}
    Path("config.json").write_text(json.dumps(config))
    found = as_json("analyze", "config.json", "--n", 64)
    assert [c["kv_shared"] for c in found["cost"]] == [False] * 5 + [True] * 5


def test_explain_finds_the_way(near: str):
    found = as_json("explain", near, "--query", 40, "--key", 3)
    assert found["layers"] == 3
    assert [step["query"] for step in found["path"]][-1] == 40


def test_compile_leaves_layout_source_and_manifest(near: str):
    result = run("compile", near, "--n", 1000, "--block", 64, "-o", "out")
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("out/manifest.json").read_text())
    layout = Layout.load("out/layout.safetensors")
    assert manifest["layouts"][0]["hash"] == layout.hash
    for name, row in manifest["kernels"].items():
        assert row["resources"]["shared"] <= row["resources"]["shared_limit"], row
        compile(Path("out", name).read_text(), name, "exec")
    assert {p.name for p in Path("out").iterdir()} == {
        "layout.safetensors",
        "manifest.json",
        *manifest["kernels"],
    }


def test_compile_again_into_the_same_folder(near: str):
    for n in (500, 1000):
        found = as_json("compile", near, "--n", n, "--block", 64, "-o", "out")
    assert found["n"] == Layout.load("out/layout.safetensors").n == 1000
    assert not [p for p in Path().iterdir() if p.name.startswith(".")]


def test_doctor_says_which_backend_runs_and_why():
    found = as_json("doctor")
    assert found["backend"]["auto"] in ("cpu", "triton")
    assert found["backend"]["reason"]
    said = run("doctor").output
    assert "torch" in said and f"on CPUs   {found['backend']['cpu']}" in said


def test_gallery_names_stand_for_files():
    assert "mistral-7b" in as_json("show", "mistral-7b", "--n", 64)["name"]


@pytest.mark.parametrize("path", sorted(folder().glob("*.yaml")), ids=lambda p: p.stem)
def test_every_gallery_file_is_drawn_at_its_natural_size(path: Path):
    found = as_json("show", path)
    assert all(m["edges"] for m in found["masks"])


BAD_LINES = {
    "unknown primitive": ("edges:\n  a: windw(3)\n", "did you mean 'window'"),
    "negative size": ("edges:\n  a: window(-5)\n", "at least"),
    "huge size": ("edges:\n  a: window(10**15)\n", "at most"),
    "tag": ("edges: !!python/object:os.system\n  a: full()\n", "tag"),
    "alias": ("edges: &x\n  a: full()\nlayers: *x\n", "alias"),
    "duplicate key": ("edges:\n  a: full()\n  a: causal()\n", "twice"),
    "cycle": ("edges:\n  a: b\n  b: a\n", "b"),
    "attribute": ("edges:\n  a: causal().__class__\n", "__class__"),
    "not yaml": ("edges: [\n", "bad.yaml"),
    "empty": ("", "mapping"),
    "binary": ("\x00\x01\x02", "bad.yaml"),
}


@pytest.mark.parametrize("kind", list(BAD_LINES))
@pytest.mark.parametrize("command", ["show", "analyze"])
def test_bad_files_are_refused_with_a_place(near: str, kind: str, command: str):
    text, word = BAD_LINES[kind]
    Path("bad.yaml").write_text(text)
    message = refused(command, "bad.yaml")
    assert "bad.yaml" in message
    assert word in message


def test_files_that_are_too_large_or_missing_or_folders(near: str):
    Path("large.yaml").write_text("#" * (2**20 + 1))
    Path("folder.yaml").mkdir()
    assert "1048576" in refused("show", "large.yaml")
    assert "No such file" in refused("show", "none.yaml")
    assert "folder.yaml" in refused("show", "folder.yaml")
    assert "gallery has no pattern" in refused("show", "mistrall")


@pytest.mark.parametrize(
    "words",
    [
        ("analyze", "near.yaml", "--n", "0"),
        ("analyze", "near.yaml", "--n", "-5"),
        ("analyze", "near.yaml", "--n", "many"),
        ("analyze", "near.yaml", "--n", "2**41"),
        ("analyze", "near.yaml", "--n", "9**99"),
        ("analyze", "near.yaml", "--engine", "zone"),
        ("analyze", "near.yaml", "--pairs", "some"),
        ("analyze", "near.yaml", "--alpha", "2"),
        ("analyze", "near.yaml", "--alpha", "nan"),
        ("analyze", "near.yaml", "--alpha", "half"),
        ("analyze", "near.yaml", "--seed", "-1"),
        ("compare", "near.yaml", "--alpha", "2"),
        ("compare", "near.yaml", "none.yaml"),
        ("analyze", "near.yaml", "-o", "report.pdf"),
        ("analyze", "near.yaml", "-o", "no/such/report.html"),
        ("analyze", "near.yaml", "-p", "w"),
        ("analyze", "near.yaml", "-p", "v=3"),
        ("analyze", "near.yaml", "-p", "w=import os"),
        ("analyze", "near.yaml", "--bind", "docs=a,b"),
        ("show", "near.yaml", "--layer", "9"),
        ("show", "near.yaml", "--layer", "-1"),
        ("show", "near.yaml", "-o", "mask.gif"),
        ("show", "near.yaml", "-o", "no/such/mask.png"),
        ("show", "near.yaml", "--cells", "0"),
        ("show", "near.yaml", "--n", "2**20", "--cells", "2**20"),
        ("show", "near.yaml", "--n", "2**40"),
        ("analyze", "near.yaml", "--depth", "10**9"),
        ("explain", "near.yaml", "--query", "9"),
        ("explain", "near.yaml", "--query", "9", "--key", "9", "--n", "5"),
        ("compile", "near.yaml", "-o", "out"),
        ("compile", "near.yaml", "--n", "10**12", "-o", "out"),
        ("compile", "near.yaml", "--n", "512", "-o", "near.yaml"),
        ("compile", "near.yaml", "--n", "512", "-o", "no/such/out"),
        ("compile", "near.yaml", "--n", "512", "-o", "out", "--block", "100"),
        ("compile", "near.yaml", "--n", "512", "-o", "out", "--head-dim", "512"),
        ("compile", "near.yaml", "--n", "512", "-o", "out", "--target", "sm_42"),
        ("bench", "everything"),
        ("analyse", "near.yaml"),
    ],
    ids=" ".join,
)
def test_bad_options_are_refused(near: str, words: tuple[str, ...]):
    assert refused(*words)


def test_a_huge_layout_is_refused_before_anything_is_allocated(near: str):
    """Peak memory in a process of its own, against one that only imports what it needs."""
    code = """
import resource, sys
from patterncc.cli import main, measure
import patterncc.layout, patterncc.language
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main(["compile", "near.yaml", "--n", "10**12", "-o", "out"], standalone_mode=False)
except SystemExit as stop:
    assert stop.code == 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, torch_loaded = done.stdout.split()
    assert int(grown) < 50 * 1024  # KiB on Linux
    assert torch_loaded == "False"
    assert not Path("out").exists()


def test_an_output_that_cannot_be_written_leaves_nothing(near: str):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "patterncc",
            "compile",
            near,
            "--n",
            "2048",
            "--block",
            "16",
            "-o",
            "out",
        ],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in Path().iterdir()] == [near]


def test_a_real_process_exits_with_the_same_codes(near: str):
    def status(*words: str) -> int:
        command = [sys.executable, "-m", "patterncc", *words]
        return subprocess.run(command, capture_output=True).returncode

    assert status("check", near) == 0
    assert status("check", near, "-p", "w=32") == 1
    assert status("check", "none.yaml") == 2


def test_names_of_arguments_cannot_be_bound(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text('edges:\n  a: causal() & documents("n")\nbindings:\n  n: "[30, 34]"\n')
    for command in (["check"], ["analyze", "--n", "64"], ["show", "--n", "64"]):
        result = CliRunner().invoke(main, [command[0], str(file), *command[1:]])
        assert result.exit_code == 2
        assert "'n' cannot be bound" in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize("size", ["1_", "1__0", "_1", "-5**2", "9" * 31])
def test_sizes_that_are_none(size: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("edges:\n  a: causal()\n")
    result = CliRunner().invoke(main, ["analyze", str(file), "--n", size])
    assert result.exit_code == 2


def test_compile_replaces_all_of_a_folder_or_nothing(tmp_path: Path) -> None:
    file, out = tmp_path / "p.yaml", tmp_path / "out"
    file.write_text("edges:\n  a: causal()\n")
    (out / "manifest.json").mkdir(parents=True)
    result = CliRunner().invoke(main, ["compile", str(file), "--n", "64", "-o", str(out)])
    assert result.exit_code == 2
    assert [p.name for p in out.iterdir()] == ["manifest.json"]


def test_json_may_stand_before_the_command(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("edges:\n  a: window(0, 0)\nexpect:\n  - tile_density(n=48, block=16) == 1/3\n")
    result = CliRunner().invoke(main, ["--json", "check", str(file)])
    assert json.loads(result.stdout)["files"][0]["status"] == "ok"


@pytest.mark.parametrize("given", ["docs=[100,412", "docs=100,412]", "docs=[100,412]]", "docs=[]"])
def test_a_torn_list_is_refused(near: str, given: str):
    assert "write docs=[3,5], or docs=FILE.npy" in refused("analyze", near, "--bind", given)


def test_a_bound_name_stands_in_quotes(near: str):
    Path("docs.yaml").write_text("name: d\nlayers:\n  - repeat: 1\n    edges: documents(docs)\n")
    said = as_json("show", "docs.yaml", "--n", 8, "--bind", "docs=[3,5]", status=2)["error"]
    assert 'a bound name stands in quotes: documents("docs")' in said["message"]
    Path("docs.yaml").write_text(
        'name: d\nlayers:\n  - repeat: 1\n    edges: causal() & documents("docs")\n'
    )
    assert "--bind docs=" in refused("show", "docs.yaml", "--n", 8)
    assert run("show", "docs.yaml", "--n", 8, "--bind", "docs=[3,5]").exit_code == 0


def test_targets_that_are_for_explanations_alone(near: str):
    assert "is for --explain without -o" in refused(
        "compile", near, "--n", 256, "--target", "cpu", "-o", "out"
    )
    told = refused("compile", near, "--n", 256, "--explain", "--target", "no.json")
    assert told.count("no.json") == 1 and "Errno" not in told and "bench cost --json" in told
    assert "give a smaller --n" in refused("compile", near, "--n", "10**12", "--explain")
    assert "nothing to say of no token" in run("compile", near, "--n", 0, "--explain").stderr


def test_a_missing_file_of_a_gallery_name(near: str):
    rows = as_json("check", "bigbird.yaml", status=2)["files"]
    assert "did you mean the gallery's bigbird?" in rows[0]["message"]
