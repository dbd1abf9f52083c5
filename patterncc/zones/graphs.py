"""Explicit graphs as patterns: edges from files and Python objects, and the zones they make."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternValueError, PatternWarning
from patterncc.primitives import Edges
from patterncc.zones import graph_files
from patterncc.zones.algebra import MAX_ZONES
from patterncc.zones.graph_files import allow_edges, with_weights
from patterncc.zones.merge import Runs, row_runs, zones_of_runs
from patterncc.zones.site import FAR, Region, Site

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.zones.zoneset import Frame

    I64 = NDArray[np.int64]
    Pairs = tuple[NDArray[Any], NDArray[Any]]


def edges(p: Edges, at: Site, turned: bool = False) -> I64:
    """Tight zones of the graph's edges in the region: consecutive edges share zones.  With `turned`
    those of the graph whose edges point the other way.

    A graph is never more zones than edges, and those are there already: by default its own limit on
    edges holds, not the one on zones that an operation makes.

    Raises PatternValueError for a node below 0, or past the last position of an unsliced frame.
    Warns (PatternWarning) of edges that are given more than once; they are kept once.
    """
    owner = str(p)
    row, col = _pairs(p.source, owner, p.weights)
    _check_nodes(owner, row, col, at)
    if turned:
        row, col = col, row
    runs = row_runs(*_within(*_signed(row, col), at.region))
    del row, col
    if runs.repeats:
        _say_repeats(owner, runs)
    table = zones_of_runs(runs)
    if at.max_zones != MAX_ZONES:
        at.allow(len(table), owner)
    return table


def _check_nodes(owner: str, row: NDArray[Any], col: NDArray[Any], at: Site) -> None:
    """Every node is a position; a slice (an offset above 0) may leave some of the graph out."""
    frame = at.frame
    whole = frame.q_offset == frame.k_offset == 0
    end = at.positions if whole else FAR
    if all(not len(x) or (int(x.min()) >= 0 and int(x.max()) < end) for x in (row, col)):
        return
    wrong = (row < 0) | (col < 0) | (row >= end) | (col >= end)
    where = int(np.argmax(wrong))
    ends = (int(row[where]), int(col[where]))
    node = next(x for x in ends if not 0 <= x < end)
    far = node >= FAR  # no length would reach it
    longer = "" if node < 0 or far else f", or lower with {_longer(row, col, frame)}"
    raise PatternValueError(
        f"{owner}: edge {where} is {ends}, and node {node} is not one of the positions "
        f"0 .. {end - 1}; number the nodes from 0{longer} ({np.count_nonzero(wrong)} of {len(row)} "
        "edges have such a node)"
    )


def _longer(row: NDArray[Any], col: NDArray[Any], frame: Frame) -> str:
    """The lengths that would hold every node; n alone where the two sides are as long."""
    query, key = (int(x[x < FAR].max(initial=-1)) for x in (row, col))
    if query >= frame.n or frame.n == frame.n_k:
        return f"n > {max(query, key) if key >= frame.n_k else query}"
    return f"n_k > {key}"


def _signed(row: NDArray[Any], col: NDArray[Any]) -> Pairs:
    """The same nodes in integers that subtract; uint64 has no room for a negative difference."""
    return tuple(x.astype(np.int64) if x.dtype.kind == "u" else x for x in (row, col))  # type: ignore[return-value]


def _within(row: NDArray[Any], col: NDArray[Any], r: Region) -> Pairs:
    """The edges inside a region; those of a graph that lies inside as they stand."""
    if not len(row):
        return row, col
    inside = np.ones(len(row), dtype=bool)
    for x, first, last in ((row, r.i0, r.i1), (col, r.j0, r.j1)):
        if int(x.min()) < first or int(x.max()) >= last:
            inside &= (x >= first) & (x < last)
    if r.d0 > r.j0 - r.i1 + 1 or r.d1 < r.j1 - r.i0:
        offset = np.subtract(col, row, dtype=np.int64)
        inside &= (offset >= r.d0) & (offset < r.d1)
    return (row, col) if inside.all() else (row[inside], col[inside])


def _say_repeats(owner: str, runs: Runs) -> None:
    kept = int((runs.end - runs.start).sum())
    selves = int(np.count_nonzero((runs.start <= runs.row) & (runs.row < runs.end)))
    also = f"; {selves} are self edges, kept as any other" if selves else ""
    warnings.warn(
        f"{owner}: {runs.repeats} of {kept + runs.repeats} edges are given more than once; each is "
        f"kept once, which leaves {kept}{also}",
        PatternWarning,
        stacklevel=2,
    )


def _pairs(source: object, owner: str, weights: str | None) -> Pairs:
    """Query and key of every edge."""
    if isinstance(source, str | os.PathLike):
        return _pairs(graph_files.read(os.fspath(source), owner, weights), owner, weights)
    if is_networkx(source):
        return from_networkx(source, owner, weights or "refuse")
    if is_scipy(source):
        return from_scipy(source, owner, weights)
    return _from_array(source, owner, weights)


def _from_array(source: object, owner: str, weights: str | None) -> Pairs:
    """A bool [queries, keys] matrix, an integer [edges, 2] array, or [edges, 3] with weights."""
    if hasattr(source, "detach"):  # a tensor of torch, whose values may need a gradient
        source = source.detach()
    try:
        array = np.asarray(source)
    except ValueError:
        raise PatternValueError(f"{owner}: the rows of pairs differ in length") from None
    except (TypeError, RuntimeError) as error:
        said = str(error).rstrip(".")
        raise PatternValueError(
            f"{owner}: this {type(source).__name__} has no values to look at: {said}; give the "
            "edges as an array: of a sparse tensor tensor.coalesce().indices().T, of one on a "
            "device tensor.cpu()"
        ) from None
    if array.dtype == bool and array.ndim == 2:
        allow_edges(int(np.count_nonzero(array)), owner)
        return np.nonzero(array)  # type: ignore[return-value]
    if array.size == 0 and array.ndim in (1, 2):
        array = np.zeros((0, 2), dtype=np.int64)
    if weights and array.dtype.kind in "iuf" and array.ndim == 2 and array.shape[1] == 3:
        allow_edges(len(array), owner)
        return with_weights(array[:, 0], array[:, 1], array[:, 2], owner, weights)
    if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != 2:
        raise PatternValueError(
            f"{owner}: a bool [n, n] or integer [edges, 2] array is needed, not "
            f"{array.dtype} {list(array.shape)}; {_array_remedy(array)}"
        )
    allow_edges(len(array), owner)
    return array[:, 0], array[:, 1]


def _array_remedy(array: NDArray[Any]) -> str:
    if array.dtype.kind in "iu" and array.ndim == 2 and array.shape[0] == 2:
        return "one edge a row is read, so transpose it: edge_index.T"
    return (
        "for a matrix of weights pass (matrix != 0), for a third column of weights "
        'weights="nonzero" or weights="ignore"'
    )


def is_scipy(source: object) -> bool:
    """A scipy.sparse matrix or array, asked without importing scipy."""
    return hasattr(source, "tocoo")


def from_scipy(matrix: Any, owner: str, weights: str | None = None) -> Pairs:
    """Query and key of every entry that is not 0, or with "ignore" of every stored one."""
    if len(matrix.shape) != 2:
        raise PatternValueError(
            f"{owner}: a matrix has queries and keys, this has shape {list(matrix.shape)}"
        )
    allow_edges(int(matrix.nnz) if hasattr(matrix, "nnz") else 0, owner)
    if hasattr(matrix, "check_format"):  # torn index arrays would read past their end
        try:
            matrix.check_format(full_check=True)
        except (ValueError, TypeError, IndexError) as error:
            raise PatternValueError(
                f"{owner}: the sparse matrix is not a sound one: {error}; build it anew"
            ) from None
    coo = matrix.tocoo()
    if weights != "ignore":
        kept = coo.data != 0
        if not kept.all():
            return coo.row[kept], coo.col[kept]
    return coo.row, coo.col


def is_networkx(source: object) -> bool:
    """A graph of networkx, asked without importing it."""
    return any(kind.__module__.split(".")[0] == "networkx" for kind in type(source).__mro__)


def from_networkx(graph: Any, owner: str, weights: str = "ignore") -> Pairs:
    """Edges (u, v) as query u, key v; both ways when undirected, self edges and parallel
    edges once."""
    count = graph.number_of_edges()
    allow_edges(count * (1 if graph.is_directed() else 2), owner)
    for node in graph:
        if (
            isinstance(node, bool)
            or not isinstance(node, int | np.integer)
            or not 0 <= node < 2**62
        ):
            raise PatternValueError(
                f"{owner}: node {node!r} is not a position; number the nodes 0 .. n - 1, for "
                "instance with networkx.convert_node_labels_to_integers"
            )
    flat = (x for u, v, *_ in graph.edges() for x in (u, v))
    row, col = np.fromiter(flat, np.int64, 2 * count).reshape(-1, 2).T
    if weights != "ignore":
        values = [w for *_, w in graph.edges(data="weight", default=1)]
        if weights == "nonzero" or any(w is not True and w != 1 for w in values):
            row, col = with_weights(row, col, np.array(values), owner, weights)
    if not graph.is_directed():
        apart = row != col
        row, col = np.concatenate([row, col[apart]]), np.concatenate([col, row[apart]])
    if graph.is_multigraph():  # parallel edges are no slip there
        row, col = np.unique(np.stack([row, col]), axis=1)
    return row, col
