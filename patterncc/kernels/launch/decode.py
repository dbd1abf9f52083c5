"""Launches of the decode kernel: a few query rows against a cache of keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from patterncc.kernels.emit.pieces import padded
from patterncc.kernels.launch import score as options
from patterncc.kernels.launch.call import launch, of_layout, plan_for
from patterncc.kernels.plan import Plan
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec
from patterncc.kernels.tables import processors_of

LEAST = 256  # keys; fewer are not worth a program of their own, for parts must be merged
PER_PROCESSOR = 2  # programs that a multiprocessor runs side by side

_tickets: dict[tuple[torch.device, int], Tensor] = {}
"""Zeros between launches, by device and stream: kernels that share a stream follow each other."""


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
    position: Tensor,
    block_table: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Query rows at `position` .. of each sequence; a row outside the layout reads nothing.

    position: int32 [B], the absolute position of q's first row.  k and v hold the layout's first
    keys, all or fewer.  block_table: int32 [B, ..]; then k is
    [pages, Hkv, page, D], and v alike; a key whose page is not there is not read.  key_lengths:
    int32 [B], how many keys count.  Nothing here waits for the device, and the launch depends on
    shapes alone: a CUDA graph replays it at other positions, lengths and tables.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, count, _ = q.shape
    out = q.new_empty(batch, heads, count, v.shape[-1])
    lse = q.new_empty(batch, heads, count, dtype=torch.float32)
    group = heads // k.shape[1]
    pack = math.gcd(spec.share, group)  # heads with one pattern and one key head
    rows = packed_rows(count * pack, _most_rows(q, v))
    plan = _sized(plan_for("decode", q, v, spec, score, heads=rows))
    plan = replace(plan, page=0 if block_table is None else k.shape[2])
    shape = _shape(plan, spec, batch * heads // pack, count, pack, processors_of(q.device))
    jobs = batch * (heads // pack) * shape.chunks * shape.laps
    arguments = of_layout(q, k, tensors, spec, "rows") | options.arguments(score, spec)
    arguments |= {"q": q, "k": k, "v": v, "out": out, "lse": lse}
    held = k.shape[2] if block_table is None else spec.n_k
    arguments |= {"n": spec.n, "n_k": held, "q_offset": spec.q_offset, "position": position}
    arguments |= {"count": count, "pack": pack, "units": heads // pack, **shape._asdict()}
    arguments |= {"has_lengths": int(key_lengths is not None)}
    arguments |= {"key_lengths": position if key_lengths is None else key_lengths}
    if block_table is not None:
        arguments |= {"block_table": block_table, "table_width": block_table.shape[1]}
        arguments |= {"pages": k.shape[0]}
    arguments |= _room(plan, jobs, shape.splits, out)
    launch(plan, jobs * shape.splits, arguments)
    return out, lse


def _most_rows(q: Tensor, v: Tensor) -> int:
    """Rows of a tile that registers hold."""
    wide = padded(max(q.shape[-1], v.shape[-1]))
    if q.dtype == torch.float32:
        return 32 if wide <= 128 else 16
    return 128 if wide <= 64 else 64


def _sized(plan: Plan) -> Plan:
    """Tables of sizes are for 16 rows; more rows take shorter steps and more warps."""
    if plan.heads == 16:
        return plan
    wide = plan.heads > 32 or plan.dtype == "float32"
    return replace(plan, bn=min(plan.bn, 32), warps=8 if wide else plan.warps)


class _Shape(NamedTuple):
    """How a step is cut into programs.

    chunks: tiles of packed rows.  laps: tile rows of the layout that the rows of one may stand in.
    splits: parts that the keys of a row fall into, at most.  least: steps of a part, at least.
    """

    chunks: int
    laps: int
    splits: int
    least: int


def _shape(plan: Plan, spec: Spec, units: int, count: int, pack: int, processors: int) -> _Shape:
    """From shapes and the layout's longest row alone.

    units: batch x heads, where those packed together count once.
    """
    chunks = -(-count * pack // plan.heads)
    tokens = min(count, (plan.heads - 2) // pack + 2)  # that a tile of packed rows may hold
    laps = (tokens - 2 + spec.block[0]) // spec.block[0] + 1
    least = max(1, LEAST // plan.bn)
    steps = (spec.reach or spec.k_lines) * (spec.block[1] // plan.bn)
    room = PER_PROCESSOR * processors // max(1, units * chunks)
    return _Shape(chunks, laps, max(1, min(room, steps // least)), least)


def _room(plan: Plan, jobs: int, splits: int, out: Tensor) -> dict[str, Tensor]:
    """Where the parts of rows meet; nothing where no row is cut."""
    slots = jobs * splits if splits > 1 else 0
    room = (slots, plan.heads)
    parts = (
        out.new_empty(*shape, dtype=torch.float32)
        for shape in ((*room, padded(plan.value_dim)), room, room)
    )
    names = ("part_out", "part_m", "part_l")
    return dict(zip(names, parts, strict=True)) | {
        "tickets": _ticket(jobs if slots else 0, out.device)
    }


def _ticket(jobs: int, device: torch.device) -> Tensor:
    """Zeros for a launch, one a job; the kernel leaves them zero."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(max(1, jobs), dtype=torch.int32, device=device)  # the graph's own
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    kept = _tickets.get((device, stream))
    if kept is None or len(kept) < jobs:
        kept = torch.zeros(max(1024, jobs), dtype=torch.int32, device=device)
        _tickets[device, stream] = kept
    return kept


def packed_rows(rows: int, most: int = 128) -> int:
    """Rows of the tile that holds so many: a power of two, 16 at least.

    >>> packed_rows(4), packed_rows(20), packed_rows(1000)
    (16, 32, 128)
    """
    return min(most, max(16, 1 << (rows - 1).bit_length()))
