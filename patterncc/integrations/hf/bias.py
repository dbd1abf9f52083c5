"""T5's bias by distance, as a table of distances: neither its n x n form nor zeros are ever made.

T5 and its kin add to each score a learned number that depends on the distance of the key from the
query alone.  The first layer of a stack makes it, as [1, heads, n, n_k], and hands it to the
others; cross-attention makes zeros of that size.  While a pattern is applied they make and hand on
a table [heads, 2 R + 1] in its place, or an empty tensor, which `attention` takes as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patterncc.errors import BackendError

KIN = {
    "T5Attention",
    "MT5Attention",
    "UMT5Attention",
    "LongT5Attention",
    "Pix2StructTextAttention",
    "Pop2PianoAttention",
    "SwitchTransformersAttention",
    "UdopAttention",
}
"""Attention modules whose `compute_bias` is a bias by distance, as T5's."""

_MORE_THAN_DISTANCE = {"UdopAttention"}  # of these, a bias made elsewhere counts places on a page


def check_bias(module: Any) -> None:
    """Refuse T5's kin with buckets that do not become one past the largest distance."""
    if type(module).__name__ not in KIN:
        return
    radius, buckets = _radius(module), module.relative_attention_num_buckets
    if radius <= buckets // 2:
        raise BackendError(
            f"{type(module).__name__}: relative_attention_max_distance {radius} is not above half "
            f"of relative_attention_num_buckets {buckets}, so that far keys share no bucket and "
            "their bias is no table of distances; set it higher"
        )


def hand_on_tables(module: Any, cross: bool) -> None:
    """Let an attention module of T5's kin hand on tables; any other is left as it is."""
    if type(module).__name__ not in KIN:
        return
    if module.has_relative_attention_bias:
        module.compute_bias = partial(_table, type(module).compute_bias, module)
    elif cross:
        module.compute_bias = partial(_nothing, module)
        module.has_relative_attention_bias = True


def hand_on_as_before(module: Any) -> None:
    """Undo `hand_on_tables`."""
    if type(module).__name__ in KIN and vars(module).pop("compute_bias", None) is not None:
        module.has_relative_attention_bias = hasattr(module, "relative_attention_bias")


def table_of(name: str, module: Any, bias: object, q_offset: int, patterned: bool) -> Tensor | None:
    """The `relative_bias` of a call, from the `position_bias` that the model gave.

    patterned: the module has a pattern, so that it was made to hand on tables.

    Raises BackendError for a bias that is no function of distance, or not known to be one.
    """
    match bias:
        case None:
            return None
        case Tensor() if bias.ndim == 1 and not bias.numel():
            return None
        case Tensor() if bias.ndim == 2:
            return bias
        case Tensor() if bias.ndim == 4 and not patterned and _by_distance(module, bias):
            return _diagonals(bias[0], q_offset)
        case _:
            raise BackendError(
                f"{name}: the model adds a bias to its scores that is not known to depend on the "
                f"distance alone ({type(module).__name__}); patterncc takes T5's kind "
                f"({', '.join(sorted(KIN - _MORE_THAN_DISTANCE))}); leave this part as it is by "
                "naming others: encoder=, decoder=, cross="
            )


def _by_distance(module: Any, bias: Tensor) -> bool:
    known = type(module).__name__ in KIN - _MORE_THAN_DISTANCE
    return known and bias.shape[0] == 1


def _radius(module: Any) -> int:
    """The distance past which all keys share a bucket."""
    return int(module.relative_attention_max_distance)


def _table(compute: Callable[..., Tensor], module: Any, *sizes: object, **given: Any) -> Tensor:
    """[H, 2 R + 1]: what one query in the midst of 2 R + 1 keys adds to their scores."""
    radius = _radius(module)
    row = compute(module, 1, 2 * radius + 1, device=given.get("device"), past_seen_tokens=radius)
    return row[0, :, 0]


def _nothing(module: Any, *sizes: object, **given: Any) -> Tensor:
    """The bias of an attention that has none."""
    weight: Tensor = module.q.weight if hasattr(module, "q") else module.query.weight
    return weight.new_empty(0)


def _diagonals(bias: Tensor, q_offset: int) -> Tensor:
    """[H, 2 R + 1] from a bias [H, n, n_k] that the model made itself, R as far as it goes.

    The first column holds the distances down to that of the last query, the first row those up to
    that of the last key.
    """
    n, n_k = bias.shape[1:]
    seen = torch.cat([bias[:, 1:, 0].flip(-1), bias[:, 0]], -1)
    before, after = q_offset + n - 1, n_k - 1 - q_offset  # seen are distances -before .. after
    radius = max(before, after)
    return torch.nn.functional.pad(seen, (radius - before, radius - after))
