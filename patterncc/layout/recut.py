"""A term in another order than that of tokens, cut to fewer tokens: its tiles laid out anew.

Leaving tokens out moves every later slot forward, to other tiles.  A slot's new place is its rank
among those that are left, so neighbours stay in order and an interval of keys stays one.

    a full tile, a box                  a box again, its ends looked up
    a zone in a tile that keeps all     the same zone, moved
    any other mask                      its rows, one interval of keys each

What comes out are zones again, and the layout is built from them as any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.layout import masks
from patterncc.layout.build import build
from patterncc.zones import Frame, ZoneSet, algebra
from patterncc.zones.merge import Runs, zones_of_runs
from patterncc.zones.orders.order import Order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout

    I64 = NDArray[np.int64]
    Bounds = tuple[Any, ...]  # six columns


def recut(term: Layout, n: int, n_k: int) -> Layout:
    """One term that has an order, for the first n queries and n_k keys.

    Raises SizeError where the zones that it takes are too many.
    """
    assert term.order is not None
    queries, keys = term.order.queries < n, term.order.keys < n_k
    moves = _Moves.of(term, queries, keys)
    frame = Frame(n, n_k)
    parts: list[list[I64]] = [[] for _ in range(term.patterns)]
    for table, pattern in (*_full(term, moves), *_partial(term, moves)):
        for u in np.unique(pattern).tolist():
            parts[u].append(algebra.take(table, pattern == u))
    zone_sets = [ZoneSet(frame, _united(p, frame)) for p in parts]
    made = build(zone_sets, term.head_pattern.tolist(), term.block, pattern=term.pattern)
    order = Order(term.order.name, term.order.queries[queries], term.order.keys[keys])
    return replace(
        made,
        q_offset=term.q_offset,
        k_offset=term.k_offset,
        device=term.device,
        sequences=term.sequences,
        varies=term.varies,
        order=order,
    )


_TILES = 1024  # tiles that are read at a time: each may be 65,536 pairs


@dataclass(frozen=True, eq=False)
class _Moves:
    """How many queries and keys are left before each slot, int64, one entry for every tile side
    up to the end of the last tile; `kept` says which queries are left."""

    queries: I64
    keys: I64
    kept: NDArray[np.bool_]

    @staticmethod
    def of(term: Layout, queries: NDArray[np.bool_], keys: NDArray[np.bool_]) -> _Moves:
        def ranks(kept: NDArray[np.bool_], side: int) -> I64:
            return np.append(0, np.cumsum(np.pad(kept, (0, -len(kept) % side)), dtype=np.int64))

        height, width = term.block
        kept = np.pad(queries, (0, -len(queries) % height))
        return _Moves(ranks(queries, height), ranks(keys, width), kept)

    def box(self, i0: Any, i1: Any, j0: Any, j1: Any) -> Bounds:
        """Where a box of slots goes, with no bound on its diagonals."""
        a, b, c, d = self.queries[i0], self.queries[i1], self.keys[j0], self.keys[j1]
        return a, b, c, d, c - b, d - a + 1


def _full(term: Layout, moves: _Moves) -> Iterator[tuple[I64, I64]]:
    """Boxes of the runs of full tiles, and the pattern of each."""
    height, width = term.block
    line = np.repeat(np.arange(len(term.rows.ptr) - 1), np.diff(term.rows.ptr))
    full = term.rows.run[:, 2] == 0
    pattern, row = np.divmod(line[full], max(1, term.lines))
    first, count = term.rows.run[full, :2].astype(np.int64).T
    # the last tile row reaches past the last query: nothing is kept there
    box = moves.box(row * height, (row + 1) * height, first * width, (first + count) * width)
    yield _tight(box, pattern)


def _partial(term: Layout, moves: _Moves) -> Iterator[tuple[I64, I64]]:
    """Zones of the tiles that have a mask, some tiles at a time."""
    height, width = term.block
    for line, column, word in _tiles(term):
        pattern, row = np.divmod(line, max(1, term.lines))
        top, left = row * height, column * width
        queries = moves.queries[top + height] - moves.queries[top]
        whole = (queries == height) & (moves.keys[left + width] - moves.keys[left] == width)
        zoned = word < len(term.zones)
        slots = term.zones[np.where(zoned, word, 0)] if len(term.zones) else _no_zones(len(word))
        i0, i1, j0, j1, d0, d1 = np.moveaxis(slots.astype(np.int64), -1, 0)
        used = zoned[:, None] & (i1 > 0)
        square = (d0 <= j0 - i1 + 1) & (d1 >= j1 - i0)
        moved, boxed = used & whole[:, None], used & square & ~whole[:, None]
        yield _moved(slots, moved, (top, left), moves, pattern)
        tile = np.nonzero(boxed)[0]
        t, l = top[tile], left[tile]
        box = moves.box(i0[boxed] + t, i1[boxed] + t, j0[boxed] + l, j1[boxed] + l)
        yield _tight(box, pattern[tile])
        rest = ~(moved | boxed).any(axis=1) | (used & ~moved & ~boxed).any(axis=1)
        yield _rows(term, word[rest], (top[rest], left[rest]), moves, pattern[rest])


def _tiles(term: Layout) -> Iterator[tuple[I64, I64, NDArray[np.int32]]]:
    """Line, column and mask, counted from 0, of the tiles that have one, some at a time."""
    line = np.repeat(np.arange(len(term.rows.ptr) - 1), np.diff(term.rows.ptr))
    masked = term.rows.run[:, 2] > 0
    first, count, word = term.rows.run[masked].T
    owner, column = algebra.expand(first.astype(np.int64), first.astype(np.int64) + count)
    line, word = line[masked], word - 1
    for at in range(0, len(owner), _TILES):
        part = owner[at : at + _TILES]
        yield line[part], column[at : at + _TILES], word[part]


def _moved(
    slots: NDArray[np.int32],
    chosen: NDArray[np.bool_],
    corner: tuple[I64, I64],
    moves: _Moves,
    pattern: I64,
) -> tuple[I64, I64]:
    """Zones of tiles that keep all their slots: moved as the tile is."""
    tile, slot = np.nonzero(chosen)
    down, across = moves.queries[corner[0][tile]], moves.keys[corner[1][tile]]
    shift = np.stack([down, down, across, across, across - down, across - down])
    return algebra.pack(tuple(slots[tile, slot].T + shift)), pattern[tile]


def _rows(
    term: Layout, word: NDArray[np.int32], corner: tuple[I64, I64], moves: _Moves, pattern: I64
) -> tuple[I64, I64]:
    """Zones of one query each, from the intervals of keys in the rows of masks."""
    height, width = term.block
    zoned = word < len(term.zones)
    bits = np.empty((len(word), height, -(-width // 32)), dtype=np.uint32)
    bits[zoned] = masks.raster(term.zones[word[zoned]], term.block)
    bits[~zoned] = term.bits[word[~zoned] - len(term.zones)]
    little = np.ascontiguousarray(bits.astype("<u4")).view(np.uint8)
    cells = np.unpackbits(little, axis=-1, bitorder="little")[..., :width]
    turn = np.diff(np.pad(cells, ((0, 0), (0, 0), (1, 1))).astype(np.int8), axis=-1)
    tile, i, j0 = np.nonzero(turn == 1)
    j1 = np.nonzero(turn == -1)[2]
    row = corner[0][tile] + i
    left = corner[1][tile]
    kept = moves.kept[row]
    tile, row, left = tile[kept], row[kept], left[kept]
    return _tight(moves.box(row, row + 1, left + j0[kept], left + j1[kept]), pattern[tile])


def _tight(bounds: Bounds, pattern: I64) -> tuple[I64, I64]:
    """Boxes that hold something, and their patterns; a box is tight as it is."""
    table = algebra.pack(bounds)
    some = (table[:, 0] < table[:, 1]) & (table[:, 2] < table[:, 3])
    table = algebra.take(table, some)
    table[:, 4] = table[:, 2] - table[:, 1] + 1
    table[:, 5] = table[:, 3] - table[:, 0]
    return table, pattern[some]


def _united(parts: list[I64], frame: Frame) -> I64:
    """One table, rows that lie in a chain as one zone, zones merged where that is exact."""
    if not parts:
        return np.empty((6, 0), dtype=np.int64).T
    table = np.concatenate(parts)
    alone = table[:, 1] - table[:, 0] == 1
    stride = frame.n_k + 1  # the end of a row never touches the start of the next
    line = table[alone, 0] * stride
    met = algebra.merge_intervals(table[alone, 2:4] + line[:, None])
    row = met[:, 0] // stride
    chains = zones_of_runs(Runs(row, met[:, 0] - row * stride, met[:, 1] - row * stride, 0))
    several = chains[:, 1] - chains[:, 0] > 1
    zones = np.concatenate([algebra.take(table, ~alone), algebra.take(chains, several)])
    return np.concatenate([algebra.simplify(zones), algebra.take(chains, ~several)])


def _no_zones(count: int) -> NDArray[np.int32]:
    return np.zeros((count, 1, 6), dtype=np.int32)
