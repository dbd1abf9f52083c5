"""One token's attention over the slots of an evicting cache: the keys that it reads, no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from patterncc.attend import attention as sparse
from patterncc.cache.reads import Reads
from patterncc.errors import BackendError
from patterncc.integrations.held import Group
from patterncc.integrations.hf.layouts import Layouts
from patterncc.integrations.hf.placement import Placement
from patterncc.layout import Layout, compile
from patterncc.primitives import full

_TAG = "_patterncc_held"


@dataclass(frozen=True, eq=False)
class _Part:
    """Query heads of one pattern on key/value heads that keep the same keys.

    heads: the query heads, in the order of their key heads.  local: those key heads, counted within
    the group; each is read by as many of `heads`.  all: they are all heads of the layer.
    """

    heads: list[int]
    group: Group
    local: list[int]
    pattern: int
    all: bool


@dataclass(eq=False)
class Held:
    """What an evicting cache hands to the attention of one layer in the place of keys and values.

    stop: how many positions are written, those of the queries included.
    """

    layouts: Layouts
    reads: Reads
    groups: list[Group]
    kv_heads: int
    stop: int = 0
    _parts: dict[int, list[_Part]] = field(default_factory=dict)

    def attend(self, q: Tensor, place: Placement, options: dict[str, Any]) -> Tensor:
        """Attention of q [B, H, 1, D] over the held keys that its row reads: [B, H, 1, Dv].

        options: of `attention`.

        Raises BackendError where a gradient is asked for.
        """
        if torch.is_grad_enabled() and q.requires_grad:
            raise BackendError(
                f"layer {self.layouts.index}: EvictingCache has no gradient; run the model under "
                "torch.no_grad()"
            )
        padding = place.padding(self.stop)
        keys = None if padding is None else padding.keys
        heads = q.shape[1]
        if heads not in self._parts:
            self._parts[heads] = list(_parts(self.reads, self.groups, heads, self.kv_heads))
        out = None
        for part in self._parts[heads]:
            found = self._answer(part, q, keys, options)
            if part.all:
                return found
            if out is None:
                out = found.new_empty(*q.shape[:3], found.shape[3])
            out[:, part.heads] = found
        assert out is not None
        return out

    def _answer(
        self, part: _Part, q: Tensor, keys: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        """The output of some heads."""
        group, zones = part.group, self.reads.zones[part.pattern]
        row = partial(self.reads.row, self.stop - 1, part.pattern)
        device = group.k.device
        where = group.slots.of_row((id(zones), device), row, device)
        k, v = group.take(where)
        if len(part.local) != k.shape[1]:
            k, v = k[:, part.local], v[:, part.local]
        q = q if part.all else q[:, part.heads]
        sinks = options.get("sinks")
        if keys is None and sinks is None and not options.get("softcap"):
            if not k.shape[2]:
                return q.new_zeros(*q.shape[:3], v.shape[3])
            folded = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
            out: Tensor = scaled_dot_product_attention(folded, k, v, scale=options["scale"])
            return out.reshape(*q.shape[:3], -1)
        if keys is not None:
            at = torch.from_numpy(group.slots.key).to(keys.device)[where]
            keys = keys.index_select(1, at)
        if sinks is not None and not part.all:
            sinks = sinks[part.heads]
        given = {**options, "sinks": sinks, "enable_gqa": True, "key_mask": keys}
        answer: Tensor = sparse(q, k, v, _row(1 << k.shape[2].bit_length()), position=0, **given)
        return answer

    def check(self, place: Placement, options: dict[str, Any]) -> None:
        """Refuse calls, of any number of tokens, whose later ones could not be answered.

        Raises BackendError.
        """
        layer = f"layer {self.layouts.index}"
        if options.get("relative_bias") is not None:
            raise BackendError(
                f"{layer}: the model adds a bias by distance, which EvictingCache does not know of "
                "keys in slots; use DynamicCache()"
            )
        padding = place.padding(self.stop)
        if padding is None:
            return
        if padding.holes:
            raise BackendError(
                f"{layer}: attention_mask has padding between tokens, so that positions are not "
                "known (a batch padded on the right that is being decoded?); pad on the left, or "
                "give one sequence at a time"
            )
        if padding.shift is not None and not self.layouts.relative:
            raise BackendError(
                f"{layer}: padding on the left, and a pattern that counts positions from the first "
                "token, which EvictingCache keeps by slot; give sequences of one length, or use "
                "DynamicCache()"
            )


def tagged(x: Tensor, held: Held) -> Tensor:
    """x, a view that carries what the cache holds."""
    x = x.view_as(x)
    setattr(x, _TAG, held)
    return x


def held_by(x: Tensor) -> Held | None:
    """What keys from an evicting cache stand for; None for keys themselves."""
    held: Held | None = getattr(x, _TAG, None)
    return held


def _parts(reads: Reads, groups: Sequence[Group], heads: int, kv_heads: int) -> list[_Part]:
    """The query heads by pattern and by key/value heads that keep alike."""
    size = heads // kv_heads
    each = reads.head_zones * heads if len(reads.head_zones) == 1 else reads.head_zones
    made = []
    for group in groups:
        for pattern in sorted({each[h * size + m] for h in group.heads for m in range(size)}):
            read = {
                local: [h * size + m for m in range(size) if each[h * size + m] == pattern]
                for local, h in enumerate(group.heads)
            }
            for count in sorted({len(members) for members in read.values()} - {0}):
                local = [x for x, members in read.items() if len(members) == count]
                members = [h for x in local for h in read[x]]
                made.append(_Part(members, group, local, pattern, len(members) == heads))
    return made


@lru_cache(maxsize=32)
def _row(keys: int) -> Layout:
    """One row that reads all of its keys; steps against fewer of them share it."""
    return compile(full(), 1, keys)
