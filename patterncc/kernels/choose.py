"""Sizes of kernels: what a table says for a target, limited by the layout's tile."""

from __future__ import annotations

from patterncc.kernels.emit.pieces import padded
from patterncc.kernels.plan import DType, Kind, Plan, Target
from patterncc.kernels.spec import Spec
from patterncc.kernels.tuning.sizes import Masks, Size, Table, kind_of, shipped

STREAMED: tuple[Kind, ...] = ("forward", "dq", "dkdv", "single")
"""The kinds whose loop may read through descriptors."""


def choose(
    kind: Kind,
    spec: Spec,
    target: Target,
    dtype: DType,
    head_dim: int,
    value_dim: int,
    *,
    heads: int = 1,
    upcast: bool = False,
    table: Table | None = None,
) -> Plan:
    """The plan of one kernel for a layout: sizes from `table` where it has them, else the shipped.

    >>> s = Spec(999, 999, 0, 0, (64, 128), 1, True, 1, False, "0" * 16, "triton")
    >>> p = choose("forward", s, "sm_90", "bfloat16", 128, 128)
    >>> p.bm, p.bn, p.warps, p.stages
    (64, 128, 4, 2)
    """
    wide = max(padded(head_dim), padded(value_dim))
    size = _size(kind, spec, target, dtype, wide, table)
    return plan_of(kind, spec, target, dtype, head_dim, value_dim, size, heads=heads, upcast=upcast)


def plan_of(
    kind: Kind,
    spec: Spec,
    target: Target,
    dtype: DType,
    head_dim: int,
    value_dim: int,
    size: Size,
    *,
    heads: int = 1,
    upcast: bool = False,
) -> Plan:
    """The plan of one kernel for a layout at a given size."""
    streams = kind in STREAMED and target in ("sm_90", "sm_100") and dtype != "float32"
    return Plan(
        kind=kind,
        target=target,
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        block=spec.block,
        bm=size.bm,
        bn=size.bn,
        warps=size.warps,
        stages=size.stages,
        full=True,  # a longer sequence or a wider window has full tiles: one source for all
        zones=spec.zones,
        bits=spec.bits,
        per_head=spec.patterns > 1 and spec.sequences == 1,
        per_sequence=spec.sequences > 1,
        heads=heads,
        upcast=upcast,
        descriptors=streams and head_dim % 8 == 0 and value_dim % 8 == 0,
    )


def masks_of(spec: Spec) -> Masks:
    """The masks of a layout as tables of sizes tell them apart."""
    if spec.bits or spec.zones > 2:  # four zones take as many registers as bits
        return "bits"
    return "zones" if spec.zones == 2 else "zone"


def _size(
    kind: Kind, spec: Spec, target: Target, dtype: DType, wide: int, table: Table | None
) -> Size:
    """What a table says, cut to the layout's tile."""
    products = kind_of(kind)
    if products is None:
        rows = 16 if kind == "combine" else 64  # a program's; nothing else is to choose
        return Size(min(rows, spec.block[0]), 16, 4, 1)
    asked = products, dtype, wide, spec.block, masks_of(spec)
    found = (table.size(*asked) if table else None) or shipped(target).size(*asked)
    assert found is not None, "shipped tables hold every kind, width and head dim"
    return cut(found, spec.block, kind, target, dtype, wide)


def cut(
    size: Size, tile: tuple[int, int], kind: Kind, target: Target, dtype: DType, wide: int
) -> Size:
    """A size as it fits into a tile, with as many warps as its step can use."""
    bm, bn = min(size.bm, tile[0]), min(size.bn, tile[1])
    if (bm, bn) == (size.bm, size.bn):
        return size
    warps = min(size.warps, _most_warps(target, wide, dtype, kind, bm, bn))
    return Size(bm, bn, max(1, warps), size.stages)


def _most_warps(target: Target, dim: int, dtype: DType, kind: Kind, bm: int, bn: int) -> int:
    """Warps that a smaller step can use; with wgmma each takes 16 rows of its own."""
    if kind == "decode":
        return 8
    if dtype == "float32":
        return bm * bn // 128
    if dim > 128:  # accumulators are wide: warps stand side by side
        return bm * bn // 256
    rows = bn if kind in ("dkdv", "single") else bm  # of the products' left side
    return bm * bn // 512 if target == "sm_80" else rows // 16
