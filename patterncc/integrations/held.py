"""Slots of a cache that evicts as planned: which slot holds which key, and the buffers of keys.

A head has as many slots as its plan's peak.  A key takes a free slot when it is written and leaves
it after its last reader; a key that nobody will read takes none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patterncc.cache import Spans
from patterncc.errors import TensorError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Written:
    """What writing keys does to the slots.

    gone: slots whose keys have been read for the last time.  offsets: which of the keys written are
    kept, counted from the first; slots: where.  before: the key of each slot until then, if several
    are written.
    """

    first: int
    count: int
    before: I64
    gone: list[int]
    offsets: list[int]
    slots: list[int]


@dataclass(eq=False)
class Slots:
    """Which slot holds which key: a free slot for every key that is alive.

    Layers with equal spans share one: the first to write a key finds the place for all of them.
    key: the key of each slot, -1 where it is free.
    """

    spans: Spans
    capacity: int
    key: I64 = field(init=False)
    written: Written | None = None
    _free: list[int] = field(init=False)
    _due: dict[int, list[int]] = field(default_factory=dict)
    _answered: int = 0  # steps below have read what they read
    _found: dict[object, slice | Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key = np.full(self.capacity, -1, dtype=np.int64)
        self._free = list(range(self.capacity - 1, -1, -1))

    def write(self, first: int, count: int, since: int) -> Written:
        """Places for the keys first .. first + count - 1.

        since: the first step that will read from slots; what only earlier ones read goes, and is
        not taken in.
        """
        known = self.written
        if known is not None and (known.first, known.count) == (first, count):
            return known
        before = self.key.copy() if count > 1 else self.key
        gone = self._evict(since)
        kept = self.spans.read_at_or_after(since, first + count)
        keys = [j for a, b in kept.tolist() for j in range(max(a, first), b)]
        slots = [self._free.pop() for _ in keys]
        self.key[slots] = keys
        for key, slot in zip(keys, slots, strict=True):
            last = self.spans.last(key)
            assert last is not None  # keys are kept because some step reads them
            self._due.setdefault(last, []).append(slot)
        offsets = [j - first for j in keys]
        self.written = Written(first, count, before, gone, offsets, slots)
        self._found.clear()
        return self.written

    def take_over(self, other: Slots) -> None:
        """Hold what slots of a shorter plan hold, each key where it stands."""
        self._answered, size = other._answered, other.capacity
        self.key[:size] = other.key
        self._free = [s for s in self._free if s >= size or self.key[s] < 0]
        for slot in np.flatnonzero(self.key >= 0).tolist():
            last = self.spans.last(int(self.key[slot]))
            step = self._answered if last is None else max(last, self._answered)
            self._due.setdefault(step, []).append(slot)

    def _evict(self, since: int) -> list[int]:
        """Free the slots of keys that only steps before `since` read."""
        steps = range(self._answered, since)
        past = [t for t in self._due if t < since] if len(steps) > len(self._due) else steps
        gone = [s for t in past for s in self._due.pop(t, ())]
        self._answered = max(self._answered, since)
        self.key[gone] = -1
        self._free += gone
        return gone

    @property
    def held(self) -> int:
        """How many keys stand in slots."""
        return self.capacity - len(self._free)

    def of_row(
        self, name: object, keys: Callable[[], I64], device: torch.device | None = None
    ) -> slice | Tensor:
        """Slots of the keys that a query reads, in any order; kept under a name until the next key.

        keys: makes their intervals [m, 2].  All that are held are a slice, others are listed.
        """
        if name not in self._found:
            row = keys()
            everything = int((row[:, 1] - row[:, 0]).sum()) == self.held
            if everything and (not self.held or self.key[: self.held].min() >= 0):
                self._found[name] = slice(0, self.held)
            else:
                self._found[name] = torch.from_numpy(self.find(row)).to(device)
        return self._found[name]

    def find(self, wanted: I64) -> I64:
        """The slots of the keys in some intervals [m, 2], in the order of keys.

        Raises TensorError for keys that are not held.
        """
        if not len(wanted):
            return np.zeros(0, dtype=np.int64)
        place = np.searchsorted(wanted[:, 0], self.key, side="right") - 1
        held = np.flatnonzero((place >= 0) & (self.key < wanted[place, 1]))
        found: I64 = held[np.argsort(self.key[held])]
        if len(found) < int((wanted[:, 1] - wanted[:, 0]).sum()):
            keys = np.concatenate([np.arange(a, b) for a, b in wanted.tolist()])
            missing = int(np.setdiff1d(keys, self.key[found])[0])
            raise TensorError(
                f"cache: key {missing} is not held; the plan evicted it, or it is not "
                "written yet: ask for keys that the planned patterns read"
            )
        return found


@dataclass(eq=False)
class Group:
    """Key/value heads of a layer that keep the same keys: their slots and buffers.

    k, v: [B, heads, slots, D].  whole: they are all heads of the layer.
    """

    heads: list[int]
    whole: bool
    slots: Slots
    k: Tensor
    v: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return self.k.nbytes + self.v.nbytes

    def store(self, k: Tensor, v: Tensor, written: Written, *, poison: bool) -> None:
        """Copy what is kept of new keys [B, all heads, count, D], and NaN over what has gone."""
        for buffer, new in ((self.k, k), (self.v, v)):
            if poison and written.gone:
                buffer[:, :, written.gone] = math.nan
            new = new.detach() if self.whole else new.detach()[:, self.heads]
            if written.count == 1:
                for slot in written.slots:
                    buffer[:, :, slot] = new[:, :, 0]
            elif written.slots:
                at = torch.tensor(written.offsets, device=new.device)
                buffer[:, :, written.slots] = new.index_select(2, at).to(buffer.device)

    def take(self, where: slice | Tensor | I64) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, keys, D] of some slots; views of the first so many."""
        if isinstance(where, slice):
            return self.k[:, :, where], self.v[:, :, where]
        index = where if isinstance(where, Tensor) else torch.from_numpy(where).to(self.k.device)
        return self.k.index_select(2, index), self.v.index_select(2, index)

    def spread(self, k: Tensor, v: Tensor, keys: I64) -> None:
        """Write what is held to its place in k and v [B, all heads, positions, D].

        keys: the key of each slot.
        """
        held = np.flatnonzero(keys >= 0)
        place = torch.from_numpy(keys[held]).to(k.device)
        for whole, part in zip((k, v), self.take(held), strict=True):
            if self.whole:
                whole.index_copy_(2, place, part)
                continue
            for own, head in enumerate(self.heads):
                whole[:, head].index_copy_(1, place, part[:, own])


def groups_of(
    slots: list[Slots],
    each: tuple[int, ...],
    batch: int,
    dims: tuple[int, int],
    like: tuple[torch.dtype, torch.device | str | None],
) -> list[Group]:
    """Empty buffers for the key/value heads of a layer; head h keeps as `slots[each[h]]` says."""
    groups = []
    for index, own in enumerate(slots):
        heads = [h for h, k in enumerate(each) if k == index]
        k, v = (
            torch.zeros(batch, len(heads), own.capacity, d, dtype=like[0], device=like[1])
            for d in dims
        )
        groups.append(Group(heads, len(heads) == len(each), own, k, v))
    return groups
