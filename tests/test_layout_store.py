"""Layout files: written whole, read back equal, and refused when anything in them is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import patterncc as pc
from patterncc.errors import LayoutError
from patterncc.layout import Layout, Runs
from patterncc.layout.checks import check, corners
from tests.test_layout import PATTERNS, SIDES, tiles

P = pc.causal() & (pc.window(60) | pc.sink(4)) | pc.dilated(90, 90, 7)


@pytest.fixture
def layout() -> Layout:
    return pc.compile(pc.heads([P, pc.causal()]), 300, block=(32, 64))


@settings(max_examples=40)
@given(PATTERNS, st.integers(0, 130), SIDES, SIDES)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, p: pc.Pattern, n: int, height: int, width: int
) -> None:
    path = tmp_path_factory.mktemp("layouts") / "a.safetensors"
    layout = pc.compile(p, n, block=(height, width))
    layout.save(path)
    again = Layout.load(path)
    assert again.hash == layout.hash
    assert all(a.flags.writeable for x in (again, layout) for a in x.arrays.values())
    assert (again.dense() == layout.dense()).all()
    assert str(again) == str(layout)
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


def test_the_file_is_plain_safetensors(layout: Layout, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    layout.save(path)
    tensors = load_file(path)
    assert {name: a.dtype for name, a in tensors.items()} == dict.fromkeys(layout.arrays, np.int32)
    for name, array in layout.arrays.items():
        assert (tensors[name] == array).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_failed_write_leaves_what_was_there(layout: Layout, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"before")
    broken = replace(layout, n="three")  # type: ignore[arg-type]
    object.__setattr__(broken, "cols", None)
    with pytest.raises(AttributeError):
        broken.save(path)
    assert path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(LayoutError, match="cannot write"):
        layout.save(tmp_path / "nowhere" / "a")
    with pytest.raises(LayoutError, match="cannot read"):
        Layout.load(tmp_path / "nowhere")


def changed(array: np.ndarray, at: tuple[int, ...], value: int) -> np.ndarray:
    copy = array.copy()
    copy[at] = value
    return copy


def with_run(x: Layout, at: tuple[int, int], value: int) -> Layout:
    return replace(x, rows=Runs(x.rows.lines, x.rows.ptr, changed(x.rows.run, at, value)))


def with_column(x: Layout, at: tuple[int, int], value: int) -> Layout:
    return replace(x, cols=Runs(x.cols.lines, x.cols.ptr, changed(x.cols.run, at, value)))


def with_ptr(x: Layout, at: int, value: int) -> Layout:
    return replace(x, rows=Runs(x.rows.lines, changed(x.rows.ptr, (at,), value), x.rows.run))


Change = Callable[[Layout], Layout]
WRONG: dict[str, tuple[Change, str]] = {
    "n": (lambda x: replace(x, n=2**31), "n is 2147483648"),
    "more keys": (lambda x: replace(x, n_k=400), "cols has 5 lines"),
    "fewer keys": (lambda x: replace(x, n_k=290), "reads past key 289"),
    "offset": (lambda x: replace(x, q_offset=-1), "q_offset is -1"),
    "block": (lambda x: replace(x, block=(32, 48)), "block is"),
    "lines": (lambda x: replace(x, rows=Runs(9, x.rows.ptr, x.rows.run)), "rows has 9 lines"),
    "ptr shape": (
        lambda x: replace(x, rows=Runs(x.rows.lines, x.rows.ptr[:-1], x.rows.run)),
        "row_ptr has shape",
    ),
    "run shape": (
        lambda x: replace(x, cols=Runs(x.cols.lines, x.cols.ptr, x.cols.run[:, :2])),
        "col_run has shape",
    ),
    "zones shape": (lambda x: replace(x, zones=x.zones[:, :2]), "zones has shape"),
    "bits shape": (lambda x: replace(x, bits=x.bits[:, :, :1]), "bits has shape"),
    "no head": (lambda x: replace(x, head_pattern=x.head_pattern[:0]), "no head"),
    "head": (lambda x: replace(x, head_pattern=x.head_pattern + 1), "head_pattern names"),
    "ptr start": (lambda x: with_ptr(x, 0, 1), "row_ptr does not ascend"),
    "ptr order": (lambda x: with_ptr(x, 3, 0), "row_ptr does not ascend"),
    "ptr end": (lambda x: with_ptr(x, -1, 9999), "row_ptr does not ascend"),
    "first": (lambda x: with_run(x, (0, 0), -1), "row_run 0 covers"),
    "length": (lambda x: with_run(x, (2, 1), 99), "row_run 2 covers"),
    "length 0": (lambda x: with_run(x, (2, 1), 0), "row_run 2 covers"),
    "huge length": (lambda x: with_run(x, (2, 1), 2**31 - 1), "row_run 2 covers"),
    "overlap": (lambda x: with_column(x, (1, 0), 0), "overlap|do not hold"),
    "word": (lambda x: with_run(x, (1, 2), 10**6), "mask word 1000000"),
    "negative word": (lambda x: with_column(x, (1, 2), -1), "mask word -1"),
    "another word": (lambda x: with_run(x, (1, 2), 1), "do not hold the same"),
    "zone bound": (lambda x: replace(x, zones=changed(x.zones, (0, 0, 1), 33)), "zones 0 is"),
    "loose zone": (
        lambda x: replace(x, zones=changed(x.zones, (0, 0, 4), -31)),
        "zones 0 is|edges",
    ),
    "zone band": (lambda x: replace(x, zones=changed(x.zones, (0, 0, 5), 2**30)), "zones 0 is"),
    "empty zone": (lambda x: replace(x, zones=changed(x.zones, (0, 0), 0)), "zones 0 is"),
    "a bit": (lambda x: replace(x, bits=changed(x.bits, (0, 0, 0), 0)), "edges says"),
    "no bits": (lambda x: replace(x, bits=changed(x.bits, (0,), 0)), "bits 0 holds no pair"),
    "edges": (lambda x: replace(x, edges=(1, 2)), "edges says"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_layout_is_refused(name: str, layout: Layout, tmp_path: Path) -> None:
    """Also where the hash is right: whoever wrote the file computed it from the wrong contents."""
    change, message = WRONG[name]
    wrong = change(layout)
    with pytest.raises(LayoutError, match=message):
        check(wrong)
    wrong.save(tmp_path / "a")
    if name == "lines":  # a file does not hold them
        return
    with pytest.raises(LayoutError, match="not a sound layout file"):
        Layout.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", "patterncc.layout/0", "schema is 'patterncc.layout/0'"),
        ("pattern", "full()", "it was altered"),
        ("hash", "0" * 64, "it was altered"),
        ("q_offset", "7", "it was altered"),
        ("n", "-1", "n is '-1', not a number"),
        ("n", "1e3", "not a number"),
        ("block", "32", "block is"),
        ("block", "0 64", "block is"),
        ("edges", "", "not a number"),
        ("more", "x", "metadata has"),
        ("hash", None, "metadata has"),
        ("hash", 3, "metadata has"),
    ],
)
def test_wrong_metadata(
    field: str, value: object, message: str, layout: Layout, tmp_path: Path
) -> None:
    def alter(header: dict[str, dict[str, object]]) -> None:
        if value is None:
            del header["__metadata__"][field]
        else:
            header["__metadata__"][field] = value

    with pytest.raises(LayoutError, match=message):
        Layout.load(rewritten(layout, tmp_path / "a", alter))


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda h: h.pop("zones"), "it holds"),
        (lambda h: h.update(more=h["bits"]), "it holds"),
        (lambda h: h.pop("__metadata__"), "it holds"),
        (lambda h: h["zones"].update(dtype="F32"), "zones is not a tensor of int32"),
        (lambda h: h.update(zones=3), "zones is not|describes"),
        (lambda h: h["bits"].update(data_offsets=[0, 10**12]), "describes another length"),
        (lambda h: h["bits"].update(shape=[10**9, 32, 2]), "not a sound layout file"),
        (lambda h: h["bits"].update(data_offsets="ab"), "describes another length"),
        (lambda h: h.update(__metadata__=[]), "schema is None"),
    ],
)
def test_wrong_headers(
    alter: Callable[[dict[str, object]], object], message: str, layout: Layout, tmp_path: Path
) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout.load(rewritten(layout, tmp_path / "a", alter))


def rewritten(layout: Layout, path: Path, alter: Callable[..., object]) -> Path:
    """The layout's file with its header changed."""
    layout.save(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    alter(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


@cache
def sound_file() -> bytes:
    with TemporaryDirectory() as folder:
        pc.compile(P, 100, block=32).save(Path(folder) / "a")
        return (Path(folder) / "a").read_bytes()


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_files_are_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any byte changed, or any length cut or added: a LayoutError, never another error, never a
    layout.
    """
    sound = sound_file()
    path = tmp_path_factory.getbasetemp() / "damaged"
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "long header"]))
    at = data.draw(st.integers(0, len(sound) - 1))
    if kind == "flip":
        bit = data.draw(st.integers(0, 7))
        damaged = sound[:at] + bytes([sound[at] ^ (1 << bit)]) + sound[at + 1 :]
    elif kind == "cut":
        damaged = sound[:at]
    elif kind == "grow":
        damaged = sound + b"\0" * (at + 1)
    else:
        damaged = (2**63 - 1 - at).to_bytes(8, "little") + sound[8:]
    path.write_bytes(damaged)
    try:
        read = Layout.load(path)
    except LayoutError:
        return
    # a change that JSON does not see (white space, an escape) reads as the same layout
    assert read.hash == pc.compile(P, 100, block=32).hash


@given(PATTERNS, st.integers(1, 100), SIDES)
def test_corners_are_the_same_both_ways_and_tell_layouts_apart(
    p: pc.Pattern, n: int, side: int
) -> None:
    layout = pc.compile(p, n, block=side)
    ours = corners(layout.rows, layout)
    assert np.array_equal(ours, corners(layout.cols, layout, turned=True))
    image = np.zeros((layout.lines + 2, layout.columns + 2), dtype=np.int64)
    for (_, r, c), word in tiles(layout).items():
        image[r + 1, c + 1] = word + 1
    differences = np.diff(np.diff(image, axis=0), axis=1)
    assert ours[:, 1].tolist() == differences[differences != 0].tolist()
