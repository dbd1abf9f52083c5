"""The backward pass by a native kernel: which tables and sums one call takes."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patterncc.kernels.native.backward import FIELDS, STEP_KEYS
from patterncc.kernels.native.build import kernel
from patterncc.kernels.native.call import struct_type
from patterncc.kernels.native.parts import UNITS, Columns, Parts, parts
from patterncc.kernels.native.plan import NativePlan
from patterncc.kernels.native.run import (
    fill_inputs,
    fill_layout,
    fill_score,
    forward,
    lines_of,
    plan_of,
    share,
)
from patterncc.kernels.score import Grads, Score

if TYPE_CHECKING:
    from patterncc.kernels.spec import Spec

KEPT = 64  # layouts whose cut is remembered

_BackwardCall = struct_type(FIELDS)
_kept: OrderedDict[tuple[object, ...], Parts] = OrderedDict()
_lock = Lock()


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
) -> Grads | None:
    """`cpu.backward` by a native kernel; None where there is none for this call.

    Raises: MemoryError.
    """
    if not min(*q.shape[:3], k.shape[2]):
        return None  # nothing to do
    plan = plan_of("backward", q, v, score)
    function = None if plan is None else kernel(plan)
    if plan is None or function is None:
        return None
    inputs = {"q": q, "k": k, "v": v, "out": out.to(q.dtype), "grad": grad_out.to(q.dtype)}
    inputs = {x: t if t.stride(-1) == 1 else t.contiguous() for x, t in inputs.items()}
    call = _BackwardCall()
    kept: list[Any] = fill_inputs(call, **inputs)
    kept += fill_layout(call, q, k, tensors, spec, columns=True)
    kept += fill_score(call, plan, score, score.scale)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    call.dq, call.dk, call.dv = (x.data_ptr() for x in (dq, dk, dv))
    lse = lse.to(torch.float32).contiguous()
    delta = _exact_delta(grad_out, q, k, v, tensors, spec, score)
    if delta is None:
        delta = torch.empty_like(lse)
    else:
        call.out = None
    call.lse, call.delta = lse.data_ptr(), delta.data_ptr()
    cut = _parts(tensors, spec, q, k)
    kept += _fill_parts(call, plan, cut, tensors[0], spec)
    slopes, bias = _sums(call, score, len(cut.units))
    tiles = lines_of(tensors, spec, columns=True).tiles
    share(call, 0, tiles, spec, q.shape[-1] + v.shape[-1])
    if function(ctypes.byref(call)):
        raise MemoryError("no memory for the CPU kernel's threads")
    return Grads(
        dq,
        dk,
        dv,
        None if slopes is None else _summed(slopes)[:, 0],
        None if bias is None else _summed(bias),
    )


def _exact_delta(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
) -> Tensor | None:
    """delta from an output that was never rounded, or None where the output at hand does.

    The gradient of slopes adds up dS times distances.  A delta that is off by e moves it by e times
    the mean distance of each row, far more than dS itself is rounded by: so in half precision the
    output is computed once more, in fp32.
    """
    asked = score.slopes_grad and score.slopes is not None
    asked |= score.bias_grad and score.bias is not None
    if q.dtype == torch.float32 or not asked or score.partly:  # a term lacks the others' keys
        return None
    found = forward(q.float(), k.float(), v.float(), tensors, spec, score)
    if found is None:
        return None
    return (found[0] * grad_out).sum(-1, dtype=torch.float64).to(torch.float32)


def _parts(tensors: Sequence[Tensor], spec: Spec, q: Tensor, k: Tensor) -> Parts:
    """The cut of a layout, remembered by its hash."""
    wanted = -(-UNITS // max(1, k.shape[0] * k.shape[1]))
    name = spec.layout_hash or bytes(tensors[7].tolist()).hex()
    key = (name, spec.patterns, wanted)
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    ptr, run = tensors[3].numpy(), tensors[4].numpy()
    columns = Columns(ptr, run, spec.k_lines, spec.q_lines)
    listed = np.bincount(tensors[0].numpy(), minlength=columns.patterns)
    made = parts(columns, listed.astype(np.int64), wanted)
    with _lock:
        _kept[key] = made
        if len(_kept) > KEPT:
            _kept.popitem(last=False)
    return made


def _fill_parts(
    call: Any, plan: NativePlan, cut: Parts, head_pattern: Tensor, spec: Spec
) -> list[Any]:
    """The tables of a cut and the memory of its sums; gives what must outlive the call."""
    tables = {
        "units": cut.units,
        "touched_ptr": cut.touched_ptr,
        "touched": cut.touched,
        "adders_ptr": cut.adders_ptr,
        "adders": cut.adders,
        "cut": cut.cut,
    }
    for name, table in tables.items():
        setattr(call, name, table.ctypes.data)
    call.unit_count, call.cut_count, call.slot_count = len(cut.units), len(cut.cut), cut.slots
    call.rows = spec.q_lines
    head = padded(plan.head_dim, plan.lanes)
    each = np.array([cut.rows_of(p) for p in range(_patterns(cut))], dtype=np.int64)
    pattern = head_pattern.numpy().reshape(spec.sequences, -1)
    pattern = np.broadcast_to(pattern, (call.batch, pattern.shape[1]))
    pattern = np.broadcast_to(pattern, (call.batch, call.heads))
    rows = each[pattern].reshape(-1)
    starts = np.cumsum(rows) - rows
    sums = torch.empty(int(rows.sum()) * call.tile_q * head, dtype=torch.float32)
    steps = -(-call.tile_k // STEP_KEYS)
    both = head + padded(plan.value_dim, plan.lanes)
    slots = call.batch * call.key_heads * cut.slots * steps
    key_sums = torch.empty(slots * STEP_KEYS * both, dtype=torch.float32)
    call.starts, call.sums, call.key_sums = starts.ctypes.data, sums.data_ptr(), key_sums.data_ptr()
    return [tables, starts, sums, key_sums]


def padded(columns: int, lanes: int) -> int:
    """Columns of a head, filled up to whole vectors.

    >>> padded(80, 16), padded(3, 8)
    (80, 8)
    """
    return -(-columns // lanes) * lanes


def _patterns(cut: Parts) -> int:
    return (len(cut.touched_ptr) - 1) // max(1, len(cut.units))


def _sums(call: Any, score: Score, units: int) -> tuple[Tensor | None, Tensor | None]:
    """What each unit adds to the gradients of slopes and of bias, fp64
    [batch, key heads, units, group, numbers of a head]."""
    group = call.heads // max(1, call.key_heads)
    shape = (call.batch, call.key_heads, units, group)
    slopes = bias = None
    if score.slopes is not None and score.slopes_grad:
        slopes = torch.zeros(*shape, 1, dtype=torch.float64)
        call.dslopes = slopes.data_ptr()
    if score.bias is not None and score.bias_grad:
        bias = torch.zeros(*shape, score.bias.shape[-1], dtype=torch.float64)
        call.dbias = bias.data_ptr()
    return slopes, bias


def _summed(x: Tensor) -> Tensor:
    """Sums over batch and units in one order, whatever the number of threads: [heads, numbers]."""
    total = x.numpy().sum(axis=(0, 2))
    return torch.from_numpy(total.reshape(-1, total.shape[-1])).to(torch.float32)
