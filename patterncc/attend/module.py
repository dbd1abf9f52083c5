"""`SparseAttention`: projections around `attention`, and a cache for decode steps."""

from __future__ import annotations

import operator
from functools import lru_cache, partial
from typing import Unpack

import torch
from torch import Tensor, nn

from patterncc.attend.call import attention, constant, decode, run
from patterncc.attend.checks import AnyLayout, Options, row, score_of, shape
from patterncc.attend.checks_decode import Cache
from patterncc.errors import PatternError, PatternValueError, TensorError
from patterncc.kernels import upload
from patterncc.layout import compile as compile_layout
from patterncc.layout.layout import Layout
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import Expander
from patterncc.stack import Heads, patterns_of
from patterncc.zones.lower import leaves, lower


class SparseAttention(nn.Module):
    """Self-attention over the edges of a pattern: projections around `attention`.

    x [B, L, dim] -> [B, L, dim].  The layout of each length is compiled once and kept; it is not
    part of the state dict, whose weights are q.weight, k.weight, v.weight and out.weight.

    pattern: a Pattern, or pc.heads([...]) with one pattern for each head.  kv_heads: default
    `heads`.  head_dim: default dim / heads.  block, layer: as in `compile`.

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
        pattern: Pattern | Heads | None = None,
        *,
        head_dim: int | None = None,
        bias: bool = False,
        block: int | tuple[int, int] | None = None,
        layer: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(pattern, Pattern | Heads):
            raise PatternError(f"SparseAttention: {pattern!r} is not a pattern or pc.heads([...])")
        check = partial(check_int, "SparseAttention", least=1)
        self.dim, self.heads = check("dim", dim), check("heads", heads)
        self.kv_heads = self.heads if kv_heads is None else check("kv_heads", kv_heads)
        for name, whole, part in (("dim", dim, heads), ("heads", heads, self.kv_heads)):
            if whole % part and (head_dim is None or name == "heads"):
                raise PatternValueError(
                    f"SparseAttention: {name} {whole} is not a multiple of {part}"
                )
        if isinstance(pattern, Heads) and len(pattern.patterns) != heads:
            raise PatternValueError(
                f"SparseAttention: {heads} heads, but a pattern for {len(pattern.patterns)}"
            )
        self.head_dim = dim // heads if head_dim is None else check("head_dim", head_dim)
        self.pattern, self.block, self.layer, self.backend = pattern, block, layer, backend
        self.q = nn.Linear(dim, self.heads * self.head_dim, bias=bias)
        self.k = nn.Linear(dim, self.kv_heads * self.head_dim, bias=bias)
        self.v = nn.Linear(dim, self.kv_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=bias)

    def layout(self, n: int) -> Layout:
        """The layout for n tokens, compiled on first use."""
        return _compiled(self.pattern, n, self.block, self.layer)

    def new_cache(self, batch: int, capacity: int) -> tuple[Tensor, Tensor]:
        """Zeroed K and V buffers [batch, kv_heads, capacity, head_dim] for decode steps."""
        shape = (batch, self.kv_heads, capacity, self.head_dim)
        weight = self.k.weight
        return weight.new_zeros(shape), weight.new_zeros(shape)

    def forward(
        self,
        x: Tensor,
        *,
        layout: AnyLayout | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
        position: int | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """All of x attends to itself; or, with a cache, x stands at `position` after what it holds.

        layout: in place of the pattern's own (documents that differ from batch to batch, say).
        cache, position: from `new_cache`, for causal patterns without gradient; the keys and values
        of x are written to it at `position` .. before its rows are read.
        options: scale, softcap, alibi_slopes, relative_bias, sinks, key_mask of `attention`.

        Raises TensorError for x of another shape, or a cache that x does not fit in.
        """
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise TensorError(
                f"SparseAttention: x has shape {shape(x)}; it must be (batch, length, {self.dim})"
            )
        q, k, v = (_split(project(x), self.head_dim) for project in (self.q, self.k, self.v))
        if cache is not None:
            if layout is None:
                _check_cached(self.pattern, operator.index(cache[0].shape[2]))
            k, v = _store(cache, k, v, position)
        elif position is not None:
            raise TensorError("SparseAttention: position needs a cache; see new_cache")
        if layout is not None:
            o = attention(
                *(q, k, v, layout),
                enable_gqa=True,
                position=position,
                backend=self.backend,
                **options,
            )
        else:
            n = operator.index(k.shape[2])  # a traced graph has its own layout, so one length
            recipe = self.pattern, n, self.block, self.layer
            at = None if position is None else row(position, q)
            prepared = _prepared_for(*recipe, q.device, self.backend)
            score = score_of(q, k, **options)
            o, _ = (
                run(q, k, v, prepared, score)
                if at is None
                else decode(q, k, v, prepared, score, Cache(at))
            )
        joined: Tensor = self.out(o.transpose(1, 2).flatten(2))
        return joined

    def extra_repr(self) -> str:
        """What `print(model)` shows beside the projections."""
        return f"{self.dim}, heads={self.heads}, kv_heads={self.kv_heads}, pattern={self.pattern}"


@constant
@lru_cache(maxsize=64)
def _check_cached(pattern: Pattern | Heads, n: int) -> bool:
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


@lru_cache(maxsize=64)
def _compiled(
    pattern: Pattern | Heads, n: int, block: int | tuple[int, int] | None, layer: int
) -> Layout:
    return compile_layout(pattern, n, block=block, layer=layer)


@constant
def _prepared_for(
    pattern: Pattern | Heads,
    n: int,
    block: int | tuple[int, int] | None,
    layer: int,
    device: torch.device,
    backend: str,
) -> upload.Prepared:
    return upload.traced(_compiled(pattern, n, block, layer), device, backend)


def _split(x: Tensor, head_dim: int) -> Tensor:
    """[B, L, H * D] -> [B, H, L, D]."""
    return x.reshape(*x.shape[:2], -1, head_dim).transpose(1, 2)


def _store(
    cache: tuple[Tensor, Tensor], k: Tensor, v: Tensor, position: int | None
) -> tuple[Tensor, Tensor]:
    """Write new keys and values into a cache's buffers, and give the buffers."""
    if position is None:
        raise TensorError("SparseAttention: a cache needs the position of x's first token")
    last = position + k.shape[2]
    for buffer, new in zip(cache, (k, v), strict=True):
        fits = buffer.shape[:2] == new.shape[:2] and buffer.shape[3] == new.shape[3]
        if not fits or not 0 <= position <= last <= buffer.shape[2]:
            raise TensorError(
                f"SparseAttention: keys of shape {shape(new)} at position {position} do not fit a "
                f"cache of shape {shape(buffer)}"
            )
        buffer[:, :, position:last] = new.detach()
    return cache
