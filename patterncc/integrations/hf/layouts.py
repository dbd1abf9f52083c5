"""The layouts that one layer's pattern needs: one for each frame of queries and keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from patterncc.layout import Layout, compile
from patterncc.stack import Layer

KEPT = 16  # frames; more of them than a prefill in chunks and a decode need at once


@dataclass(eq=False)
class Layouts:
    """Layouts of one layer, made when they are first asked for."""

    layer: Layer
    index: int
    bindings: Mapping[str, Any]
    made: OrderedDict[tuple[int, int, int, int], Layout] = field(default_factory=OrderedDict)

    def of(self, n: int, n_k: int, q_offset: int = 0, k_offset: int = 0) -> Layout:
        """The layout of n queries from q_offset and n_k keys from k_offset."""
        frame = n, n_k, q_offset, k_offset
        if frame not in self.made:
            layout = compile(self.layer, *frame, layer=self.index, **self.bindings)
            assert isinstance(layout, Layout)
            self.made[frame] = layout
            while len(self.made) > KEPT:
                self.made.popitem(last=False)
        self.made.move_to_end(frame)
        return self.made[frame]
