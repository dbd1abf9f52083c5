"""Plans: every compile-time choice of a generated kernel, and the text that the torch op carries.

Two small values meet here.  A `Plan` fixes one kernel's source: it holds typed numbers and names
only, is hashable, and its digest names the source.  A `Spec` describes one layout to the op:
lengths, tile sizes and mask classes, as one line of JSON.  Lengths and window sizes are never part
of a Plan, so new lengths and new documents compile nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from patterncc.errors import PatternValueError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout

Kind = Literal["forward", "delta", "dq", "dkdv", "decode"]
DType = Literal["float16", "bfloat16", "float32"]
Target = Literal["sm_80", "sm_90", "sm_100", "interpreter"]
Backend = Literal["triton", "cpu", "reference"]

HEAD_DIMS = (16, 256)  # smallest and largest head dim
BLOCKS = (16, 32, 64, 128, 256)  # sides that a layout's tile may have
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448}  # bytes a program may use
VERSION = 1  # of the emitted sources; part of every digest


@dataclass(frozen=True)
class Spec:
    """What the op must know of a layout beside its tensors; carried as one line of JSON.

    n, n_k, q_offset, k_offset: the layout's frame (queries, keys, positions of the first of each).
    block: queries x keys of a tile.  patterns: distinct patterns (1: every head reads the same), an
    upper bound where sequences differ.
    full, zones, bits: the mask classes in use; zones is the largest number of zones of one mask:
    0, 1, 2 or 4.  layout_hash: hexadecimal digits over everything that the layout holds; empty for
    one that varies from batch to batch.
    share: aligned groups of this many heads have one pattern (0: all heads have).
    sequences: 1 where all sequences of a batch have one mask, else how many the layout is for.

    >>> s = Spec(100, 100, 0, 0, (64, 64), 1, True, 1, False, "0" * 16, "cpu")
    >>> s.q_lines, Spec.parse(s.text()) == s
    (2, True)
    """

    n: int
    n_k: int
    q_offset: int
    k_offset: int
    block: tuple[int, int]
    patterns: int
    full: bool
    zones: int
    bits: bool
    layout_hash: str
    backend: Backend
    share: int = 0
    sequences: int = 1

    @property
    def q_lines(self) -> int:
        """Tile rows of one pattern: ceil(n / block[0])."""
        return -(-self.n // self.block[0])

    @property
    def k_lines(self) -> int:
        """Tile columns of one pattern: ceil(n_k / block[1])."""
        return -(-self.n_k // self.block[1])

    def text(self) -> str:
        """One line of JSON with sorted keys; equal specs have equal texts."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(text: str) -> Spec:
        """The spec that `text` was made from."""
        values = json.loads(text)
        values["block"] = tuple(values["block"])
        return Spec(**values)

    @staticmethod
    def of(layout: Layout, backend: Backend) -> Spec:
        """Read a layout's mask classes and hash (linear in its size; cache the result)."""
        words = layout.rows.run[:, 2]
        zone_count = len(layout.zones)
        used = [slot for slot in range(4) if layout.zones[:, slot].any()]
        slots = used[-1] + 1 if used else 0
        masked = bool(((words > 0) & (words <= zone_count)).any())
        varies = layout.varies  # the next batch may have the classes that this one lacks
        return Spec(
            n=layout.n,
            n_k=layout.n_k,
            q_offset=layout.q_offset,
            k_offset=layout.k_offset,
            block=(int(layout.block[0]), int(layout.block[1])),
            patterns=_patterns(layout),
            full=varies or bool((words == 0).any()),
            zones=(0, 1, 2, 4, 4)[slots] or int(masked or varies),
            bits=varies or bool((words > zone_count).any()),
            layout_hash="" if varies else layout.hash,
            backend=backend,
            share=_share(layout.head_pattern.reshape(layout.sequences, -1)),
            sequences=layout.sequences,
        )


def _patterns(layout: Layout) -> int:
    """Distinct patterns; where sequences differ what there may be, so that batches are alike."""
    listed = len(layout.head_pattern)
    return listed if listed == 1 or layout.sequences > 1 else int(layout.head_pattern.max()) + 1


def _share(head_pattern: NDArray[np.int32]) -> int:
    """The largest g such that aligned groups of g heads share a pattern; 0 when all heads do.

    head_pattern: [sequences, heads].

    >>> import numpy as np
    >>> _share(np.array([[0, 0, 0, 0, 1, 1]])), _share(np.array([[0], [1]]))
    (4, 0)
    """
    changes = (head_pattern[:, 1:] != head_pattern[:, :-1]).any(axis=0).nonzero()[0] + 1
    return math.gcd(*changes.tolist())


@dataclass(frozen=True)
class Plan:
    """Every compile-time choice of one generated kernel.

    kind: forward, delta (row sums that both gradients need), dq, dkdv, or decode.
    head_dim, value_dim: columns of Q and K, and of V (padded to powers of two inside the kernel).
    block: queries x keys of the layout's tile; bm, bn: of one kernel step, divisors of the tile's.
    full, zones, bits: the mask classes that the source holds code for; zones is 0, 1, 2 or 4.
    per_head: heads read different patterns.  per_sequence: sequences do, and maybe their heads.
    heads: rows into which a decode program packs the
    query heads of one key head (1: one head a program).  precision: of fp32 products, "ieee" or
    "tf32".
    upcast: products in fp32 (for the interpreter, whose bf16 products are wrong).
    descriptors: the tensors that the loop streams come through TMA descriptors, not pointers.

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
        for name in ("full", "bits", "per_head", "per_sequence", "upcast", "descriptors"):
            _one_of(name, getattr(self, name), (False, True))
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
        return {"forward": ("k", "v"), "dq": ("k", "v"), "dkdv": ("q", "grad")}.get(self.kind, ())

    @property
    def masked(self) -> bool:
        """Some tile carries a mask (and so may reach past the last key)."""
        return bool(self.zones or self.bits)


def _one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known or type(value) is not type(known[0]):
        listed = ", ".join(map(str, known if len(known) < 9 else (known[0], "...", known[-1])))
        raise PatternValueError(f"plan: {name} must be one of {listed}; it is {value!r}")
