"""Layouts on the CPU: torch's flash kernel on the calls of a schedule, merged by LSE, exact both ways.

The kernel's backward takes the *global* output and LSE, so the gradients of the calls add up to the
exact gradient however the keys were cut.  Nothing as large as queries x keys is ever made: a call's
temporaries stay near TEMPORARY bytes, and the rest is of the size of the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from patterncc.errors import TensorError
from patterncc.kernels.cpu_cache import Bias, Prepared, prepared
from patterncc.kernels.cpu_schedule import Band, Call

if TYPE_CHECKING:
    from patterncc.kernels.plan import Spec

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TEMPORARY = 8 << 20  # bytes that one kernel call may copy or make beside its inputs

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over a layout's edges.

    q [B, H, n, D], k [B, Hkv, n_k, D], v [B, Hkv, n_k, Dv] -> output [B, H, n, Dv] in q's dtype and LSE,
    fp32 [B, H, n].  A query that reads nothing: output 0, LSE -inf.

    Raises: TensorError for a dtype or device that the kernel does not take.
    """
    _check(q)
    width = v.shape[-1]
    q, k, v = _same_width(q, k, v)
    B, H, n, D = q.shape
    out = q.new_empty(B, H, n, D)
    lse = q.new_empty(B, H, n, dtype=wide(q.dtype))
    for pattern, keys, members in head_groups(tensors[0], H, k.shape[1]):
        part = _forward_group(
            *_fold((q, k, v), keys, members, k.shape[1]), prepared(tensors, spec, pattern), scale
        )
        for target, value in zip((out, lse), part):
            place = target.unflatten(1, (k.shape[1], -1))[:, keys, members]
            place.copy_(value.view(place.shape))
    return out[..., :width], lse.float()


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from the output and LSE that `forward` gave.

    Raises: TensorError for a dtype or device that the kernel does not take.
    """
    _check(q)
    width_k, width_v, heads = k.shape[-1], v.shape[-1], k.shape[1]
    q, k, v, grad_out, out = _same_width(q, k, v, grad_out, out)
    # a query without keys: with +inf its probabilities are exp(-inf) = 0, with -inf they would be NaN
    lse = lse.to(wide(q.dtype)).masked_fill(lse == -torch.inf, torch.inf)
    dq, dk, dv = (torch.zeros(x.shape, dtype=wide(q.dtype)) for x in (q, k, v))
    for pattern, keys, members in head_groups(tensors[0], q.shape[1], heads):
        inputs = _fold((q, k, v, grad_out, out, lse), keys, members, heads)
        part = _backward_group(*inputs, prepared(tensors, spec, pattern), scale)
        for target, value in zip(
            (dq.unflatten(1, (heads, -1))[:, keys, members], dk[:, keys], dv[:, keys]), part
        ):
            target.add_(value.view(target.shape))
    dq, dk, dv = (x.to(q.dtype) for x in (dq, dk, dv))
    return dq[..., :width_k], dk[..., :width_k], dv[..., :width_v]


def _forward_group(
    q: Tensor, k: Tensor, v: Tensor, plan: Prepared, scale: float
) -> tuple[Tensor, Tensor]:
    """q [X, G, n, D], k and v [X, n_k, D] -> output [X, G, n, D] and LSE [X, G, n]."""
    dtype = wide(q.dtype) if plan.schedule.merges else q.dtype
    out = torch.zeros(q.shape, dtype=dtype)
    lse = torch.full(q.shape[:-1], -torch.inf, dtype=wide(q.dtype))
    for step in _steps(plan, q, copies=1):
        keys, values = step.keys(k), step.keys(v)
        for member in step.members(q):
            part, part_lse = _flash(
                step.queries(q, member),
                step.repeat(keys, member, q.shape[1]),
                step.repeat(values, member, q.shape[1]),
                attn_mask=step.add,
                scale=scale,
            )
            _merge(step, member, part.to(dtype), part_lse, out, lse)
    return out, lse


def _merge(
    step: _Step, member: int | None, part: Tensor, part_lse: Tensor, out: Tensor, lse: Tensor
) -> None:
    """Add one call's result to the queries that it covers: the weights are exp(LSE - total LSE)."""
    dead = None if step.bias is None else step.bias.dead
    if dead is not None:  # the kernel says LSE 0 here
        part_lse = part_lse.masked_fill(dead, -torch.inf)
    if step.call.fresh:
        step.write(out, member, part)
        step.write(lse, member, part_lse)
        return
    old, old_lse = step.queries(out, member), step.queries(lse, member)
    weight = torch.sigmoid(part_lse - old_lse)
    if dead is not None:
        weight = weight.masked_fill(dead, 0.0)  # -inf - -inf
    step.write(out, member, torch.lerp(old, part, weight[..., None].to(part.dtype)))
    step.write(lse, member, torch.logaddexp(old_lse, part_lse))


def _backward_group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: Prepared,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes as in `_forward_group`; sums are kept in `wide` precision."""
    dq, dk, dv = (torch.zeros(x.shape, dtype=wide(q.dtype)) for x in (q, k, v))
    for step in _steps(plan, q, copies=3):
        keys, values = step.keys(k), step.keys(v)
        for member in step.members(q):
            grad_q, grad_k, grad_v = _flash_backward(
                step.queries(grad_out, member),
                step.queries(q, member),
                step.repeat(keys, member, q.shape[1]),
                step.repeat(values, member, q.shape[1]),
                step.queries(out, member),
                step.queries(lse, member),
                0.0,
                False,
                attn_mask=step.add,
                scale=scale,
            )
            step.add_queries(dq, member, grad_q)
            step.add_keys(dk, member, grad_k)
            step.add_keys(dv, member, grad_v)
    return dq, dk, dv


ALL = None  # the member number that stands for all query heads of a key head at once


@dataclass(frozen=True, eq=False)
class _Step:
    """Items low .. high of a call's batch.

    Tensors over queries are [X, G, n, ...]: X pairs of batch and key head, G query heads of each.  The
    kernel has two batch axes: X and the items, or, for a single item, X and G (member ALL).
    """

    call: Call
    low: int
    high: int
    bias: Bias | None

    @property
    def add(self) -> Tensor | None:
        """The additive bias [1, items or 1, queries, keys], if any."""
        return None if self.bias is None else self.bias.add

    def members(self, q: Tensor) -> Iterator[int | None]:
        """Which query heads go into one kernel call."""
        if self.high - self.low == 1 and q.shape[1] > 1:
            yield ALL
        else:
            yield from range(q.shape[1])

    def queries(self, x: Tensor, member: int | None) -> Tensor:
        """[X, G, n, ...] -> [X, items, queries, ...], or [X, G, queries, ...] for ALL."""
        call = self.call
        if isinstance(call, Band):
            items = self._view(x)
        else:
            items = _chunked(x, call.queries).index_select(2, self._chunks())
        return items[:, :, 0] if member is ALL else items[:, member]

    def write(self, x: Tensor, member: int | None, value: Tensor) -> None:
        """Put what `queries` would give back into x."""
        if isinstance(self.call, Band):
            self.queries(x, member).copy_(value)
            return
        chunked = _chunked(x, self.call.queries)
        if member is ALL:
            chunked.index_copy_(2, self._chunks(), value.unsqueeze(2))
        else:
            chunked[:, member].index_copy_(1, self._chunks(), value)

    def add_queries(self, x: Tensor, member: int | None, value: Tensor) -> None:
        """Add a gradient [X, items or G, queries, D] to x [X, G, n, D]."""
        if isinstance(self.call, Band):
            self.queries(x, member).add_(value)
            return
        chunked = _chunked(x, self.call.queries)
        if member is ALL:
            chunked.index_add_(2, self._chunks(), value.unsqueeze(2).to(x.dtype))
        else:
            chunked[:, member].index_add_(1, self._chunks(), value.to(x.dtype))

    def keys(self, x: Tensor) -> Tensor:
        """[X, n_k, D] -> [X, items, keys, D]: a view for a Band, a copy for a Scatter."""
        call = self.call
        if isinstance(call, Band):
            s = x.stride()
            return x.as_strided(
                (x.shape[0], self.high - self.low, call.keys, x.shape[2]),
                (s[0], call.key_step * s[1], s[1], s[2]),
                x.storage_offset() + (call.first_key + self.low * call.key_step) * s[1],
            )
        tiles = self._tiles()
        side = call.side
        whole = x.shape[1] // side
        picked = x[:, : whole * side].unflatten(1, (whole, side)).index_select(1, tiles)
        return picked.view(x.shape[0], self.high - self.low, -1, x.shape[2])

    def repeat(self, keys: Tensor, member: int | None, times: int) -> Tensor:
        """Keys as the kernel takes them: for ALL, one item serves all G query heads."""
        return keys.expand(-1, times, -1, -1) if member is ALL else keys

    def add_keys(self, x: Tensor, member: int | None, value: Tensor) -> None:
        """Add a gradient [X, items or G, keys, D] to x [X, n_k, D], where items may overlap."""
        call = self.call
        if member is ALL:
            value = value.sum(1, keepdim=True, dtype=x.dtype)
        if not isinstance(call, Band):
            side = call.side
            whole = x.shape[1] // side
            x[:, : whole * side].unflatten(1, (whole, side)).index_add_(
                1, self._tiles(), value.to(x.dtype).reshape(x.shape[0], -1, side, x.shape[2])
            )
            return
        first = call.first_key + self.low * call.key_step
        if value.shape[1] == 1 or call.key_step == 0:
            total = value[:, 0] if value.shape[1] == 1 else value.sum(1, dtype=x.dtype)
            x[:, first : first + call.keys].add_(total)
            return
        s = x.stride()
        for a in range(0, call.keys, call.key_step):
            piece = value[:, :, a : a + call.key_step]  # pieces of different items do not overlap
            x.as_strided(
                piece.shape,
                (s[0], call.key_step * s[1], s[1], s[2]),
                x.storage_offset() + (first + a) * s[1],
            ).add_(piece)

    def _view(self, x: Tensor) -> Tensor:
        call = self.call
        assert isinstance(call, Band)
        s = x.stride()
        return x.as_strided(
            (*x.shape[:2], self.high - self.low, call.queries, *x.shape[3:]),
            (*s[:2], call.query_step * s[2], s[2], *s[3:]),
            x.storage_offset() + (call.first_query + self.low * call.query_step) * s[2],
        )

    def _chunks(self) -> Tensor:
        assert not isinstance(self.call, Band)
        return torch.from_numpy(self.call.chunks[self.low : self.high])

    def _tiles(self) -> Tensor:
        assert not isinstance(self.call, Band)
        return torch.from_numpy(self.call.tiles[self.low : self.high].reshape(-1))


def _steps(plan: Prepared, q: Tensor, copies: int) -> Iterator[_Step]:
    """The calls, cut into pieces whose temporaries stay near TEMPORARY bytes."""
    heads, D = q.shape[0], q.shape[3]
    for number, call in enumerate(plan.schedule.calls):
        if isinstance(call, Band):
            batch, keys = call.batch, call.keys
            item = heads * D * (call.queries + (keys * copies if copies > 1 else 0))
        else:
            batch, keys = len(call.chunks), call.tiles.shape[1] * call.side
            item = heads * D * (call.queries + 2 * keys * copies)
            item += 0 if call.words is None else 2 * call.queries * keys
        size = max(1, TEMPORARY // (item * q.element_size()))
        for low in range(0, batch, size):
            high = min(low + size, batch)
            yield _Step(call, low, high, plan.bias(number, low, high, q.dtype))


def head_groups(
    head_pattern: Tensor, heads: int, key_heads: int
) -> Iterator[tuple[int, slice, slice]]:
    """Cut the heads where the pattern changes: (pattern, key heads, members of each key head).

    >>> list(head_groups(torch.tensor([0, 0, 1, 1]), 4, 2))
    [(0, slice(0, 1, None), slice(0, 2, None)), (1, slice(1, 2, None), slice(0, 2, None))]
    """
    ratio = heads // key_heads
    if len(head_pattern) == 1:
        yield int(head_pattern[0]), slice(0, key_heads), slice(0, ratio)
        return
    table = head_pattern.view(key_heads, ratio).tolist()
    first = 0
    while first < key_heads:
        if len(set(table[first])) > 1:
            for member, pattern in enumerate(table[first]):
                yield pattern, slice(first, first + 1), slice(member, member + 1)
            first += 1
            continue
        last = first + 1
        while last < key_heads and table[last] == table[first]:
            last += 1
        yield table[first][0], slice(first, last), slice(0, ratio)
        first = last


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of LSE and of sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fold(
    tensors: Sequence[Tensor], keys: slice, members: slice, key_heads: int
) -> Iterator[Tensor]:
    """q, k, v and more tensors over queries, as [X, G, n, ...] and, for k and v, [X, n_k, D]."""
    for number, x in enumerate(tensors):
        if number in (1, 2):
            yield x[:, keys].reshape(-1, *x.shape[2:])
        else:
            picked = x.unflatten(1, (key_heads, -1))[:, keys, members]
            yield picked.reshape(-1, *picked.shape[2:])


def _chunked(x: Tensor, queries: int) -> Tensor:
    """[X, G, n, ...] -> [X, G, whole chunks, queries, ...], a view."""
    whole = x.shape[2] // queries
    return x[:, :, : whole * queries].unflatten(2, (whole, queries))


def _same_width(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The kernel wants D = Dv: the narrower tensors get columns of zeros, which change no score."""
    width = max(x.shape[-1] for x in tensors)
    whole = (x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1])) for x in tensors)
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in whole)


def _check(q: Tensor) -> None:
    if q.device.type != "cpu" or q.dtype not in DTYPES:
        known = ", ".join(str(t).removeprefix("torch.") for t in DTYPES)
        raise TensorError(
            f"the CPU backend takes CPU tensors of {known}; q is {q.dtype} on {q.device}: "
            "convert it, or choose another backend"
        )
