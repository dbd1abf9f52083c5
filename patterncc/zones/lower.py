"""Lowering: from a pattern and sizes to the exact zones of its edges.

The tree is walked once.  A part of an intersection that is one zone (causal, a window, a sink)
narrows the region in which the other parts are lowered, so what it would cut away is never made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc import primitives as leaf
from patterncc.errors import PatternValueError, suggest
from patterncc.pattern import (
    Complement,
    Difference,
    Intersection,
    Pattern,
    Primitive,
    Transpose,
    Union,
    check_int,
    name_of,
)
from patterncc.zones import (
    algebra,
    choice,
    expander,
    graphs,
    grids,
    labels,
    networks,
    primitives,
    random,
    spans,
    sweep,
)
from patterncc.zones.algebra import MAX_ZONES
from patterncc.zones.site import Region, Site
from patterncc.zones.zoneset import Frame, ZoneSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Rule = Callable[[Any, Site], I64]

RULES: dict[type[Primitive], Rule] = {
    leaf.Full: primitives.full,
    leaf.Causal: primitives.causal,
    leaf.Window: primitives.window,
    leaf.Dilated: primitives.dilated,
    leaf.Strided: primitives.strided,
    leaf.Summary: primitives.summary,
    leaf.Chunked: primitives.chunked,
    leaf.GlobalTokens: primitives.global_tokens,
    leaf.Sink: primitives.sink,
    leaf.Prefix: primitives.prefix,
    leaf.RandomBlocks: random.random_blocks,
    leaf.RandomEdges: random.random_edges,
    leaf.Documents: labels.documents,
    leaf.Clusters: labels.clusters,
    leaf.Spans: spans.spans,
    leaf.Boxes: spans.boxes,
    leaf.Routing: labels.routing,
    leaf.Topk: choice.topk,
    leaf.LogSparse: primitives.logsparse,
    leaf.Butterfly: networks.butterfly,
    leaf.LongNet: networks.longnet,
    leaf.Expander: expander.expander,
    leaf.Grid: grids.grid,
    leaf.Axial: grids.axial,
    leaf.Tree: networks.tree,
    leaf.Edges: graphs.edges,
    leaf.Recurrent: primitives.causal,
    leaf.Convolution: primitives.convolution,
}
"""How each primitive is lowered."""

_CHEAP = (leaf.Full, leaf.Causal, leaf.Sink, leaf.Prefix, leaf.Recurrent, leaf.Convolution)


def lower(
    pattern: Pattern,
    n: int,
    n_k: int | None = None,
    q_offset: int = 0,
    k_offset: int = 0,
    *,
    layer: int = 0,
    head: int = 0,
    max_zones: int = MAX_ZONES,
    **bindings: object,
) -> ZoneSet:
    """The exact edges of a pattern for n queries at q_offset and n_k keys at k_offset.

    Without `n_k` the keys go up to the last query.  `layer` and `head` key random edges and shift
    LongNet's segments; other keywords bind names: ``lower(documents("docs"), n, docs=[5, 3])``,
    and ``routing=labels`` and ``topk=indices`` for what a model chooses while it runs.

    >>> from patterncc import causal, window, sink
    >>> z = lower(causal() & (window(2) | sink(1)), 6)
    >>> z.count(), z.dense().astype(int)[5].tolist()
    (18, [1, 0, 0, 1, 1, 1])

    Raises PatternValueError for sizes, labels and files that do not fit, and SizeError before an
    operation would make more than `max_zones` zones.
    """
    if not isinstance(pattern, Pattern):
        raise PatternValueError(f"lower: {pattern!r} is not a pattern")
    frame = Frame.of(n, n_k, q_offset, k_offset)
    region = Region(*frame.box).meet(Region(*frame.box))
    site = Site(
        frame,
        region,
        check_int("lower", "layer", layer, 0),
        check_int("lower", "head", head, 0),
        check_int("lower", "max_zones", max_zones, 0),
        bindings,
    )
    return ZoneSet(frame, _zones(pattern, site))


def leaves(pattern: Pattern) -> Iterator[Primitive]:
    """The primitives of a pattern, from left to right.

    >>> from patterncc import causal, window, sink
    >>> [str(p) for p in leaves(causal() & (window(3) | sink(1).T))]
    ['causal()', 'window(3)', 'sink(1)']
    """
    match pattern:
        case Union(parts) | Intersection(parts):
            for part in parts:
                yield from leaves(part)
        case Difference(left, right):
            yield from leaves(left)
            yield from leaves(right)
        case Complement(of) | Transpose(of):
            yield from leaves(of)
        case Primitive():
            yield pattern


def names_in(patterns: Iterable[Pattern]) -> set[str]:
    """The names that data can be bound to.

    >>> from patterncc import causal, documents, topk
    >>> sorted(names_in([causal() & documents("docs"), topk(8)]))
    ['docs', 'topk']
    """
    found = set()
    for pattern in set(patterns):
        for p in leaves(pattern):
            match p:
                case leaf.Documents(str(name)):
                    found.add(name)
                case leaf.Clusters(first, second) | leaf.Spans(first, second):
                    found |= {name for name in (first, second) if isinstance(name, str)}
                case leaf.Routing() | leaf.Topk():
                    found.add(name_of(type(p)))
    return found


def check_bindings(
    owner: str,
    patterns: Iterable[Pattern],
    bindings: Iterable[str],
    caller: Callable[..., object] | None = None,
) -> None:
    """Refuse a keyword that is neither an argument nor a name in the patterns: a slip of the pen
    would bind a name that nothing reads.  caller: whose arguments may be what was meant."""
    names = names_in(patterns)
    for given in bindings:
        if given not in names:
            near = suggest(given, names.union(signature(caller).parameters if caller else ()))
            if not near.startswith("did"):
                near = suggest(given, names) if names else "nothing in them takes data"
            raise PatternValueError(
                f"{owner}: '{given}' is no argument, and no name in the patterns; {near}"
            )


def attention_only(pattern: Pattern) -> Pattern:
    """The pattern itself, or a PatternValueError when a part of it is no attention.

    `recurrent` and `convolution` say how far a layer carries; there is no mask to compile for them.
    """
    for p in leaves(pattern):
        if isinstance(p, leaf.Recurrent | leaf.Convolution):
            raise PatternValueError(
                f"{p} is a layer that is not attention, for analysis only; "
                "compile the attention layers, or write causal() or window(...)"
            )
    return pattern


def keyed(pattern: Pattern, bindings: Mapping[str, object] | None = None) -> tuple[bool, bool]:
    """Whether the edges differ between layers, and between heads of a layer.

    What a model chooses while it runs may differ, unless the bindings hold one choice for all.

    >>> from patterncc import causal, longnet, random_blocks, routing
    >>> keyed(causal()), keyed(longnet([4], [2])), keyed(causal() & random_blocks(3))
    ((False, False), (False, True), (True, True))
    >>> keyed(routing(2)), keyed(routing(2), {"routing": [0, 1, 1, 0]})
    ((True, True), (False, False))
    """
    parts = list(leaves(pattern))
    drawn = any(isinstance(p, leaf.RandomBlocks | leaf.RandomEdges | leaf.Expander) for p in parts)
    shifted = any(isinstance(p, leaf.LongNet) for p in parts)
    chosen = [choice.varies(p, bindings) for p in parts]
    by_layer, by_head = (any(each[k] for each in chosen) for k in (0, 1))
    return drawn or by_layer, drawn or shifted or by_head


def _zones(p: Pattern, at: Site) -> I64:
    """The tight table of a pattern's edges in the site's region."""
    if at.region.empty:
        return at.none()
    match p:
        case Union(parts):
            return _union(parts, at)
        case Intersection(parts):
            return _intersection(parts, at)
        case Difference(left, right):
            return _difference(_zones(left, at), right, at)
        case Complement(of):
            return _difference(at.clip(at.rows()), of, at)
        case Transpose(leaf.Edges() as of):
            return graphs.edges(of, at, turned=True)
        case Transpose(of):
            return algebra.transpose(_zones(of, at.T))
        case leaf.RandomEdges():
            return random.random_edges(p, at)
        case leaf.Edges():
            return graphs.edges(p, at)
        case Primitive():
            return at.clip(_rule(p)(p, at))
        case _:
            raise PatternValueError(f"lower: {type(p).__name__} is not a node that can be lowered")


def _union(parts: tuple[Pattern, ...], at: Site) -> I64:
    """The parts' zones in order.  Random edges, as many zones as edges, are written behind what
    comes before them instead of being copied there."""
    tables: list[I64] = []
    given = 0  # zones of explicit graphs, which have a limit of their own
    for part in parts:
        if isinstance(part, leaf.RandomEdges):
            tables = [random.random_edges(part, at, tables)]
        else:
            tables.append(_zones(part, at))
        given += len(tables[-1]) if isinstance(part, leaf.Edges) else 0
    at.allow(sum(map(len, tables)) - given, "a union")
    return tables[0] if len(tables) == 1 else np.concatenate(tables)


def _intersection(parts: tuple[Pattern, ...], at: Site) -> I64:
    """One-zone parts narrow the region; the others are lowered in it and met, shortest first."""
    rest = []
    for part in parts:
        if _one_zone(part):
            table = _zones(part, at)
            if not len(table):
                return table
            at = at.within(Region(*table[0].tolist()))
        else:
            rest.append(part)
    if not rest:
        return at.clip(at.rows())
    tables = sorted((_zones(part, at) for part in rest), key=len)
    met = tables[0]
    for table in tables[1:]:
        met = algebra.intersect(met, table)
        at.allow(len(met), "an intersection")
    return met


def _difference(table: I64, right: Pattern, at: Site) -> I64:
    """What a table has and a pattern has not; the pattern is lowered where the table is."""
    if not len(table):
        return table
    low, high = table.min(axis=0).tolist(), table.max(axis=0).tolist()
    hull = Region(*(high[k] if k % 2 else low[k] for k in range(6)))
    left = sweep.difference(table, _zones(right, at.within(hull)))
    at.allow(len(left), "a difference")
    return left


def _one_zone(p: Pattern) -> bool:
    """A primitive that always is a single zone."""
    match p:
        case leaf.Window(block=block):
            return block == 1
        case Transpose(of):
            return _one_zone(of)
        case _:
            return isinstance(p, _CHEAP)


def _rule(p: Primitive) -> Rule:
    if type(p) not in RULES:
        raise PatternValueError(f"lower: no rule for {name_of(type(p))}")
    return RULES[type(p)]
