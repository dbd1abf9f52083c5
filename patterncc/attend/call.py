"""`attention`: a layout's edges and nothing else, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar, assert_never, cast, overload

import torch
from torch import Tensor

from patterncc.attend.checks import (
    AnyLayout,
    check_backend,
    check_deterministic,
    check_layout,
    check_no_cache,
    check_tensors,
    check_transforms,
    score_of,
)
from patterncc.attend.checks_decode import Cache, as_one_piece, cache_of
from patterncc.errors import TensorError
from patterncc.kernels import carried, dynamic, op, routed, upload
from patterncc.kernels.carried import CarriedLayout
from patterncc.kernels.dynamic import DynamicLayout
from patterncc.kernels.routed import RoutedLayout
from patterncc.kernels.score import Score
from patterncc.layout.layout import Layout


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
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    relative_bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    deterministic: bool = True,
    block_table: Tensor | None = None,
    key_lengths: Tensor | None = None,
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
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    relative_bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    deterministic: bool = True,
    block_table: Tensor | None = None,
    key_lengths: Tensor | None = None,
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
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    relative_bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    deterministic: bool = True,
    block_table: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over the edges of a layout, and nothing else.

    q [B, H, n, D], k [B, Hkv, n_k, D], v [B, Hkv, n_k, Dv] give [B, H, n, Dv]; H a multiple of
    Hkv, a larger one only with enable_gqa.  scale: default 1 / sqrt(D).  return_lse: also the
    natural log of each row's sum, fp32 [B, H, n], without gradient.  A row that reads nothing gives
    out 0, lse -inf and gradients 0.  Keys and values that no query of the layout reads, or that
    key_mask leaves out, may hold any number, NaN too: they are cleared in a copy, if there are any.

    What a score is made of, in this order (docs/scores.md; all but softcap differentiable):

    softcap: x = softcap * tanh(x / softcap).
    alibi_slopes: [H], x = x - slope * |i - j|, i and j positions of query and key.
    relative_bias: [H, 2 R + 1], x = x + bias[clamp(j - i, -R, R) + R].
    key_mask: bool [B, keys of k], only keys with True are read.
    sinks: [H], each row's sum counts exp(sink) once more; lse counts it too, so that a row that
    reads nothing has lse = sink.

    There is no forward-mode differentiation, no second derivative, and no torch.func transform.
    scale and softcap must be positive fp32 numbers, for float64 tensors float64 ones.

    deterministic: the gradients are the same bits on every run; False may be faster on a GPU.

    position: a decode step, without gradient: q holds the rows that stand at the absolute positions
    position, position + 1, .. (int, or integers [B], one for each sequence), among the layout's
    queries [q_offset, q_offset + n).  A tensor's values are not checked on a GPU: a row that the
    layout lacks reads nothing.  k and v have n_k rows, a cache's buffer say: slots that no row of
    the step reads may hold anything, NaN too (docs/decode.md).  Or they have fewer, those of a
    cache that still grows: these are the layout's first keys, and the others count as absent, even
    for a row that the pattern lets read them, as if key_lengths stopped there.
    key_lengths: int32 [B], with position: keys at and past a sequence's length are not read.
    block_table: int32 [B, pages of a sequence], with position: the cache is in pages, k
    [pages, Hkv, page, D] and v alike, a page a power of two from 16 to 4096 keys; key j of a
    sequence stands in page block_table[b, j // page].  Entries of pages that are not read may be
    anything; on a GPU a key whose page is not there is not read, on the CPU it is refused.

    backend: "auto" is "triton" on CUDA and "cpu" on the CPU: native kernels where there is a C++
    compiler, else torch's own (docs/cpu.md); "reference" is dense and small.

    >>> from patterncc import causal, window
    >>> from patterncc.layout import compile
    >>> layout = compile(causal() & window(15), 100)
    >>> q, k, v = torch.randn(3, 1, 2, 100, 32).unbind()
    >>> attention(q, k, v, layout, softcap=30.0).shape
    torch.Size([1, 2, 100, 32])

    Raises TensorError for tensors that do not fit each other or the layout, BackendError for a
    backend that cannot run here.
    """
    if not isinstance(layout, AnyLayout):
        raise TensorError(
            f"attention: the layout is a {type(layout).__name__}; give what pc.compile returns, "
            "one layer at a time"
        )
    if position is None:
        check_no_cache(block_table, key_lengths)
        check_deterministic(deterministic)
    seen = (k, v) if block_table is None else as_one_piece(q, k, v, layout, block_table)
    check_tensors(q, *seen, enable_gqa)
    check_layout(q, seen[0], layout, position)
    score = score_of(q, seen[0], scale, softcap, alibi_slopes, relative_bias, sinks, key_mask)
    prepared = _prepare(layout, q.device, backend, step=position is not None)
    if position is None:
        out, lse = run(q, k, v, prepared, score, deterministic=deterministic)
    else:
        cache = cache_of(q, layout, position, block_table, key_lengths)
        out, lse = decode(q, k, v, prepared, score, cache)
    return (out, lse.float()) if return_lse else out


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prepared: upload.Prepared,
    score: Score,
    *,
    deterministic: bool = True,
) -> tuple[Tensor, Tensor]:
    """The op on tensors that fit the layout."""
    tensors, plan, runs_on = prepared
    check_backend(q, v, runs_on)
    check_transforms(q, k, v, score.slopes, score.bias, score.sinks)
    out, lse = op.attention(
        *(q, k, v, tensors, plan, score.scale, score.softcap),
        *(score.slopes, score.bias, score.sinks, score.keys, deterministic),
    )
    return out, lse


def decode(
    q: Tensor, k: Tensor, v: Tensor, prepared: upload.Prepared, score: Score, cache: Cache
) -> tuple[Tensor, Tensor]:
    """The op for a few rows of the layout, without gradient."""
    tensors, plan, runs_on = prepared
    check_backend(q, v, runs_on)
    given = [x for x in (q, k, v, score.slopes, score.bias, score.sinks) if x is not None]
    check_transforms(*given)
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise TensorError(
            "attention: a decode step (position=) has no gradient; run it under "
            "torch.no_grad(), or train on the whole sequence without position"
        )
    out, lse = op.decode(
        *(q, k, v, tensors, plan, score.scale, *cache, score.softcap),
        *(score.slopes, score.bias, score.sinks, score.keys),
    )
    return out, lse


def _prepare(
    layout: AnyLayout, device: torch.device, backend: str, *, step: bool
) -> upload.Prepared:
    match layout:
        case Layout():
            return _prepared(layout, device, backend)
        case DynamicLayout():
            return dynamic.prepared(layout, device, backend)
        case CarriedLayout():
            return carried.prepared(layout, device, backend, step=step)
        case RoutedLayout():
            return routed.prepared(layout, device, backend, step=step)
        case _:
            assert_never(layout)


F = TypeVar("F", bound=Callable[..., object])


def constant(make: F) -> F:
    """`make`'s results are constants of a graph that torch traces, guarded by its arguments."""
    return cast(F, torch.compiler.assume_constant_result(make))  # type: ignore[no-untyped-call]


_prepared = constant(upload.traced)
