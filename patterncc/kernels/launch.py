"""The Triton backend: forward, backward and decode as launches of generated kernels.

The same three functions as `patterncc.kernels.cpu`; `tensors` are those of `runtime.kernel_tables`.
Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor

from patterncc.kernels import runtime
from patterncc.kernels.choose import choose
from patterncc.kernels.pieces import AXES, parameters, streamed_block
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
    if not (n and k.shape[2]):  # a descriptor cannot be empty
        return out.zero_(), lse.fill_(-torch.inf)
    plan = plan_for("forward", q, v, spec)
    arguments = {"q": q, "k": k, "v": v, "out": out, "lse": lse, "scale": scale}
    programs = -(-n // plan.bm) * batch * heads
    _launch(plan, programs, arguments | _of_layout(q, k, tensors, spec, "rows"))
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
    if not (n and k.shape[2]):
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    delta, lse2 = torch.empty_like(lse), torch.empty_like(lse)
    grad_q, grad_k, grad_v = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)
    )
    arguments = {"q": q, "k": k, "v": v, "out": out, "grad": grad_out, "lse": lse, "scale": scale}
    arguments |= {
        "delta": delta,
        "lse2": lse2,
        "grad_q": grad_q,
        "grad_k": grad_k,
        "grad_v": grad_v,
    }
    by_rows = arguments | _of_layout(q, k, tensors, spec, "rows")
    plan = plan_for("delta", q, v, spec)
    _launch(plan, -(-n // plan.bm) * batch * heads, by_rows)
    plan = plan_for("dq", q, v, spec)
    _launch(plan, -(-n // plan.bm) * batch * heads, by_rows)
    plan = plan_for("dkdv", q, v, spec)
    programs = -(-k.shape[2] // plan.bn) * batch * k.shape[1]
    _launch(plan, programs, arguments | _of_layout(q, k, tensors, spec, "cols"))
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
    arguments = {"q": q, "k": k, "v": v, "out": out, "lse": lse, "scale": scale}
    arguments |= {"position": position, "count": count, "q_offset": spec.q_offset}
    arguments |= _of_layout(q, k, tensors, spec, "rows") | {"n": spec.n}
    _launch(plan, (kv_heads if packed else heads) * count * batch, arguments)
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
        upcast=runtime.interpreting() and q.dtype == torch.bfloat16,
    )


def _of_layout(
    q: Tensor, k: Tensor, tensors: Sequence[Tensor], spec: Spec, way: Literal["rows", "cols"]
) -> dict[str, Any]:
    """The layout's tables in one direction, and the sizes of the tensors, by argument name."""
    head_pattern, row_ptr, row_run, col_ptr, col_run, zone, bits, bits_by_key = tensors
    by_rows = way == "rows"
    return {
        "head_pattern": head_pattern,
        "ptr": row_ptr if by_rows else col_ptr,
        "run": row_run if by_rows else col_run,
        "zone": zone,
        "bits": bits if by_rows else bits_by_key,
        "zone_count": len(zone),
        "listed": head_pattern.shape[0] // spec.sequences,
        "lines": spec.q_lines if by_rows else spec.k_lines,
        "n": q.shape[2],
        "n_k": k.shape[2],
        "heads": q.shape[1],
        "group": q.shape[1] // k.shape[1],
    }


def _launch(plan: Plan, programs: int, arguments: dict[str, Any]) -> None:
    """Start one kernel; `arguments` may hold more than it takes."""
    if programs == 0:
        return
    pointers, strides, scalars = parameters(plan)
    values = [_pointer(plan, name, arguments[name]) for name in pointers]
    values += [_stride(arguments, name) for name in strides]
    values += [arguments[name] for name in scalars]
    options: dict[str, Any] = {"num_warps": plan.warps, "num_stages": plan.stages}
    options["enable_fp_fusion"] = True  # Triton 3.10 changes the default
    kernel = runtime.kernel(plan)
    with _device_of(arguments["lse"]):
        kernel[(programs,)](*values, **options)


def _pointer(plan: Plan, name: str, x: Tensor) -> Any:
    """A tensor as the kernel takes it: itself, or a descriptor of its tiles."""
    if name not in plan.streamed:
        return x
    from triton.tools.tensor_descriptor import TensorDescriptor

    unit = 16 // x.element_size()  # descriptors count in 16 bytes
    if x.data_ptr() % 16 or any(s % unit or s == 0 for s in x.stride()[:3]):
        x = x.clone(memory_format=torch.contiguous_format)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, *streamed_block(plan, name)])


def _stride(arguments: dict[str, Any], name: str) -> int:
    """The value of an argument such as `grad_q_row`."""
    tensor, _, axis = name.rpartition("_")
    stride: int = arguments[tensor].stride(AXES.index(axis))
    return stride


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device: make it the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _rows_together(*xs: Tensor) -> list[Tensor]:
    """Tensors whose last axis is contiguous and whose rows are near enough for 32-bit offsets."""
    near = [x.stride(-1) == 1 and x.stride(-2) <= MAX_ROW_STRIDE for x in xs]
    return [x if ok else x.contiguous() for x, ok in zip(xs, near, strict=True)]
