"""influence: how much of each input survives in one token's state, by attention rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.flow.rollout import ALPHA, Rollout, rollout
from patterncc.analysis.flow.sweep_vectors import dot
from patterncc.analysis.topology import Topology, check_position, is_causal
from patterncc.pattern import Pattern
from patterncc.primitives import Causal, Sink, Window
from patterncc.stack import Heads, Stack, patterns_of
from patterncc.zones.lower import leaves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]

BINS = 128
XIAO = 1.5  # windows; the heuristic's alpha is 0.95


@dataclass(frozen=True, eq=False)
class Influence:
    """One query's row of Phi = P_L ... P_1 and how diluted it is.

    row[j] is the share of input j in the query's state, float64 [positions] (memory first); it sums
    to 1.  entropy is -sum p ln p in nats, participation 1 / sum p^2 ("how many positions share
    it"); q50, q90 and q99 are the least distances abs(query - key) within which that part of the
    mass lies.  cone[l, b] is the mass that the states after l layers of the positions [edges[b],
    edges[b + 1]) pass on to the query: cone[depth] is the query alone, cone[0] the row in bins.
    Each cone[l] sums to 1, or to less where layers above read keys and values made below l.
    """

    query: int
    alpha: float
    depth: int
    row: F64
    mass: float
    entropy: float
    participation: float
    q50: int
    q90: int
    q99: int
    edges: NDArray[np.int64]
    cone: F64

    def by_distance(self) -> tuple[tuple[int, int, float], ...]:
        """Mass by distance, in bins that double: (first, past the last, mass), the token itself
        first.

        >>> from patterncc import causal, window
        >>> influence(causal() & window(3), 64, depth=1).by_distance()
        ((0, 1, 0.625), (1, 2, 0.125), (2, 4, 0.25))
        """
        folded = _by_distance(self.row, self.query)
        starts = np.append(0, 2 ** np.arange(max(1, len(folded) - 1).bit_length()))
        starts = starts[starts < len(folded)]
        mass = np.add.reduceat(folded, starts).tolist()
        ends = [*starts[1:].tolist(), len(folded)]
        bins = list(zip(starts.tolist(), ends, mass, strict=True))
        while len(bins) > 1 and bins[-1][2] == 0:
            bins.pop()
        return tuple(bins)

    def to_json(self) -> dict[str, Any]:
        """The figures and the binned row and cone as JSON values; not the row itself."""
        return {
            "query": self.query,
            "alpha": self.alpha,
            "depth": self.depth,
            "mass": self.mass,
            "entropy": self.entropy,
            "participation": self.participation,
            "q50": self.q50,
            "q90": self.q90,
            "q99": self.q99,
            "by_distance": [
                {"first": a, "last": b, "mass": mass} for a, b, mass in self.by_distance()
            ],
            "edges": self.edges.tolist(),
            "cone": self.cone.tolist(),
        }


def influence(
    stack: Stack | Pattern | Heads,
    n: int,
    query: int | None = None,
    alpha: float = ALPHA,
    *,
    depth: int | None = None,
    bins: int = BINS,
    **bindings: Any,
) -> Influence:
    """The rollout of one query, the last token unless given.

    Phi = P_L ... P_1 with P = alpha I + (1 - alpha) * mean over heads of D^-1 A: every head
    normalised before averaging, a query without keys an identity row.  Positions are absolute:
    with memory, queries start past it.  Exact but for rounding; the cost is that of the positions
    in the query's cone times the zones, a layer.

    >>> from patterncc import causal, window
    >>> found = influence(causal() & window(1), 4, depth=2)
    >>> found.row.tolist(), found.q50
    ([0.0, 0.0625, 0.375, 0.5625], 0)

    Raises PatternValueError for a layer that is no attention or an alpha outside [0, 1],
    PatternError for a query outside the frame, SizeError past 2**27 positions.
    Source: Abnar and Zuidema, arXiv 2005.00928.
    """
    return influence_of(rollout(stack, n, alpha, depth, **bindings), query, bins)


def influence_of(r: Rollout, query: int | None = None, bins: int = BINS) -> Influence:
    """`influence` on a rollout that is prepared already."""
    t = r.topology
    last = t.frame.n - 1
    query = last if query is None else check_position(t, "query", query, t.memory)
    edges = np.linspace(0, t.frame.n, min(bins, t.frame.n) + 1).astype(np.int64)
    cone = np.empty((r.depth + 1, len(edges) - 1))
    for k, v in enumerate(r.from_query(query)):
        cone[r.depth - k] = np.add.reduceat(v, edges[:-1])
    mass = float(v.sum())
    p = v[v > 0] / mass
    far = np.cumsum(_by_distance(v, query))
    q50, q90, q99 = (_quantile(far, q) for q in (0.5, 0.9, 0.99))
    return Influence(
        query=query,
        alpha=r.alpha,
        depth=r.depth,
        row=v,
        mass=mass,
        entropy=max(0.0, -dot(p, np.log(p))),
        participation=1 / dot(p, p),
        q50=q50,
        q90=q90,
        q99=q99,
        edges=edges,
        cone=cone,
    )


def heuristic_range(t: Topology) -> float | None:
    """1.5 W for stacked causal windows of W keys, the token counted: a rule of thumb, no result.

    None unless every layer is one causal window of the same W, perhaps with sinks, and has keys and
    values of its own, and None where the context is no longer.  It is meant for alpha 0.95; show it
    as a heuristic beside the exact q99, never instead of it.  Source: Xiao 2025.

    >>> from patterncc import causal, sink, window
    >>> from patterncc.analysis.topology import topology
    >>> heuristic_range(topology(causal() & (window(63) | sink(4)), 256))
    96.0
    """
    sizes: set[int | None] = set()
    for pattern in {p for layer in t.stack.layers for p in patterns_of(layer)}:
        parts = list(leaves(pattern))
        found = {p.left for p in parts if isinstance(p, Window) and p.block == 1}
        plain = all(isinstance(p, Window | Causal | Sink) for p in parts)
        sizes |= found if found and plain else {None}
    left = next(iter(sizes))
    causal = all(is_causal(level.zones) for level in t.levels)
    if t.shared or not causal or len(sizes) > 1 or left is None or left < 0:
        return None
    reach = XIAO * (left + 1)
    return reach if reach < t.frame.n else None


def _by_distance(row: F64, query: int) -> F64:
    """Mass at distance 0, 1, ... from the query, both sides together."""
    before, after = row[query::-1], row[query + 1 :]
    folded = np.zeros(max(len(before), len(after) + 1))
    folded[: len(before)] = before
    folded[1 : len(after) + 1] += after
    return folded


def _quantile(far: F64, share: float) -> int:
    """The least distance within which `share` of the mass lies; ties that rounding broke hold."""
    return int(np.searchsorted(far, share * far[-1] * (1 - 1e-12)))
