"""`SparseAttention`: projections around `attention`, and a cache for decode steps."""

from __future__ import annotations

import operator
from functools import lru_cache, partial
from typing import Unpack

import torch
from torch import Tensor, nn

from patterncc.attend.call import attention, constant
from patterncc.attend.checks import AnyLayout, Options, row, shape
from patterncc.attend.checks_decode import Cache
from patterncc.attend.over import (
    Block,
    How,
    attend,
    check_layer,
    compiled,
    split_heads,
    step,
)
from patterncc.errors import PatternValueError, TensorError
from patterncc.layout.layout import Layout
from patterncc.pattern import check_int
from patterncc.primitives import Expander
from patterncc.stack import Layer, patterns_of
from patterncc.zones.lower import leaves, lower


class SparseAttention(nn.Module):
    """Attention over the edges of a pattern: projections around `attention`.

    x [B, L, dim] -> [B, L, dim].  The layout of each length is compiled once and kept; it is not
    part of the state dict, whose weights are q.weight, k.weight, v.weight and out.weight.

    pattern: a Pattern, or pc.heads([...]) with one pattern for each head.  kv_heads: default
    `heads`.  head_dim: default dim / heads.  context_dim: the width of what keys and values are
    made of, default dim.  block, layer: as in `compile`.

    >>> from patterncc import causal, window
    >>> m = SparseAttention(64, heads=4, kv_heads=2, pattern=causal() & window(31))
    >>> m(torch.randn(2, 100, 64)).shape
    torch.Size([2, 100, 64])

    Raises PatternValueError for sizes that do not divide.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        pattern: Layer | None = None,
        *,
        head_dim: int | None = None,
        context_dim: int | None = None,
        bias: bool = False,
        block: Block = None,
        layer: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check = partial(check_int, "SparseAttention", least=1)
        self.dim, self.heads = check("dim", dim), check("heads", heads)
        self.kv_heads = self.heads if kv_heads is None else check("kv_heads", kv_heads)
        for name, whole, part in (("dim", dim, heads), ("heads", heads, self.kv_heads)):
            if whole % part and (head_dim is None or name == "heads"):
                raise PatternValueError(
                    f"SparseAttention: {name} {whole} is not a multiple of {part}"
                )
        check_layer("SparseAttention", pattern, heads)
        assert pattern is not None
        self.head_dim = dim // heads if head_dim is None else check("head_dim", head_dim)
        self.context_dim = dim if context_dim is None else check("context_dim", context_dim)
        self.pattern, self.block, self.layer, self.backend = pattern, block, layer, backend
        self.q = nn.Linear(dim, self.heads * self.head_dim, bias=bias)
        self.k = nn.Linear(self.context_dim, self.kv_heads * self.head_dim, bias=bias)
        self.v = nn.Linear(self.context_dim, self.kv_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=bias)

    def layout(self, n: int, n_k: int | None = None, memory: int = 0) -> Layout:
        """The layout for n tokens behind a memory, or that read n_k others; compiled once."""
        keys = memory + n if n_k is None else n_k
        return compiled(self.pattern, n, keys, memory, False, self.block, self.layer)

    def new_cache(
        self, batch: int, capacity: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Zeroed K and V buffers [batch, kv_heads, capacity, head_dim] for decode steps.

        dtype: that of the keys that will be stored by default: under autocast its own, else that
        of the weights.
        """
        shape = (batch, self.kv_heads, capacity, self.head_dim)
        weight = self.k.weight
        if dtype is None:
            device = weight.device.type
            lower = torch.is_autocast_enabled(device) and weight.dtype != torch.float64
            dtype = torch.get_autocast_dtype(device) if lower else weight.dtype
        return weight.new_zeros(shape, dtype=dtype), weight.new_zeros(shape, dtype=dtype)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [B, kv_heads, L_k, head_dim] of a context, for steps that all read it."""
        k, v = self.k(context), self.v(context)
        return split_heads(k, self.head_dim), split_heads(v, self.head_dim)

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | tuple[Tensor, Tensor] | None = None,
        memory: Tensor | None = None,
        layout: AnyLayout | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
        position: int | Tensor | None = None,
        key_lengths: Tensor | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """All of x attends to itself; or to a context, or to a memory and itself, or to a cache.

        context: [B, L_k, context_dim], keys and values are made of it alone: cross-attention, the
        pattern one over two node sets, its rows x and its columns the context.  Its K and V, from
        `keys_values`, will do as well.
        memory: [B, M, dim], stands in front of x (Transformer-XL): it has the positions 0 .. M - 1,
        is read and reads nothing; x begins at position M.  Gradients flow into it if it has any;
        give memory.detach() for states of an earlier step.
        layout: in place of the pattern's own (documents that differ from batch to batch, say).
        cache, position: from `new_cache`, for causal patterns without gradient; the keys and values
        of x are written to it at `position` .. before its rows are read.  An int, or integers [B],
        one for each sequence.  Prompts may come at once or in chunks, steps of many rows.
        key_lengths: int32 [B], with position: keys at and past a sequence's length are not read.
        options: scale, softcap, alibi_slopes, relative_bias, sinks, key_mask of `attention`.

        Raises TensorError for x of another shape, or a cache that x does not fit in.
        """
        self._check(x, context, memory)
        if cache is not None and (context is not None or memory is not None):
            raise TensorError(
                "SparseAttention: a cache beside context or memory; a memory is the first tokens "
                "of a cache, and a context has no next token: give one of the three"
            )
        if cache is None and position is not None and (context is None or layout is None):
            raise TensorError(
                "SparseAttention: position needs a cache; see new_cache (or context= with layout=, "
                "compiled for all queries that will come)"
            )
        if key_lengths is not None and position is None:
            raise TensorError("SparseAttention: key_lengths needs position; else use key_mask=")
        offset = 0 if memory is None else operator.index(memory.shape[1])
        if layout is not None and memory is not None and layout.q_offset != offset:
            raise TensorError(
                f"SparseAttention: a memory of {offset} tokens, the layout's queries begin at "
                f"{layout.q_offset}; compile it with q_offset={offset}"
            )
        q = split_heads(self.q(x), self.head_dim)
        if isinstance(context, tuple):
            k, v = context
        else:
            source = x if memory is None else torch.cat((memory, x), 1)
            k, v = self.keys_values(source if context is None else context)
        how = How(self.block, self.layer, self.backend)
        if cache is not None:
            o = self._from_cache(q, k, v, cache, position, key_lengths, layout, how, options)
        elif position is not None and layout is not None:
            o = attention(
                *(q, k, v, layout),
                enable_gqa=True,
                position=position,
                key_lengths=key_lengths,
                backend=self.backend,
                **options,
            )
        else:
            over = self.pattern if layout is None else layout
            o = attend("SparseAttention", q, k, v, over, how, q_offset=offset, **options)
        joined: Tensor = self.out(o.transpose(1, 2).flatten(2))
        return joined

    def _check(
        self, x: Tensor, context: Tensor | tuple[Tensor, Tensor] | None, memory: Tensor | None
    ) -> None:
        """Refuse what is not shaped as the module's inputs are, or does not go together."""
        for name, given, width in (
            ("x", x, self.dim),
            ("context", context, self.context_dim),
            ("memory", memory, self.dim),
        ):
            if given is None or isinstance(given, tuple):  # K and V are looked at with q
                continue
            if given.dim() != 3 or given.shape[-1] != width:
                raise TensorError(
                    f"SparseAttention: {name} has shape {shape(given)}; it must be "
                    f"(batch, length, {width})"
                )
            if given.shape[0] != x.shape[0]:
                raise TensorError(
                    f"SparseAttention: {name} has shape {shape(given)}, x {shape(x)}; the batch "
                    "must agree"
                )
        if context is not None and memory is not None:
            raise TensorError("SparseAttention: context and memory; keys come from one of them")
        if context is None and self.context_dim != self.dim:
            raise TensorError(
                f"SparseAttention: no context, and keys are made of {self.context_dim} features, x "
                f"{shape(x)} has {self.dim}; give context="
            )

    def _from_cache(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: tuple[Tensor, Tensor],
        position: int | Tensor | None,
        key_lengths: Tensor | None,
        layout: AnyLayout | None,
        how: How,
        options: Options,
    ) -> Tensor:
        """Rows of q read what the cache holds once k and v are stored; in the cache's precision."""
        if layout is None:
            _check_cached(self.pattern, operator.index(cache[0].shape[2]))
        at = _store(cache, k, v, position)
        keys, values = cache
        narrow = q.to(keys.dtype)
        if layout is not None:
            o = attention(
                *(narrow, keys, values, layout),
                enable_gqa=True,
                position=at,
                key_lengths=key_lengths,
                backend=self.backend,
                **options,
            )
        else:
            where = Cache(at, None, _lengths(key_lengths, q))
            o = step(narrow, keys, values, self.pattern, how, where, **options)
        return o.to(q.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows beside the projections."""
        return f"{self.dim}, heads={self.heads}, kv_heads={self.kv_heads}, pattern={self.pattern}"


@constant
def _check_cached(pattern: Layer, n: int) -> bool:
    return _is_cached(pattern, n)  # torch traces into a cache that it meets first


@lru_cache(maxsize=64)
def _is_cached(pattern: Layer, n: int) -> bool:
    """Refuse patterns whose rows a cache of n positions would not answer as the whole pass does."""
    for head, p in enumerate(patterns_of(pattern)):
        for leaf in leaves(p):
            if isinstance(leaf, Expander) or not getattr(leaf, "past", True):
                raise PatternValueError(
                    f"SparseAttention: the edges of {leaf} depend on the length, so a decode step "
                    "would not see what the whole pass saw; use past=True, or give layout="
                )
        table = lower(p, n, head=head).table
        if len(table) and int(table[:, 5].max()) > 1:
            raise PatternValueError(
                f"SparseAttention: {p} reads later positions, which a cache does not hold yet; "
                "intersect it with causal(), or run the whole sequence without a cache"
            )
    return True


def _store(
    cache: tuple[Tensor, Tensor], k: Tensor, v: Tensor, position: int | Tensor | None
) -> Tensor:
    """Write new keys and values into a cache's buffers; gives where they begin, int32 [B]."""
    if position is None:
        raise TensorError("SparseAttention: a cache needs the position of x's first token")
    if isinstance(position, Tensor):
        return _store_each(cache, k, v, position)
    last = position + k.shape[2]
    for buffer, new in zip(cache, (k, v), strict=True):
        if not _fits(buffer, new) or not 0 <= position <= last <= buffer.shape[2]:
            raise _misfit(new, buffer, position)
        buffer[:, :, position:last] = new.detach()
    return row(position, k)


def _store_each(cache: tuple[Tensor, Tensor], k: Tensor, v: Tensor, position: Tensor) -> Tensor:
    """`_store` with a place for each sequence.  On a GPU the device asserts that they fit."""
    if position.dtype not in (torch.int32, torch.int64) or position.shape != k.shape[:1]:
        raise TensorError(
            f"SparseAttention: position is {position.dtype} of shape {shape(position)}; it must be "
            f"an int, or int32 of shape ({k.shape[0]},), one for each sequence"
        )
    rows = position[:, None].long() + torch.arange(k.shape[2], device=k.device)
    batch = torch.arange(k.shape[0], device=k.device)[:, None]
    seen = k.device.type == "cpu" and not torch.compiler.is_compiling()
    for buffer, new in zip(cache, (k, v), strict=True):
        inside = (rows >= 0) & (rows < buffer.shape[2])
        if not _fits(buffer, new) or (seen and not bool(inside.all())):
            raise _misfit(new, buffer, position.tolist() if seen else position)
        buffer[batch, :, rows] = new.detach().transpose(1, 2).to(buffer.dtype)
    return position.to(torch.int32)


def _fits(buffer: Tensor, new: Tensor) -> bool:
    return buffer.shape[:2] == new.shape[:2] and buffer.shape[3] == new.shape[3]


def _misfit(new: Tensor, buffer: Tensor, position: object) -> TensorError:
    return TensorError(
        f"SparseAttention: keys of shape {shape(new)} at position {position} do not fit a "
        f"cache of shape {shape(buffer)}"
    )


def _lengths(key_lengths: Tensor | None, q: Tensor) -> Tensor | None:
    """The lengths as the op takes them."""
    if key_lengths is None:
        return None
    integers = key_lengths.dtype in (torch.int32, torch.int64)
    if not integers or key_lengths.shape != q.shape[:1] or key_lengths.device != q.device:
        raise TensorError(
            f"SparseAttention: key_lengths is {key_lengths.dtype} of shape {shape(key_lengths)} on "
            f"{key_lengths.device}; it must be int32 of shape ({q.shape[0]},) on {q.device}"
        )
    return key_lengths.to(torch.int32).contiguous()
