"""Artifacts: what is written is what is loaded, and nothing altered gets through."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import patterncc as pc
from patterncc.artifact import Artifact
from patterncc.errors import LayoutError, PatternError, PatternValueError
from tests.strategies import patterns

NEAR = pc.causal() & (pc.window(31) | pc.sink(4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stack = pc.Stack([NEAR, NEAR, pc.heads([pc.causal(), NEAR])])
    Artifact.build(stack, 300, block=64, resources=False).save(tmp_path / "made")
    return tmp_path / "made"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_layers_share_what_is_equal(folder: Path) -> None:
    made = Artifact.load(folder)
    a, b, c = made.layouts
    assert a is b and a is not c
    assert c.heads == 2
    assert {p.name for p in folder.iterdir()} == {
        "manifest.json",
        "layout-0.safetensors",
        "layout-1.safetensors",
        *made.sources,
    }
    assert np.array_equal(a.dense(), pc.lower(NEAR, 300).dense())
    assert made.stale() == ()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=patterns())
def test_round_trip(pattern: pc.Pattern, tmp_path: Path) -> None:
    made = Artifact.build(pattern, 60, block=32, resources=False)
    made.save(tmp_path / "a")
    again = Artifact.load(tmp_path / "a")
    assert [x.hash for x in again.layouts] == [x.hash for x in made.layouts]
    assert again.sources == made.sources and again.manifest == made.manifest


def test_a_pattern_file_gives_its_name_and_parameters(tmp_path: Path) -> None:
    file = pc.loads("name: near\nparams:\n  w: 8\nedges:\n  a: causal() & window(w)\n", w=16)
    made = Artifact.build(file, 128, target="sm_80", dtype="fp16", resources=False)
    assert made.manifest["pattern"] == {"name": "near", "file": "<string>", "params": {"w": 16}}
    assert made.manifest["shapes"]["q"] == ["batch", "heads", 128, 64]
    assert all(row["plan"]["target"] == "sm_80" for row in made.manifest["kernels"].values())


def test_unknown_targets_are_named() -> None:
    with pytest.raises(PatternValueError, match="no target 'sm_42'"):
        Artifact.build(NEAR, 64, target="sm_42")
    with pytest.raises(PatternValueError, match="no dtype 'float'"):
        Artifact.build(NEAR, 64, dtype="float")


def test_a_newer_schema_says_so(folder: Path) -> None:
    edit(folder, schema="patterncc.artifact/99")
    with pytest.raises(LayoutError, match=r"newer than .*; update patterncc"):
        Artifact.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "patterncc.compile/1"}, "compile the pattern again"),
        ({"schema": None}, "its schema is None"),
        ({"layouts": {}}, "layouts is a list"),
        ({"layouts": [{}]}, "each of layouts has file"),
        ({"kernels": {"../evil.py": {"sha256": "", "plan": {}}}}, "needs a name such as"),
    ],
)
def test_manifests_that_are_none(folder: Path, changes: dict[str, object], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(LayoutError, match=message):
        Artifact.load(folder)


def rows(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "manifest.json").read_text())["layouts"]
    return found


def test_no_path_leaves_the_folder(folder: Path) -> None:
    first, *others = rows(folder)
    edit(folder, layouts=[first | {"file": "../layout.safetensors"}, *others])
    with pytest.raises(LayoutError, match="is not the name of a layout file"):
        Artifact.load(folder)


def test_layers_stand_once_each(folder: Path) -> None:
    first, *others = rows(folder)
    for layers in ([0, 0], [0, 7], [0]):
        edit(folder, layouts=[first | {"layers": layers}, *others])
        with pytest.raises(LayoutError, match="layers 0, 1"):
            Artifact.load(folder)


def test_a_file_is_read_once(folder: Path) -> None:
    first, *others = rows(folder)
    for row in (first | {"layers": []}, first | {"layers": [3]}):
        edit(folder, layouts=[first, *others, row])
        with pytest.raises(LayoutError, match="a file of its own, unlike 'layout-0"):
            Artifact.load(folder)


def test_layouts_of_another_artifact(folder: Path) -> None:
    pc.compile(NEAR, 301, block=64).save(folder / "layout-0.safetensors")
    with pytest.raises(LayoutError, match="they are not of one artifact"):
        Artifact.load(folder)


def test_every_altered_byte_of_a_source_is_found(folder: Path) -> None:
    source = next(folder.glob("forward-*.py"))
    text = source.read_text()
    source.write_text(text.replace("forward", "backward", 1))
    with pytest.raises(LayoutError, match=r"forward-.* it was altered"):
        Artifact.load(folder)
    source.unlink()
    with pytest.raises(LayoutError, match="is missing"):
        Artifact.load(folder)


def test_a_plan_that_is_another_kernels(folder: Path) -> None:
    kernels = json.loads((folder / "manifest.json").read_text())["kernels"]
    forward, decode = (next(k for k in kernels if k.startswith(x)) for x in ("forward", "decode"))
    kernels[forward]["plan"] = kernels[decode]["plan"]
    edit(folder, kernels=kernels)
    with pytest.raises(LayoutError, match="has the plan of decode"):
        Artifact.load(folder)


def test_an_older_folder_is_replaced_and_other_files_stay(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    Artifact.build(pc.causal(), 64, resources=False).save(folder)
    assert (folder / "notes.txt").exists() and not (folder / "layout-0.safetensors").exists()
    assert len(Artifact.load(folder).layouts) == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    made = Artifact.build(pc.causal(), 64, resources=False)
    with pytest.raises(PatternError, match="cannot write"):
        made.save(tmp_path / "no" / "such")
    with pytest.raises(LayoutError, match="is missing"):
        Artifact.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 1}, "has n 300, not 1"),
        ({"n": 300.0}, "its n is 300.0, not an integer"),
        ({"n": float("nan")}, "NaN is no number of JSON"),
        ({"head_dim": 128}, "head_dim|shapes are not those"),
        ({"dtype": "float7"}, "its dtype is 'float7', not one of float32"),
        ({"dtype": "float32"}, "is made for dtype bfloat16, not float32"),
        ({"target": "toaster"}, "its target is 'toaster', not one of sm_80"),
        ({"target": ["sm_80"]}, "its target is"),
        ({"target": "sm_80"}, "is made for target sm_90, not sm_80"),
        ({"shapes": {}}, "shapes are not those of layout-0"),
        ({"versions": {"torch": 2}}, "versions is an object of texts"),
        ({"pattern": "near"}, "pattern is an object of name, file and params"),
        ({"more": 1}, "'more' is no field of it"),
    ],
)
def test_fields_that_are_untrue(folder: Path, changes: dict[str, object], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(LayoutError, match=message):
        Artifact.load(folder)


def test_every_figure_of_a_layout_is_computed_again(folder: Path) -> None:
    """Each figure altered, left out, and of another type."""
    first, *others = rows(folder)
    figures = set(first) - {"file", "hash", "layers", "kernels"}
    assert {"n", "edges", "density", "full_tiles", "bytes", "pattern", "orders"} <= figures
    for name in figures:
        without = {k: v for k, v in first.items() if k != name}
        for row in (without, first | {name: "1"}, first | {name: True}, first | {name: [1e9]}):
            edit(folder, layouts=[row, *others])
            with pytest.raises(
                LayoutError, match=rf"layout-0.safetensors has (no '{name}'|{name})"
            ):
                Artifact.load(folder)
    edit(folder, layouts=[first | {"colour": 1}, *others])
    with pytest.raises(LayoutError, match=r"'colour' of layout-0.safetensors is no field"):
        Artifact.load(folder)


def test_what_a_kernel_is_said_to_be(folder: Path) -> None:
    kernels = json.loads((folder / "manifest.json").read_text())["kernels"]
    name = next(iter(kernels))
    for change, message in (({"kind": "sofa"}, "the kind of"), ({"resources": 3}, "resources")):
        edit(folder, kernels=kernels | {name: kernels[name] | change})
        with pytest.raises(LayoutError, match=message):
            Artifact.load(folder)


def test_no_key_stands_twice(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"n": 300,', '"n": 300, "n": 300,', 1))
    with pytest.raises(LayoutError, match='the key "n" stands twice'):
        Artifact.load(folder)


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", torch.bfloat16])
def test_dtypes_by_every_name(dtype: object) -> None:
    made = Artifact.build(NEAR, 64, dtype=dtype, resources=False)
    assert made.manifest["dtype"] == "bfloat16"


def test_no_path_of_the_builder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "near.yaml").write_text("edges:\n  a: causal() & window(8)\n")
    made = Artifact.build(pc.load(tmp_path / "near.yaml"), 64, resources=False)
    assert made.manifest["pattern"]["file"] == "near.yaml"
    assert str(tmp_path) not in json.dumps(made.manifest)
