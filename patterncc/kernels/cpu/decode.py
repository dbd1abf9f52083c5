"""A few rows of a layout on the CPU: the next tokens of a sequence against its cached keys.

Only the tiles that the rows read are touched.  Long full stretches are read in place; the keys of
other tiles are copied side by side.  Query heads that share a key head stand as rows of one call,
so that keys are read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import BackendError, TensorError
from patterncc.kernels.cpu.cache import Prepared, as_bias, prepared
from patterncc.kernels.cpu.heads import (
    check,
    fold_keys,
    fold_queries,
    head_groups,
    merged,
    of_group,
    same_width,
    sequence_groups,
    wide,
)
from patterncc.kernels.score import Score

if TYPE_CHECKING:
    from patterncc.kernels.spec import Spec

IN_PLACE = 256  # keys; a full stretch at least so long is read without a copy

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
    position: int | Tensor,
    block_table: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of queries that stand at `position`, `position + 1`, ... of each batch item.

    q [B, H, L, D], k [B, Hkv, n_k, D], v [B, Hkv, n_k, Dv]; position: one absolute position, or
    int [B].  Gives the output [B, H, L, Dv] and the LSE [B, H, L] as `forward` does, row for row.

    Raises: TensorError for positions outside the layout.
    """
    if block_table is not None or key_lengths is not None:
        raise BackendError("decode: pages and lengths run on the reference backend only")
    check(q)
    B, H, L, _ = q.shape
    width, key_heads = v.shape[-1], k.shape[1]
    q, k, v = same_width(q, k, v)
    out, lse = torch.empty(q.shape, dtype=q.dtype), torch.empty(B, H, L, dtype=wide(q.dtype))
    positions = [position] * B if isinstance(position, int) else position.tolist()
    for first in set(positions):
        if not 0 <= first - spec.q_offset <= spec.n - L:
            raise TensorError(
                f"decode: {L} queries at position {first} leave the layout, whose queries stand at "
                f"[{spec.q_offset}, {spec.q_offset + spec.n}); compile a longer layout"
            )
    for first, same, head_pattern in _alike(positions, tensors[0], spec):
        row = first - spec.q_offset
        pick = slice(None) if len(same) == B else torch.tensor(same)
        some_q, some_k, some_v = q[pick], k[pick], v[pick]
        for pattern, keys, members in head_groups(head_pattern, H, key_heads):
            plan = prepared(tensors, spec, pattern)
            (group_q,) = fold_queries([some_q], keys, members, key_heads)
            group_k, group_v = fold_keys([some_k, some_v], keys)
            part = _rows(group_q, group_k, group_v, plan, row, score)
            for whole, value in zip((out, lse), part):
                place = of_group(whole, keys, members, key_heads)
                place[pick] = value.view(len(same), *place.shape[1:]).to(whole.dtype)
    return out[..., :width], lse


def _alike(
    positions: Sequence[int], head_pattern: Tensor, spec: Spec
) -> Iterator[tuple[int, list[int], Tensor]]:
    """Sequences that stand at one position and have the same patterns: the position, which they
    are, and their patterns, one a head."""
    everyone = torch.arange(len(positions))
    for pick, patterns in sequence_groups(head_pattern, spec.sequences):
        members = everyone[pick].tolist()
        for first in sorted({positions[b] for b in members}):
            yield first, [b for b in members if positions[b] == first], patterns


def _rows(
    q: Tensor, k: Tensor, v: Tensor, plan: Prepared, row: int, score: Score
) -> tuple[Tensor, Tensor]:
    """q [X, G, L, D] at layout rows row .. row + L, k and v [X, n_k, D] -> output and LSE."""
    height = plan.rows.block[0]
    outs, lses = [], []
    for line in range(row // height, (row + q.shape[2] - 1) // height + 1):
        low, high = max(row, line * height), min(row + q.shape[2], (line + 1) * height)
        some = q[:, :, low - row : high - row]
        out, lse = _line(some, k, v, plan, line, (low - line * height, high - line * height), score)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _line(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Prepared,
    line: int,
    within: tuple[int, int],
    score: Score,
) -> tuple[Tensor, Tensor]:
    """Queries within[0] .. within[1] of one tile row."""
    X, G, L, D = q.shape
    packed = q.reshape(1, X, G * L, D)
    out = torch.zeros(packed.shape, dtype=wide(q.dtype))
    lse = torch.full(packed.shape[:-1], -torch.inf, dtype=wide(q.dtype))
    for keys, values, allowed in _pieces(k, v, plan, line, within):
        bias = None if allowed is None else as_bias(allowed.repeat(G, 1)[None], q.dtype)
        part, part_lse = _flash(
            packed,
            keys[None],
            values[None],
            attn_mask=None if bias is None else bias.add,
            scale=score.scale,
        )
        dead = None if bias is None else bias.dead
        if dead is not None:
            part_lse = part_lse.masked_fill(dead, -torch.inf)
        out, lse = merged(out, lse, part, part_lse, dead)
    return out.view(X, G, L, D), lse.view(X, G, L)


def _pieces(
    k: Tensor, v: Tensor, plan: Prepared, line: int, within: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Keys [X, S, D], their values, and which pairs are edges, bool [queries, S] (None: all)."""
    side = plan.rows.block[1]
    places: list[tuple[int, int]] = []
    masks = []
    for first, count, word in plan.rows.line(line):
        a, b = first * side, min((first + count) * side, k.shape[1])
        if word == 0 and b - a >= IN_PLACE:
            yield k[:, a:b], v[:, a:b], None
            continue
        places.append((a, b))
        tile = plan.masks.tile(word, *within)
        masks.append(np.tile(tile, count)[:, : b - a])
    if not places:
        return
    allowed = np.concatenate(masks, axis=1)
    used = allowed.any(axis=0)
    if not used.any():
        return
    index = np.concatenate([np.arange(a, b) for a, b in places])[used]
    kept = torch.from_numpy(np.ascontiguousarray(allowed[:, used]))
    picked = torch.from_numpy(index)
    some = None if bool(kept.all()) else kept
    yield k.index_select(1, picked), v.index_select(1, picked), some
