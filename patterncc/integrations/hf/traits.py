"""What a pattern's text says of its edges: whether they shift, look back only, or need a length.

Each answer is read from the tree alone and errs on the safe side.
"""

from __future__ import annotations

from typing import Any

from patterncc import primitives as leaf
from patterncc.errors import PatternError
from patterncc.pattern import Difference, Intersection, Pattern, Primitive, Union
from patterncc.stack import Layer, patterns_of
from patterncc.zones.lower import leaves, lower

_RELATIVE = leaf.Full, leaf.Causal, leaf.Window, leaf.Dilated, leaf.Strided, leaf.LogSparse

_SEEN = 256  # positions at which edges are looked at


def relative(layer: Layer) -> bool:
    """Whether every edge (i, j) follows from i - j alone, wherever the sequence begins.

    >>> relative(leaf.causal() & leaf.window(7)), relative(leaf.causal() & leaf.sink(1))
    (True, False)
    """
    parts = [x for p in patterns_of(layer) for x in leaves(p)]
    return all(isinstance(x, _RELATIVE) and getattr(x, "block", 1) == 1 for x in parts)


def only_past(layer: Layer) -> bool:
    """Whether no query reads a later key, as far as the tree tells.

    >>> only_past(leaf.causal() & leaf.full()), only_past(leaf.window(3, 3))
    (True, False)
    """
    return all(map(_only_past, patterns_of(layer)))


def reads_ahead(p: Pattern, **bindings: Any) -> bool:
    """Whether some query reads a later key, seen in the edges of a few hundred positions.

    A pattern whose edges cannot be had at that length is taken at its word.

    >>> reads_ahead(leaf.window(3, 3)), reads_ahead(leaf.boxes([4, 8, 0, 4, -8, 8], 8, 8))
    (True, False)
    """
    if _only_past(p):
        return False
    for n in (_SEEN, *(x.n for x in leaves(p) if isinstance(x, leaf.Boxes) and x.n)):
        try:
            table = lower(p, n, **bindings).table
        except PatternError:
            continue
        return bool(len(table)) and int(table[:, 5].max()) > 1
    return False


def _only_past(p: Pattern) -> bool:
    match p:
        case Union(parts):
            return all(map(_only_past, parts))
        case Intersection(parts):
            return any(map(_only_past, parts))
        case Difference(left, _):
            return _only_past(left)
        case leaf.Causal() | leaf.LogSparse() | leaf.Tree():
            return True
        case leaf.Window(_, 0, 1) | leaf.Dilated(_, 0):
            return True
        case _:
            return False


def reach_back(layer: Layer) -> int | None:
    """How many positions back the farthest key stands, None where there is no bound.

    >>> reach_back(leaf.causal() & leaf.window(7)), reach_back(leaf.window(7) | leaf.sink(1))
    (7, None)
    """
    reaches = [_reach_back(p) for p in patterns_of(layer)]
    return None if None in reaches else max(r for r in reaches if r is not None)


def _reach_back(p: Pattern) -> int | None:
    match p:
        case Union(parts):
            each = [_reach_back(x) for x in parts]
            return None if None in each else max(r for r in each if r is not None)
        case Intersection(parts):
            return min((r for x in parts if (r := _reach_back(x)) is not None), default=None)
        case Difference(left, _):
            return _reach_back(left)
        case leaf.Window(left, _, block):
            return None if left < 0 else (left + 1) * block - 1
        case leaf.Dilated(left):
            return left
        case leaf.Chunked(size):
            return size - 1
        case _:
            return None


def drawn(layer: Layer) -> Primitive | None:
    """A part whose edges are drawn for one length, so that another length is another graph.

    >>> drawn(leaf.causal() & leaf.random_blocks(2)), drawn(leaf.random_blocks(2, past=True))
    (random_blocks(2), None)
    """
    for p in patterns_of(layer):
        for x in leaves(p):
            if isinstance(x, leaf.Expander) or not getattr(x, "past", True):
                return x
    return None


def most_queries(layer: Layer) -> int | None:
    """How many queries a pattern holds that was computed for a number of them; None for any.

    >>> most_queries(leaf.Boxes((), n=448, n_k=1500) | leaf.sink(1)), most_queries(leaf.sink(1))
    (448, None)
    """
    parts = [x for p in patterns_of(layer) for x in leaves(p)]
    return min((x.n for x in parts if isinstance(x, leaf.Boxes) and x.n is not None), default=None)


def same_for_all_queries(layer: Layer) -> bool:
    """Whether all queries read the same keys, as far as the tree tells.

    >>> same_for_all_queries(leaf.full() & leaf.sink(4)), same_for_all_queries(leaf.window(3))
    (True, False)
    """
    return all(isinstance(x, leaf.Full | leaf.Sink) for p in patterns_of(layer) for x in leaves(p))
