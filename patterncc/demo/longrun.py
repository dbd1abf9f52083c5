"""One long sequence: a compiled pattern against dense causal attention on the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from patterncc.attend import attention
from patterncc.layout import Layout
from patterncc.zones import ZoneSet


@dataclass(frozen=True)
class Timing:
    """Median seconds of both ways in turn, and the largest difference from masked dense."""

    dtype: str
    what: str
    sparse: float
    dense: float
    difference: float

    @property
    def ratio(self) -> float:
        """How many times faster than dense."""
        return self.dense / self.sparse


def measure(layout: Layout, zones: ZoneSet, dtype: torch.dtype, repeats: int = 3) -> list[Timing]:
    """Forward, then forward and backward, of 8 heads of 64."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(1, 8, layout.n, 64).to(dtype) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()

    def sparse() -> Tensor:
        return attention(q, k, v, layout)

    def dense() -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    out = sparse()
    found = [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]
    truth = _masked_dense(q, k, v, grad, zones)
    gaps = [float((a.float() - b).abs().max()) for a, b in zip(found, truth, strict=True)]
    name = str(dtype).removeprefix("torch.")
    with torch.no_grad():
        forward = _in_turn(sparse, dense, repeats)
    both = _in_turn(
        lambda: torch.autograd.grad(sparse(), (q, k, v), grad),
        lambda: torch.autograd.grad(dense(), (q, k, v), grad),
        repeats,
    )
    return [
        Timing(name, "forward", *forward, gaps[0]),
        Timing(name, "forward + backward", *both, max(gaps)),
    ]


def _in_turn(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Median seconds of two ways, run alternately after one run of each that is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for way, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            way()
            if turn:
                kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def _masked_dense(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, zones: ZoneSet, rows: int = 1024
) -> list[Tensor]:
    """Output and gradients of dense attention under the pattern's own mask, in float32."""
    n, dim = q.shape[2], q.shape[3]
    q, k, v, grad = (x.detach().float() for x in (q, k, v, grad))
    out, dq, dk, dv = (torch.zeros_like(q) for _ in range(4))
    for a in range(0, n, rows):
        b = min(n, a + rows)
        mask = torch.from_numpy(zones.slice(a, b).dense())
        for h in range(q.shape[1]):
            scores = (q[0, h, a:b] @ k[0, h].T) * dim**-0.5
            p = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            out[0, h, a:b] = p @ v[0, h]
            dp = grad[0, h, a:b] @ v[0, h].T
            delta = (grad[0, h, a:b] * out[0, h, a:b]).sum(-1, keepdim=True)
            ds = p * (dp - delta) * dim**-0.5
            dq[0, h, a:b] = ds @ k[0, h]
            dk[0, h] += ds.T @ q[0, h, a:b]
            dv[0, h] += p.T @ grad[0, h, a:b]
    return [out, dq, dk, dv]
