"""Attention of a few queries to keys side by side, with the options of a score, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patterncc.kernels.cpu.cache import as_bias
from patterncc.kernels.cpu.heads import same_width, wide
from patterncc.kernels.cpu.pages import Keys, indices
from patterncc.kernels.score import Score

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

Result = tuple[Tensor, Tensor, Tensor | None]
"""out [b, K, G * L, Dv], lse [b, K, G * L], and where a query reads no key (None: each reads)."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The options of one group of heads: as `score.Score`, of K key heads x G heads of each.

    slopes: [K, G].  bias: [K, G, 2 R + 1].  at: positions of the layout's first query and key.
    """

    scale: float
    softcap: float
    slopes: Tensor | None
    bias: Tensor | None
    query_at: Tensor | None
    key_at: Tensor | None
    at: tuple[int, int]

    @staticmethod
    def of(
        score: Score, keys: slice, members: slice, key_heads: int, at: tuple[int, int]
    ) -> Scores:
        """Those of key heads `keys` and of `members` among the heads of each."""
        slopes, bias = (
            None if x is None else x.reshape(key_heads, -1, *x.shape[1:])[keys, members]
            for x in (score.slopes, score.bias)
        )
        return Scores(score.scale, score.softcap, slopes, bias, score.query_at, score.key_at, at)

    @property
    def plain(self) -> bool:
        """Scaled products and nothing else, as torch's flash kernel takes them."""
        return not self.softcap and self.slopes is None and self.bias is None

    def apply(self, s: Tensor, rows: Tensor, keys: Keys) -> Tensor:
        """Scaled products [b, K, G, L, S] as scores; rows [L], counted as the layout's queries."""
        if self.softcap:
            s = self.softcap * torch.tanh(s / self.softcap)
        if self.slopes is None and self.bias is None:
            return s
        cols = indices(keys)
        i = self.at[0] + (rows if self.query_at is None else self.query_at[rows])
        j = self.at[1] + (cols if self.key_at is None else self.key_at[cols])
        distance = j[None, :].long() - i[:, None]
        if self.slopes is not None:
            s = s - self.slopes.to(s.dtype)[..., None, None] * distance.abs()
        if self.bias is not None:
            reach = self.bias.shape[-1] // 2
            s = s + self.bias.to(s.dtype)[..., distance.clamp(-reach, reach) + reach]
        return s


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    scores: Scores,
    first: int,
    keys: Keys,
) -> Result:
    """q [b, K, G, L, D] over keys k [b, K, S, D] and values v [b, K, S, Dv].

    allowed: bool [L, S], which query may read which key; None: all.  first: the layout's row of the
    first query.
    """
    if scores.plain:
        return _by_flash(q.flatten(2, 3), k, v, allowed, scores.scale)
    precise = wide(q.dtype)
    k, v = k.to(precise)[:, :, None], v.to(precise)[:, :, None]
    rows = torch.arange(first, first + q.shape[3])
    s = scores.apply(q.to(precise) @ k.transpose(-1, -2) * scores.scale, rows, keys)
    dead = None
    if allowed is not None:
        s = s.masked_fill(~allowed, -torch.inf)
        dead = (~allowed.any(-1)).repeat(q.shape[2])
    lse = torch.logsumexp(s, -1)
    p = torch.exp(s - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    return (p @ v).flatten(2, 3), lse.flatten(2, 3), dead


def _by_flash(packed: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> Result:
    """The same by torch's kernel: packed [b, K, G * L, D]."""
    width = v.shape[-1]
    packed, k, v = same_width(packed, k, v)
    if allowed is None:
        out, lse = _flash(packed, k, v, scale=scale)
        return out[..., :width], lse, None
    bias = as_bias(allowed.repeat(packed.shape[2] // len(allowed), 1)[None], packed.dtype)
    out, lse = _flash(packed, k, v, attn_mask=bias.add, scale=scale)
    if bias.dead is None:
        return out[..., :width], lse, None
    return out[..., :width], lse.masked_fill(bias.dead, -torch.inf), bias.dead[0, 0]
