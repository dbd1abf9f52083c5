"""One kernel call of a schedule, as views and copies of the tensors: where it reads, where it adds.

Tensors over queries are [X, G, n, ...]: X pairs of batch and key head, G query heads of each.
Those over keys are [X, n_k, D].  The kernel has two batch axes.  They hold X and the items of the
call, one query head of each group at a time; or, for a single item, X and G at once (member ALL).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from patterncc.kernels.cpu.cache import Bias, Prepared
from patterncc.kernels.cpu.heads import split
from patterncc.kernels.cpu.schedule import Band, Call, Scatter, Schedule

TEMPORARY = 8 << 20  # bytes that one kernel call may copy or make beside its inputs
ALL = None  # the member that stands for all query heads of a key head


@dataclass(frozen=True, eq=False)
class Step:
    """Items low .. high of a call's batch, and their bias if some pairs are no edges."""

    call: Call
    low: int
    high: int
    bias: Bias | None

    @property
    def add(self) -> Tensor | None:
        """The additive bias [1, items or 1, queries, keys], if any."""
        return None if self.bias is None else self.bias.add

    @property
    def dead(self) -> Tensor | None:
        """Queries that get no key here, bool [1, items or 1, queries], if any."""
        return None if self.bias is None else self.bias.dead

    def members(self, q: Tensor) -> Iterator[int | None]:
        """Which query heads go into one kernel call."""
        if self.high - self.low == 1 and q.shape[1] > 1:
            yield ALL
        else:
            yield from range(q.shape[1])

    def queries(self, x: Tensor, member: int | None) -> Tensor:
        """[X, G, n, ...] -> [X, items, queries, ...], or [X, G, queries, ...] for ALL."""
        match self.call:
            case Band():
                items = self._queries_view(x, self.call)
            case Scatter():
                items = split(x, 2, self.call.queries).index_select(2, self._chunks(self.call))
        return items[:, :, 0] if member is ALL else items[:, member]

    def keys(self, x: Tensor) -> Tensor:
        """[X, n_k, D] -> [X, items, keys, D]: a view for a Band, a copy for a Scatter."""
        match self.call:
            case Band():
                return self._keys_view(x, self.call, 0, self.call.keys)
            case Scatter():
                picked = split(x, 1, self.call.side).index_select(1, self._tiles(self.call))
                return picked.view(x.shape[0], self.high - self.low, -1, x.shape[2])

    def repeat(self, keys: Tensor, member: int | None, times: int) -> Tensor:
        """Keys as the kernel takes them: for ALL, one item serves all G query heads."""
        return keys.expand(-1, times, -1, -1) if member is ALL else keys

    def write(self, x: Tensor, member: int | None, value: Tensor) -> None:
        """Put `value`, shaped as `queries` gives it, back into x."""
        match self.call:
            case Band():
                self.queries(x, member).copy_(value)
            case Scatter():
                axis, place, value = self._place(x, member, value, self.call)
                place.index_copy_(axis, self._chunks(self.call), value)

    def add_queries(self, x: Tensor, member: int | None, value: Tensor) -> None:
        """Add `value`, shaped as `queries` gives it, to x."""
        match self.call:
            case Band():
                self.queries(x, member).add_(value)
            case Scatter():
                axis, place, value = self._place(x, member, value, self.call)
                place.index_add_(axis, self._chunks(self.call), value)

    def add_keys(self, x: Tensor, member: int | None, value: Tensor) -> None:
        """Add `value` [X, items or G, keys, D] to x [X, n_k, D]; the keys of items may overlap."""
        if member is ALL:
            value = value.sum(1, keepdim=True, dtype=x.dtype)
        match self.call:
            case Band():
                self._overlap_add(x, value, self.call)
            case Scatter():
                tiles = value.to(x.dtype).reshape(x.shape[0], -1, self.call.side, x.shape[2])
                split(x, 1, self.call.side).index_add_(1, self._tiles(self.call), tiles)

    def _overlap_add(self, x: Tensor, value: Tensor, call: Band) -> None:
        if value.shape[1] == 1 or call.key_step == 0:
            total = value[:, 0] if value.shape[1] == 1 else value.sum(1, dtype=x.dtype)
            first = call.first_key + self.low * call.key_step
            x[:, first : first + call.keys].add_(total)
            return
        for a in range(0, call.keys, call.key_step):  # pieces of different items do not overlap
            b = min(a + call.key_step, call.keys)
            self._keys_view(x, call, a, b).add_(value[:, :, a:b])

    def _queries_view(self, x: Tensor, call: Band) -> Tensor:
        s = x.stride()
        return x.as_strided(
            (*x.shape[:2], self.high - self.low, call.queries, *x.shape[3:]),
            (*s[:2], call.query_step * s[2], s[2], *s[3:]),
            x.storage_offset() + (call.first_query + self.low * call.query_step) * s[2],
        )

    def _keys_view(self, x: Tensor, call: Band, a: int, b: int) -> Tensor:
        """Keys a .. b of each item."""
        s = x.stride()
        return x.as_strided(
            (x.shape[0], self.high - self.low, b - a, x.shape[2]),
            (s[0], call.key_step * s[1], s[1], s[2]),
            x.storage_offset() + (call.first_key + self.low * call.key_step + a) * s[1],
        )

    def _place(
        self, x: Tensor, member: int | None, value: Tensor, call: Scatter
    ) -> tuple[int, Tensor, Tensor]:
        """x as whole chunks, the axis that counts them, and `value` to match."""
        chunks, value = split(x, 2, call.queries), value.to(x.dtype)
        if member is ALL:
            return 2, chunks, value.unsqueeze(2)
        return 1, chunks[:, member], value

    def _chunks(self, call: Scatter) -> Tensor:
        return torch.from_numpy(call.chunks[self.low : self.high])

    def _tiles(self, call: Scatter) -> Tensor:
        return torch.from_numpy(call.tiles[self.low : self.high].reshape(-1))


def steps(plan: Prepared, schedule: Schedule, q: Tensor, copies: int) -> Iterator[Step]:
    """The calls of a schedule, cut so that temporaries stay near TEMPORARY bytes.

    A piece never has fewer items than keep every thread busy.
    copies: tensors of the keys' size that a call makes, 0 in the forward pass, 2 in the backward.
    """
    pairs, width = q.shape[0], q.shape[3]
    least = -(-2 * torch.get_num_threads() // max(1, pairs))  # the kernel shares out pairs x items
    for call in schedule.calls if q.numel() else ():
        match call:
            case Band():
                batch = call.batch
                item = pairs * width * (call.queries + call.keys * copies)
            case Scatter():
                batch, keys = len(call.chunks), call.tiles.shape[1] * call.side
                item = pairs * width * (call.queries + keys * (copies + 2))
                item += 0 if call.words is None else 2 * call.queries * keys
        size = max(least, TEMPORARY // (item * q.element_size()))
        for low in range(0, batch, size):
            high = min(low + size, batch)
            yield Step(call, low, high, plan.bias(call, low, high, q.dtype))
