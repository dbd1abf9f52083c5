"""Clusters as slots: members of all clusters side by side, and what each slot reads, as intervals.

    cluster    0       1           (of head 0 of sequence 0, then of the next head, ...)
    members    2 5 9   0 3 -
    slots      0 1 2   3 4 5       and one more at the end, empty: of tokens in no cluster

Members ascend, so that keys up to a query's position are slots up to its own, and a stretch of keys
that a static layout reads is a stretch of slots, found by binary search.  So a slot reads the slots
of one interval without those of a few others, whatever the order is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import PatternValueError, SizeError
from patterncc.kernels.routed_static import intervals_of
from patterncc.layout.limits import MAX_LENGTH

if TYPE_CHECKING:
    from patterncc.layout.layout import Layout


@dataclass(frozen=True, eq=False)
class Slots:
    """Clusters of all heads, all slots counted through, S of them and an empty one behind.

    order: int32 [S + 1], the row of q (of all heads of all sequences) in each slot; an empty slot
    holds the first member of its cluster again.
    place: int32 [B * H * n], the slot of each such row; S where it is in no cluster.
    start, end: int64 [S], the slots that each reads; cuts: pairs of such, of which it reads none.
    """

    order: Tensor
    place: Tensor
    start: Tensor
    end: Tensor
    cuts: list[tuple[Tensor, Tensor]]

    @property
    def counts(self) -> Tensor:
        """How many slots each reads, int64 [S]."""
        held = self.end - self.start
        for low, high in self.cuts:
            inside = torch.minimum(high, self.end) - torch.maximum(low, self.start)
            held = held - inside.clamp(min=0)
        return held

    @property
    def nbytes(self) -> int:
        """Bytes of it all."""
        every = [self.order, self.place, self.start, self.end, *sum(self.cuts, ())]
        return sum(x.numel() * x.element_size() for x in every)


def slots_of(
    members: Tensor, n: int, causal: bool, cuts: tuple[Tensor, Tensor] | None, *, by_key: bool
) -> Slots:
    """Slots of members [B, H, clusters, width], and what queries read, or which read each key.

    cuts: low and high [most, B * H, n] of stretches that a static layout holds already.
    """
    sequences, heads, _, width = members.shape
    device, total = members.device, members.numel()
    real = members >= 0
    head = torch.arange(sequences * heads, device=device).view(sequences, heads, 1, 1)
    rows = torch.where(real, members, members[..., :1].clamp(min=0)) + head * n
    place = torch.full((sequences * heads * n + 1,), total, dtype=torch.int32, device=device)
    where = torch.where(real, rows, sequences * heads * n).flatten()  # the last entry is dropped
    place.scatter_(0, where, torch.arange(total, dtype=torch.int32, device=device))
    order = torch.nn.functional.pad(rows.flatten(), (0, 1)).to(torch.int32)
    first = torch.arange(0, total, width, device=device)[:, None]
    filled = real.view(-1, width).sum(1, keepdim=True)
    local = torch.arange(width, device=device)
    low = local.expand(len(filled), -1) if causal and by_key else torch.zeros_like(filled)
    high = local + 1 if causal and not by_key else filled
    low, high = (torch.where(real.view(-1, width), x, 0) + first for x in (low, high))
    found = [] if cuts is None else _found(members, n, cuts, first)
    return Slots(order, place[:-1], low.flatten(), high.flatten(), found)


def _found(
    members: Tensor, n: int, cuts: tuple[Tensor, Tensor], first: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Stretches of tokens as stretches of the slots of each token's own cluster."""
    sequences, heads, _, width = members.shape
    by_cluster = torch.where(members >= 0, members, n).view(-1, width)
    token = members.clamp(min=0).view(sequences * heads, -1)
    made = []
    for stretch in zip(*cuts, strict=True):
        ends = (
            torch.searchsorted(by_cluster, x.gather(1, token).view(-1, width)) + first
            for x in stretch
        )
        low, high = (x.flatten() for x in ends)
        made.append((low, high))
    return made


_kept: WeakKeyDictionary[Layout, dict[tuple[object, ...], tuple[Tensor, Tensor]]] = (
    WeakKeyDictionary()
)


def cuts_of(
    static: Layout, heads: tuple[int, int], device: torch.device, *, by_key: bool
) -> tuple[Tensor, Tensor]:
    """Low and high [most, B * H, n] of a static layout's intervals, kept while it lives.

    heads: B and H.
    """
    kept, key = _kept.setdefault(static, {}), (heads, device, by_key)
    if key not in kept:
        found = intervals_of(static, by_key=by_key)
        listed = static.head_pattern.reshape(static.sequences, -1)
        which = np.broadcast_to(listed, heads).reshape(-1)
        low, high = (torch.from_numpy(x).to(device) for x in (found.low, found.high))
        if static.patterns > 1:
            place = torch.from_numpy(which.astype(np.int64)).to(device)
            kept[key] = low[:, place], high[:, place]
        else:
            kept[key] = low.expand(-1, len(which), -1), high.expand(-1, len(which), -1)
    return kept[key]


def check_members(members: object, n: int) -> Tensor:
    """Refuse what are no clusters of n tokens; on the CPU by value too.

    Raises PatternValueError, SizeError.
    """
    if not isinstance(members, Tensor) or members.dim() != 4 or members.dtype != torch.int64:
        given = (
            f"{members.dtype} of shape {tuple(members.shape)}"
            if isinstance(members, Tensor)
            else type(members).__name__
        )
        raise PatternValueError(
            f"routed_clusters: members are {given}; give an int64 tensor (batch, heads, clusters, "
            "width), -1 in empty slots"
        )
    if not all(members.shape[:2]) or not members.shape[3]:
        raise PatternValueError(
            f"routed_clusters: members have shape {tuple(members.shape)}; a batch, its heads and "
            "the width of clusters are at least 1 (no cluster at all: 0 of width 1)"
        )
    if max(members.numel() + 1, members.shape[0] * members.shape[1] * n) > MAX_LENGTH:
        raise SizeError(
            f"routed_clusters: members of shape {tuple(members.shape)} for {n} tokens; slots and "
            f"tokens of all heads are counted up to {MAX_LENGTH}: split the batch"
        )
    if members.device.type == "cpu" and members.numel():
        _check_values(members, n)
    return members


def _check_values(members: Tensor, n: int) -> None:
    low, high = int(members.min()), int(members.max())
    if low < -1 or high >= n:
        raise PatternValueError(
            f"routed_clusters: members name tokens {low} to {high} of {n}; they count from 0, and "
            "-1 is an empty slot"
        )
    following = members[..., 1:]
    if bool(((following <= members[..., :-1]) & (following >= 0)).any()):
        raise PatternValueError(
            "routed_clusters: members of a cluster do not ascend, or follow an empty slot; sort "
            "each cluster and put -1 at its end"
        )


def check_once(slots: Slots, members: Tensor) -> None:
    """Refuse a token in two clusters of one head; on the CPU alone.

    Raises PatternValueError.
    """
    if members.device.type != "cpu" or not members.numel():
        return
    real = members.flatten() >= 0
    held = slots.place[slots.order[:-1].long()]
    twice = (held != torch.arange(len(held), dtype=held.dtype)) & real
    if bool(twice.any()):
        at = int(twice.nonzero()[0])
        _, heads, clusters, width = members.shape
        head = at // (clusters * width)
        raise PatternValueError(
            f"routed_clusters: token {int(members.flatten()[at])} stands in two clusters of head "
            f"{head % heads} of sequence {head // heads}; its pairs would count twice: give each "
            "token one cluster"
        )
