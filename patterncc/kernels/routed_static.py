"""A compiled layout row by row: which stretches of keys each query reads.

A router's layout must know of each static edge whether it holds it too, or the pair would count
twice.  The runs and masks of a layout say so tile by tile; here they become at most a few intervals
a row, made once a layout, which any order of tokens can be held against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from patterncc.errors import SizeError
from patterncc.layout.runs import merged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout, Runs

    I64 = NDArray[np.int64]

LARGEST = 2**26
"""Numbers that the intervals of a layout may be."""


@dataclass(frozen=True, eq=False)
class Intervals:
    """Row r of pattern u reads keys low[k, u, r] .. high[k, u, r] - 1, for each k.

    int64 [most, patterns, rows]; apart from each other, ascending in k, empty ones (0, 0) last.
    """

    low: I64
    high: I64


_known: WeakKeyDictionary[Layout, dict[bool, Intervals]] = WeakKeyDictionary()


def intervals_of(layout: Layout, *, by_key: bool = False) -> Intervals:
    """What each query reads in a layout of one term in token order; kept while the layout lives.

    by_key: the queries that read each key instead.

    >>> from patterncc import causal, compile, sink, window
    >>> made = intervals_of(compile(causal() & (window(1) | sink(1)), 5, block=16))
    >>> [list(zip(*x)) for x in zip(made.low[:, 0].T.tolist(), made.high[:, 0].T.tolist())][3:]
    [[(0, 1), (2, 4)], [(0, 1), (3, 5)]]

    Raises SizeError for a layout of very many stretches.
    """
    kept = _known.setdefault(layout, {})
    if by_key not in kept:
        kept[by_key] = _made(layout, by_key)
    return kept[by_key]


def _made(layout: Layout, by_key: bool) -> Intervals:
    runs = layout.cols if by_key else layout.rows
    rows, across = (layout.n_k, layout.n) if by_key else (layout.n, layout.n_k)
    side = layout.block[by_key]
    parts = [_full(layout, runs, by_key), *_zones(layout, runs, by_key)]
    parts.append(_bits(layout, runs, by_key))
    line, row, low, high = (np.concatenate(x) for x in zip(*parts, strict=True))
    pattern, own = np.divmod(line, max(1, runs.lines))
    row = own * side + row
    high = np.minimum(high, across)
    real = (row < rows) & (low < high)
    stride = across + 1
    name = (pattern * rows + row)[real] * stride
    first, last = merged(name + low[real], name + high[real])
    return _padded(first, last, layout.patterns, rows, stride)


def _padded(first: I64, last: I64, patterns: int, rows: int, stride: int) -> Intervals:
    """Merged intervals, each named by its row and place, side by side for each row."""
    row = first // stride
    start = np.searchsorted(row, np.arange(patterns * rows))
    place = np.arange(len(row)) - start[row]
    most = int(place.max(initial=-1)) + 1
    if most * patterns * rows * 2 > LARGEST:
        raise SizeError(
            f"routed: the static layout has rows of {most} separate stretches of keys, "
            f"{patterns} patterns of {rows} rows; more than {LARGEST} numbers: route beside a "
            "pattern of few stretches (windows, sinks, documents, blocks)"
        )
    low, high = np.zeros((2, most, patterns * rows), dtype=np.int64)
    low[place, row] = first - row * stride
    high[place, row] = last - row * stride
    shape = (most, patterns, rows)
    return Intervals(low.reshape(shape), high.reshape(shape))


_Part = tuple["I64", "I64", "I64", "I64"]
"""Line, row within the line's tiles, first and past-the-last key."""


def _lines(runs: Runs) -> I64:
    return np.repeat(np.arange(len(runs.ptr) - 1, dtype=np.int64), np.diff(runs.ptr))


def _full(layout: Layout, runs: Runs, by_key: bool) -> _Part:
    """Rows of full tiles: each run is one stretch."""
    side, width = layout.block[by_key], layout.block[not by_key]
    some = runs.run[:, 2] == 0
    line, run = _lines(runs)[some], runs.run[some].astype(np.int64)
    row = np.tile(np.arange(side), len(run))
    low, high = run[:, 0] * width, (run[:, 0] + run[:, 1]) * width
    return np.repeat(line, side), row, np.repeat(low, side), np.repeat(high, side)


def _tiles(runs: Runs, first_word: int, past: int) -> tuple[I64, I64, I64]:
    """Line, position and mask, counted from the first, of each tile of some mask words."""
    some = (runs.run[:, 2] >= first_word) & (runs.run[:, 2] < past)
    run, line = runs.run[some].astype(np.int64), _lines(runs)[some]
    count = run[:, 1]
    before = np.cumsum(count) - count
    position = np.arange(count.sum()) + np.repeat(run[:, 0] - before, count)
    return np.repeat(line, count), position, np.repeat(run[:, 2] - first_word, count)


def _zones(layout: Layout, runs: Runs, by_key: bool) -> list[_Part]:
    """Rows of tiles of zones, a part for each zone that a mask may hold."""
    side, width = layout.block[by_key], layout.block[not by_key]
    line, position, mask = _tiles(runs, 1, 1 + len(layout.zones))
    zones = layout.zones.astype(np.int64)
    if by_key:
        i0, i1, j0, j1, d0, d1 = np.moveaxis(zones, -1, 0)
        zones = np.stack([j0, j1, i0, i1, 1 - d1, 1 - d0], axis=-1)
    row = np.arange(side)
    parts = []
    for slot in range(zones.shape[1]):
        r0, r1, k0, k1, d0, d1 = (zones[:, slot, c, None] for c in range(6))
        low = np.maximum(k0, row + d0)
        high = np.where((row >= r0) & (row < r1), np.minimum(k1, row + d1), low)
        used = np.flatnonzero((low < high).any(axis=1)[mask]) if len(zones) else mask[:0]
        start = (position[used] * width)[:, None]
        placed = [(start + x[mask[used]]).reshape(-1) for x in (low, np.maximum(low, high))]
        own = np.repeat(line[used], side)
        parts.append((own, np.tile(row, len(used)), placed[0], placed[1]))
    return parts


def _bits(layout: Layout, runs: Runs, by_key: bool) -> _Part:
    """Stretches of ones in tiles of bits; each distinct mask is read once."""
    width = layout.block[not by_key]
    line, position, mask = _tiles(runs, 1 + len(layout.zones), 2**31)
    packed = np.ascontiguousarray(layout.bits.astype("<u4")).view(np.uint8)
    drawn = np.unpackbits(packed, axis=-1, bitorder="little")[..., : layout.block[1]]
    if by_key:
        drawn = drawn.transpose(0, 2, 1)
    step = np.diff(drawn.astype(np.int8), axis=-1, prepend=0, append=0)
    of, row, low = np.nonzero(step == 1)
    high = np.nonzero(step == -1)[2]
    count = np.bincount(of, minlength=len(drawn))
    first = np.cumsum(count) - count
    many = count[mask] if len(drawn) else mask
    before = np.cumsum(many) - many
    place = np.arange(many.sum()) - np.repeat(before - first[mask], many) if len(drawn) else mask
    start = np.repeat(position * width, many)
    return np.repeat(line, many), row[place], start + low[place], start + high[place]
