"""Layers that choose their keys by content: what is guaranteed, what is possible, what was traced.

A leaf that chooses while the model runs, `topk(...)` or `routing(...)`, and is not bound stands for
no edge at all, or for every edge.  Which of the two bounds a stack from below depends on where it
stands: more edges of it make fewer of the whole under `~` and on the right of `-`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from patterncc.analysis.curve import Curve, Depth, Figure, fraction
from patterncc.analysis.parts import rewritten
from patterncc.errors import PatternValueError
from patterncc.pattern import Pattern, Primitive
from patterncc.primitives import Full, Sink
from patterncc.stack import Heads, Layer, Stack
from patterncc.zones.choice import Chooser, binding_of, is_bound
from patterncc.zones.lower import leaves

NOTHING = Sink(0)  # the pattern of a layer that has no edge for certain


@dataclass(frozen=True)
class Choice:
    """A leaf that chooses by content, in one head of a layer (0 where all heads share a pattern).

    `bound` says whether the bindings hold what it chose.
    """

    layer: int
    head: int
    leaf: Chooser
    bound: bool


@dataclass(frozen=True, eq=False)
class Content:
    """Reach of a stack whose layers choose by content, all over the same allowed pairs.

    guaranteed is the reach whatever they choose, possible the reach if they could choose
    everything at once; traced, with what they chose bound, lies between the two.
    """

    guaranteed: Curve
    possible: Curve
    traced: Curve | None = None

    def known(self, pairs: int) -> Curve:
        """What is known of the reach: that of the traced choice, else bounds."""
        return self.between(pairs) if self.traced is None else self.traced

    def between(self, pairs: int) -> Curve:
        """What is known whatever is chosen: bounds from the guaranteed to the possible reach.

        `pairs` is how many pairs are allowed.
        """
        low, high = self.guaranteed, self.possible
        full = Depth(
            lo=high.full.lo,
            hi=None if low.full.never else low.full.hi,
            never=high.full.never,
            searched=min(low.full.searched, high.full.searched),
        )
        notes = (*high.notes, *(note for note in low.notes if note not in high.notes))
        ends = zip(low.figures, high.figures, strict=True)
        figures = tuple(_between(a, b, pairs) for a, b in ends)
        return Curve(figures, full, high.witness if full.never else None, notes)

    def to_json(self) -> dict[str, Any]:
        """Each curve as JSON values, `traced` null where nothing is bound."""
        curves = {"guaranteed": self.guaranteed, "possible": self.possible, "traced": self.traced}
        return {name: None if c is None else _curve(c) for name, c in curves.items()}


def choices(stack: Stack, bindings: Mapping[str, object] | None = None) -> tuple[Choice, ...]:
    """Every leaf of a stack that chooses by content, layer by layer.

    >>> from patterncc import causal, heads, routing, topk, window
    >>> s = Stack([window(3), heads([causal() & topk(8), causal() & routing(4)])])
    >>> [(c.layer, c.head, str(c.leaf), c.bound) for c in choices(s, {"routing": [0, 1]})]
    [(1, 0, 'topk(8)', False), (1, 1, 'routing(4)', True)]

    Raises PatternValueError where a binding names a layer or a head that the stack does not have.
    """
    given = {name: value for name, value in (bindings or {}).items() if value is not None}
    for name in ("topk", "routing"):
        if isinstance(value := given.get(name), Mapping):
            _check_places(stack, name, value)
    return tuple(
        Choice(layer, head, leaf, is_bound(leaf, given, layer, head))
        for layer in range(len(stack))
        for head, pattern in enumerate(stack.heads(layer))
        for leaf in dict.fromkeys(leaves(pattern))
        if isinstance(leaf, Chooser)
    )


def unbound(stack: Stack, bindings: Mapping[str, object] | None = None) -> tuple[Choice, ...]:
    """The leaves that choose by content and whose choice no binding tells."""
    return tuple(c for c in choices(stack, bindings) if not c.bound)


def guaranteed(stack: Stack, bindings: Mapping[str, object] | None = None) -> Stack:
    """The stack of edges that every choice has: what is not bound chooses nothing.

    Its edges are a part of those of any choice, and so is its reach.

    >>> from patterncc import causal, topk, window
    >>> print(guaranteed(Stack(causal() & (window(7) | topk(8)))))
    Stack of 1 layers
      0: causal() & window(7)
    """
    return _with_choices(stack, bindings, everything=False)


def possible(stack: Stack, bindings: Mapping[str, object] | None = None) -> Stack:
    """The stack of edges that some choice has: what is not bound chooses everything.

    >>> from patterncc import causal, topk, window
    >>> print(possible(Stack(causal() & topk(8) - window(1))))
    Stack of 1 layers
      0: causal() & full() - window(1)
    """
    return _with_choices(stack, bindings, everything=True)


def refuse_unbound(owner: str, stack: Stack, bindings: Mapping[str, object] | None = None) -> None:
    """Raise a PatternValueError that names the first layer whose choice is not bound."""
    for choice in unbound(stack, bindings):
        name = binding_of(choice.leaf)
        raise PatternValueError(
            f"{owner}: layer {choice.layer} chooses its keys by content ({choice.leaf}), and what "
            f"it chooses is known only while the model runs; bind what a run chose as {name}=..., "
            "or read the guaranteed and the possible reach (report.content)"
        )


def _with_choices(stack: Stack, bindings: Mapping[str, object] | None, everything: bool) -> Stack:
    left = {(c.layer, c.head, c.leaf) for c in unbound(stack, bindings)}
    if not left:
        return stack

    def chosen(p: Pattern, layer: int, head: int) -> Pattern:
        def leaf(x: Primitive, positive: bool) -> Pattern | None:
            if (layer, head, x) not in left:
                return x
            return Full() if positive == everything else None

        found = rewritten(p, leaf)
        return NOTHING if found is None else found

    layers: list[Layer] = []
    for index, each in enumerate(stack.layers):
        if isinstance(each, Heads):
            layers.append(Heads(tuple(chosen(p, index, h) for h, p in enumerate(each.patterns))))
        else:
            layers.append(chosen(each, index, 0))
    return replace(stack, layers=tuple(layers))


def _check_places(stack: Stack, name: str, value: Mapping[Any, object]) -> None:
    """The keys of a binding by layer: layers of the stack, and heads that are told apart there."""
    for place in value:
        layer, head = place if isinstance(place, tuple) and len(place) == 2 else (place, 0)
        whole = all(isinstance(x, int) and not isinstance(x, bool) for x in (layer, head))
        if not whole or not 0 <= layer < len(stack):
            raise PatternValueError(
                f"{name}: {place!r} is no layer of a stack of {len(stack)}; bind by layer as "
                f"{name}={{0: ...}}, or by layer and head as {name}={{(0, 1): ...}}"
            )
        heads = len(stack.heads(layer))
        if not 0 <= head < heads:
            raise PatternValueError(
                f"{name}: layer {layer} has {heads} patterns, and {place!r} names another head; "
                "write the layer as pc.heads([...]), one pattern for each head"
            )


def _between(low: Figure, high: Figure, pairs: int) -> Figure:
    """A count that is at least one figure and at most another; of estimates, at 95%."""
    found = Figure.of(low.lo, high.hi, pairs, high.engine)
    if low.certain and high.certain:
        return found
    badge = f"bounds [{found.share:.4g}, {fraction(found.hi, pairs):.4g}] (95%)"
    return replace(found, badge=badge, certain=False)


def _curve(c: Curve) -> dict[str, Any]:
    return {
        "depth_to_full": {
            **c.full.to_json(),
            "witness": None if c.witness is None else list(c.witness),
        },
        "reach": [{"layer": l, **asdict(figure)} for l, figure in enumerate(c.figures)],
        "notes": list(c.notes),
    }
