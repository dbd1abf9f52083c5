"""Tables of kernel sizes: read and checked, swept offline, timed by a clock that the test holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import patterncc as pc
from patterncc.cli.main import main
from patterncc.kernels.choose import choose, masks_of
from patterncc.kernels.offline import Resources
from patterncc.kernels.plan import SHARED_LIMIT, Plan, Target
from patterncc.kernels.spec import Spec
from patterncc.kernels.tuning import compare as tune
from patterncc.kernels.tuning import sizes, stored, timing
from patterncc.kernels.tuning.candidates import MOST, candidates, keys, plan_for_key
from patterncc.kernels.tuning.sizes import Key, Size, Table

TARGETS: tuple[Target, ...] = ("sm_80", "sm_90", "sm_100")
KEY = Key("forward", "half", 128, (128, 128), "zone")
SPEC = Spec(999, 999, 0, 0, (128, 128), 1, True, 1, False, "", "triton")


def resources(
    plan: Plan, spills: int = 0, shared: int = 1000, stack: int | None = None
) -> Resources:
    limit = SHARED_LIMIT[plan.target]
    stack = 40 * spills if stack is None else stack
    return Resources(plan.target, "3", 100, stack, spills, spills, shared, limit, {})


# --- tables


@pytest.mark.parametrize("target", TARGETS)
def test_shipped_tables_hold_every_key(target: Target) -> None:
    table = sizes.shipped(target)
    assert set(table.rows) == set(keys())
    assert sizes.parse(json.loads(sizes.text(table))).rows == table.rows
    for key, size in table.rows.items():
        assert key.tile[0] % size.bm == 0 and key.tile[1] % size.bn == 0


def test_the_interpreter_has_the_sizes_of_sm_90() -> None:
    assert sizes.shipped("interpreter").rows == sizes.shipped("sm_90").rows


def test_other_tiles_have_the_row_of_the_largest() -> None:
    table = Table(
        "sm_90", "", {KEY: Size(128, 64, 8, 2), KEY._replace(tile=(64, 64)): Size(64, 64, 4, 3)}
    )
    found = {
        t: table.size("forward", "bfloat16", 128, t, "zone")
        for t in [(256, 128), (64, 64), (32, 16)]
    }
    assert found == {
        (256, 128): (128, 64, 8, 2),
        (64, 64): (64, 64, 4, 3),
        (32, 16): (128, 64, 8, 2),
    }
    assert table.size("forward", "float16", 16, (128, 128), "zone") is None
    assert table.size("forward", "bfloat16", 128, (128, 128), "bits") is None


def test_choose_reads_the_given_table_then_the_shipped() -> None:
    table = Table("sm_90", "", {KEY: Size(64, 32, 4, 1)})
    usual = choose("forward", SPEC, "sm_90", "bfloat16", 128, 128)
    given = choose("forward", SPEC, "sm_90", "bfloat16", 128, 128, table=table)
    assert (given.bm, given.bn, given.warps, given.stages) == (64, 32, 4, 1)
    assert replace(given, bm=usual.bm, bn=usual.bn, warps=usual.warps, stages=usual.stages) == usual
    for kind in ("dq", "combine"):
        same = choose(kind, SPEC, "sm_90", "bfloat16", 128, 128, table=table)
        assert same == choose(kind, SPEC, "sm_90", "bfloat16", 128, 128)


def test_head_dims_that_no_kernel_takes_are_refused_by_the_plan() -> None:
    with pytest.raises(pc.PatternValueError, match="head_dim must be 16 to 256, not 512"):
        choose("forward", SPEC, "sm_90", "bfloat16", 512, 512)


def test_masks_are_told_apart_by_what_they_take() -> None:
    classes = [(1, False), (2, False), (4, False), (0, True)]
    assert [masks_of(replace(SPEC, zones=z, bits=b)) for z, b in classes] == [
        *("zone", "zones", "bits", "bits")
    ]


def changed(**changes: Any) -> Callable[[Any], Any]:
    return lambda data: {**data, **changes}


def row(**changes: Any) -> Callable[[Any], Any]:
    return lambda data: {**data, "rows": [{**data["rows"][0], **changes}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: [data], "the file has no 'schema'"),
        (changed(schema=9), "schema 9, this patterncc reads 1"),
        (changed(sources="2"), "sources is '2'"),
        (changed(target="sm_70"), "it is for 'sm_70'"),
        (changed(target="sm_80"), "it is for 'sm_80', not for sm_90"),
        (changed(basis=3), "must be short texts"),
        (changed(rows={}), "rows is a dict"),
        (lambda data: {**data, "rows": data["rows"] * 2}, "says again"),
        (changed(rows=[3]), "row 0 has no 'kind'"),
        (row(kind="import os"), "kind is 'import os'"),
        (row(head_dim=True), "head_dim is True"),
        (row(head_dim=100), "head_dim is 100, not one of"),
        (row(tile=[128]), "tile is"),
        (row(masks=["zone"]), "masks is"),
        (row(size=[128, 128, 8]), "not .queries, keys, warps, stages."),
        (row(size=[128, 128, 8, "2"]), "not .queries, keys, warps, stages."),
        (row(size=[256, 128, 8, 2]), "do not divide a tile"),
        (row(size=[128, 48, 8, 2]), "do not divide a tile"),
        (row(size=[128, 128, 3, 2]), "3 warps and 2 stages"),
        (row(size=[128, 128, 8, 90]), "8 warps and 90 stages"),
    ],
)
def test_files_are_checked(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    path = tmp_path / "t.json"
    data = json.loads(sizes.text(Table("sm_90", "", {KEY: Size(128, 128, 8, 2)})))
    path.write_text(json.dumps(change(data)))
    with pytest.raises(pc.BackendError, match=message) as error:
        sizes.read(path, "sm_90")
    assert str(path) in str(error.value) and "patterncc tune" in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    for content, message in [
        (b"{", "no table"),
        (b"\xff\xfe", "no table"),
        (b"[" * 100_000, "no table"),
        (b" " * (sizes.MAX_BYTES + 1), "more than"),
    ]:
        path.write_bytes(content)
        with pytest.raises(pc.BackendError, match=message):
            sizes.read(path)
    with pytest.raises(pc.BackendError, match="cannot be read"):
        sizes.read(tmp_path / "none.json")


# --- offline


@pytest.mark.parametrize("target", TARGETS)
def test_candidates_are_plans(target: Target) -> None:
    for key in keys(tiles=sizes.TILES):
        found = candidates(key, target)
        usual = sizes.shipped(target).rows[key._replace(tile=sizes.TILES[0])]
        assert usual in found[:1] or key.tile != sizes.TILES[0]
        assert 1 < len(found) <= MOST
        assert len(set(found)) == len(found)
        for size in found:
            plan_for_key(key, size, target)  # which checks itself


def test_a_sweep_takes_the_likeliest_that_does_not_spill() -> None:
    first, second, third, *_ = candidates(KEY, "sm_90")
    used = {first: {"spills": 3}, second: {"shared": 10**6}, third: {}}
    asked = []

    def compiler(source: str, plan: Plan) -> Resources:
        assert plan.digest in source
        asked.append(Size(plan.bm, plan.bn, plan.warps, plan.stages))
        return resources(plan, **used[asked[-1]])

    (found,) = tune.sweep("sm_90", [KEY], compiler=compiler)
    assert found.best.size == third and asked == [first, second, third]
    assert tune.table_of("sm_90", [found]).rows[KEY] == third
    assert [t["clean"] for t in tune.report([found])[0]["trials"]] == [False, False, True]
    assert "128x128  zone" in tune.text([found])


def test_where_all_spill_the_least_is_taken_and_told() -> None:
    def compiler(_: str, plan: Plan) -> Resources:
        if plan.stages == 1:
            raise pc.BackendError("no such thing")
        return resources(plan, spills=plan.bn)

    (found,) = tune.sweep("sm_90", [KEY], compiler=compiler)
    assert len(found.trials) == len(candidates(KEY, "sm_90"))
    assert found.best.spills == 2 * min(t.size.bn for t in found.trials if t.used)
    assert tune.notes_of([found])[KEY]["spill_stores"] > 0


def test_where_none_compiles_the_reason_is_told() -> None:
    def compiler(_: str, plan: Plan) -> Resources:
        raise pc.BackendError("no such instruction")

    with pytest.raises(pc.BackendError, match=r"none of 12 sizes .* no such instruction"):
        tune.sweep("sm_90", [KEY], compiler=compiler)


def test_a_size_is_compiled_once_for_all_tiles() -> None:
    asked = []

    def compiler(_: str, plan: Plan) -> Resources:
        asked.append(plan)
        return resources(plan)

    wanted = keys(("forward",), ("float32",), (256,), sizes.TILES)
    found = tune.sweep("sm_90", wanted, compiler=compiler)
    assert len(found) == len(wanted) == 12
    assert len(asked) == len({(f.key.masks, f.best.size) for f in found})


def test_a_real_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (found,) = tune.sweep("sm_90", [KEY._replace(head_dim=64)])
    assert found.best.clean and len(found.trials) == 1


# --- timed


def test_the_fastest_of_those_that_fit_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    able = candidates(KEY, "sm_90")[1:4]
    ran = []

    def compiler(_: str, plan: Plan) -> Resources:
        return resources(plan, spills=Size(plan.bm, plan.bn, plan.warps, plan.stages) not in able)

    def clock(runs: Sequence[Callable[[], object]], _: torch.device) -> list[float]:
        for run in runs:
            run()
        return [3e-6, 1e-6, 2e-6]

    def prepared(*_: object) -> Callable[[], object]:
        return lambda: ran.append(stored.tuned(torch.device("cpu")))

    monkeypatch.setattr(timing, "prepared", prepared)
    cpu = torch.device("cpu")
    (found,) = timing.timed("sm_90", [KEY], cpu, compiler=compiler, clock=clock)
    assert found.best.size == able[1] and found.best.seconds == 1e-6
    assert [t.rows for t in ran if t is not None] == [{KEY: size} for size in able]
    assert stored.tuned(cpu) is None
    assert tune.notes_of([found])[KEY]["microseconds"] == 1.0
    assert "1.0 us" in tune.text([found])


def test_layouts_that_are_timed_hold_the_masks_of_their_class() -> None:
    for key in keys(("forward",), ("half",), (64,), sizes.TILES):
        assert masks_of(Spec.of(timing.layout_of(key, 2000), "triton")) == key.masks


def test_tables_are_kept_whole_and_used_where_they_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path))
    path, cpu = stored.path_of("Some GPU (80 GB)"), torch.device("cpu")
    assert path == tmp_path / "tuned" / "some-gpu-80-gb.json"
    assert stored.usable(path, cpu) is None and not caplog.records
    monkeypatch.setattr(stored, "target_of", lambda _: "sm_90")
    trial = tune.Trial(Size(64, 64, 4, 2), None, seconds=1e-6)
    table = tune.measured("sm_90", [tune.Found(KEY, trial, (trial,))], "Some GPU", "9.9")
    stored.store(table, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert stored.usable(path, cpu) is None and "run patterncc tune again" in caplog.text
    stored.store(replace(table, triton=stored.triton_version()), path)
    found = stored.usable(path, cpu)
    assert found is not None and found.rows == {KEY: Size(64, 64, 4, 2)}
    assert (found.device, found.basis) == (table.device, table.basis)
    caplog.clear()
    path.write_text("{")
    assert stored.usable(path, cpu) is None and "the shipped sizes are used" in caplog.text


def test_a_table_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pc.BackendError, match="cannot be written"):
        stored.store(sizes.shipped("sm_90"), tmp_path / "file" / "t.json")


def test_artifacts_do_not_know_measured_tables() -> None:
    def manifest() -> dict[str, Any]:
        return pc.Artifact.build(pc.causal(), 512, head_dim=128, resources=False).manifest

    usual = manifest()
    table = Table("sm_90", "", {KEY._replace(masks=m): Size(16, 16, 1, 1) for m in sizes.MASKS})
    with stored.running_at(table):
        assert manifest() == usual


# --- the command


def test_the_command_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "compile_offline", lambda _, plan: resources(plan))
    path = tmp_path / "t.json"
    asked = ["tune", "--offline", "sm_80", "--kind", "dq", "--head-dim", "256", "-o", str(path)]
    answer = CliRunner().invoke(main, asked)
    assert answer.exit_code == 0, answer.output
    assert "dq       half     256" in answer.output and "speed unmeasured" in answer.output
    made = sizes.read(path, "sm_80")
    assert made.rows == sizes.shipped("sm_80").rows and made.basis == tune.OFFLINE
    told = json.loads(CliRunner().invoke(main, [*asked, "--json"]).output)
    assert len(told["keys"]) == 6 and told["wrote"] == str(path)


def test_the_command_without_a_gpu() -> None:
    assert not torch.cuda.is_available()
    answer = CliRunner().invoke(main, ["tune"])
    assert answer.exit_code == 2
    assert "there is no GPU here" in answer.stderr and "--offline sm_90" in answer.stderr
    answer = CliRunner().invoke(main, ["tune", "--offline", "sm_90", "-o", "table.txt"])
    assert answer.exit_code == 2 and "tables are JSON" in answer.stderr


def test_the_command_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is kept where kernels look for it; --help says the rest."""
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path))
    monkeypatch.setattr(timing, "gpu", lambda: (torch.device("cpu"), "Some GPU", "sm_90"))
    trial = tune.Trial(Size(64, 64, 4, 2), None, seconds=2e-6)

    def timed(target: Target, wanted: list[Key], *_: object) -> list[tune.Found]:
        assert target == "sm_90" and {k.width for k in wanted} == {"half"}
        assert {k.head_dim for k in wanted} == {64, 128}
        return [tune.Found(KEY, trial, (trial,))]

    monkeypatch.setattr(timing, "timed", timed)
    told = json.loads(CliRunner().invoke(main, ["tune", "--json"]).output)
    path = stored.path_of("Some GPU")
    assert told["wrote"] == str(path) and told["device"] == "Some GPU"
    table = sizes.read(path, "sm_90")
    assert table.rows == {KEY: trial.size} and table.triton == stored.triton_version()
    assert '"microseconds": 2.0' in path.read_text()
