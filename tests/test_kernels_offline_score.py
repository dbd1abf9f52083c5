"""Kernels with score options, compiled for GPUs that are not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from patterncc.kernels.choose import choose
from patterncc.kernels.emit import emit
from patterncc.kernels.launch.score import with_options
from patterncc.kernels.offline import Resources, compile_offline
from patterncc.kernels.plan import Kind, Target
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec

SPEC = Spec(5000, 5000, 0, 0, (128, 128), 1, True, 1, False, "", "triton")
HEADS = torch.ones(8)
SCORES = {
    "softcap": Score(1.0, softcap=30.0),
    "slopes": Score(1.0, slopes=HEADS),
    "bias": Score(1.0, bias=torch.ones(8, 65)),
    "keys": Score(1.0, keys=torch.ones(2, 5000, dtype=torch.bool)),
    "sinks": Score(1.0, sinks=HEADS),
    "all": Score(1.0, 30.0, HEADS, torch.ones(8, 65), HEADS, torch.ones(2, 5000, dtype=torch.bool)),
}


@pytest.fixture(autouse=True)
def _own_triton_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(kind: Kind, target: Target, score: Score) -> Resources:
    plan = with_options(choose(kind, SPEC, target, "bfloat16", 128, 128), score)
    return compile_offline(emit(plan), plan)


# docs/scores.md has all; here what spilled before steps were chosen for each target, and what does.
# Target, kind, options: the most registers, bytes of stack and stores there that are let pass.
MOST: list[tuple[Target, Kind, str, tuple[int, int, int]]] = [
    ("sm_80", "forward", "bias", (255, 0, 0)),
    ("sm_80", "dq", "softcap", (255, 16, 3)),
    ("sm_80", "dkdv", "all", (255, 0, 0)),
    ("sm_90", "forward", "slopes", (255, 0, 0)),
    ("sm_90", "forward", "bias", (254, 0, 0)),
    ("sm_90", "forward", "keys", (254, 0, 0)),
    ("sm_90", "dq", "all", (247, 0, 0)),
    ("sm_90", "dkdv", "bias", (255, 32, 8)),
    ("sm_90", "single", "all", (249, 0, 0)),
    ("sm_100", "forward", "slopes", (223, 0, 0)),
    ("sm_100", "dq", "bias", (254, 0, 0)),
    ("sm_100", "dkdv", "all", (244, 0, 0)),
]
INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}


@pytest.mark.parametrize(("target", "kind", "name", "most"), MOST)
def test_registers_and_spills(
    target: Target, kind: Kind, name: str, most: tuple[int, int, int]
) -> None:
    used = compiled(kind, target, SCORES[name])
    found = used.registers, used.stack, used.spill_stores
    assert used.fits and all(x <= limit for x, limit in zip(found, most, strict=True)), found
    assert used.tensor_cores.keys() == {INSTRUCTION[target]}


def test_steps_are_cut_where_a_target_needs_it() -> None:
    steps = {
        (target, kind): (plan.bm, plan.bn)
        for target in ("sm_80", "sm_90", "sm_100")
        for kind in ("forward", "dkdv")
        for plan in [with_options(choose(kind, SPEC, target, "bfloat16", 128, 128), SCORES["bias"])]
    }
    assert steps == {
        ("sm_80", "forward"): (128, 32),
        ("sm_80", "dkdv"): (64, 64),
        ("sm_90", "forward"): (128, 64),
        ("sm_90", "dkdv"): (32, 128),
        ("sm_100", "forward"): (128, 64),
        ("sm_100", "dkdv"): (64, 128),
    }


@pytest.mark.parametrize("kind", ["slopes", "bias"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_gradients_of_options(kind: Kind, target: Target) -> None:
    used = compiled(kind, target, SCORES["all"])
    assert used.fits and used.stack == 0 and sum(used.tensor_cores.values()) > 0


def test_an_absent_option_leaves_no_trace() -> None:
    for kind in ("forward", "dq", "dkdv"):
        plan = choose(kind, SPEC, "sm_90", "bfloat16", 128, 128)
        assert with_options(plan, Score(1.0)) == plan
        source = emit(plan).partition("import triton")[2]
        for word in ("softcap", "slope", "bias_at", "sink", "keys_at", "skew", "limited"):
            assert word not in source
        assert emit(replace(plan, softcap=True)) != emit(plan)
