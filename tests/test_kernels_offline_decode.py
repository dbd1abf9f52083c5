"""The decode kernel compiled for GPUs that are not here: registers, pipeline, order in memory."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from typing import Any, get_args

import pytest

from patterncc.kernels import offline
from patterncc.kernels.choose import choose
from patterncc.kernels.emit import emit
from patterncc.kernels.offline import Resources, compile_offline
from patterncc.kernels.plan import DType, Plan, Target
from patterncc.kernels.spec import Spec

TARGETS = [t for t in get_args(Target) if t != "interpreter"]
COPY = "cp.async.cg.shared.global"  # 16 bytes a thread, past the registers
launched = importlib.import_module("patterncc.kernels.launch.decode")


def plan_of(
    target: Target,
    dim: int,
    rows: int = 16,
    dtype: DType = "bfloat16",
    *,
    zones: int = 1,
    bits: bool = False,
    **more: Any,
) -> Plan:
    """The plan that a launch on the target would use."""
    spec = Spec(5000, 5000, 0, 0, (128, 128), 1, True, zones, bits, "", "triton")
    made = launched._sized(choose("decode", spec, target, dtype, dim, dim, heads=rows))
    return replace(made, **more)


def compiled(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Resources:
    """What it uses; asynchronous copies are counted among its instructions."""
    monkeypatch.setattr(offline, "TENSOR_CORES", (*offline.TENSOR_CORES, COPY))
    return compile_offline(emit(plan), plan)


@pytest.mark.parametrize(
    ("target", "dim", "page"),
    [*((t, 128, 16) for t in TARGETS), ("sm_90", 128, 0), ("sm_90", 64, 64), ("sm_80", 64, 0)],
)
def test_a_loop_of_three_stages(
    target: Target, dim: int, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No spill, and K and V come two steps ahead, in pages too: the loads before the loop and in it
    are all copies past the registers."""
    plan = plan_of(target, dim, page=page)
    used = compiled(plan, monkeypatch)
    assert used.fits and used.stack == used.spill_stores == 0
    a_step = 2 * plan.bn * dim * 2 // (16 * 32 * plan.warps)  # K and V, 16 bytes a thread
    assert used.tensor_cores[COPY] == plan.stages * a_step == 3 * a_step
    assert used.tensor_cores["mma.sync"]
    assert 2 * used.registers * 32 * plan.warps <= 65_536  # two programs a multiprocessor


@pytest.mark.parametrize(("dim", "rows"), [(128, 64), (64, 128)])
def test_more_rows(dim: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a tile may have: groups of heads times rows of a step."""
    used = compiled(plan_of("sm_90", dim, rows, page=16), monkeypatch)
    assert used.fits and used.stack == 0
    assert used.tensor_cores["wgmma.mma_async"]


def test_every_option_and_mask_class(monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict.fromkeys(("softcap", "slopes", "bias", "sinks", "keys", "placed"), True)
    plan = plan_of("sm_90", 128, zones=4, bits=True, per_sequence=True, page=16, **options)
    used = compiled(plan, monkeypatch)
    assert used.fits and used.stack <= 64
    exact = plan_of("sm_80", 128, 32, "float32", zones=2, bits=True)
    assert compiled(exact, monkeypatch).stack <= 64


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_parts_stand_in_memory_before_the_ticket_and_are_read_behind_it(target: Target) -> None:
    """Stores, barrier, a ticket that releases and acquires for the device, barrier, loads that pass
    by the cache of the multiprocessor."""
    plan = plan_of(target, 64, zones=0)
    text = offline.build(emit(plan), plan).asm["ptx"]
    ticket = re.search(r"atom\.global\.gpu\.acq_rel\.add\.\w+|atom\.\S*acq_rel\.gpu\S*add\S*", text)
    assert ticket is not None
    before, after = text[: ticket.start()], text[ticket.end() :]
    stored, waited = before.rindex("st.global"), before.rindex("bar.sync")
    assert stored < waited
    assert after.index("bar.sync") < after.index("ld.global.cg")
    assert "ld.global.cg" not in before
