"""Layers to layouts: heads lowered one by one, what is equal made once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from patterncc.layout.build import build
from patterncc.layout.choose import choose_block
from patterncc.layout.layout import Recipe
from patterncc.layout.limits import MAX_TEXT
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Layer, Stack
from patterncc.zones.lower import attention_only, keyed, lower

if TYPE_CHECKING:
    from patterncc.layout.layout import Layout
    from patterncc.zones.zoneset import Frame, ZoneSet


@dataclass(frozen=True)
class Job:
    """What all layers of one call share."""

    frame: Frame
    block: tuple[int, int] | None
    order: object
    max_tiles: int
    bindings: dict[str, Any]

    def layers(self, stack: Stack) -> tuple[Layout, ...]:
        """Every layer; equal ones that draw nothing from their index are one object."""
        made: dict[object, Layout] = {}
        layouts = []
        for index, each in enumerate(stack):
            patterns = each.patterns if isinstance(each, Heads) else (each,)
            layer = index if any(keyed(p, self.bindings)[0] for p in patterns) else 0
            key = (each, layer)
            if key not in made:
                made[key] = self.layout(each, layer)
            layouts.append(made[key])
        return tuple(layouts)

    def layout(self, each: Layer, layer: int) -> Layout:
        """One layer: its distinct heads lowered, equal ones shared, and built together."""
        patterns = each.patterns if isinstance(each, Heads) else (each,)
        lowered: dict[object, int] = {}
        tables: dict[bytes, int] = {}
        zone_sets: list[ZoneSet] = []
        head_pattern = []
        for head, p in enumerate(patterns):
            drawn = head if keyed(p, self.bindings)[1] else 0
            key = (p, drawn)
            if key not in lowered:
                zones = self._lower(attention_only(p), layer, drawn)
                content = (
                    hashlib.sha256(zones.table.tobytes()).digest() if len(patterns) > 1 else b""
                )
                lowered[key] = tables.setdefault(content, len(zone_sets))
                if lowered[key] == len(zone_sets):
                    zone_sets.append(zones)
            head_pattern.append(lowered[key])
        block = self.block or choose_block(zone_sets)
        made = build(
            zone_sets, head_pattern, block, pattern=shortened(str(each)), max_tiles=self.max_tiles
        )
        recipe = Recipe(each, self.block, layer, self.order, self.max_tiles, self.bindings)
        return replace(made, recipe=recipe)

    def _lower(self, p: Pattern, layer: int, head: int) -> ZoneSet:
        f = self.frame
        return lower(p, f.n, f.n_k, f.q_offset, f.k_offset, layer=layer, head=head, **self.bindings)


def shortened(text: str) -> str:
    """The text of a pattern; of a very long one (labels of all tokens) the start and a digest."""
    if len(text) <= MAX_TEXT:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: MAX_TEXT - 64]}... ({len(text)} characters, sha256 {digest})"
