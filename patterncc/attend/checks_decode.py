"""What a decode step refuses of its cache, before anything runs: messages quote both sides."""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from patterncc.attend.checks import AnyLayout, check_tensors, row, shape
from patterncc.errors import TensorError
from patterncc.kernels.plan import PAGES


class Cache(NamedTuple):
    """Where a decode step stands and what it may read, after checks: int32 on q's device.

    position: [B], of q's first row.  block_table: [B, pages of a sequence], None for a cache in one
    piece.  key_lengths: [B], None where all keys count.
    """

    position: Tensor
    block_table: Tensor | None = None
    key_lengths: Tensor | None = None


def cache_of(
    q: Tensor,
    layout: AnyLayout,
    position: int | Tensor,
    block_table: Tensor | None,
    key_lengths: Tensor | None,
) -> Cache:
    """The arguments of a decode step; those of pages alone are checked by `as_one_piece`.

    Raises TensorError.
    """
    if key_lengths is not None:
        _check_integers("key_lengths", key_lengths, q)
        if key_lengths.shape != q.shape[:1]:
            raise TensorError(
                f"attention: key_lengths has shape {shape(key_lengths)}, q {shape(q)}; give one "
                f"length for each sequence, ({q.shape[0]},)"
            )
        key_lengths = key_lengths.contiguous()
    if block_table is not None:
        block_table = block_table.contiguous()
    return Cache(positions(position, q, layout), block_table, key_lengths)


def as_one_piece(
    q: Tensor, k: Tensor, v: Tensor, layout: AnyLayout, block_table: object
) -> tuple[Tensor, Tensor]:
    """What pages stand for: tensors [B, Hkv, n_k, D] and [B, Hkv, n_k, Dv] without memory.

    They have the shapes, dtypes and devices that the checks of a cache in one piece look at.

    Raises TensorError for pages and tables that do not fit each other, q or the layout.
    """
    check_tensors(q, q, q, enable_gqa=False)  # of q alone
    _check_integers("block_table", block_table, q)
    assert isinstance(block_table, Tensor)
    for name, x in (("k", k), ("v", v)):
        if not isinstance(x, Tensor) or x.dim() != 4:
            what = f"has shape {shape(x)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
            raise TensorError(
                f"attention: {name} {what}; with block_table it must be (pages, key heads, keys of "
                "a page, head dim); a cache of (pages, keys of a page, key heads, head dim) is "
                "given transposed, x.transpose(1, 2)"
            )
    if k.shape[:3] != v.shape[:3]:
        raise TensorError(
            f"attention: k has shape {shape(k)} and v {shape(v)}; with block_table both must have "
            "the same pages, key heads and keys of a page"
        )
    side = k.shape[2]
    if side not in PAGES:
        raise TensorError(
            f"attention: k has shape {shape(k)}, pages of {side} keys; a page must hold a power of "
            f"two from {PAGES[0]} to {PAGES[-1]}"
        )
    if block_table.dim() != 2 or block_table.shape[0] != q.shape[0]:
        raise TensorError(
            f"attention: block_table has shape {shape(block_table)}, q {shape(q)}; give one row of "
            f"pages for each sequence, ({q.shape[0]}, pages of a sequence)"
        )
    if block_table.shape[1] * side < layout.n_k:
        raise TensorError(
            f"attention: block_table has shape {shape(block_table)}, so {block_table.shape[1]} "
            f"pages of {side} keys a sequence, {block_table.shape[1] * side} keys; the layout is "
            f"for {layout.n_k}: name {-(-layout.n_k // side)} pages (-1 for those not there yet)"
        )
    whole = q.shape[0], k.shape[1], layout.n_k
    one_k, one_v = k.new_empty(1), v.new_empty(1)
    return one_k.expand(*whole, k.shape[3]), one_v.expand(*whole, v.shape[3])


def positions(position: int | Tensor, q: Tensor, layout: AnyLayout) -> Tensor:
    """The first row's absolute position in each sequence, int32 [B] on q's device."""
    first, last = layout.q_offset, layout.q_offset + layout.n
    if isinstance(position, Tensor):
        if position.dtype not in (torch.int32, torch.int64) or position.numel() not in (
            1,
            q.shape[0],
        ):
            raise TensorError(
                f"attention: position is {position.dtype} of shape {shape(position)}; it must be "
                f"an int or int32 of shape ({q.shape[0]},), one for each sequence of q {shape(q)}"
            )
        if position.device != q.device:
            raise TensorError(
                f"attention: position is on {position.device}, q on {q.device}; put it there once, "
                "so that no step waits for the copy"
            )
        bounds = torch.iinfo(torch.int32)
        near = position.clamp(bounds.min, bounds.max).to(torch.int32)
        told = position.device.type == "cpu" and not torch.compiler.is_compiling()
        if told and type(position) is Tensor and bool((near != position).any()):
            raise TensorError(
                f"attention: {q.shape[2]} rows at position {position.tolist()} are outside the "
                f"layout's queries [{first}, {last})"
            )
        return near.reshape(-1).expand(q.shape[0]).contiguous()
    if isinstance(position, bool) or not isinstance(position, int | Integral):
        raise TensorError(
            f"attention: position must be an int or an int32 tensor, not {position!r}"
        )
    position = int(position)
    if not first <= position <= position + q.shape[2] <= last:
        raise TensorError(
            f"attention: {q.shape[2]} rows at position {position} are outside the layout's queries "
            f"[{first}, {last})"
        )
    return row(position, q)


def _check_integers(name: str, x: object, q: Tensor) -> None:
    """Refuse what is no int32 tensor beside q."""
    if not isinstance(x, Tensor):
        raise TensorError(f"attention: {name} is a {type(x).__name__}, not an int32 tensor")
    if x.dtype != torch.int32 or x.device != q.device:
        raise TensorError(
            f"attention: {name} is {x.dtype} on {x.device}, q is on {q.device}; it must be "
            f"torch.int32 there: {name}.to(q.device, torch.int32)"
        )
