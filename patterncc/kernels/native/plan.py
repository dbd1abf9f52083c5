"""Native plans: every compile-time choice of one generated C++ kernel.

Lengths, tile sizes and masks are never part of it: one kernel serves every layout.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from patterncc.errors import PatternValueError

Kind = Literal["forward", "backward"]
DType = Literal["float16", "bfloat16", "float32"]
LANES = (4, 8, 16)  # floats of a vector: SSE or NEON, AVX2, AVX-512
LARGEST_DIM = 512  # of a head; a thread's scratch memory grows with it


@dataclass(frozen=True)
class NativePlan:
    """Every compile-time choice of one generated C++ kernel.

    head_dim, value_dim: columns of Q and K, and of V.  lanes: floats of a vector register.
    dot: products of bfloat16 pairs, summed in fp32 (AVX512_BF16); else inputs become fp32.
    softcap, slopes, bias, sinks, keys: the options of `score.Score` that the source holds code for.
    placed: positions come from tables (an order moved tokens).

    >>> NativePlan("forward", "float32", 64, 64, 16).group
    32

    Raises: PatternValueError for a number outside its range.
    """

    kind: Kind
    dtype: DType
    head_dim: int
    value_dim: int
    lanes: int
    dot: bool = False
    softcap: bool = False
    slopes: bool = False
    bias: bool = False
    sinks: bool = False
    keys: bool = False
    placed: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default) and field.name not in _TYPED:
                raise PatternValueError(f"{field.name} of a native plan is {value!r}, no bool")
        if self.kind not in get_args(Kind) or self.dtype not in get_args(DType):
            raise PatternValueError(f"no native kernel {self.kind!r} of {self.dtype!r}")
        for name in ("head_dim", "value_dim"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= LARGEST_DIM:
                raise PatternValueError(f"{name} is {value!r}; native kernels take 1 to 512")
        if self.lanes not in LANES:
            raise PatternValueError(f"lanes is {self.lanes!r}; one of {LANES} is meant")
        if self.dot and (self.lanes != 16 or self.dtype != "bfloat16"):
            raise PatternValueError("dot products of pairs are AVX-512's, of bfloat16")

    @property
    def group(self) -> int:
        """Queries that a kernel holds side by side in registers: two vectors."""
        return 2 * self.lanes

    @property
    def strip(self) -> int:
        """Rows that the micro-kernel keeps in registers, beside two vectors each."""
        return 6 if self.lanes == 8 else 8  # 16 registers of AVX2; 32 elsewhere

    @property
    def scored(self) -> bool:
        """A score is more than a scaled product before the exponential."""
        return self.softcap or self.slopes or self.bias


_TYPED = ("kind", "dtype", "head_dim", "value_dim", "lanes")
