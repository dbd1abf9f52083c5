"""Drawings of masks: each distinct one as a thumbnail, and which head of which layer has which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from html import escape
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from patterncc.analysis.engines import offsets
from patterncc.analysis.engines.coarse import tile_counts
from patterncc.analysis.page import svg
from patterncc.analysis.page.svg import SHADES, Scale, percent
from patterncc.errors import SizeError
from patterncc.pattern import Pattern
from patterncc.primitives import Convolution, Recurrent
from patterncc.stack import patterns_of
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import expand
from patterncc.zones.lower import leaves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.analysis.cost import LevelCost
    from patterncc.analysis.topology import Topology
    from patterncc.stack import Stack

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]

CELLS = 48  # rows and columns of a thumbnail
MOST_LAYERS, MOST_HEADS = 128, 64  # of the map; past them every few are shown
GAMMA = 0.4  # so that thin bands show: a shade stands for (shade / SHADES) ** (1 / GAMMA)


MaskKind = Literal["attention", "recurrent", "convolution", "hybrid"]

KINDS: tuple[MaskKind, ...] = get_args(MaskKind)


@dataclass(frozen=True, eq=False)
class Mask:
    """One distinct set of edges, where it is used, and the name it goes by on the page."""

    name: str
    text: str
    kind: MaskKind
    zones: ZoneSet
    edges: int
    places: tuple[tuple[int, tuple[int, ...]], ...]  # (layer, its heads)

    def density(self, n: int) -> float:
        """Edges over all pairs of n queries with every position."""
        total = n * self.zones.frame.n
        return self.edges / total if total else 0.0


def distinct_masks(t: Topology, asked: Stack, costs: Sequence[LevelCost] = ()) -> list[Mask]:
    """Every distinct set of edges in the stack, in order of first use, named as `asked` has it.

    Edges are those of `costs`, and counted where it does not reach.
    """
    known: dict[tuple[MaskKind, bytes], int] = {}
    by_level: dict[tuple[int, int], int] = {}
    zones: list[ZoneSet] = []
    patterns: list[Pattern] = []
    places: list[dict[int, list[int]]] = []
    for layer, level in enumerate(t.levels):
        its = patterns_of(asked.layers[layer])
        for head, which in enumerate(level.head_index):
            at = by_level.get((id(level), which))
            if at is None:
                held = level.head_zones[which]
                key = (kind_of(its[head]), _digest(held))
                at = known.setdefault(key, len(zones))
                by_level[id(level), which] = at
                if at == len(zones):
                    zones.append(held)
                    patterns.append(its[head])
                    places.append({})
            places[at].setdefault(layer, []).append(head)
    return [
        Mask(
            _name(k),
            str(patterns[k]),
            kind_of(patterns[k]),
            zones[k],
            _edges(zones[k], places[k], costs),
            tuple((layer, tuple(heads)) for layer, heads in places[k].items()),
        )
        for k in range(len(zones))
    ]


def _edges(zones: ZoneSet, places: dict[int, list[int]], costs: Sequence[LevelCost]) -> int:
    layer, heads = next(iter(places.items()))
    return costs[layer].edges[heads[0]] if layer < len(costs) else offsets.count(zones)


def _digest(zones: ZoneSet) -> bytes:
    """What tells sets of zones apart, short where they are millions."""
    return blake2b(np.ascontiguousarray(zones.table).data, digest_size=16).digest()


def kind_of(pattern: Pattern) -> MaskKind:
    """Whether a head's edges are those of attention.

    >>> from patterncc import causal, recurrent
    >>> kind_of(causal()), kind_of(recurrent())
    ('attention', 'recurrent')
    """
    held = {type(leaf) for leaf in leaves(pattern)}
    if not held & {Recurrent, Convolution}:
        return "attention"
    if held == {Recurrent}:
        return "recurrent"
    return "convolution" if held == {Convolution} else "hybrid"


def _name(index: int) -> str:
    """A, B, ..., Z, AA, AB, ...

    >>> _name(0), _name(27)
    ('A', 'AB')
    """
    return (_name(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def spans(numbers: Sequence[int]) -> str:
    """Whole numbers, runs shortened.

    >>> spans([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for one in numbers:
        if runs and runs[-1][1] == one - 1:
            runs[-1][1] = one
        else:
            runs.append([one, one])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def where(mask: Mask, t: Topology) -> str:
    """The layers and heads of a mask in words."""
    groups: dict[str, list[int]] = {}
    for layer, heads in mask.places:
        whole = len(t.levels[layer].head_index)
        name = "head" if len(heads) == 1 else "heads"
        which = "" if len(heads) == whole else f", {name} {spans(heads)} of {whole}"
        groups.setdefault(which, []).append(layer)
    said = [
        f"{'layer' if len(layers) == 1 else 'layers'} {spans(layers)}{which}"
        for which, layers in groups.items()
    ]
    more = f"; and in {len(said) - 3} other places" if len(said) > 3 else ""
    return "; ".join(said[:3]) + more


def thumbnail(mask: Mask) -> str:
    """A mask in at most 48 x 48 cells, darker where more of a cell's pairs are edges."""
    shades = _shades(mask.zones)
    size, label = len(shades), f"mask {mask.name}: {mask.text}"
    return (
        f'<svg class="mask" viewBox="0 0 {size} {size}" role="img" aria-label="{escape(label)}" '
        f'shape-rendering="crispEdges"><title>{escape(label)}</title>'
        f'<rect class="paper" width="{size}" height="{size}"/>'
        f"{''.join(svg.cells(shades, f'{mask.kind} s'))}</svg>"
    )


def cell_side(n: int) -> int:
    """How many tokens the side of a thumbnail's cell stands for."""
    return max(1, -(-n // CELLS))


def shade_limits() -> list[float]:
    """The largest share of edges that each shade stands for."""
    return [(k / SHADES) ** (1 / GAMMA) for k in range(1, SHADES + 1)]


def _shades(zones: ZoneSet) -> I64:
    """0 for an empty cell, 1 .. SHADES by the share of its pairs that are edges."""
    shade = np.ceil(np.minimum(cell_shares(zones), 1.0) ** GAMMA * SHADES - 1e-9)
    return np.asarray(shade, dtype=np.int64)


def cell_shares(zones: ZoneSet) -> F64:
    """The share of each cell's pairs that are edges, float64 [cells, cells].

    Single edges go through a histogram.  Where zones overlap too much to be taken apart their
    overlaps count twice, so a share can pass 1: this is for a picture.
    """
    n, side = zones.frame.n, cell_side(zones.frame.n)
    size = max(1, -(-n // side))
    try:
        table = zones.disjoint().table
    except SizeError:
        table = zones.simplify().table
    i0, i1, j0, j1, _, _ = table.T
    alone = (i1 - i0 == 1) & (j1 - j0 == 1)
    cell = i0[alone] // side * size + j0[alone] // side
    edges = np.bincount(cell, minlength=size * size).reshape(size, size).astype(np.float64)
    _add(edges, ZoneSet(zones.frame, table[~alone]), side)
    lengths = np.minimum(side, n - side * np.arange(size)).astype(np.float64)
    return np.asarray(edges / np.maximum(1, lengths[:, None] * lengths), dtype=np.float64)


def _add(edges: F64, zones: ZoneSet, side: int) -> None:
    """Add zones that do not meet to the cells' edges, in parts that can be counted at once."""
    if not len(zones):
        return
    try:
        counts = tile_counts(zones, side)
    except SizeError:
        half = len(zones) // 2
        if not half:
            raise
        for part in (zones.table[:half], zones.table[half:]):
            _add(edges, ZoneSet(zones.frame, part), side)
        return
    run, col = expand(counts.whole.first, counts.whole.last)
    edges[counts.whole.row[run], col] += float(side) ** 2
    edges[counts.row, counts.col] += counts.count.astype(np.float64)


def head_map(t: Topology, masks: Sequence[Mask]) -> str:
    """Layers to the right, heads downwards; letters name the masks, darker where one is denser."""
    layers = svg.thin(len(t.levels), MOST_LAYERS)
    heads = svg.thin(max(len(level.head_index) for level in t.levels), MOST_HEADS)
    names = _uses(t, masks, layers, heads)
    dense = [mask.density(t.n) for mask in masks]
    most = max(dense, default=1.0) or 1.0
    shade = [max(1, round(SHADES * (d / most) ** GAMMA)) for d in dense]
    grid = np.array([0, *shade])[names + 1]
    columns, rows = len(layers), len(heads)
    x, y = Scale(0, columns), Scale(0, rows)
    kinds = np.array([-1, *(KINDS.index(mask.kind) for mask in masks)])[names + 1]
    parts = [
        svg.stretched(svg.cells(np.where(kinds == k, grid, 0), f"{kind} s"), columns, rows)
        for k, kind in enumerate(KINDS)
        if (kinds == k).any()
    ]
    kind = "" if columns <= 16 else "wide"
    if columns <= 40 and rows <= 16:
        parts += [
            svg.text(x(c + 0.5), y(r + 0.5), masks[names[r, c]].name, "middle", dy=4, kind=on)
            for r in range(rows)
            for c in range(columns)
            if names[r, c] >= 0
            for on in [f"{kind} on on{grid[r, c]}".strip()]
        ]
    for r in range(0, rows, max(1, -(-rows // 8))):
        word = f"{heads[r]}" if rows > 1 else "all"
        parts.append(svg.text(0, y(r + 0.5), word, "end", dx=-8, dy=4))
    for c in range(columns):
        column = names[:, c]
        tip = f"layer {layers[c]}: " + ", ".join(
            f"{masks[m].name} {masks[m].text}" for m in dict.fromkeys(column[column >= 0].tolist())
        )
        parts.append(svg.box(x(c), 0, x(1), 100, "hit", tip))
    ticks = [(c + 0.5, f"{layers[c]:,}") for c in svg.steps(columns - 1, 13)]
    parts.append(svg.foot_axis(x, ticks, "layer", few=7))
    height = max(26, min(16 * SHADES * 2, rows * 18))
    drawn = svg.chart("Which head of which layer has which mask", parts, height)
    return f'<div style="max-width: {66 + 64 * columns}px">{drawn}</div>'


def _uses(t: Topology, masks: Sequence[Mask], layers: list[int], heads: list[int]) -> I64:
    """The index of the mask of each (head, layer), -1 where a layer has fewer heads; a layer whose
    heads agree fills its column."""
    names = np.full((len(heads), len(layers)), -1, dtype=np.int64)
    column = {layer: c for c, layer in enumerate(layers)}
    row = {head: r for r, head in enumerate(heads)}
    for k, mask in enumerate(masks):
        for layer, its in mask.places:
            if layer not in column:
                continue
            if len(t.levels[layer].head_index) == 1:
                names[:, column[layer]] = k
            else:
                for head in its:
                    if head in row:
                        names[row[head], column[layer]] = k
    return names


def density_words(mask: Mask, n: int) -> str:
    """Edges and density of a mask; what is no attention has none."""
    if mask.kind != "attention":
        return f"{mask.kind}, not attention" if mask.kind != "hybrid" else "attention in part"
    return f"{mask.edges:,} edges, {percent(mask.density(n))} of all pairs"
