"""The exact hop distribution by other people's libraries: how many pairs are how many hops apart.

Each is used as its users would for all pairs: breadth-first searches where it has them, Boolean
products where those are its way.  The graph is built before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.bench.protocol import summary
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import expand

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Way = Callable[[I64], I64]  # sources to pairs at 0, 1, 2, ... hops

PATIENCE = 5.0  # seconds that a repeated run may take


@dataclass(frozen=True)
class Peer:
    """A library: what to install, what is called, how it is made ready for a graph of n nodes and
    edges i -> j, and the share of the sources it is asked for where the whole would take too long.
    """

    package: str
    how: str
    ready: Callable[[int, I64, I64], Way]
    part: int = 1


def measure(zones: ZoneSet, repeats: int) -> dict[str, dict[str, Any]]:
    """What each peer finds and how long it takes; where one is missing, how to install it."""
    n = zones.frame.n
    i, j = edges(zones)
    results: dict[str, dict[str, Any]] = {}
    for peer in PEERS:
        try:
            way = peer.ready(n, i, j)
        except ImportError:
            results[peer.package] = {"missing": f"pip install {peer.package}"}
            continue
        sources = np.arange(0, n, peer.part, dtype=np.int64)
        found, seconds = _timed(way, sources, repeats)
        scale = n / len(sources)
        results[peer.package] = {
            "version": _version(peer.package),
            "how": peer.how,
            "sources": len(sources),
            "hops": np.trim_zeros(found, "b").tolist(),
            "seconds": summary([scale * s for s in seconds]),
        }
    return results


def edges(zones: ZoneSet) -> tuple[I64, I64]:
    """Every edge (i, j) between two different positions, once."""
    table, n = zones.disjoint().table, zones.frame.n_k
    zone, i = expand(table[:, 0], table[:, 1])
    low = np.maximum(table[zone, 2], i + table[zone, 4])
    high = np.minimum(table[zone, 3], i + table[zone, 5])
    at, j = expand(low, high)
    flat = np.sort(i[at] * n + j)
    i, j = flat // n, flat % n
    return i[i != j], j[i != j]


def _timed(way: Way, sources: I64, repeats: int) -> tuple[I64, list[float]]:
    """Runs until `repeats` are done; one is enough where it takes more than PATIENCE."""
    seconds: list[float] = []
    while True:
        start = perf_counter()
        found = way(sources)
        seconds.append(perf_counter() - start)
        if len(seconds) >= repeats or seconds[0] > PATIENCE:
            return found, seconds


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _steps(reached: list[int]) -> I64:
    """Pairs first reached by each step, from how many are reached after it."""
    counts = np.array(reached, dtype=np.int64)
    counts[1:] -= counts[:-1].copy()
    return counts


def _igraph(n: int, i: I64, j: I64) -> Way:
    import igraph

    graph = igraph.Graph(n, np.stack([i, j], axis=1), directed=True)

    def way(sources: I64) -> I64:
        bins = graph.path_length_hist(directed=True).bins()
        return np.array([n, *(int(count) for _, _, count in bins)], dtype=np.int64)

    return way


def _networkit(n: int, i: I64, j: I64) -> Way:
    import networkit

    graph = networkit.GraphFromCoo((i, j), n=n, directed=True)

    def way(sources: I64) -> I64:
        total = np.zeros(n + 1, dtype=np.int64)
        for source in sources.tolist():
            search = networkit.distance.BFS(graph, source, storePaths=False)
            search.run()
            found = np.asarray(search.getDistances(asarray=True))
            near = np.bincount(found[found <= n].astype(np.int64))
            total[: len(near)] += near
        return total

    return way


def _graphblas(n: int, i: I64, j: I64) -> Way:
    import graphblas

    own = np.arange(n)
    step = graphblas.Matrix.from_coo(np.append(i, own), np.append(j, own), True, nrows=n, ncols=n)

    def way(sources: I64) -> I64:
        reach = graphblas.Matrix.from_coo(own, own, True, nrows=n, ncols=n)
        counts = [n]
        while len(counts) < 2 or counts[-1] > counts[-2]:
            reach = step.mxm(reach, graphblas.semiring.any_pair[bool]).new()
            counts.append(int(reach.nvals))
        return _steps(counts)

    return way


def _rustworkx(n: int, i: I64, j: I64) -> Way:
    import rustworkx

    graph = rustworkx.PyDiGraph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from_no_data(list(zip(i.tolist(), j.tolist())))

    def way(sources: I64) -> I64:
        far = rustworkx.digraph_distance_matrix(graph, null_value=-1)
        return np.bincount(far[far >= 0].astype(np.int64))

    return way


def _scipy(n: int, i: I64, j: I64) -> Way:
    from scipy import sparse

    # a row has at most 255 neighbours, or the sums would need a wider type
    kind: Any = np.uint8 if np.bincount(i, minlength=n).max(initial=0) < 255 else np.int32
    ones = np.ones(len(i), dtype=kind)
    step: Any = sparse.csr_array((ones, (i, j)), shape=(n, n)) + sparse.eye_array(n, dtype=kind)

    def way(sources: I64) -> I64:
        reach, counts = np.eye(n, dtype=kind), [n]
        while len(counts) < 2 or counts[-1] > counts[-2]:
            reach = (step @ reach > 0).astype(kind)
            counts.append(int(np.count_nonzero(reach)))
        return _steps(counts)

    return way


def _networkx(n: int, i: I64, j: I64) -> Way:
    import networkx

    graph: networkx.DiGraph[int] = networkx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(zip(i.tolist(), j.tolist()))

    def way(sources: I64) -> I64:
        total = np.zeros(n + 1, dtype=np.int64)
        for source in sources.tolist():
            for far in networkx.single_source_shortest_path_length(graph, source).values():
                total[far] += 1
        return total

    return way


PEERS = (
    Peer("igraph", "Graph.path_length_hist", _igraph),
    Peer("networkit", "distance.BFS from every source", _networkit),
    Peer("python-graphblas", "products with any_pair", _graphblas),
    Peer("rustworkx", "digraph_distance_matrix", _rustworkx),
    Peer("scipy", "products of a CSR matrix with a dense one in bytes", _scipy),
    Peer("networkx", "single_source_shortest_path_length", _networkx, part=32),
)
