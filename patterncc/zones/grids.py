"""Lowering of neighbourhoods of flattened grids: grid (borders cut or shifted) and axial.

Positions run through the grid in row-major order, the last axis fastest.  A *line* is one setting
of all axes but the last; its positions are neighbours, so a window along it is a band.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from patterncc.primitives import Axial, Grid
from patterncc.zones.site import FAR, Site

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


def grid(p: Grid, at: Site) -> I64:
    """A band for each (line, line it reads); with shifted borders a box at either end as well."""
    shape, reach, cell = _without_full_axes(p)
    if not shape:
        return at.rows(i0=0, i1=cell, j0=0, j1=cell)
    length = shape[-1] * cell
    lines = math.prod(shape[:-1])
    first, last = at.region.i0 // length, min(lines, -(-at.region.i1 // length))
    choices = math.prod(min(s, 2 * w + 1) for s, w in zip(shape[:-1], reach[:-1]))
    low, high = 0, shape[-1]
    if last - first == 1:  # a slice of one line
        low = (at.region.i0 - first * length) // cell
        high = min(high, -(-(at.region.i1 - first * length) // cell))
    at.allow(max(0, last - first) * choices * (high - low if cell > 1 else 3), p)
    if first >= last:
        return at.none()
    line, read = _neighbour_lines(p, shape[:-1], reach[:-1], first, last)
    i, j = line * length, read * length
    keep = (j < at.region.j1) & (j + length > at.region.j0)
    i, j = i[keep, None], j[keep, None]
    a, b, c, d, d0, d1 = _pieces(p.edges, shape[-1], reach[-1], cell, low, high)
    return at.rows(i + a, i + b, j + c, j + d, j - i + d0, j - i + d1)


def axial(p: Axial, at: Site) -> I64:
    """A box for each line along the last axis; along another axis, a diagonal for each distance."""
    shape = [s for s in p.shape if s > 1]
    total = math.prod(shape)
    if not shape:
        return at.rows(i0=0, i1=1, j0=0, j1=1)
    tables: list[I64] = []
    step = 1
    for size in reversed(shape):
        span = step * size  # positions that differ in this axis and those after it
        first, last = _shared_groups(at, span, total)
        low, high = max(at.region.d0, step - span), min(at.region.d1, span - step + 1)
        a, b = (0, 1) if step == 1 else (-(-low // step), (high - 1) // step + 1)
        at.allow(max(0, last - first) * max(0, b - a) + sum(map(len, tables)), p)
        starts = np.arange(first, last, dtype=np.int64)[:, None] * span
        d = np.arange(a, b, dtype=np.int64)[None, :] * step
        if step == 1:
            tables.append(at.rows(starts, starts + span, starts, starts + span))
        else:  # the diagonal itself lies in the boxes of the last axis
            d = d[d != 0][None, :]
            tables.append(at.rows(starts, starts + span, starts, starts + span, d, d + 1))
        step = span
    return np.concatenate(tables)


def _without_full_axes(p: Grid) -> tuple[list[int], list[int], int]:
    """Axes and windows less the last ones that every position sees whole, which make up a cell."""
    assert isinstance(p.window, tuple)  # one number is spread over the axes when it is made
    shape, reach, cell = list(p.shape), list(p.window), 1
    while shape and reach[-1] >= (shape[-1] // 2 if p.edges == "shift" else shape[-1] - 1):
        cell *= shape.pop()
        reach.pop()
    return shape, reach, cell


def _pieces(edges: str, size: int, steps: int, cell: int, low: int, high: int) -> I64:
    """Zones of one line reading another, six columns relative to both starts (d to their distance).

    With cells, one box for each coordinate low <= x < high of the last axis.
    """
    if cell > 1:
        x = np.arange(low, high, dtype=np.int64)
        start, end = _seen(edges, x, size, steps)
        far = np.full_like(x, FAR)
        return np.stack([x * cell, (x + 1) * cell, start * cell, end * cell, -far, far])
    band = (0, size, 0, size, -steps, steps + 1)
    if edges == "cut" or steps == 0:
        return np.array([band], dtype=np.int64).T
    wide = 2 * steps + 1
    pieces = [
        (0, steps, 0, wide, -FAR, FAR),
        (steps, size - steps, *band[2:]),
        (size - steps, size, size - wide, size, -FAR, FAR),
    ]
    return np.array(pieces, dtype=np.int64).T


def _seen(edges: str, x: I64, size: int, steps: int) -> tuple[I64, I64]:
    """The coordinates [start, end) that each coordinate reads along an axis."""
    start = x - steps
    if edges == "shift":
        start = np.clip(start, 0, max(0, size - 2 * steps - 1))
    return np.maximum(start, 0), np.minimum(size, start + 2 * steps + 1)


def _neighbour_lines(
    p: Grid, shape: list[int], reach: list[int], first: int, last: int
) -> tuple[I64, I64]:
    """Pairs (line, line that it reads) for lines first <= line < last."""
    line = np.arange(first, last, dtype=np.int64)
    read = np.zeros_like(line)
    rest, stride = line.copy(), 1
    place = np.arange(len(line))
    for size, steps in zip(reversed(shape), reversed(reach)):
        x, rest = rest % size, rest // size
        start, end = _seen(p.edges, x, size, steps)
        count = (end - start)[place]
        before = np.cumsum(count) - count
        nth = np.arange(int(count.sum())) - np.repeat(before, count)
        here = np.repeat(place, count)
        read = np.repeat(read, count) + (start[here] + nth) * stride
        place, stride = here, stride * size
    return line[place], read


def _shared_groups(at: Site, span: int, total: int) -> tuple[int, int]:
    """Which groups of `span` positions hold both a query and a key of the region: [first, last)."""
    r = at.region
    first = max(r.i0, r.j0) // span
    return first, min(total // span, -(-min(r.i1, r.j1) // span))
