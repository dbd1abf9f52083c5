"""Drawings of influence: the receptive cone with what flows through it, and how far it comes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.flow.rollout import rollout_of
from patterncc.analysis.page import svg
from patterncc.analysis.page.svg import Scale, percent, short
from patterncc.analysis.spread import size
from patterncc.zones.algebra import merge_intervals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.analysis.flow.influence import Influence
    from patterncc.analysis.spread import Cone
    from patterncc.analysis.topology import Topology

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]

BINS = 96
MOST_ROWS = 48
DECADES = 7  # shades: from the lightest, above nothing, to 10% and more
WIDE = 4  # times the size of a cone: a gap in it that is left out of the picture
LABELS = 34  # per cent of the height kept free for what is marked
FINE = 288  # steps of position that the outline tells apart


def cone_chart(t: Topology, cone: Cone, found: Influence | None) -> str:
    """Positions to the right, layers upwards: mass by shade, the cone of what is possible as a
    line."""
    rows = svg.thin(cone.depth + 1, MOST_ROWS)
    first, last = _window(t, cone)
    edges = np.unique(np.linspace(first, last, min(BINS, last - first) + 1).astype(np.int64))
    if found is not None and last - first > t.frame.n // 2:  # the figure's own bins are fine enough
        edges = found.edges
        first, last = int(edges[0]), int(edges[-1])
    count = len(rows)
    y, x = Scale(0, count, up=True), Scale(first, last)
    sets = [_steps(cone.layers[l], first, last) for l in rows]
    if found is None:
        inside = _filled(sets)
    else:
        mass = _mass(t, found, edges)[rows]
        inside = svg.stretched(svg.cells(decades(mass)[::-1], "flow s"), len(edges) - 1, count)
    parts = [
        '<rect class="paper" width="100%" height="100%"/>',
        inside,
        svg.stretched([_outline(sets)], FINE, count),
    ]
    every = max(1, -(-count // 9))
    for k, l in enumerate(rows):
        if k % every == 0:
            parts.append(svg.text(0, y(k + 0.5), f"{l:,}", "end", dx=-8, dy=4))
        parts.append(svg.box(0, y(k + 1), 100, y(0) - y(1), "hit", _said(cone, l)))
    ticks, name = _positions(first, last, cone.query)
    parts.append(svg.foot_axis(x, ticks, name, few=4))
    return svg.chart(f"What query {cone.query} can depend on, and how much", parts, 280)


def _said(cone: Cone, layer: int) -> str:
    held = cone.layers[layer]
    low, high = int(held[0, 0]), int(held[-1, 1]) - 1
    return (
        f"{svg.after(layer)}: the states of {size(held):,} positions from {low:,} to {high:,} "
        f"can matter to query {cone.query:,}"
    )


def _window(t: Topology, cone: Cone) -> tuple[int, int]:
    """The positions that are drawn: those of the cone and a little more, without what a wide gap
    keeps apart from the query."""
    held = cone.layers[0]
    gaps = held[1:, 0] - held[:-1, 1]
    wide = np.flatnonzero(gaps > WIDE * size(held))
    here = int(np.searchsorted(held[:, 0], cone.query, side="right")) - 1
    first = int(wide[wide < here].max(initial=-1)) + 1
    last = int(wide[wide >= here].min(initial=len(held) - 1))
    low, high = int(held[first, 0]), int(held[last, 1])
    room = max(1, (high - low) // 24)
    return max(0, low - room), min(t.frame.n, high + room)


def outside(t: Topology, cone: Cone) -> int:
    """How many positions of the cone stand too far off to be drawn."""
    first, last = _window(t, cone)
    return sum(
        max(0, min(b, first) - a) + max(0, b - max(a, last)) for a, b in cone.layers[0].tolist()
    )


def _mass(t: Topology, found: Influence, edges: I64) -> F64:
    """Mass in each bin at every layer; from the figure itself where its bins are the same."""
    if np.array_equal(found.edges, edges):
        return found.cone
    mass = np.zeros((found.depth + 1, len(edges) - 1))
    low, high = int(edges[0]), int(edges[-1])
    starts = edges[:-1] - low
    for k, v in enumerate(rollout_of(t, found.alpha, found.depth).from_query(found.query)):
        mass[found.depth - k] = np.add.reduceat(v[low:high], starts)
    return mass


def decades(mass: F64) -> I64:
    """Shades of shares: DECADES from 0.1 up, one less for each factor of ten below; 0 for none.

    >>> decades(np.array([1.0, 0.1, 0.02, 1e-30, 0.0])).tolist()
    [7, 7, 6, 1, 0]
    """
    logs = np.log10(np.maximum(mass, 1e-300))
    shade = np.clip(np.floor(logs + 1e-9) + 1 + DECADES, 1, DECADES)
    return np.where(mass > 0, shade, 0).astype(np.int64)


def _steps(positions: I64, first: int, last: int) -> I64:
    """A set in FINE steps of the drawn range, gaps that are narrower closed."""
    unit = (last - first) / FINE
    inside = positions[(positions[:, 1] > first) & (positions[:, 0] < last)]
    low = np.floor((inside[:, 0] - first) / unit + 1e-9)
    high = np.ceil((inside[:, 1] - first) / unit - 1e-9)
    return merge_intervals(np.stack([low, high], axis=1).astype(np.int64))


def _filled(sets: list[I64]) -> str:
    count = len(sets)
    runs = [
        f"M{a} {count - 1 - k}h{b - a}v1h{a - b}z"
        for k, held in enumerate(sets)
        for a, b in held.tolist()
    ]
    return svg.stretched([f'<path class="cone" d="{"".join(runs)}"/>'], FINE, count)


def _outline(sets: list[I64]) -> str:
    """The border of the sets stacked as rows: upright ends, and level lines where two rows
    differ."""
    count, pieces = len(sets), []
    none = np.empty((0, 2), dtype=np.int64)
    for k, (held, above) in enumerate(zip([none, *sets], [*sets, none], strict=True)):
        ends = np.sort(np.concatenate([held.ravel(), above.ravel()])).reshape(-1, 2)
        pieces += [f"M{a} {count - k}H{b}" for a, b in ends.tolist() if a < b]
    for k, held in enumerate(sets):
        pieces += [f"M{x} {count - 1 - k}v1" for x in held.ravel().tolist()]
    return f'<path class="outline" d="{"".join(pieces)}"/>'


def _positions(first: int, last: int, query: int) -> tuple[list[tuple[float, str]], str]:
    """Ticks of positions and the axis's name; counted from the query where the numbers would
    differ in their last digits alone."""
    if last - first > last // 20:
        at = _round_positions(first, last)
        return list(zip(map(float, at), svg.alike(at), strict=True)), "position"
    away = _round_positions(first - query, last - query)
    words = ["query" if not p else word for p, word in zip(away, svg.alike(away), strict=True)]
    places = [float(query + p) for p in away]
    return list(zip(places, words, strict=True)), "position, from the query"


def _round_positions(first: int, last: int) -> list[int]:
    """A handful of round positions inside a range."""
    span = max(1, last - first)
    unit = 10 ** max(0, math.floor(math.log10(span)) - 1)
    every = next(u * unit for u in (1, 2, 5, 10, 20, 50, 100) if span / (u * unit) <= 8)
    return list(range(-(-first // every) * every, last, every))


def farthest(found: Influence, cone: Cone | None) -> int:
    """The largest distance that the query reaches, or that influence comes from."""
    if cone is None:
        return found.by_distance()[-1][1] - 1
    held = cone.layers[0]
    return max(cone.query - int(held[0, 0]), int(held[-1, 1]) - 1 - cone.query)


def distance_chart(found: Influence, reach: int, heuristic: float | None) -> str:
    """Influence in bins of distance that double, its quantiles, and where reach ends."""
    bins = found.by_distance()
    widest = max(len(bins), _place(reach) + 0.6, _place(heuristic) + 0.6 if heuristic else 0)
    x = Scale(0, widest)
    y, axis = svg.share_axis(svg.nice(max(mass for _, _, mass in bins)), top=LABELS)
    parts = [axis]
    if _place(reach) < widest - 1:
        start = x(min(widest, _place(reach + 1)))
        parts.append(svg.box(start, 0, 100 - start, 100, "beyond", "no path: out of reach"))
    for k, (first, past, mass) in enumerate(bins):
        place = f"{first:,}" if past == first + 1 else f"{first:,} to {past - 1:,}"
        parts.append(svg.box(x(k + 0.1), y(mass), 0.8 * x(1), 100 - y(mass), "bar flow"))
        tip = f"distance {place}: {percent(mass)} of the influence"
        parts.append(svg.box(x(k), 0, x(1), 100, "hit", tip))
    marks = [
        (float(found.q50), f"50% within {found.q50:,}", "mark"),
        (float(found.q90), f"90% within {found.q90:,}", "mark"),
        (float(found.q99), f"99% within {found.q99:,}", "mark"),
        (float(reach), f"reach ends at {reach:,}", "end"),
    ]
    if heuristic is not None:
        marks.append((heuristic, f"rule of thumb {heuristic:,.0f}", "thumb"))
    parts += _marked(x, marks)
    names = [(k + 0.5, short(first)) for k, (first, _, _) in enumerate(bins)]
    every = max(1, -(-len(names) // 7))
    parts.append(svg.foot_axis(x, names[::every], "distance from the query, tokens"))
    return svg.chart("Influence by distance from the query", parts, 280)


def _place(distance: float) -> float:
    """Where a distance stands among the bins 0, 1, 2-3, 4-7, ..., each one wide."""
    return 0.5 if distance < 1 else 1 + math.log2(distance) + 0.5 / distance


def _marked(x: Scale, marks: list[tuple[float, str, str]]) -> list[str]:
    """Upright lines with their names above the bars; the farthest highest, so that no line runs
    through the name of another that stands to its left."""
    lines, names = [], []
    for row, (at, words, kind) in enumerate(sorted(marks, key=lambda mark: -mark[0])):
        place, height = x(_place(at)), 2 + 6.2 * row
        side = ("end", -5) if place > 44 else ("start", 5)
        lines.append(svg.rule(place, height, place, 100, kind))
        names.append(svg.text(place, height, words, side[0], dx=side[1], dy=5, kind=f"halo {kind}"))
    return lines + names
