"""Decoding token by token: what a router keeps beside keys and values, and the row that reads."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
import torch
from torch import Tensor

from patterncc.attend.checks import Options, shape
from patterncc.errors import PatternValueError, TensorError
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import Expander
from patterncc.routers.assign import arriving
from patterncc.routers.best import best
from patterncc.routers.choose import grouped_heads, mean_of, pick, token_nearness, wide
from patterncc.routers.kinds import NearestKeys, Router, SphericalKMeans, TopBlocks
from patterncc.stack import Heads, patterns_of
from patterncc.zones.lower import leaves, lower

if TYPE_CHECKING:
    from patterncc.routers.module import RoutedAttention


@dataclass(frozen=True, eq=False)
class RoutedCache:
    """What steps of one layer need of the tokens before them.

    k, v: [B, heads, capacity, head_dim].  held: int64 [], on the CPU, how many tokens they hold.
    kept: of TopBlocks the sum of each block's keys, fp32 [B, Hkv, blocks, head_dim]; of k-means
    with `width` the tokens of each cluster's open group, int64 [B, H, clusters, width], and how
    many tokens each cluster has, [B, H, clusters].
    """

    k: Tensor
    v: Tensor
    held: Tensor
    kept: tuple[Tensor, ...] = ()


def check_steps(router: Router, static: Pattern | Heads | None, causal: bool) -> None:
    """Refuse a layer whose steps would not read what a pass over the whole sequence reads."""
    why = None
    if not causal:
        why = "it reads later positions (causal=False), which a cache does not hold yet"
    elif isinstance(router, SphericalKMeans) and router.width is None:
        why = "balanced clusters are known once the sequence is whole; give the router a width"
    elif isinstance(router, TopBlocks) and router.grain > 1:
        why = f"{router.grain} queries choose together and come one by one; take grain=1"
    for leaf in (x for p in (() if static is None else patterns_of(static)) for x in leaves(p)):
        if isinstance(leaf, Expander) or not getattr(leaf, "past", True):
            why = f"the edges of {leaf} depend on the length; use past=True"
    if why is not None:
        raise PatternValueError(f"RoutedAttention: no decode steps for {router}: {why}")


def new_cache(module: RoutedAttention, batch: int, capacity: int) -> RoutedCache:
    """Zeroed buffers on the module's device."""
    check_int("RoutedAttention", "batch", batch, 1)
    check_int("RoutedAttention", "capacity", capacity, 1)
    like, dim, heads = module.v.weight, module.head_dim, module.heads
    kv_heads = heads if module.tied else module.kv_heads
    k, v = (like.new_zeros(batch, kv_heads, capacity, dim) for _ in range(2))
    held = torch.zeros((), dtype=torch.int64, device="cpu")
    match module.router:
        case SphericalKMeans(clusters=clusters, width=width):
            assert width is not None
            table = torch.full((batch, heads, clusters, width), -1, device=like.device)
            return RoutedCache(k, v, held, (table, table.new_zeros(batch, heads, clusters)))
        case TopBlocks(block=block):
            sums = torch.zeros(batch, kv_heads, -(-capacity // block), dim, device=like.device)
            return RoutedCache(
                k, v, held, (sums if like.dtype != torch.float64 else sums.double(),)
            )
        case NearestKeys():
            return RoutedCache(k, v, held)
        case _:
            assert_never(module.router)


def check_options(options: Options) -> None:
    """Refuse what steps do not take."""
    given = [name for name, value in options.items() if value is not None and name != "scale"]
    if given:
        raise TensorError(
            f"RoutedAttention: with a cache there is scale alone, not {', '.join(given)}; run the "
            "whole sequence without a cache"
        )


def place_of(position: Any, q: Tensor, v: Tensor) -> int:
    """Where a call with a cache begins, one place for all sequences.

    Raises TensorError for what is no integer, and for a step with a gradient.
    """
    try:
        at = operator.index(position)
    except (TypeError, RuntimeError):
        told = shape(position) if isinstance(position, Tensor) else repr(position)
        raise TensorError(
            f"RoutedAttention: position is {told}; give an int, the same place for all sequences"
        ) from None
    if at and torch.is_grad_enabled() and (q.requires_grad or v.requires_grad):
        raise TensorError(
            "RoutedAttention: a step with a cache has no gradient; run it under torch.no_grad(), "
            "or train on the whole sequence without a cache"
        )
    return int(at)


@torch.no_grad()
def written(
    cache: RoutedCache, router: Router, q: Tensor, k: Tensor, v: Tensor, centroids: Tensor | None
) -> None:
    """A prompt of n tokens at position 0: its keys, values, and what the router keeps of them."""
    n = k.shape[2]
    _check_room(cache, k, 0)
    _store(cache, k, v, 0)
    match router:
        case SphericalKMeans(width=width):
            assert width is not None and centroids is not None
            table, size = cache.kept
            _, label, rank = arriving(_nearness(q, k, centroids), width)
            size.zero_().scatter_add_(2, label, torch.ones_like(label))
            last = (size.gather(2, label) - 1) // width  # of its cluster, the group that is open
            place = torch.where(rank // width == last, label * width + rank % width, size.numel())
            flat = table.flatten(2)
            flat = torch.cat([torch.full_like(flat, -1), flat.new_zeros(*flat.shape[:2], 1)], 2)
            place = place.clamp(max=flat.shape[2] - 1)
            flat.scatter_(2, place, torch.arange(n, device=k.device).expand_as(place))
            table.copy_(flat[..., :-1].reshape(table.shape))
        case TopBlocks(block=block):
            mean, count = mean_of(wide(k), block)
            cache.kept[0].zero_()[:, :, : mean.shape[2]] = mean * count[:, None, :, None]
        case NearestKeys():
            pass
        case _:
            assert_never(router)


@torch.compiler.disable(reason="the edges of a routed layer are known only while it runs")  # type: ignore[no-untyped-call, untyped-decorator]
@torch.no_grad()
def step(
    module: RoutedAttention,
    cache: RoutedCache,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: int,
    options: Options,
) -> Tensor:
    """One token at `position` after what the cache holds: out [B, H, 1, D]."""
    if q.shape[2] != 1:
        raise TensorError(
            f"RoutedAttention: {q.shape[2]} tokens at position {position}; after the prompt at "
            "position 0 give one token a call"
        )
    _check_room(cache, k, position)
    _check_next(cache, position)
    _store(cache, k, v, position)
    router = module.router
    with torch.autocast(q.device.type, enabled=False):
        match router:
            case SphericalKMeans():
                assert module.centroids is not None
                near = _nearness(q, k, module.centroids)
                keys = _joined(cache, router, near, position)
            case NearestKeys():
                keys = best(_products(wide(q), wide(cache.k[:, :, : position + 1])), router.count)
            case TopBlocks():
                keys = _blocks_of(cache, router, wide(q), wide(k), position)
            case _:
                assert_never(router)
        keys[:, : module.heads - module.routed] = -1
        scale = options.get("scale") or 1 / math.sqrt(q.shape[-1])
        return _read(q, cache, keys, _static_row(module.static, position, module.layer), scale)


def _nearness(q: Tensor, k: Tensor, centroids: Tensor) -> Tensor:
    """As the whole pass finds it, so that a step joins the cluster that the pass would."""
    q, k = (wide(q),) * 2 if k is q else (wide(q), wide(k))
    return token_nearness(q, k, centroids)


def _products(q: Tensor, k: Tensor) -> Tensor:
    """q [B, H, 1, D] with k [B, Hkv, m, D]: [B, H, m]."""
    grouped = grouped_heads(q[:, :, 0], k.shape[1])
    return torch.einsum("bhgd,bhjd->bhgj", grouped, k).flatten(1, 2)


def _joined(cache: RoutedCache, router: SphericalKMeans, near: Tensor, position: int) -> Tensor:
    """The token joins its cluster's open group, or opens one; the group's tokens [B, H, width]."""
    width, (table, size) = router.width, cache.kept
    assert width is not None
    label = near.nan_to_num(nan=-torch.inf).argmax(-1)  # [B, H, 1]
    at = label[..., None].expand(-1, -1, 1, width)
    group, rank = table.gather(2, at), size.gather(2, label)[..., None]
    group = torch.where(rank % width == 0, -1, group)
    group = group.scatter(3, rank % width, position)
    table.scatter_(2, at, group)
    size.scatter_add_(2, label, torch.ones_like(label))
    return group[:, :, 0]


def _blocks_of(
    cache: RoutedCache, router: TopBlocks, q: Tensor, k: Tensor, position: int
) -> Tensor:
    """The keys of the chosen blocks up to the position: [B, H, count * block], -1 for none."""
    sums, own = cache.kept[0], position // router.block
    sums[:, :, own] += k[:, :, 0]
    group = q.shape[1] // k.shape[1]
    scores = _products(q, sums[:, :, : own + 1] / router.block)
    if router.shared:
        scores = grouped_heads(scores, k.shape[1]).sum(2, keepdim=True)
        scores = scores.expand(-1, -1, group, -1).flatten(1, 2)
    at = torch.tensor([own], device=q.device)
    chosen = pick(scores[:, :, None], at, router.count, causal=True)[:, :, 0]
    keys = chosen[..., None] * router.block + torch.arange(router.block, device=q.device)
    return torch.where((chosen[..., None] >= 0) & (keys <= position), keys, -1).flatten(2)


def _read(
    q: Tensor, cache: RoutedCache, keys: Tensor, static: np.ndarray | None, scale: float
) -> Tensor:
    """Attention of one row to the chosen keys and the static ones, each pair once.

    keys: int64 [B, H, m], -1 for none, each at most once; static: bool [1 or H, position + 1].
    """
    batch, heads = q.shape[:2]
    if static is not None:
        mask = torch.from_numpy(static).to(q.device).expand(heads, -1)
        place = torch.arange(mask.shape[1], 0, -1, device=q.device)
        most = int(static.sum(1).max())
        found = torch.where(mask, place, 0).topk(most, dim=-1).values
        listed = torch.where(found > 0, mask.shape[1] - found, -1).expand(batch, -1, -1)
        twice = mask.expand(batch, -1, -1).gather(2, keys.clamp(min=0))
        keys = torch.cat([torch.where(twice, -1, keys), listed], 2)
    b = torch.arange(batch, device=q.device)[:, None, None]
    h = torch.arange(heads, device=q.device)[:, None] // (heads // cache.k.shape[1])
    real, at = keys >= 0, keys.clamp(min=0)
    k, v = wide(cache.k[b, h, at]), wide(cache.v[b, h, at])
    scores = torch.einsum("bhd,bhmd->bhm", wide(q)[:, :, 0], k) * scale
    weights = scores.masked_fill(~real, -torch.inf).softmax(-1)
    weights = weights.masked_fill(~real, 0.0)  # a row that reads nothing: 0, not NaN
    return torch.einsum("bhm,bhmd->bhd", weights, v)[:, :, None].to(q.dtype)


@lru_cache(maxsize=64)
def _static_row(pattern: Pattern | Heads | None, position: int, layer: int) -> np.ndarray | None:
    """What the row at a position reads of a pattern, bool [1 or heads, position + 1]."""
    if pattern is None:
        return None
    rows = [
        lower(p, 1, position + 1, position, layer=layer, head=head).dense()
        for head, p in enumerate(patterns_of(pattern))
    ]
    return np.concatenate(rows)


def _check_room(cache: RoutedCache, k: Tensor, position: int) -> None:
    fits = cache.k.shape[:2] == k.shape[:2] and cache.k.shape[3] == k.shape[3]
    if not fits or not 0 <= position <= position + k.shape[2] <= cache.k.shape[2]:
        raise TensorError(
            f"RoutedAttention: keys of shape {shape(k)} at position {position} do not fit a cache "
            f"of shape {shape(cache.k)}"
        )


def _check_next(cache: RoutedCache, position: int) -> None:
    """Refuse gaps, and going back where what the router keeps counts every token once."""
    held = int(cache.held)
    if position > held or (position < held and cache.kept):
        raise TensorError(
            f"RoutedAttention: a token at position {position}, the cache holds {held} tokens; the "
            f"next one stands at {held}, and a prompt at 0 begins anew"
        )


def _store(cache: RoutedCache, k: Tensor, v: Tensor, position: int) -> None:
    """Write new keys and values into the buffers."""
    last = position + k.shape[2]
    cache.k[:, :, position:last] = k.detach()
    cache.v[:, :, position:last] = v.detach()
    cache.held.fill_(last)
