"""Orders of graphs: reverse Cuthill-McKee, METIS parts, and Morton order for grids.

Cuthill-McKee numbers a graph breadth first, so that neighbours get near numbers.  A few edges to
anywhere spoil it: after some steps the search has reached everything.  Edges of a neighbourhood
close triangles, far ones hardly any; so where some edges share many neighbours and others none, the
order is found with the former alone.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternError, SizeError
from patterncc.primitives import Grid
from patterncc.zones.orders.order import Order
from patterncc.zones.zoneset import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I32 = NDArray[np.int32]
    I64 = NDArray[np.int64]

MAX_GRAPH = 2**25
"""Edges of a graph that is put in order."""

MAX_STEPS = 2**28
"""Paths of two edges that are looked at for triangles."""

_SAMPLE = 512  # nodes that say whether it is worth to count all triangles
_LEAST, _MOST = 0.25, 0.999  # edges that close triangles, of all, where the others are left out
_PART = 4096  # tokens of a METIS part
_STEPS = 2**24  # paths of two edges that are looked at together
_BITS = 7  # a square (or cube) of a grid that stays together has 2**7 positions, a tile's side


def graph_order(name: str, i: I64, j: I64, frame: Frame) -> Order:
    """The order "rcm" or "metis" of a graph's edges, positions; both sides in the one order.

    Raises PatternError where METIS is not installed, SizeError for very large graphs.
    """
    if name == "metis" and find_spec("pymetis") is None:
        raise PatternError(
            'order "metis" needs the package pymetis; install it with '
            'pip install "patterncc[metis]", or use order="rcm"'
        )
    return _ranked(name, _near_graph(name, i, j, frame), frame)


def best_order(i: I64, j: I64, frame: Frame) -> Order:
    """The order "rcm", or "metis" where that is installed and touches fewer tiles.

    Raises SizeError for very large graphs, and where some rows of tiles show that neither order
    saves much.
    """
    near = _near_graph("rcm", i, j, frame)
    names = ["rcm", *(["metis"] if find_spec("pymetis") else [])]
    i, j = i - frame.q_offset, j - frame.k_offset
    best, least = None, 0.8 * _row_tiles(i, j, frame)
    for name in names:
        order = _ranked(name, near, frame)
        tiles = _row_tiles(order.query_slots[i], order.key_slots[j], frame)
        if tiles < least:
            best, least = order, 0.95 * tiles  # a sample's difference below that says little
        elif best is None:
            break  # a graph that the first cannot order is hardly one of parts
    if best is None:
        raise SizeError("no order of the graph saves tiles")
    return best


def _near_graph(name: str, i: I64, j: I64, frame: Frame) -> Any:
    if len(i) > MAX_GRAPH:
        raise SizeError(
            f"order {name!r}: the graph has {len(i):,} edges, and up to {MAX_GRAPH:,} are put in "
            'order; use order="token", or number the nodes before'
        )
    return _near(_both_ways(i, j, max(frame.box[1], frame.box[3])))


def _ranked(name: str, near: Any, frame: Frame) -> Order:
    return restricted(name, _rcm(near) if name == "rcm" else _parts(near), frame)


def _row_tiles(i: NDArray[Any], j: NDArray[Any], frame: Frame) -> int:
    """Tiles of 64 in 64 rows of them, spread evenly."""
    lines, width = -(-frame.n // 64), -(-frame.n_k // 64)
    picked = np.zeros(lines, dtype=bool)
    picked[np.linspace(0, lines - 1, 64).astype(np.int64)] = True
    line = i // 64
    kept = picked[line]
    return len(np.unique(line[kept].astype(np.int64) * width + j[kept] // 64))


def restricted(name: str, positions: NDArray[Any], frame: Frame) -> Order:
    """The order of a frame's queries and keys among that of all positions."""
    sides = []
    for first, last in (frame.box[:2], frame.box[2:]):
        kept = positions[(positions >= first) & (positions < last)]
        sides.append((kept - first).astype(np.int32))
    square = frame.box[:2] == frame.box[2:]
    return Order(name, sides[0], sides[0] if square else sides[1])


def _both_ways(i: I64, j: I64, nodes: int) -> Any:
    """The undirected graph as a scipy.sparse matrix of ones, without loops."""
    from scipy.sparse import coo_array

    apart = i != j
    i, j = i[apart], j[apart]
    ones = np.ones(2 * len(i), dtype=np.int32)
    ends = (np.concatenate([i, j]), np.concatenate([j, i]))
    matrix = coo_array((ones, ends), shape=(nodes, nodes)).tocsr()
    matrix.data[:] = 1
    return matrix


def _near(graph: Any) -> Any:
    """The edges that close triangles, where these are many of the edges and others close none."""
    degree = np.diff(graph.indptr).astype(np.float64)
    steps = float(degree @ degree)
    if not graph.nnz or steps > MAX_STEPS or steps == graph.nnz:
        return graph
    rows = np.sort(np.random.default_rng(0).permutation(graph.shape[0])[:_SAMPLE])
    some = _shared(graph, rows)
    if not _LEAST <= np.count_nonzero(some >= 2) / max(1, len(some)) < _MOST:
        return graph
    shared = _shared(graph, np.arange(graph.shape[0]))
    kept = shared >= max(2, np.median(shared) / 4)
    share = np.count_nonzero(kept) / graph.nnz
    if not _LEAST <= share < _MOST:
        return graph
    from scipy.sparse import csr_array

    owner = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))[kept]
    indptr = np.append(0, np.cumsum(np.bincount(owner, minlength=graph.shape[0])))
    return csr_array((graph.data[kept], graph.indices[kept], indptr), shape=graph.shape)


def _shared(graph: Any, rows: NDArray[Any]) -> I64:
    """For each edge of some nodes, how many neighbours its two ends have in common."""
    degree = np.diff(graph.indptr).astype(np.float64)
    paths = np.cumsum((graph @ degree)[rows])
    cuts = np.searchsorted(paths, np.arange(_STEPS, paths[-1], _STEPS)).tolist()
    width, shared = graph.shape[1], []
    for a, b in zip([0, *cuts], [*cuts, len(rows)]):
        part = graph[rows[a:b]]
        found = (part @ graph).multiply(part).tocsr()  # only where there is an edge
        found.sort_indices()
        at = np.repeat(np.arange(b - a), np.diff(part.indptr)) * width + part.indices
        to = np.repeat(np.arange(b - a), np.diff(found.indptr)) * width + found.indices
        counts = np.zeros(len(at), dtype=np.int64)
        counts[np.searchsorted(at, to)] = found.data
        shared.append(counts)
    return np.concatenate(shared)


def _rcm(graph: Any) -> I32:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    ranked: I32 = reverse_cuthill_mckee(csr_array(graph), symmetric_mode=True)
    return ranked


def _parts(graph: Any) -> I32:
    """METIS parts of a few thousand tokens, neighbouring parts together, Cuthill-McKee inside."""
    import pymetis
    from scipy.sparse import csr_array

    nodes = graph.shape[0]
    count = max(1, -(-nodes // _PART))
    if count == 1 or not graph.nnz:
        return _rcm(graph)
    graph.sort_indices()
    ends = pymetis.CSRAdjacency(graph.indptr.astype(np.int64), graph.indices.astype(np.int64))
    _, part = pymetis.part_graph(count, adjacency=ends)
    part = np.asarray(part, dtype=np.int64)
    owner = np.repeat(np.arange(nodes), np.diff(graph.indptr))
    a, b = part[owner], part[graph.indices]
    between = csr_array((np.ones(len(a), dtype=np.int32), (a, b)), shape=(count, count))
    place = np.empty(count, dtype=np.int64)
    place[_rcm(between)] = np.arange(count)
    inside = a == b
    own = csr_array(
        (np.ones(int(inside.sum()), dtype=np.int32), (owner[inside], graph.indices[inside])),
        shape=graph.shape,
    )
    ranked = _rcm(own)
    grouped: I32 = ranked[np.argsort(place[part[ranked]], kind="stable")]
    return grouped


def grid_order(p: Grid, frame: Frame) -> Order:
    """Morton order of squares (or cubes) of 128 positions: within a square row by row, so that its
    rows stay runs; squares along the curve; positions past the grid last."""
    shape = tuple(p.shape)
    total = min(math.prod(shape), max(frame.box[1], frame.box[3]))
    rest = np.arange(total, dtype=np.int64)
    curve, inner = np.zeros_like(rest), np.zeros_like(rest)
    axes = [a for a, size in enumerate(shape) if size > 1]
    wide = _BITS // max(1, len(axes))
    last = _BITS - wide * (len(axes) - 1)  # of the last axis, whose neighbours are runs
    parts: list[tuple[I64, I64]] = []
    for axis in reversed(range(len(shape))):
        rest, x = np.divmod(rest, shape[axis])
        if axis in axes:
            bits = last if axis == axes[-1] else wide
            parts.insert(0, (x >> bits, x & ((1 << bits) - 1)))
    for bit in range(max(1, max(shape).bit_length())):
        for k, (square, _) in enumerate(reversed(parts)):
            curve |= ((square >> bit) & 1) << (bit * len(parts) + k)
    for _, within in parts:
        inner = (inner << _BITS) + within
    ranked = np.lexsort((inner, curve))
    past = np.arange(total, max(frame.box[1], frame.box[3]))
    return restricted("morton", np.concatenate([ranked, past]), frame)
