"""Each router at work on queries and keys: all sequences and heads at once, on their device."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional

from patterncc.routers.assign import arriving, balanced, groups_of, members_of
from patterncc.routers.best import best, pieces
from patterncc.routers.chosen import Blocks, Chosen, Clusters
from patterncc.routers.kinds import NearestKeys, Router, SphericalKMeans, TopBlocks


@torch.no_grad()
def choose(
    router: Router,
    q: Tensor,
    k: Tensor,
    *,
    causal: bool,
    valid: Tensor | None = None,
    centroids: Tensor | None = None,
) -> Chosen:
    """What each query reads.

    q [B, H, n, D], k [B, Hkv, n, D]; valid: bool [B, n], False for keys that may not be read.
    centroids: [H, clusters, D] of k-means.  Scores are fp32, float64 for float64 tensors, under
    autocast too; there is no gradient through the choice.

    >>> q = torch.eye(4)[None, None]
    >>> choose(TopBlocks(2, block=1), q, q.roll(-1, 2), causal=True).chosen[0, 0].tolist()
    [[0, -1], [0, 1], [1, 2], [2, 3]]
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k = (wide(q),) * 2 if k is q else (wide(q), wide(k))
        match router:
            case SphericalKMeans():
                assert centroids is not None
                return _clusters(router, q, k, centroids, valid)
            case NearestKeys():
                return Blocks(_nearest(router, q, k, causal, valid), 1, 1)
            case TopBlocks():
                chosen = _blocks(router, q, k, causal, valid)
                return Blocks(chosen, router.block, router.grain)
            case _:
                assert_never(router)


def wide(x: Tensor) -> Tensor:
    """In the precision of scores."""
    return x if x.dtype == torch.float64 else x.float()


def normal(x: Tensor) -> Tensor:
    """Layer norm without scale and shift over the last axis: length sqrt(D), whatever x's."""
    return functional.layer_norm(x, x.shape[-1:])


def nearness(x: Tensor, centroids: Tensor) -> Tensor:
    """Cosine of the angle to each centroid: [B, H, n, clusters]."""
    near: Tensor = functional.normalize(normal(x), dim=-1) @ centroids.to(x.dtype).mT
    return near


def token_nearness(q: Tensor, k: Tensor, centroids: Tensor) -> Tensor:
    """How near each token is to each centroid: of its query, and its key where that is another."""
    near = nearness(q, centroids)
    if k is q:
        return near
    return near + nearness(k.repeat_interleave(q.shape[1] // k.shape[1], dim=1), centroids)


def _clusters(
    router: SphericalKMeans, q: Tensor, k: Tensor, centroids: Tensor, valid: Tensor | None
) -> Clusters:
    n, clusters = q.shape[2], centroids.shape[1]
    valid = None if valid is None else valid[:, None]
    near = token_nearness(q, k, centroids)
    if router.width is None:
        labels, groups, width = balanced(near, valid), clusters, -(-n // clusters)
    else:
        labels, _, _ = arriving(near, router.width, valid)
        groups, width = groups_of(n, clusters, router.width), min(router.width, n)
    return Clusters(labels, members_of(labels, groups, width))


def _nearest(
    router: NearestKeys, q: Tensor, k: Tensor, causal: bool, valid: Tensor | None
) -> Tensor:
    (batch, heads, n), kv_heads = q.shape[:3], k.shape[1]
    q = grouped_heads(q, kv_heads)
    at = torch.arange(n, device=q.device)
    found = []
    for part in pieces(n, batch * heads * n):
        scores = torch.einsum("bhgid,bhjd->bhgij", q[:, :, :, part], k)
        if causal:
            scores = scores.masked_fill(at > at[part, None], -torch.inf)
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, None, None], -torch.inf)
        found.append(best(scores, router.count).flatten(1, 2))
    return torch.cat(found, 2)


def _blocks(router: TopBlocks, q: Tensor, k: Tensor, causal: bool, valid: Tensor | None) -> Tensor:
    mean, count = mean_of(k, router.block, valid)
    (batch, heads), kv_heads, blocks = q.shape[:2], k.shape[1], mean.shape[2]
    q = grouped_heads(mean_of(q, router.grain)[0], kv_heads)
    rows = q.shape[3]
    if router.shared:
        q = q.sum(2, keepdim=True)
    own = torch.arange(rows, device=q.device) * router.grain // router.block
    found = []
    for part in pieces(rows, batch * heads * blocks):
        scores = torch.einsum("bhgid,bhjd->bhgij", q[:, :, :, part], mean)
        scores = scores.masked_fill((count == 0)[:, None, None, None], -torch.inf)
        found.append(pick(scores, own[part], router.count, causal))
    return torch.cat(found, 3).expand(-1, -1, heads // kv_heads, -1, -1).flatten(1, 2)


def pick(scores: Tensor, own: Tensor, count: int, causal: bool) -> Tensor:
    """`count` blocks a row, the row's own always: scores [..., rows, blocks], own [rows]."""
    block = torch.arange(scores.shape[-1], device=scores.device)
    ours = block == own[:, None]
    if causal:
        scores = scores.masked_fill(block > own[:, None], -torch.inf)
    return best(scores.masked_fill(ours, torch.inf), count)


def mean_of(x: Tensor, size: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean of every `size` neighbours, [B, H, groups, D], and how many it is of, [B, groups].

    x: [B, H, n, D]; those that are not valid, bool [B, n], are left out; the last group may be
    shorter.

    >>> mean_of(torch.tensor([[[[1.0], [2.0], [5.0]]]]), 2)[0].flatten().tolist()
    [1.5, 5.0]
    """
    batch, heads, n, dim = x.shape
    groups = -(-n // size)
    if valid is None:
        valid = torch.ones(1, n, dtype=torch.bool, device=x.device).expand(batch, n)
    else:
        x = x.masked_fill(~valid[:, None, :, None], 0.0)
    total = functional.pad(x, (0, 0, 0, groups * size - n)).reshape(batch, heads, groups, size, dim)
    count = functional.pad(valid, (0, groups * size - n)).reshape(batch, groups, size).sum(2)
    return total.sum(3) / count.clamp(min=1)[:, None, :, None], count


def grouped_heads(x: Tensor, kv_heads: int) -> Tensor:
    """[B, H, ...] -> [B, Hkv, H / Hkv, ...]: the query heads that share keys side by side."""
    return x.reshape(len(x), kv_heads, -1, *x.shape[2:])
