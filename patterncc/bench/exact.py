"""Float64 attention of a few heads, rows in parts, and how far off a way may be.

The rule is FlashAttention's: the largest error is at most twice that of dense attention in the same
precision, plus one rounding; and PyTorch's: the mean error is at most 1.1 of dense's.  Both are
asked of the output, the LSE and the three gradients, over every element of the heads looked at.
In fp32, whose gradients subtract sums that are themselves rounded, four roundings count as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from patterncc.errors import BackendError

ENTRIES = 2**26  # scores that are held at once
NAMES = ("out", "lse", "grad_q", "grad_k", "grad_v")
MEAN = 1.1

Rows = Callable[[int, int], Tensor]
"""bool [heads or 1, rows, n_k]: which keys the queries first .. last - 1 read."""


@dataclass(frozen=True)
class Error:
    """The errors of one result, and what they may be."""

    largest: float
    mean: float
    largest_allowed: float
    mean_allowed: float

    @property
    def holds(self) -> bool:
        """Both are within the rule; NaN is not."""
        return self.largest <= self.largest_allowed and self.mean <= self.mean_allowed

    def to_dict(self) -> dict[str, float | bool]:
        """Plain values."""
        return {
            "largest": self.largest,
            "largest_allowed": self.largest_allowed,
            "mean": self.mean,
            "mean_allowed": self.mean_allowed,
            "holds": self.holds,
        }


def dense(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, grad: Tensor | None = None
) -> dict[str, Tensor]:
    """out, lse and with `grad` the gradients, in the precision of q; sums over rows in fp32.

    q, grad [B, H, n, D], k and v [B, Hkv, n_k, D]: the scores of some rows at a time are written
    out, masked, made probabilities and multiplied, each step rounded to the precision of q.  Rows
    that read nothing: out 0, lse -inf, gradients 0.

    >>> x = torch.ones(1, 1, 2, 4)
    >>> found = dense(x, x, x, lambda a, b: torch.tensor([[[True, False], [False, False]]])[:, a:b])
    >>> found["out"][0, 0, :, 0].tolist(), found["lse"][0, 0].tolist()
    ([1.0, 0.0], [2.0, -inf])
    """
    batch, heads, n, dim = q.shape
    group = heads // k.shape[1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    step = max(1, ENTRIES // max(1, batch * heads * k.shape[2]))
    out, lse = q.new_zeros(*q.shape[:3], v.shape[-1]), q.new_zeros(q.shape[:3], dtype=wide)
    sums = [torch.zeros_like(x, dtype=wide) for x in (q, k, v)]
    for first in range(0, n, step):
        last = min(n, first + step)
        part = [x.detach().requires_grad_(grad is not None) for x in (q[:, :, first:last], k, v)]
        with torch.enable_grad():
            scores = part[0] @ part[1].transpose(-1, -2) * dim**-0.5
            seen = rows(first, last).to(q.device)
            some = seen.any(-1, keepdim=True)
            scores = scores.masked_fill(~seen & some, -torch.inf)
            p = torch.softmax(scores, -1).masked_fill(~some, 0)
            found = p @ part[2]
        out[:, :, first:last] = found.detach()
        sum_of = torch.logsumexp(scores.detach().to(wide), -1)
        lse[:, :, first:last] = sum_of.masked_fill(~some[..., 0], -torch.inf)
        if grad is not None:
            got = torch.autograd.grad(found, part, grad[:, :, first:last])
            sums[0][:, :, first:last] = got[0]
            sums[1] += got[1]
            sums[2] += got[2]
    result = {"out": out, "lse": lse}
    if grad is not None:
        keys = [x.reshape(batch, -1, group, *x.shape[2:]).sum(2) for x in sums[1:]]
        result |= dict(zip(NAMES[2:], (x.to(q.dtype) for x in (sums[0], *keys))))
    return result


def errors(
    found: Mapping[str, Tensor], rough: Mapping[str, Tensor], true: Mapping[str, Tensor]
) -> dict[str, Error]:
    """How far each result is from float64, and dense attention's errors as the measure.

    found: of a way.  rough: of `dense` in its precision, true: of `dense` in float64.
    """
    return {name: _error(x, rough[name], true[name]) for name, x in found.items()}


def _error(found: Tensor, rough: Tensor, true: Tensor) -> Error:
    there = true.isfinite()  # an LSE of -inf has to be met exactly
    if not torch.equal(found[~there].double(), true[~there]):
        return Error(torch.inf, torch.inf, 0.0, 0.0)
    far, dense_far = ((x.double() - true)[there].abs() for x in (found, rough))
    if not far.numel():
        return Error(0.0, 0.0, 0.0, 0.0)
    precision = torch.finfo(found.dtype)
    size = float(true[there].abs().max())
    eps = precision.eps * (4 if found.dtype == torch.float32 else 1)
    return Error(
        float(far.max()),
        float(far.mean()),
        2 * float(dense_far.max()) + eps * size,
        MEAN * float(dense_far.mean()) + eps / 8 * float(true[there].abs().mean()),
    )


def demand(found: Mapping[str, Error], times: float = 1) -> None:
    """Refuse what is off by more than `times` the rule.

    >>> demand({"out": Error(1.0, 0.1, 2.0, 0.2)})

    Raises BackendError with the figures.
    """
    wrong = [
        f"{name} is off by {e.largest:.3g} (at most {e.largest_allowed:.3g}) and {e.mean:.3g} in "
        f"the mean (at most {e.mean_allowed:.3g})"
        for name, e in found.items()
        if not (e.largest <= times * e.largest_allowed and e.mean <= times * e.mean_allowed)
    ]
    if wrong:
        raise BackendError(f"wrong: {'; '.join(wrong)}")
