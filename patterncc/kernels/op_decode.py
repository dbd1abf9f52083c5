"""The registered op of decode steps: a few rows of a layout against a cache of keys and values.

Plain tensors, numbers and one line of text, as the ops of `op`; without gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patterncc.kernels.cpu.heads import wide
from patterncc.kernels.fits import Carried, check_step, planned
from patterncc.kernels.pages import unpaged
from patterncc.kernels.score import Score
from patterncc.kernels.terms import Terms
from patterncc.kernels.ways import way


@torch.library.custom_op("patterncc::decode", mutates_args=())
def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Sequence[Tensor],
    plan: str,
    scale: float,
    position: Tensor,
    block_table: Tensor | None = None,
    key_lengths: Tensor | None = None,
    softcap: float = 0.0,
    slopes: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out [B, H, L, Dv] in q's dtype and lse [B, H, L] of q's rows, which stand at `position` ..

    q [B, H, L, D]; position: int32 [B].  k [B, Hkv, S, D] and v [B, Hkv, S, Dv], the first S of the
    layout's keys, or with block_table, int32 [B, pages of a sequence], k [pages, Hkv, page, D] and
    v alike.  key_lengths: int32 [B]; keys at and past it are not read.  The rest are the options of
    `score.Score`.
    """
    spec, carried = planned(plan), Carried.of(layout)
    tables = carried.tables  # without the last one, which is for the whole forward pass
    score = Score(scale, softcap, slopes, bias, sinks, keys)
    check_step(q, k, v, carried, spec, score, position, block_table, key_lengths)
    if not (q.numel() and k.shape[2]):
        return _of_no_keys(q, v, score)
    if isinstance(spec, Terms) or spec.backend == "reference":
        most = spec.first.n_k if isinstance(spec, Terms) else spec.n_k
        n_k = k.shape[2] if block_table is None else most

        def read(k: Tensor, v: Tensor, score: Score) -> Tensor:
            """The output of such rows that weigh all their keys alike."""
            alike = q.new_zeros(*q.shape[:3], k.shape[3], dtype=k.dtype)
            found: Tensor = way(spec).decode(alike, k, v, tables, spec, score, position)[0]
            return found

        k, v, score = unpaged(k, v, n_k, score, block_table, key_lengths, read)
        out, lse = way(spec).decode(q, k, v, tables, spec, score, position)
    else:
        given = (q, k, v, tables, spec, score, position)
        out, lse = way(spec).decode(*given, block_table, key_lengths)
    return out.contiguous(), lse.to(wide(q.dtype)).contiguous()


def _of_no_keys(q: Tensor, v: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """What rows give that have no key at all, or where there is no row."""
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=wide(q.dtype))
    if score.sinks is not None:
        lse = score.sinks.to(lse.dtype)[:, None].expand(lse.shape).clone()
    return q.new_zeros(*q.shape[:3], v.shape[-1]), lse


@decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: object, **_more: object) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    return out, q.new_empty(q.shape[:3], dtype=wide(q.dtype))
