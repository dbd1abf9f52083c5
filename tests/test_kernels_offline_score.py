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


@pytest.mark.parametrize("name", ["softcap", "slopes", "bias", "keys", "sinks"])
def test_forward_on_sm_90_stays_in_registers(name: str) -> None:
    used = compiled("forward", "sm_90", SCORES[name])
    assert used.fits and used.stack == 0 and used.spill_stores == 0
    assert used.tensor_cores.keys() == {"wgmma.mma_async"}


@pytest.mark.parametrize("kind", ["dq", "dkdv"])
def test_every_option_at_once_on_sm_90(kind: Kind) -> None:
    used = compiled(kind, "sm_90", SCORES["all"])
    assert used.fits and used.stack <= 64
    assert used.tensor_cores.keys() == {"wgmma.mma_async"}


@pytest.mark.parametrize("target", ["sm_80", "sm_100"])
def test_every_option_at_once_elsewhere(target: Target) -> None:
    used = compiled("forward", target, SCORES["all"])
    assert used.fits and sum(used.tensor_cores.values()) > 0


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
