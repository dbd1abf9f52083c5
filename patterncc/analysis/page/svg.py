"""The drawing kit of the HTML report: scales, axes, lines and cells as inline SVG.

A chart is as wide as its place and as high as it says: positions along it are per cent, so text
keeps its size at any width.  Lines and areas stand in an inner drawing of 100 x 100 that is
stretched; their strokes are not.  Hover text is `<title>`; nothing here needs a script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.text import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

HEIGHT = 240
MOST_POINTS = 240  # of one line, and places to hover over
SHADES = 6  # of a mask; a heat map has one more
UNITS = ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P"))

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """A linear scale from [first, last] to per cent of a chart's width or height.

    >>> Scale(0, 8)(2), Scale(0, 4, up=True)(1)
    (25.0, 75.0)
    """

    first: float
    last: float
    up: bool = False

    def __call__(self, value: float) -> float:
        span = self.last - self.first
        part = (value - self.first) / span if span else 0.5
        return 100 * (1 - part if self.up else part)


def number(value: float) -> str:
    """A coordinate, short.

    >>> number(12.5), number(3.0), number(1 / 3)
    ('12.5', '3', '0.33')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def percent(share: float) -> str:
    """A share for people: never "100%" or "0%" for something that is not.

    >>> percent(1.0), percent(0.12345), percent(0.999999), percent(0.0)
    ('100%', '12.3%', '>99.9%', '0%')
    """
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    if 0.9995 < share < 1:
        return ">99.9%"
    return f"{100 * share:.3g}%"


def short(value: float) -> str:
    """A count in little room: exact below a hundred thousand.

    >>> short(8192), short(131072), short(2**30), short(12.34)
    ('8,192', '131k', '1.07G', '12.3')
    """
    if abs(value) < 1e5:
        return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    for unit, name in UNITS:
        if abs(value) < 999.5 * unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def alike(values: Sequence[int]) -> list[str]:
    """Counts along an axis, all in the unit of the largest.

    >>> alike([0, 50000, 100000]), alike([0, 500]), alike([-1500000, 0])
    (['0', '50k', '100k'], ['0', '500'], ['-1.5M', '0'])
    """
    most = max(map(abs, values), default=0)
    if most < 1e5:
        return [f"{v:,}" for v in values]
    unit, name = next((u, x) for u, x in UNITS if most < 1000 * u)
    return [f"{v / unit:.4g}{name}" if v else "0" for v in values]


def after(layers: int) -> str:
    """How deep, in words.

    >>> after(1), after(12)
    ('after 1 layer', 'after 12 layers')
    """
    return f"after {counted(layers, 'layer')}"


def nice(value: float) -> float:
    """The end of an axis of shares: rounded up to 1, 2, 4, 6, 8 times a power of ten, at most 1.

    >>> nice(0.13), nice(0.9), nice(0.0)
    (0.2, 1.0, 1.0)
    """
    if not 0 < value < 0.6:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    step = next(s for s in (1, 2, 4, 6, 8, 10) if s * unit >= value * (1 - 1e-12))
    return min(1.0, round(step * unit, 15))


def steps(last: int, most: int) -> list[int]:
    """Whole numbers from 0 up to `last` for the ticks of an axis, at most about `most`.

    >>> steps(26, 6), steps(3, 6), steps(1000, 5)
    ([0, 5, 10, 15, 20, 25], [0, 1, 2, 3], [0, 200, 400, 600, 800, 1000])
    """
    least = max(1.0, last / max(1, most))
    unit = 10 ** math.floor(math.log10(least))
    every = next(u for u in (1, 2, 2.5, 5, 10) if u * unit >= least and (u * unit) % 1 == 0)
    return list(range(0, last + 1, int(every * unit)))


def thin(count: int, most: int = MOST_POINTS) -> list[int]:
    """Indices 0 .. count - 1, evenly thinned to at most `most`, both ends kept."""
    if count <= most:
        return list(range(count))
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})


def chart(label: str, parts: Iterable[str], height: int = HEIGHT, kind: str = "") -> str:
    """One drawing as wide as its place, with the name that a screen reader says."""
    return (
        f'<svg class="chart {kind}" height="{height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def stretched(parts: Iterable[str], width: int = 100, height: int = 100) -> str:
    """Lines, areas and cells in a drawing of their own, stretched to the chart."""
    inside = "".join(parts)
    return (
        f'<svg width="100%" height="100%" viewBox="0 0 {width} {height}" '
        f'preserveAspectRatio="none">{inside}</svg>'
    )


def line(points: Points, kind: str) -> str:
    """A line through points in per cent, for `stretched`."""
    return f'<path class="line {kind}" d="{_path(points)}"/>'


def area(upper: Points, lower: Points, kind: str) -> str:
    """The area between two lines."""
    return f'<path class="{kind}" d="{_path([*upper, *reversed(lower)])}z"/>'


def _path(points: Points) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def dot(x: float, y: float, kind: str, r: float = 3) -> str:
    """A round mark that is not stretched."""
    return f'<circle class="{kind}" cx="{number(x)}%" cy="{number(y)}%" r="{number(r)}"/>'


def box(x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> str:
    """A rectangle in per cent; hovering over it shows `tip`."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return (
        f'<rect class="{kind}" x="{number(x)}%" y="{number(y)}%" width="{number(max(0, width))}%" '
        f'height="{number(max(0, height))}%"' + (f">{title}</rect>" if title else "/>")
    )


def rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line in per cent."""
    return (
        f'<line class="{kind}" x1="{number(x1)}%" y1="{number(y1)}%" '
        f'x2="{number(x2)}%" y2="{number(y2)}%"/>'
    )


def text(
    x: float, y: float, words: str, anchor: str = "start", dx: int = 0, dy: int = 0, kind: str = ""
) -> str:
    """Words at a place in per cent, moved by dx, dy pixels."""
    css = f' class="{kind}"' if kind else ""
    return (
        f'<text{css} x="{number(x)}%" y="{number(y)}%" dx="{dx}" dy="{dy}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def columns(x: Scale, tips: Sequence[tuple[float, float, str]]) -> str:
    """Invisible full-height columns (from, to, hover text): wide targets for narrow lines."""
    return "".join(box(x(a), 0, x(b) - x(a), 100, "hit", tip) for a, b, tip in tips)


def left_axis(y: Scale, ticks: Iterable[float], say: Callable[[float], str]) -> str:
    """A quiet horizontal line and a label for each tick."""
    return "".join(
        rule(0, y(v), 100, y(v), "grid" if k else "grid base")
        + text(0, y(v), say(v), "end", dx=-8, dy=4)
        for k, v in enumerate(ticks)
    )


def foot_axis(x: Scale, ticks: Sequence[tuple[float, str]], title: str, few: int = 6) -> str:
    """Labels under a chart; those beyond a `few` are left out where the page is narrow."""
    every = max(1, round(len(ticks) / few))
    words = [
        text(x(value), 100, word, "middle", dy=17, kind="wide" if k % every else "")
        for k, (value, word) in enumerate(ticks)
    ]
    return "".join(words) + text(50, 100, title, "middle", dy=36, kind="name")


def layer_axis(x: Scale, depth: int, title: str = "layers passed") -> str:
    """Ticks at whole numbers of layers."""
    return foot_axis(x, [(l, f"{l:,}") for l in steps(depth, 13)], title, few=7)


def share_axis(ceiling: float, top: float = 0) -> tuple[Scale, str]:
    """The scale and the axis of a share from 0 up to `ceiling`, `top` per cent left free above."""
    y = Scale(0, ceiling * 100 / (100 - top), up=True)
    return y, left_axis(y, [ceiling * k / 4 for k in range(5)], percent)


def cells(shades: I64, prefix: str = "s") -> list[str]:
    """A grid of shades (0: nothing) as one path a shade, runs along a row joined.

    >>> cells(np.array([[1, 1, 0], [0, 2, 2]]))
    ['<path class="s1" d="M0 0h2v1h-2z"/>', '<path class="s2" d="M1 1h2v1h-2z"/>']
    """
    paths: dict[int, list[str]] = {}
    for row in range(len(shades)):
        values = shades[row]
        cuts = np.flatnonzero(np.append(True, values[1:] != values[:-1])).tolist()
        for a, b in zip(cuts, [*cuts[1:], len(values)], strict=True):
            if values[a]:
                paths.setdefault(int(values[a]), []).append(f"M{a} {row}h{b - a}v1h{a - b}z")
    return [f'<path class="{prefix}{k}" d="{"".join(paths[k])}"/>' for k in sorted(paths)]
