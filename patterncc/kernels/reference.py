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
    *,
    score: Score | None = None,
    distance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out [B, H, n, Dv] and lse [B, H, n], both in `dtype`; differentiable by autograd.

    mask: bool [n, n_k], [H, n, n_k] or [B, H or 1, n, n_k], True means "attend".  A row that reads
    nothing: out 0, lse -inf, gradients 0.  score: options, and its scale in place of `scale`.
    distance: key position minus query position, integers [n, n_k] or [B, 1, n, n_k]; default j - i.

    >>> x = torch.ones(1, 1, 2, 4)
    >>> out, lse = attention(x, x, x, torch.tensor([[True, False], [False, False]]))
    >>> out[0, 0, :, 0].tolist(), lse[0, 0, 1].item()
    ([1.0, 0.0], -inf)
    """
    q, k, v = (x.to(dtype) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    score = score or Score(1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    distance = _distance(q, k) if distance is None else distance
    mask = _readable(mask, score)
    scores = _scores(q, k, score, distance)[0].masked_fill(~mask, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    if score.sinks is not None:
        lse = torch.logaddexp(lse, score.sinks.to(dtype)[:, None])
    p = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    return p @ v, lse


def _distance(q: Tensor, k: Tensor, skew: int = 0) -> Tensor:
    """Key position minus query position, [n, n_k]; skew: that of their first."""
    keys = torch.arange(k.shape[2], device=k.device) + skew
    return keys - torch.arange(q.shape[2], device=q.device)[:, None]


def _distance_of(q: Tensor, k: Tensor, tensors: Sequence[Tensor], spec: Spec) -> Tensor:
    """The same as the layout counts positions: by its offsets, or by tables after the mask."""
    if len(tensors) == 1:
        return _distance(q, k, spec.k_offset - spec.q_offset)
    _, query_at, key_at = tensors
    return key_at.long() - query_at.long()[:, None]


def _readable(mask: Tensor, score: Score) -> Tensor:
    """The mask without keys that `score.keys` leaves out."""
    return mask if score.keys is None else mask & score.keys[:, None, None]


def _scores(q: Tensor, k: Tensor, score: Score, distance: Tensor) -> tuple[Tensor, Tensor]:
    """The scores [B, H, n, n_k], and the derivative of each by its scaled product."""
    x = q @ k.transpose(-1, -2) * score.scale
    slope = torch.ones_like(x)
    if score.softcap:
        limited = torch.tanh(x / score.softcap)
        x, slope = limited * score.softcap, 1 - limited**2
    if score.slopes is not None:
        x = x - score.slopes.to(x.dtype)[:, None, None] * distance.abs()
    if score.bias is not None:
        of_pair = score.bias.to(x.dtype)[:, _columns(score.bias, distance)]
        x = x + (of_pair if distance.dim() == 2 else of_pair[:, :, 0].transpose(0, 1))
    return x, slope


def _columns(bias: Tensor, distance: Tensor) -> Tensor:
    """Which column of the table a distance reads."""
    most = bias.shape[1] // 2
    return distance.clamp(-most, most) + most


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec, score: Score
) -> tuple[Tensor, Tensor]:
    """The backend's forward: `tensors` holds one bool mask, and positions where they are told."""
    distance = _distance_of(q, k, tensors, spec)
    out, lse = attention(q, k, v, tensors[0], score=score, distance=distance)
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
    distance, mask = _distance_of(q, k, tensors, spec), _readable(tensors[0], score)
    dense, log_sum = attention(q64, k64, v64, mask, score=score, distance=distance)
    log_sum = log_sum.masked_fill(log_sum == -torch.inf, torch.inf)[..., None]
    scores, slope = _scores(q64, k64, score, distance)
    p = torch.exp((scores - log_sum).masked_fill(~mask, -torch.inf))  # the unread may overflow
    delta = (g64 * dense).sum(-1, keepdim=True)
    by_score = p * (g64 @ v64.transpose(-1, -2) - delta)
    of_slopes, of_bias = _option_grads(by_score, score, distance)
    ds = by_score * slope * score.scale
    per_head = ds.transpose(-1, -2) @ q64, p.transpose(-1, -2) @ g64
    grad_k, grad_v = (x.reshape(*k.shape[:2], group, *x.shape[2:]).sum(2) for x in per_head)
    grads = (ds @ k64).to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)
    return Grads(*grads, slopes=of_slopes, bias=of_bias)


def _option_grads(
    by_score: Tensor, score: Score, distance: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of slopes and bias, where asked for, from those of the scores."""
    of_slopes = of_bias = None
    if score.slopes is not None and score.slopes_grad:
        of_slopes = -(by_score * distance.abs()).sum((0, 2, 3))
    if score.bias is not None and score.bias_grad:
        of_bias = by_score.new_zeros(score.bias.shape)
        columns = _columns(score.bias, distance).reshape(-1)
        of_bias.index_add_(1, columns, by_score.sum(0).flatten(1))
    return of_slopes, of_bias


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
    position: Tensor,
) -> tuple[Tensor, Tensor]:
    """The backend's decode: the mask's rows at `position` .. of each sequence, k the first keys."""
    first = position.long() - spec.q_offset
    rows = first[:, None] + torch.arange(q.shape[2], device=q.device)
    inside = (rows >= 0) & (rows < spec.n)
    mask = tensors[0][(None,) * (4 - tensors[0].dim())].expand(len(q), -1, -1, -1)
    place = rows.clamp(0, max(0, spec.n - 1))[:, None, :, None]
    mask = mask[..., : k.shape[2]]
    mask = mask.gather(2, place.expand(-1, mask.shape[1], -1, k.shape[2]))
    at = torch.arange(k.shape[2], device=q.device) + spec.k_offset - spec.q_offset
    distance = at - rows[:, None, :, None]
    mask = mask & inside[:, None, :, None]
    read = _readable(mask, score).any(2).any(1)[:, None, :, None]
    k, v = k.masked_fill(~read, 0.0), v.masked_fill(~read, 0.0)  # whatever stands in other slots
    out, lse = attention(q, k, v, mask, score=score, distance=distance)
    return out.to(q.dtype), lse.to(wide(q.dtype))
