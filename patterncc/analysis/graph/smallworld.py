"""small_world: clustering and path length of a stack's undirected skeleton, and sigma and omega."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from patterncc.analysis.graph.clustering import clustering
from patterncc.analysis.graph.distance import Apart, path_length
from patterncc.analysis.graph.skeleton import skeleton
from patterncc.analysis.graph.value import Value, combine
from patterncc.analysis.topology import Topology, checked
from patterncc.errors import SizeError
from patterncc.pattern import check_int

if TYPE_CHECKING:
    from patterncc.pattern import Pattern
    from patterncc.stack import Heads, Stack

GRAPH = "undirected skeleton of all layers and heads, without self-loops"
EULER = 0.5772156649015329
WEDGES = 2**13  # positions whose clustering is sampled
VAGUE = 2  # bounds on L whose ends differ by more than this factor make no sigma or omega
MOST_SAMPLES = 2**14
RISK = 0.025  # of each of the two samples being off: 5% for figures made from both
MOST = 2**30  # positions: products of two lengths stay within int64


@dataclass(frozen=True)
class SmallWorld:
    """Small-world figures of `graph`: the union of all layers and heads, read either way.

    nodes n (memory positions included), edges (pairs that are joined), degree k = 2 edges / n;
    clustering C, the mean over positions of the share of pairs of neighbours that are joined (0
    with fewer than two); path_length L, the mean distance between two different positions;
    random_clustering Cr = k / n and random_length Lr = (ln n - 0.5772) / ln k + 1/2 of a random
    graph, lattice_clustering Clatt = 3 (k - 2) / (4 (k - 1)) of a ring;
    sigma = (C / Cr) / (L / Lr), above 1 for a small world; omega = Lr / L - C / Clatt, near 0 for
    one, towards -1 for a lattice and towards 1 for a random graph.

    A figure that cannot be had is None, and why_not[its name] says why in a sentence.
    Source: Watts and Strogatz 1998 (C, L); Humphries and Gurney 2008 (sigma); Telesford et al.
    2011 (omega).
    """

    nodes: int
    edges: int
    degree: float
    clustering: Value
    path_length: Value | None
    random_clustering: float | None
    random_length: float | None
    lattice_clustering: float | None
    sigma: Value | None
    omega: Value | None
    why_not: Mapping[str, str]
    graph: str = GRAPH

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; None where there is no figure."""
        values = ("clustering", "path_length", "sigma", "omega")
        return {
            "graph": self.graph,
            "nodes": self.nodes,
            "edges": self.edges,
            "degree": self.degree,
            **{name: _json(getattr(self, name)) for name in values},
            "random_clustering": self.random_clustering,
            "random_length": self.random_length,
            "lattice_clustering": self.lattice_clustering,
            "why_not": dict(self.why_not),
        }

    def __str__(self) -> str:
        parts = [f"{self.nodes} nodes, mean degree {self.degree:.4g}", f"C {self.clustering}"]
        names = {"path_length": "L", "sigma": "sigma", "omega": "omega"}
        parts += [f"{short} {getattr(self, name) or 'none'}" for name, short in names.items()]
        return "small world: " + "; ".join(parts)


def small_world(
    stack: Stack | Pattern | Heads,
    n: int,
    *,
    samples: int | None = None,
    seed: int = 0,
    **bindings: Any,
) -> SmallWorld:
    """Clustering, path length, sigma and omega of a stack's undirected skeleton at n tokens.

    Exact where a closed form, the zones or a full search give it.  Else positions are drawn with
    `seed`: 8,192 for C, `samples` for L (unless given, 56 at a million positions and up to 504
    below).  Each is within its error with 97.5% confidence, so that sigma and omega, made from
    both, are with 95%.

    >>> from patterncc import causal, window
    >>> s = small_world(causal() & window(4), 1024)
    >>> print(s.path_length, s.clustering.badge, round(s.omega.value, 3))
    85.79 (exact) exact -0.962

    Raises PatternValueError for sizes that cannot be, SizeError above 2**30 positions or where the
    skeleton would need too many zones.
    Source: see SmallWorld.
    """
    return small_world_of(
        checked("small_world", stack, n, bindings, small_world), samples=samples, seed=seed
    )


def small_world_of(t: Topology, *, samples: int | None = None, seed: int = 0) -> SmallWorld:
    """`small_world` of a stack that is lowered already."""
    if samples is not None:
        samples = check_int("small_world", "samples", samples, 1, MOST_SAMPLES)
    seed = check_int("small_world", "seed", seed, 0)
    if t.frame.n > MOST:
        raise SizeError(
            f"small_world: {t.frame.n} positions are more than {MOST}; ask for a shorter length"
        )
    s = skeleton(t)
    why: dict[str, str] = {}
    c = clustering(s, WEDGES, seed, RISK)
    found = path_length(s, samples, seed, RISK)
    if isinstance(found, Apart):
        why["path_length"] = found.why
    length = None if isinstance(found, Apart) else found
    n, k = s.size, s.degree
    cr = k / n if n else None
    lr = (math.log(n) - EULER) / math.log(k) + 0.5 if n > 1 and k > 1 else None
    latt = 3 * (k - 2) / (4 * (k - 1)) if k > 2 else None
    dense = n > 2 and k > (n - 1) / 2
    if dense:
        why["sigma"] = why["omega"] = (
            "more than half of all pairs are edges; the random graph and the lattice of sigma and "
            "omega are sparse ones"
        )
    return SmallWorld(
        nodes=n,
        edges=s.edges,
        degree=k,
        clustering=c,
        path_length=length,
        random_clustering=cr,
        random_length=lr,
        lattice_clustering=latt,
        sigma=None if dense else _sigma(c, length, cr, lr, why),
        omega=None if dense else _omega(c, length, latt, lr, why),
        why_not=MappingProxyType(why),
    )


def _sigma(
    c: Value, length: Value | None, cr: float | None, lr: float | None, why: dict[str, str]
) -> Value | None:
    """(C / Cr) / (L / Lr)."""
    if length is None or length.hi > VAGUE * length.lo or not cr or lr is None:
        why["sigma"] = _missing("sigma", length)
        return None
    lo, value, hi = (
        x / cr * lr / d for x, d in ((c.lo, length.hi), (c.value, length.value), (c.hi, length.lo))
    )
    return Value(value, lo, hi, combine((c.kind, length.kind)))


def _omega(
    c: Value, length: Value | None, latt: float | None, lr: float | None, why: dict[str, str]
) -> Value | None:
    """Lr / L - C / Clatt."""
    if length is None or length.hi > VAGUE * length.lo or lr is None:
        why["omega"] = _missing("omega", length)
        return None
    if latt is None:
        why["omega"] = (
            "omega needs a mean degree above 2: a ring of degree 2 or less has no clustering to "
            "compare with"
        )
        return None
    lo, value, hi = (
        lr / d - x / latt
        for x, d in ((c.hi, length.hi), (c.value, length.value), (c.lo, length.lo))
    )
    return Value(value, lo, hi, combine((c.kind, length.kind)))


def _missing(name: str, length: Value | None) -> str:
    if length is None:
        return f"{name} needs the path length, which is not there"
    if length.hi > VAGUE * length.lo:
        return f"{name} needs the path length, of which only {length.badge} are known"
    return f"{name} needs a mean degree above 1: the random graph has no path length otherwise"


def _json(value: Value | None) -> dict[str, Any] | None:
    return None if value is None else value.to_json()
