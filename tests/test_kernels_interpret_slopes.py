"""The Triton kernel of slope gradients on rows of few far keys, in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import patterncc as pc
from patterncc.kernels import reference
from patterncc.kernels.score import Score

pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)


def test_slopes_lose_nothing_to_an_output_that_is_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row's dS adds up to 0; were it not so, distances would multiply what is left."""
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path))
    n, layer = 100, pc.window(3) | pc.global_tokens([0, 50])
    make = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, 1, n, 16, generator=make).half() for _ in range(4))
    slopes = torch.tensor([0.01])
    mask = torch.from_numpy(np.array(pc.lower(layer, n, n, 0, head=0).dense()))
    far = torch.arange(n) - torch.arange(n)[:, None]

    def dense(dtype: torch.dtype) -> torch.Tensor:
        own = slopes.to(dtype).requires_grad_()
        score = Score(0.25, slopes=own)
        out, _ = reference.attention(q, k, v, mask, dtype=dtype, score=score, distance=far)
        return torch.autograd.grad(out, own, grad.to(dtype))[0]

    own = slopes.clone().requires_grad_()
    layout = pc.compile(layer, n, block=64)
    out = pc.attention(q, k, v, layout, scale=0.25, alibi_slopes=own, backend="triton")
    (mine,) = torch.autograd.grad(out, own, grad)
    true = dense(torch.float64)
    assert (mine - true).abs() <= 0.02 * (dense(torch.float16) - true).abs()
