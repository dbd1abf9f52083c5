"""Calls of a schedule whose scores are more than scaled products, in torch's own operations.

torch's flash kernel knows no softcap and no positions.  Here each call is cut into pieces whose
scores fit in `step.TEMPORARY`; the pieces are merged by LSE, as calls are, and the backward pass
takes the *global* output and LSE.  Everything is summed in `wide` precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patterncc.kernels.cpu.heads import fold_keys, fold_queries, merged, of_group, wide
from patterncc.kernels.cpu.schedule import Band, Call, Scatter, Schedule
from patterncc.kernels.cpu.step import TEMPORARY, Step

if TYPE_CHECKING:
    from patterncc.kernels.cpu.cache import Prepared
    from patterncc.kernels.score import Score
    from patterncc.kernels.spec import Spec

ALIVE = 4  # tensors of the size of a piece's scores that exist at once
QUERIES = 256  # of a piece, at most


@dataclass(frozen=True, eq=False)
class Options:
    """The options of a score for a group of heads: X pairs of batch and key head, G heads each.

    slopes [X, G], bias [X, G, 2 R + 1], keys bool [X, n_k]; query_at [n] and key_at [n_k], int64:
    positions counted from the layout's first query.  Gradients are added to of_slopes and of_bias.
    """

    scale: float
    softcap: float
    slopes: Tensor | None
    bias: Tensor | None
    keys: Tensor | None
    query_at: Tensor
    key_at: Tensor
    of_slopes: Tensor | None = None
    of_bias: Tensor | None = None

    @staticmethod
    def of(
        score: Score, spec: Spec, batch: int, keys: slice, members: slice, key_heads: int
    ) -> Options:
        """The options of one group of heads; `score.keys` are those of its sequences."""
        per_head: list[Tensor | None] = []
        for x in (score.slopes, score.bias):
            each = None if x is None else x.expand(batch, *x.shape)
            folded = None if each is None else fold_queries([each], keys, members, key_heads)[0]
            per_head.append(folded)
        there = None
        if score.keys is not None:
            whole = score.keys[:, None].expand(-1, key_heads, -1)
            (there,) = fold_keys([whole], keys)
        query_at = torch.arange(spec.n) if score.query_at is None else score.query_at.long()
        key_at = torch.arange(spec.n_k) if score.key_at is None else score.key_at.long()
        slopes, bias = per_head
        return Options(
            scale=score.scale,
            softcap=score.softcap,
            slopes=slopes,
            bias=bias,
            keys=there,
            query_at=query_at,
            key_at=key_at + (spec.k_offset - spec.q_offset),
            of_slopes=None if slopes is None or not score.slopes_grad else torch.zeros_like(slopes),
            of_bias=None if bias is None or not score.bias_grad else torch.zeros_like(bias),
        )

    def add_to(
        self,
        sums: tuple[Tensor | None, Tensor | None],
        keys: slice,
        members: slice,
        key_heads: int,
    ) -> None:
        """Add this group's gradients, over its sequences, to those of all heads."""
        for whole, part in zip(sums, (self.of_slopes, self.of_bias), strict=True):
            if whole is not None and part is not None:
                of = of_group(whole[None], keys, members, key_heads)[0]
                of.add_(part.view(-1, *of.shape).sum(0))


@dataclass(frozen=True, eq=False)
class Piece:
    """One query head of each group, x of the pairs of batch and key head, over one small step."""

    step: Step
    x: slice
    member: int
    options: Options

    def queries(self, x: Tensor) -> Tensor:
        """[X, G, n, ...] -> [x, items, queries, ...]."""
        return self.step.queries(x[self.x], self.member)

    def keys(self, x: Tensor) -> Tensor:
        """[X, n_k, D] -> [x, items, keys, D]."""
        return self.step.keys(x[self.x])

    def distance(self) -> Tensor:
        """Key position minus query position, int64 [1, items, queries, keys]."""
        query = self.step.queries(self.options.query_at[None, None], 0)
        key = self.step.keys(self.options.key_at[None, :, None])
        return key.transpose(-1, -2) - query[..., None]

    def scores(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scores [x, items, queries, keys], tanh where there is a softcap, distances if needed."""
        options = self.options
        s = (q @ k.transpose(-1, -2)).mul_(options.scale)
        limited = distance = None
        if options.softcap:
            limited = s.div_(options.softcap).tanh_()
            s = limited * options.softcap
        if options.slopes is not None or options.bias is not None:
            distance = self.distance()
        if options.slopes is not None and distance is not None:
            slope = options.slopes[self.x, self.member, None, None, None]
            s -= slope * distance.abs()
        if options.bias is not None and distance is not None:
            table = options.bias[self.x, self.member]
            picked = table.index_select(1, self.columns(distance))
            s += picked.view(len(picked), *distance.shape[1:])
        if options.keys is not None:
            there = self.keys(options.keys[..., None])[..., 0]
            s.masked_fill_(~there[:, :, None], -torch.inf)
        if self.step.bias is not None:
            s += self.step.bias.add
        return s, limited, distance

    def columns(self, distance: Tensor) -> Tensor:
        """Which column of the bias's table each pair reads, [pairs]."""
        assert self.options.bias is not None
        most = self.options.bias.shape[-1] // 2
        return (distance.clamp(-most, most) + most).reshape(-1)

    def add_option_grads(self, ds: Tensor, distance: Tensor | None) -> None:
        """Add what the gradients by the scores mean for slopes and bias."""
        of_slopes, of_bias = self.options.of_slopes, self.options.of_bias
        if of_slopes is not None and distance is not None:
            of_slopes[self.x, self.member] -= (ds * distance.abs()).sum((1, 2, 3))
        if of_bias is not None and distance is not None:
            of_bias[self.x, self.member].index_add_(1, self.columns(distance), ds.flatten(1))


def pieces(plan: Prepared, schedule: Schedule, q: Tensor, options: Options) -> Iterator[Piece]:
    """The calls of a schedule in pieces whose scores fit; keys of one query in their order."""
    pairs, group = q.shape[:2]
    most = TEMPORARY // (ALIVE * wide(q.dtype).itemsize)
    for call in schedule.calls if q.numel() else ():
        batch = call.batch if isinstance(call, Band) else len(call.chunks)
        side_q = min(call.queries, QUERIES)
        for part, rows, columns in _cut(call, side_q, max(64, most // side_q)):
            room = max(1, most // (part.queries * _keys_of(part)))
            x_size, items = min(pairs, room), max(1, room // pairs)
            for low in range(0, batch, items):
                high = min(low + items, batch)
                whole = plan.bias(call, low, high, q.dtype)
                if whole is not None:
                    whole = replace(whole, add=whole.add[..., rows, columns].to(wide(q.dtype)))
                step = Step(part, low, high, whole)
                for x in range(0, pairs, x_size):
                    for member in range(group):
                        yield Piece(step, slice(x, x + x_size), member, options)


def _keys_of(call: Call) -> int:
    return call.keys if isinstance(call, Band) else call.tiles.shape[1] * call.side


def _cut(call: Call, queries: int, keys: int) -> Iterator[tuple[Call, slice, slice]]:
    """A call in parts of few queries and keys, and where those stand within it."""
    if isinstance(call, Scatter):
        tiles = max(1, keys // call.side)
        for a in range(0, call.tiles.shape[1], tiles):
            some = replace(call, tiles=call.tiles[:, a : a + tiles], fresh=call.fresh and a == 0)
            yield some, slice(None), slice(a * call.side, (a + tiles) * call.side)
        return
    for i in range(0, call.queries, queries):
        for j in range(0, call.keys, keys):
            count_q, count_k = min(queries, call.queries - i), min(keys, call.keys - j)
            part = replace(
                call,
                first_query=call.first_query + i,
                queries=count_q,
                first_key=call.first_key + j,
                keys=count_k,
                fresh=call.fresh and j == 0,
            )
            yield part, slice(i, i + count_q), slice(j, j + count_k)


def forward_group(
    q: Tensor, k: Tensor, v: Tensor, plan: Prepared, options: Options
) -> tuple[Tensor, Tensor]:
    """q [X, G, n, D], k and v [X, n_k, D] -> output [X, G, n, D] and LSE [X, G, n], both `wide`."""
    out = torch.zeros(q.shape, dtype=wide(q.dtype))
    lse = torch.full(q.shape[:-1], -torch.inf, dtype=wide(q.dtype))
    for piece in pieces(plan, plan.forward, q, options):
        rows, keys, values = (
            x.to(out.dtype) for x in (piece.queries(q), piece.keys(k), piece.keys(v))
        )
        s, _, _ = piece.scores(rows, keys)
        part_lse = torch.logsumexp(s, -1)
        dead = part_lse == -torch.inf
        p = s.sub_(part_lse.masked_fill(dead, 0.0)[..., None]).exp_()
        _put(piece, p @ values, part_lse, dead, out, lse)
    return out, lse


def _put(
    piece: Piece, part: Tensor, part_lse: Tensor, dead: Tensor, out: Tensor, lse: Tensor
) -> None:
    """Write or merge one piece's result."""
    if not piece.step.call.fresh:
        part, part_lse = merged(piece.queries(out), piece.queries(lse), part, part_lse, dead)
    piece.step.write(out[piece.x], piece.member, part)
    piece.step.write(lse[piece.x], piece.member, part_lse)


def backward_group(
    over_queries: Sequence[Tensor], over_keys: Sequence[Tensor], plan: Prepared, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, `wide`; those of slopes and bias are added to the options'.

    over_queries: gradient of the output, q, output, LSE (+inf where a query reads nothing).
    over_keys: k, v.
    """
    grad_out, q, out, lse = over_queries
    k, v = over_keys
    dtype = wide(q.dtype)
    dq, dk, dv = (torch.zeros(x.shape, dtype=dtype) for x in (q, k, v))
    delta = (grad_out.to(dtype) * out.to(dtype)).sum(-1)
    for piece in pieces(plan, plan.backward, q, options):
        step, member = piece.step, piece.member
        rows, grad, keys, values = (
            x.to(dtype)
            for x in (piece.queries(q), piece.queries(grad_out), piece.keys(k), piece.keys(v))
        )
        s, limited, distance = piece.scores(rows, keys)
        p = s.sub_(piece.queries(lse)[..., None]).exp_()
        step.add_keys(dv[piece.x], member, p.transpose(-1, -2) @ grad)
        ds = (grad @ values.transpose(-1, -2)).sub_(piece.queries(delta)[..., None]).mul_(p)
        piece.add_option_grads(ds, distance)
        if limited is not None:
            ds *= 1 - limited.square_()
        ds *= options.scale
        step.add_queries(dq[piece.x], member, ds @ keys)
        step.add_keys(dk[piece.x], member, ds.transpose(-1, -2) @ rows)
    return dq, dk, dv
