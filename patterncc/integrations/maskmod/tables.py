"""Functions of one index, written out for every position, and what comparisons of them mark.

Nothing is sampled: a function of q_idx alone is computed for all n queries, one of kv_idx alone for
all n_k keys, one of their difference for all n + n_k - 1 distances.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patterncc.integrations.maskmod.nodes import (
    Call,
    Lookup,
    Node,
    Var,
    children,
    evaluate,
    variables,
    walk,
)
from patterncc.pattern import Integers, Pattern
from patterncc.primitives import Boxes, Clusters, Documents, GlobalTokens, Spans
from patterncc.zones import algebra
from patterncc.zones.algebra import expand
from patterncc.zones.merge import Runs, zones_of_runs
from patterncc.zones.spans import chains

I64 = NDArray[np.int64]
Column = NDArray[Any]  # int64, bool or float64, one value a position

MOST_RUNS = 2**24  # runs of keys that one reading may make
MOST_PAIRS = 2**26  # (kind of query, kind of key) pairs of an expression without a rule
_FAR = 2**43
_AT_ONCE = 2**20  # pairs that are evaluated together


@dataclass(frozen=True)
class Frame:
    """The positions a mask is read for: n queries and n_k keys, both from 0."""

    n: int
    n_k: int

    def column(self, node: Node, name: str) -> Column:
        """A node's value at every position of the index that it depends on."""
        size = self.n if name == "q_idx" else self.n_k
        return _numbers(evaluate(node, {name: torch.arange(size)}), size)

    def distances(self, node: Node) -> tuple[I64, Column]:
        """Every distance q_idx - kv_idx, and the value of a node that depends on it alone."""
        d = torch.arange(1 - self.n_k, self.n)
        value = evaluate(node, {"q_idx": d, "kv_idx": torch.zeros_like(d)})
        return d.numpy(), _numbers(value, len(d))


def _numbers(value: torch.Tensor, size: int) -> Column:
    wide = value.to(torch.float64) if value.dtype.is_floating_point else value
    wide = wide if wide.dtype in (torch.bool, torch.float64) else wide.to(torch.int64)
    return np.ascontiguousarray(wide.expand(size).numpy()) if wide.ndim == 0 else wide.numpy()


def runs(mask: NDArray[np.bool_]) -> tuple[I64, I64]:
    """Starts and ends of the runs of True.

    >>> runs(np.array([False, True, True, False, True]))
    (array([1, 4]), array([3, 5]))
    """
    edges = np.diff(mask.astype(np.int8), prepend=0, append=0)
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def ranked(values: Column) -> tuple[Column, I64]:
    """The distinct values in order, and the rank of each; np.unique, in linear time where integers
    lie close together.

    >>> ranked(np.array([7, 3, 7]))
    (array([3, 7]), array([1, 0, 1]))
    """
    if len(values) and values.dtype == np.int64:
        low, high = int(values.min()), int(values.max())
        if high - low < 4 * len(values) + 1024:
            there = np.zeros(high - low + 1, dtype=bool)
            there[values - low] = True
            rank = np.cumsum(there) - 1
            return np.flatnonzero(there) + low, rank[values - low]
    distinct, found = np.unique(values, return_inverse=True)
    return distinct, found.reshape(-1).astype(np.int64)


def boxes(at: Frame, *columns: I64 | int) -> Pattern:
    """A pattern of zones: six columns, numbers or arrays."""
    flat = np.stack(np.broadcast_arrays(*columns), axis=-1).astype(np.int64).reshape(-1, 6)
    return table(at, flat)


def table(at: Frame, zones: I64) -> Pattern:
    """A pattern of a table of zones."""
    low = np.array([0, -_FAR, 0, -_FAR, 1 - at.n, -_FAR])
    high = np.array([_FAR, at.n, _FAR, at.n_k, _FAR, at.n_k])
    tight = algebra.tighten(np.clip(zones, low, high).astype(np.int64))
    return Boxes(Integers(np.ascontiguousarray(tight).tobytes()), at.n, at.n_k)


def marked(at: Frame, node: Node, name: str) -> Pattern:
    """The pairs where a truth value of one index holds: row or column stripes."""
    start, end = runs(np.asarray(at.column(node, name), dtype=bool))
    if name == "q_idx":
        return boxes(at, start, end, 0, at.n_k, -_FAR, _FAR)
    return boxes(at, 0, at.n, start, end, -_FAR, _FAR)


def tokens(at: Frame, node: Node, name: str) -> Pattern:
    """The positions where a truth value holds, as global tokens: in queries and in keys."""
    held = np.flatnonzero(at.column(node, name))
    return GlobalTokens(tuple(held.tolist()))


def diagonals(at: Frame, node: Node) -> Pattern:
    """The pairs where a truth value of the distance holds: a band for each run of distances."""
    d, value = at.distances(node)
    start, end = runs(np.asarray(value, dtype=bool))
    low, high = 1 - (d[0] + end), 1 - (d[0] + start)  # of key - query
    return boxes(at, 0, at.n, 0, at.n_k, low, high)


def covered(node: Node) -> int | None:
    """How many positions the tensors have that a node looks up at an index as it is."""
    sizes = [
        size
        for x in walk(node)
        if isinstance(x, Lookup)
        for index, size in zip(x.index, x.table.values.shape)
        if isinstance(index, Var)
    ]
    return min(sizes, default=None)


def equal(at: Frame, label: Node, key: Node) -> Pattern:
    """label(i) == key(j): documents where every label is one run of looked-up positions, else
    clusters."""
    rows, columns = at.column(label, "q_idx"), at.column(key, "kv_idx")
    short = min(at.n, at.n_k)
    if not np.array_equal(rows[:short], columns[:short]):
        _, both = ranked(np.concatenate([rows, columns]))
        return Clusters(tuple(both[: at.n].tolist()), tuple(both[at.n :].tolist()))
    _, whole = ranked(rows if at.n > short else columns)
    first = np.flatnonzero(np.diff(whole, prepend=-1))
    once = len(ranked(whole[first])[0]) == len(first)
    if once and max(covered(label) or 0, covered(key) or 0) == len(whole):
        return Documents(tuple(np.diff(np.append(first, len(whole))).tolist()))
    return Clusters(tuple(whole.tolist()))


def interval(at: Frame, first: I64, last: I64) -> I64:
    """Zones of first[i] <= j < last[i]."""
    first, last = np.clip(first, 0, at.n_k), np.clip(last, 0, at.n_k)
    start, stop, lower, upper = chains(first, last)
    low, high, far = first[start], last[start], stop - start - 1
    d0 = np.where(lower == 1, low - start, -_FAR)
    d1 = np.where(upper == 1, high - start, _FAR)
    return np.stack([start, stop, low, high + upper * far, d0, d1], axis=-1)


def by_query(at: Frame, compared: Iterable[Any], causal: bool) -> Pattern:
    """kv_idx against bound(i): one run of keys for each query, whatever the number of keys.

    Under a causal mask, "from the start of its document on" means its document.
    """
    compared = list(compared)
    first, last = np.zeros(at.n, dtype=np.int64), np.full(at.n, _FAR)
    for x in compared:
        bound = at.column(x.bound, "q_idx")
        if x.op in ("==", ">="):
            first = np.maximum(first, bound)
        if x.op in ("==", "<="):
            last = np.minimum(last, bound + 1)
    if causal and (last == _FAR).all() and len(compared) == 1:
        start = np.flatnonzero(np.diff(first, prepend=-1))
        if np.array_equal(first[start], start) and covered(compared[0].bound) == at.n:
            return Documents(tuple(np.diff(np.append(start, at.n)).tolist()))
    return _spans(first, last)


def by_key(at: Frame, compared: Iterable[Any]) -> Pattern:
    """value(j) against q_idx + c: one run of queries for each key, however many queries."""
    first, last = np.zeros(at.n_k, dtype=np.int64), np.full(at.n_k, _FAR)
    for x in compared:
        offset = evaluate(x.bound, {"q_idx": torch.zeros((), dtype=torch.int64)})
        value = at.column(x.value, "kv_idx") - int(offset)
        if x.op in ("==", "<="):
            first = np.maximum(first, value)
        if x.op in ("==", ">="):
            last = np.minimum(last, value + 1)
    return _spans(first, last).T


def _spans(first: I64, last: I64) -> Pattern:
    """Runs of keys, a bound that is the same everywhere written once."""
    start: Integers | int = Integers(first.tobytes())
    if first.any():
        return Spans(start, None if (last == _FAR).all() else Integers(last.tobytes()))
    return Spans(0, Integers(last.tobytes()))


def unary_parts(node: Node, name: str) -> list[Node]:
    """The largest sub-expressions of a node that depend on one index only, that index."""
    found: dict[Node, None] = {}
    stack = [node]
    while stack:
        top = stack.pop()
        names = variables(top)
        if names == {name}:
            found[top] = None
        elif name in names:
            stack.extend(children(top))
    return list(found)


def kinds(columns: list[Column], size: int) -> tuple[I64, I64]:
    """Positions with equal values in all columns are one kind: the kind of each, one of each."""
    kind = np.zeros(size, dtype=np.int64)
    for column in columns:
        _, rank = ranked(column)
        _, kind = ranked(kind * (int(rank.max(initial=0)) + 1) + rank)
    place = np.zeros(int(kind.max(initial=-1)) + 1, dtype=np.int64)
    place[kind[::-1]] = np.arange(size)[::-1]
    return kind, place


def by_kinds(at: Frame, node: Node) -> Pattern | int:
    """Any truth value of both indices, evaluated for every kind of query and kind of key.

    The number of pairs of kinds, if that is past MOST_PAIRS.
    """
    rows, row = kinds([at.column(x, "q_idx") for x in unary_parts(node, "q_idx")], at.n)
    keys, key = kinds([at.column(x, "kv_idx") for x in unary_parts(node, "kv_idx")], at.n_k)
    begin = np.flatnonzero(np.diff(keys, prepend=-1)) if at.n_k else np.zeros(0, dtype=np.int64)
    pairs = len(row) * max(len(key), len(begin))
    if pairs > MOST_PAIRS:
        return pairs
    held = np.zeros((len(row), len(key)), dtype=bool)
    step = max(1, _AT_ONCE // max(1, len(key)))
    for k in range(0, len(row), step):
        given = {
            "q_idx": torch.from_numpy(row[k : k + step])[:, None],
            "kv_idx": torch.from_numpy(key)[None, :],
        }
        held[k : k + step] = evaluate(node, given).expand(-1, len(key)).numpy()
    return _spread(at, rows, held[:, keys[begin]], begin)


def _spread(at: Frame, rows: I64, held: NDArray[np.bool_], begin: I64) -> Pattern:
    """Runs of keys of every kind of query, given to the runs of queries of that kind."""
    edge = np.diff(held.astype(np.int8), axis=1, prepend=0, append=0)
    kind, start = np.nonzero(edge == 1)
    _, end = np.nonzero(edge == -1)
    bounds = np.append(begin, at.n_k)
    first = np.flatnonzero(np.diff(rows, prepend=-1)) if len(rows) else rows
    of = rows[first]
    low = np.searchsorted(kind, of, side="left")
    count = np.searchsorted(kind, of, side="right") - low
    which, nth = expand(np.zeros_like(count), count)
    place = low[which] + nth
    last = np.append(first[1:], at.n)
    return row_runs(at, first[which], last[which], bounds[start[place]], bounds[end[place]])


def row_runs(at: Frame, i0: I64, i1: I64, start: I64, end: I64) -> Pattern:
    """Queries i0 <= i < i1 read keys start <= j < end; runs of single queries merge into bands.

    Sorted by query and then by key; no two of a query meet.
    """
    wide = i1 - i0 > 1
    one = ~wide
    far = np.full(int(wide.sum()), _FAR)
    large = np.stack([i0[wide], i1[wide], start[wide], end[wide], -far, far], axis=-1)
    small = zones_of_runs(Runs(i0[one], start[one], end[one], 0))
    return table(at, np.concatenate([large.reshape(-1, 6), small]))


def depends_on_distance(node: Node) -> bool:
    """Whether a node's value is that of q_idx - kv_idx alone: sums in which both cancel."""
    from patterncc.integrations.maskmod.linear import linear
    from patterncc.integrations.maskmod.nodes import is_int

    if isinstance(node, Var):
        return False
    if is_int(node):
        form = linear(node)
        rest = [x for x, _ in form.terms if not isinstance(x, Var)]
        whole = {x.name: a for x, a in form.terms if isinstance(x, Var)}
        cancel = whole.get("q_idx", 0) + whole.get("kv_idx", 0) == 0
        if rest != [node]:
            return cancel and all(map(depends_on_distance, rest))
    return (isinstance(node, Call | Lookup) and all(map(depends_on_distance, children(node)))) or (
        not children(node)
    )
