"""Layers to layouts: heads lowered one by one, what is equal made once, a layout for each order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from patterncc.layout.build import build
from patterncc.layout.cost.choose import choose_block
from patterncc.layout.layout import Recipe
from patterncc.layout.limits import MAX_BYTES, MAX_TEXT
from patterncc.layout.reorder import Part, Setting, arranged, check_order, takes
from patterncc.stack import Layer, Stack, patterns_of
from patterncc.zones.lower import keyed

if TYPE_CHECKING:
    from collections.abc import Callable

    from patterncc.layout.layout import Layout
    from patterncc.zones.zoneset import Frame


@dataclass(frozen=True)
class Job:
    """What all layers of one call share."""

    frame: Frame
    block: tuple[int, int] | None
    order: object
    max_tiles: int
    bindings: dict[str, Any]
    max_bytes: int = MAX_BYTES
    target: str = "sm_90"

    def layers(self, stack: Stack) -> tuple[Layout, ...]:
        """Every layer; equal ones that draw nothing from their index are one object.

        A named order goes to the layers that can take it, and is refused where none can.
        """
        check_order(self.order)
        named = isinstance(self.order, str) and any(takes(x, self.order) for x in stack)

        def make(each: Layer, layer: int) -> Layout:
            plain = named and not takes(each, str(self.order))
            return (replace(self, order="token") if plain else self).layout(each, layer)

        return each_once(stack, self.bindings, make)

    def layout(self, each: Layer, layer: int) -> Layout:
        """One layer: its distinct heads lowered, equal ones shared, and built together; one term
        for every order that they stand in."""
        setting = Setting(self.frame, self.block, layer, self.bindings, {}, self.target)
        parts = arranged(each, self.order, setting)
        text = shortened(str(each))
        head, *rest = (self._built(part, text) for part in parts)
        asked = self.block, layer, self.order, self.max_tiles, self.bindings
        recipe = Recipe(each, *asked, self.max_bytes, self.target)
        return replace(head, rest=tuple(rest), recipe=recipe)

    def _built(self, part: Part, text: str) -> Layout:
        """The layout of one term."""
        block = self.block or choose_block(part.zone_sets, target=self.target, weights=part.weights)
        made = build(
            part.zone_sets,
            part.head_pattern,
            block,
            pattern=text,
            max_tiles=self.max_tiles,
            max_bytes=self.max_bytes,
        )
        if part.order is None:
            return made
        f = self.frame
        return replace(made, q_offset=f.q_offset, k_offset=f.k_offset, order=part.order)


def each_once(
    stack: Stack, bindings: dict[str, Any], make: Callable[[Layer, int], Layout]
) -> tuple[Layout, ...]:
    """Every layer of a stack; equal ones that draw nothing from their index are made once."""
    made: dict[object, Layout] = {}
    layouts = []
    for index, each in enumerate(stack):
        drawn = any(keyed(p, bindings)[0] for p in patterns_of(each))
        key = (each, index if drawn else 0)
        if key not in made:
            made[key] = make(*key)
        layouts.append(made[key])
    return tuple(layouts)


def shortened(text: str) -> str:
    """The text of a pattern; of a very long one (labels of all tokens) the start and a digest."""
    if len(text) <= MAX_TEXT:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: MAX_TEXT - 64]}... ({len(text)} characters, sha256 {digest})"
