"""Explicit graphs as patterns: edges from files and Python objects, and the zones they make."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternValueError
from patterncc.primitives import Edges
from patterncc.zones import graph_files
from patterncc.zones.graph_files import allow_edges
from patterncc.zones.merge import zones_of_edges
from patterncc.zones.site import FAR, Site

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Pairs = tuple[I64, I64]


def edges(p: Edges, at: Site) -> I64:
    """Zones of the graph's edges in the region: consecutive edges share zones, repeats count once.

    Raises PatternValueError for a node below 0, or past the last position of an unsliced frame.
    """
    owner = str(p)
    row, col = _pairs(p.source, owner)
    _check_nodes(owner, row, col, at)
    r = at.region
    inside = (row >= r.i0) & (row < r.i1) & (col >= r.j0) & (col < r.j1)
    table = zones_of_edges(row[inside], col[inside])
    at.allow(len(table), owner)
    return table


def _check_nodes(owner: str, row: I64, col: I64, at: Site) -> None:
    """Every node is a position; a slice (an offset above 0) may leave some of the graph out."""
    whole = at.frame.q_offset == at.frame.k_offset == 0
    end = at.positions if whole else FAR
    wrong = (row < 0) | (col < 0) | (row >= end) | (col >= end)
    if wrong.any():
        where = int(np.argmax(wrong))
        ends = (int(row[where]), int(col[where]))
        node = next(x for x in ends if not 0 <= x < end)
        longer = f", or lower with n > {node}" if node > 0 else ""
        raise PatternValueError(
            f"{owner}: edge {where} is {ends}, and node {node} is not one of the positions "
            f"0 .. {end - 1}; number the nodes from 0{longer}"
        )


def _pairs(source: object, owner: str) -> Pairs:
    """Query and key of every edge."""
    if isinstance(source, str | os.PathLike):
        return _pairs(graph_files.read(os.fspath(source), owner), owner)
    if is_networkx(source):
        return from_networkx(source, owner)
    if is_scipy(source):
        return from_scipy(source, owner)
    return _from_array(source, owner)


def _from_array(source: object, owner: str) -> Pairs:
    """A bool [queries, keys] matrix or an integer [edges, 2] array."""
    try:
        array = np.asarray(source)
    except ValueError:
        raise PatternValueError(f"{owner}: the rows of pairs differ in length") from None
    if array.dtype == bool and array.ndim == 2:
        allow_edges(int(np.count_nonzero(array)), owner)
        row, col = np.nonzero(array)
        return row.astype(np.int64), col.astype(np.int64)
    if array.size == 0 and array.ndim in (1, 2):
        array = np.zeros((0, 2), dtype=np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != 2:
        raise PatternValueError(
            f"{owner}: a bool [n, n] or integer [edges, 2] array is needed, not "
            f"{array.dtype} {list(array.shape)}; for a matrix of weights pass (matrix != 0)"
        )
    allow_edges(len(array), owner)
    pairs = array.astype(np.int64)
    return pairs[:, 0], pairs[:, 1]


def is_scipy(source: object) -> bool:
    """A scipy.sparse matrix or array, asked without importing scipy."""
    return hasattr(source, "tocoo")


def from_scipy(matrix: Any, owner: str) -> Pairs:
    """Query and key of every entry that is not 0."""
    if len(matrix.shape) != 2:
        raise PatternValueError(
            f"{owner}: a matrix has queries and keys, this has shape {list(matrix.shape)}"
        )
    allow_edges(int(matrix.nnz) if hasattr(matrix, "nnz") else 0, owner)
    coo = matrix.tocoo()
    kept = coo.data != 0
    return coo.row[kept].astype(np.int64), coo.col[kept].astype(np.int64)


def is_networkx(source: object) -> bool:
    """A graph of networkx, asked without importing it."""
    return any(kind.__module__.split(".")[0] == "networkx" for kind in type(source).__mro__)


def from_networkx(graph: Any, owner: str) -> Pairs:
    """Edges (u, v) as query u, key v; both ways when undirected."""
    allow_edges(graph.number_of_edges() * (1 if graph.is_directed() else 2), owner)
    for node in graph:
        if isinstance(node, bool) or not isinstance(node, int | np.integer) or node < 0:
            raise PatternValueError(
                f"{owner}: node {node!r} is not a position; number the nodes 0 .. n - 1, for "
                "instance with networkx.convert_node_labels_to_integers"
            )
    pairs = np.array([(u, v) for u, v in graph.edges()], dtype=np.int64).reshape(-1, 2)
    if not graph.is_directed():
        pairs = np.concatenate([pairs, pairs[:, ::-1]])
    return pairs[:, 0], pairs[:, 1]
