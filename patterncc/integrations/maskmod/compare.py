"""Comparisons of a function of the key with a function of the query, gathered and made patterns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from patterncc.integrations.maskmod import tables
from patterncc.integrations.maskmod.grids import as_grid, digit
from patterncc.integrations.maskmod.join import joined
from patterncc.integrations.maskmod.linear import INT, Linear, linear
from patterncc.integrations.maskmod.marks import K, Marks, Q
from patterncc.integrations.maskmod.nodes import Const, Node, call
from patterncc.integrations.maskmod.seek import Coordinate
from patterncc.integrations.maskmod.tables import Frame
from patterncc.pattern import Pattern


@dataclass(frozen=True)
class Compared:
    """value(j) op bound(i), values of one index each; op is <=, >= or ==."""

    value: Node
    op: str
    bound: Node
    shown: str


@dataclass
class Clause:
    """What the parts of an `and` say, gathered."""

    marks: dict[int, Marks] = field(default_factory=dict)  # by block size
    compared: list[Compared] = field(default_factory=list)
    parts: list[Pattern] = field(default_factory=list)

    def add(self, marks: Marks) -> None:
        """Bounds that meet those there are."""
        held = self.marks.get(marks.block)
        self.marks[marks.block] = held.meet(marks) if held else marks


def join(at: Frame, compared: list[Compared], causal: bool = False) -> list[Pattern]:
    """Patterns whose intersection is what holds where all comparisons hold."""
    if not compared:
        return []
    groups = _by_value(compared)
    if all(linear(x.bound).terms == ((Q, 1),) for x in compared):
        return [tables.by_key(at, compared)]
    if set(groups) == {K}:
        return [tables.by_query(at, compared, causal)]
    shown = " & ".join(dict.fromkeys(x.shown for x in compared))
    equal = {v: g for v, g in groups.items() if [x.op for x in g] == ["=="] and v != K}
    rest = [_coordinate(at, v, g) for v, g in groups.items() if v not in equal]
    if not all(x.grows or x.flipped().grows for x in rest):
        return joined(at, [*rest, *(_coordinate(at, v, g) for v, g in equal.items())], shown)
    made = [tables.equal(at, group[0].bound, value) for value, group in equal.items()]
    return [*made, *(joined(at, rest, shown) if rest else [])]


def grid(at: Frame, clause: Clause) -> list[Pattern]:
    """The neighbourhood in a grid that digits of the positions say, taken out of the clause."""
    if not clause.compared or not all(digit(x.value) for x in clause.compared):
        return []
    lines = [(s, m) for s, m in clause.marks.items() if s > 1 and None not in m.d]
    compared = list(clause.compared)
    for size, marks in lines:
        own, other = (call("//", x, Const(size), dtype=INT) for x in (Q, K))
        for op, steps in zip((">=", "<="), marks.d):
            compared.append(Compared(other, op, (linear(own) + Linear((), steps or 0)).node(), ""))
    groups = _by_value(compared)
    if len(groups) < 2:
        return []
    found = as_grid(at, {value: _coordinate(at, value, g) for value, g in groups.items()})
    if found is None:
        return []
    clause.compared.clear()
    for size, _ in lines:
        del clause.marks[size]
    return [found]


def _by_value(compared: Iterable[Compared]) -> dict[Node, list[Compared]]:
    """What is compared with each function of the key."""
    groups: dict[Node, list[Compared]] = {}
    for x in compared:
        groups.setdefault(x.value, []).append(x)
    return groups


def _coordinate(at: Frame, value: Node, group: list[Compared]) -> Coordinate:
    """The bounds of one value of the key, from all that is compared with it."""
    low: tables.Column | None = None
    high: tables.Column | None = None
    for x in group:
        bound = at.column(x.bound, "q_idx")
        if x.op in ("==", ">="):
            low = bound if low is None else np.maximum(low, bound)
        if x.op in ("==", "<="):
            high = bound if high is None else np.minimum(high, bound)
    return Coordinate.of(at.column(value, "kv_idx"), low, high, at.n)
