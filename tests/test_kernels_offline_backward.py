"""Backward kernels compiled for GPUs that are not here: spills, shared memory, tensor cores."""

from __future__ import annotations

from pathlib import Path

import pytest
import triton

from patterncc.kernels.choose import choose
from patterncc.kernels.emit import emit
from patterncc.kernels.offline import Resources, compile_offline
from patterncc.kernels.plan import SHARED_LIMIT, Kind, Plan, Target
from patterncc.kernels.spec import Spec

# Bytes a thread; Triton 3.6 keeps more of `single` in local memory on sm_90, at head dim 128.
STACK = {"dq": 0, "dkdv": 64, "single": 0 if triton.__version__ > "3.8" else 112}
MASKS = {"zone": (1, False), "four zones": (4, False), "all": (1, True)}


@pytest.fixture(autouse=True)
def _own_triton_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(kind: Kind, target: Target, dim: int, masks: str = "zone") -> Resources:
    zones, bits = MASKS[masks]
    spec = Spec(5000, 5000, 0, 0, (128, 128), 1, True, zones, bits, "", "triton")
    plan: Plan = choose(kind, spec, target, "bfloat16", dim, dim)
    return compile_offline(emit(plan), plan)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_the_single_pass(target: Target, dim: int) -> None:
    """Five products a step and no spill; with wgmma the one for dQ too."""
    used = compiled("single", target, dim)
    assert used.fits and used.shared <= SHARED_LIMIT[target]
    assert used.stack <= STACK["single"]
    name = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}[target]
    assert set(used.tensor_cores) == {name}


@pytest.mark.parametrize("masks", ["four zones", "all"])
@pytest.mark.parametrize("kind", ["dq", "dkdv", "single"])
def test_every_mask_class_on_sm_90(kind: Kind, masks: str) -> None:
    used = compiled(kind, "sm_90", 128, masks)
    assert used.fits and used.stack <= STACK[kind]
    assert used.tensor_cores.keys() == {"wgmma.mma_async"}


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_sums_of_parts_and_rows(target: Target) -> None:
    for kind in ("gather", "delta"):
        used = compiled(kind, target, 128)  # type: ignore[arg-type]
        assert used.fits and used.stack == 0 and not used.tensor_cores
