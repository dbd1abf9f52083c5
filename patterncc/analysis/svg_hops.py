"""How many layers the keys of one query take, by their distance from it: a heat map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis import svg
from patterncc.analysis.spread import cone_of
from patterncc.analysis.svg import SHADES, Scale, percent
from patterncc.errors import SizeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.analysis.topology import Topology

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]

MOST_STEPS = 4096  # layers that are walked for one map
MOST_WORK = 2**25  # zones of all layers that are walked
OCTAVE = 4  # bins of distance while it doubles
MOST_ROWS = 24


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


def hop_map(t: Topology, query: int, depth: int) -> HopMap | None:
    """The hops of one query's keys, exactly, from its receptive cones; None where that is too much
    work."""
    work = sum(len(t.level(l).zones) for l in range(depth)) + depth
    longest = depth * (1 if t.period == 1 and not t.shared else min(depth, t.period + 1))
    if longest > MOST_STEPS or work * max(1, longest // max(1, depth)) > MOST_WORK:
        return None
    edges = distance_edges(max(query, t.frame.n - 1 - query))
    whole = in_bins(np.array([[0, t.frame.n]], dtype=np.int64), query, edges)
    try:
        rows = [in_bins(x, query, edges) for x in _reached(t, query, depth)]
    except SizeError:
        return None
    first = np.diff(np.stack([np.zeros_like(whole), *rows]), axis=0)
    share = first / np.maximum(whole, 1)
    return HopMap(query, edges, share, (whole - rows[-1]) / np.maximum(whole, 1))


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


def distance_edges(farthest: int) -> I64:
    """Bounds of bins of distance: 0, then OCTAVE a doubling, whole numbers without doubles.

    >>> distance_edges(9).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    """
    octaves = max(1, farthest).bit_length()
    bounds = {0} | {round(2 ** (k / OCTAVE)) for k in range(octaves * OCTAVE + 1)}
    return np.array(sorted(b for b in bounds if b <= farthest) + [farthest + 1], dtype=np.int64)


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
    groups = _rows(len(hops.share))
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
        if k % every == 0:
            parts.append(svg.text(0, y(k + 0.5), name, "end", dx=-8, dy=4))
        parts.append(svg.box(0, y(k + 1), 100, y(0) - y(1), "hit", _said(hops, share[k], name)))
    if hops.rest.any():
        parts.append(svg.text(0, y(count + 0.5), "not", "end", dx=-8, dy=4))
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
    """Powers of two among the bounds of bins, at most about a dozen."""
    held = [(k, e) for k, e in enumerate(edges[:-1].tolist()) if e & (e - 1) == 0]
    every = max(1, -(-len(held) // 12))
    return [(float(k), svg.short(e)) for k, e in held[::every]]
