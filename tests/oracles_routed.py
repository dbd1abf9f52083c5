"""What a router's choice means, pair by pair, and dense attention under that mask."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

import patterncc as pc
from patterncc.kernels import reference
from patterncc.kernels.routed import RoutedLayout
from patterncc.kernels.score import Score

WIDTH = 16  # of a head


def united(mask: Tensor, causal: bool, static: pc.Layout | None) -> Tensor:
    """The pairs of a choice, causal or not, and the static ones."""
    if causal:
        mask = mask & torch.ones(mask.shape[-2:]).tril().bool()
    return mask if static is None else mask | torch.from_numpy(static.dense())


def cluster_mask(
    members: Tensor, n: int, causal: bool = False, static: pc.Layout | None = None
) -> Tensor:
    """Bool [B, H, n, n]: tokens of one cluster read each other."""
    mask = torch.zeros(*members.shape[:2], n, n, dtype=torch.bool)
    for b, of_sequence in enumerate(members.tolist()):
        for h, of_head in enumerate(of_sequence):
            for cluster in of_head:
                tokens = [t for t in cluster if t >= 0]
                for i in tokens:
                    mask[b, h, i, tokens] = True
    return united(mask, causal, static)


def block_mask(
    chosen: Tensor,
    n: int,
    block: int,
    grain: int,
    causal: bool = False,
    static: pc.Layout | None = None,
) -> Tensor:
    """Bool [B, H, n, n]: queries read the blocks that their group chose."""
    mask = torch.zeros(*chosen.shape[:2], n, n, dtype=torch.bool)
    for b, of_sequence in enumerate(chosen.tolist()):
        for h, of_head in enumerate(of_sequence):
            for group, blocks in enumerate(of_head):
                for x in blocks:
                    if x >= 0:
                        rows = slice(group * grain, (group + 1) * grain)
                        mask[b, h, rows, x * block : (x + 1) * block] = True
    return united(mask, causal, static)


def members_of(
    sequences: int, heads: int, n: int, clusters: int, width: int, sizes: Iterable[int], seed: int
) -> Tensor:
    """Tokens drawn without putting back, so many to each cluster as far as they go."""
    g = torch.Generator().manual_seed(seed)
    members = torch.full((sequences, heads, clusters, width), -1)
    wanted = iter(sizes)
    for of_head in members.flatten(0, 1):
        left = torch.randperm(n, generator=g)
        for cluster in of_head:
            some, left = left.split([size := min(next(wanted), len(left)), len(left) - size])
            cluster[:size] = some.sort().values
    return members


def check_attention(
    layout: RoutedLayout,
    mask: Tensor,
    key_heads: int,
    dtype: torch.dtype,
    seed: int = 0,
    backend: str = "auto",
    **options: Tensor,
) -> None:
    """Outputs, LSE and gradients of q, k and v held to dense float64 attention under the mask."""
    g = torch.Generator().manual_seed(seed)
    sequences, heads, n, _ = mask.shape

    def drawn(count: int) -> Tensor:
        return torch.randn(sequences, count, n, WIDTH, generator=g, dtype=dtype).requires_grad_()

    q, k, v = drawn(heads), drawn(key_heads), drawn(key_heads)
    grad = torch.randn(sequences, heads, n, WIDTH, generator=g, dtype=dtype)
    out, lse = pc.attention(
        *(q, k, v, layout), enable_gqa=True, return_lse=True, backend=backend, **options
    )
    grads = torch.autograd.grad(out, (q, k, v), grad)
    names = {"key_mask": "keys", "sinks": "sinks"}
    score = Score(WIDTH**-0.5, **{names[x]: t for x, t in options.items()})  # type: ignore[arg-type]
    dense, dense_lse = reference.attention(q, k, v, mask, score=score)
    expected = torch.autograd.grad(dense, (q, k, v), grad.double())
    near = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 3e-5}
    torch.testing.assert_close(out.double(), dense, **near)
    torch.testing.assert_close(lse.double(), dense_lse, rtol=1e-5, atol=1e-5)
    for own, one in zip(grads, expected, strict=True):
        torch.testing.assert_close(own.double(), one.double(), **near)
