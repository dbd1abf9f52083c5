"""Where a pattern stands in a stack: every layer and head that has it, said once.

A `Spot` is one set of edges and all the places that have it; a `Family` is one pattern: a single
spot, or one for each draw where its edges are random.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from patterncc.analysis.topology import Topology
from patterncc.pattern import Pattern
from patterncc.primitives import Convolution, Recurrent
from patterncc.stack import Stack, patterns_of
from patterncc.zones import ZoneSet
from patterncc.zones.lower import keyed, leaves

Heads = tuple[int, ...] | None  # None: every head of the layer
MOST_TEXT = 72  # characters of a pattern that a message quotes


@dataclass(frozen=True, eq=False)
class Spot:
    """One set of edges, the first layer and head that have it, and all that do."""

    zones: ZoneSet
    layer: int
    head: int
    where: tuple[tuple[int, Heads], ...]


@dataclass(frozen=True, eq=False)
class Family:
    """One pattern and its spots; several only where layers or heads draw their own edges.

    `known` says that these are its edges, not all that a choice by content may come to.
    """

    pattern: Pattern
    spots: tuple[Spot, ...]
    known: bool = True

    @property
    def masked(self) -> bool:
        """A mask of known edges: no choice left open, no recurrence and no convolution."""
        other = any(isinstance(p, Recurrent | Convolution) for p in leaves(self.pattern))
        return self.known and not other

    def place(self) -> str:
        """Every layer and head that has the pattern, in words."""
        return place(w for spot in self.spots for w in spot.where)


def families(t: Topology, asked: Stack | None = None) -> tuple[Family, ...]:
    """The patterns of a stack, each with the places where it stands, in order of appearance.

    `asked` is the stack as written, where choices by content stand in t as all they may come to.

    >>> from patterncc import Stack, causal, heads, window
    >>> from patterncc.analysis.topology import topology
    >>> stack = Stack([causal()] * 3 + [heads([causal(), window(2), window(2)])])
    >>> [f"{f.pattern}: {f.place()}" for f in families(topology(stack, 8))]
    ['causal(): layers 0 to 2; layer 3, head 0', 'window(2): layer 3, heads 1 and 2']
    """
    layers_of: dict[int, list[int]] = {}
    for index, level in enumerate(t.levels):
        layers_of.setdefault(id(level), []).append(index)
    found: dict[tuple[Pattern, bool], dict[tuple[int, int], Spot]] = {}
    for layers in layers_of.values():
        level, patterns = t.levels[layers[0]], patterns_of(t.stack.layers[layers[0]])
        written = patterns if asked is None else patterns_of(asked.layers[layers[0]])
        for number, zones in enumerate(level.head_zones):
            heads = tuple(h for h, k in enumerate(level.head_index) if k == number)
            pattern = patterns[heads[0]]
            drawn, by_head = keyed(pattern, t.bindings)
            key = (layers[0] if drawn else 0, heads[0] if by_head else 0)
            if len(level.head_zones) == 1:
                zones = level.zones  # the same edges in fewer zones
            spots = found.setdefault((pattern, pattern == written[heads[0]]), {})
            known = spots.get(key, Spot(zones, layers[0], heads[0], ()))
            named = heads if len(heads) < len(patterns) else None
            where = known.where + tuple((layer, named) for layer in layers)
            spots[key] = replace(known, where=where)
    return tuple(Family(p, tuple(spots.values()), known) for (p, known), spots in found.items())


def place(where: Iterable[tuple[int, Heads]]) -> str:
    """Layers, and heads where not all of a layer have it; equal layers together.

    >>> place([(0, None), (1, None), (4, (2, 3)), (5, (2, 3))])
    'layers 0 and 1; layers 4 and 5, heads 2 and 3'
    """
    heads_of: dict[int, set[int] | None] = {}
    for layer, heads in where:
        known = heads_of.get(layer, set())
        heads_of[layer] = None if heads is None or known is None else known | set(heads)
    layers_of: dict[tuple[int, ...], list[int]] = {}
    for layer, found in heads_of.items():
        layers_of.setdefault(tuple(sorted(found or ())), []).append(layer)
    return "; ".join(
        _named("layer", layers) + (f", {_named('head', heads)}" if heads else "")
        for heads, layers in layers_of.items()
    )


def _named(what: str, numbers: Iterable[int]) -> str:
    listed = list(numbers)
    return f"{what}{'s' if len(listed) > 1 else ''} {spans(listed)}"


def spans(numbers: Iterable[int]) -> str:
    """Numbers in words, runs shortened.

    >>> spans([0, 1, 2, 5]), spans([3]), spans([3, 4])
    ('0 to 2 and 5', '3', '3 and 4')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words: list[str] = []
    for a, b in runs:
        words += [f"{a} to {b}"] if b > a + 1 else [str(x) for x in range(a, b + 1)]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def quoted(pattern: Pattern) -> str:
    """The text of a pattern, cut where it is long (listed labels)."""
    text = str(pattern)
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 4]} ..."


def percent(share: float) -> str:
    """A share in words that never round to nothing or to all.

    >>> percent(0.123), percent(0.9999), percent(0.0004), percent(1.0)
    ('12%', 'more than 99%', 'less than 1%', '100%')
    """
    if 0.99 < share < 1:
        return "more than 99%"
    return "less than 1%" if 0 < share < 0.01 else f"{share:.0%}"
