"""Findings about tiles: those computed past the last token, and those that hold next to nothing.

A kernel computes whole tiles.  Their pairs are counted exactly in the tile rows where zones begin
or end and in some evenly spaced ones between, which stand for the rest; a row of any width is a few
runs of equal tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.lint.finding import Finding
from patterncc.analysis.lint.places import Family, percent, place
from patterncc.analysis.topology import Topology
from patterncc.zones import algebra
from patterncc.zones.lower import leaves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

SIDE = 128  # queries and keys of a tile
SMALLER = (64, 32)  # sides that are tried where tiles of SIDE are nearly empty
LEAST_ROWS = 4  # tile rows of a sequence that is long enough to judge
NEARLY = 20  # a tile with less than one pair in so many is nearly empty
MOSTLY = 0.5  # the share of nearly empty tiles that is told
WASTED = 0.01  # the share of the computed area past the last token that is told of own blocks
WASTED_TILES = 0.1  # the same of tiles of SIDE
MOST_ROWS = 128  # tile rows that are looked at
MOST_MET = 2**15  # pairs of a zone and a tile row that are looked at


@dataclass(frozen=True, eq=False)
class Tiles:
    """Runs of equal tiles, touched ones only, in some tile rows of a set of edges.

    row: the tile row; first: the first tile of the run, count: how many; pairs: edges a tile (edges
    that two zones share count twice, up to all); exist: pairs of queries and keys that there are;
    weight: how many such runs there are for each one looked at.  `looked` tile rows of `of`.
    """

    row: I64
    first: I64
    count: I64
    pairs: I64
    exist: I64
    weight: NDArray[np.float64]
    looked: int
    of: int


def empty_tiles(t: Topology, families: tuple[Family, ...]) -> Iterator[Finding]:
    """PCC113: most of the tiles that a pattern touches hold less than one pair in NEARLY."""
    if t.n < LEAST_ROWS * SIDE:
        return
    for family in families:
        if not family.masked or not len(family.spots[0].zones):
            continue
        found = tiles(t, family.spots[0].zones.table, SIDE)
        share = nearly_empty(found)
        if share < MOSTLY:
            continue
        less = [
            s for s in SMALLER if nearly_empty(tiles(t, family.spots[0].zones.table, s)) < MOSTLY
        ]
        looked = f" (by {found.looked} of {found.of} tile rows)" * (found.looked < found.of)
        yield Finding.of(
            "PCC113",
            f"{family.place()}: {percent(share)} of the tiles of {SIDE} x {SIDE} that the pattern "
            f"touches hold less than {percent(1 / NEARLY)} of their pairs{looked}",
            f"compile with block={less[0]}, where most tiles hold more"
            if less
            else "let whole blocks read whole blocks (window(..., block=64), summary, "
            "random_blocks), or reorder the tokens so that those read together stand together",
        )


def padding(t: Topology, families: tuple[Family, ...]) -> Iterator[Finding]:
    """PCC112: tiles reach past the last token by a share worth telling: from WASTED on for blocks
    that a pattern names, from WASTED_TILES on for tiles of SIDE under the other patterns."""
    wasteful: dict[int, list[tuple[float, Family, bool]]] = {}
    for family in families:
        for side in own_blocks(family) or [SIDE]:
            found = _wasted(t, family, side)
            if found is not None:
                wasteful.setdefault(side, []).append((found[0], family, found[1]))
                break
    for side, listed in wasteful.items():
        share, _, exact = max(listed, key=lambda x: x[0])
        most = "up to " if len({x[0] for x in listed}) > 1 else "" if exact else "about "
        down, up = t.n // side * side, -(-t.n // side) * side
        where = place(w for _, family, _ in listed for s in family.spots for w in s.where)
        yield Finding.of(
            "PCC112",
            f"{where}: blocks of {side} tokens do not divide {t.n}: {most}{percent(share)} of what "
            f"tiles of {side} x {side} compute lies past the last token",
            f"cut or pack the sequence to {f'{down} or {up}' if down else up} tokens"
            + ("" if own_blocks(listed[0][1]) else ", or compile with smaller tiles"),
        )


def _wasted(t: Topology, family: Family, side: int) -> tuple[float, bool] | None:
    """The share of the computed area past the last token, and whether every tile row was looked at;
    None where it is not worth telling."""
    if not family.masked or not len(family.spots[0].zones):
        return None
    named = side in own_blocks(family)
    if (not t.n % side and not t.frame.n % side) or (t.n < LEAST_ROWS * SIDE and not named):
        return None
    found = tiles(t, family.spots[0].zones.table, side)
    share = past_the_end(found, side)
    least = WASTED if named else WASTED_TILES
    return (share, found.looked == found.of) if share >= least else None


def own_blocks(family: Family) -> list[int]:
    """The block sizes that a pattern's primitives name, the largest first."""
    named = {getattr(p, "block", 1) for p in leaves(family.pattern)}
    return sorted((b for b in named if b > 1), reverse=True)


def nearly_empty(found: Tiles) -> float:
    """The share of the touched tiles that hold less than one pair in NEARLY."""
    tiles_of = found.weight * found.count
    total = float(tiles_of.sum())
    return float(tiles_of[found.pairs * NEARLY < found.exist].sum()) / total if total else 0.0


def past_the_end(found: Tiles, side: int) -> float:
    """The share of the touched tiles' area that is no pair of a query and a key."""
    tiles_of = found.weight * found.count
    area = float(tiles_of.sum()) * side * side
    return 1.0 - float((tiles_of * found.exist).sum()) / area if area else 0.0


def tiles(t: Topology, table: I64, side: int) -> Tiles:
    """The runs of touched tiles of side x side, tile rows counted from the first query.

    >>> from patterncc import causal
    >>> from patterncc.analysis.topology import topology
    >>> at = topology(causal(), 16)
    >>> found = tiles(at, at.levels[0].zones.table, 4)
    >>> [x.tolist() for x in (found.row[:3], found.first[:3], found.count[:3], found.pairs[:3])]
    [[0, 1, 1], [0, 0, 1], [1, 1, 1], [10, 16, 10]]
    """
    first, last = t.memory, t.frame.n
    of = -(-(last - first) // side)
    rows, weight = _sampled(table, first, side, of)
    start = first + rows * side
    end = np.minimum(start + side, last)
    zone, at = algebra.overlapping_pairs(table[:, 0], table[:, 1], start, end)
    pieces = _clipped(algebra.take(table, zone), i0=start[at], i1=end[at])
    row, tile, many, pairs = _segments(pieces, at, side)
    # a tile column that is cut by the last key stands apart
    cut = np.full(len(rows), last // side)
    row = np.concatenate([row, np.arange(len(rows))])
    tile, many, pairs = (
        np.concatenate(x) for x in ((tile, cut), (many, 0 * cut), (pairs, 0 * cut))
    )
    place, begin, count, held = _runs(row, tile, many, pairs)
    width = np.minimum((begin + 1) * side, last) - begin * side
    exist = (end - start)[place] * width
    return Tiles(
        rows[place], begin, count, np.minimum(held, exist), exist, weight[place], len(rows), of
    )


def _sampled(table: I64, first: int, side: int, of: int) -> tuple[I64, NDArray[np.float64]]:
    """Tile rows to look at, sorted, and for how many each stands: the rows where a zone begins or
    ends for themselves, unless they are too many; evenly spaced ones for all others."""
    most = min(of, MOST_ROWS, max(LEAST_ROWS, MOST_MET // max(1, len(table))))
    known = np.array([0, of - 1])
    if len(table) <= MOST_ROWS:
        ends = np.concatenate([table[:, 0], table[:, 1] - 1])
        known = np.concatenate([known, (ends - first) // side])
    known = np.unique(known)
    if 2 * len(known) > most and most < of:
        known = np.unique([0, of - 1])
    others = of - len(known)
    picked = min(others, max(0, most - len(known)))
    nth = (2 * np.arange(picked) + 1) * others // (2 * max(1, picked))
    # the nth row that is not known: known rows up to it move it on
    skipped = np.searchsorted(known - np.arange(len(known)), nth, side="right")
    rows = np.concatenate([known, nth + skipped])
    weight = np.concatenate([np.ones(len(known)), np.full(picked, others / max(1, picked))])
    order = np.argsort(rows)
    return rows[order].astype(np.int64), weight[order]


def _segments(pieces: I64, at: I64, side: int) -> tuple[I64, ...]:
    """Tile rows, first tiles, lengths and pairs a tile: of each piece the first two and the last
    two tiles one by one, and those between, which hold all its rows, as one run.

    The ends of a piece move by one key a row, so they lie within two tiles.
    """
    a, b = pieces[:, 2] // side, (pieces[:, 3] - 1) // side
    parts: list[tuple[Any, ...]] = []
    for tile, there in ((a, a <= b), (a + 1, a < b), (b - 1, b - 1 > a + 1), (b, b > a + 1)):
        p, x = algebra.take(pieces, np.flatnonzero(there)), tile[there]
        held = algebra.areas(_clipped(p, j0=x * side, j1=(x + 1) * side))
        parts.append((at[there], x, np.ones_like(x), held))
    wide = np.flatnonzero(b - 1 > a + 2)
    rows = pieces[wide, 1] - pieces[wide, 0]
    parts.append((at[wide], a[wide] + 2, (b - a - 3)[wide], rows * side))
    return tuple(np.concatenate(x).astype(np.int64) for x in zip(*parts, strict=True))


def _runs(row: I64, tile: I64, many: I64, pairs: I64) -> tuple[I64, ...]:
    """Segments added up: row, first tile, length and pairs a tile of maximal runs between their
    ends, in order, those that no segment touches left out."""
    place = np.concatenate([row, row])
    edge = np.concatenate([tile, tile + many])
    step = np.concatenate([np.ones_like(row), -np.ones_like(row)])
    step = np.where(np.concatenate([many, many]) > 0, step, 0)
    held = np.concatenate([pairs, -pairs])
    order = np.lexsort((edge, place))
    place, edge = place[order], edge[order]
    depth, total = np.cumsum(step[order]), np.cumsum(held[order])
    length = np.diff(edge, append=edge[-1:])
    kept = (depth > 0) & (length > 0)
    return place[kept], edge[kept], length[kept], total[kept]


def _clipped(table: I64, i0: Any = None, i1: Any = None, j0: Any = None, j1: Any = None) -> I64:
    """Rows of a table cut to bounds, one each, and tight; each must keep an edge."""
    a, b, c, d, d0, d1 = table.T
    a = a if i0 is None else np.maximum(a, i0)
    b = b if i1 is None else np.minimum(b, i1)
    c = c if j0 is None else np.maximum(c, j0)
    d = d if j1 is None else np.minimum(d, j1)
    tight = algebra.tighten(algebra.pack((a, b, c, d, d0, d1)))
    assert len(tight) == len(table)
    return tight
