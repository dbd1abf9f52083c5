"""One plane of a comparison as an SVG drawing: axes, marks, brackets, the front, labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 360  # of one plane, in pixels
LEFT, RIGHT, TOP, FOOT = 64, 18, 44, 52
NEVER = 26  # pixels of the row at the top for what has no end
LETTER = 6.3  # pixels of a letter of a label, widely reckoned
MOST_LABELS = 14  # candidates beyond which only those on the front are named
STEEP = 6.0  # greatest over least value from which an axis is logarithmic


@dataclass(frozen=True)
class Mark:
    """A candidate's place: x, and y within [low, high], where infinity has no end."""

    name: str
    x: float
    low: float
    high: float
    front: bool
    tip: str


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels, logarithmic where values differ much.

    >>> Axis(1, 100, 0, 200, True)(10), Axis(0, 4, 0, 200, False)(1)
    (100.0, 50.0)
    """

    first: float
    last: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        a, b = self.first, self.last
        if self.log:
            part = math.log(max(value, a) / a) / math.log(b / a)
        else:
            part = (value - a) / (b - a)
        return self.start + (self.end - self.start) * part

    @staticmethod
    def over(values: Sequence[float], start: float, end: float) -> Axis:
        """The axis that holds all values, with room at its ends."""
        least, most = min(values, default=0.0), max(values, default=1.0)
        if least > 0 and most / least >= STEEP:
            return Axis(least / 1.5, most * 1.6, start, end, True)
        return Axis(0.0, most * 1.15 or 1.0, start, end, False)

    def ticks(self) -> list[float]:
        """Round values inside: 1, 2, 5 times powers of ten, or even steps.

        >>> Axis(0.8, 30, 0, 1, True).ticks(), Axis(0, 4.6, 0, 1, False).ticks()
        ([1.0, 2.0, 5.0, 10.0, 20.0], [0.0, 1.0, 2.0, 3.0, 4.0])
        """
        if not self.log:
            rough = self.last / 4
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(s * unit for s in (1, 2, 5, 10) if s * unit >= rough * 0.8)
            return [round(k * step, 12) for k in range(int(self.last / step) + 1)]
        powers = range(math.floor(math.log10(self.first)), math.ceil(math.log10(self.last)) + 1)
        for parts in ((1, 2, 5), (1, 3), (1,)):
            found = [p * 10.0**e for e in powers for p in parts]
            found = [round(v, 15) for v in found if self.first <= v <= self.last]
            if len(found) <= 7:
                break
        return found[:: math.ceil(len(found) / 7)]


def plane(
    title: str,
    marks: Sequence[Mark],
    x_name: str,
    y_name: str,
    say_x: Callable[[float], str],
    say_y: Callable[[float], str],
    more_is_better: bool,
) -> str:
    """The drawing, as the inside of an SVG of WIDTH x HEIGHT."""
    endless = any(math.isinf(m.high) for m in marks)
    top = TOP + (NEVER if endless else 0)
    x = Axis.over([m.x for m in marks], LEFT, WIDTH - RIGHT)
    ends = [v for m in marks for v in (m.low, m.high) if math.isfinite(v)]
    y = Axis.over(ends, HEIGHT - FOOT, top)
    parts = [f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>']
    parts += _frame(x, y, x_name, y_name, say_x, say_y)
    if endless:
        parts.append(_line(LEFT, top, WIDTH - RIGHT, top, "grid cut"))
        parts.append(_text(LEFT - 8, TOP + NEVER / 2 + 4, "never", "end"))

    def height(value: float) -> float:
        return TOP + NEVER / 2 if math.isinf(value) else y(value)

    if not marks:
        parts.append(
            _text((LEFT + WIDTH) / 2, HEIGHT / 2, "no candidate has a place here", "middle")
        )
    parts.append(_front([m for m in marks if m.front], x, height, more_is_better))
    parts += _labels(marks, [(x(m.x), height(m.low)) for m in marks])
    parts += [_mark(m, x(m.x), height(m.low), height(m.high)) for m in marks]
    return "\n".join(parts)


def _frame(
    x: Axis,
    y: Axis,
    x_name: str,
    y_name: str,
    say_x: Callable[[float], str],
    say_y: Callable[[float], str],
) -> list[str]:
    foot, middle = HEIGHT - FOOT, (TOP + HEIGHT - FOOT) / 2
    parts = [_line(LEFT, foot, WIDTH - RIGHT, foot, "grid base")]
    for v in x.ticks():
        parts.append(_line(x(v), TOP, x(v), foot, "grid"))
        parts.append(_text(x(v), foot + 18, say_x(v), "middle"))
    for v in y.ticks():
        parts.append(_line(LEFT, y(v), WIDTH - RIGHT, y(v), "grid"))
        parts.append(_text(LEFT - 8, y(v) + 4, say_y(v), "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_name, "middle"))
    parts.append(
        f'<text x="14" y="{middle:g}" text-anchor="middle" transform="rotate(-90 14 {middle:g})">'
        f"{escape(y_name)}</text>"
    )
    return parts


def _front(
    marks: Sequence[Mark], x: Axis, height: Callable[[float], float], more_is_better: bool
) -> str:
    """Steps through the front: each cost buys what the candidate before it reached.

    A bracket counts by its worst end, which is what it is sure to reach.
    """
    best: list[tuple[float, float]] = []
    for m in sorted(marks, key=lambda m: (m.x, m.low)):
        value = m.low if more_is_better else m.high
        if not best or (value > best[-1][1] if more_is_better else value < best[-1][1]):
            best.append((m.x, value))
    if len(best) < 2:
        return ""
    path = f"M{x(best[0][0]):.1f} {height(best[0][1]):.1f}"
    for at, value in best[1:]:
        path += f"H{x(at):.1f}V{height(value):.1f}"
    return f'<path class="front" d="{path}"/>'


def _mark(m: Mark, x: float, low: float, high: float) -> str:
    kind = "on" if m.front else "off"
    bar = ""
    if high != low:
        bar = _line(x, low, x, high, f"bar {kind}")
        bar += _line(x - 5, high, x + 5, high, f"bar {kind}")
    return (
        f'<g><title>{escape(m.tip)}</title>{bar}<circle class="{kind}" cx="{x:.1f}" '
        f'cy="{low:.1f}" r="5"/></g>'
    )


def _labels(marks: Sequence[Mark], places: Sequence[tuple[float, float]]) -> list[str]:
    """Names beside their marks, moved to where they cover no other; those on the front first."""
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in places]
    crowded = len(marks) > MOST_LABELS
    found = []
    for k in sorted(range(len(marks)), key=lambda k: not marks[k].front):
        m, (px, py) = marks[k], places[k]
        if crowded and not m.front:
            continue
        name = m.name if len(m.name) <= 28 else m.name[:12] + "..." + m.name[-13:]
        wide = LETTER * len(name)
        others = taken[:k] + taken[k + 1 :]
        left, up = _free(px, py, wide, others)
        taken.append((left, up - 11, left + wide, up + 3))
        kind = "label" if m.front else "label soft"
        found.append(f'<text class="{kind}" x="{left:.1f}" y="{up:.1f}">{escape(name)}</text>')
    return found


def _free(
    px: float, py: float, wide: float, taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """Where a label's baseline starts: the nearest place to its mark that is free and inside."""
    tries = [
        (px + side, py + 4 + shift)
        for shift in (-12, 0, 13, -25, 26, -38, 39, -51, 52)  # above first: fronts run level
        for side in (7, -7 - wide, -wide / 2)
        if shift or side != -wide / 2
    ]
    inside = [
        (a, b)
        for a, b in tries
        if a >= LEFT + 2 and a + wide <= WIDTH - 2 and b - 11 >= TOP - 4 and b + 3 <= HEIGHT - FOOT
    ]
    for a, b in inside:
        clear = all(a + wide < t[0] or t[2] < a or b + 3 < t[1] or t[3] < b - 11 for t in taken)
        if clear:
            return a, b
    return (inside or [(max(LEFT + 2, min(px + 9, WIDTH - 2 - wide)), py + 4)])[0]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
