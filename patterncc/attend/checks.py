"""What `attention` refuses, before anything runs: messages quote both sides."""

from __future__ import annotations

import math
from numbers import Real
from typing import TypedDict

import torch
from torch import Tensor
from torch.autograd import forward_ad

from patterncc.errors import TensorError
from patterncc.kernels.carried import CarriedLayout
from patterncc.kernels.dynamic import DynamicLayout
from patterncc.kernels.plan import HEAD_DIMS
from patterncc.kernels.routed import RoutedLayout
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Backend
from patterncc.layout.layout import Layout

AnyLayout = Layout | DynamicLayout | CarriedLayout | RoutedLayout
"""What `attention` takes: made on the host, on the device, on the host and carried to it, or of
what a router chose."""

DTYPES: dict[Backend, tuple[torch.dtype, ...]] = {
    "triton": (torch.float16, torch.bfloat16, torch.float32),
    "cpu": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    "reference": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


def check_tensors(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    """Refuse tensors that do not fit each other."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TensorError(f"attention: {name} is a {type(x).__name__}, not a tensor")
        if x.is_nested or x.layout != torch.strided:
            raise TensorError(
                f"attention: {name} is a nested or sparse tensor ({x.layout}); give a dense one "
                "(x.to_dense()); sequences of several lengths go packed to pc.attention_varlen"
            )
        if x.dim() != 4:
            raise TensorError(
                f"attention: {name} has shape {shape(x)}; "
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
            f"attention: k has shape {shape(k)} and v {shape(v)}; "
            "batch, heads and length must agree"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise TensorError(
            f"attention: q has shape {shape(q)} and k {shape(k)}; batch and head dim must agree"
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


def check_layout(q: Tensor, k: Tensor, layout: AnyLayout, position: object) -> None:
    """Refuse tensors that do not fit the layout."""
    rows, held = q.shape[2], k.shape[2]
    if position is not None and held > layout.n_k:
        raise TensorError(
            f"attention: q has shape {shape(q)} and k {shape(k)}, {held} keys; a decode step takes "
            f"the first keys of the layout, at most its {layout.n_k}: compile it with n_k={held}, "
            "or cut k and v"
        )
    if position is None and (held != layout.n_k or rows != layout.n):
        raise TensorError(
            f"attention: q has shape {shape(q)} and k {shape(k)}, the layout is for {layout.n} "
            f"queries and {layout.n_k} keys; compile one for n={rows}, n_k={k.shape[2]}"
            + (", or give position= for a decode step" if rows < layout.n else "")
        )
    if layout.heads not in (None, q.shape[1]):
        raise TensorError(
            f"attention: q has {q.shape[1]} heads (shape {shape(q)}), the layout is for "
            f"{layout.heads}"
        )
    of_all = not isinstance(layout, RoutedLayout)  # a routed one is for its sequences alone
    if layout.sequences != q.shape[0] and not (of_all and layout.sequences == 1):
        raise TensorError(
            f"attention: q has a batch of {q.shape[0]} (shape {shape(q)}), the layout holds a mask "
            f"for each of {layout.sequences} sequences; compile one for the sequences of this batch"
        )


def check_backend(q: Tensor, v: Tensor, backend: Backend) -> None:
    """Refuse dtypes and head dims that the backend does not take."""
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


class Options(TypedDict, total=False):
    """The options of a score as a model passes them on: see `attention`."""

    scale: float | None
    softcap: float | None
    alibi_slopes: Tensor | None
    relative_bias: Tensor | None
    sinks: Tensor | None
    key_mask: Tensor | None


def score_of(
    q: Tensor,
    k: Tensor,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    relative_bias: Tensor | None = None,
    sinks: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Score:
    """The options of a call, after checks, in the precision that kernels take."""
    slopes, bias, keys = alibi_slopes, relative_bias, key_mask
    scale = 1 / math.sqrt(max(1, q.shape[-1])) if scale is None else _positive("scale", scale, q)
    softcap = 0.0 if softcap is None else _positive("softcap", softcap, q)
    heads = q.shape[1]
    for name, x in (("alibi_slopes", slopes), ("sinks", sinks), ("relative_bias", bias)):
        if x is not None:
            _check_of_heads(name, x, q)
    for name, x in (("alibi_slopes", slopes), ("sinks", sinks)):
        if x is not None and x.shape != (heads,):
            raise TensorError(
                f"attention: {name} has shape {shape(x)}, q {shape(q)} has {heads} heads; give "
                f"one number a head, ({heads},)"
            )
    if bias is not None and (bias.dim() != 2 or len(bias) != heads or bias.shape[1] % 2 == 0):
        raise TensorError(
            f"attention: relative_bias has shape {shape(bias)}, q {shape(q)} has {heads} heads; "
            f"give ({heads}, 2 R + 1), for distances -R to R of key from query"
        )
    if keys is not None:
        check_key_mask(keys, q, k)
    slopes, bias, sinks = (None if x is None else _wide(x, q) for x in (slopes, bias, sinks))
    return Score(scale, softcap, slopes, bias, sinks, keys)


FP32 = 2.0**-149, float(torch.finfo(torch.float32).max)
"""The least and the largest number above 0 in which kernels count, but for float64 tensors."""


def _positive(name: str, value: object, q: Tensor) -> float:
    """A number above 0, as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float | Real):
        raise TensorError(f"attention: {name} must be a number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise TensorError(f"attention: {name} must be positive and finite, not {number}")
    if q.dtype != torch.float64 and not FP32[0] <= number <= FP32[1]:
        raise TensorError(
            f"attention: {name} is {number}, beside q of {q.dtype} it must be from {FP32[0]} to "
            f"{FP32[1]}, for scores are fp32 there; give float64 tensors or scale q"
        )
    return number


def _check_of_heads(name: str, x: Tensor, q: Tensor) -> None:
    """Refuse what is no tensor of numbers beside q."""
    if not isinstance(x, Tensor):
        raise TensorError(f"attention: {name} is a {type(x).__name__}, not a tensor")
    if x.device != q.device or not x.is_floating_point():
        raise TensorError(
            f"attention: {name} is {x.dtype} on {x.device}, q is {q.dtype} on {q.device}; give "
            "floating point numbers on q's device"
        )


def check_key_mask(keys: Tensor, q: Tensor, k: Tensor) -> None:
    """Refuse what is not one bool for each key of each sequence."""
    if not isinstance(keys, Tensor):
        raise TensorError(f"attention: key_mask is a {type(keys).__name__}, not a tensor")
    if keys.dtype != torch.bool or keys.device != q.device:
        raise TensorError(
            f"attention: key_mask is {keys.dtype} on {keys.device}, q is on {q.device}; give bool "
            "on q's device, True where a key may be read (attention_mask.bool())"
        )
    expected = (q.shape[0], k.shape[2])
    if keys.shape != expected:
        raise TensorError(
            f"attention: key_mask has shape {shape(keys)}, k {shape(k)}; it must be "
            f"(batch, keys) = ({expected[0]}, {expected[1]})"
        )


def _wide(x: Tensor, q: Tensor) -> Tensor:
    """fp32, or fp64 beside fp64 queries, its elements neighbours."""
    return x.to(torch.float64 if q.dtype == torch.float64 else torch.float32).contiguous()


def check_deterministic(deterministic: bool) -> None:
    """Refuse what is no bool."""
    if not isinstance(deterministic, bool):
        raise TensorError(f"attention: deterministic must be True or False, not {deterministic!r}")


def check_no_cache(block_table: Tensor | None, key_lengths: Tensor | None) -> None:
    """Refuse a cache's arguments where there is no decode step."""
    for name, x in (("block_table", block_table), ("key_lengths", key_lengths)):
        if x is not None:
            raise TensorError(
                f"attention: {name} describes the cache of a decode step; give position= with it"
            )


def check_transforms(*tensors: Tensor | None) -> None:
    """Refuse what would find tangents of zero, or fail within torch.

    Raises TensorError.
    """
    if torch.compiler.is_compiling():
        return
    for x in tensors:
        if x is None:
            continue
        if forward_ad._current_level >= 0 and _tangent(x) is not None:
            raise TensorError(
                "attention: no forward-mode differentiation (torch.func.jvp, jacfwd, forward_ad); "
                "take torch.autograd.grad, or dense attention under the layout's mask (pc.to_sdpa)"
            )
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise TensorError(
                "attention: not within torch.func transforms (vmap, grad, vjp, jacrev): fold the "
                "axis of vmap into the batch, and take torch.autograd.grad for gradients"
            )


def _tangent(x: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
    return tangent


def row(position: int, q: Tensor) -> Tensor:
    """One position for all sequences, as a tensor."""
    return torch.full((q.shape[0],), position, dtype=torch.int32, device=q.device)


def shape(x: Tensor) -> str:
    """A shape as messages quote it."""
    return f"({', '.join([f'{side}' for side in x.shape])})"
