"""How many layers the keys of one query take, by their distance from it: a heat map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.page import svg
from patterncc.analysis.page.svg import SHADES, Scale, percent
from patterncc.analysis.spread import cone_of, size
from patterncc.errors import SizeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.analysis.topology import Topology

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]

MOST_STEPS = 4096  # layers that are walked for one map
MOST_WORK = 2**25  # zones of all layers that are walked
OCTAVE = 4  # bins of distance while it doubles
EVEN = 96  # bins of equal width
STEADY = 8  # layers past which depth buys distance step by step: bins of equal width show it
MOST_ROWS = 40


@dataclass(frozen=True, eq=False)
class HopMap:
    """share[l, b] of the keys at distance edges[b] up to edges[b + 1] that the query is first
    reached by through l layers; rest[b] is the share that no layer reaches.

    Both sides of the query count; bins without a key hold 0.
    """

    query: int
    edges: I64
    share: F64
    rest: F64

    @property
    def last(self) -> int:
        """The last layer that reaches a key first."""
        return int(np.flatnonzero(self.share.any(axis=1))[-1])


def hop_map(t: Topology, query: int, depth: int) -> HopMap | None:
    """The hops of one query's keys, exactly, from its receptive cones; None where that is too much
    work."""
    walks = depth if t.shared else min(t.period, depth + 1)
    zones = sum(len(t.level(l).zones) for l in range(depth))
    if walks * depth > MOST_STEPS or walks * zones > MOST_WORK:
        return None
    try:
        reached = _reached(t, query, depth)
    except SizeError:
        return None
    farthest = max(query, t.frame.n - 1 - query)
    sizes = [size(x) for x in reached]
    changes = [l for l in range(1, depth + 1) if sizes[l] > sizes[l - 1]]
    edges = distance_edges(farthest, even=_even(changes, sizes[-1], farthest))
    whole = in_bins(np.array([[0, t.frame.n]], dtype=np.int64), query, edges)
    rows = [in_bins(x, query, edges) for x in reached]
    first = np.diff(np.stack(rows), axis=0, prepend=0)
    share = first / np.maximum(whole, 1)
    return HopMap(query, edges, share, (whole - rows[-1]) / np.maximum(whole, 1))


def _even(changes: list[int], reached: int, farthest: int) -> bool:
    """Whether bins of equal width show the steps: many of them, over a good part of the range."""
    return bool(changes) and changes[-1] >= STEADY and 8 * reached >= farthest


def _reached(t: Topology, query: int, depth: int) -> list[I64]:
    """The query's rows of R_0 .. R_depth.

    A walk down from layer L passes the rows of every shallower stack that ends at the same place
    of the period.
    """
    if t.shared:
        return [cone_of(t, query, l).layers[0] for l in range(depth + 1)]
    rows: dict[int, I64] = {}
    for top in range(depth, max(-1, depth - t.period), -1):
        walk = cone_of(t, query, top).layers
        rows.update({l: walk[top - l] for l in range(top, -1, -t.period)})
    return [rows[l] for l in range(depth + 1)]


def distance_edges(farthest: int, even: bool) -> I64:
    """Bounds of bins of distance, 0 alone: equally wide, or OCTAVE a doubling without doubles.

    >>> distance_edges(9, even=False).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    """
    last = farthest + 1
    if even:
        return np.unique(np.linspace(0, last, min(EVEN, last) + 1).astype(np.int64))
    octaves = max(1, farthest).bit_length()
    bounds = {0} | {round(2 ** (k / OCTAVE)) for k in range(octaves * OCTAVE + 1)}
    return np.array([*sorted(b for b in bounds if b <= farthest), last], dtype=np.int64)


def in_bins(positions: I64, query: int, edges: I64) -> I64:
    """How many of a set of positions lie in each bin of distance from the query, both sides."""
    starts, ends = positions[:, 0], positions[:, 1]
    sizes = np.append(0, np.cumsum(ends - starts))

    def below(place: I64) -> I64:
        at = np.searchsorted(starts, place, side="right")
        into = np.minimum(place, np.append(place.min(), ends)[at])
        return np.where(at > 0, sizes[at - 1] + into - np.append(0, starts)[at], 0)

    near, far = edges[:-1], edges[1:]
    before = below(query - near + 1) - below(query - far + 1)
    after = below(query + far) - below(query + np.maximum(near, 1))
    return np.asarray(before + after, dtype=np.int64)


def hop_heat(hops: HopMap) -> str:
    """Layers upwards, distance to the right, darker where more keys are first reached."""
    groups = _rows(hops.last + 1)
    share = np.stack([hops.share[a:b].sum(axis=0) for a, b in groups])
    count, bins = len(groups), len(hops.edges) - 1
    y, x = Scale(0, count + 1, up=True), Scale(0, bins)
    picture = np.concatenate([hops.rest[None], share[::-1]])
    shades = np.ceil(np.minimum(picture, 1) * SHADES - 1e-9).astype(np.int64)
    inside = shades.copy()
    inside[0] = 0
    parts = [
        svg.stretched(
            [
                f'<rect class="paper" width="{bins}" height="{count + 1}"/>',
                *svg.cells(inside, "reach s"),
                *svg.cells(np.where(np.arange(count + 1)[:, None] == 0, shades, 0), "rest s"),
            ],
            bins,
            count + 1,
        )
    ]
    every = max(1, -(-count // 12))
    for k, (a, b) in enumerate(groups):
        name = f"{a:,}" if b == a + 1 else f"{a:,}-{b - 1:,}"
        if k % every == 0 and (count - k >= every or not hops.rest.any()):
            parts.append(svg.text(0, y(k + 0.5), name, "end", dx=-8, dy=4))
        parts.append(svg.box(0, y(k + 1), 100, y(0) - y(1), "hit", _said(hops, share[k], name)))
    if hops.rest.any():
        parts.append(svg.text(0, y(count + 0.5), "not yet", "end", dx=-8, dy=4))
        tip = f"not reached by {len(hops.share) - 1} layers"
        parts.append(svg.box(0, 0, 100, y(0) - y(1), "hit", tip))
    parts.append(svg.foot_axis(x, distance_ticks(hops.edges), "distance from the query, tokens"))
    return svg.chart("Layers that the keys of one query take, by distance", parts, 260)


def _said(hops: HopMap, share: F64, name: str) -> str:
    held = np.flatnonzero(share > 0)
    if not len(held):
        return f"layer {name}: reaches nothing new"
    first, last = int(hops.edges[held[0]]), int(hops.edges[held[-1] + 1]) - 1
    most = percent(float(share.max()))
    return f"{name} layers: first reaches keys at {first:,} to {last:,}, up to {most} of a distance"


def _rows(count: int) -> list[tuple[int, int]]:
    size = max(1, -(-count // MOST_ROWS))
    return [(a, min(count, a + size)) for a in range(0, count, size)]


def distance_ticks(edges: I64) -> list[tuple[float, str]]:
    """Round distances among the bounds of bins: powers of two, or even steps; about seven."""
    bounds = edges[:-1].tolist()
    held = [(float(k), svg.short(e)) for k, e in enumerate(bounds) if e & (e - 1) == 0]
    widths = np.diff(edges)
    if len(edges) > 2 and widths.max() - widths.min() <= 1 and widths.max() > 1:
        last = int(edges[-1]) - 1
        at = svg.steps(last, 6)
        places = [len(bounds) * v / (last + 1) for v in at]
        return list(zip(places, svg.alike(at), strict=True))
    every = max(1, -(-len(held) // 7))
    return held[::every]
