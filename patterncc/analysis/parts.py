"""Patterns rewritten leaf by leaf: what is left of one when some primitives are taken out."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce

from patterncc.pattern import (
    Complement,
    Difference,
    Intersection,
    Pattern,
    Primitive,
    Transpose,
    Union,
)
from patterncc.primitives import Convolution, Full, Recurrent

Rewrite = Callable[[Primitive, bool], Pattern | None]


def rewritten(p: Pattern, leaf: Rewrite, positive: bool = True) -> Pattern | None:
    """A pattern with every primitive replaced by ``leaf(primitive, positive)``, None for no edges.

    `positive` says whether more edges of the primitive can only bring more edges of the whole; it
    is False under ``~`` and on the right of ``-``, and True again where two of them meet.
    """
    match p:
        case Union(parts):
            found = [rewritten(q, leaf, positive) for q in parts]
            kept = [q for q in found if q is not None]
            return reduce(operator.or_, kept) if kept else None
        case Intersection(parts):
            found = [rewritten(q, leaf, positive) for q in parts]
            kept = [q for q in found if q is not None]
            return reduce(operator.and_, kept) if len(kept) == len(found) else None
        case Difference(left, right):
            first, less = rewritten(left, leaf, positive), rewritten(right, leaf, not positive)
            return first if first is None or less is None else first - less
        case Complement(of):
            inner = rewritten(of, leaf, not positive)
            return Full() if inner is None else ~inner
        case Transpose(of):
            inner = rewritten(of, leaf, positive)
            return None if inner is None else inner.T
    assert isinstance(p, Primitive)
    return leaf(p, positive)


def attention_part(p: Pattern) -> Pattern | None:
    """The edges that attention makes: the pattern without its recurrences and convolutions, None
    where nothing else makes edges.

    >>> from patterncc import causal, documents, recurrent, window
    >>> attention_part(causal() & window(7) | recurrent())
    causal() & window(7)
    >>> attention_part(recurrent() & documents([5, 3])) is None
    True
    """
    return rewritten(p, lambda leaf, positive: None if positive and is_carrier(leaf) else leaf)


def is_carrier(leaf: Primitive) -> bool:
    """A layer that carries along the sequence without attention."""
    return isinstance(leaf, Recurrent | Convolution)
