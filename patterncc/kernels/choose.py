"""Default sizes of kernels: what each target runs well, limited by the layout's tile."""

from __future__ import annotations

from typing import assert_never

from patterncc.kernels.emit.pieces import padded
from patterncc.kernels.plan import DType, Kind, Plan, Target
from patterncc.kernels.spec import Spec

Sizes = tuple[int, int, int, int]  # queries, keys, warps, stages of a step


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
) -> Plan:
    """The plan of one kernel for a layout, at default sizes.

    >>> s = Spec(999, 999, 0, 0, (64, 128), 1, True, 1, False, "0" * 16, "triton")
    >>> p = choose("forward", s, "sm_90", "bfloat16", 128, 128)
    >>> p.bm, p.bn, p.warps, p.stages
    (64, 128, 4, 2)
    """
    wide = max(padded(head_dim), padded(value_dim))
    fp32 = dtype == "float32"
    bm, bn, warps, stages = _sizes(kind, target, wide, fp32, spec.bits)
    bm, bn = min(bm, spec.block[0]), min(bn, spec.block[1])
    if kind in ("forward", "dq", "dkdv"):
        rows = bn if kind == "dkdv" else bm  # of the products' left side
        warps = max(1, min(warps, _most_warps(target, wide, fp32, rows, bm * bn)))
    streams = kind in ("forward", "dq", "dkdv") and target in ("sm_90", "sm_100") and not fp32
    return Plan(
        kind=kind,
        target=target,
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        block=spec.block,
        bm=bm,
        bn=bn,
        warps=warps,
        stages=stages,
        full=True,  # a longer sequence or a wider window has full tiles: one source for all
        zones=spec.zones,
        bits=spec.bits,
        per_head=spec.patterns > 1 and spec.sequences == 1,
        per_sequence=spec.sequences > 1,
        heads=heads,
        upcast=upcast,
        descriptors=streams and head_dim % 8 == 0 and value_dim % 8 == 0,
    )


def _most_warps(target: Target, dim: int, fp32: bool, rows: int, pairs: int) -> int:
    """Warps that a step of `pairs` scores can use; with wgmma each takes 16 rows of its own."""
    if fp32:
        return pairs // 128
    if dim > 128:  # accumulators are wide: warps stand side by side
        return pairs // 256
    return pairs // 512 if target == "sm_80" else rows // 16


def _sizes(kind: Kind, target: Target, dim: int, fp32: bool, bits: bool) -> Sizes:
    """Sizes by kind, target and padded head dim, before the layout's tile limits them."""
    match kind:
        case "delta" | "combine" | "gather" | "slopes" | "bias":
            return 64, 16, 4, 1
        case "decode":
            return 16, 64 if dim <= 128 and not fp32 else 32, 4, 3 if dim <= 128 else 2
        case "forward" | "dq" | "dkdv" | "single" if fp32:
            return _exact(kind, dim)
        case "forward":
            return _forward(target, dim)
        case "dq":
            return _dq(target, dim)
        case "dkdv" | "single":
            return _dkdv(target, dim, bits)
        case _:
            assert_never(kind)


def _exact(kind: Kind, dim: int) -> Sizes:
    """fp32 products run without tensor cores: small steps keep their operands in registers."""
    if kind == "forward":
        return (64, 32, 8, 2) if dim <= 128 else (32, 32, 8, 1)
    return (32, 32, 8, 1)


def _forward(target: Target, dim: int) -> Sizes:
    if target == "sm_80":
        return (128, 64, 4, 3) if dim <= 64 else (128, 32, 8, 3 if dim <= 128 else 2)
    return (128, 64, 8, 2) if dim > 128 else (128, 128, 8, 3 if dim <= 64 else 2)


def _dq(target: Target, dim: int) -> Sizes:
    if target == "sm_80":
        return (128, 32, 8, 2) if dim <= 128 else (64, 32, 8, 1)
    return (128, 64, 8, 2) if dim <= 128 else (64, 64, 8, 1)


def _dkdv(target: Target, dim: int, bits: bool) -> Sizes:
    if dim > 128:
        return 32, 64, 8, 2 if target == "sm_100" else 1
    if target == "sm_80":
        return (32, 128, 8, 2) if dim <= 64 else (64, 64, 8, 2)
    # unpacked bits take registers: with 64 queries a step they spill 72 bytes on sm_90
    return (32 if bits and dim > 64 else 64), 128, 8, 2
