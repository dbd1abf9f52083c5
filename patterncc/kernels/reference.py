"""Dense attention under a bool mask, in float64: slow, obvious, and the oracle of every kernel.

In tests the mask comes from the pattern alone, never from a layout.  As a backend it takes the
layout's own dense mask, and only small ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patterncc.kernels.cpu.heads import wide
from patterncc.kernels.score import Grads, Score

if TYPE_CHECKING:
    from patterncc.kernels.spec import Spec

LIMIT = 2**24  # entries of a mask that `backend="reference"` accepts


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """out [B, H, n, Dv] and lse [B, H, n], both in `dtype`; differentiable by autograd.

    mask: bool [n, n_k], [H, n, n_k] or [B, H or 1, n, n_k], True means "attend".  A row that reads
    nothing: out 0, lse -inf, gradients 0.

    >>> x = torch.ones(1, 1, 2, 4)
    >>> out, lse = attention(x, x, x, torch.tensor([[True, False], [False, False]]))
    >>> out[0, 0, :, 0].tolist(), lse[0, 0, 1].item()
    ([1.0, 0.0], -inf)
    """
    q, k, v = (x.to(dtype) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    p = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    return p @ v, lse


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec, score: Score
) -> tuple[Tensor, Tensor]:
    """The backend's forward: `tensors` holds one bool mask."""
    out, lse = attention(q, k, v, tensors[0], score.scale)
    return out.to(q.dtype), lse.to(wide(q.dtype))


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
    repeatable: bool = True,
) -> Grads:
    """The backend's gradients, written out: ops run below autograd."""
    group = q.shape[1] // k.shape[1]
    q64, g64 = q.double(), grad_out.double()
    k64, v64 = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    dense, log_sum = attention(q64, k64, v64, tensors[0], score.scale)
    log_sum = log_sum.masked_fill(log_sum == -torch.inf, torch.inf)[..., None]
    logits = q64 @ k64.transpose(-1, -2) * score.scale - log_sum
    p = torch.exp(logits.masked_fill(~tensors[0], -torch.inf))  # what is not read may overflow
    delta = (g64 * dense).sum(-1, keepdim=True)
    ds = p * (g64 @ v64.transpose(-1, -2) - delta) * score.scale
    per_head = ds.transpose(-1, -2) @ q64, p.transpose(-1, -2) @ g64
    grad_k, grad_v = (x.reshape(*k.shape[:2], group, *x.shape[2:]).sum(2) for x in per_head)
    return Grads((ds @ k64).to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype))


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
    position: Tensor,
) -> tuple[Tensor, Tensor]:
    """The backend's decode: the mask's rows at `position` .. of each sequence."""
    first = position.long() - spec.q_offset
    rows = first[:, None] + torch.arange(q.shape[2], device=q.device)
    inside = (rows >= 0) & (rows < spec.n)
    mask = tensors[0][(None,) * (4 - tensors[0].dim())].expand(len(q), -1, -1, -1)
    place = rows.clamp(0, max(0, spec.n - 1))[:, None, :, None]
    mask = mask.gather(2, place.expand(-1, mask.shape[1], -1, spec.n_k))
    out, lse = attention(q, k, v, mask & inside[:, None, :, None], score.scale)
    return out.to(q.dtype), lse.to(wide(q.dtype))
