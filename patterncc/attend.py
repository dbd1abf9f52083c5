"""`attention`: a layout's edges and nothing else, with gradients; `SparseAttention` around it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Literal, TypeVar, assert_never, cast, overload

import torch
from torch import Tensor, nn

from patterncc.errors import PatternError, PatternValueError, TensorError
from patterncc.kernels import carried, dynamic, op, runtime
from patterncc.kernels.carried import CarriedLayout
from patterncc.kernels.dynamic import DynamicLayout
from patterncc.kernels.plan import HEAD_DIMS, Backend
from patterncc.layout import compile as compile_layout
from patterncc.layout.layout import Layout
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import Expander
from patterncc.stack import Heads, patterns_of
from patterncc.zones.lower import leaves, lower

AnyLayout = Layout | DynamicLayout | CarriedLayout
"""What `attention` takes: made on the host, on the device, or on the host and carried to it."""

DTYPES: dict[Backend, tuple[torch.dtype, ...]] = {
    "triton": (torch.float16, torch.bfloat16, torch.float32),
    "cpu": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    "reference": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AnyLayout,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[False] = False,
    position: int | Tensor | None = None,
    backend: str = "auto",
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AnyLayout,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[True],
    position: int | Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AnyLayout,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    position: int | Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over the edges of a layout, and nothing else.

    q [B, H, n, D], k [B, Hkv, n_k, D], v [B, Hkv, n_k, Dv] give [B, H, n, Dv]; H a multiple of
    Hkv, a larger one only with enable_gqa.  scale: default 1 / sqrt(D).  return_lse: also the
    natural log of each row's sum, fp32 [B, H, n], without gradient.  A row that reads nothing gives
    out 0, lse -inf and gradients 0.  Keys and values that nobody reads must be finite all the same:
    those of a touched tile are multiplied by 0.

    position: a decode step, without gradient: q holds the rows that stand at the absolute positions
    position, position + 1, .. (int, or int32 [B], one for each sequence), among the layout's
    queries [q_offset, q_offset + n).  A tensor's values are not checked on a GPU: a row that the
    layout lacks reads nothing.  k and v still have n_k rows, a cache's buffer say: rows that the
    queries may not read need not be filled, but must be finite.

    backend: "auto" is Triton on CUDA and torch's flash kernels on the CPU; "triton", "cpu",
    "reference".

    >>> from patterncc import causal, window
    >>> from patterncc.layout import compile
    >>> layout = compile(causal() & window(15), 100)
    >>> q, k, v = torch.randn(3, 1, 2, 100, 32).unbind()
    >>> attention(q, k, v, layout).shape
    torch.Size([1, 2, 100, 32])

    Raises TensorError for tensors that do not fit each other or the layout, BackendError for a
    backend that cannot run here.
    """
    if not isinstance(layout, Layout | DynamicLayout | CarriedLayout):
        raise TensorError(
            f"attention: the layout is a {type(layout).__name__}; give what pc.compile returns, "
            "one layer at a time"
        )
    _check_tensors(q, k, v, enable_gqa)
    _check_layout(q, k, layout, position)
    at = None if position is None else _positions(position, q, layout)
    out, lse = _run(q, k, v, _prepare(layout, q.device, backend), scale, at)
    return (out, lse.float()) if return_lse else out


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prepared: runtime.Prepared,
    scale: float | None,
    position: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The op on tensors that fit the layout."""
    tensors, plan, runs_on = prepared
    _check_backend(q, v, runs_on)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if not 0 < scale < math.inf:
        raise TensorError(f"attention: scale must be positive and finite, not {scale}")
    if position is None:
        out, lse = op.attention(q, k, v, tensors, plan, scale)
    else:
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise TensorError(
                "attention: a decode step (position=) has no gradient; run it under "
                "torch.no_grad(), or train on the whole sequence without position"
            )
        out, lse = op.decode(q, k, v, tensors, plan, scale, position)
    return out, lse


def _prepare(layout: AnyLayout, device: torch.device, backend: str) -> runtime.Prepared:
    match layout:
        case Layout():
            return _prepared(layout, device, backend)
        case DynamicLayout():
            return dynamic.prepared(layout, device, backend)
        case CarriedLayout():
            return carried.prepared(layout, device, backend)
        case _:
            assert_never(layout)


F = TypeVar("F", bound=Callable[..., object])


def _constant(make: F) -> F:
    """`make`'s results are constants of a graph that torch traces, guarded by its arguments."""
    return cast(F, torch.compiler.assume_constant_result(make))  # type: ignore[no-untyped-call]


_prepared = _constant(runtime.prepared)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TensorError(f"attention: {name} is a {type(x).__name__}, not a tensor")
        if x.dim() != 4:
            raise TensorError(
                f"attention: {name} has shape {_shape(x)}; "
                "it must be (batch, heads, length, head dim)"
            )
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype or x.device != q.device:
            raise TensorError(
                f"attention: q is {q.dtype} on {q.device}, {name} is {x.dtype} on {x.device}; "
                "they must be equal"
            )
    if k.shape[:3] != v.shape[:3]:
        raise TensorError(
            f"attention: k has shape {_shape(k)} and v {_shape(v)}; "
            "batch, heads and length must agree"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise TensorError(
            f"attention: q has shape {_shape(q)} and k {_shape(k)}; batch and head dim must agree"
        )
    heads, kv_heads = q.shape[1], k.shape[1]
    if kv_heads == 0 or heads % kv_heads:
        raise TensorError(
            f"attention: q has {heads} heads and k {kv_heads}; q's must be a multiple of k's"
        )
    if heads != kv_heads and not enable_gqa:
        raise TensorError(
            f"attention: q has {heads} heads and k {kv_heads}; pass enable_gqa=True if groups of "
            f"{heads // kv_heads} query heads are meant to share keys"
        )


def _check_layout(q: Tensor, k: Tensor, layout: AnyLayout, position: object) -> None:
    rows = q.shape[2]
    if k.shape[2] != layout.n_k or (position is None and rows != layout.n):
        raise TensorError(
            f"attention: q has shape {_shape(q)} and k {_shape(k)}, the layout is for {layout.n} "
            f"queries and {layout.n_k} keys; compile one for n={rows}, n_k={k.shape[2]}"
            + (", or give position= for a decode step" if rows < layout.n else "")
        )
    if layout.heads not in (None, q.shape[1]):
        raise TensorError(
            f"attention: q has {q.shape[1]} heads (shape {_shape(q)}), the layout is for "
            f"{layout.heads}"
        )
    if layout.sequences not in (1, len(q)):
        raise TensorError(
            f"attention: q has a batch of {len(q)} (shape {_shape(q)}), the layout holds a mask "
            f"for each of {layout.sequences} sequences; compile one for the sequences of this batch"
        )


def _check_backend(q: Tensor, v: Tensor, backend: Backend) -> None:
    if q.dtype not in DTYPES[backend]:
        known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES[backend])
        raise TensorError(f"attention: q is {q.dtype}; the {backend} backend takes {known}")
    least, most = HEAD_DIMS
    for name, x in (("q and k", q), ("v", v)):
        dim = x.shape[-1]
        if backend == "triton" and not least <= dim <= most:
            raise TensorError(
                f"attention: {name} have head dim {dim}; the triton backend takes {least} to {most}"
            )


def _positions(position: int | Tensor, q: Tensor, layout: AnyLayout) -> Tensor:
    """The first row's absolute position in each sequence, int32 [B] on q's device."""
    first, last = layout.q_offset, layout.q_offset + layout.n
    if isinstance(position, Tensor):
        if position.dtype not in (torch.int32, torch.int64) or position.numel() not in (1, len(q)):
            raise TensorError(
                f"attention: position is {position.dtype} of shape {_shape(position)}; it must be "
                f"an int or int32 of shape ({len(q)},), one for each sequence of q {_shape(q)}"
            )
        moved = position.reshape(-1).to(device=q.device, dtype=torch.int32)
        return moved.expand(len(q)).contiguous()
    if isinstance(position, bool) or not isinstance(position, int):
        raise TensorError(
            f"attention: position must be an int or an int32 tensor, not {position!r}"
        )
    if not first <= position <= position + q.shape[2] <= last:
        raise TensorError(
            f"attention: {q.shape[2]} rows at position {position} are outside the layout's queries "
            f"[{first}, {last})"
        )
    return _row(position, q)


def _row(position: int, q: Tensor) -> Tensor:
    return torch.full((len(q),), position, dtype=torch.int32, device=q.device)


def _shape(x: Tensor) -> str:
    return f"({', '.join(map(str, x.shape))})"


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
    ) -> Tensor:
        """All of x attends to itself; or, with a cache, x stands at `position` after what it holds.

        layout: in place of the pattern's own (documents that differ from batch to batch, say).
        cache, position: from `new_cache`, for causal patterns without gradient; the keys and values
        of x are written to it at `position` .. before its rows are read.

        Raises TensorError for x of another shape, or a cache that x does not fit in.
        """
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise TensorError(
                f"SparseAttention: x has shape {_shape(x)}; it must be (batch, length, {self.dim})"
            )
        q, k, v = (_split(project(x), self.head_dim) for project in (self.q, self.k, self.v))
        if cache is not None:
            if layout is None:
                _check_cached(self.pattern, operator.index(cache[0].shape[2]))
            k, v = _store(cache, k, v, position)
        elif position is not None:
            raise TensorError("SparseAttention: position needs a cache; see new_cache")
        if layout is not None:
            o = attention(q, k, v, layout, enable_gqa=True, position=position, backend=self.backend)
        else:
            n = operator.index(k.shape[2])  # a traced graph has its own layout, so one length
            recipe = self.pattern, n, self.block, self.layer
            at = None if position is None else _row(position, q)
            o, _ = _run(q, k, v, _prepared_for(*recipe, q.device, self.backend), None, at)
        joined: Tensor = self.out(o.transpose(1, 2).flatten(2))
        return joined

    def extra_repr(self) -> str:
        """What `print(model)` shows beside the projections."""
        return f"{self.dim}, heads={self.heads}, kv_heads={self.kv_heads}, pattern={self.pattern}"


@_constant
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


@_constant
def _prepared_for(
    pattern: Pattern | Heads,
    n: int,
    block: int | tuple[int, int] | None,
    layer: int,
    device: torch.device,
    backend: str,
) -> runtime.Prepared:
    return runtime.prepared(_compiled(pattern, n, block, layer), device, backend)


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
                f"SparseAttention: keys of shape {_shape(new)} at position {position} do not fit a "
                f"cache of shape {_shape(buffer)}"
            )
        buffer[:, :, position:last] = new.detach()
    return cache
