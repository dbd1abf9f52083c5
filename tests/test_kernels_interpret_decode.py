"""The decode kernel in Triton's interpreter, held to float64 attention written from the pattern.

Keys fall to several programs here although they are few: `LEAST` is lowered.  What the kernel must
write is NaN before, and so are the slots that no row of a step reads.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles_decode import Step, step_of
from torch import Tensor

import patterncc as pc
from patterncc.kernels import runtime
from patterncc.kernels.plan import Plan

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

launched = importlib.import_module("patterncc.kernels.launch.decode")
OPTIONS = ("softcap", "alibi_slopes", "relative_bias", "sinks", "key_mask")
WINDOW = pc.causal() & (pc.window(40) | pc.sink(3))
HEADS = [pc.causal(), pc.causal(), WINDOW, pc.window(4)]

Call = tuple[Plan, int, dict[str, Any]]


@pytest.fixture(autouse=True)
def calls(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Few keys a program, NaN where a kernel writes; the launches are listed."""
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path_factory.getbasetemp() / "sources"))
    monkeypatch.setattr(launched, "LEAST", 16)
    new_empty, launch, made = Tensor.new_empty, launched.launch, []

    def poisoned(self: Tensor, *shape: Any, **more: Any) -> Tensor:
        made = new_empty(self, *shape, **more)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    def listed(plan: Plan, programs: int, arguments: dict[str, Any]) -> None:
        made.append((plan, programs, arguments))
        launch(plan, programs, arguments)

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    monkeypatch.setattr(launched, "launch", listed)
    return made


def run(step: Step, k: Tensor, v: Tensor, table: Tensor | None = None) -> Any:
    """The public call, out and lse; every launch leaves its tickets at zero."""
    given = {"enable_gqa": True, "position": step.position, "key_lengths": step.lengths}
    given |= {"block_table": table, "return_lse": True, "backend": "triton"}
    found = pc.attention(step.q, k, v, step.layout, **given, **step.options)
    assert not any(x.any() for x in launched._tickets.values())
    return found


def check(step: Step, page: int = 16, rounding: float = 1e-5) -> None:
    """In one piece and in pages, within rounding of float64, and equal to the bit."""
    whole, paged = run(step, *step.poisoned()), run(step, *step.paged(page))
    for got, exact in zip(whole, step.exact(), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=rounding)
    for a, b in zip(whole, paged, strict=True):
        assert torch.equal(a, b)


STEPS: dict[str, tuple[Any, ...]] = {
    "one row": (WINDOW, 90, 1, (2, 2), [50, 89], [90, 80]),
    "groups of 3, rows in two tile rows": (WINDOW, 60, 4, (6, 2), [14, 55], [60, 30]),
    "groups of 5, two tiles of rows": (pc.causal(), 40, 7, (5, 1), [12, 33]),
    "groups of 8": (pc.causal(), 60, 2, (8, 1), [57]),
    "patterns of heads": (pc.heads(HEADS), 50, 3, (4, 2), [14, 40]),
    "patterns within groups": (pc.heads(HEADS), 50, 2, (4, 1), [47]),
    "bits": (pc.random_edges(5, seed=1) & pc.causal(), 50, 3, (2, 1), [14, 47], [50, 20]),
    "bits and zones": (pc.random_edges(5, seed=1) | pc.prefix(20), 50, 2, (2, 1), [15], [44]),
    "many zones": (pc.window(5) | pc.global_tokens([3, 40]), 70, 2, (2, 1), [40, 3]),
    "nothing to read": (pc.window(3) & ~pc.prefix(30), 60, 3, (2, 1), [2, 26], [60, 29]),
    "no key counts": (pc.causal(), 40, 1, (1, 1), [20, 30], [0, -3]),
    "not all rows in the layout": (pc.causal(), 40, 3, (3, 1), [-2, 38]),
    "no row in the layout": (pc.causal(), 40, 2, (2, 1), [-7, 2**31 - 1]),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps(name: str) -> None:
    check(step_of(*STEPS[name], block=16, seed=len(name)))


@pytest.mark.parametrize("page", [16, 64])
def test_pages_smaller_and_larger_than_a_step(page: int) -> None:
    check(step_of(WINDOW, 150, 2, (2, 1), [100, 148], [150, 140], block=(16, 64)), page)


@pytest.mark.parametrize("option", ["alibi_slopes", "sinks", "key_mask", "all"])
def test_options(option: str) -> None:
    options = OPTIONS if option == "all" else (option,)
    check(step_of(WINDOW, 60, 2, (6, 2), [30, 57], [60, 50], options=options, block=16))


def test_an_offset_and_a_wide_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "target_of", lambda device: "sm_90")
    more: dict[str, Any] = {"options": ("alibi_slopes",), "dims": (20, 80), "q_offset": 30}
    step = step_of(WINDOW, 30, 2, (2, 1), [44, 58], **more, dtype=torch.float16, block=32)
    check(step, rounding=4e-3)


def test_a_mask_for_each_sequence() -> None:
    ids = np.array([[0] * 20 + [1] * 40, [0] * 60, [0] * 45 + [-1] * 15])
    same = (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, :, None]
    step = step_of(pc.causal(), 60, 2, (4, 2), [21, 40, 44], [60, 30, 60], block=16)
    layout = pc.compile(pc.causal(), 60, doc_ids=ids, block=16)
    check(
        replace(step, layout=layout, mask=torch.from_numpy(same & np.tri(60, dtype=bool))[:, None])
    )


def test_terms_in_orders_of_their_own() -> None:
    pattern = pc.causal() & (pc.strided(8) | pc.window(5))
    more: dict[str, Any] = {"block": 16, "order": "residue", "options": ("alibi_slopes", "sinks")}
    step = step_of(pattern, 48, 1, (2, 1), [30, 47], [29, 48], **more)
    assert any(term.order is not None for term in step.layout.terms)
    check(step)


LONG = step_of(pc.causal(), 200, 2, (2, 1), [120, 197], block=32)


def test_parts_are_merged_in_their_order_whoever_comes_last(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import interpreter_builder

    forwards = run(LONG, LONG.k, LONG.v)
    _, programs, given = calls[-1]
    assert given["splits"] == 7 and programs == 2 * given["laps"] * 7 == 28
    assert int(given["part_m"].isfinite().any(-1).sum()) == 4 + 7  # the tiles of the two lines
    set_grid_idx = interpreter_builder.set_grid_idx

    def backwards(x: int, y: int, z: int) -> None:
        set_grid_idx(interpreter_builder.grid_dim[0] - 1 - x, y, z)

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", backwards)
    for a, b in zip(forwards, run(LONG, LONG.k, LONG.v), strict=True):
        assert torch.equal(a, b)
    monkeypatch.setattr(launched, "LEAST", 2**20)  # nothing is cut
    for a, b in zip(forwards, run(LONG, LONG.k, LONG.v), strict=True):
        torch.testing.assert_close(a, b)
    assert calls[-1][2]["splits"] == 1 and not calls[-1][2]["part_out"].numel()


def test_active_tiles_are_split_evenly(calls: list[Call]) -> None:
    """Parts follow the tiles that a row reads, not how far apart they stand."""
    pattern = pc.causal() & (pc.sink(64) | pc.window(15))
    step = step_of(pattern, 400, 1, (1, 1), [399], block=16, dims=(16, 16))
    run(step, *step.poisoned())
    given = calls[-1][2]
    assert given["splits"] == 6  # 4 tiles of sinks, 2 of the window, of which this row reads one
    assert given["part_m"][:, 0].isfinite().tolist() == [True] * 4 + [False, True]


def test_a_launch_follows_from_shapes_alone(calls: list[Call]) -> None:
    """What a graph would replay: the same kernel, programs and numbers at any position."""
    step = step_of(WINDOW, 90, 2, (4, 2), [50, 70], [90, 60], block=16)
    later = replace(step, position=torch.tensor([3, 88]).int(), lengths=torch.tensor([9, 90]).int())
    for each in (step, later):
        run(each, *each.paged(32, seed=int(each.position[0])))
    (plan, programs, first), (other, others, second) = calls
    assert (plan, programs) == (other, others)
    numbers = [{k: x for k, x in c.items() if isinstance(x, int | float)} for c in (first, second)]
    assert numbers[0] == numbers[1]


def test_heads_that_share_a_key_head_and_a_pattern_stand_in_one_tile(calls: list[Call]) -> None:
    """Keys are read once for them: the programs of a step, and how many heads each packs."""
    cases: list[tuple[Any, tuple[int, int], int, int, int]] = [
        (pc.causal(), (3, 1), 1, 3, 1),
        (pc.causal(), (10, 2), 1, 5, 2),
        (pc.causal(), (16, 1), 2, 16, 1),
        (pc.heads([pc.causal()] * 4 + [WINDOW] * 4), (8, 2), 1, 4, 2),
        (pc.heads([pc.causal()] * 2 + [WINDOW] * 2), (4, 1), 1, 2, 2),
        (pc.heads([pc.causal(), WINDOW] * 2), (4, 1), 1, 1, 4),
    ]
    for pattern, heads, rows, pack, units in cases:
        step = step_of(pattern, 20, rows, heads, [10], block=32, dims=(16, 16))
        check(step)
        _, programs, given = calls[-1]
        assert (given["pack"], given["units"]) == (pack, units)
        assert programs == units * given["chunks"] * given["laps"] * given["splits"]
        assert given["chunks"] == 1 and given["splits"] == 1


def test_a_cache_is_never_copied(calls: list[Call]) -> None:
    """Strides of any kind, but for a last axis with gaps, are the kernel's business."""
    step = step_of(WINDOW, 60, 1, (2, 1), [50], dims=(16, 16), block=16)
    k, v, table = step.paged(16)
    both = torch.stack([k, v], 1).transpose(2, 3).contiguous()  # [pages, 2, page, heads, dim]
    views = both[:, 0].transpose(1, 2), both[:, 1].transpose(1, 2)
    for a, b in zip(run(step, *views, table), run(step, k, v, table), strict=True):
        assert torch.equal(a, b)
    assert calls[0][2]["k"].data_ptr() == both.data_ptr()
