"""Layouts of masks whose rows are one interval of keys each, both ends never moving back.

    i   . x x . . . . .      reads [lo(i), hi(i)): lo and hi never fall from one row to the next.
    |   . x x x . . . .      A band (full, causal, a window), a prefix that reads itself both ways,
    v   . . . . x x . .      contiguous documents, missing keys: each keeps that property, so their
        . . . . x x x .      combination is built from its steps alone.

Rows are cut into *pieces*: within one tile row and one document, so that each is a single zone.  A
tile is full when the last row of its tile row begins at or before it and the first one ends behind
it; the columns' full tiles follow from the rows' by two searches.  A tile of one piece keeps its
zone, one of several becomes bits, so the mask classes do not depend on where documents lie.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from patterncc.layout import masks
from patterncc.layout.build import Grid
from patterncc.layout.layout import Runs
from patterncc.layout.runs import lay, ordering
from patterncc.zones.algebra import areas, expand, pack
from patterncc.zones.site import FAR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from patterncc.layout.budget import Budget
    from patterncc.zones.zoneset import Frame

    I64 = NDArray[np.int64]

_ROWS = 2**13  # rows of bits that are drawn at a time: what is made for them stays in a cache


@dataclass(frozen=True)
class Spans:
    """Documents in order: positions [start, end) each, and whether their tokens read at all."""

    start: I64
    end: I64
    real: NDArray[np.bool_]


@dataclass(frozen=True)
class Stairs:
    """One mask: a tight zone in the frame's local counts, documents, and lengths.

    zone: i0 i1 j0 j1 d0 d1, local.  spans: None for one document of everything.  keys: how many
    exist, from key 0 on.  prefix: the first so many positions read each other; 0 for none, and else
    the zone is a band of the whole frame.
    """

    zone: tuple[int, ...]
    spans: Spans | None
    keys: int
    prefix: int


@dataclass(frozen=True)
class Pieces:
    """Rows [q0, q1) of tile row `line` (over all masks) read keys [k0, k1) with d0 <= j - i < d1.

    All local; sorted by line and row; every row of every line is in one piece, also if it is empty.
    """

    line: I64
    q0: I64
    q1: I64
    k0: I64
    k1: I64
    d0: I64
    d1: I64


@dataclass(frozen=True)
class Parts:
    """What a Layout is made of, by the names of its fields."""

    rows: Runs
    cols: Runs
    zones: NDArray[np.int32]
    bits: NDArray[np.uint32]
    edges: tuple[int, ...]


def build(stairs: Sequence[Stairs], frame: Frame, block: tuple[int, int], budget: Budget) -> Parts:
    """The runs and masks of several staircases of one frame, both ways.

    Raises SizeError, before allocating, for what passes the budget.
    """
    lines = -(-frame.n // block[0])
    parts = [_pieces(s, frame, block, u * lines) for u, s in enumerate(stairs)]
    return assemble(parts, frame, block, budget)


def assemble(
    parts: Sequence[Pieces], frame: Frame, block: tuple[int, int], budget: Budget
) -> Parts:
    """The same from the pieces of each mask, their lines counted over all masks."""
    grid = Grid(frame.n, frame.n_k, block, len(parts))
    p = parts[0] if len(parts) == 1 else _joined(parts)
    first_full, last_full = _full_columns(p, grid)
    alive = _alive(p)
    key, owner = _partial(alive, first_full, last_full, grid, budget)
    tile, word, zones, bits = _words(key, owner, alive, grid, budget)
    return Parts(
        rows=_row_runs(first_full, last_full, tile, word, grid),
        cols=_column_runs(first_full, last_full, tile, word, grid),
        zones=zones,
        bits=bits,
        edges=_edges(alive, grid),
    )


# --- pieces


def _pieces(s: Stairs, frame: Frame, block: tuple[int, int], line: int) -> Pieces:
    """One mask, cut at tile rows, documents, and where its zone or its prefix begins or ends."""
    i0, i1, j0, j1, d0, d1 = s.zone
    n, keys = frame.n, min(j1, s.keys)
    own, seen = s.prefix - frame.q_offset, s.prefix - frame.k_offset  # the prefix in local counts
    bends = [i0, i1] if (i0, i1) != (0, n) else []
    bends += [own, seen - d1 + 1] if s.prefix else []  # past the second the band reaches beyond it
    starts = np.arange(0, n, block[0], dtype=np.int64)
    cuts = [starts, np.array(bends, dtype=np.int64)]
    if s.spans is not None:
        cuts.append(s.spans.start - frame.q_offset)
    q0 = np.sort(np.concatenate(cuts))
    q0 = q0[(q0 >= 0) & (q0 < n)]
    q0 = q0[np.append(True, q0[1:] != q0[:-1])]
    q1 = np.append(q0[1:], n)
    if s.spans is None:
        k0, k1 = np.full(len(q0), j0), np.full(len(q0), keys)
    else:
        place = np.searchsorted(s.spans.start, q0 + frame.q_offset, side="right") - 1
        first = s.spans.start[place] - frame.k_offset
        last = np.where(s.spans.real, s.spans.end, s.spans.start)[place] - frame.k_offset
        k0, k1 = np.minimum(np.maximum(first, j0), keys), np.minimum(np.maximum(last, j0), keys)
    low, high = np.full(len(q0), d0), np.full(len(q0), d1)
    if s.prefix:
        inside = q0 < own
        low[inside] = -FAR
        within = inside & (q0 + d1 <= seen)
        high[within] = FAR
        k1[within] = np.minimum(k1[within], max(0, seen))
        k0 = np.minimum(k0, k1)
    k1[q0 < i0] = k0[q0 < i0]
    k0[q0 >= i1] = k1[q0 >= i1]
    return Pieces(q0 // block[0] + line, q0, q1, k0, k1, low, high)


def _joined(parts: Sequence[Pieces]) -> Pieces:
    return Pieces(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Pieces)))


def _low(p: Pieces, row: I64) -> I64:
    """The first key that a row of each piece reads."""
    low: I64 = np.maximum(p.k0, row + p.d0)
    return low


def _high(p: Pieces, row: I64) -> I64:
    """Past the last key that a row of each piece reads."""
    high: I64 = np.minimum(p.k1, row + p.d1)
    return high


def _alive(p: Pieces) -> Pieces:
    """The rows of each piece that read some key; pieces without any dropped."""
    q0, q1 = np.maximum(p.q0, p.k0 - p.d1 + 1), np.minimum(p.q1, p.k1 - p.d0)
    kept = (q0 < q1) & (p.k0 < p.k1)
    rest = (p.k0, p.k1, p.d0, p.d1)
    if kept.all():
        return Pieces(p.line, q0, q1, *rest)
    return Pieces(p.line[kept], q0[kept], q1[kept], *(x[kept] for x in rest))


def _edges(p: Pieces, grid: Grid) -> tuple[int, ...]:
    """The edges of each mask, from the tight zones of its pieces."""
    k0, k1 = _low(p, p.q0), _high(p, p.q1 - 1)
    d0, d1 = np.maximum(p.d0, k0 - p.q1 + 1), np.minimum(p.d1, k1 - p.q0)
    held = areas(pack((p.q0, p.q1, k0, k1, d0, d1)))
    total = np.append(0, np.cumsum(held, dtype=np.int64))
    ends = np.searchsorted(p.line, np.arange(grid.patterns + 1) * grid.lines)
    return tuple(np.diff(total[ends]).tolist())


# --- full tiles


def _full_columns(p: Pieces, grid: Grid) -> tuple[I64, I64]:
    """The full tiles [first, last) of each line, neither of which ever falls within a mask; empty
    where first >= last.

    No row that reads nothing lets a tile be full: its interval ends where it begins.
    """
    lines = np.arange(grid.patterns * grid.lines)
    begin = np.searchsorted(p.line, lines)
    end = np.append(begin[1:], len(p.line)) - 1
    width = grid.block[1]
    low = np.maximum(p.k0[end], p.q1[end] - 1 + p.d0[end])
    high = np.minimum(p.k1[begin], p.q0[begin] + p.d1[begin])
    return -(-low // width), high // width


def _row_runs(first: I64, last: I64, tile: I64, word: NDArray[np.int32], grid: Grid) -> Runs:
    some = np.flatnonzero(first < last)
    at = some * (grid.columns + 1)
    lines = grid.patterns * grid.lines
    ptr, run = lay(at + first[some], at + last[some], tile, word, lines, grid.columns)
    return Runs(grid.lines, ptr, run)


def _column_runs(first: I64, last: I64, tile: I64, word: NDArray[np.int32], grid: Grid) -> Runs:
    """The same tiles by columns: r is full in c where first(r) <= c < last(r), so from the first r
    whose last passes c to the last r whose first has not."""
    stride, columns = grid.lines + 1, np.arange(grid.columns)
    begin, end = [], []
    for u in range(grid.patterns):
        part = slice(u * grid.lines, (u + 1) * grid.lines)
        a = np.searchsorted(last[part], columns, side="right")
        b = np.searchsorted(first[part], columns, side="right")
        some = np.flatnonzero(a < b)
        at = (some + u * grid.columns) * stride
        begin.append(at + a[some])
        end.append(at + b[some])
    line, column = np.divmod(tile, grid.columns + 1)
    pattern, row = np.divmod(line, grid.lines)
    turned = (pattern * grid.columns + column) * stride + row
    order = ordering(turned)
    if order is not None:
        turned, word = turned[order], word[order]
    lines = grid.patterns * grid.columns
    full = np.concatenate(begin), np.concatenate(end)
    ptr, run = lay(*full, turned, word, lines, grid.lines)
    return Runs(grid.columns, ptr, run)


# --- partial tiles


def _partial(
    p: Pieces, first_full: I64, last_full: I64, grid: Grid, budget: Budget
) -> tuple[I64, NDArray[np.intp]]:
    """Every (tile, piece) touched where the tile is not full: keys ascending, and the pieces."""
    width = grid.block[1]
    first, last = _low(p, p.q0) // width, -(-_high(p, p.q1 - 1) // width)
    a, b = first_full[p.line], last_full[p.line]
    none = a >= b
    a, b = np.where(none, last, a), np.where(none, last, b)
    budget.list(len(p.line), int((last - first - (b - a)).sum()), 0)
    owners, tiles = zip(expand(first, a), expand(b, last))
    owner, tile = np.concatenate(owners), np.concatenate(tiles)
    key = p.line[owner] * (grid.columns + 1) + tile
    order = ordering(key)
    return (key, owner) if order is None else (key[order], owner[order])


def _words(
    key: I64, owner: NDArray[np.intp], p: Pieces, grid: Grid, budget: Budget
) -> tuple[I64, NDArray[np.int32], NDArray[np.int32], NDArray[np.uint32]]:
    """The partial tiles, their mask words, and the tables: zones for one piece, bits for more."""
    begin = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else key
    count = np.diff(begin, append=len(key))
    tile = key[begin]
    line, column = np.divmod(tile, grid.columns + 1)
    row = line % max(1, grid.lines)
    word = np.zeros(len(tile), dtype=np.int32)
    single = np.flatnonzero(count == 1)
    which = owner[begin[single]]
    bounds = tuple(x[which] for x in (p.q0, p.q1, p.k0, p.k1, p.d0, p.d1))
    packed = masks.pack(bounds, row[single], column[single], grid.block)
    distinct, place = masks.distinct(packed[:, None])
    word[single] = place + 1
    zones = np.zeros((len(distinct), 4, 6), dtype=np.int32)
    zones[:, 0] = masks.unpack(distinct[:, 0])
    several = np.flatnonzero(count > 1)
    budget.draw(len(several), len(tile))
    drawn = _drawn(p, owner, begin[several], count[several], row[several], column[several], grid)
    seen: dict[bytes, int] = {}
    index = [seen.setdefault(b.tobytes(), len(seen)) for b in drawn]
    word[several] = np.array(index, dtype=np.int32) + (len(distinct) + 1)
    bits = np.frombuffer(b"".join(seen), dtype=np.uint32).reshape(-1, *drawn.shape[1:])
    return tile, word, zones, bits.copy()  # torch warns of arrays that cannot be written


def _drawn(
    p: Pieces,
    owner: NDArray[np.intp],
    begin: NDArray[np.intp],
    count: NDArray[np.intp],
    row: I64,
    column: I64,
    grid: Grid,
) -> NDArray[np.uint32]:
    """Tiles of several pieces as bits, uint32 [m, block[0], words]: no row is in two pieces."""
    out = np.empty((len(begin), grid.block[0], -(-grid.block[1] // 32)), dtype=np.uint32)
    step = max(1, _ROWS // grid.block[0])
    for first in range(0, len(begin), step):
        part = slice(first, first + step)
        there = row[part], column[part]
        out[part] = _drawn_part(p, owner, begin[part], count[part], *there, grid)
    return out


def _drawn_part(
    p: Pieces,
    owner: NDArray[np.intp],
    begin: NDArray[np.intp],
    count: NDArray[np.intp],
    row: I64,
    column: I64,
    grid: Grid,
) -> NDArray[np.uint32]:
    """As `_drawn`, of few tiles."""
    height, width = grid.block
    tile, record = expand(begin, begin + count)
    piece = owner[record]
    q0, q1, left, top = p.q0[piece], p.q1[piece], column[tile] * width, row[tile] * height
    at, i = expand(q0, q1)  # a row of a piece in a tile
    place = i + (tile * height - top)[at]
    low, high = np.zeros((2, len(begin) * height), dtype=np.int64)  # a row that reads nothing: 0, 0
    low[place] = np.maximum((p.k0[piece] - left)[at], i + (p.d0[piece] - left)[at])
    high[place] = np.minimum((p.k1[piece] - left)[at], i + (p.d1[piece] - left)[at])
    below = _below(width)
    out = below.take(high, axis=0, mode="clip")
    out ^= below.take(low, axis=0, mode="clip")
    return out.reshape(len(begin), height, below.shape[1])


@lru_cache(maxsize=8)
def _below(width: int) -> NDArray[np.uint32]:
    """[b]: bits 0 .. b - 1 of a row of `width` columns set; uint32 [width + 1, words].

    >>> _below(64)[33].tolist()
    [4294967295, 1]
    """
    held = np.arange(-(-width // 32) * 32) < np.arange(width + 1)[:, None]
    return np.packbits(held, axis=-1, bitorder="little").view("<u4").astype(np.uint32)
