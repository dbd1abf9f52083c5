"""Findings about single edges: rows that read nothing, keys that nobody reads, the future read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from patterncc.analysis.lint.finding import Finding
from patterncc.analysis.lint.places import Family, Spot, place
from patterncc.analysis.topology import Topology, is_causal
from patterncc.zones import algebra


def empty_rows(t: Topology, families: tuple[Family, ...]) -> Iterator[Finding]:
    """PCC101 a layer or head without edges, PCC102 queries that read no key."""
    for family in families:
        bare = [s for s in family.spots if not len(s.zones)]
        if bare:
            yield Finding.of(
                "PCC101",
                f"{_places(bare)} {_verb(bare, 'has', 'have')} no edges at n={t.n}: "
                "every output is 0",
                "check the pattern's sizes against the length",
            )
        unread = [(_missing(s, t.n), s) for s in family.spots if len(s.zones)]
        gaps = [(count, s) for count, s in unread if count]
        if gaps:
            count, worst = max(gaps, key=lambda g: g[0])
            first = _first_gap(worst.zones.queries(), t.memory)
            most = "up to " if len({c for c, _ in gaps}) > 1 else ""
            verb = "reads" if count == 1 else "read"
            yield Finding.of(
                "PCC102",
                f"{_places([s for _, s in gaps])}: {most}{count} of {t.n} queries {verb} no key, "
                f"the first is {first}; their output is 0",
                "let every token read itself: add window(0)",
            )


def unread_keys(t: Topology, families: tuple[Family, ...]) -> Iterator[Finding]:
    """PCC103: keys that no query reads in any layer."""
    tables = {id(level): level.zones.table[:, 2:4] for level in t.levels}.values()
    if any((keys[:, 1] - keys[:, 0] == t.frame.n).any() for keys in tables):
        return
    read = algebra.merge_intervals(np.concatenate(list(tables)))
    unread = t.frame.n - int((read[:, 1] - read[:, 0]).sum())
    if unread:
        yield Finding.of(
            "PCC103",
            f"{unread} of {t.frame.n} keys {'is' if unread == 1 else 'are'} read by no query in "
            "any layer, the first is "
            f"{_first_gap(read, 0)}",
            "let every token read itself: add window(0)",
        )


def leaks(t: Topology, families: tuple[Family, ...]) -> Iterator[Finding]:
    """PCC104: heads outside the causal triangle where most of the stack is inside."""
    outside = [
        (f, spots) for f in families if (spots := [s for s in f.spots if not is_causal(s.zones)])
    ]
    weight = sum(_weight(t, s) for _, spots in outside for s in spots)
    if not outside or weight * 2 >= len(t.levels):
        return
    for _, spots in outside:
        table = spots[0].zones.table
        _, i1, _, j1, _, d1 = table[int(np.argmax(table[:, 5] > 1))].tolist()
        query = min(i1 - 1, j1 - d1)
        kind = "heads" if any(heads for s in spots for _, heads in s.where) else "layers"
        yield Finding.of(
            "PCC104",
            f"{_places(spots)} {_verb(spots, 'reads', 'read')} the future while most {kind} are "
            f"causal: query {query} reads key {query + d1 - 1}",
            f"intersect the {'heads' if kind == 'heads' else 'layer'} with causal()",
        )


def _weight(t: Topology, spot: Spot) -> float:
    """How many layers a spot makes up, a part of the heads being a part of a layer."""
    whole = 0.0
    for layer, heads in spot.where:
        whole += 1.0 if heads is None else len(heads) / len(t.levels[layer].head_index)
    return whole


def _places(spots: list[Spot]) -> str:
    return place(w for s in spots for w in s.where)


def _verb(spots: list[Spot], one: str, many: str) -> str:
    where = [w for s in spots for w in s.where]
    single = len(where) == 1 and (where[0][1] is None or len(where[0][1]) == 1)
    return one if single else many


def _missing(spot: Spot, n: int) -> int:
    busy = spot.zones.queries()
    return n - int((busy[:, 1] - busy[:, 0]).sum())


def _first_gap(intervals: algebra.I64, start: int) -> int:
    """The first position from `start` on that sorted disjoint intervals leave out."""
    for a, b in intervals.tolist():
        if a > start:
            break
        start = max(start, b)
    return start
