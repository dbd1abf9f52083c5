"""What the CPU backend keeps between calls: schedules by layout, and by byte count additive biases
and what decode steps read.

The caches are bounded and named; `clear()` empties them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from patterncc.kernels.cpu.mask import Masks
from patterncc.kernels.cpu.pages import Keys
from patterncc.kernels.cpu.schedule import Band, Call, Schedule, build
from patterncc.kernels.cpu.segments import Rows

if TYPE_CHECKING:
    from patterncc.kernels.spec import Spec

SCHEDULE_LIMIT = 64  # schedules kept, one a pattern of a layout
BIAS_LIMIT = 64 << 20  # bytes of biases kept
PIECES_LIMIT = 16 << 20  # bytes of what decode steps read kept

Piece = tuple[Keys, Tensor | None]
"""Keys that a decode step reads, and which pairs are edges, bool [queries, S] (None: all)."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Bias:
    """`add` [1, batch, queries, keys] holds 0 for an edge and -inf for none.

    `dead`, bool [1, batch, queries], marks queries without any edge here; None if each has one.
    """

    add: Tensor
    dead: Tensor | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """One pattern of a layout, ready to run."""

    key: tuple[str, int]
    rows: Rows
    masks: Masks

    @cached_property
    def forward(self) -> Schedule:
        """The calls of the forward pass; made when first asked for (a decode step never asks)."""
        return build(self.rows, self.masks)

    @cached_property
    def backward(self) -> Schedule:
        """The calls of the backward pass, which gains from larger chunks."""
        return build(self.rows, self.masks, backward=True)

    def bias(self, call: Call, low: int, high: int, dtype: torch.dtype) -> Bias | None:
        """The bias of items low .. high of a call; None when all their pairs are edges."""
        if call.words is None:
            return None
        if isinstance(call, Band):
            low, high = 0, 1

        def make() -> tuple[Bias, int]:
            assert call.words is not None
            if isinstance(call, Band):
                i, j = call.corner
                allowed = self.masks.allowed(call.words)[None]
                allowed = allowed[:, i : i + call.queries, j : j + call.keys]
            else:
                allowed = self.masks.allowed(call.words[low:high])
            made = as_bias(torch.from_numpy(allowed), dtype)
            return made, made.add.numel() * made.add.element_size()

        return _BIASES.get((call, low, high, dtype), make)


def as_bias(allowed: Tensor, dtype: torch.dtype) -> Bias:
    """Bool [batch, queries, keys] as an additive bias."""
    add = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
    dead = ~allowed.any(-1)
    return Bias(add[None], dead[None] if bool(dead.any()) else None)


class _Bounded(Generic[T]):
    """Values by key, the least lately used dropped once their sizes pass `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self.values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self.lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], tuple[T, int]]) -> T:
        """The value kept under `key`, or the one that `make` gives with its size."""
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key][0]
        value, size = make()
        with self.lock:
            if size <= self.limit and key not in self.values:
                self.values[key] = (value, size)
                self.size += size
                while self.size > self.limit:
                    self.size -= self.values.popitem(last=False)[1][1]
        return value

    def clear(self) -> None:
        with self.lock:
            self.values.clear()
            self.size = 0


_SCHEDULES: _Bounded[Prepared] = _Bounded(SCHEDULE_LIMIT)
_BIASES: _Bounded[Bias] = _Bounded(BIAS_LIMIT)
_PIECES: _Bounded[list[Piece]] = _Bounded(PIECES_LIMIT)


def clear() -> None:
    """Forget every schedule, bias and piece."""
    _SCHEDULES.clear()
    _BIASES.clear()
    _PIECES.clear()


def pieces(key: Hashable, make: Callable[[], list[Piece]]) -> list[Piece]:
    """The pieces kept under `key`, or those that `make` gives."""

    def sized() -> tuple[list[Piece], int]:
        made = make()
        held = [x for piece in made for x in piece if isinstance(x, Tensor)]
        return made, 1 + sum(x.numel() * x.element_size() for x in held)

    return _PIECES.get(key, sized)


def prepared(tensors: Sequence[Tensor], spec: Spec, pattern: int) -> Prepared:
    """Pattern number `pattern` of the layout whose arrays are `tensors`, kept for the next call.

    tensors: head_pattern, row_ptr, row_run, col_ptr, col_run, zones, bits, all int32 on the CPU;
    then the bytes of the layout's hash where it varies from batch to batch, for the spec does not.
    """
    key = (spec.layout_hash or bytes(tensors[7].tolist()).hex(), pattern)

    def make() -> tuple[Prepared, int]:
        _, row_ptr, row_run, _, _, zones, bits = (t.numpy() for t in tensors[:7])
        lines = -(-spec.n // spec.block[0])
        ptr = row_ptr[pattern * lines : (pattern + 1) * lines + 1]
        rows = Rows(ptr, row_run, spec.n, spec.n_k, spec.block)
        masks = Masks(spec.block, zones, bits)
        return Prepared(key, rows, masks), 1

    return _SCHEDULES.get(key, make)
