"""Patterns as networkx graphs and back: one directed edge a (query, key) pair, with its rules.

    networkx edge (i, j)  <=>  query i reads key j; information flows from j to i

so `G.successors(i)` are the keys that i reads, `G.predecessors(j)` the queries that read j, and a
path from i to j says that i can depend on j.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.rules import made, spans
from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import Edges
from patterncc.stack import Heads, Layer, Stack, check_stack, patterns_of
from patterncc.zones import Frame, ZoneSet, algebra, graphs
from patterncc.zones.lower import keyed, lower

if TYPE_CHECKING:
    from networkx import DiGraph
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

MOST = 2**30  # the largest max_edges: codes of pairs stay within int64
_SHOWN = 240  # characters of a rule that an edge carries; labels of all tokens would be megabytes


def to_networkx(
    stack: Stack | Pattern | Heads,
    n: int,
    *,
    layer: int | None = 0,
    head: int | None = None,
    max_edges: int = 1_000_000,
    names: Mapping[str, Pattern] | None = None,
    **bindings: Any,
) -> DiGraph[int]:
    """A layer as a networkx.DiGraph in which **edge (i, j) means that query i reads key j**.

    The arrow points from the reader to what it reads, as in a mask A[i, j]; information flows
    against it (`G.reverse()` turns it around).  All positions 0 .. memory + n - 1 are nodes, those
    without an edge too.  A token that reads itself has the loop (i, i).

    layer: which layer of a stack, counted cyclically (of one pattern it keys random edges); None
    takes the edges of all layers.
    head: which head; None takes the edges of all heads.
    max_edges: edges, and nodes, above which nothing is built; an edge takes about 500 bytes.
    names: named edge sets (a pattern file's `edges`) to call rules by.
    bindings: names in the pattern, as in `lower`.

    Every edge has the attribute `rule`: the rules that make it, as `explain` words them.  Where
    several heads are taken it has `heads`, where several layers are, `layers`: such as "0-2, 5".
    All are texts, which every writer of networkx takes.

    >>> from patterncc import causal, sink, window
    >>> G = to_networkx(causal() & (window(2) | sink(1)), 6)
    >>> sorted(G.successors(5)), G.edges[5, 0]["rule"]
    ([0, 3, 4, 5], 'sink(1)')

    Raises SizeError, before anything is built, for more edges or nodes than `max_edges`;
    PatternValueError for a length, layer or head that cannot be.
    """
    check_stack("to_networkx", stack)
    n = check_int("to_networkx", "n", n, 0)
    max_edges = check_int("to_networkx", "max_edges", max_edges, 0, MOST)
    memory = stack.memory if isinstance(stack, Stack) else 0
    frame = Frame(n, memory + n, memory)
    _allow(frame.n_k, "nodes", max_edges)
    taken = _taken(stack, layer)
    parts = list(_parts(taken, head, bindings))
    edges = ZoneSet(frame, np.concatenate([p.zones(frame, bindings).table for p in parts]))
    _allow(edges.count(), "edges", max_edges)
    marks = [
        _Mark(p, _short(rule), _codes(p.zones(frame, bindings, by)))
        for p in parts
        for rule, by in made(p.pattern, names or {}).items()
    ]
    said = _Said(marks, {i: len(_heads(each, i, head)) for i, each in taken})
    return _graph(stack, frame, _codes(edges), said)


def from_networkx(graph: Any) -> Pattern:
    """The pattern whose edges are a graph's: edge (i, j) means that query i reads key j.

    Nodes are positions, integers from 0.  An undirected edge reads both ways, parallel edges count
    once, attributes (weights too) are not looked at.  The edges are copied: the graph may change
    afterwards.  A pattern has no length; lower it at n = the number of nodes.

    >>> import networkx
    >>> from patterncc import lower
    >>> lower(from_networkx(networkx.path_graph(3)), 3).dense().astype(int).tolist()
    [[0, 1, 0], [1, 0, 1], [0, 1, 0]]

    Raises PatternError for what is no networkx graph, PatternValueError for nodes that are not
    positions, SizeError for more than 2**25 edges.
    """
    if not graphs.is_networkx(graph):
        raise PatternError(
            f"from_networkx: give a networkx graph, not a {type(graph).__name__}; "
            "pc.edges(...) takes files and arrays, pc.from_scipy(...) sparse matrices"
        )
    return Edges(np.stack(graphs.from_networkx(graph, "from_networkx"), axis=1))


@dataclass(frozen=True)
class _Part:
    """A pattern, and the layers and heads that share its very edges."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    pattern: Pattern

    def zones(
        self, frame: Frame, bindings: Mapping[str, Any], some: Pattern | None = None
    ) -> ZoneSet:
        """The exact edges, or those of a rule of the pattern."""
        p = self.pattern if some is None else some
        at = {"layer": self.layers[0], "head": self.heads[0]}
        return lower(p, frame.n, frame.n_k, frame.q_offset, **at, **bindings)


def _taken(stack: Stack | Layer, layer: int | None) -> list[tuple[int, Layer]]:
    """The layers that are asked for, each with its index."""
    index = 0 if layer is None else check_int("to_networkx", "layer", layer, 0)
    if not isinstance(stack, Stack):
        return [(index, stack)]
    if layer is None:
        return list(enumerate(stack.layers))
    return [(index % len(stack), stack.layer(index))]


def _parts(
    taken: Sequence[tuple[int, Layer]], head: int | None, bindings: Mapping[str, Any]
) -> Iterator[_Part]:
    """Patterns with the layers and heads that share their edges; drawn edges are not shared."""
    same: dict[object, tuple[Layer, list[int]]] = {}
    for index, layer in taken:
        drawn = any(keyed(p, bindings)[0] for p in patterns_of(layer))
        same.setdefault((layer, index if drawn else None), (layer, []))[1].append(index)
    for layer, layers in same.values():
        heads: dict[object, tuple[Pattern, list[int]]] = {}
        for h, p in _heads(layer, layers[0], head):
            heads.setdefault((p, h if keyed(p, bindings)[1] else None), (p, []))[1].append(h)
        for p, alike in heads.values():
            yield _Part(tuple(layers), tuple(alike), p)


def _heads(layer: Layer, index: int, head: int | None) -> list[tuple[int, Pattern]]:
    """The heads that are asked for; a layer of one pattern has one that stands for all."""
    patterns = patterns_of(layer)
    if head is None:
        return list(enumerate(patterns))
    head = check_int("to_networkx", "head", head, 0)
    if isinstance(layer, Pattern):
        return [(0, layer)]
    if head >= len(patterns):
        raise PatternValueError(
            f"to_networkx: head {head} of layer {index}, which has heads 0 .. {len(patterns) - 1}"
        )
    return [(head, patterns[head])]


def _allow(count: int, what: str, most: int) -> None:
    if count > most:
        raise SizeError(
            f"to_networkx: {count:,} {what}, more than max_edges={most:,}; take a shorter n, one "
            "layer or head, or raise max_edges (networkx takes about 500 bytes an edge)"
        )


def _codes(zones: ZoneSet) -> I64:
    """Every edge once, in order, as query * keys + key."""
    i0, i1, j0, j1, d0, d1 = zones.disjoint().table.T
    zone, i = algebra.expand(i0, i1)
    row, j = algebra.expand(np.maximum(j0[zone], i + d0[zone]), np.minimum(j1[zone], i + d1[zone]))
    return np.sort(i[row] * zones.frame.n_k + j)


@dataclass(frozen=True, eq=False)
class _Mark:
    """One rule in some layers and heads, and the codes of the edges that it makes."""

    part: _Part
    rule: str
    codes: I64


@dataclass(frozen=True, eq=False)
class _Said:
    """What edges say of themselves: all marks, and how many heads are taken of each layer."""

    marks: list[_Mark]
    widths: dict[int, int]

    def of(self, marks: tuple[int, ...]) -> dict[str, str]:
        """The attributes of an edge with these marks."""
        layers: dict[int, dict[str, set[int]]] = {}
        for mark in (self.marks[k] for k in marks):
            for layer in mark.part.layers:
                layers.setdefault(layer, {}).setdefault(mark.rule, set()).update(mark.part.heads)
        rules: dict[str, list[int]] = {}
        for layer in sorted(layers):
            for rule, heads in layers[layer].items():
                all_heads = len(heads) == self.widths[layer]
                text = rule if all_heads else f"{rule} (head {spans(sorted(heads))})"
                rules.setdefault(text, []).append(layer)
        texts = [
            rule if len(found) == len(self.widths) else f"{rule} (layer {spans(found)})"
            for rule, found in rules.items()
        ]
        said = {"rule": "; ".join(texts)}
        if len(self.widths) > 1:
            said["layers"] = spans(sorted(layers))
        elif max(self.widths.values()) > 1:
            ((_, only),) = layers.items()
            said["heads"] = spans(sorted({h for heads in only.values() for h in heads}))
        return said


def _graph(stack: Stack | Layer, frame: Frame, codes: I64, said: _Said) -> DiGraph[int]:
    """The graph; edges with the same marks are told apart once."""
    import networkx  # here, since it takes longer to load than most patterns to lower

    groups, marks = _grouped(codes, said.marks)
    used = set(np.flatnonzero(np.bincount(groups)).tolist())
    attributes = [said.of(group) if k in used else {} for k, group in enumerate(marks)]
    graph: DiGraph[int] = networkx.DiGraph(
        pattern=_short(str(stack)), n=frame.n, memory=frame.q_offset
    )
    graph.add_nodes_from(range(frame.n_k))
    i, j = np.divmod(codes, max(1, frame.n_k))
    graph.add_edges_from(
        (query, key, attributes[group])
        for query, key, group in zip(i.tolist(), j.tolist(), groups.tolist(), strict=True)
    )
    return graph


def _grouped(codes: I64, marks: list[_Mark]) -> tuple[I64, list[tuple[int, ...]]]:
    """For each edge the group it is in, and the marks of each group."""
    group = np.zeros(len(codes), dtype=np.int64)
    members: list[tuple[int, ...]] = [()]
    for k, mark in enumerate(marks):
        at = np.searchsorted(codes, mark.codes)
        old = group[at]
        met = np.flatnonzero(np.bincount(old, minlength=len(members)))
        moved = np.zeros(len(members), dtype=np.int64)
        moved[met] = len(members) + np.arange(len(met))
        members += [(*members[g], k) for g in met.tolist()]
        group[at] = moved[old]
    return group, members


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
