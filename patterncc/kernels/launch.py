"""The Triton backend: forward, backward and decode as launches of generated kernels.

The same three functions as `patterncc.kernels.cpu`; `tensors` are those of `runtime.kernel_tables`.
Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from patterncc.kernels import runtime
from patterncc.kernels.choose import choose
from patterncc.kernels.plan import DType, Kind, Plan, Spec

MAX_ROW_STRIDE = 2**31 // 512  # elements; offsets within a tile are 32-bit


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over a layout's edges: out [B, H, n, Dv] in q's dtype, lse fp32 [B, H, n]."""
    q, k, v = _rows_together(q, k, v)
    batch, heads, n, _ = q.shape
    out = q.new_empty(batch, heads, n, v.shape[-1])
    lse = q.new_empty(batch, heads, n, dtype=torch.float32)
    plan = plan_for("forward", q, v, spec)
    _launch(
        plan,
        -(-n // plan.bm) * batch * heads,
        [q, k, v, out, lse, *_tables(plan, tensors, "rows")],
        [q, k, v, out],
        [scale, n, k.shape[2], heads, heads // k.shape[1], spec.q_lines],
        tensors,
    )
    return out, lse


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
    """The gradients of q, k and v; bitwise repeatable: no atomic is used."""
    q, k, v, out, grad_out = _rows_together(q, k, v, out, grad_out)
    lse = lse.contiguous()
    batch, heads, n, _ = q.shape
    kv_heads, n_k = k.shape[1], k.shape[2]
    delta, lse2 = torch.empty_like(lse), torch.empty_like(lse)
    grad_q, grad_k, grad_v = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)
    )
    plan = plan_for("delta", q, v, spec)
    _launch(
        plan,
        -(-n // plan.bm) * batch * heads,
        [out, grad_out, lse, delta, lse2],
        [out, grad_out],
        [n, heads],
        tensors,
    )
    shared = [q, k, v, grad_out, lse2, delta]
    sizes = [scale, n, n_k, heads, heads // kv_heads]
    plan = plan_for("dq", q, v, spec)
    _launch(
        plan,
        -(-n // plan.bm) * batch * heads,
        [*shared, grad_q, *_tables(plan, tensors, "rows")],
        [q, k, v, grad_out, grad_q],
        [*sizes, spec.q_lines],
        tensors,
    )
    plan = plan_for("dkdv", q, v, spec)
    _launch(
        plan,
        -(-n_k // plan.bn) * batch * kv_heads,
        [*shared, grad_k, grad_v, *_tables(plan, tensors, "cols")],
        [q, k, v, grad_out, grad_k, grad_v],
        [*sizes, spec.k_lines],
        tensors,
    )
    return grad_q, grad_k, grad_v


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    scale: float,
    position: Tensor,
) -> tuple[Tensor, Tensor]:
    """Query rows at `position` .. of each sequence; a row outside the layout reads nothing.

    position: int32 [B], the absolute position of q's first row.
    """
    q, k, v = _rows_together(q, k, v)
    batch, heads, count, _ = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    out = q.new_empty(batch, heads, count, v.shape[-1])
    lse = q.new_empty(batch, heads, count, dtype=torch.float32)
    packed = group > 1 and spec.share % group == 0
    plan = plan_for("decode", q, v, spec, heads=packed_rows(group) if packed else 1)
    _launch(
        plan,
        (kv_heads if packed else heads) * count * batch,
        [q, k, v, out, lse, position, *_tables(plan, tensors, "rows")],
        [q, k, v, out],
        [scale, spec.n, k.shape[2], heads, group, spec.q_lines] + [count, spec.q_offset],
        tensors,
    )
    return out, lse


def packed_rows(group: int) -> int:
    """Rows of the tile that holds the query heads of one key head: a power of two, 16 at least.

    >>> packed_rows(4), packed_rows(20)
    (16, 32)
    """
    return max(16, 1 << (group - 1).bit_length())


def plan_for(kind: Kind, q: Tensor, v: Tensor, spec: Spec, *, heads: int = 1) -> Plan:
    """The plan of a kernel for these tensors on their device."""
    target = runtime.target_of(q.device)
    return choose(
        kind,
        spec,
        target,
        cast(DType, str(q.dtype).removeprefix("torch.")),
        q.shape[-1],
        v.shape[-1],
        heads=heads,
        upcast=target == "interpreter" and q.dtype == torch.bfloat16,
    )


def _tables(plan: Plan, tensors: Sequence[Tensor], way: str) -> list[Tensor]:
    """The tables that a kernel of this plan takes, in its order."""
    head_pattern, row_ptr, row_run, col_ptr, col_run, zone, bits = tensors
    tables = [head_pattern] if plan.per_head else []
    tables += [row_ptr, row_run] if way == "rows" else [col_ptr, col_run]
    tables += [zone] if plan.zones else []
    return tables + ([bits] if plan.bits else [])


def _launch(
    plan: Plan,
    programs: int,
    pointers: list[Tensor],
    strided: list[Tensor],
    scalars: list[float],
    tensors: Sequence[Tensor],
) -> None:
    """Start one kernel; `strided` tensors add their batch, head and row strides."""
    if programs == 0:
        return
    strides = [stride for x in strided for stride in x.stride()[:3]]
    if plan.bits and plan.kind != "delta":
        scalars = [*scalars, _zone_count(tensors)]
    compiled = runtime.kernel(plan)
    options: dict[str, Any] = {"num_warps": plan.warps, "num_stages": plan.stages}
    options["enable_fp_fusion"] = True  # Triton 3.10 changes the default
    with _device_of(pointers[0]):
        compiled[(programs,)](*pointers, *strides, *scalars, **options)


def _zone_count(tensors: Sequence[Tensor]) -> int:
    """The first mask word of the bits, less one."""
    return tensors[5].shape[0]


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device: make it the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _rows_together(*xs: Tensor) -> list[Tensor]:
    """Tensors whose last axis is contiguous and whose rows are near enough for 32-bit offsets."""
    near = [x.stride(-1) == 1 and x.stride(-2) <= MAX_ROW_STRIDE for x in xs]
    return [x if ok else x.contiguous() for x, ok in zip(xs, near, strict=True)]
