"""Sizes that a kernel might run at, the likeliest first; nothing here compiles or measures.

What is likely is a model in three factors: a step's fixed work against its pairs, how many rows
share what is streamed, and how much of a load's wait the stages hide.  Sizes whose accumulators or
buffers cannot fit are left out.
"""

from __future__ import annotations

from patterncc.kernels.choose import cut, plan_of
from patterncc.kernels.plan import SHARED_LIMIT, DType, Plan, Target
from patterncc.kernels.spec import Spec
from patterncc.kernels.tuning.sizes import (
    HEAD_DIMS,
    KINDS,
    MASKS,
    TILES,
    WIDTHS,
    Key,
    Products,
    Size,
    shipped,
)

MOST = 12
"""Candidates of one key."""

_REGISTERS = 200  # of 255 a thread: the rest is addresses, masks and row sums
_UNROLLED = 1024  # multiplications of an fp32 product that a thread does, all of them unrolled
_FIXED = 1024  # pairs that take as long as what a step does once
_SHARED_ROWS = 16  # rows at which streaming takes as long as the products
_WAIT = {1: 1.3, 2: 1.04}  # by stages; three or more hide all of it


def keys(
    kinds: tuple[Products, ...] = KINDS,
    widths: tuple[str, ...] = WIDTHS,
    head_dims: tuple[int, ...] = HEAD_DIMS,
    tiles: tuple[tuple[int, int], ...] = TILES[:1],
) -> list[Key]:
    """The rows of a table that are asked for, in its order.

    >>> len(keys()), len(keys(("forward",), ("half",), (64,), TILES))
    (90, 12)
    """
    return [
        Key(kind, width, dim, tile, masks)
        for kind in kinds
        for width in WIDTHS
        if width in widths
        for dim in head_dims
        for tile in tiles
        for masks in MASKS
    ]


def candidates(key: Key, target: Target) -> list[Size]:
    """Sizes for a key, the shipped one first, then by the model.

    >>> candidates(Key("forward", "half", 128, (128, 128), "zone"), "sm_90")[:2]
    [Size(bm=128, bn=128, warps=8, stages=2), Size(bm=128, bn=128, warps=8, stages=3)]
    """
    first = shipped(target).size(key.kind, dtype_of(key), key.head_dim, key.tile, key.masks)
    assert first is not None
    first = cut(first, key.tile, key.kind, target, dtype_of(key), key.head_dim)
    sizes = [
        Size(bm, bn, warps, stages)
        for bm in ((16,) if key.kind == "decode" else (128, 64, 32, 16))
        for bn in (128, 64, 32, 16)
        for warps in (8, 4)
        for stages in (3, 2, 1)
        if bm <= key.tile[0] and bn <= key.tile[1]
    ]
    likely = sorted((x for x in sizes if _may_fit(key, x, target)), key=lambda x: _cost(key, x))
    return list(dict.fromkeys([first, *likely]))[:MOST]


def plan_for_key(key: Key, size: Size, target: Target) -> Plan:
    """The kernel that stands for a key: both halves have one, here of bfloat16."""
    bits = key.masks == "bits"
    zones = 2 if key.masks == "zones" else 1
    spec = Spec(5000, 5000, 0, 0, key.tile, 1, True, zones, bits, "", "triton")
    heads = 16 if key.kind == "decode" else 1
    dim = key.head_dim
    return plan_of(key.kind, spec, target, dtype_of(key), dim, dim, size, heads=heads)


def dtype_of(key: Key) -> DType:
    """The type that stands for a width."""
    return "float32" if key.width == "float32" else "bfloat16"


def _sides(key: Key, size: Size) -> tuple[int, int]:
    """Rows that a program keeps, and what it streams in a step."""
    turned = key.kind in ("dkdv", "single")
    return (size.bn, size.bm) if turned else (size.bm, size.bn)


def _may_fit(key: Key, size: Size, target: Target) -> bool:
    """Accumulators in registers, buffers in shared memory, a tensor-core row for each warp."""
    own, streamed = _sides(key, size)
    threads = 32 * size.warps
    sums = 2 if key.kind in ("dkdv", "single") else 1
    scores = 1 if key.kind in ("forward", "decode") else 2
    registers = (sums * own * key.head_dim + scores * own * streamed) / threads
    registers += key.head_dim / 4  # operands and addresses: fitted to kernels compiled for sm_90
    width = 4 if key.width == "float32" else 2
    buffers = 2 * streamed * key.head_dim * width * size.stages
    unrolled = own * streamed * key.head_dim / threads
    if key.width == "float32" and unrolled > _UNROLLED // (1 + (key.masks == "bits")):
        return False
    side_by_side = key.head_dim > 128 or key.kind == "decode"  # warps share rows
    rows = own * max(1, streamed // 16) if side_by_side else own
    return (
        registers <= _REGISTERS
        and buffers <= SHARED_LIMIT[target]
        and (rows >= 16 * size.warps or key.width == "float32")
        and own * streamed >= threads * (2 if key.width == "float32" else 8)
    )


def _cost(key: Key, size: Size) -> float:
    """Relative seconds of a pair."""
    own, streamed = _sides(key, size)
    step = 1 + _FIXED / (own * streamed)
    warps = 1.0 if 16 * size.warps == own or key.kind == "decode" else 1.1
    return step * (1 + _SHARED_ROWS / own) * _WAIT.get(size.stages, 1.0) * warps
