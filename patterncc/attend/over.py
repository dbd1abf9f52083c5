"""Attention over a pattern: its layouts are compiled when a length is first met, and kept."""

from __future__ import annotations

import operator
from functools import lru_cache
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from patterncc.attend.call import attention, constant, decode, run
from patterncc.attend.checks import AnyLayout, Options, check_tensors, score_of, shape
from patterncc.attend.checks_decode import Cache
from patterncc.errors import PatternError, PatternValueError, TensorError
from patterncc.kernels import upload
from patterncc.layout import compile as compile_layout
from patterncc.layout.layout import Layout
from patterncc.pattern import Pattern
from patterncc.primitives import causal
from patterncc.stack import Heads, Layer, patterns_of

Block = int | tuple[int, int] | None


class How(NamedTuple):
    """What a module chooses once: the tile, which layer of a model it is, and what runs it."""

    block: Block = None
    layer: int = 0
    backend: str = "auto"


KEPT = 256  # layouts of patterns by length; a model of many layers and a few lengths


@lru_cache(maxsize=KEPT)
def compiled(
    layer: Layer,
    n: int,
    n_k: int,
    q_offset: int = 0,
    only_past: bool = False,
    block: Block = None,
    index: int = 0,
) -> Layout:
    """The layout of n queries at q_offset .. and n_k keys, the same object whenever asked for.

    only_past: of the edges that causal() has too.  index: which layer of a model it is.
    """
    if only_past:
        each = [p & causal() for p in patterns_of(layer)]
        layer = Heads(tuple(each)) if isinstance(layer, Heads) else each[0]
    return compile_layout(layer, n, n_k, q_offset, block=block, layer=index)


@constant
def _prepared(
    layer: Layer,
    n: int,
    n_k: int,
    q_offset: int,
    only_past: bool,
    block: Block,
    index: int,
    backend: str,
    device: torch.device,
) -> upload.Prepared:
    made = compiled(layer, n, n_k, q_offset, only_past, block, index)
    return upload.traced(made, device, backend)


def check_layer(owner: str, given: object, heads: int | None = None) -> None:
    """Refuse what is no pattern of a layer, or one for another number of heads.

    Raises PatternError, PatternValueError.
    """
    if not isinstance(given, Pattern | Heads):
        hint = "; pass its .stack" if hasattr(given, "stack") else ""
        raise PatternError(f"{owner}: {given!r} is not a pattern or pc.heads([...]){hint}")
    if heads is not None and isinstance(given, Heads) and len(given.patterns) != heads:
        raise PatternValueError(
            f"{owner}: {heads} heads, but a pattern for {len(given.patterns)}; give pc.heads one "
            "pattern for each head, or one pattern for all"
        )


def attend(
    owner: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Layer | AnyLayout,
    how: How,
    *,
    q_offset: int = 0,
    only_past: bool = False,
    **options: Unpack[Options],
) -> Tensor:
    """`attention` over the edges of a pattern, or of a layout that stands in its place.

    q [B, H, n, D] stands at the positions q_offset .., k and v [B, Hkv, n_k, D] at 0 ..; heads of
    k may be shared.

    Raises what `attention` and `compile` raise.
    """
    if isinstance(pattern, AnyLayout):
        if only_past:
            raise TensorError(
                f"{owner}: is_causal=True beside a compiled layout; intersect its pattern with "
                "causal() before it is compiled, and pass is_causal=False"
            )
        return attention(q, k, v, pattern, enable_gqa=True, backend=how.backend, **options)
    check_tensors(q, k, v, enable_gqa=True)
    check_layer(owner, pattern, q.shape[1])
    n, n_k = (operator.index(x.shape[2]) for x in (q, k))  # a traced graph has a layout, one length
    prepared = _prepared(pattern, n, n_k, q_offset, only_past, *how, q.device)
    out, _ = run(q, k, v, prepared, score_of(q, k, **options))
    return out


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Layer,
    how: How,
    cache: Cache,
    **options: Unpack[Options],
) -> Tensor:
    """A decode step, of tensors after checks, against a cache with room for the keys of k."""
    n = operator.index(k.shape[2])
    prepared = _prepared(pattern, n, n, 0, False, *how, q.device)
    out, _ = decode(q, k, v, prepared, score_of(q, k, **options), cache)
    return out


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, L, H * D] -> [B, H, L, D]; B and L may be 0."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim).transpose(1, 2)


def keys_kept(owner: str, name: str, mask: Tensor, batch: int, n_k: int) -> Tensor:
    """bool [batch, n_k], True where a key may be read, of a mask that was told to be one of keys.

    A bool mask is taken as it is.  A float mask, which torch adds to the scores, is one if every
    value is 0 or -inf: that is looked at on the CPU, and asserted by the device elsewhere and in
    traced graphs.

    Raises TensorError.
    """
    if mask.dtype == torch.bool:
        keep = mask
    elif mask.is_floating_point():
        keep, gone = mask == 0, mask == -torch.inf
        _check_two_valued(owner, name, mask, keep | gone)
    else:
        raise TensorError(f"{owner}: {name} is {mask.dtype}; give bool, or floats of 0 and -inf")
    if keep.shape != (batch, n_k):
        raise TensorError(
            f"{owner}: {name} has shape {shape(mask)}, which is not (batch, keys) = "
            f"({batch}, {n_k})"
        )
    return keep


def _check_two_valued(owner: str, name: str, mask: Tensor, known: Tensor) -> None:
    """Refuse a float mask that adds anything but 0 and -inf."""
    remedy = (
        f"{owner}: {name} adds numbers other than 0 and -inf to the scores; which keys are read is "
        "told by a bool mask, a bias by distance by relative_bias= of pc.attention"
    )
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(known.all(), remedy)
    elif not bool(known.all()):
        raise TensorError(remedy)
