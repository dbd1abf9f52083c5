"""Plans, emitted sources and the source cache; nothing here runs a kernel.

Rewrite the goldens after a wanted change with: python tests/test_kernels.py
"""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import patterncc as pc
from patterncc.kernels import runtime
from patterncc.kernels.choose import choose
from patterncc.kernels.emit import emit, entry
from patterncc.kernels.fragments import fragment_order, on_their_side
from patterncc.kernels.plan import Kind, Plan
from patterncc.kernels.spec import Spec
from patterncc.kernels.tables import kernel_tables

GOLDEN = Path(__file__).parent / "golden"
BASE = Plan("forward", "sm_90", "bfloat16", 64, 64, (128, 128), 128, 64, 8, 3, zones=1)
PLANS = {
    "forward_window_sm_90": dataclasses.replace(BASE, descriptors=True),
    "forward_full_sm_80": dataclasses.replace(BASE, target="sm_80", zones=0),
    "combine": dataclasses.replace(BASE, kind="combine", bm=16, bn=16, warps=4, stages=1),
    "delta": dataclasses.replace(BASE, kind="delta"),
    "dq_per_head_sm_90": dataclasses.replace(BASE, kind="dq", per_head=True, descriptors=True),
    "dkdv_every_class_sm_80": dataclasses.replace(
        BASE, kind="dkdv", target="sm_80", bm=64, bn=64, zones=4, bits=True, head_dim=80
    ),
    "single_sm_90": dataclasses.replace(BASE, kind="single", bm=64, bn=128, descriptors=True),
    "gather": dataclasses.replace(BASE, kind="gather", bm=64, bn=128, per_head=True),
    "forward_per_sequence_sm_90": dataclasses.replace(
        BASE, per_sequence=True, bits=True, descriptors=True
    ),
    "forward_scored_sm_90": dataclasses.replace(
        BASE, descriptors=True, softcap=True, slopes=True, bias=True, sinks=True, keys=True
    ),
    "bias": dataclasses.replace(BASE, kind="bias", bm=64, bn=16, warps=4, stages=1, bias=True),
    "slopes_placed": dataclasses.replace(
        BASE, kind="slopes", bm=64, bn=16, warps=4, stages=1, slopes=True, placed=True
    ),
    "decode_packed": dataclasses.replace(BASE, kind="decode", bm=16, heads=16, warps=4),
}


def write_goldens() -> None:
    """Emit every golden anew."""
    GOLDEN.mkdir(exist_ok=True)
    for name, plan in PLANS.items():
        (GOLDEN / f"{name}.py").write_text(emit(plan), encoding="utf-8")


@pytest.mark.parametrize("name", PLANS)
def test_golden(name: str) -> None:
    expected = (GOLDEN / f"{name}.py").read_text(encoding="utf-8")
    assert emit(PLANS[name]) == expected, "rewrite with: python tests/test_kernels.py"


def test_goldens_are_complete() -> None:
    assert {path.stem for path in GOLDEN.glob("*.py")} == set(PLANS)


@pytest.mark.parametrize("name", PLANS)
def test_sources_are_python_that_people_can_read(name: str) -> None:
    source = emit(PLANS[name])
    functions = [f.name for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)]
    assert functions[-1] == entry(PLANS[name])
    assert PLANS[name].digest in source
    assert "@" not in source.replace("@triton.jit", "") and "$" not in source
    assert all(len(line) <= 100 and line == line.rstrip() for line in source.splitlines())


def test_a_class_that_is_not_there_leaves_no_trace() -> None:
    traces = {
        "zone": "zones",
        "bits": "bits",
        "word": "",
        "head_pattern": "per_head",
        "listed": "per_sequence",
    }
    bare = emit(dataclasses.replace(BASE, zones=0)).split("import triton", 1)[1]
    assert not any(trace in bare for trace in traces)
    assert "word > 0" not in emit(dataclasses.replace(BASE, full=False))
    assert "word <= zone_count" not in emit(BASE)


def test_emit_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys; from patterncc.kernels.plan import Plan;"
        "from patterncc.kernels.emit import emit;"
        f"emit(Plan.parse('''{BASE.text()}'''));"
        "assert not {'torch', 'triton', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lengths_are_not_in_plans() -> None:
    """Layouts of other lengths and windows share their kernels."""
    layouts = [
        pc.compile(pc.causal() & pc.window(w), n, block=64) for w, n in [(100, 500), (333, 4097)]
    ]
    plans = [
        choose("forward", Spec.of(layout, "triton"), "sm_90", "float16", 64, 64)
        for layout in layouts
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("kind", ["forward", "delta", "dq", "dkdv", "decode"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "interpreter"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_default_sizes_fit_every_tile(kind: Kind, target: str, dtype: str) -> None:
    for dim in (16, 64, 100, 128, 256):
        for block in [(16, 16), (16, 256), (256, 16), (128, 128)]:
            for bits in (False, True):
                spec = Spec(9, 9, 0, 0, block, 1, True, 1, bits, "", "triton")
                plan = choose(kind, spec, target, dtype, dim, dim)  # type: ignore[arg-type]
                assert block[0] % plan.bm == 0 and block[1] % plan.bn == 0
                assert Plan.parse(plan.text()) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "backward"}, "kind must be one of forward, combine, delta"),
        ({"head_dim": 8}, "head_dim must be 16 to 256, not 8"),
        ({"value_dim": 2.0}, "value_dim must be 16 to 256"),
        ({"bm": 96}, "steps of 96 x 64 do not divide tiles of"),
        ({"block": (100, 128)}, "block must be one of 16, 32, 64, 128, 256; it is 100"),
        ({"zones": 3}, "zones must be one of 0, 1, 2, 4; it is 3"),
        ({"warps": 3}, "warps must be one of"),
        ({"full": False, "zones": 0}, "no mask class"),
        ({"full": 1}, "full must be one of False, True; it is 1"),
        ({"target": "sm_80", "descriptors": True}, "descriptors need sm_90"),
    ],
)
def test_plans_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(pc.PatternValueError, match=message):
        dataclasses.replace(BASE, **change)  # type: ignore[arg-type]


def test_plan_text_refuses_unknown_fields() -> None:
    with pytest.raises(pc.PatternValueError, match="unknown field 'speed'"):
        Plan.parse(BASE.text().replace('"kind"', '"speed": 9, "kind"'))


def test_spec_of_a_layout() -> None:
    p = pc.causal() & (pc.window(40) | pc.sink(4))
    layout = pc.compile(pc.heads([p, p, pc.causal(), pc.causal()]), 300, q_offset=5, block=64)
    spec = Spec.of(layout, "triton")
    assert (spec.n, spec.n_k, spec.q_offset, spec.block) == (300, 305, 5, (64, 64))
    assert (spec.patterns, spec.share, spec.full, spec.bits) == (2, 2, True, False)
    assert spec.zones in (1, 2, 4)
    assert Spec.parse(spec.text()) == spec


def test_kernel_tables_count_tiles_and_end_in_sentinels() -> None:
    layout = pc.compile(pc.causal(), 200, block=64)
    spec = Spec.of(layout, "triton")
    made = kernel_tables(layout, spec, torch.device("cpu"))
    run = made[2]
    assert run.shape == (len(layout.rows.run) + 2, 4) and run.dtype == torch.int32
    assert run[-2, 3] == layout.rows.run[:, 1].sum() == 4 + 3 + 2 + 1
    assert torch.equal(run[1:-1, 3] - run[:-2, 3], run[:-2, 1])
    assert made[5].shape[1:] == (spec.zones, 8)


@pytest.mark.parametrize("shape", [(16, 256), (128, 128), (64, 16), (16, 64)], ids=str)
def test_fragment_order_by_its_definition(shape: tuple[int, int]) -> None:
    tiles = np.random.default_rng(0).random((2, *shape)) < 0.5
    for each, words in (
        (tiles, fragment_order(packed(tiles))),
        (tiles.swapaxes(1, 2), fragment_order(on_their_side(packed(tiles), shape[1]))),
    ):
        assert words.shape == (*each.shape[:2], 4 * -(-each.shape[2] // 128))
        for column in range(each.shape[2]):
            group, within = divmod(column, 128)
            t, q, b = within // 8, within % 8 // 2, within % 2
            bit = words.view(np.uint32)[:, :, 4 * group + q] >> np.uint32(2 * t + b) & 1
            assert (bit == each[:, :, column]).all()


def packed(tiles: np.ndarray) -> np.ndarray:
    """Row-major bits as a layout holds them."""
    whole = np.pad(tiles, ((0, 0), (0, 0), (0, -tiles.shape[2] % 32)))
    return np.packbits(whole, axis=-1, bitorder="little").view(np.uint32)


def test_sources_are_kept_under_their_hash(tmp_path: Path) -> None:
    path = runtime.save_source("x = 1\n", "forward", tmp_path / "new")
    assert path.name.startswith("forward-") and path.read_text() == "x = 1\n"
    assert runtime.save_source("x = 1\n", "forward", tmp_path / "new") == path
    assert runtime.load_source(path, "x") == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written is left


def test_an_altered_source_is_refused_and_rewritten(tmp_path: Path) -> None:
    path = runtime.save_source("x = 1\n", "forward", tmp_path)
    path.write_text("x = 2\n")
    with pytest.raises(pc.BackendError, match="does not match its hash; delete it"):
        runtime.load_source(path, "x")
    assert runtime.load_source(runtime.save_source("x = 1\n", "forward", tmp_path), "x") == 1


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pc.BackendError, match=r"cannot be written.*set PATTERNCC_CACHE"):
        runtime.save_source("x = 1\n", "forward", tmp_path / "file")


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path))
    assert runtime.cache_dir() == tmp_path
    monkeypatch.delenv("PATTERNCC_CACHE")
    assert runtime.cache_dir() == Path.home() / ".cache" / "patterncc"


if __name__ == "__main__":
    write_goldens()
