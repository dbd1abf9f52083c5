"""Launches of the backward kernels: row sums, items of the work lists, parts of cut lines added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from patterncc.kernels.launch.call import (
    launch,
    of_layout,
    of_work,
    plan_for,
    rows_together,
    section,
)
from patterncc.kernels.launch.score import arguments as of_score
from patterncc.kernels.launch.score_grads import option_grads
from patterncc.kernels.plan import Plan
from patterncc.kernels.score import Grads, Score
from patterncc.kernels.spec import Spec
from patterncc.kernels.tables import Tables, Work, level, processors_of

Arguments = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Call:
    """What every launch of one backward pass is made from; `shared` are arguments of them all."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    tensors: Sequence[Tensor]
    spec: Spec
    score: Score
    shared: Arguments


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
    repeatable: bool = True,
) -> Grads:
    """The gradients of q, k and v, and of the slopes and bias that are asked for.

    repeatable: the same bits every time, by two kernels that each compute every probability and
    add in a fixed order: 7 products a pair.  Else by one kernel with 5, which adds the gradient of
    q atomically.
    """
    q, k, v, out, grad_out = rows_together(q, k, v, out, grad_out)
    lse = lse.contiguous()
    if not (q.shape[2] and k.shape[2]):  # a descriptor cannot be empty
        return Grads(torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
    shared: Arguments = {"q": q, "k": k, "v": v, "out": out, "grad": grad_out, "lse": lse}
    shared |= {"delta": torch.empty_like(lse), "lse2": torch.empty_like(lse)}
    call = Call(q, k, v, grad_out, tensors, spec, score, shared | of_score(score, spec))
    _row_sums(call)
    of_options = option_grads(call.shared, tensors, spec, score)
    if repeatable:
        return Grads(_by_rows(call), *_by_columns(call, "dkdv", {}), *of_options)
    sums = q.new_zeros(q.shape, dtype=torch.float32)
    grad_k, grad_v = _by_columns(call, "single", {"sum_q": sums})
    grad_q = torch.mul(sums, score.scale, out=torch.empty_like(sums, dtype=q.dtype))
    return Grads(grad_q, grad_k, grad_v, *of_options)


def _row_sums(call: Call) -> None:
    """delta and the LSE in base 2, into the arguments."""
    batch, heads, n, _ = call.q.shape
    plan = plan_for("delta", call.q, call.v, call.spec, call.score)
    programs = -(-n // plan.bm) * batch * heads
    launch(plan, programs, call.shared | of_layout(call.q, call.k, call.tensors, call.spec, "rows"))


def _by_rows(call: Call) -> Tensor:
    """The gradient of q, by items of rows."""
    q, k, v, spec = call.q, call.k, call.v, call.spec
    plan = plan_for("dq", q, v, spec, call.score)
    arguments = call.shared | of_layout(q, k, call.tensors, spec, "rows")
    arguments |= of_work(q, k, v, call.tensors, spec) | {"members": 1}
    units, slots, tile = arguments["units"], arguments["slots"], spec.block[0]
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    part_q = q.new_empty(units, slots, tile, q.shape[3], dtype=torch.float32)
    arguments |= {"grad_q": grad_q, "part_grad_q": part_q}
    launch(plan, arguments["item_count"] * units * (tile // plan.bm), arguments)
    _gather(plan, grad_q, part_q, arguments)
    return grad_q


def _by_columns(
    call: Call, kind: Literal["dkdv", "single"], more: Arguments
) -> tuple[Tensor, Tensor]:
    """The gradients of k and v, by items of columns; `single` also adds to `sum_q`."""
    q, k, v, spec = call.q, call.k, call.v, call.spec
    plan = plan_for(kind, q, v, spec, call.score)
    tile = spec.block[1]
    work, members = _members(call, tile // plan.bn)
    units, slots = _units(call, members), len(work.parts)
    apart = q.shape[1] // members > k.shape[1]  # several programs share a key head
    wide = torch.float32 if apart else q.dtype
    wholes = [x.new_empty(len(x), q.shape[1] // members, *x.shape[2:], dtype=wide) for x in (k, v)]
    parts = [x.new_empty(units, slots, tile, x.shape[3], dtype=torch.float32) for x in (k, v)]
    arguments = call.shared | of_layout(q, k, call.tensors, spec, "cols") | more
    arguments |= {"items": work.items, "parts": work.parts, "item_count": len(work.items)}
    arguments |= {"slots": slots, "units": units, "section": section(units, q, call.grad)}
    arguments |= {"members": members, "grad_k": wholes[0], "grad_v": wholes[1]}
    arguments |= {"part_grad_k": parts[0], "part_grad_v": parts[1]}
    launch(plan, len(work.items) * units * (tile // plan.bn), arguments)
    for whole, part in zip(wholes, parts, strict=True):
        _gather(plan, whole, part, arguments)
    if apart:
        groups = [x.view(*k.shape[:2], -1, *x.shape[2:]) for x in wholes]
        wholes = [x.sum(2).to(q.dtype) for x in groups]
    return wholes[0], wholes[1]


def _members(call: Call, programs: int) -> tuple[Work, int]:
    """The work list of columns, and how many heads of a group one program adds up.

    All of them, unless they read different patterns or programs (`programs` an item) would be
    fewer than the device runs at once: then what the programs of a group have is kept apart in
    fp32 and added in order.
    """
    q, k, spec = call.q, call.k, call.spec
    lists = Tables.of(call.tensors).col_work
    group = q.shape[1] // k.shape[1]
    if spec.share % group:
        return lists[level(_units(call, 1))], 1
    work = lists[level(_units(call, group))]
    busy = len(work.items) * _units(call, group) * programs
    if _heads_listed(spec):  # the items of all but the first head of a group do nothing
        busy //= group
    enough = processors_of(q.device)
    fitting = (m for m in range(group, 1, -1) if group % m == 0 and busy * (group // m) >= enough)
    return work, next(fitting, 1)


def _units(call: Call, members: int) -> int:
    """How often the list of columns runs: for every `members` heads that no item names."""
    batch, heads = call.q.shape[:2]
    of_batch = batch if call.spec.sequences == 1 else 1
    return of_batch if _heads_listed(call.spec) else of_batch * heads // members


def _heads_listed(spec: Spec) -> bool:
    """Items name heads; else each serves all of its sequence."""
    return spec.patterns > spec.sequences


def _gather(plan: Plan, whole: Tensor, parts: Tensor, arguments: Arguments) -> None:
    """Add up the parts of cut lines, fp32 [units, slots, tile, dim], where they belong."""
    units, slots, tile, dim = parts.shape
    step = min(64, tile)
    sizes = (tile, tile), step, step, 4, 1
    heads, batch = plan.per_head, plan.per_sequence
    plan = Plan(
        "gather", plan.target, plan.dtype, dim, dim, *sizes, per_head=heads, per_sequence=batch
    )
    arguments = arguments | {"x": parts, "whole": whole, "length": whole.shape[2]}
    launch(plan, slots * units * (tile // step), arguments)
