"""Which masks of a stack are different, what they stand for, and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.pattern import Intersection, Pattern, Union
from patterncc.zones.lower import keyed, lower

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patterncc.stack import Stack
    from patterncc.zones.zoneset import ZoneSet

MOST_PARTS = 6  # that are told apart by colour


@dataclass(frozen=True, eq=False)
class Mask:
    """One mask with the layers and heads that it stands for, and the zones of its named parts."""

    title: str
    zones: ZoneSet
    parts: tuple[tuple[str, ZoneSet], ...] = ()


def masks(
    stack: Stack,
    n: int,
    layer: int | None = None,
    head: int | None = None,
    bindings: Mapping[str, Any] | None = None,
    names: Mapping[str, Pattern] | None = None,
) -> list[Mask]:
    """Each different mask of a stack once, titled with the layers and heads that it stands for.

    Given `names`, named edge sets such as a pattern file's `edges`, the parts of a union come
    along, called by them where they have a name.

    >>> from patterncc import Stack, causal, sink, window
    >>> near = causal() & (window(3) | sink(1))
    >>> found = masks(Stack([near, near, causal()]), 8, names={"start": sink(1)})
    >>> [mask.title for mask in found]
    ['layers 0-1', 'layer 2']
    >>> [label for label, _ in found[0].parts]
    ['window(3)', 'start: sink(1)']

    Raises PatternValueError for a layer or a head that the stack does not have.
    """
    places = _places(stack, layer, head)
    found = []
    for pattern, where in places.items():
        l, hs = next(iter(where.items()))
        at: dict[str, Any] = {
            **(bindings or {}),
            "n_k": n + stack.memory,
            "q_offset": stack.memory,
            "layer": l,
            "head": hs[0] if hs else head or 0,
        }
        named = [] if names is None else _parts(pattern, names)
        parts = [(label, lower(part, n, **at)) for label, part in named]
        title = _title(where, len(stack)) + _drawn(pattern, where)
        found.append(Mask(title, lower(pattern, n, **at), tuple(parts)))
    return found


def _places(
    stack: Stack, layer: int | None, head: int | None
) -> dict[Pattern, dict[int, list[int]]]:
    """Each pattern asked for, by layer the heads that have it (none listed: all of them)."""
    layers = len(stack)
    if layer is not None and not 0 <= layer < layers:
        raise PatternValueError(f"show: no layer {layer}; the stack has layers 0 to {layers - 1}")
    places: dict[Pattern, dict[int, list[int]]] = {}
    for l in range(layers) if layer is None else [layer]:
        slots = stack.heads(l)
        if head is not None and len(slots) > 1 and not 0 <= head < len(slots):
            raise PatternValueError(f"show: no head {head}; layer {l} has 0 to {len(slots) - 1}")
        for h, pattern in enumerate(slots):
            if len(slots) == 1:
                places.setdefault(pattern, {})[l] = []
            elif head is None or h == head:
                places.setdefault(pattern, {}).setdefault(l, []).append(h)
    return places


def _parts(pattern: Pattern, names: Mapping[str, Pattern]) -> list[tuple[str, Pattern]]:
    """The parts of a union, or of the one union inside an intersection; none if there are many."""
    rest: tuple[Pattern, ...] = ()
    union = pattern
    if isinstance(pattern, Intersection):
        unions = [p for p in pattern.parts if isinstance(p, Union)]
        if len(unions) == 1:
            union = unions[0]
            rest = tuple(p for p in pattern.parts if p is not union)
    if not isinstance(union, Union) or len(union.parts) > MOST_PARTS:
        return []
    known = {p: name for name, p in names.items()}
    return [(_label(p, known), Intersection((*rest, p)) if rest else p) for p in union.parts]


def _label(part: Pattern, known: Mapping[Pattern, str]) -> str:
    text = str(part)
    short = text if len(text) <= 32 else text[:29] + "..."
    return f"{known[part]}: {short}" if part in known else short


def _title(where: Mapping[int, Sequence[int]], layers: int) -> str:
    """Which layers and heads, layers with the same heads together.

    >>> _title({0: [], 1: [], 2: [0, 1]}, 3), _title({0: [], 1: []}, 2)
    ('layers 0-1; layer 2, heads 0-1', 'all layers')
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for l, hs in where.items():
        groups.setdefault(tuple(hs), []).append(l)
    shown = []
    for heads, listed in groups.items():
        words = "all layers" if len(listed) == layers > 1 else _ranges("layer", listed)
        shown.append(f"{words}, {_ranges('head', heads)}" if heads else words)
    return "; ".join(shown)


def _drawn(pattern: Pattern, where: Mapping[int, Sequence[int]]) -> str:
    """Which layer and head is shown, of a pattern whose edges differ from one to the next.

    >>> from patterncc import causal, random_blocks
    >>> _drawn(random_blocks(3), {2: [0, 1], 3: []}), _drawn(causal(), {2: [], 3: []})
    (' (shown: layer 2, head 0)', '')
    """
    l, hs = next(iter(where.items()))
    if not any(keyed(pattern, {})) or (len(where) == 1 and len(hs) < 2):
        return ""
    return f" (shown: layer {l}" + (f", head {hs[0]})" if hs else ")")


def _ranges(word: str, numbers: Sequence[int]) -> str:
    """Integers in words, runs joined.

    >>> _ranges("layer", [0, 1, 2, 7])
    'layers 0-2, 7'
    """
    runs: list[list[int]] = []
    for x in numbers:
        if runs and x == runs[-1][1] + 1:
            runs[-1][1] = x
        else:
            runs.append([x, x])
    parts = [f"{a}-{b}" if a < b else str(a) for a, b in runs]
    more = f", ... {len(parts) - 4} more" if len(parts) > 4 else ""
    return f"{word}{'s' if len(numbers) > 1 else ''} {', '.join(parts[:4])}{more}"


def natural_size(stack: Stack, bindings: Mapping[str, Any], known: Sequence[int]) -> int:
    """A length at which the shape shows: the first power of two, from 64 on, at which some mask is
    at most a quarter full; else the shortest length that lowers at all.

    `known` are lengths that the pattern's author names, tried where powers of two do not fit.
    """
    fits: list[int] = []
    first: PatternError | None = None
    for n in map(int, 2 ** np.arange(6, 19)):
        try:
            drawn = [m.zones for m in masks(stack, n, bindings=bindings)]
            fits.append(n)
            counts = [(z.count(), z.frame.n * z.frame.n_k) for z in drawn]
            if all(edges for edges, _ in counts) and any(4 * e <= pairs for e, pairs in counts):
                return n
        except SizeError:
            break
        except PatternError as error:
            first = first or error
    for n in known if not fits else ():
        try:
            masks(stack, n, bindings=bindings)
            return n
        except PatternError as error:
            first = first or error
    if not fits and first:
        raise first
    return fits[0]
