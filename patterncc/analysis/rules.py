"""Which rule of a pattern makes an edge: the named edge set or the primitive that holds it."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

from patterncc.analysis.topology import Topology
from patterncc.pattern import (
    Complement,
    Difference,
    Intersection,
    Pattern,
    Transpose,
    Union,
)
from patterncc.primitives import (
    Boxes,
    Causal,
    Chunked,
    Clusters,
    Documents,
    Expander,
    Full,
    RandomBlocks,
    RandomEdges,
    Routing,
    Spans,
)
from patterncc.stack import patterns_of
from patterncc.zones import ZoneSet
from patterncc.zones.lower import lower

_LIMITS = (
    Causal,
    Full,
    Documents,
    Chunked,
)  # in an intersection they allow an edge, others make it

_WHOLE = (RandomBlocks, RandomEdges, Expander, Documents, Clusters, Routing, Spans, Boxes)


class Rules:
    """Answers "which rules make this edge" for the layers of one lowered stack.

    `names` are named edge sets; parts of a pattern that equal one are called by its name.
    """

    def __init__(
        self, t: Topology, names: Mapping[str, Pattern] | None, bindings: Mapping[str, Any]
    ) -> None:
        self._t = t
        self._names = dict(names or {})
        self._bindings = dict(bindings)
        self._lowered: dict[tuple[Pattern, int, int], ZoneSet] = {}

    def of(self, layer: int, query: int, key: int) -> tuple[str, ...]:
        """The rules by which `query` reads `key` in a layer; with heads, which of them; () if it
        does not."""
        index = layer % len(self._t.levels)
        patterns = patterns_of(self._t.stack.layer(layer))
        found: dict[str, list[int]] = {}
        for head, pattern in enumerate(patterns):
            for rule, edges in made(pattern, self._names).items():
                if self._holds(edges, index, head, query, key):
                    found.setdefault(rule, []).append(head)
        return tuple(
            rule if len(heads) == len(patterns) else f"{rule} (head {spans(heads)})"
            for rule, heads in found.items()
        )

    def _holds(self, pattern: Pattern, layer: int, head: int, i: int, j: int) -> bool:
        """Whether a pattern has the edge: asked of its parts, down to the primitives."""
        match pattern:
            case Union(parts):
                return any(self._holds(p, layer, head, i, j) for p in parts)
            case Intersection(parts):
                return all(self._holds(p, layer, head, i, j) for p in parts)
            case Difference(left, right):
                inside = self._holds(left, layer, head, i, j)
                return inside and not self._holds(right, layer, head, i, j)
            case Complement(of):
                return not self._holds(of, layer, head, i, j)
            case Transpose(of):
                return self._holds(of, layer, head, j, i)
        return self._leaf_holds(pattern, layer, head, i, j)

    def _leaf_holds(self, leaf: Pattern, layer: int, head: int, i: int, j: int) -> bool:
        """The same of a primitive: by its one pair, or where that would not know the number of
        keys that it draws from or is labelled by, over the whole frame."""
        size = self._t.frame.n
        if not isinstance(leaf, _WHOLE):
            pair = lower(leaf, 1, 1, i, j, layer=layer, head=head, **self._bindings)
            return bool(len(pair))
        key = (leaf, layer, head)
        if key not in self._lowered:
            self._lowered[key] = lower(leaf, size, size, layer=layer, head=head, **self._bindings)
        i0, i1, j0, j1, d0, d1 = self._lowered[key].table.T
        d = j - i
        inside = (i0 <= i) & (i < i1) & (j0 <= j) & (j < j1) & (d0 <= d) & (d < d1)
        return bool(inside.any())


def made(p: Pattern, names: Mapping[str, Pattern]) -> dict[str, Pattern]:
    """The rules of a pattern, each with the edges that it makes; together they are the pattern's.

    A rule is a primitive, or a named part with its name before it.  In an intersection, parts that
    only bound what may be read (causal, documents) make no edge where others stand beside them.

    >>> from patterncc import causal, sink, window
    >>> made(causal() & (window(3) | sink(1)), {"near": window(3)})
    {'near: window(3)': causal() & window(3), 'sink(1)': causal() & sink(1)}
    """
    for name, named in names.items():
        if named == p:
            return {f"{name}: {p}": p}
    match p:
        case Union(parts):
            return _joined(_made_by_union(parts, names))
        case Intersection(parts):
            making = [k for k, q in enumerate(parts) if not isinstance(q, _LIMITS)]
            found = []
            for k in making or range(len(parts)):
                for rule, edges in made(parts[k], names).items():
                    rest = (*parts[:k], edges, *parts[k + 1 :])
                    found.append((rule, reduce(operator.and_, rest)))
            return _joined(found)
        case Difference(left, right):
            return {rule: edges - right for rule, edges in made(left, names).items()}
        case Transpose(of):
            return {f"{rule}, transposed": edges.T for rule, edges in made(of, names).items()}
    return {str(p): p}


def _made_by_union(
    parts: tuple[Pattern, ...], names: Mapping[str, Pattern]
) -> list[tuple[str, Pattern]]:
    """A union is flattened when it is built: named unions inside it are found again."""
    named_alone = [q for q in parts if q in names.values()]
    left = [q for q in parts if q not in named_alone]
    found = [item for q in named_alone for item in made(q, names).items()]
    for name, named in names.items():
        if isinstance(named, Union) and all(q in left for q in named.parts):
            left = [q for q in left if q not in named.parts]
            found.append((f"{name}: {named}", named))
    return found + [item for q in left for item in made(q, names).items()]


def _joined(found: Iterable[tuple[str, Pattern]]) -> dict[str, Pattern]:
    """Rules of the same text as one."""
    rules: dict[str, Pattern] = {}
    for rule, edges in found:
        rules[rule] = rules[rule] | edges if rule in rules else edges
    return rules


def spans(heads: list[int]) -> str:
    """Head numbers, runs shortened.

    >>> spans([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for head in heads:
        if runs and runs[-1][1] == head - 1:
            runs[-1][1] = head
        else:
            runs.append([head, head])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
