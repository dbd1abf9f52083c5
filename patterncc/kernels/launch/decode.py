"""Launches of the decode kernels: a few query rows against a cache of keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patterncc.errors import BackendError
from patterncc.kernels.launch.call import launch, of_layout, plan_for, rows_together
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
    position: Tensor,
    block_table: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Query rows at `position` .. of each sequence; a row outside the layout reads nothing.

    position: int32 [B], the absolute position of q's first row.
    """
    if block_table is not None or key_lengths is not None:
        raise BackendError("decode: pages and lengths run on the reference backend only")
    q, k, v = rows_together(q, k, v)
    batch, heads, count, _ = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    out = q.new_empty(batch, heads, count, v.shape[-1])
    lse = q.new_empty(batch, heads, count, dtype=torch.float32)
    packed = group > 1 and spec.share % group == 0
    plan = plan_for("decode", q, v, spec, heads=packed_rows(group) if packed else 1)
    arguments = {"q": q, "k": k, "v": v, "out": out, "lse": lse, "scale": score.scale}
    arguments |= {"position": position, "count": count, "q_offset": spec.q_offset}
    arguments |= of_layout(q, k, tensors, spec, "rows") | {"n": spec.n}
    launch(plan, (kv_heads if packed else heads) * count * batch, arguments)
    return out, lse


def packed_rows(group: int) -> int:
    """Rows of the tile that holds the query heads of one key head: a power of two, 16 at least.

    >>> packed_rows(4), packed_rows(20)
    (16, 32)
    """
    return max(16, 1 << (group - 1).bit_length())
