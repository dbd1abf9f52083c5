"""Which modules of a transformers model compute attention, and what part each plays.

An attention module is one whose forward looks its function up in transformers' AttentionInterface;
only those can be given a pattern.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from patterncc.errors import BackendError

Part = Literal["encoder", "decoder", "cross"]
_CROSS = re.compile(r"cross|encoder_attn|EncDecAttention", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Found:
    """One attention module.

    layer: its number within its part, from 0.  part: "encoder" (reads both ways), "decoder"
    (causal) or "cross" (a decoder's queries read an encoder's keys).
    """

    name: str
    module: Any
    part: Part
    layer: int

    @property
    def heads(self) -> int | None:
        """Query heads, where the config of the module tells."""
        config = getattr(self.module, "config", None)
        own = [getattr(self.module, name, None) for name in ("num_heads", "n_heads")]
        said = [getattr(config, name, None) for name in ("num_attention_heads", "num_heads")]
        return next((x for x in (*own, *said) if isinstance(x, int)), None)


def attention_modules(model: Any) -> tuple[Found, ...]:
    """Every attention module of a model, in the order in which they stand.

    Raises BackendError for a model that has none.
    """
    found: list[Found] = []
    counts: dict[Part, int] = {}
    for name, module in _candidates(model):
        part = _part(name, module)
        layer = getattr(module, "layer_idx", None)
        layer = layer if isinstance(layer, int) else counts.get(part, 0)
        counts[part] = counts.get(part, 0) + 1
        found.append(Found(name, module, part, layer))
    if not found:
        raise BackendError(
            f"{type(model).__name__} has no module that takes its attention from transformers' "
            "AttentionInterface, so a pattern cannot be put in its place; use "
            "pc.MultiheadAttention, pc.SparseAttention or pc.sdpa_as(pattern) instead"
        )
    return tuple(found)


def _candidates(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        forward = inspect.unwrap(type(module).forward)
        code = getattr(forward, "__code__", None)
        if code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names:
            yield name, module


def _part(name: str, module: Any) -> Part:
    if _CROSS.search(name):
        return "cross"
    return "decoder" if getattr(module, "is_causal", False) else "encoder"
