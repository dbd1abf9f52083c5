"""Plans: every compile-time choice of a generated kernel.

A `Plan` fixes one kernel's source: it holds typed numbers and names only, is hashable, and its
digest names the source.  Lengths and window sizes are never part of it, so new lengths and new
documents compile nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from patterncc.errors import PatternValueError

Kind = Literal[
    "forward", "combine", "delta", "dq", "dkdv", "single", "gather", "slopes", "bias", "decode"
]
DType = Literal["float16", "bfloat16", "float32"]
Target = Literal["sm_80", "sm_90", "sm_100", "interpreter"]

HEAD_DIMS = (16, 256)  # smallest and largest head dim
BLOCKS = (16, 32, 64, 128, 256)  # sides that a layout's tile may have
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448}  # bytes a program may use
PAGES = tuple(1 << x for x in range(4, 13))  # keys that a page of a cache may hold
VERSION = 2  # of the emitted sources; part of every digest


@dataclass(frozen=True)
class Plan:
    """Every compile-time choice of one generated kernel.

    kind: forward; combine (parts of cut rows merged); delta (row sums that gradients need); dq;
    dkdv; single (all three in one pass); gather (parts of gradients added); slopes, bias (gradients
    of those options); decode.
    head_dim, value_dim: columns of Q and K, and of V (padded to powers of two inside the kernel).
    block: queries x keys of the layout's tile; bm, bn: of one kernel step, divisors of the tile's.
    full, zones, bits: the mask classes that the source holds code for; zones is 0, 1, 2 or 4.
    per_head: heads read different patterns.  per_sequence: sequences do, and maybe their heads.
    heads: rows of a decode kernel's tile, in which query rows and the heads of one key head stand.
    precision: of fp32 products, "ieee" or "tf32".
    upcast: products in fp32 (for the interpreter, whose bf16 products are wrong).
    descriptors: the tensors that the loop streams come through TMA descriptors, not pointers.
    softcap, slopes, bias, sinks, keys: the options of `score.Score` that the source holds code for.
    placed: positions come from tables (an order moved tokens), not from row and column.
    page: keys of a page where K and V come in pages, a power of two; 0 where each is one tensor.

    >>> p = Plan("forward", "sm_90", "bfloat16", 128, 128, (128, 128), 128, 128, 8, 2, zones=1)
    >>> Plan.parse(p.text()) == p, len(p.digest)
    (True, 16)
    """

    kind: Kind
    target: Target
    dtype: DType
    head_dim: int
    value_dim: int
    block: tuple[int, int]
    bm: int
    bn: int
    warps: int
    stages: int
    full: bool = True
    zones: int = 0
    bits: bool = False
    per_head: bool = False
    per_sequence: bool = False
    heads: int = 1
    precision: Literal["ieee", "tf32"] = "ieee"
    upcast: bool = False
    descriptors: bool = False
    softcap: bool = False
    slopes: bool = False
    bias: bool = False
    sinks: bool = False
    keys: bool = False
    placed: bool = False
    page: int = 0

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("target", Target), ("dtype", DType)):
            _one_of(name, getattr(self, name), get_args(known))
        _one_of("precision", self.precision, ("ieee", "tf32"))
        for name in ("head_dim", "value_dim"):
            value = getattr(self, name)
            if type(value) is not int or not HEAD_DIMS[0] <= value <= HEAD_DIMS[1]:
                raise PatternValueError(f"plan: {name} must be 16 to 256, not {value!r}")
        for side, step in zip(self.block, (self.bm, self.bn), strict=True):
            _one_of("block", side, BLOCKS)
            if type(step) is not int or step < 1 or side % step:
                raise PatternValueError(
                    f"plan: steps of {self.bm} x {self.bn} do not divide tiles of {self.block}; "
                    "choose powers of two no larger than the tile"
                )
        _one_of("warps", self.warps, (1, 2, 4, 8))
        _one_of("stages", self.stages, (1, 2, 3, 4, 5))
        _one_of("zones", self.zones, (0, 1, 2, 4))
        _one_of("heads", self.heads, tuple(range(1, 257)))
        for name in (
            *("full", "bits", "per_head", "per_sequence", "upcast", "descriptors"),
            *("softcap", "slopes", "bias", "sinks", "keys", "placed"),
        ):
            _one_of(name, getattr(self, name), (False, True))
        paged = self.page == 0 or (self.page in PAGES and self.kind == "decode")
        if type(self.page) is not int or not paged:
            raise PatternValueError(
                f"plan: page must be 0, or for decode a power of two from {PAGES[0]} to "
                f"{PAGES[-1]}; it is {self.page!r} for {self.kind}"
            )
        if self.descriptors and (self.head_dim % 8 or self.value_dim % 8 or self.target == "sm_80"):
            raise PatternValueError(
                "plan: descriptors need sm_90 and head dims that are multiples of 8; "
                f"these are {self.target}, {self.head_dim} and {self.value_dim}"
            )
        if not (self.full or self.zones or self.bits):
            raise PatternValueError("plan: no mask class; set full, zones or bits")

    def text(self) -> str:
        """One line of JSON in field order."""
        return json.dumps(asdict(self), separators=(", ", ": "))

    @staticmethod
    def parse(text: str) -> Plan:
        """The plan that `text` was made from, checked again."""
        values = json.loads(text)
        unknown = set(values) - {f.name for f in fields(Plan)}
        if unknown:
            raise PatternValueError(f"plan: unknown field {sorted(unknown)[0]!r}")
        values["block"] = tuple(values["block"])
        return Plan(**values)

    def values(self) -> list[tuple[str, object]]:
        """Field names and values, in order."""
        return [(f.name, getattr(self, f.name)) for f in fields(self)]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name this plan."""
        return hashlib.sha256(f"{VERSION} {self.text()}".encode()).hexdigest()[:16]

    @property
    def streamed(self) -> tuple[str, ...]:
        """The arguments that are descriptors."""
        if not self.descriptors:
            return ()
        if self.kind in ("dkdv", "single"):
            return "q", "grad"
        return ("k", "v") if self.kind in ("forward", "dq") else ()

    @property
    def scored(self) -> bool:
        """Scores are more than scaled products: the loop brings them to base 2 itself."""
        return self.softcap or self.slopes or self.bias

    @property
    def masked(self) -> bool:
        """Some tile carries a mask (and so may reach past the last key)."""
        return bool(self.zones or self.bits)


def _one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known or type(value) is not type(known[0]):
        listed = ", ".join(map(str, known if len(known) < 12 else (known[0], "...", known[-1])))
        raise PatternValueError(f"plan: {name} must be one of {listed}; it is {value!r}")
