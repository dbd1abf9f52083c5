"""`attention_varlen`: attention over packed sequences, tensors as FlashAttention's varlen takes."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from patterncc.attend.call import attention
from patterncc.attend.checks import AnyLayout, shape
from patterncc.errors import TensorError


@overload
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AnyLayout,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[False] = False,
    backend: str = "auto",
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    relative_bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    deterministic: bool = True,
) -> Tensor: ...
@overload
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AnyLayout,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[True],
    backend: str = "auto",
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    relative_bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    deterministic: bool = True,
) -> tuple[Tensor, Tensor]: ...
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AnyLayout,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    backend: str = "auto",
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    relative_bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    deterministic: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention` of sequences packed behind each other, over what `compile_packed` made of them.

    q [total, H, D], k [total_k, Hkv, D], v [total_k, Hkv, Dv] give [total, H, Dv]; with return_lse
    also the natural log of each row's sum, fp32 [H, total].  Nothing is copied: the tensors are
    seen as one sequence, [1, H, total, D], and the output is a view of such a one.  Rows past the
    last sequence (total=) give 0.  key_mask is bool [total_k].  Other options and all gradients are
    those of `attention`; ALiBi and relative bias count positions within a sequence.

    >>> import torch
    >>> from patterncc import causal, window
    >>> from patterncc.layout.packed import compile_packed
    >>> layout = compile_packed(causal() & window(15), [0, 60, 100])
    >>> q, k, v = torch.randn(3, 100, 2, 32).unbind()
    >>> attention_varlen(q, k, v, layout).shape
    torch.Size([100, 2, 32])

    Raises TensorError for tensors that do not fit each other or the layout, BackendError for a
    backend that cannot run here.
    """
    _check(q, k, v, layout)
    out, lse = attention(
        q.transpose(0, 1).unsqueeze(0),
        k.transpose(0, 1).unsqueeze(0),
        v.transpose(0, 1).unsqueeze(0),
        layout,
        scale=scale,
        enable_gqa=enable_gqa,
        return_lse=True,
        backend=backend,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        relative_bias=relative_bias,
        key_mask=None if key_mask is None else _of_all(key_mask, k),
        deterministic=deterministic,
    )
    out = out.squeeze(0).transpose(0, 1)
    return (out, lse.squeeze(0)) if return_lse else out


def _of_all(key_mask: Tensor, k: Tensor) -> Tensor:
    """A mask of packed keys as that of one sequence."""
    if not isinstance(key_mask, Tensor) or key_mask.shape != k.shape[:1]:
        given = shape(key_mask) if isinstance(key_mask, Tensor) else type(key_mask).__name__
        raise TensorError(
            f"attention_varlen: key_mask is {given} for k of shape {shape(k)}; give one bool for "
            f"each key, ({k.shape[0]},)"
        )
    return key_mask.unsqueeze(0)


def _check(q: Tensor, k: Tensor, v: Tensor, layout: AnyLayout) -> None:
    """Refuse what does not fit, in the words of packed tensors; `attention` checks the rest."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TensorError(f"attention_varlen: {name} is a {type(x).__name__}, not a tensor")
        if x.dim() != 3:
            raise TensorError(
                f"attention_varlen: {name} has shape {shape(x)}; it must be (total, heads, head "
                "dim), all sequences behind each other; pc.attention takes (batch, heads, length, "
                "head dim)"
            )
    if k.shape[:2] != v.shape[:2]:
        raise TensorError(
            f"attention_varlen: k has shape {shape(k)} and v {shape(v)}; total and heads must agree"
        )
    if q.shape[2] != k.shape[2]:
        raise TensorError(
            f"attention_varlen: q has shape {shape(q)} and k {shape(k)}; head dims must agree"
        )
    sizes = tuple(getattr(layout, name, None) for name in ("n", "n_k"))
    if None not in sizes and (q.shape[0], k.shape[0]) != sizes:
        raise TensorError(
            f"attention_varlen: q has shape {shape(q)} and k {shape(k)}, the layout is for "
            f"{sizes[0]} rows and {sizes[1]} keys; compile one for this batch's cu_seqlens, with "
            "total= and total_k= where padding follows the last sequence"
        )
