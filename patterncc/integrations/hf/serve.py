"""A pattern laid on the places of one call: sequences, chunks, decode steps, padding, packs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patterncc.attend import attention
from patterncc.errors import BackendError
from patterncc.integrations.hf.layouts import Layouts
from patterncc.integrations.hf.own_mask import Packed
from patterncc.integrations.hf.placement import Padding, Placement
from patterncc.layout import Layout
from patterncc.stack import patterns_of
from patterncc.zones.lower import lower

FEW = 16
"""Rows up to which a call against a cache is a decode step, which needs no layout of its own."""


def serve(
    layouts: Layouts,
    place: Placement,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    strict: bool = False,
    **options: Any,
) -> Tensor:
    """Self-attention over a pattern's edges, its positions those of the sequences' own tokens.

    q [B, H, n, D], k and v [B, Hkv, n_k, D] give [B, H, n, Dv].  strict: a pattern of the user's,
    for which padding between tokens has no meaning; a model's own mask counts slots.

    Raises BackendError for calls whose positions cannot be told.
    """
    if place.packed is not None:
        return _packed(layouts, place.packed, q, k, v, options)
    n = q.shape[2]
    start = place.start(wait=n > FEW or _needs_gradient(q, k, v, options))
    said = place.given.get("kv_length")
    slid = place.given.get("local_size") is not None  # its cache may have been made longer since
    if isinstance(said, int) and k.shape[2] > said and not slid:
        raise BackendError(
            f"layer {layouts.index}: {k.shape[2]} keys, and the model asked for a mask of {said}; "
            "what it adds to its keys (compressed ones, say) has no position in a pattern"
        )
    if isinstance(start, int) and not place.k_offset and k.shape[2] > start + n:
        k, v = k[:, :, : start + n], v[:, :, : start + n]  # a static cache: the rest is not written
    if isinstance(start, int) and not place.k_offset and k.shape[2] < start + n:
        raise BackendError(
            f"layer {layouts.index}: {n} queries from position {start} on, and the cache hands "
            f"over {k.shape[2]} keys without saying which; use DynamicCache() or StaticCache(), or "
            "make a pc.hf.EvictingCache(model) for this very model"
        )
    if strict and place.k_offset and not layouts.fits(start - place.k_offset):
        raise BackendError(
            f"layer {layouts.index}: the cache has dropped the first {place.k_offset} keys, and "
            f"the pattern reads further back than that: {layouts.layer}; begin with an empty "
            "cache while the pattern is applied, or give the model a DynamicCache()"
        )
    padding = place.padding(k.shape[2])
    if strict and not layouts.only_past and isinstance(start, int):
        shifts = (
            [0] if padding is None or padding.shift is None else sorted(set(padding.shift.tolist()))
        )
        for shift in shifts:
            check_read_in_time(layouts, start - shift, n)
    if padding is None:
        return _laid(layouts, start, place.k_offset, q, k, v, None, options)
    if strict and padding.holes:
        raise BackendError(
            f"layer {layouts.index}: attention_mask has padding between tokens, so that positions "
            "are not known (a batch padded on the right that is being decoded?); pad on the left, "
            "tokenizer.padding_side = 'left', or give one sequence at a time"
        )
    if padding.shift is None or layouts.relative:
        return _laid(layouts, start, place.k_offset, q, k, v, padding.keys, options)
    if place.k_offset:
        raise BackendError(
            f"layer {layouts.index}: padding on the left, and a cache that has dropped its first "
            "keys; give the model a cache of full length, such as DynamicCache()"
        )
    if isinstance(start, int) and start == 0 and n == k.shape[2]:
        return _whole_shifted(layouts, padding, q, k, v, options)
    return _step_shifted(layouts, padding, start, q, k, v, options)


def check_read_in_time(layouts: Layouts, start: int, n: int) -> None:
    """Refuse n positions from `start` on where earlier ones, answered by now, would read them.

    Raises BackendError.
    """
    if start <= 0:
        return
    for head, pattern in enumerate(patterns_of(layouts.layer)):
        sizes = {"layer": layouts.index, "head": head, **layouts.bindings}
        late = lower(pattern, start, n, 0, start, **sizes)
        if late.count():
            raise BackendError(
                f"layer {layouts.index}: {pattern} lets positions before {start} read keys from "
                f"{start} on, which came after those had been answered; intersect it with "
                "pc.causal(), or give tokens that read each other in one call (no prefill in "
                "chunks), or use_cache=False"
            )


def serve_across(
    layouts: Layouts,
    place: Placement,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    first: int | Tensor = 0,
    **options: Any,
) -> Tensor:
    """All keys of a call, which do not grow: cross-attention, or a model's own mask both ways.

    first: the position of the first query, among another sequence than that of the keys.
    """
    first, n, n_k = int(first), q.shape[2], k.shape[2]
    padding, keys = place.padding(n_k), None
    if padding is not None:
        keys = padding.keys
        if padding.shift is not None and not (layouts.relative and n == n_k):
            there = (torch.arange(n_k, device=q.device) + padding.shift[:, None]) % n_k
            k, v, keys = _moved(k, there), _moved(v, there), keys.gather(1, there)
    if not first or n > FEW or _needs_gradient(q, k, v, options):
        return _run(q, k, v, layouts.of(n, n_k, first), keys, options)
    layout = layouts.step(first + n, n_k, alone=False)
    return _run(q, k, v, layout, keys, options, position=first)


def _laid(
    layouts: Layouts,
    start: int | Tensor,
    k_offset: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Queries from one slot on, and slots are positions."""
    n, n_k = q.shape[2], k.shape[2]
    if k_offset and layouts.relative:
        start, k_offset = start - k_offset, 0
    if isinstance(start, int):
        whole = not start and not k_offset and n == n_k
        if whole or k_offset or n > FEW or _needs_gradient(q, k, v, options):
            layout = layouts.of(n, n_k, start, k_offset)
            return _run(q, k, v, layout, keys, options)
        most = start + n
    else:
        most = n_k
    return _step(layouts, start, most, q, k, v, keys, options)


def _step(
    layouts: Layouts,
    start: int | Tensor,
    most: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Rows of a layout that all steps share.  most: past the last position that they may have."""
    layout = layouts.step(most, k.shape[2])
    written = None
    if isinstance(start, Tensor):
        start = start.to(torch.int32)
        if not layouts.only_past:  # slots of a static cache that nobody has written yet
            written = (start + q.shape[2]).reshape(-1).expand(q.shape[0])
    return _run(q, k, v, layout, keys, options, position=start, key_lengths=written)


def _whole_shifted(
    layouts: Layouts, padding: Padding, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]
) -> Tensor:
    """Sequences that are padded on the left, moved so that their first tokens stand at 0."""
    n, shift = q.shape[2], padding.shift
    assert shift is not None
    there = (torch.arange(n, device=q.device) + shift[:, None]) % n
    back = (torch.arange(n, device=q.device) - shift[:, None]) % n
    q, k, v = (_moved(x, there) for x in (q, k, v))
    keys = padding.keys.gather(1, there)
    return _moved(_run(q, k, v, layouts.of(n, n), keys, options), back)


def _step_shifted(
    layouts: Layouts,
    padding: Padding,
    start: int | Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """The same against a cache: each sequence's queries stand at positions of its own."""
    n, n_k, shift = q.shape[2], k.shape[2], padding.shift
    assert shift is not None
    if _needs_gradient(q, k, v, options):
        raise BackendError(
            f"layer {layouts.index}: a gradient through a cache, with padding on the left; run "
            "under torch.no_grad(), or train on whole sequences"
        )
    there = (torch.arange(n_k, device=q.device) + shift[:, None]) % n_k
    k, v, keys = _moved(k, there), _moved(v, there), padding.keys.gather(1, there)
    first = start - shift
    late = None
    if n > 1:  # rows before a sequence's first token are put behind the others
        late = (-first).clamp(min=0)[:, None]
        q = _moved(q, (torch.arange(n, device=q.device) + late) % n)
    most = start + n if isinstance(start, int) else n_k
    out = _step(layouts, first.clamp(min=0), most, q, k, v, keys, options)
    if late is None:
        return out
    return _moved(out, (torch.arange(n, device=q.device) - late) % n)


def _packed(
    layouts: Layouts, packed: Packed, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]
) -> Tensor:
    """All rows of the batch behind each other as one sequence, each document with its positions."""
    batch, n = q.shape[0], q.shape[2]
    layout = layouts.packed(packed.starts, packed.positions)
    q, k, v = (x.transpose(0, 1).flatten(1, 2).unsqueeze(0) for x in (q, k, v))
    out = _run(q, k, v, layout, None, options)
    return out.view(-1, batch, n, out.shape[3]).transpose(0, 1)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    keys: Tensor | None,
    options: dict[str, Any],
    **step: Any,
) -> Tensor:
    out: Tensor = attention(q, k, v, layout, key_mask=keys, **step, **options)
    return out


def _moved(x: Tensor, index: Tensor) -> Tensor:
    """x [B, H, n, D] with row index[b, i] at place i; rows are copied whole, twice as fast as
    gather, which takes an index for each number."""
    batch, heads = (torch.arange(size, device=x.device) for size in x.shape[:2])
    return x[batch[:, None, None], heads[None, :, None], index[:, None, :]]


def _needs_gradient(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> bool:
    others = (options.get("sinks"), options.get("relative_bias"))
    return torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k, v, *others)
    )
