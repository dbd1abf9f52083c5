"""Drawings of single tokens: the busiest, how evenly the load is spread, and what a lost relay
costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from patterncc.analysis.page import svg
from patterncc.analysis.page.svg import Scale, percent, short

if TYPE_CHECKING:
    from patterncc.analysis.flow.hubs import HubLoad
    from patterncc.analysis.robustness import Robustness

MOST_BARS = 12
BAR = 20  # pixels of one bar


def hub_bars(hubs: HubLoad) -> str:
    """The busiest positions, their load as multiples of an even share."""
    shown = hubs.busiest[:MOST_BARS]
    most = max(load for _, load in shown)
    x = Scale(0, max(most, 1.0) * 1.3)
    y = Scale(0, len(shown))
    parts = []
    for k, (position, load) in enumerate(shown):
        middle, height = y(k + 0.5), 0.64 * y(1)
        tip = f"position {position:,} carries {load:.4g} times an even share"
        parts += [
            svg.text(0, middle, f"{position:,}", "end", dx=-8, dy=4),
            svg.box(0, middle - height / 2, x(load), height, "bar flow", tip),
            svg.text(x(load), middle, f"{short(load)}\u00d7", dx=6, dy=4, kind="strong"),
        ]
    parts.append(svg.rule(x(1), 0, x(1), 100, "thumb"))
    if x(1) > 12:
        parts.append(svg.text(x(1), 100, "even share", "middle", dy=17))
    under = 36 if x(1) > 12 else 17
    parts.append(svg.text(50, 100, "load, times an even share", "middle", dy=under, kind="name"))
    return svg.chart("The busiest positions", parts, BAR * len(shown), "named")


def n_eff_curve(hubs: HubLoad) -> str:
    """How many positions carry the load after each layer, on a log scale from 1 to all of them."""
    top = max(1, math.ceil(math.log10(hubs.positions) - 1e-9))
    x, y = Scale(0, hubs.depth), Scale(0, top, up=True)
    shown = svg.thin(len(hubs.n_eff))
    points = [(x(l), y(math.log10(max(1.0, hubs.n_eff[l])))) for l in shown]
    every = max(1, -(-top // 5))
    axis = svg.left_axis(y, range(0, top + 1, every), lambda k: short(10**k))
    even = y(math.log10(hubs.positions))
    parts = [axis, svg.rule(0, even, 100, even, "thumb")]
    parts.append(svg.text(0, even, f"all {short(hubs.positions)} evenly", dx=4, dy=-5, kind="halo"))
    parts.append(svg.stretched([svg.line(points, "flow")]))
    if len(shown) <= 48:
        parts += [svg.dot(px, py, "dot flow") for px, py in points]
    half = 0.5 if len(shown) < 2 else (shown[1] - shown[0]) / 2
    tips = [
        (
            max(0, l - half),
            min(hubs.depth, l + half),
            f"{svg.after(l)}: {hubs.n_eff[l]:,.4g}",
        )
        for l in shown
    ]
    parts += [svg.columns(x, tips), svg.layer_axis(x, hubs.depth)]
    return svg.chart("Positions that carry the load, by layer", parts)


def dumbbell(one: Robustness) -> str:
    """Reach before and after a relay is lost, on one line from 0 to 100%."""
    before, after = 100 * one.before.share, 100 * one.after.share
    tip = f"{percent(one.before.share)} before, {percent(one.after.share)} after"
    parts = [
        svg.rule(0, 50, 100, 50, "grid"),
        svg.rule(after, 50, before, 50, "lost"),
        svg.dot(before, 50, "before", 5),
        svg.dot(after, 50, "dot reach", 5),
        svg.box(0, 0, 100, 100, "hit", tip),
    ]
    return svg.chart(f"Without token {one.token}: {tip}", parts, 18, "inline")
