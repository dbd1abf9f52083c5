"""Several terms and orders through the generated kernels, run in Python (TRITON_INTERPRET=1)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import patterncc as pc
from patterncc.kernels import reference
from patterncc.zones import Frame
from patterncc.zones.orders.order import Order
from tests.test_attention_terms import example, in_terms, tensors

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)


def test_terms_through_the_kernels() -> None:
    """Output, LSE and gradients against dense attention in float64; rows 0 .. 3 read nothing."""
    layout, mask = example(Frame(40, 56, 16, 0), heads=4, count=2)
    q, k, v = tensors(40, 56)
    out, lse = pc.attention(q, k, v, layout, enable_gqa=True, return_lse=True, backend="triton")
    exact, exact_lse = reference.attention(q, k, v, mask)
    torch.testing.assert_close(out, exact.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, exact_lse.float(), rtol=1e-4, atol=1e-5)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(out, (q, k, v), grad)
    expected = torch.autograd.grad(exact, (q, k, v), grad.double())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_decode_of_terms_through_the_kernels() -> None:
    """Rows at other positions in each sequence; one that the layout lacks reads nothing."""
    layout, mask = example(Frame(40, 56, 16, 0), heads=4, count=2)
    q, k, v = tensors(40, 56)
    exact, _ = reference.attention(q, k, v, mask)
    rows = torch.stack([q[0, :, 14:16], q[1, :, 38:40]])
    for last in (54, 55):
        at = torch.tensor([30, last], dtype=torch.int32)
        step, lse = pc.attention(
            rows, k, v, layout, enable_gqa=True, position=at, return_lse=True, backend="triton"
        )
        torch.testing.assert_close(step[0], exact[0, :, 14:16].float(), rtol=1e-4, atol=1e-5)
        if last == 54:
            torch.testing.assert_close(step[1], exact[1, :, 38:40].float(), rtol=1e-4, atol=1e-5)
    assert (step[1, :, 1] == 0).all() and (lse[1, :, 1] == -torch.inf).all()


@torch.no_grad()
def test_a_step_copies_only_the_keys_of_its_tile_row() -> None:
    """All else in the copy is NaN here, as torch fills what nobody has written."""
    n = 200
    order = Order.of("by residue", np.argsort(np.arange(n) % 3, kind="stable"))
    mask = pc.lower(pc.window(6, 6), n).dense()
    layout = in_terms(mask[None], np.zeros((n, n), dtype=np.int64), [order])
    q, k, v = tensors(n, n, heads=2)
    exact, _ = reference.attention(q, k, v, torch.from_numpy(mask))
    torch.use_deterministic_algorithms(True)
    try:
        step = pc.attention(q[:, :, 70:71], k, v, layout, position=70, backend="triton")
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(step, exact[:, :, 70:71].float(), rtol=1e-4, atol=1e-5)
