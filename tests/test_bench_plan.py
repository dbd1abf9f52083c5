"""`patterncc bench plan` against dense masks, and against FlexAttention's own create_block_mask."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

import patterncc as pc
from patterncc.bench import build, masks, plan, plan_flex, report
from patterncc.bench.plan_counts import Shape, lines_of, measure, weights
from patterncc.kernels.work import WorkList, makespan, work_list

N = 640
SHAPE = Shape(4, 4, 64)
GALLERY = [m for m in masks.gallery_masks(N) if m.name != "retrieval, layer 0"]
GRID = [*masks.grid(N), masks.irregular(N, 0.5)]
RAGGED = [m for m in masks.grid(600) if m.name in ("full", "causal", "window 1025 + 64 globals")]


def dense(mask: masks.Mask) -> NDArray[np.bool_]:
    """[heads or 1, n, n_k], from the pattern alone."""
    patterns = getattr(mask.layer, "patterns", (mask.layer,))
    each = [
        pc.lower(
            p, mask.n, q_offset=mask.memory, layer=mask.index, head=h, **_own(p, mask.bindings)
        ).dense()
        for h, p in enumerate(patterns)
    ]
    return np.stack(each)


def _own(pattern: pc.Pattern, bindings: dict[str, Any]) -> dict[str, Any]:
    from patterncc.zones.lower import names_in

    return {k: v for k, v in bindings.items() if k in names_in([pattern])}


def tiles(seen: NDArray[np.bool_], rows: int, keys: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """(touched, full) of every tile; queries that are not there are no reason for a mask."""
    n, n_k = seen.shape
    touched = np.zeros((-(-n // rows), -(-n_k // keys)), dtype=bool)
    full = touched.copy()
    for r, c in np.ndindex(touched.shape):
        tile = seen[r * rows : (r + 1) * rows, c * keys : (c + 1) * keys]
        touched[r, c], full[r, c] = tile.any(), tile.all() and tile.shape[1] == keys
    return touched, full


@pytest.mark.parametrize("mask", [*GALLERY, *GRID, *RAGGED], ids=lambda m: m.name)
def test_our_tiles_are_those_of_the_dense_mask(mask: masks.Mask) -> None:
    layout = masks.laid_out(mask, order="token")
    heads = dense(mask)
    found = plan._ours(layout, replace(SHAPE, heads=len(heads), kv_heads=len(heads)), 7)
    each = [tiles(seen, *layout.block) for seen in heads]
    touched, full = (sum(int(t[k].sum()) for t in each) for k in (0, 1))
    forward, area = found["forward"], layout.block[0] * layout.block[1]
    assert (forward["tiles"], forward["full_tiles"]) == (touched, full)
    assert forward["masked_pairs"] == (touched - full) * area
    assert forward["multiply_adds"] == 2 * touched * area * 64
    assert found["backward"]["repeatable"]["multiply_adds"] == 7 * touched * area * 64
    assert found["backward"]["single_pass"]["multiply_adds"] == 5 * touched * area * 64
    assert forward["empty_lines"] == sum(int((~t.any(axis=1)).sum()) for t, _ in each)
    case = plan.case(mask, SHAPE, 7)
    assert case["edges"] == heads.sum() * case["shape"]["heads"] // len(heads)


@pytest.mark.parametrize("mask", [*GALLERY, *GRID, *RAGGED], ids=lambda m: m.name)
def test_flex_blocks_are_those_of_create_block_mask(mask: masks.Mask) -> None:
    layout = masks.laid_out(mask)
    blocks = plan.flex_blocks(mask, layout, 1)
    made = block_mask(torch.from_numpy(dense(mask)))
    heads = blocks.heads
    assert np.array_equal(blocks.rows.masked[heads], made.kv_num_blocks[0])
    assert np.array_equal(blocks.rows.full[heads], made.full_kv_num_blocks[0])
    assert np.array_equal(blocks.cols.masked[heads], made.q_num_blocks[0])
    assert np.array_equal(blocks.cols.full[heads], made.full_q_num_blocks[0])
    tables = [x for x in vars(made).values() if isinstance(x, torch.Tensor)]
    assert plan_flex.table_bytes(blocks) == sum(x.nbytes for x in tables)


def block_mask(pairs: torch.Tensor) -> BlockMask:
    heads, n, n_k = pairs.shape

    def mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        return pairs[h, i, j]

    return create_block_mask(mod, 1, heads, n, n_k, device="cpu", BLOCK_SIZE=128)


@pytest.mark.parametrize("mask", [m for m in GRID if m.mod], ids=lambda m: m.name)
def test_mask_functions_written_by_hand_are_the_patterns(mask: masks.Mask) -> None:
    assert mask.mod is not None
    i, zero = torch.arange(N), torch.tensor(0)
    seen = mask.mod("cpu")(zero, zero, i[:, None], i[None]).expand(N, N)
    assert np.array_equal(seen, dense(mask)[0])


def test_pairs_of_routing_are_counted_block_by_block() -> None:
    (mask,) = (m for m in masks.gallery_masks(N) if m.name == "routing")
    assert mask.pairs is not None
    seen = dense(mask)[[0, -1]].reshape(2, 5, 128, 5, 128)
    assert np.array_equal(mask.pairs(), seen.sum(axis=(2, 4)))
    layout = masks.laid_out(mask)
    slow = plan_flex.from_layout(masks.laid_out(mask, 128, "token"), 2)
    fast = plan_flex.from_pairs(mask.pairs(), N, layout.head_pattern.astype(np.int64), 2)
    assert plan_flex.counts(fast, SHAPE, 7) == plan_flex.counts(slow, SHAPE, 7)


def test_bytes_are_those_of_a_walk_over_the_tiles() -> None:
    """Queries and outputs once a row, keys and values once a tile, and the other way round."""
    layout = pc.compile(pc.causal() & pc.window(99), 512, block=(128, 64))
    shape, size = Shape(4, 2, 32), 2 * 32
    rows, cols = (lines_of(r, weights(layout, 4)) for r in (layout.rows, layout.cols))
    counted = dict.fromkeys(("forward", "dq", "dkdv", "single"), 0)
    for _ in range(4):
        for line in range(layout.lines):
            reads = layout.rows.run[layout.rows.ptr[line] : layout.rows.ptr[line + 1], 1].sum()
            counted["forward"] += 128 * (2 * size + 4) + reads * 64 * 2 * size
            counted["dq"] += 128 * (3 * size + 8) + reads * 64 * 2 * size
        for line in range(layout.columns):
            reads = layout.cols.run[layout.cols.ptr[line] : layout.cols.ptr[line + 1], 1].sum()
            streamed = reads * 128 * (2 * size + 8)
            counted["dkdv"] += streamed
            counted["single"] += streamed + reads * 128 * 32 * 4
        counted["single"] += 512 * 32 * (4 + 4 + 2)  # sums cleared, read, rounded
    for kind in ("dkdv", "single"):
        counted[kind] += 2 * 512 * 4 * size  # two key heads
    for kind, size in counted.items():
        lines = rows if kind in ("forward", "dq") else cols
        found = measure(kind, lines, layout.block, shape, frame=(512, 512)).to_dict()
        assert found["bytes"] == size, kind


def slow_finish(costs: list[float], processors: int) -> float:
    free = [0.0] * processors
    for cost in costs:
        first = free.index(min(free))
        free[first] += cost
    return max(free)


def test_the_simulation_is_a_list_schedule() -> None:
    costs = np.random.default_rng(0).integers(0, 30, 200).astype(float).tolist()
    assert plan_flex.finish(costs, 7) == slow_finish(costs, 7)
    blocks = plan.flex_blocks(GRID[3], masks.laid_out(GRID[3]), 2)
    even = plan_flex.counts(blocks, Shape(2, 1, 64), 3)
    row, col = ((x.full + x.masked)[0].tolist() for x in (blocks.rows, blocks.cols))
    assert even["forward_balance"]["time"] == slow_finish([t + 1 for t in row * 2], 3)
    backward = [2 * 2 * t + 1 for t in col] + [1.5 * t + 1 for t in row * 2]
    assert even["backward_balance"]["time"] == slow_finish(backward, 3)


def test_our_balance_is_that_of_the_work_list() -> None:
    layout = pc.compile(pc.window(64, 64) | pc.global_tokens(range(8)), 4096, block=128)
    work: WorkList = work_list(layout.rows, layout.head_pattern, layout.lines, 16, 7)
    time, ideal = makespan(work, 16, 7, 16)  # keys and values of all heads take 16 MiB
    found = plan._ours(layout, Shape(16, 16, 64), 7)["forward_balance"]
    assert (found["time"], found["ideal"]) == (time, ideal)


def test_every_gallery_pattern_is_within_the_goal_or_says_why() -> None:
    result = plan.run(n=4096, heads=4, head_dim=64, processors=33)
    assert json.loads(json.dumps(result)) == result
    for case in result["cases"]:
        even = case["ours"]["forward_balance"]
        assert ("why" in even) == (even["over_ideal"] > plan.GOAL), case["case"]
    assert {c["group"] for c in result["cases"]} == {"gallery", "grid"}
    shown = plan.text(result)
    assert "not measured" in shown and all(c["case"] in shown for c in result["cases"])


def test_only_some_masks() -> None:
    result = plan.run(n=1024, only="window 1024")
    assert [c["case"] for c in result["cases"]] == ["window 1024", "window 1024, GQA 8:1"]


PAGE = Path(__file__).parent.parent / "docs" / "benchmarks"


def test_the_page_says_what_the_files_hold(tmp_path: Path) -> None:
    for path in PAGE.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    report.run(folder=tmp_path)
    for name in (report.PAGE, report.PICTURE):
        held = (PAGE / name).read_text(encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == held, "run patterncc bench report"


def test_what_was_not_measured_is_unmeasured() -> None:
    found = report.files(PAGE)
    if "gpu" not in found:
        assert report.generated(found).count("| unmeasured | unmeasured |") == len(report.GOALS)
    assert not found["plan"]["measured_on_a_gpu"]
    row = {"case": "causal, forward", "way": "forward", "mask": "causal", "head_dim": 128}
    row |= {"seconds": {"ours": {"median": 1e-3}, "flex": {"median": 5e-4}}}
    row |= {"tflops": {"ours": 500.0}, "ratio": {"flex": 0.5, "sdpa flash": 0.8}, "not_run": {}}
    failed = {**row, "case": "full, forward", "mask": "full", "seconds": {}, "ratio": {}}
    failed["not_run"] = {"ours": "wrong: out is off"}
    gpu = {"device": "H100", "versions": {"torch": "2.11"}, "cases": [row, failed]}
    shown = report.generated({"gpu": gpu})
    assert "| 500 TFLOP/s | 0.50x |" in shown and "flex 0.50 (lost)" in shown
    assert "failed | wrong: out is off" in shown and "No GPU" not in shown


def test_a_folder_without_a_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pc.PatternValueError, match="--folder"):
        report.run(folder=tmp_path)


def test_building_a_kernel_is_timed() -> None:
    result = build.run(repeats=1, only="delta")
    assert json.loads(json.dumps(result)) == result
    (case,) = result["cases"]
    assert case["case"] == "delta" and set(case["seconds"]) == {"cold", "source", "cached"}
    assert "delta" in build.text(result) and build.run(only="none such")["cases"] == []
