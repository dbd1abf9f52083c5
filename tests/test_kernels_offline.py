"""Kernels compiled for GPUs that are not here: shared memory, spills and tensor cores."""

from __future__ import annotations

from pathlib import Path

import pytest

import patterncc as pc
from patterncc.kernels.choose import choose
from patterncc.kernels.emit import emit
from patterncc.kernels.offline import Resources, compile_offline
from patterncc.kernels.plan import SHARED_LIMIT, Kind, Plan, Target
from patterncc.kernels.spec import Spec

STACK = {"forward": 0, "dq": 0, "decode": 0, "dkdv": 64}  # bytes a thread, on sm_80 and sm_90


@pytest.fixture(autouse=True)
def _own_triton_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def default(kind: Kind, target: Target, dim: int, *, zones: int = 1, bits: bool = False) -> Plan:
    spec = Spec(5000, 5000, 0, 0, (128, 128), 1, True, zones, bits, "", "triton")
    return choose(kind, spec, target, "bfloat16", dim, dim, heads=16 if kind == "decode" else 1)


def compiled(plan: Plan) -> Resources:
    return compile_offline(emit(plan), plan)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("kind", ["forward", "dq", "dkdv", "decode"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_default_sizes(target: Target, kind: Kind, dim: int) -> None:
    used = compiled(default(kind, target, dim))
    assert used.shared <= SHARED_LIMIT[target] and used.fits
    assert used.stack <= max(STACK[kind], 64 if target == "sm_100" else 0)
    assert sum(used.tensor_cores.values()) > 0
    if target == "sm_90" and kind != "decode":
        assert set(used.tensor_cores) == {"wgmma.mma_async"}


FORWARD = {
    ("sm_80", 64): (255, 65_536),
    ("sm_80", 128): (233, 73_728),
    ("sm_90", 64): (220, 114_744),
    ("sm_90", 128): (252, 163_872),
    ("sm_100", 64): (255, 122_976),
    ("sm_100", 128): (255, 165_952),
}
"""The most registers and shared memory of the forward kernel with any masks, as recorded."""
CLASSES = [(0, False), (1, False), (2, False), (0, True), (4, True)]


@pytest.mark.parametrize(("zones", "bits"), CLASSES)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_forward_with_every_mask_class(target: Target, zones: int, bits: bool) -> None:
    """Both ends of an item, to the output and to its slot, and no register reaches memory."""
    dim = 128 if target == "sm_90" or zones == 2 else 64
    used = compiled(default("forward", target, dim, zones=zones, bits=bits))
    registers, shared = FORWARD[target, dim]
    assert used.registers <= registers and used.shared <= shared
    assert used.stack <= (8 if target == "sm_100" else 0)  # 8 with Triton 3.6, 0 since


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_the_merge_of_cut_rows_is_small(target: Target) -> None:
    used = compiled(default("combine", target, 128))
    assert used.stack == 0 and used.registers <= 64 and used.shared <= 64


@pytest.mark.parametrize("kind", ["forward", "dq", "dkdv"])
def test_every_mask_class_on_sm_90(kind: Kind) -> None:
    used = compiled(default(kind, "sm_90", 128, bits=True))
    assert used.fits and used.stack <= STACK[kind]
    assert used.tensor_cores.keys() == {"wgmma.mma_async"}


@pytest.mark.parametrize("kind", ["forward", "dq", "dkdv", "decode"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_a_pattern_for_each_sequence(kind: Kind, target: Target) -> None:
    """What every layout of documents asks for: full tiles, one zone, bits."""
    spec = Spec(5000, 5000, 0, 0, (128, 128), 3, True, 1, True, "", "triton", sequences=8)
    plan = choose(kind, spec, target, "bfloat16", 64, 64, heads=16 if kind == "decode" else 1)
    used = compiled(plan)
    assert plan.per_sequence and used.fits
    assert used.stack <= max(STACK[kind], 64 if target == "sm_100" else 0)


def test_a_source_that_does_not_compile_is_named() -> None:
    plan = default("forward", "sm_90", 64)
    broken = emit(plan).replace("tl.program_id(0)", "tl.no_such_function(0)")
    with pytest.raises(pc.BackendError, match=f"cannot compile plan {plan.digest} for sm_90"):
        compile_offline(broken, plan)


def test_the_interpreter_is_no_target() -> None:
    plan = default("forward", "interpreter", 64)
    with pytest.raises(pc.BackendError, match="sm_80, sm_90 or sm_100"):
        compile_offline(emit(plan), plan)
