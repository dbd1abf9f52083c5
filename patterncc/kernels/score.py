"""How a score is made of a product of query and key: the options of one call, and their gradients.

With x = scale * (q . k), for the query at position i and the key at position j:

    x = softcap * tanh(x / softcap)        a soft limit (Gemma 2)
    x = x - slopes[head] * |i - j|         ALiBi
    x = x + bias[head, clamp(j - i, -R, R) + R]    relative positions (T5)
    x = -inf where not keys[batch, j]      padding

and the sum of each row's exponentials counts exp(sinks[head]) once more (gpt-oss).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Score:
    """The options of one call; None, or 0 for softcap, leaves a step out.

    slopes, sinks: fp32 [H].  bias: fp32 [H, 2 R + 1].  keys: bool [B, n_k], True may be read.
    (fp64 beside fp64 queries.)
    query_at, key_at: int32 [n] and [n_k], the tokens that stand at slots, counted as the layout
    counts its queries and keys, where an order moved them; else token s stands at slot s.  Query s
    is at position q_offset + s and key t at k_offset + t.
    slopes_grad, bias_grad: the backward pass is asked for the gradients of these.
    partly: the layout at hand is a term among several, so its keys are not all that a row reads.
    """

    scale: float
    softcap: float = 0.0
    slopes: Tensor | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None
    keys: Tensor | None = None
    query_at: Tensor | None = None
    key_at: Tensor | None = None
    slopes_grad: bool = False
    bias_grad: bool = False
    partly: bool = False

    @property
    def products(self) -> bool:
        """Scores are scaled products and nothing else; there may be sinks beside them."""
        return not self.softcap and all(x is None for x in (self.slopes, self.bias, self.keys))

    @property
    def plain(self) -> bool:
        """Nothing but a scale."""
        return self.products and self.sinks is None


class Grads(NamedTuple):
    """What a backward pass gives; None where the option is absent."""

    q: Tensor
    k: Tensor
    v: Tensor
    slopes: Tensor | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """A result without sinks, once each row's sum counts exp(sinks[head]) too.

    out [B, H, n, Dv], lse [B, H, n]: out shrinks by exp(lse - total), lse becomes the total.
    """
    total = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    share = torch.exp(lse - total.masked_fill(total == -torch.inf, 0.0))
    return (out * share[..., None]).to(out.dtype), total


def sink_grads(grad_out: Tensor, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """The gradient of the sinks [H]: what they take from each row is out times their share.

    lse counts the sinks.
    """
    wide = lse.dtype
    delta = (grad_out.to(wide) * out.to(wide)).sum(-1)
    share = torch.exp(sinks.to(wide)[:, None] - lse.masked_fill(lse == -torch.inf, torch.inf))
    return -(share * delta).sum((0, 2))


def without_unread(
    k: Tensor, v: Tensor, unread: Tensor, keys: Tensor | None
) -> tuple[Tensor, Tensor]:
    """k and v with zeros, in a copy, where nobody reads them: else 0 * NaN would reach a row.

    unread: bool [1 or B, heads or 1, n_k], True where no query of that head reads the key; empty
    where every key is read.  keys: as in `Score`.
    """
    hidden = None if keys is None else ~keys[:, None]
    if unread.numel():
        by_key_head = unread
        if unread.shape[1] > 1:  # a key head's keys are read by any head of its group
            by_key_head = unread.view(len(unread), k.shape[1], -1, unread.shape[2]).all(2)
        hidden = by_key_head if hidden is None else hidden | by_key_head
    if hidden is None or (hidden.device.type == "cpu" and not bool(hidden.any())):
        return k, v
    return k.masked_fill(hidden[..., None], 0.0), v.masked_fill(hidden[..., None], 0.0)
