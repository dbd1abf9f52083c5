"""spectrum: how fast a symmetric topology mixes, as the spectral gap of its normalised graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from patterncc.analysis.flow.sweep_vectors import Carrier, carrier, dot, prefix_sums
from patterncc.analysis.graph.lanczos import largest, missed, norm
from patterncc.analysis.graph.skeleton import Skeleton, skeleton
from patterncc.analysis.graph.value import Value
from patterncc.analysis.topology import Topology, checked, is_causal
from patterncc.errors import PatternValueError, SizeError
from patterncc.pattern import check_int
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import transpose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.analysis.graph.lanczos import Map
    from patterncc.pattern import Pattern
    from patterncc.stack import Heads, Stack

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]

DENSE = 512  # positions up to which all eigenvalues are computed
STEPS = 200  # of Lanczos's iteration
SURE = 0.01  # of the gap: how far its bounds may lie apart when the iteration stops early
ROUNDING = 1e-13  # a gap that is 0 may come out as this much
WIDE = 64  # edges no longer than this, and
BANDS = 1024  # so few zones, and
FACTORS = 2**25  # so many numbers in the factors, are worth inverting
TRIED = 16  # edges whose counterpart is looked for first
RISK = 0.05
MOST = 2**25  # positions: several vectors of float64 are held
GRAPH = "union of all layers and heads, every token joined to itself"
SKELETON = "symmetrised skeleton: union of all layers and heads, edges read both ways, with loops"


@dataclass(frozen=True)
class Spectrum:
    """The spectral gap 1 - lambda_2 of D^-1/2 A D^-1/2, A being `graph` with every self-loop.

    1 for the complete graph, 0 for one that is not connected; the number of steps after which a
    random walk has forgotten where it began grows as 1 / gap.  `steps` counts the products with
    the matrix that were made, 0 where no iteration was needed; `how` says what was done.
    """

    nodes: int
    gap: Value
    graph: str
    how: str
    steps: int

    @property
    def second(self) -> float:
        """lambda_2, the second largest eigenvalue."""
        return 1 - self.gap.value

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "graph": self.graph,
            "nodes": self.nodes,
            "gap": self.gap.to_json(),
            "how": self.how,
            "steps": self.steps,
        }

    def __str__(self) -> str:
        return f"spectral gap {self.gap}, {self.how}"


def spectrum(
    stack: Stack | Pattern | Heads,
    n: int,
    *,
    symmetrize: bool = False,
    steps: int = STEPS,
    seed: int = 0,
    **bindings: Any,
) -> Spectrum:
    """The spectral gap of the union of a stack's layers, for bidirectional topologies.

    Up to 512 positions all eigenvalues are computed.  Above, Lanczos's iteration runs from a
    random vector, the known top vector taken out; where edges are short, on the inverse.  Its
    Rayleigh quotients are sure upper bounds on the gap, as are those of smooth waves along the
    sequence; the lower bound is Kuczynski and Wozniakowski's for a random start, 95% sure whatever
    the graph.  It stops when the two are within 1% of the gap, or after `steps` products with what
    it has by then, which is no more than bounds where mixing is slow and edges are long.

    >>> from patterncc import window
    >>> print(spectrum(window(3, 3), 256))
    spectral gap 0.0003052 (exact), all eigenvalues

    Raises PatternValueError where an edge has no counterpart, unless `symmetrize` is set: then the
    edges are read both ways, and the result says so.  SizeError above 2**25 positions.
    Source: see `lanczos.missed` for the lower bound.
    """
    t = checked("spectrum", stack, n, bindings, spectrum)
    return spectrum_of(t, symmetrize=symmetrize, steps=steps, seed=seed)


def spectrum_of(
    t: Topology, *, symmetrize: bool = False, steps: int = STEPS, seed: int = 0
) -> Spectrum:
    """`spectrum` of a stack that is lowered already."""
    steps = check_int("spectrum", "steps", steps, 1, 2**20)
    seed = check_int("spectrum", "seed", seed, 0)
    size = t.frame.n
    if size > MOST:
        raise SizeError(f"spectrum: {size} positions are more than {MOST}; ask for fewer tokens")
    if size < 2:
        raise PatternValueError(
            f"spectrum: {size} positions have no second eigenvalue; take n >= 2"
        )
    if not symmetrize:
        _check_symmetric(t)
    s = skeleton(t)
    graph = SKELETON if symmetrize else GRAPH
    if size <= DENSE:
        return Spectrum(size, _dense(s), graph, "all eigenvalues", 0)
    gap, how, made = _iterate(s, steps, seed)
    return Spectrum(size, gap, graph, how, made)


def _check_symmetric(t: Topology) -> None:
    """Raise a PatternValueError where some edge of the union has no counterpart."""
    remedy = (
        "set symmetrize=True for the gap of the symmetrised skeleton, which says something else: "
        "how well the graph mixes if every edge is read both ways"
    )
    distinct = {id(level): level.zones.table for level in t.levels}.values()
    union = ZoneSet(t.frame, np.concatenate(list(distinct)))
    if _symmetric(union):
        return
    if is_causal(union):
        raise PatternValueError(
            "spectrum: every edge leads to an earlier token; the eigenvalues of a triangular "
            f"matrix are its diagonal and say nothing about mixing; {remedy}"
        )
    raise PatternValueError(
        "spectrum: some token reads one that does not read it, and the eigenvalues of such a "
        f"matrix say nothing about mixing; {remedy}"
    )


def _symmetric(union: ZoneSet) -> bool:
    """Whether every edge has its counterpart: a few are tried before all of them are."""
    table = union.table
    for k in np.linspace(0, len(table) - 1, min(len(table), TRIED)).astype(np.int64):
        i, j = table[k, 0], max(table[k, 2], table[k, 0] + table[k, 4])
        i0, i1, j0, j1, d0, d1 = table.T
        back = (i0 <= j) & (j < i1) & (j0 <= i) & (i < j1) & (d0 <= i - j) & (i - j < d1)
        if not back.any():
            return False
    mirror = transpose(table)
    if np.array_equal(table[np.lexsort(table.T)], mirror[np.lexsort(mirror.T)]):
        return True
    return union.T.equals(union)


@dataclass(frozen=True, eq=False)
class _Walk:
    """N = D^-1/2 A D^-1/2 on blocks of equal positions, its top vector q taken out.

    With w positions in a block and d the neighbours of each of them, the block matrix (w w')^1/2 A
    / (d d')^1/2 has the eigenvalues of the whole one but for zeros, and q = (w d)^1/2.
    """

    size: int
    scale: F64
    top: F64
    carried: Carrier
    singles: Any

    @staticmethod
    def of(s: Skeleton) -> _Walk:
        from scipy.sparse import csr_array

        begin = np.arange(s.blocks) * s.block
        weights = (np.minimum(begin + s.block, s.size) - begin).astype(np.float64)
        carried, degrees = carrier(s.apart, s.blocks), np.zeros(s.blocks)
        carried.add(prefix_sums(weights, np.ones(s.blocks), np.empty(s.blocks + 1)), degrees)
        singles = None
        if len(s.others):
            ones = np.ones(len(s.others))
            singles = csr_array((ones, s.others, s.first), shape=(s.blocks, s.blocks))
            degrees += np.asarray(singles @ weights)
        top = np.sqrt(weights * degrees)
        return _Walk(s.blocks, np.sqrt(weights / degrees), top / norm(top), carried, singles)

    def apply(self, v: F64) -> F64:
        """(N - q q^T) v."""
        out = np.zeros(self.size)
        sums = np.empty(self.size + 1)
        self.carried.add(prefix_sums(v, self.scale, sums), out)
        if self.singles is not None:
            out += self.singles @ (v * self.scale)
        out *= self.scale
        return self.without_top(out)

    def without_top(self, v: F64) -> F64:
        """v made orthogonal to q, in place."""
        v -= dot(v, self.top) * self.top
        return v


def _dense(s: Skeleton) -> Value:
    at, low, high = s.rows(np.arange(s.size, dtype=np.int64))
    matrix = np.zeros((s.size, s.size))
    for i, a, b in zip(at.tolist(), low.tolist(), high.tolist(), strict=True):
        matrix[i, a:b] = 1
    scale = 1 / np.sqrt(matrix.sum(axis=1))
    gap = 1 - float(np.linalg.eigvalsh(matrix * scale * scale[:, None])[-2])
    return Value.exactly(gap if gap > ROUNDING else 0.0)


def _iterate(s: Skeleton, steps: int, seed: int) -> tuple[Value, str, int]:
    """The gap, how it was found, and the products made, by Lanczos's iteration."""
    walk = _Walk.of(s)
    if walk.size == 1:  # one block: the complete graph
        return Value.exactly(1.0), "one block", 0
    start = walk.without_top(np.random.default_rng(seed).standard_normal(walk.size))
    match _inverse(s, walk):
        case "apart":
            return Value.exactly(0.0), "not connected", 0
        case None:
            pass
        case inverse:
            return _from_inverse(walk, inverse, start, steps)

    def lower(second: float, count: int) -> float:
        share = missed(walk.size, count, RISK)  # N + 1 is positive
        return max(0.0, 2 - (1 + second) / (1 - share)) if share < 1 else 0.0

    def enough(second: float, count: int) -> bool:
        return (1 - second) - lower(second, count) <= SURE * (1 - second)

    top = largest(walk.apply, start, min(steps, walk.size - 1), enough)
    most = 1.0 if s.block > 1 else 2.0  # members of a block differ by vectors of eigenvalue 0
    high = min(max(0.0, 1 - max(top.value, _trial(walk))), most)
    low = min(high, lower(top.value, top.steps))
    how = f"{top.steps} steps of Lanczos's iteration"
    if top.closed:
        return Value.exactly(high if high > ROUNDING else 0.0), how, top.steps
    sure = Value(high, low, high, "estimate") if low > 0 else Value.between(0.0, high, high)
    return sure, how, top.steps


def _from_inverse(walk: _Walk, inverse: Map, start: F64, steps: int) -> tuple[Value, str, int]:
    """1 / gap is the largest eigenvalue of the inverse of 1 - N."""

    def enough(value: float, count: int) -> bool:
        return missed(walk.size, count, RISK) <= SURE

    top = largest(inverse, start, min(steps, walk.size - 1), enough)
    high = min(1 / top.value, 1 - _trial(walk)) if top.value > 0 else 0.0
    how = f"{top.steps} steps of Lanczos's iteration on the inverse"
    if top.closed:
        return Value.exactly(high), how, top.steps
    low = min(high, (1 - missed(walk.size, top.steps, RISK)) / top.value)
    return Value(high, low, high, "estimate"), how, top.steps


def _inverse(s: Skeleton, walk: _Walk) -> Map | Literal["apart"] | None:
    """v -> (1 - N)^-1 v for v orthogonal to q, by Cholesky's factors of D - A without position 0;
    None where edges reach far, so that the factors would be large.

    D^-1/2 (D - A) D^-1/2 x = v is solved with x = 0 at position 0, and made orthogonal to q.
    "apart" where the graph is not connected.  A pivot is the conductance of a position to 0 and to
    all that come later, edges being unit resistors: 0 at the last position of a part without 0, and
    at least 1 / (size - 1) where a path leads there.
    """
    from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded

    if s.block > 1 or len(s.others) or len(s.apart) > BANDS:
        return None
    width = int((-s.apart[:, 4]).max())
    if width > WIDE or s.size * (width + 1) > FACTORS:
        return None
    band = np.zeros((width + 1, s.size))
    for i0, i1, j0, j1, d0, d1 in s.apart.tolist():
        for k in range(max(1, 1 - d1), -d0 + 1):
            band[k, max(j0, i0 - k) : min(j1, i1 - k)] = -1
    band[0] = 1 / walk.scale**2 - 1
    try:
        factors = cholesky_banded(band[:, 1:], lower=True, overwrite_ab=True, check_finite=False)
    except LinAlgError:  # a pivot that is 0 came out below
        return "apart"
    if 2 * s.size * float(factors[0].min()) ** 2 < 1:
        return "apart"

    def apply(v: F64) -> F64:
        out = np.zeros(s.size)
        out[1:] = cho_solve_banded(
            (factors, True), v[1:] / walk.scale[1:], overwrite_b=True, check_finite=False
        )
        out /= walk.scale
        return walk.without_top(out)

    return apply


def _trial(walk: _Walk) -> float:
    """The best Rayleigh quotient of a few smooth vectors: where tokens mix by distance alone, the
    slowest mode is one half-wave along the sequence."""
    best = -1.0
    for waves in (0.5, 1.0):
        x = np.cos(2 * np.pi * waves * (np.arange(walk.size) + 0.5) / walk.size)
        v = walk.without_top(x * walk.top)
        v /= norm(v)
        best = max(best, dot(walk.apply(v), v))
    return best
