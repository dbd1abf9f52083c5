"""Routed layouts through the generated kernels, run in Python (TRITON_INTERPRET=1)."""

from __future__ import annotations

import pytest
import torch

import patterncc as pc
from patterncc.kernels import runtime
from patterncc.kernels.routed import RoutedLayout, routed_blocks, routed_clusters
from tests import test_routed_block_tables as blocks
from tests.oracles_routed import block_mask, check_attention, cluster_mask, members_of
from tests.test_routed_device import on_device

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def _sources(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path_factory.getbasetemp() / "sources"))


def drawn(step: int = 0) -> torch.Tensor:
    return members_of(2, 2, 24, 2, 12, [12, 7, 0, 12, 9, 11, 12, 12], step)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("beside", [None, pc.causal() & (pc.window(5) | pc.sink(2))], ids=str)
def test_clusters_on_the_device(causal: bool, beside: pc.Pattern | None) -> None:
    static = None if beside is None else pc.compile(beside, 24, block=16)
    made = on_device(drawn(), 24, static, causal, (16, 16))
    mask = cluster_mask(drawn(), 24, causal, static)
    check_attention(made, mask, 1, torch.float32, backend="triton")


def test_clusters_and_masks_of_keys() -> None:
    made = on_device(drawn(), 24, None, True, (16, 32))
    keys = torch.rand(2, 24, generator=torch.Generator().manual_seed(0)) < 0.6
    mask = cluster_mask(drawn(), 24, True)
    check_attention(made, mask, 2, torch.float32, key_mask=keys, backend="triton")


def test_layouts_made_on_the_host() -> None:
    static = pc.compile(pc.causal() & pc.window(5), 24, block=16)
    made = routed_clusters(drawn(), n=24, static=static, causal=True, block=(16, 32))
    mask = cluster_mask(drawn(), 24, True, static)
    check_attention(made, mask, 1, torch.float32, backend="triton")
    chosen = torch.randint(-1, 3, (2, 2, 3, 2), generator=torch.Generator().manual_seed(0))
    made = routed_blocks(chosen, n=24, block=8, static=static, causal=True)
    mask = block_mask(chosen, 24, 8, 8, True, static)
    check_attention(made, mask, 1, torch.float32, backend="triton")


@pytest.mark.parametrize(("block", "grain"), [(16, 16), (8, 1)])
def test_blocks_on_the_device(block: int, grain: int) -> None:
    static = pc.compile(pc.causal() & (pc.window(5) | pc.sink(2)), 40, block=16)
    shape = (2, 2, -(-40 // grain), 2)
    chosen = torch.randint(-1, 40 // block, shape, generator=torch.Generator().manual_seed(0))
    made = blocks.on_device(chosen, 40, block, grain, static, True)
    mask = block_mask(chosen, 40, block, grain, True, static)
    check_attention(made, mask, 1, torch.float32, backend="triton")


def test_one_head_of_blocks_on_the_device() -> None:
    """A batch of one and no static layout: each of both heads has tables of its own."""
    chosen = torch.tensor([[[[0], [0], [1]], [[0], [1], [2]]]])
    made = blocks.on_device(chosen, 40, 16, 16, None, True, (16, 16))
    mask = block_mask(chosen, 40, 16, 16, True)
    check_attention(made, mask, 2, torch.float32, backend="triton")


def test_further_steps_load_no_new_kernel() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 24, 16, generator=draw).requires_grad_() for _ in range(3))

    def step(layout: RoutedLayout) -> None:
        out = pc.attention(q, k, v, layout, backend="triton")
        torch.autograd.grad(out.sum(), (q, k, v))

    step(on_device(drawn(), 24, None, True, (16, 16)))
    loaded = runtime.kernel.cache_info().misses
    for number in range(1, 4):
        step(on_device(drawn(number), 24, None, True, (16, 16)))
    assert runtime.kernel.cache_info().misses == loaded


def test_a_score_of_positions_goes_with_blocks() -> None:
    chosen = torch.tensor([[[[0], [0], [1]], [[0], [1], [2]]]])
    made = blocks.on_device(chosen, 40, 16, 16, None, True, (16, 16))
    q, k, v = torch.randn(3, 1, 2, 40, 16).unbind()
    slopes = torch.tensor([0.2, 0.1])
    out = pc.attention(q, k, v, made, alibi_slopes=slopes, backend="triton")
    dense = pc.attention(q, k, v, made, alibi_slopes=slopes, backend="reference")
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
