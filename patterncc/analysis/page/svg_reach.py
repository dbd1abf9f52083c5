"""Drawings over depth: the reach curve, the hops of all pairs, and cost with reach against it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from patterncc.analysis.page import svg
from patterncc.analysis.page.svg import Scale, percent
from patterncc.analysis.text import counted
from patterncc.stack import patterns_of
from patterncc.zones.choice import Chooser
from patterncc.zones.lower import leaves

if TYPE_CHECKING:
    from patterncc.analysis.curve import Figure
    from patterncc.analysis.report import Report
    from patterncc.analysis.topology import Kind, Topology
    from patterncc.stack import Stack

MOST_BANDS = 400  # runs of layers of one kind that are shaded
MOST_MARKS = 128  # layers that are marked one by one
MOST_DOTS = 48
STEEP = 0.03  # top of a scale below which full attention's line would stand upright


def bands(t: Topology, x: Scale, depth: int, asked: Stack) -> str:
    """Layers shaded by kind from x(l) to x(l + 1); a ring where a layer reads another's keys and
    values, a full mark where it chooses by content."""
    runs = [
        (kind, [l for l, _ in group])
        for kind, group in groupby(
            ((l, kind_of(t, asked, l)) for l in range(depth)), key=lambda pair: pair[1]
        )
    ]
    if len(runs) > MOST_BANDS:
        return ""
    parts = []
    for kind, layers in runs:
        first, last = layers[0], layers[-1] + 1
        parts.append(svg.box(x(first), 0, x(last) - x(first), 100, f"band-{kind}"))
    if depth <= MOST_MARKS:
        chosen = choosers(asked)
        marked = [l for l in range(depth) if l % len(asked) in chosen]
        parts += [svg.dot(x(l + 0.5), 100, "chooser", 3.5) for l in marked]
        borrowers = [l for l in range(depth) if t.source(l) != l]
        parts += [svg.dot(x(l + 0.5), 100, "shared", 3) for l in borrowers]
    return "".join(parts)


def kind_of(t: Topology, asked: Stack, layer: int) -> Kind:
    """A layer's kind; one that chooses by content is sparse, though it may choose from all."""
    kind = t.level(layer).kind
    return "sparse" if kind == "dense" and layer % len(asked) in choosers(asked) else kind


@lru_cache(maxsize=8)
def choosers(asked: Stack) -> frozenset[int]:
    """Layers of a stack in which some head chooses its keys by content.

    >>> from patterncc import Stack, causal, topk, window
    >>> choosers(Stack([causal() & window(3), causal() & topk(8)]))
    frozenset({1})
    """
    return frozenset(
        l
        for l, layer in enumerate(asked.layers)
        if any(isinstance(leaf, Chooser) for p in patterns_of(layer) for leaf in leaves(p))
    )


def reach_curve(report: Report) -> str:
    """Share of the allowed pairs after each layer; a band where only bounds are known.

    Where layers choose by content the band runs from the guaranteed to the possible reach, and
    the line is what was traced, or the guaranteed reach where nothing was.
    """
    t, figures, total = report.topology, report.reach, report.pairs
    depth = len(figures) - 1
    low, high = figures, figures
    if report.content is not None:
        low, high = report.content.guaranteed.figures, report.content.possible.figures
    ceiling = svg.nice(max(fraction(f.hi, total) for f in high))
    x, (y, axis) = Scale(0, depth), svg.share_axis(ceiling)
    shown = svg.thin(len(figures))
    middle = [(x(l), y(figures[l].share)) for l in shown]
    drawn = []
    if any(high[l].hi > low[l].lo for l in shown):
        below = [(x(l), y(fraction(low[l].lo, total))) for l in shown]
        above = [(x(l), y(fraction(high[l].hi, total))) for l in shown]
        drawn = [svg.area(above, below, "fill reach"), svg.line(above, "reach faint")]
        drawn.append(svg.line(below, "reach faint"))
    drawn.append(svg.line(middle, "reach"))
    parts = [bands(t, x, depth, report.asked), axis, svg.layer_axis(x, depth)]
    parts.append(svg.stretched(drawn))
    if len(shown) <= MOST_DOTS:
        parts += [svg.dot(px, py, "dot reach") for px, py in middle]
    full = report.full
    if full.decided and not full.never and 0 < full.lo <= depth:
        side = ("end", -6) if x(full.lo) > 70 else ("start", 6)
        parts.append(svg.rule(x(full.lo), 0, x(full.lo), 100, "mark"))
        words = f"full after {full.lo}"
        parts.append(svg.text(x(full.lo), 60, words, side[0], dx=side[1], kind="strong halo"))
    tips = [_said(l, figures[l]) for l in shown]
    parts.append(_hover(report, x, shown, tips))
    return svg.chart("Share of the allowed pairs reached, by layers passed", parts, height=260)


def _said(layer: int, f: Figure) -> str:
    return f"{svg.after(layer)}: {percent(f.share)} of the allowed pairs, {f.badge} ({f.engine})"


def _hover(report: Report, x: Scale, shown: Sequence[int], tips: Sequence[str]) -> str:
    """Columns around each layer that is shown, with what to say of it and of the layer passed."""
    ends = [(a + b) / 2 for a, b in pairwise(shown)]
    edges = [shown[0], *ends, shown[-1]] if shown else []
    spans = []
    for k, (l, tip) in enumerate(zip(shown, tips, strict=True)):
        passed = f"\nlayer {l - 1} is {report.asked.layer(l - 1)}" if l else ""
        spans.append((edges[k], edges[k + 1], tip + passed))
    return svg.columns(x, spans)


def hop_bars(hops: Sequence[tuple[int, int]], total: int) -> str:
    """Pairs first reached by each layer, as shares of the allowed pairs (upper bounds faint)."""
    last = max((l for l, (_, hi) in enumerate(hops) if hi), default=0)
    groups = _groups(min(len(hops), last + 2))
    sums = [(sum(h[0] for h in hops[a:b]), sum(h[1] for h in hops[a:b])) for a, b in groups]
    shares = [(fraction(lo, total), min(1.0, fraction(hi, total))) for lo, hi in sums]
    y, axis = svg.share_axis(svg.nice(max((hi for _, hi in shares), default=1.0)))
    x = Scale(0, len(groups))
    parts = [axis]
    for k, ((a, b), (lo, hi)) in enumerate(zip(groups, shares, strict=True)):
        left, width = x(k) + 0.14 * x(1), 0.72 * x(1)
        place = percent(lo) if lo == hi else f"{percent(lo)} to {percent(hi)}"
        name = f"layer {a}" if b == a + 1 else f"layers {a} to {b - 1}"
        count = f"{sums[k][0]:,}" if lo == hi else f"{sums[k][0]:,} to {sums[k][1]:,}"
        tip = f"{name if b > 1 else 'each token itself'}: {place} of the allowed pairs ({count})"
        if lo != hi:
            parts.append(svg.box(left, y(hi), width, 100 - y(hi), "bar reach faint"))
        parts.append(svg.box(left, y(lo), width, 100 - y(lo), "bar reach"))
        parts.append(svg.box(x(k), 0, x(1), 100, "hit", tip))
    ticks = [(k + 0.5, f"{groups[k][0]:,}") for k in svg.steps(len(groups) - 1, 8)]
    parts.append(svg.foot_axis(x, ticks, "number of layers it takes", few=7))
    return svg.chart("Pairs first reached, by layer", parts, 260)


def _groups(count: int, most: int = 64) -> list[tuple[int, int]]:
    """0 .. count - 1 in at most `most` runs of equal length."""
    size = max(1, -(-count // most))
    return [(a, min(count, a + size)) for a in range(0, count, size)]


def cost_curves(report: Report) -> str:
    """FLOPs and KV bytes of the layers passed, as shares of a full-attention stack's total, and
    reach."""
    costs, figures = report.costs, report.reach
    depth = len(costs)
    flops = cumulated([c.flops for c in costs], [c.full_flops for c in costs])
    full_kv = [c.full_kv_bytes for c in costs]
    kv = cumulated([c.kv_bytes for c in costs], full_kv)
    held = cumulated([c.kv_held_bytes for c in costs], full_kv)
    most = svg.nice(max(flops[-1], kv[-1], held[-1], figures[-1].share))
    x, (y, axis) = Scale(0, depth), svg.share_axis(most)
    shown = svg.thin(depth + 1)
    lines = [
        *([("held", held)] if held != kv else []),
        ("kv", kv),
        ("flops", flops),
        ("reach", [f.share for f in figures]),
    ]
    drawn = [svg.line([(0, y(0)), (100 * most, y(most))], "full")] if most > STEEP else []
    drawn += [svg.line([(x(l), y(values[l])) for l in shown], kind) for kind, values in lines]
    tips = [
        f"{svg.after(l)}: reach {percent(figures[l].share)}, FLOPs {percent(flops[l])}, KV bytes "
        f"read {percent(kv[l])} and held {percent(held[l])} of what full attention costs in "
        f"{counted(depth, 'layer')}"
        for l in shown
    ]
    parts = [bands(report.topology, x, depth, report.asked), axis, svg.layer_axis(x, depth)]
    parts += [svg.stretched(drawn), _hover(report, x, shown, tips)]
    return svg.chart("Cost and reach, by layers passed", parts)


def cumulated(parts: Sequence[float], wholes: Sequence[float]) -> list[float]:
    """Running sums as shares of the sum of the wholes, from nothing on.

    >>> cumulated([1.0, 3.0], [4.0, 4.0])
    [0.0, 0.125, 0.5]
    """
    total, run, shares = sum(wholes), 0.0, [0.0]
    for part in parts:
        run += part
        shares.append(min(1.0, run / total) if total else 0.0)
    return shares


def fraction(part: float, whole: float) -> float:
    """part / whole; 1.0 for nothing out of nothing."""
    return part / whole if whole else 1.0
