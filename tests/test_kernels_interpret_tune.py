"""What `patterncc tune` times, run once each in the interpreter, and sizes that a table says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

import patterncc as pc
from patterncc.kernels.offline import Resources
from patterncc.kernels.plan import Plan
from patterncc.kernels.tuning import stored, timing
from patterncc.kernels.tuning.candidates import candidates, keys
from patterncc.kernels.tuning.sizes import KINDS, Products, Table

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

CPU = torch.device("cpu")
WORK = timing.Workload(batch=1, heads=1, kv_heads=1, tokens=40, keys=40)


@pytest.fixture(autouse=True)
def _sources(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path_factory.getbasetemp() / "sources"))


def compiler(_: str, plan: Plan) -> Resources:
    fits = plan.bn <= 64
    return Resources(plan.target, "3", 100, 0, 0, 0, 10 if fits else 10**6, 10**5, {})


def clock(runs: Sequence[Callable[[], object]], _: torch.device) -> list[float]:
    runs[0]()
    return [float(k + 1) for k in range(len(runs))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_pass_that_runs(kind: Products) -> None:
    for key in keys((kind,), ("float32",), (64,))[:: 2 if kind in ("forward", "decode") else 3]:
        (found,) = timing.timed("sm_90", [key], CPU, work=WORK, compiler=compiler, clock=clock)
        assert found.best.seconds == 1.0 and found.best.used is not None


def test_kernels_within_a_table_run_at_its_sizes() -> None:
    key = keys(("forward",), ("float32",), (64,))[0]
    layout = pc.compile(pc.causal(), 60, block=64)
    q, k, v = torch.randn(3, 1, 1, 60, 16).unbind()
    usual = pc.attention(q, k, v, layout, backend="triton")
    size = next(x for x in candidates(key, "sm_90") if x.bn != candidates(key, "sm_90")[0].bn)
    with stored.running_at(Table("sm_90", "", {key: size})):
        small = pc.attention(q, k, v, layout, backend="triton")
    assert not torch.equal(small, usual)  # added in another order
    torch.testing.assert_close(small, usual)
