"""Lowering of the primitives that group positions: documents, clusters, routing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternValueError
from patterncc.primitives import Clusters, Documents, Routing
from patterncc.zones.choice import chosen
from patterncc.zones.site import Site, integers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


def documents(p: Documents, at: Site) -> I64:
    """One box for each document that has a query and a key in the region."""
    if isinstance(p.lengths, str):
        lengths = integers("documents", p.lengths, at.bound("documents", p.lengths))
    else:
        lengths = np.array(p.lengths, dtype=np.int64)
    if len(lengths):
        if int(lengths.min()) < 0:
            where = int(np.argmax(lengths < 0))
            raise PatternValueError(
                f"documents: length {where} is {int(lengths[where])}; a length is at least 0"
            )
        if float(lengths.sum(dtype=np.float64)) > 2.0**41:
            raise PatternValueError("documents: lengths add up to more than 2**41 positions")
    ends = np.cumsum(lengths)
    r = at.region
    # a box needs ends > max(i0, j0) and starts < min(i1, j1)
    first = int(np.searchsorted(ends, max(r.i0, r.j0), side="right"))
    last = int(np.searchsorted(ends - lengths, min(r.i1, r.j1), side="left"))
    real = lengths[first:last] > 0
    at.allow(int(real.sum()), "documents")
    e = ends[first:last][real]
    s = e - lengths[first:last][real]
    return at.rows(s, e, s, e)


def clusters(p: Clusters, at: Site) -> I64:
    """One box for each pair of runs of one label."""
    given = [(p.labels, "labels"), *([(p.keys, "keys")] if p.keys is not None else [])]
    sides = [
        (x, integers("clusters", x, at.bound("clusters", x)))
        if isinstance(x, str)
        else (name, np.array(x, dtype=np.int64))
        for x, name in given
    ]
    return _same_label("clusters", at, *sides)


def routing(p: Routing, at: Site) -> I64:
    """As clusters, the labels bound as ``routing``."""
    labels = integers("routing", "routing", chosen(p, at))
    if len(labels) and int(labels.max()) >= p.clusters:
        where = int(np.argmax(labels >= p.clusters))
        raise PatternValueError(
            f"routing: label {int(labels[where])} of position {where} is not below the "
            f"{p.clusters} clusters of {p}"
        )
    return _same_label("routing", at, ("routing", labels))


def _same_label(owner: str, at: Site, *sides: tuple[str, I64]) -> I64:
    """Boxes (run of queries) x (run of keys) for every pair of runs with one label from 0 up.

    One (name, labels) for both, or one for the queries and one for the keys.
    """
    _, i1, _, j1 = at.frame.box
    needed = (at.positions,) if len(sides) == 1 else (i1, j1)
    for (name, labels), positions in zip(sides, needed):
        if len(labels) < positions:
            raise PatternValueError(
                f"{owner}: {name} has {len(labels)} labels for {positions} positions; "
                "give one label a position, counted from position 0 (-1 for none)"
            )
        if len(labels) and int(labels.min()) < -1:
            where = int(np.argmax(labels < -1))
            raise PatternValueError(
                f"{owner}: label {int(labels[where])} of position {where} is below -1 "
                "(in no cluster)"
            )
    r = at.region
    q0, q1, q_label = _label_runs(sides[0][1], r.i0, r.i1)
    k0, k1, k_label = _label_runs(sides[-1][1], r.j0, r.j1)
    order = np.argsort(k_label, kind="stable")
    first = np.searchsorted(k_label, q_label, side="left", sorter=order)
    count = np.searchsorted(k_label, q_label, side="right", sorter=order) - first
    total = int(count.sum())
    at.allow(total, owner)
    query = np.repeat(np.arange(len(q0)), count)
    nth = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
    key = order[first[query] + nth]
    return at.rows(q0[query], q1[query], k0[key], k1[key])


def label_pairs(queries: NDArray[Any], keys: NDArray[Any] | None = None) -> tuple[int, int]:
    """How many pairs (run of queries, run of keys) of one label there are, and of how many labels.
    Without `keys` they are the queries.

    >>> label_pairs(np.array([0, 1, 0]), np.array([0, -1, 2, 0]))
    (4, 1)
    """
    first, n_q = _run_counts(queries)
    if keys is None:
        return int(n_q @ n_q), len(first)
    second, n_k = _run_counts(keys)
    _, at, to = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    return int(n_q[at] @ n_k[to]), len(at)


def _run_counts(labels: NDArray[Any]) -> tuple[I64, I64]:
    """Every label, and how many runs it has."""
    return np.unique(_label_runs(labels, 0, len(labels))[2], return_counts=True)


def _label_runs(labels: NDArray[Any], start: int, stop: int) -> tuple[I64, I64, I64]:
    """Runs of one label within [start, stop): first positions, ends and labels; -1 is left out."""
    part = labels[start:stop]
    first = np.flatnonzero(np.diff(part, prepend=-2))  # no label is -2
    ends = np.append(first[1:], len(part))
    kept = part[first] >= 0
    return first[kept] + start, ends[kept] + start, part[first][kept]
