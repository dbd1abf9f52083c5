"""One launch of a generated kernel: its plan, and its arguments by name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor

from patterncc.errors import SizeError
from patterncc.kernels import runtime
from patterncc.kernels.choose import choose
from patterncc.kernels.emit.pieces import AXES, parameters, streamed_block
from patterncc.kernels.launch.score import with_options
from patterncc.kernels.plan import DType, Kind, Plan
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec
from patterncc.kernels.tables import Tables, cache_of, level
from patterncc.kernels.tuning import stored

MAX_ROW_STRIDE = 2**31 // 512  # elements; offsets within a tile are 32-bit


def plan_for(
    kind: Kind, q: Tensor, v: Tensor, spec: Spec, score: Score | None = None, *, heads: int = 1
) -> Plan:
    """The plan of a kernel for these tensors on their device, and for a score's options."""
    target = runtime.target_of(q.device)
    plan = choose(
        kind,
        spec,
        target,
        cast(DType, str(q.dtype).removeprefix("torch.")),
        q.shape[-1],
        v.shape[-1],
        heads=heads,
        upcast=runtime.interpreting() and q.dtype == torch.bfloat16,
        table=stored.tuned(q.device),
    )
    return plan if score is None else with_options(plan, score)


def of_layout(
    q: Tensor, k: Tensor, tensors: Sequence[Tensor], spec: Spec, way: Literal["rows", "cols"]
) -> dict[str, Any]:
    """The layout's tables in one direction, and the sizes of the tensors, by argument name."""
    x = Tables.of(tensors)
    by_rows = way == "rows"
    return {
        "head_pattern": x.head_pattern,
        "ptr": x.row_ptr if by_rows else x.col_ptr,
        "run": x.row_run if by_rows else x.col_run,
        "zone": x.zone,
        "bits": x.bits if by_rows else x.bits_by_key,
        "zone_count": len(x.zone),
        "listed": x.head_pattern.shape[0] // spec.sequences,
        "lines": spec.q_lines if by_rows else spec.k_lines,
        "n": q.shape[2],
        "n_k": k.shape[2],
        "heads": q.shape[1],
        "group": q.shape[1] // k.shape[1],
    }


def of_work(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec
) -> dict[str, Any]:
    """The work list of rows for these tensors and how it runs, by argument name.

    A unit is what one run of the list serves: a head, or where the list names heads all of them.
    """
    x, (batch, heads) = Tables.of(tensors), q.shape[:2]
    if spec.sequences > 1:
        units = heads * spec.sequences // len(x.head_pattern)
    else:
        units = batch if spec.patterns > 1 else batch * heads
    work = x.row_work[level(units)]
    return {
        "items": work.items,
        "parts": work.parts,
        "item_count": len(work.items),
        "slots": len(work.parts),
        "units": units,
        "section": section(units, k, v),
    }


def section(units: int, k: Tensor, v: Tensor) -> int:
    """Units that run side by side: as many as half of the cache holds keys and values of.

    k, v: what all units read together.

    >>> k = torch.empty(2, 4, 50_000, 64, dtype=torch.float16)
    >>> section(8, k, k), section(32, k, k), section(2, k, k)
    (2, 8, 1)
    """
    fitting = max(1, cache_of(k.device) // 2 // (k[0, 0].nbytes + v[0, 0].nbytes))
    return min(units, max(1, fitting * units // (k.shape[0] * k.shape[1])))


def launch(plan: Plan, programs: int, arguments: dict[str, Any]) -> None:
    """Start one kernel; `arguments` may hold more than it takes."""
    if programs == 0:
        return
    if programs >= 2**31:
        raise SizeError(
            f"attention: {programs} programs of {plan.kind}; a launch takes {2**31 - 1}: use "
            "larger blocks, or fewer heads or sequences at once"
        )
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


def rows_together(*xs: Tensor) -> list[Tensor]:
    """Tensors whose last axis is contiguous and whose rows are near enough for 32-bit offsets."""
    near = [x.stride(-1) == 1 and x.stride(-2) <= MAX_ROW_STRIDE for x in xs]
    return [x if ok else x.contiguous() for x, ok in zip(xs, near, strict=True)]
