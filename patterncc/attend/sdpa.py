"""Call sites of `torch.nn.functional.scaled_dot_product_attention`, one by one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from patterncc.attend.checks import AnyLayout, shape
from patterncc.attend.over import How, attend, keys_kept
from patterncc.errors import TensorError
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Layer

_OWNER = "scaled_dot_product_attention"


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    pattern: Layer | AnyLayout,
    q_offset: int = 0,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention over a pattern's edges and nothing else.

    query [.., H, n, D], key [.., Hkv, n_k, D], value [.., Hkv, n_k, Dv] give [.., H, n, Dv]; what
    stands before H are batches, of any number, and broadcast as in torch.  Query i and key j stand
    at the positions i and j, so is_causal (which takes of the pattern only edges with j <= i) is
    aligned at the top left, as in torch.

    attn_mask: only one of keys, [.., 1, 1, n_k], bool with True for keys that are read, or 0 and
    -inf.  pattern: of a layer, or a layout for n and n_k in its place.  q_offset: where query 0
    stands among the keys; n_k - n for the last tokens of a cache.

    A row that reads nothing gives 0.

    >>> from patterncc import causal, window
    >>> q, k, v = torch.randn(3, 2, 4, 50, 16).unbind()
    >>> scaled_dot_product_attention(q, k, v, pattern=causal() & window(15)).shape
    torch.Size([2, 4, 50, 16])

    Raises TensorError for other masks and for dropout, with how to say it instead.
    """
    if dropout_p > 0:
        raise TensorError(
            f"{_OWNER}: dropout_p={dropout_p} of attention weights, which are never made; pass "
            "dropout_p=0.0 (in a model's config the dropout of attention)"
        )
    if q_offset and (is_causal or not isinstance(pattern, Pattern | Heads)):
        raise TensorError(
            f"{_OWNER}: q_offset={q_offset} beside is_causal=True, which counts from query 0, or "
            "beside a layout, which has its own; intersect the pattern with causal() instead"
        )
    if q_offset < 0:
        raise TensorError(
            f"{_OWNER}: q_offset={q_offset}, {shape(query)} queries on {shape(key)} keys; the last "
            "queries can stand at the last keys only where there are as many keys: give "
            'q_offset=0 (queries="first" in sdpa_as)'
        )
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.is_nested or x.dim() < 2:
            raise TensorError(
                f"{_OWNER}: {name} is nested or has no axis of tokens; it must be "
                "(.., heads, length, head dim), dense"
            )
    lead, q, k, v = _four_dimensional(query, key, value, enable_gqa)
    keep = None
    if attn_mask is not None:
        of_keys = _of_keys(attn_mask, lead, k.shape[2])
        keep = keys_kept(_OWNER, "attn_mask", of_keys, q.shape[0], k.shape[2])
    q, k, v = _as_autocast(q), _as_autocast(k), _as_autocast(v)
    over = attend(
        *(_OWNER, q, k, v, pattern, How()),
        q_offset=q_offset,
        only_past=is_causal,
        scale=scale,
        key_mask=keep,
    )
    out = over.reshape(*lead, *over.shape[1:])
    axes = max(x.dim() for x in (query, key, value))
    return out if axes > 3 else out[0] if axes == 3 else out[0, 0]


def _four_dimensional(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[torch.Size, Tensor, Tensor, Tensor]:
    """What stands before the heads, [1] if nothing does, and tensors [B, H, L, D] of one batch."""
    shared = 3 if enable_gqa else 2  # axes from the right that need not agree
    if query.dim() == 4 and query.shape[:-shared] == key.shape[:-shared] == value.shape[:-shared]:
        return query.shape[:1], query, key, value  # as a rule, so in little time
    axes = max(4, query.dim(), key.dim(), value.dim())
    given = [x.reshape(*[1] * (axes - x.dim()), *x.shape) for x in (query, key, value)]
    try:
        lead = _broadcast(*(x.shape[:-3] for x in given))
        if not enable_gqa:
            _broadcast(*(x.shape[-3:-2] for x in given))
    except RuntimeError:
        raise TensorError(
            f"{_OWNER}: query {shape(query)}, key {shape(key)} and value {shape(value)} do not "
            "broadcast before their last two axes; heads that share keys need enable_gqa=True"
        ) from None
    q, k, v = (
        x.expand(*lead, *x.shape[-3:]).reshape(math.prod(lead), *x.shape[-3:]) for x in given
    )
    if not enable_gqa:
        heads = max(x.shape[1] for x in (q, k, v))
        if k.shape[1] != v.shape[1]:
            k, v = (x.expand(-1, heads, -1, -1) for x in (k, v))
        q = q.expand(-1, heads, -1, -1)
    return lead, q, k, v


def _broadcast(*shapes: torch.Size) -> torch.Size:
    common: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return common


def _of_keys(mask: Tensor, lead: torch.Size, n_k: int) -> Tensor:
    """[B, n_k] of a mask that is the same for all heads and queries, [.., 1, 1, n_k] or expanded.

    Raises TensorError for any other.
    """
    whole = mask.reshape(*[1] * (len(lead) + 3 - mask.dim()), *mask.shape)
    told = mask.dim() <= len(lead) + 3
    for axis in (-3, -2):
        told = told and (whole.shape[axis] == 1 or whole.stride(axis) == 0)
    if not told:
        raise TensorError(
            f"{_OWNER}: attn_mask of shape {shape(mask)} differs between queries or heads; say it "
            "by the pattern instead: is_causal=True or causal() & pattern for a causal mask, "
            "pattern & pc.edges(mask.numpy()) for a bool one; pass attn_mask=None, or a mask of "
            "keys alone, (batch, 1, 1, keys)"
        )
    of_keys = whole[..., 0, 0, :]
    try:
        return of_keys.expand(*lead, n_k).reshape(math.prod(lead), n_k)
    except RuntimeError:
        raise TensorError(
            f"{_OWNER}: attn_mask has shape {shape(mask)}, the batch {tuple(lead)} and there "
            f"are {n_k} keys; they do not broadcast"
        ) from None


def _as_autocast(x: Tensor) -> Tensor:
    """In the precision that torch's own function would take under autocast."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))
