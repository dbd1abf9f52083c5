"""The cost model: counts as in layouts and masks, prices that grow with work, tables, --explain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import frames, patterns, zone_rows

import patterncc as pc
from patterncc.cli import build as build_command
from patterncc.cli import main
from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.gallery import folder
from patterncc.layout import choices
from patterncc.layout.build import build
from patterncc.layout.cost import work as cost_work
from patterncc.layout.cost.choose import CANDIDATES, NEAR, choose_block
from patterncc.layout.cost.model import dense_seconds, estimate, estimate_tiles, in_terms
from patterncc.layout.cost.tables import MASKS, TABLES, Device, device, targets
from patterncc.layout.cost.work import Part, Work, part, work
from patterncc.zones import Frame, ZoneSet
from patterncc.zones.tiles import local

BLOCKS = ((16, 16), (32, 16), (16, 64), (128, 128))


def tiles_of(mask: NDArray[np.bool_], block: tuple[int, int]) -> tuple[int, int]:
    """(full, touched) tiles, looked at one by one; one past the last key is not full."""
    (n, n_k), (height, width) = mask.shape, block
    full = touched = 0
    for i in range(0, n, height):
        for j in range(0, n_k, width):
            tile = mask[i : i + height, j : j + width]
            touched += bool(tile.any())
            full += bool(tile.all()) and j + width <= n_k
    return full, touched


def every_row(zones: ZoneSet) -> Part:
    """The zones counted without slabs."""
    return Part(zones.frame, local(zones), None, np.ones(0), len(zones.table))


# counts


@settings(deadline=None)
@given(frames(most=90), st.data(), st.sampled_from(BLOCKS))
def test_counts_of_zones_are_those_of_the_mask(
    frame: Frame, data: st.DataObject, block: tuple[int, int]
) -> None:
    zones = ZoneSet.make(frame, data.draw(zone_rows(high=100)))
    found = work(part(zones), block)
    full, touched = tiles_of(zones.dense(), block)
    assert found.tiles == touched
    assert found.full <= full  # tiles that several zones fill together count as partial
    if found.counts == "exact" or len(zones.table) == 1:
        assert (found.full, found.counts) == (full, "exact")


@settings(deadline=None, max_examples=60)
@given(patterns(), st.integers(1, 300), st.sampled_from(BLOCKS))
def test_counts_of_patterns_are_those_of_their_layout(
    p: pc.Pattern, n: int, block: tuple[int, int]
) -> None:
    try:
        layout = pc.compile(p, n, block=block, order="token")
    except PatternError:
        return
    found = work(part(pc.lower(p, n)), block)
    assert found.tiles == layout.full_tiles + layout.partial_tiles
    assert found.full <= layout.full_tiles
    if len(pc.lower(p, n).table) == 1:
        assert found.runs >= len(layout.rows.run)
    assert found.rows == int((np.diff(layout.rows.ptr) > 0).sum())
    if found.counts == "exact":
        assert (found.full, found.partial) == (layout.full_tiles, layout.partial_tiles)


@settings(deadline=None, max_examples=80)
@given(st.data(), st.integers(60_000, 400_000), st.sampled_from([(128, 128), (16, 64), (256, 32)]))
def test_a_few_slabs_count_what_all_rows_would(
    data: st.DataObject, n: int, block: tuple[int, int]
) -> None:
    two = st.tuples(st.integers(0, n), st.integers(0, n))
    rows = [
        [x - shift for shift in (0, 0, n // 2) for x in sorted(data.draw(two))]
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    zones = ZoneSet.make(Frame.of(n), rows)
    whole = every_row(zones)
    some = part(zones)
    if len(zones.table) <= 2 and len(zones.table):
        assert some.place is not None and len(some.table) < 500
    a, b = work(some, block), work(whole, block)
    assert (a.full, a.partial, a.records, a.rows, a.longest) == (
        b.full, b.partial, b.records, b.rows, b.longest
    )  # fmt: skip


def test_a_sample_of_slabs_tells_about_many_zones() -> None:
    p = pc.window(1, 1, block=64) | pc.global_tokens(range(64)) | pc.random_blocks(3, block=64)
    zones = pc.lower(p, 2**20)
    some = part(zones, quick=True)
    assert some.sampled and len(some.table) < len(zones.table) / 8
    for block in CANDIDATES:
        a, b = work(some, block), work(every_row(zones), block)
        assert a.longest == b.longest  # the global tokens' row
        assert abs(a.tiles / b.tiles - 1) < 0.02
        assert abs(a.full - b.full) <= 0.02 * b.tiles


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_sample_tells_about_a_large_graph(shuffled: bool) -> None:
    """Edges near the diagonal, one zone each; sorted by query they are found by bisection."""
    n, rng = 2**17, np.random.default_rng(0)
    i = np.sort(rng.integers(0, n, 600_000))
    j = np.clip(i + rng.integers(-300, 300, len(i)), 0, n - 1)
    table = np.stack([i, i + 1, j, j + 1, j - i, j - i + 1], axis=1)
    zones = ZoneSet(Frame(n, n, 70, 30), table[rng.permutation(len(i))] if shuffled else table)
    zones = replace(zones, table=zones.table + [70, 70, 30, 30, -40, -40])
    some = part(zones, quick=True)
    assert some.sampled and len(some.table) < len(i) / 3
    a, b = work(some, (128, 128)), work(every_row(zones), (128, 128))
    assert abs(a.tiles / b.tiles - 1) < 0.02
    assert abs(a.longest - b.longest) <= 1


def test_too_many_strips_are_bounded_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    p = pc.causal() & (pc.window(40) | pc.strided(64))
    zones = pc.lower(p, 4000)
    exact = work(part(zones), (64, 64))
    monkeypatch.setattr(cost_work, "MANY_STRIPS", 100)
    found = work(part(zones), (64, 64))
    assert found.counts == "bound"
    assert found.full == 0 and found.tiles >= exact.tiles and found.longest >= exact.longest
    assert estimate([zones], (64, 64)).counts == "bound"


def test_a_bound_counts_the_slabs_that_stand_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    p = pc.window(1, 1, block=64) | pc.global_tokens(range(64)) | pc.random_blocks(3, block=64)
    zones = pc.lower(p, 2**20)
    some = part(zones, quick=True)
    exact = work(some, (64, 64))
    monkeypatch.setattr(cost_work, "MANY_STRIPS", len(some.table))
    found = work(some, (64, 64))
    assert some.sampled and found.counts == "bound"
    assert exact.tiles <= found.tiles <= 1.5 * exact.tiles


def test_zones_that_meet_every_slab_are_not_cut_into_slabs() -> None:
    zones = pc.lower(pc.summary(16), 2**20)
    some = part(zones, quick=True)
    assert len(some.table) == len(zones.table) == 2**16
    assert work(some, (128, 128)).tiles == 2**26  # every tile
    assert pc.compile(pc.summary(16), 2**20).full_tiles == 2**22  # by order, not refused


def test_nothing_to_read_costs_only_the_call() -> None:
    for frame in (Frame.of(0), Frame(5, 0, 0, 0), Frame.of(300)):
        found = estimate([ZoneSet.make(frame, [])], (128, 128))
        assert (found.full, found.partial, found.records) == (0, 0, 0)
        assert found.seconds > 0


# prices


@pytest.mark.parametrize("target", targets())
def test_more_work_costs_more(target: str) -> None:
    def of(p: pc.Pattern, n: int = 8192, **more: Any) -> float:
        return estimate([pc.lower(p, n)], (128, 128), target=target, **more).seconds

    band = pc.causal() & pc.window(1023)
    assert of(band) < of(pc.causal() & pc.window(2047)) < of(pc.causal()) < of(pc.full())
    assert of(band, 4096) < of(band, 8192) < of(band, 2**20)
    assert of(band, head_dim=64) < of(band, head_dim=128)
    assert of(band) <= of(band | pc.global_tokens([0]))
    wide = {b: estimate([pc.lower(pc.window(4, 4), 8192)], b, target=target) for b in CANDIDATES}
    assert wide[64, 64].seconds < wide[128, 128].seconds


@pytest.mark.parametrize("target", targets())
def test_counts_alone_are_priced(target: str) -> None:
    def of(full: int, partial: int, block: tuple[int, int] = (64, 64), **more: Any) -> float:
        return estimate_tiles(full, partial, block, target=target, **more)

    assert 0 == of(0, 0) < of(1, 0) < of(0, 1) <= of(1, 1)
    assert of(10, 0, rows=1) <= of(10, 0, rows=5)
    assert of(10, 0, (64, 64)) < of(10, 0, (128, 64)) < of(10, 0, (256, 256))


def test_masks_of_more_zones_cost_more() -> None:
    found, one = device("sm_90"), Work(0, 10, 10, 10, 1, 10, "bound")
    from patterncc.layout.cost.model import _mask_share

    shares = [_mask_share(replace(one, records=r), found) for r in (10, 15, 20, 30, 40, 60, 900)]
    assert shares == sorted(shares)
    assert shares[0] == found.mask_share["zones1"]
    assert shares[2] == found.mask_share["zones2"]
    assert shares[-1] == found.mask_share["bits"]


def test_an_order_costs_its_copies_and_a_term_its_merge() -> None:
    from patterncc.zones.orders.order import Order

    zones, tokens = pc.lower(pc.chunked(64), 4096), np.arange(4096)
    plain = estimate([zones], (64, 64))
    moved = estimate([zones], (64, 64), order=Order.of("some", tokens))
    assert moved.seconds == pytest.approx(plain.seconds + moved.copy_seconds)
    assert moved.copy_seconds > 0 == plain.copy_seconds
    assert (plain.order, moved.order) == ("token", "some")
    assert in_terms([plain, plain]) == pytest.approx(2 * plain.seconds + plain.merge_seconds)


def test_a_heavy_row_shows_and_a_split_would_help() -> None:
    hub = pc.window(64, 64) | pc.global_tokens([0])
    found = estimate([pc.lower(hub, 2**17)], (128, 128), heads=1)
    assert found.bound == "longest row"
    assert found.split_seconds < 0.5 * found.seconds
    many = estimate([pc.lower(hub, 2**17)], (128, 128), heads=512)
    assert many.bound != "longest row"
    assert many.split_seconds <= many.seconds < found.seconds


def test_heads_are_weighed_by_their_number() -> None:
    narrow, wide = (pc.lower(pc.causal() & pc.window(w), 8192) for w in (127, 4095))
    alike = estimate([narrow, wide], (128, 128)).seconds
    mostly = estimate([narrow, wide], (128, 128), weights=[7, 1]).seconds
    assert mostly < alike


@given(st.integers(0, 40), st.integers(0, 40), st.integers(-50, 50))
def test_causal_pairs(n: int, n_k: int, ahead: int) -> None:
    from patterncc.layout.cost.model import _causal_pairs

    assert _causal_pairs(n, n_k, ahead) == sum(min(n_k, max(0, i + ahead + 1)) for i in range(n))


def test_dense_attention_takes_its_causal_half_where_it_may() -> None:
    n = 16384
    half, whole = (dense_seconds([pc.lower(p, n)]) for p in (pc.causal(), pc.full()))
    assert 0.49 < half / whole < 0.52
    assert dense_seconds([pc.lower(pc.causal(), n), pc.lower(pc.full(), n)]) == whole


# tables


def test_tables_are_whole() -> None:
    assert {"cpu", "sm_80", "sm_90", "sm_100"} <= set(targets())
    for name in targets():
        values = json.loads((TABLES / f"{name}.json").read_text())
        found = Device.of(values, name)
        assert found.target == name
        assert found.measured == (found.basis == "measured")
        if not found.measured:
            assert found.basis == "dense rates published, sparse rates aimed at; nothing measured"
        assert found.sources and all(len(x) > 20 for x in found.sources)
        assert set(found.mask_share) == set(MASKS)
        assert found.pair(64) < found.pair(128) < found.pair(256)
        assert 0 < found.pair(1) <= found.pair(64)


def test_published_figures_come_out_again() -> None:
    """What the sm_90 table was made from: TFLOP/s at head dim 128 of known cases."""
    found, n = device("sm_90"), 16384

    def rate(p: pc.Pattern, block: tuple[int, int]) -> float:
        zones = pc.lower(p, n)
        seconds = estimate([zones], block, head_dim=128).seconds
        return zones.count() * 4 * 128 / seconds / 1e12

    assert rate(pc.causal(), (128, 128)) == pytest.approx(640, rel=0.05)
    assert rate(pc.causal() & pc.window(1023), (128, 128)) == pytest.approx(530, rel=0.05)
    assert rate(pc.random_blocks(32, block=64), (64, 64)) == pytest.approx(450, rel=0.05)
    dense = n * n * 4 * 128 / dense_seconds([pc.lower(pc.full(), n)], head_dim=128) / 1e12
    assert dense == pytest.approx(648, rel=0.01)
    assert found.processors == 132


@pytest.mark.parametrize(
    ("asked", "found"),
    [("sm_80", "sm_80"), ("sm_86", "sm_80"), ("sm_90a", "sm_90"), ("sm_103", "sm_100"),
     ("sm_120", "sm_100"), ("sm_75", "sm_80"), ("cpu", "cpu")],
)  # fmt: skip
def test_an_unknown_device_is_the_nearest(asked: str, found: str) -> None:
    assert device(asked).target == found


@pytest.mark.parametrize("asked", ["", "gpu", "sm_", "sm_x", "h100", "../tables/sm_90", "gfx942"])
def test_what_is_no_device_is_refused(asked: str) -> None:
    with pytest.raises(PatternValueError, match="is not a device; write cpu, sm_100"):
        device(asked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "patterncc.device/2"}, "not a table of a device"),
        ({"processors": 0}, "processors cannot be 0"),
        ({"processors": 1.5}, "processors cannot be 1.5"),
        ({"pair_ns": {}}, "pair_ns cannot be"),
        ({"pair_ns": {"x": 1}}, "pair_ns cannot be"),
        ({"pair_ns": {"64": -1}}, "pair_ns cannot be"),
        ({"step": [128]}, "step cannot be"),
        ({"mask_share": {"zones1": 0.1}}, "mask_share cannot be"),
        ({"tile_pairs": "2"}, "tile_pairs cannot be '2'"),
        ({"call_ns": True}, "call_ns cannot be True"),
        ({"sources": "me"}, "sources cannot be 'me'"),
        ({"bytes_per_second": float("nan")}, "bytes_per_second cannot be nan"),
    ],
)
def test_a_wrong_table_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    values = json.loads((TABLES / "sm_90.json").read_text()) | change
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    with pytest.raises(PatternValueError, match=said) as told:
        device(str(path))
    assert str(path) in str(told.value)


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    values = json.loads((TABLES / "sm_90.json").read_text()) | {"processors": 66}
    path = tmp_path / "mine.json"
    for data in (values, {"bench": "cost", "table": values}):
        path.write_text(json.dumps(data))
        assert device(str(path)).processors == 66
    half = estimate([pc.lower(pc.causal(), 65536)], (128, 128), target=str(path))
    assert half.seconds > 1.9 * estimate([pc.lower(pc.causal(), 65536)], (128, 128)).seconds
    del values["dtype"], values["step"]
    path.write_text(json.dumps(values))
    with pytest.raises(PatternValueError, match="dtype, step missing"):
        device(str(path))
    for text in ("", "[", "[" * 100_000, "x" * (2**20 + 1), "null", "[1]"):
        path.write_text(text)
        with pytest.raises(PatternValueError, match="table"):
            device(str(path))
    with pytest.raises(PatternValueError, match="cannot read"):
        device(str(tmp_path / "none.json"))


# choices


def test_a_tile_is_chosen_for_the_device() -> None:
    wide, narrow = (pc.lower(p, 8192) for p in (pc.causal(), pc.random_blocks(3, block=64)))
    for target in targets():
        assert choose_block([narrow], target=target) == (64, 64)
        best = choose_block([wide], target=target)
        costs = {b: estimate([wide], b, target=target).seconds for b in CANDIDATES}
        assert costs[best] <= NEAR * min(costs.values())


GALLERY = ("bigbird", "longformer", "mistral-7b", "sparse-transformer-fixed", "logsparse",
           "sparse-transformer-strided", "gemma-3", "butterfly", "streaming-llm")  # fmt: skip


@pytest.mark.parametrize("name", GALLERY)
def test_what_is_explained_is_what_is_compiled(name: str) -> None:
    file, n = pc.load(folder() / f"{name}.yaml"), 2048
    found = choices(file.stack, n, **file.bindings)
    layouts = pc.compile(file.stack, n, **file.bindings)
    assert sorted(x for each in found.layers for x in each.layers) == list(range(len(layouts)))
    for each in found.layers:
        layout = layouts[each.layers[0]]
        orders = [t.order.name if t.order else "token" for t in layout.terms]
        assert each.chosen.order == " + ".join(orders)
        assert each.chosen.blocks == tuple(t.block for t in layout.terms)
        assert each.chosen in each.rows
        row = each.chosen
        assert row.full + row.partial >= layout.full_tiles + layout.partial_tiles
        if row.counts == "exact":
            assert (row.full, row.partial) == (layout.full_tiles, layout.partial_tiles)
        if row.classes is not None:
            assert sum(row.classes.values()) == layout.partial_tiles


def test_a_dense_mask_is_said_to_be_dense() -> None:
    (small,) = choices(pc.causal(), 512).layers
    assert small.dense_is_faster and small.causal
    assert "Dense causal attention would be faster" in choices(pc.causal(), 512).text()
    (large,) = choices(pc.causal() & pc.window(255), 65536).layers
    assert not large.dense_is_faster
    assert "times as long" in choices(pc.causal() & pc.window(255), 65536).text()
    (ahead,) = choices(pc.window(255, 255), 4096).layers
    assert not ahead.causal


def test_orders_are_weighed_side_by_side() -> None:
    (found,) = choices(pc.causal() & pc.strided(64), 8192).layers
    orders = {r.order for r in found.rows}
    assert "token" in orders and len(orders) > 1 and found.chosen.order != "token"
    told = choices(pc.causal() & pc.strided(64), 8192).text()
    assert "times as fast as the best in token order" in told
    (kept,) = choices(pc.causal() & pc.strided(64), 8192, order="token").layers
    assert kept.chosen.order == "token"
    (one,) = choices(pc.causal(), 4096, block=(64, 128)).layers
    assert [r.blocks for r in one.rows] == [((64, 128),)]


def test_orders_that_are_refused_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from patterncc.layout.cost import choices as cost_choices

    given = cost_choices.arranged

    def picky(each: Any, order: object, setting: Any) -> Any:
        if order == "residue":
            raise SizeError("far too many")
        return given(each, order, setting)

    monkeypatch.setattr(cost_choices, "arranged", picky)
    found = choices(pc.causal() & pc.strided(64), 8192)
    assert found.layers[0].refused["residue"] == "far too many"
    assert "residue: far too many" in found.text()
    assert found.to_json()["layers"][0]["refused"] == {"residue": "far too many"}


def test_layers_that_only_draw_anew_are_shown_once() -> None:
    stack = pc.Stack([pc.random_blocks(3, block=64)] * 3 + [pc.causal()])
    found = choices(stack, 2048)
    assert [x.layers for x in found.layers] == [(0, 1, 2), (3,)]
    assert "the first of them is shown" in found.text()


# the command


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words])


@pytest.mark.parametrize("name", ["bigbird", "mistral-7b", "sparse-transformer-strided"])
@pytest.mark.parametrize("target", ["cpu", "sm_80", "sm_90", "sm_100"])
def test_explain(name: str, target: str) -> None:
    words = ("compile", name, "--n", 4096, "--target", target, "--explain")
    told = run(*words)
    assert told.exit_code == 0, told.output
    assert "Chosen: " in told.output and "ense" in told.output
    table = device(target)
    assert f"figures: {target}: {table.basis}" in told.output
    assert told.output.count("\n* ") == told.output.count("Chosen: ")
    found = json.loads(run(*words, "--json").output)["choices"]
    assert found["n"] == 4096 and found["device"]["measured"] == table.measured
    for each in found["layers"]:
        seconds = [r["seconds"] for r in each["candidates"]]
        assert seconds == sorted(seconds) and each["chosen"] in each["candidates"]
        assert each["dense_is_faster"] == (each["dense_seconds"] < each["chosen"]["seconds"])
        assert all(r["full_tiles"] + r["partial_tiles"] > 0 for r in each["candidates"])


def test_explain_says_what_stands_for_an_unknown_device() -> None:
    told = run("compile", "mistral-7b", "--n", 4096, "--target", "sm_120", "--explain")
    assert "there is no table for sm_120: the nearest is sm_100" in told.output


def test_explain_refuses_what_compile_refuses() -> None:
    assert run("compile", "mistral-7b", "--n", 4096).exit_code == 2
    for words in (["--target", "tpu"], ["--block", "100"], ["--n", "2**40"]):
        told = run("compile", "mistral-7b", "--n", 4096, "--explain", *words)
        assert told.exit_code == 2 and "Traceback" not in told.output, words


def test_explain_beside_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_command, "_written", lambda *_: ({"n": 256}, "wrote it"))
    words = ("compile", "mistral-7b", "--n", 256, "--explain", "-o", tmp_path / "out")
    told = run(*words)
    assert told.exit_code == 0 and told.output.endswith("\n\nwrote it\n")
    found = json.loads(run(*words, "--json").stdout)
    assert found["choices"]["n"] == found["n"] == 256
    assert found["output"] == str(tmp_path / "out")


# the fit


def test_the_fit_finds_the_figures_that_made_the_times() -> None:
    from patterncc.bench import cost

    known = {"pair": 3e-9, "mask": 0.6e-9, "tile": 2e-6, "run": 9e-6, "row": 4e-6, "call": 1e-4}
    runs = []
    for n in (512, 1024):
        for name, p in cost.fitted(n).items():
            parted = part(pc.lower(p, n))
            for block in cost.BLOCKS:
                made = cost.Run(name, p, n, block, work(parted, block), 1.0)
                seconds = float(np.dot(cost._terms(made), list(known.values())))
                runs.append(replace(made, seconds=seconds))
    found = cost.fit(runs, {64: 3.0, 128: 5.0}, 2)
    assert found["pair_ns"]["64"] == pytest.approx(3.0, rel=0.02)
    assert found["run_pairs"] == pytest.approx(3000, rel=0.1)
    assert found["mask_share"]["bits"] == pytest.approx(0.2, rel=0.1)
    told = cost.checked(runs, found)
    assert told["within_30_percent"] == 1 and told["rank_agreement"] > 0.99
    assert told["chosen_over_best"]["most"] < 1.05
    assert Device.of(found).processors == 2


def test_bench_cost_makes_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from patterncc.bench import cost

    for name, value in {"LENGTHS": (512,), "SHORT": 128, "BLOCKS": ((64, 64), (128, 128))}.items():
        monkeypatch.setattr(cost, name, value)
    monkeypatch.setattr(cost, "copy_speed", lambda: 1e10)
    result = cost.run(repeats=1)
    json.dumps(result, allow_nan=False)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(result))
    assert device(str(path)).measured and device(str(path)).target == "cpu"
    assert {r["order"] for r in result["orders"]} > {"token"}
    told = cost.text(result)
    assert "unseen: predicted over measured" in told and "strides, residue" in told
    found = choices(pc.causal(), 300, target=str(path))
    assert found.asked == str(path) and "figures: cpu: measured" in found.text()


def test_layouts_that_are_built_agree_with_the_estimate() -> None:
    p = pc.causal() & (pc.window(511) | pc.sink(4))
    zones = pc.lower(p, 70_000)
    for block in CANDIDATES:
        layout, found = build([zones], [0], block), estimate([zones], block)
        assert (found.full, found.partial) == (layout.full_tiles, layout.partial_tiles)
        assert found.masked == layout.partial_tiles * block[0] * block[1]
        assert 0.7 < found.bytes / (layout.nbytes - layout.zones.nbytes) < 1.5
