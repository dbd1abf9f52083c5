"""spectrum: how fast a symmetric topology mixes, as the spectral gap of its normalised graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.skeleton import Skeleton, skeleton
from patterncc.analysis.sweep_vectors import Carrier, carrier, dot, prefix_sums, row_counts
from patterncc.analysis.topology import Topology, is_causal, topology
from patterncc.analysis.value import Value
from patterncc.errors import PatternValueError, SizeError
from patterncc.pattern import check_int
from patterncc.zones import ZoneSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.pattern import Pattern
    from patterncc.stack import Heads, Stack

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]

DENSE = 1024  # positions up to which all eigenvalues are computed
STEPS = 200  # of Lanczos's iteration
TOLERANCE = 1e-4  # of the gap: the upper end has settled
SURE = 0.01  # of the gap: what the bounds may lie apart before the steps run out
CLOSED = 1e-12  # length of a new direction below which there is none
RISK = 0.05
MOST = 2**27  # positions: a few vectors of float64 are held
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

    Up to 1024 positions all eigenvalues are computed.  Above, Lanczos's iteration from a random
    vector, the known top vector taken out, runs until the gap has settled to 1e-4 of itself or
    for `steps` products.  Every Rayleigh quotient is a sure upper bound on the gap; the lower
    bound is Kuczynski and Wozniakowski's for a random start, 95% sure whatever the graph.

    >>> from patterncc import window
    >>> print(spectrum(window(3, 3), 512))
    spectral gap 7.58e-05 (exact), all eigenvalues

    Raises PatternValueError where an edge has no counterpart, unless `symmetrize` is set: then the
    edges are read both ways, and the result says so.  SizeError above 2**27 positions.
    Source: Kuczynski and Wozniakowski, "Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start", 1992 (Theorem 4.2).
    """
    t = topology(stack, n, **bindings)
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
    return _iterate(s, graph, steps, seed)


def _check_symmetric(t: Topology) -> None:
    remedy = (
        "set symmetrize=True for the gap of the symmetrised skeleton, which says something else: "
        "how well the graph mixes if every edge is read both ways"
    )
    distinct = list({id(level): level.zones for level in t.levels}.values())
    union = distinct[0]
    for more in distinct[1:]:
        union = union | more
    if is_causal(union) and not union.T.equals(union):
        raise PatternValueError(
            "spectrum: every edge leads to an earlier token; the eigenvalues of a triangular "
            f"matrix are its diagonal and say nothing about mixing; {remedy}"
        )
    if not _symmetric(union):
        raise PatternValueError(
            "spectrum: some token reads one that does not read it, so the eigenvalues say nothing "
            f"about mixing; {remedy}"
        )


def _symmetric(union: ZoneSet) -> bool:
    """Whether every edge has its counterpart."""
    return union.T.equals(union)


@dataclass(frozen=True, eq=False)
class _Walk:
    """N = D^-1/2 A D^-1/2 with its top vector q = D^1/2 1 taken out."""

    size: int
    scale: F64
    top: F64
    carried: Carrier
    singles: Any

    @staticmethod
    def of(s: Skeleton) -> _Walk:
        from scipy.sparse import csr_array

        degrees = row_counts(s.apart, s.size)
        singles = None
        if len(s.others):
            degrees += np.diff(s.first)
            ones = np.ones(len(s.others))
            singles = csr_array((ones, s.others, s.first), shape=(s.size, s.size))
        root = np.sqrt(degrees)
        return _Walk(s.size, 1 / root, root / _norm(root), carrier(s.apart, s.size), singles)

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
    second = float(np.linalg.eigvalsh(matrix * scale * scale[:, None])[-2])
    return Value.exactly(max(0.0, 1 - second))


def _iterate(s: Skeleton, graph: str, steps: int, seed: int) -> Spectrum:
    """Lanczos's iteration: the top eigenvalue of its small matrix is a Rayleigh quotient."""
    from scipy.linalg import eigh_tridiagonal

    walk = _Walk.of(s)
    trial = _trial(walk)
    v = walk.without_top(np.random.default_rng(seed).standard_normal(s.size))
    v /= _norm(v)
    before = np.zeros(s.size)
    diagonal: list[float] = []
    beside: list[float] = []
    ritz, settled, closed = -1.0, False, False
    for _ in range(min(steps, s.size - 1)):
        w = walk.apply(v)
        diagonal.append(dot(w, v))
        w -= diagonal[-1] * v
        w -= (beside[-1] if beside else 0.0) * before
        walk.without_top(w)
        length = _norm(w)
        last = len(diagonal) - 1
        found = eigh_tridiagonal(
            diagonal, beside, eigvals_only=True, select="i", select_range=(last, last)
        )
        settled = abs(found[0] - ritz) <= TOLERANCE / 10 * (1 - found[0])
        ritz = float(found[0])
        closed = length < CLOSED
        if closed or (settled and 1 - ritz - _lower(ritz, last + 1, s.size) < SURE * (1 - ritz)):
            break
        beside.append(length)
        before, v = v, w / length
    count = len(diagonal)
    high = max(0.0, 1 - max(ritz, trial))
    if closed:
        gap = Value.exactly(high)
    elif settled and trial <= ritz:
        gap = Value(high, _lower(ritz, count, s.size), high, "estimate")
    else:
        gap = Value.between(0.0, high, high)
    return Spectrum(s.size, gap, graph, f"{count} steps of Lanczos's iteration", count)


def _lower(ritz: float, count: int, size: int) -> float:
    """What the gap is at least, with probability 1 - RISK over the random start."""
    root = math.log(1.648 * math.sqrt(size) / RISK) / (2 * count - 1)
    return max(0.0, 2 - (1 + ritz) / (1 - root * root)) if root < 1 else 0.0


def _trial(walk: _Walk) -> float:
    """The best Rayleigh quotient of a few smooth vectors: where tokens mix by distance alone, the
    slowest mode is one half-wave along the sequence."""
    best = -1.0
    for waves in (0.5, 1.0):
        x = np.cos(2 * np.pi * waves * (np.arange(walk.size) + 0.5) / walk.size)
        v = walk.without_top(x / walk.scale)
        v /= _norm(v)
        best = max(best, dot(walk.apply(v), v))
    return best


def _norm(a: F64) -> float:
    return math.sqrt(dot(a, a))
