"""From zones to a layout: strips to full runs and partial tiles, those to mask words, both ways."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import SizeError
from patterncc.layout import masks, thin
from patterncc.layout.budget import Budget
from patterncc.layout.layout import Layout, Runs
from patterncc.layout.limits import MAX_BYTES, MAX_TILES
from patterncc.layout.runs import inside, lay, merged, ordering
from patterncc.zones.algebra import take
from patterncc.zones.tiles import Strips, local, strip_count, strips
from patterncc.zones.zoneset import ZoneSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Intervals = tuple[NDArray[np.int64], NDArray[np.int64]]

_CHUNK = 2**20  # partial tiles that are cut at a time


@dataclass(frozen=True)
class Grid:
    """The tiles of `patterns` masks of n x n_k tokens: their sides, and how many each way."""

    n: int
    n_k: int
    block: tuple[int, int]
    patterns: int

    @property
    def lines(self) -> int:
        """Tile rows of one pattern."""
        return -(-self.n // self.block[0])

    @property
    def columns(self) -> int:
        """Tile columns."""
        return -(-self.n_k // self.block[1])

    @property
    def T(self) -> Grid:  # noqa: N802 - the name that matrices have
        """Queries and keys exchanged."""
        return Grid(self.n_k, self.n, (self.block[1], self.block[0]), self.patterns)


@dataclass(frozen=True)
class Tiles:
    """Partial tiles: distinct keys, ascending, and the mask word of each."""

    key: NDArray[np.int64]
    word: NDArray[np.int32]


def build(
    zone_sets: Sequence[ZoneSet],
    head_pattern: Sequence[int],
    block: tuple[int, int],
    *,
    pattern: str = "",
    max_tiles: int = MAX_TILES,
    max_bytes: int = MAX_BYTES,
) -> Layout:
    """The layout of one zone set a pattern, all in one frame.

    Raises SizeError, before allocating, when more than `max_tiles` tiles would be partly filled, or
    more than `max_bytes` bytes be at hand at once, and for a graph of so many tiles with about one
    edge each that tiles do not help.
    """
    frame = zone_sets[0].frame
    grid = Grid(frame.n, frame.n_k, block, len(zone_sets))
    budget = Budget(frame.n, frame.n_k, block, max_bytes, max_tiles)
    _check_names(grid)
    tables, lone = _split(zone_sets, grid)
    rows = [_row_strips(t, grid, budget) for t in tables]
    _allow_lists(rows, lone, budget)
    strokes = thin.strokes(lone, block, grid.columns + 1)
    budget.scatter(*thin.touched(strokes))
    full = _full_intervals(rows, grid)
    crowd, key, packed = thin.divided(strokes, *_partial(tables, rows, grid, full), full)
    tiles, filled, words = _masked(*_sorted(key, packed), crowd, grid, budget)
    row_runs = _runs(full, filled, tiles, grid)
    full = _full_intervals([_column_strips(t, grid, budget) for t in tables], grid.T)
    turned = Tiles(*_sorted(_turned(tiles.key, grid), tiles.word))
    col_runs = _runs(full, np.sort(_turned(filled, grid)), turned, grid.T)
    return Layout(
        n=frame.n,
        n_k=frame.n_k,
        q_offset=frame.q_offset,
        k_offset=frame.k_offset,
        block=block,
        head_pattern=np.asarray(head_pattern, dtype=np.int32),
        rows=row_runs,
        cols=col_runs,
        zones=words.zones,
        bits=words.bits,
        edges=edges_of(row_runs, words.zones, words.bits, grid),
        pattern=pattern,
    )


def _split(zone_sets: Sequence[ZoneSet], grid: Grid) -> tuple[list[NDArray[Any]], list[thin.Lone]]:
    """Local tables of the zones that are taken one by one, and those that are taken as strokes."""
    tables, lone = [], []
    count = grid.patterns * grid.lines * (grid.columns + 1)
    for u, zones in enumerate(zone_sets):
        which = thin.thin_zones(zones, grid.block[0], count)
        if which is None:
            tables.append(local(zones))
            continue
        tables.append(local(ZoneSet(zones.frame, take(zones.table, ~which))))
        lone.append(thin.lone(zones, which, u * grid.lines, grid.block[1]))
    return tables, lone


def _allow_lists(rows: list[Strips], lone: list[thin.Lone], budget: Budget) -> None:
    """Predict what touches tiles and fills none; refuse before any of it is listed."""
    partial = (s.last - s.first - (s.full_last - s.full_first) for s in rows)
    records = sum(int(x.sum(dtype=np.int64)) for x in partial)
    budget.list(sum(map(len, rows)), records, sum(each.count for each in lone))


def _row_strips(table: NDArray[Any], grid: Grid, budget: Budget) -> Strips:
    """Strips of the tile rows; a tile that reaches past the last key is not filled in a layout."""
    s = _cut(table, grid, budget)
    whole = grid.n_k // grid.block[1]
    return replace(s, full_last=np.maximum(np.minimum(s.full_last, whole), s.full_first))


def _column_strips(table: NDArray[Any], grid: Grid, budget: Budget) -> Strips:
    """Strips of the tile columns, for the zones that may fill a tile and the whole columns only."""
    height = min(grid.block[0], (grid.n - 1) % grid.block[0] + 1)  # of the shortest tile row
    width = grid.block[1]
    fills = (table[:, 3] - table[:, 2] >= width) & (table[:, 1] - table[:, 0] >= height)
    wide = table[fills & (table[:, 5] - table[:, 4] >= width + height - 1)]
    flipped = np.empty_like(wide)
    flipped[:, :4] = wide[:, [2, 3, 0, 1]]
    flipped[:, 4], flipped[:, 5] = 1 - wide[:, 5], 1 - wide[:, 4]
    s = _cut(flipped, grid.T, budget)
    past = s.row >= grid.n_k // grid.block[1]
    return replace(s, full_first=np.where(past, s.full_last, s.full_first))


def _cut(table: NDArray[Any], grid: Grid, budget: Budget) -> Strips:
    count = strip_count(table, grid.block[0])
    budget.cut(count, grid.block[0])
    return strips(table, grid.n, grid.n_k, grid.block, count)


def _check_names(grid: Grid) -> None:
    """Tiles are named by int64."""
    if grid.patterns * (grid.lines + 1) * (grid.columns + 1) >= 2**62:
        raise SizeError(
            f"{grid.patterns} patterns of {grid.lines} x {grid.columns} tiles; use larger blocks"
        )


def _full_intervals(rows: list[Strips], grid: Grid) -> Intervals:
    """The filled tiles of all strips as merged intervals of keys."""
    stride = grid.columns + 1
    first, last = [], []
    for u, s in enumerate(rows):
        some = s.full_first < s.full_last
        line = s.row[some].astype(np.int64) + u * grid.lines
        first.append(line * stride + s.full_first[some])
        last.append(line * stride + s.full_last[some])
    return merged(np.concatenate(first), np.concatenate(last))


def _partial(
    tables: list[NDArray[Any]], rows: list[Strips], grid: Grid, full: Intervals
) -> Intervals:
    """Every (tile, zone) touched where no zone fills the tile: keys ascending, packed zones."""
    keys, packed = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for u, (table, s) in enumerate(zip(tables, rows, strict=True)):
        columns = tuple(np.ascontiguousarray(c) for c in table.T)
        for start, stop in ((s.first, s.full_first), (s.full_last, s.last)):
            for zone, row, column in _listed(s, start, stop):
                line = row.astype(np.int64) + u * grid.lines
                keys.append(line * (grid.columns + 1) + column)
                bounds = tuple(c[zone] for c in columns)
                packed.append(masks.pack(bounds, row, column, grid.block))
    key, part = _sorted(np.concatenate(keys), np.concatenate(packed))
    kept = ~inside(key, *full)
    return (key, part) if kept.all() else (key[kept], part[kept])


def _listed(
    s: Strips, start: NDArray[Any], stop: NDArray[Any]
) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Zone, row and column of every tile in [start, stop) of every strip, in parts."""
    some = np.flatnonzero(stop > start)
    if not len(some):
        return
    counts = (stop - start)[some]
    ends = np.cumsum(counts, dtype=np.int64)
    cuts = np.searchsorted(ends, np.arange(_CHUNK, ends[-1], _CHUNK))
    for part in np.split(np.arange(len(some)), np.unique(cuts)):
        if not len(part):
            continue
        pick, count = some[part], counts[part]
        zone, row, begin = s.zone[pick], s.row[pick], start[pick]
        total = int(count.sum(dtype=np.int64))
        if total != len(part):
            before = (np.cumsum(count, dtype=np.int64) - count).astype(begin.dtype)
            zone, row = np.repeat(zone, count), np.repeat(row, count)
            begin = np.arange(total, dtype=begin.dtype) + np.repeat(begin - before, count)
        yield zone, row, begin


def _masked(
    key: NDArray[np.int64],
    packed: NDArray[np.int64],
    crowd: thin.Crowd,
    grid: Grid,
    budget: Budget,
) -> tuple[Tiles, NDArray[np.int64], masks.Words]:
    """The partial tiles, the keys of tiles that only several zones fill, and the mask tables."""
    new = np.ones(len(key), dtype=bool)
    np.not_equal(key[1:], key[:-1], out=new[1:])
    start = np.flatnonzero(new)
    tile = key[start]
    kept, place = thin.distinct(crowd)
    budget.draw(len(kept), len(tile) + len(crowd.tile), len(crowd.stroke))
    words = masks.settle(packed, start, _existing(tile, grid), budget)
    word = words.word
    if len(kept):
        drawn, place = thin.drawn(crowd, kept, place, grid.block)
        # the last tile row has fewer queries: one drawing may fill a tile there and no other
        whole = masks.held(drawn)[place] == _existing(crowd.tile, grid) * grid.block[1]
        used = np.zeros(len(drawn), dtype=bool)
        used[place[~whole]] = True
        code = np.where(whole, 0, (len(words.zones) + len(words.bits) + np.cumsum(used))[place])
        drawn = drawn if used.all() else drawn[used]
        bits = np.concatenate([words.bits, drawn]) if len(words.bits) else drawn
        words = masks.Words(word, words.zones, bits)
        tile, word = _sorted(
            np.concatenate([tile, crowd.tile]),
            np.concatenate([word, code.astype(np.int32)]),
        )
    partial = word != 0
    if partial.all():
        return Tiles(tile, word), tile[:0], words
    return Tiles(tile[partial], word[partial]), tile[~partial], words


def _existing(tile: NDArray[np.int64], grid: Grid) -> NDArray[np.int64]:
    """How many queries of each tile exist."""
    line = tile // (grid.columns + 1) % max(1, grid.lines)
    existing: NDArray[np.int64] = np.minimum(grid.block[0], grid.n - line * grid.block[0])
    return existing


def _turned(key: NDArray[np.int64], grid: Grid) -> NDArray[np.int64]:
    """The keys of the same tiles in the transposed grid."""
    line, column = np.divmod(key, grid.columns + 1)
    pattern, row = np.divmod(line, max(1, grid.lines))
    turned: NDArray[np.int64] = (pattern * grid.columns + column) * (grid.lines + 1) + row
    return turned


def _sorted(key: NDArray[np.int64], value: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Both in the order of the keys."""
    order = ordering(key)
    return (key, value) if order is None else (key[order], value[order])


def _runs(full: Intervals, filled: NDArray[np.int64], tiles: Tiles, grid: Grid) -> Runs:
    """One direction: full intervals, single filled tiles and partial tiles together."""
    first, last = full
    if len(filled):
        first, last = merged(np.concatenate([first, filled]), np.concatenate([last, filled + 1]))
    ptr, run = lay(first, last, tiles.key, tiles.word, grid.patterns * grid.lines, grid.columns)
    return Runs(grid.lines, ptr, run)


def edges_of(
    rows: Runs, zones: NDArray[np.int32], bits: NDArray[np.uint32], grid: Grid
) -> tuple[int, ...]:
    """The exact count of edges of each pattern, from its runs and the pairs of each mask."""
    held = np.concatenate([[grid.block[0] * grid.block[1]], masks.sizes(zones, bits)])
    count = rows.run[:, 1] * held[rows.run[:, 2]]
    missing = grid.lines * grid.block[0] - grid.n
    for last in range(grid.lines, len(rows.ptr), max(1, grid.lines)) if missing else ():
        # full tiles of a last tile row count the queries that exist; masks hold no others
        part = slice(rows.ptr[last - 1], rows.ptr[last])
        held[0] = (grid.block[0] - missing) * grid.block[1]
        count[part] = rows.run[part, 1] * held[rows.run[part, 2]]
    total = np.concatenate([[0], np.cumsum(count)])
    ends = total[rows.ptr[:: max(1, grid.lines)]]
    return tuple(int(x) for x in np.diff(ends)) if grid.lines else (0,) * grid.patterns
