"""Layout files: written whole, read back equal, and refused when anything in them is wrong."""

from __future__ import annotations

import json
import os
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
from patterncc.layout.checks import agree, check
from patterncc.layout.runs import spread
from patterncc.zones.orders.order import Order
from tests.test_attention_terms import Masks, example, split
from tests.test_layout import PATTERNS, SIDES

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


def test_paths_that_are_no_files(layout: Layout, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "pipe"):
        if path is not tmp_path:
            os.mkfifo(path)  # opening it would wait for ever
        with pytest.raises(LayoutError, match="a folder, a pipe or a device"):
            Layout.load(path)
    with pytest.raises(LayoutError, match="cannot read the layout 'a"):
        Layout.load("a\0b")
    with pytest.raises(LayoutError, match="cannot write the layout to 'a"):
        layout.save("a\0b")


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
        ("more", "x", "metadata has 'more'"),
        ("hash", None, "metadata lacks 'hash'"),
        ("hash", 3, "not text"),
        ("order", "by hand", "tensors lacks 'order_queries'"),
        ("sequences", "0", "sequences is 0"),
        ("sequences", "3", "sequences is 3, head_pattern has 2 entries"),
        ("sequences", "2", "it was altered"),
        ("schema", "patterncc.layout/3", "newer than 'patterncc.layout/2'.*update patterncc"),
        ("schema", "patterncc.report/1", "compile the pattern again"),
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
        (lambda h: h.pop("zones"), "tensors lacks 'zones'"),
        (lambda h: h.update(more=h["bits"]), "tensors has 'more'"),
        (lambda h: h.update({"1.head_pattern": h["bits"]}), "metadata lacks '1.block'|lacks '1."),
        (lambda h: h.pop("head_pattern"), "tensors lacks 'head_pattern'"),
        (lambda h: h.pop("__metadata__"), "schema is None"),
        (lambda h: h["zones"].update(dtype="F32"), "zones is not a tensor of int32"),
        (lambda h: h.update(zones=3), "zones is not a tensor"),
        (lambda h: h["bits"].update(data_offsets=[0, 10**12]), "bits is not"),
        (lambda h: h["bits"].update(shape=[10**9, 32, 2]), "bits is not"),
        (lambda h: h["bits"].update(shape=[0, 10**30], data_offsets=[0, 0]), "bits is not"),
        (lambda h: h["bits"].update(shape=[0, 2**31 - 1], data_offsets=[0, 0]), "describes"),
        (lambda h: h["bits"].update(data_offsets="ab"), "bits is not"),
        (lambda h: h["col_ptr"].update(data_offsets=h["row_ptr"]["data_offsets"]), "is not|gaps"),
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
def sound_file(several: bool) -> tuple[bytes, str]:
    """A file of one term or of three, and its layout's hash."""
    layout = example()[0] if several else pc.compile(P, 100, block=32)
    with TemporaryDirectory() as folder:
        layout.save(Path(folder) / "a")
        return (Path(folder) / "a").read_bytes(), layout.hash


@settings(max_examples=200)
@given(data=st.data(), several=st.booleans())
def test_damaged_files_are_refused(
    data: st.DataObject, several: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any byte changed, or any length cut or added: a LayoutError, never another error, never a
    layout.
    """
    sound, expected = sound_file(several)
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
    assert read.hash == expected


@settings(max_examples=30)
@given(made=split())
def test_orders_and_terms_round_trip(
    made: tuple[Layout, Masks], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, (layout, _) = tmp_path_factory.getbasetemp() / "terms", made
    layout.save(path)
    again = Layout.load(path)
    assert again.hash == layout.hash and str(again) == str(layout)
    assert [t.hash for t in again.terms] == [t.hash for t in layout.terms]
    assert (again.dense() == layout.dense()).all()
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


def test_equal_sides_of_an_order_are_kept_once(tmp_path: Path) -> None:
    layout = pc.compile(P, 100, block=32)
    down = np.arange(100, dtype=np.int32)[::-1].copy()
    for keys, count in ((None, 8), (down.copy(), 8), (np.roll(down, 1), 9)):
        replace(layout, order=Order.of("down", down, keys)).save(tmp_path / "a")
        assert len(load_file(tmp_path / "a")) == count
        order = Layout.load(tmp_path / "a").order
        assert order is not None and order.name == "down"
        assert (order.keys == (down if keys is None else keys)).all()


def placed(x: Layout, side: str, values: list[int]) -> Layout:
    assert x.order is not None
    sides = {"queries": x.order.queries, "keys": x.order.keys}
    sides[side] = np.array(values, dtype=np.int32)
    return replace(x, order=Order(x.order.name, sides["queries"], sides["keys"]))


def second(x: Layout, change: Change) -> Layout:
    return replace(x, rest=(change(x.rest[0]), *x.rest[1:]))


ALL = list(range(70))
WRONG_TERMS: dict[str, tuple[Change, str]] = {
    "short order": (lambda x: placed(x, "keys", ALL[:-1]), r"order_keys has shape \[69\]"),
    "long order": (lambda x: placed(x, "queries", [*ALL, 70]), r"order_queries has shape \[71\]"),
    "a token twice": (
        lambda x: placed(x, "queries", [*ALL[:-1], 0]),
        "order_queries is no permutation of 0 .. 69: 69 is missing",
    ),
    "past the last": (lambda x: placed(x, "keys", [*ALL[:-1], 70]), "order_keys names a token"),
    "below 0": (lambda x: placed(x, "keys", [-1, *ALL[1:]]), "order_keys names a token"),
    "of a term": (
        lambda x: second(x, lambda t: replace(t, order=Order("o", x.head_pattern, t.zones))),
        "term 1: order_queries has shape",
    ),
    "a term's run": (
        lambda x: second(x, lambda t: with_run(t, (0, 0), -1)),
        "term 1: row_run 0 covers",
    ),
    "a term's frame": (
        lambda x: second(x, lambda t: replace(t, q_offset=1)),
        "term 1 has q_offset 1, term 0 has 0",
    ),
    "a term's heads": (
        lambda x: second(x, lambda t: replace(t, head_pattern=np.zeros(2, dtype=np.int32))),
        "term 1 is for 2 heads, term 0 for 1",
    ),
    "a term's sequences": (
        lambda x: replace(x, head_pattern=np.zeros(2, dtype=np.int32), sequences=2),
        "term 1 has sequences 1, term 0 has 2",
    ),
    "a term's rest": (
        lambda x: second(x, lambda t: replace(t, rest=(t,))),
        "term 1 has a rest of its own",
    ),
    "too many pairs": (
        lambda x: replace(x, rest=(pc.compile(pc.full(), 70, block=16),)),
        r"the terms hold 5\d\d\d pairs of a head, there are 4900",
    ),
}


@pytest.mark.parametrize("name", WRONG_TERMS)
def test_wrong_orders_and_terms_are_refused(name: str, tmp_path: Path) -> None:
    change, message = WRONG_TERMS[name]
    wrong = change(example()[0])
    with pytest.raises(LayoutError, match=message):
        check(wrong)
    wrong.save(tmp_path / "a")
    if name in ("a term's rest", "a term's frame", "a term's sequences"):  # said once in a file
        return
    with pytest.raises(LayoutError, match="not a sound layout file"):
        Layout.load(tmp_path / "a")


def test_terms_that_share_a_pair_are_found_by_dense() -> None:
    layout = pc.compile(P, 70, block=16)
    other = pc.compile(pc.sink(1) & pc.causal(), 70, block=16)
    check(replace(layout, rest=(other,)))
    with pytest.raises(LayoutError, match="term 1 holds query 0, key 0 of head 0, and so does one"):
        replace(layout, rest=(other,)).dense()


def test_files_of_the_first_schema_are_read(tmp_path: Path) -> None:
    """Their hash was taken of less: this one was written by the version that made such files."""
    layout = pc.compile(P, 100, block=32)

    def first(header: dict[str, dict[str, str]]) -> None:
        del header["__metadata__"]["sequences"]
        header["__metadata__"]["schema"] = "patterncc.layout/1"
        header["__metadata__"]["hash"] = (
            "c122ebe20a95af0ce70de5f8a22b6292d425283d14f1daad42f297e3b97af126"
        )

    path = rewritten(layout, tmp_path / "a", first)
    assert Layout.load(path).hash == layout.hash
    placed_one = replace(layout, order=Order.of("up", range(100)))
    with pytest.raises(LayoutError, match="it was altered"):
        Layout.load(rewritten(placed_one, path, first))


Place = tuple[int, int, int, int]


def listed(runs: Runs, lines: int, *, turned: bool) -> set[Place]:
    """Every tile of the runs: pattern, row, column, mask word."""
    line, at, word = (x.tolist() for x in spread(runs))
    places = [(x // lines, x % lines, p, w) for x, p, w in zip(line, at, word, strict=True)]
    return {(u, p, x, w) if turned else (u, x, p, w) for u, x, p, w in places}


@settings(max_examples=60)
@given(st.lists(PATTERNS, min_size=1, max_size=3), st.integers(1, 100), SIDES, st.data())
def test_rows_and_columns_agree_where_they_hold_the_same_tiles(
    patterns: list[pc.Pattern], n: int, side: int, data: st.DataObject
) -> None:
    layout = pc.compile(pc.heads(patterns), n, block=side)
    assert agree(layout)
    if len(layout.rows.run):
        at = (data.draw(st.integers(0, len(layout.rows.run) - 1)), data.draw(st.integers(0, 2)))
        most = (layout.columns - 1, layout.columns, len(layout.zones) + len(layout.bits))[at[1]]
        layout = with_run(layout, at, data.draw(st.integers(0, most)))
    run = layout.rows.run
    if (run[:, 0] + run[:, 1] <= layout.columns).all() and (run[:, 1] > 0).all():
        ways = (
            listed(layout.rows, layout.lines, turned=False),
            listed(layout.cols, layout.columns, turned=True),
        )
        overlap = len(ways[0]) != run[:, 1].sum()  # refused before
        assert overlap or agree(layout) == (ways[0] == ways[1])
