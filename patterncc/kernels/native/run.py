"""Attention by native kernels: which calls they take, and how one is put to them."""

from __future__ import annotations

import ctypes
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patterncc.kernels.native.build import features, kernel, lanes
from patterncc.kernels.native.call import struct_type
from patterncc.kernels.native.forward import FIELDS, part_size
from patterncc.kernels.native.plan import LARGEST_DIM, DType, Kind, NativePlan
from patterncc.kernels.score import Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.kernels.spec import Spec

DTYPES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
ITEM_WORK = 1 << 22  # multiplications that are worth a thread
HEAVY = 4096  # keys that one item may always read
LARGEST_PARTS = 1 << 26  # floats of memory for what items of cut lines find

_ForwardCall = struct_type(FIELDS)


def plan_of(kind: Kind, q: Tensor, v: Tensor, score: Score) -> NativePlan | None:
    """The plan of a call, or None where torch's own kernels take it.

    They do for float64, for head dims above LARGEST_DIM, and in half precision on processors with
    AMX, whose tiles they use.
    """
    dtype = DTYPES.get(q.dtype)
    wide = max(q.shape[-1], v.shape[-1]) > LARGEST_DIM or not min(q.shape[-1], v.shape[-1])
    if dtype is None or wide or q.device.type != "cpu":
        return None
    if dtype != "float32" and "amx_tile" in features():
        return None
    return NativePlan(
        kind=kind,
        dtype=dtype,
        head_dim=q.shape[-1],
        value_dim=v.shape[-1],
        lanes=lanes(),
        dot=dtype == "bfloat16" and lanes() == 16 and "avx512_bf16" in features(),
        softcap=score.softcap != 0,
        slopes=score.slopes is not None,
        bias=score.bias is not None,
        sinks=score.sinks is not None,
        keys=score.keys is not None,
        placed=score.query_at is not None or score.key_at is not None,
    )


def runs(kind: Kind, q: Tensor, v: Tensor, score: Score) -> bool:
    """Whether a native kernel takes such a call; makes it if need be."""
    plan = plan_of(kind, q, v, score)
    return plan is not None and kernel(plan) is not None


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec, score: Score
) -> tuple[Tensor, Tensor] | None:
    """`cpu.forward` by a native kernel; None where there is none for this call."""
    plan = plan_of("forward", q, v, score)
    function = None if plan is None else kernel(plan)
    if plan is None or function is None:
        return None
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    scale = ctypes.c_float(score.scale).value
    if scale <= 0:  # the largest product must be the largest score
        q, scale = (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)
    out = torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    call = _ForwardCall()
    kept = [*fill_inputs(call, q=q, k=k, v=v), *fill_layout(call, q, k, tensors, spec)]
    kept += fill_score(call, plan, score, scale)
    call.out, call.lse = out.data_ptr(), lse.data_ptr()
    items, parts = fill_cuts(call, plan, tensors, spec)
    kept += parts
    share(call, items, lines_of(tensors, spec, columns=False).tiles, spec, q.shape[-1])
    if function(ctypes.byref(call)):
        raise MemoryError("no memory for the CPU kernel's threads")
    return out, lse


def fill_inputs(call: Any, **tensors: Tensor) -> list[Tensor]:
    """Addresses and strides of tensors [batch, heads, length, columns]."""
    for name, x in tensors.items():
        setattr(call, name, x.data_ptr())
        for axis, stride in zip(("batch", "head", "row"), x.stride()):
            setattr(call, f"{name}_{axis}", stride)
    return list(tensors.values())


def fill_layout(
    call: Any, q: Tensor, k: Tensor, tensors: Sequence[Tensor], spec: Spec, columns: bool = False
) -> list[Tensor]:
    """The layout's tables, of rows or of columns; gives what must outlive the call.

    tensors: head_pattern, row_ptr, row_run, col_ptr, col_run, zones, bits, all int32.
    """
    head_pattern, row_ptr, row_run, col_ptr, col_run, zones, bits = (
        x.contiguous() for x in tensors[:7]
    )
    ptr, run = (col_ptr, col_run) if columns else (row_ptr, row_run)
    lines = spec.k_lines if columns else spec.q_lines
    kept = [head_pattern, ptr, run, zones, bits, lines_of(tensors, spec, columns).order]
    names = ("head_pattern", "ptr", "run", "zones", "bits", "order")
    for name, table in zip(names, kept):
        setattr(call, name, table.data_ptr())
    call.batch, call.heads, call.key_heads = q.shape[0], q.shape[1], k.shape[1]
    call.n, call.n_k, call.q_offset, call.k_offset = spec.n, spec.n_k, spec.q_offset, spec.k_offset
    call.tile_q, call.tile_k = spec.block
    call.lines, call.sequences = lines, spec.sequences
    call.listed = len(head_pattern) // spec.sequences
    call.zone_count, call.words = len(zones), bits.shape[-1]
    return kept


def fill_cuts(
    call: Any, plan: NativePlan, tensors: Sequence[Tensor], spec: Spec
) -> tuple[int, list[Tensor]]:
    """Cut the heavy lines: how many items that makes, and the memory that must outlive the call."""
    lines = lines_of(tensors, spec, columns=False)
    heavy, cuts = lines.heavy, lines.cuts
    rows = int(call.batch * call.heads * -(-spec.block[0] // 64))  # of 64 queries, a line of each
    if rows * heavy * cuts * part_size(plan) > LARGEST_PARTS:
        heavy, cuts = 0, 1
    parts = torch.empty(rows * heavy * cuts * part_size(plan), dtype=torch.float32)
    done = torch.zeros(rows * heavy, dtype=torch.int32)
    call.heavy, call.cuts = heavy, cuts
    call.parts, call.done = parts.data_ptr(), done.data_ptr()
    return rows * (spec.q_lines + heavy * (cuts - 1)), [parts, done]


@dataclass(frozen=True, eq=False)
class Lines:
    """What is known of the lines of one direction: `longest_first`, `cut`, tiles of all lines."""

    order: Tensor
    heavy: int
    cuts: int
    tiles: int


_LINES: OrderedDict[tuple[str, bool, int], Lines] = OrderedDict()
LINES_LIMIT = 64  # layouts whose lines are kept


def lines_of(tensors: Sequence[Tensor], spec: Spec, columns: bool) -> Lines:
    """The lines of a layout's rows or columns, kept by its hash where it has one."""
    key = spec.layout_hash, columns, HEAVY
    kept = _LINES.get(key) if spec.layout_hash else None
    if kept is None:
        ptr, run = (x.numpy() for x in (tensors[3:5] if columns else tensors[1:3]))
        tiles = tiles_of(ptr, run, spec.k_lines if columns else spec.q_lines)
        order = torch.from_numpy(longest_first(tiles))
        kept = Lines(order, *cut(tiles, spec.block[1]), int(tiles.sum()))
        if spec.layout_hash:
            _LINES[key] = kept
            while len(_LINES) > LINES_LIMIT:
                _LINES.popitem(last=False)
    return kept


def cut(tiles: NDArray[np.int64], tile_k: int) -> tuple[int, int]:
    """How many lines of each pattern are cut, and into how many items.

    Cut are lines of more than twice the mean, and more than HEAVY keys.  Threads have no part in
    it: any number of them gives the same bits.

    >>> cut(np.array([[9, 100, 9, 9]]), 128)
    (1, 2)
    """
    if not tiles.size:
        return 0, 1
    most = max(HEAVY // tile_k, 2 * float(tiles.mean()), 1)
    heavy = int((tiles > most).sum(axis=1).max())
    return heavy, math.ceil(tiles.max() / most) if heavy else 1


def tiles_of(ptr: NDArray[Any], run: NDArray[Any], lines: int) -> NDArray[np.int64]:
    """Tiles of each line, [patterns, lines]."""
    before = np.zeros(len(run) + 1, dtype=np.int64)
    np.cumsum(run[:, 1], out=before[1:])
    tiles: NDArray[np.int64] = np.diff(before[ptr]).reshape(-1, max(1, lines))
    return tiles


def longest_first(tiles: NDArray[np.int64]) -> NDArray[np.int32]:
    """The lines of each pattern, those of most tiles first, int32 [patterns, lines].

    >>> longest_first(np.array([[1, 3, 2]]))
    array([[1, 2, 0]], dtype=int32)
    """
    return np.argsort(-tiles, axis=1, kind="stable").astype(np.int32)


def fill_score(call: Any, plan: NativePlan, score: Score, scale: float) -> list[Tensor]:
    """The options of a score; gives what must outlive the call."""
    call.scale, call.softcap = scale, score.softcap
    tables = {
        "slopes": (score.slopes, torch.float32),
        "bias": (score.bias, torch.float32),
        "sinks": (score.sinks, torch.float32),
        "keys": (score.keys, torch.bool),
    }
    if plan.placed:
        query_at, key_at = score.query_at, score.key_at
        if query_at is None:
            query_at = torch.arange(call.n, dtype=torch.int32)
        if key_at is None:
            key_at = torch.arange(call.n_k, dtype=torch.int32)
        tables |= {"query_at": (query_at, torch.int32), "key_at": (key_at, torch.int32)}
    kept = []
    for name, (table, dtype) in tables.items():
        if table is not None:
            table = table.detach().to(dtype).contiguous()
            setattr(call, name, table.data_ptr())
            kept.append(table)
    call.reach = 0 if score.bias is None else score.bias.shape[-1] // 2
    return kept


def share(call: Any, items: int, tiles: int, spec: Spec, columns: int) -> None:
    """How many items there are, and the threads that their tiles are worth."""
    call.items = items
    work = call.batch * call.heads * tiles * spec.block[0] * spec.block[1] * columns
    call.threads = max(1, min(torch.get_num_threads(), work // ITEM_WORK))
    call.team = team()


@cache
def team() -> int | None:
    """Address of GOMP_parallel in the OpenMP library that torch computes with.

    A kernel that runs on the same threads never waits for those that still spin after torch's last
    operation.  None where torch has another library: kernels then start threads of their own.
    """
    noload = getattr(os, "RTLD_NOLOAD", None)
    if noload is None:
        return None
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            function = ctypes.CDLL(str(path), mode=noload | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None
