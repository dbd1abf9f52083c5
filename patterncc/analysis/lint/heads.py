"""The finding about grouped heads: query heads that share a key/value head and disagree.

What one head of a group reads must be loaded for all of them: the group costs the union.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from patterncc.analysis.lint.finding import Finding
from patterncc.analysis.lint.places import Family, place
from patterncc.analysis.topology import Level, Topology
from patterncc.zones import algebra


def disagreeing_heads(t: Topology, families: tuple[Family, ...]) -> Iterator[Finding]:
    """PCC111: heads of one key/value head whose patterns differ, layers of one text together.

    Counted are the keys that the last query reads, as a decode step loads them.
    """
    layers_of: dict[str, list[int]] = {}
    for index, level in enumerate(t.levels):
        layers_of.setdefault(level.text, []).append(index)
    for layers in layers_of.values() if t.stack.kv_heads else ():
        levels = {id(level): level for level in (t.levels[l] for l in layers)}.values()
        loads = [found for level in levels if (found := _loads(t, level)) is not None]
        if loads:
            yield _finding(place((l, None) for l in layers), t.stack.kv_heads or 1, loads)


@dataclass(frozen=True)
class _Loads:
    """Of one layer: key/value heads whose query heads differ, the keys that all key/value heads
    load for the last query, and how many it were with equal heads side by side."""

    mixed: int
    now: int
    ordered: int


def _loads(t: Topology, level: Level) -> _Loads | None:
    """What the groups of a layer load; None where all heads of each agree."""
    kv_heads, heads = t.stack.kv_heads or 1, level.head_index
    if len(level.head_zones) == 1 or len(heads) % kv_heads:
        return None
    size = len(heads) // kv_heads
    groups = [frozenset(heads[k : k + size]) for k in range(0, len(heads), size)]
    mixed = sum(len(g) > 1 for g in groups)
    if not mixed:
        return None
    ordered = sorted(heads)
    side_by_side = [frozenset(ordered[k : k + size]) for k in range(0, len(heads), size)]
    last = t.frame.n - 1
    box = (last, last + 1, 0, t.frame.n)
    rows = [algebra.tighten(algebra.clip(z.table, box))[:, 2:4] for z in level.head_zones]

    def load(sets: list[frozenset[int]]) -> int:
        """Keys of the union of each set of heads, summed."""
        merged = [algebra.merge_intervals(np.concatenate([rows[h] for h in g])) for g in sets]
        return sum(int((m[:, 1] - m[:, 0]).sum()) for m in merged)

    return _Loads(mixed, load(groups), load(side_by_side))


def _finding(where: str, kv_heads: int, loads: list[_Loads]) -> Finding:
    worst = max(loads, key=lambda x: x.now)
    less = worst.ordered < worst.now
    gain = f", {worst.ordered:,} if equal heads stood side by side" if less else ""
    return Finding.of(
        "PCC111",
        f"{where}: {worst.mixed} of {kv_heads} key/value heads serve query heads that read "
        f"different keys and load the union of them: {worst.now:,} keys in all for the last "
        f"query{gain}",
        "order the query heads so that those of one pattern share a key/value head"
        if less
        else "give the query heads of a key/value head one pattern, or reckon with the union",
    )
