"""The drawings of the HTML report: reach curve, hop histogram, mask thumbnails, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.coarse import tile_counts
from patterncc.errors import SizeError
from patterncc.zones.algebra import expand

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.analysis.curve import Figure
    from patterncc.zones import ZoneSet

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 36
CELLS = 48  # rows and columns of a thumbnail
SHADES = 6


def percent(share: float) -> str:
    """A share for people: never "100%" or "0%" for something that is not.

    >>> percent(1.0), percent(0.12345), percent(0.999999), percent(0.0)
    ('100%', '12.3%', '>99.9%', '0%')
    """
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    if share > 0.9995:
        return ">99.9%"
    return f"{100 * share:.3g}%"


def reach_curve(figures: Sequence[Figure], total: int) -> str:
    """Share of the allowed pairs after each layer; a band where only bounds are known."""
    low = [f.share for f in figures]
    high = [f.hi / total if total else 1.0 for f in figures]
    ceiling = _nice(max(high))
    x, y = _scales(len(figures) - 1, ceiling)
    lower = [(x(l), y(v)) for l, v in enumerate(low)]
    upper = [(x(l), y(v)) for l, v in enumerate(high)]
    parts = [_axes(len(figures) - 1, ceiling, "layers")]
    if any(not f.exact for f in figures):
        parts.append(f'<polygon class="band" points="{_points(upper + lower[::-1])}"/>')
        parts.append(f'<polyline class="line faint" points="{_points(upper)}"/>')
    parts.append(f'<polyline class="line" points="{_points(lower)}"/>')
    for l, (f, (px, py)) in enumerate(zip(figures, lower, strict=True)):
        tip = f"after {l} layers: {percent(f.share)} of allowed pairs, {f.badge} ({f.engine})"
        if len(figures) <= 64:
            parts.append(f'<circle class="dot" cx="{px:.1f}" cy="{py:.1f}" r="2.5"/>')
        parts.append(
            f'<circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="9">'
            f"<title>{escape(tip)}</title></circle>"
        )
    return _svg("Share of allowed pairs reached, by layer", parts)


def hop_bars(hops: Sequence[tuple[int, int]], total: int) -> str:
    """Pairs first reached by each layer, as shares of the allowed pairs (upper bounds faint)."""
    shares = [(lo / total, hi / total) if total else (0.0, 0.0) for lo, hi in hops]
    ceiling = _nice(max((hi for _, hi in shares), default=1.0))
    x, y = _scales(len(hops), ceiling)
    width = max(1.0, (x(1) - x(0)) * 0.72)
    parts = [_axes(len(hops) - 1, ceiling, "layer that reaches a pair first", centred=True)]
    for l, (lo, hi) in enumerate(shares):
        left = x(l) + (x(1) - x(0) - width) / 2
        place = f"{percent(lo)}" if lo == hi else f"{percent(lo)} to {percent(hi)}"
        tip = f"layer {l}: {place} of allowed pairs ({hops[l][0]:,} pairs)"
        bars = [("bar", lo)] if lo == hi else [("bar faint", hi), ("bar", lo)]
        drawn = "".join(
            f'<rect class="{kind}" x="{left:.1f}" y="{y(v):.1f}" width="{width:.1f}" '
            f'height="{y(0) - y(v):.1f}"/>'
            for kind, v in bars
        )
        parts.append(f"<g>{drawn}<title>{escape(tip)}</title></g>")
    return _svg("Pairs first reached, by layer", parts)


def thumbnail(zones: ZoneSet, label: str) -> str:
    """A mask in at most 48 x 48 cells, darker where more of a cell's pairs are edges."""
    shades = _shades(zones)
    size = len(shades)
    parts = [f'<rect class="paper" width="{size}" height="{size}"/>']
    for row in range(size):
        cuts = np.flatnonzero(np.append(True, np.diff(shades[row]) != 0))
        for a, b in zip(cuts.tolist(), [*cuts[1:].tolist(), size], strict=True):
            if shades[row, a]:
                parts.append(
                    f'<rect class="s{shades[row, a]}" x="{a}" y="{row}" '
                    f'width="{b - a}" height="1"/>'
                )
    return (
        f'<svg class="mask" viewBox="0 0 {size} {size}" role="img" aria-label="{escape(label)}" '
        f'shape-rendering="crispEdges">{"".join(parts)}</svg>'
    )


def _shades(zones: ZoneSet) -> NDArray[np.int64]:
    """0 for an empty cell, 1 .. SHADES by the share of its pairs that are edges."""
    n = zones.frame.n
    side = max(1, -(-n // CELLS))
    size = max(1, -(-n // side))
    share = np.zeros((size, size))
    try:
        counts = tile_counts(zones.disjoint(), side)
    except SizeError:
        counts = tile_counts(zones.simplify(), side)  # overlaps counted twice: a picture, no figure
    run, col = expand(counts.whole.first, counts.whole.last)
    share[counts.whole.row[run], col] = 1.0
    share[counts.row, counts.col] = counts.count.astype(np.float64) / float(side) ** 2
    shade = np.ceil(np.minimum(share, 1.0) ** 0.4 * SHADES)
    return np.asarray(shade, dtype=np.int64)


def _svg(label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


class _Scale:
    """A linear scale from data to drawing."""

    def __init__(self, most: float, start: float, end: float) -> None:
        self._most, self._start, self._end = most or 1.0, start, end

    def __call__(self, value: float) -> float:
        return self._start + (self._end - self._start) * value / self._most


def _scales(steps: int, ceiling: float) -> tuple[_Scale, _Scale]:
    return _Scale(steps, LEFT, WIDTH - RIGHT), _Scale(ceiling, HEIGHT - BOTTOM, TOP)


def _axes(steps: int, ceiling: float, title: str, centred: bool = False) -> str:
    x, y = _scales(steps + 1 if centred else steps, ceiling)
    shift = (x(1) - x(0)) / 2 if centred else 0.0
    parts = []
    for k in range(5):
        value = ceiling * k / 4
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" '
            f'y2="{y(value):.1f}"/><text x="{LEFT - 8}" y="{y(value) + 4:.1f}" '
            f'text-anchor="end">{percent(value)}</text>'
        )
    every = max(1, math.ceil((steps + 1) / 12))
    for l in range(0, steps + 1, every):
        parts.append(
            f'<text x="{x(l) + shift:.1f}" y="{HEIGHT - BOTTOM + 16}" '
            f'text-anchor="middle">{l}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{title}</text>')
    return "".join(parts)


def _nice(value: float) -> float:
    """The end of an axis: the value rounded up to 1, 2, 4, 6, 8 times a power of ten, at most 1.

    >>> _nice(0.13), _nice(0.9), _nice(0.0)
    (0.2, 1.0, 1.0)
    """
    if not 0 < value < 0.8:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    step = next(s for s in (1, 2, 4, 6, 8, 10) if s * unit >= value * (1 - 1e-12))
    return min(1.0, round(step * unit, 15))


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)
