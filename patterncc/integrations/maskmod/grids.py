"""Coordinates of a flattened grid among the joined ones: neighbourhoods that `grid` says in a word.

The functions of the key must be digits of its position (kv // 64, kv // 8 % 8, kv % 8) that make up
the whole of it; the bounds are then compared with the grid's own, row by row, all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from patterncc.integrations.maskmod.marks import K
from patterncc.integrations.maskmod.nodes import Call, Const, Node
from patterncc.integrations.maskmod.seek import Coordinate
from patterncc.integrations.maskmod.tables import I64, Frame
from patterncc.pattern import Pattern
from patterncc.primitives import Grid


@dataclass(frozen=True)
class Digit:
    """position // step % size; size 0 is unbounded."""

    step: int
    size: int


def digit(node: Node) -> Digit | None:
    """The digit of kv_idx that a node is.

    >>> from patterncc.integrations.maskmod.linear import INT
    >>> digit(Call("%", (Call("//", (K, Const(8)), INT), Const(4)), INT))
    Digit(step=8, size=4)
    """
    match node:
        case Call("//", (x, Const(int(c)))) if c > 0:
            inner = Digit(1, 0) if x == K else digit(x)
            if inner is None or inner.size % c:
                return None
            return Digit(inner.step * c, inner.size // c)
        case Call("%", (x, Const(int(c)))) if c > 0:
            inner = Digit(1, 0) if x == K else digit(x)
            if inner is None or (inner.size and inner.size % c):
                return None
            return Digit(inner.step, c)
        case _:
            return None


def as_grid(at: Frame, asked: dict[Node, Coordinate]) -> Pattern | None:
    """A grid whose neighbourhoods are the joined bounds, if there is one."""
    digits = {value: digit(value) for value in asked}
    if len(asked) < 2 or any(d is None for d in digits.values()) or at.n != at.n_k or not at.n:
        return None
    ordered = sorted(digits, key=lambda v: -(digits[v] or Digit(0, 0)).step)
    listed = [d for v in ordered if (d := digits[v]) is not None]
    if listed[-1].step != 1:
        return None
    for outer, inner in pairwise(listed):
        if inner.size == 0 or inner.step * inner.size != outer.step:
            return None
    rows = -(-at.n // listed[0].step)
    shape = [listed[0].size or rows, *(d.size for d in listed[1:])]
    if math.prod(shape) != at.n:
        return None
    position = np.arange(at.n)
    places = [position // d.step % s for d, s in zip(listed, shape)]
    bounds = [_values(asked[v]) for v in ordered]
    found = _cut(shape, places, bounds)
    return found if found is not None else _shifted(shape, places, bounds)


def _values(x: Coordinate) -> tuple[I64, I64]:
    """Bounds as coordinates: the ranks of a digit are its values, all of them are there."""
    return x.low, x.high


def _cut(shape: list[int], places: list[I64], bounds: list[tuple[I64, I64]]) -> Pattern | None:
    """Every coordinate within so many steps."""
    window = []
    for x, (low, high) in zip(places, bounds):
        steps = int(max((high - x).max(), (x - low).max()))
        if steps < 0:
            return None
        top = int(x.max())
        right = np.minimum(x + steps, top), np.minimum(high, top)
        left = np.maximum(x - steps, 0), np.maximum(low, 0)
        if not (np.array_equal(*right) and np.array_equal(*left)):
            return None
        window.append(steps)
    return Grid(tuple(shape), tuple(window))


def _shifted(shape: list[int], places: list[I64], bounds: list[tuple[I64, I64]]) -> Pattern | None:
    """A window of one width everywhere, moved inside at the borders."""
    window = []
    for size, x, (low, high) in zip(shape, places, bounds):
        width = int((high - low).max())
        steps = width // 2
        start = np.clip(x - steps, 0, max(0, size - 2 * steps - 1))
        end = np.minimum(size - 1, start + 2 * steps)
        if width % 2 or not (np.array_equal(low, start) and np.array_equal(high, end)):
            return None
        window.append(steps)
    return Grid(tuple(shape), tuple(window), "shift")
