"""Lint: what is probably not meant, found before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from patterncc.analysis.topology import Topology, is_causal
from patterncc.zones import algebra

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing found: a stable code, how bad it is, a sentence, and the remedy.

    Only errors make `patterncc check` fail.
    """

    code: str
    severity: Severity
    message: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.severity} {self.code}: {self.message}\n    {self.remedy}"


def lint(t: Topology) -> tuple[Finding, ...]:
    """Findings of a lowered stack, worst first.

    PCC101 a layer without edges (error), PCC102 rows that can read nothing, PCC103 keys that nobody
    reads, PCC104 a layer that reads the future while most do not (error).
    """
    if not t.n:
        return ()
    found = [*_rows(t), *_keys(t), *_leaks(t)]
    order = ("error", "warning", "note")
    return tuple(sorted(found, key=lambda f: order.index(f.severity)))


def never_full(pair: tuple[int, int] | None) -> Finding:
    """PCC105: no depth reaches every allowed pair."""
    shown = f": query {pair[0]} never sees key {pair[1]}" if pair else ""
    return Finding(
        "PCC105",
        "warning",
        f"no number of layers carries every allowed pair{shown}",
        "add a layer or a head that crosses (full, strided, a global token), or state "
        "'depth_to_full(n=...) == never' if it is meant",
    )


def not_full(depth: int, least: int) -> Finding:
    """PCC106: the stack is shallower than its depth to full."""
    return Finding(
        "PCC106",
        "note",
        f"{depth} {'layer does' if depth == 1 else 'layers do'} not carry every allowed pair; "
        f"it takes {least} at least",
        "widen the window, or let one layer in a few read everything",
    )


def _rows(t: Topology) -> Iterator[Finding]:
    for name, index in _distinct(t):
        level, place = t.levels[index], name
        for number, zones in enumerate(level.head_zones):
            if len(level.head_zones) > 1:
                place = f"{name}, head {level.head_index.index(number)}"
            if not len(zones):
                yield Finding(
                    "PCC101",
                    "error",
                    f"{place} has no edges at n={t.n}: every output is 0",
                    "check the pattern's sizes against the length",
                )
                break
            busy = algebra.merge_intervals(zones.table[:, 0:2])
            empty = t.n - int((busy[:, 1] - busy[:, 0]).sum())
            if empty:
                first = _first_gap(busy, t.memory)
                yield Finding(
                    "PCC102",
                    "warning",
                    f"{place}: {empty} of {t.n} queries read no key, the first is {first}; "
                    "their output is 0",
                    "let every token read itself: add window(0)",
                )
                break


def _keys(t: Topology) -> Iterator[Finding]:
    distinct = {id(level): level for level in t.levels}.values()
    read = algebra.merge_intervals(
        np.concatenate([level.zones.table[:, 2:4] for level in distinct])
    )
    unread = t.frame.n - int((read[:, 1] - read[:, 0]).sum())
    if unread:
        yield Finding(
            "PCC103",
            "warning",
            f"{unread} of {t.frame.n} keys are read by no query in any layer, the first is "
            f"{_first_gap(read, 0)}",
            "let every token read itself: add window(0)",
        )


def _leaks(t: Topology) -> Iterator[Finding]:
    """Layers (and heads) outside the causal triangle where most of the stack is inside."""
    heads = [is_causal(z) for level in t.levels for z in level.head_zones]
    if all(heads) or sum(heads) * 2 <= len(heads):
        return
    for place, index in _distinct(t):
        table = t.levels[index].zones.table
        late = table[table[:, 5] > 1] if len(table) else table
        if len(late):
            _, i1, _, j1, _, d1 = late[0].tolist()
            query = min(i1 - 1, j1 - d1)
            yield Finding(
                "PCC104",
                "error",
                f"{place} reads the future while most layers are causal: query {query} reads key "
                f"{query + d1 - 1}",
                "intersect the layer with causal()",
            )


def _distinct(t: Topology) -> Iterator[tuple[str, int]]:
    """Each distinct layer once: how to call it, and its first index."""
    seen = set()
    for index, level in enumerate(t.levels):
        if id(level) not in seen:
            seen.add(id(level))
            yield f"layer {index}", index


def _first_gap(intervals: algebra.I64, start: int) -> int:
    """The first position from `start` on that sorted disjoint intervals leave out."""
    for a, b in intervals.tolist():
        if a > start:
            break
        start = max(start, b)
    return start
