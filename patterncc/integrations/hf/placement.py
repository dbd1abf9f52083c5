"""What a forward pass says of itself when it asks for a mask: where queries and keys stand.

transformers builds one mask for each kind of layer before the layers run.  In its place we give
them a `Placement`: the pattern of each layer is then laid on these places, and no mask is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patterncc.integrations.hf.not_a_mask import NotAMask
from patterncc.integrations.hf.own_mask import OwnMask, Packed, own_mask, traced_own_mask


@dataclass(frozen=True, eq=False)
class Padding:
    """Which keys of a call are tokens, and where each sequence begins.

    keys: bool [B, n_k].  shift: slots of padding before the first token, int64 [B]; None where no
    sequence has any.  holes: padding stands between tokens.
    """

    keys: Tensor
    shift: Tensor | None
    holes: bool


@dataclass(frozen=True, eq=False)
class Placement(NotAMask):
    """Where the queries and keys of one forward pass stand.

    q_offset: the slot of the first query, a tensor where a static cache tells it so.  k_offset: the
    slot of the first key that the cache holds.  tokens: bool [B, slots], which slots hold tokens,
    as far as slots are written; None where all do.
    given: what the model said when it asked for a mask; it is read when a layer needs it.
    """

    q_offset: int | Tensor
    k_offset: int
    tokens: Tensor | None
    given: dict[str, Any]
    memo: dict[Any, Any] = field(default_factory=dict)  # what the layers of a pass share
    ndim: int = 4  # generate hands prepared masks to the model, which looks at this

    def contiguous(self) -> Placement:
        """generate asks masks for this."""
        return self

    @property
    def own(self) -> OwnMask:
        """The mask that the model itself asks for.

        Raises BackendError for a mask that is not known.
        """
        if "own" not in self.memo:
            read = traced_own_mask if torch.compiler.is_compiling() else own_mask
            self.memo["own"] = read(**self.given)
        own: OwnMask = self.memo["own"]
        return own

    @property
    def packed(self) -> Packed | None:
        """Sequences behind each other in place of a batch."""
        return self.own.packed

    def start(self, *, wait: bool) -> int | Tensor:
        """The slot of the first query, as a number where that is at hand; a GPU is waited for once
        a pass, if at all, and never in a traced graph."""
        first = self.q_offset
        if not isinstance(first, Tensor) or torch.compiler.is_compiling():
            return first
        if not wait and first.device.type != "cpu":
            return first
        if "start" not in self.memo:
            self.memo["start"] = int(first)
        start: int = self.memo["start"]
        return start

    def padding(self, n_k: int) -> Padding | None:
        """Which of the n_k keys of a layer are tokens; None where all are."""
        if self.tokens is None:
            return None
        if n_k not in self.memo:
            self.memo[n_k] = _padding(self.tokens, self.k_offset, n_k)
        padding: Padding | None = self.memo[n_k]
        return padding

    def dense(self, implementation: str, n_k: int | None = None) -> Any:
        """The mask that another implementation would have been given, for n_k keys."""
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        make: Callable[..., Any] = ALL_MASK_ATTENTION_FUNCTIONS[implementation]
        given = dict(self.given)
        if n_k is not None and n_k != given["kv_length"]:  # a cache that was made longer since
            given |= {"kv_length": n_k, "kv_offset": 0}
        return make(q_offset=self.q_offset, **given)


def _padding(tokens: Tensor, k_offset: int, n_k: int) -> Padding | None:
    """One wait for the device at most; none in a traced graph."""
    if not torch.compiler.is_compiling() and tokens.device.type == "cpu" and bool(tokens.all()):
        return None
    slots = tokens.shape[1]
    first = tokens.int().argmax(1)
    traced = torch.compiler.is_compiling()
    left, holes = True, False
    if not traced:
        total, last = tokens.sum(1), slots - tokens.flip(1).int().argmax(1)
        gap = (last - first != total) & (total > 0)
        every, left, holes = torch.stack([tokens.all(), (first > 0).any(), gap.any()]).tolist()
        if every:
            return None
    keys = tokens[:, k_offset : k_offset + n_k]
    if keys.shape[1] < n_k:
        keys = torch.nn.functional.pad(keys, (0, n_k - keys.shape[1]))
    return Padding(keys, first if left else None, holes)
