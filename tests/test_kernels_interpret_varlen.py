"""Packed sequences on the generated kernels, interpreted, against dense attention in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import patterncc as pc

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

NEAR = pc.causal() & (pc.window(9) | pc.sink(2))
CASES: dict[str, Any] = {
    "one pattern": lambda: pc.compile_packed(NEAR, [0, 20, 21, 21, 50], total=56, block=32),
    "a pattern each": lambda: pc.compile_packed(
        [pc.causal(), pc.window(3, 3), pc.chunked(8)], [0, 12, 30, 45], block=32
    ),
    "more keys": lambda: pc.compile_packed(pc.causal(), [0, 6, 30], [0, 25, 49], block=32),
}


@pytest.fixture(autouse=True)
def _sources(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path_factory.getbasetemp() / "sources"))


@pytest.mark.parametrize("case", CASES)
def test_packed_sequences(case: str) -> None:
    layout = CASES[case]()
    torch.manual_seed(0)
    q = torch.randn(layout.n, 2, 16)
    k, v = (torch.randn(layout.n_k, 1, 16) for _ in range(2))
    options: dict[str, Any] = {"enable_gqa": True}
    if case != "a pattern each":
        options["alibi_slopes"] = torch.tensor([0.3, 0.1])
    weight = torch.randn(layout.n, 2, 16)

    def passes(backend: str) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out, lse = pc.attention_varlen(
            *leaves,  # type: ignore[call-overload]
            layout,
            return_lse=True,
            backend=backend,
            **options,
        )
        return [out, lse, *torch.autograd.grad((out * weight).sum(), leaves)]

    for got, wanted in zip(passes("triton"), passes("reference"), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
