"""The mask of a layout as a formula of (sequence, head, query, key): three gathers.

FlexAttention and FlashAttention 4 ask for a mask function beside the lists of blocks.  This one is
exact for every pair: a two-level table gives the code of the pair's tile, and the code the bits
that decide; untouched and full tiles have bits too.  Only the upper level grows with the square of
the length, four bytes for every 64 tiles.

The formula is short on purpose.  A compiler that inlines what it reads (torch's inductor) takes
time exponential in shared subexpressions: bisection in the runs of a row never ended, and zones,
six bounds each, took it twice as long as bits do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from patterncc.integrations.tiles import head_patterns
from patterncc.layout.masks import distinct, raster

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout

    I32 = NDArray[np.int32]

_PAGE = 6  # log2 of the tiles of a page


class Tables(NamedTuple):
    """Arrays of int32, or tensors of the same content, and three numbers.

    patterns: [sequences, heads], the pattern of each head; 1 stands for any number of either.
    pages: [patterns * lines, columns / 64 rounded up], where the codes of 64 tiles stand.
    codes: [pages, 64], the code of a tile: 0 untouched, 1 full, then the masks.
    bits: [codes, block[0], words], bit b of word w is key 32 * w + b of the tile.
    lines: tile rows of a pattern.  row_shift, column_shift: log2 of the block.
    """

    patterns: Any
    pages: Any
    codes: Any
    bits: Any
    lines: int
    row_shift: int
    column_shift: int


def edge(t: Tables, b: Any, h: Any, i: Any, j: Any) -> Any:
    """Whether query i reads key j in head h of sequence b, for indices of numpy or torch.

    Indices broadcast, and count from the layout's first query and key.  They may pass the last of
    either up to the end of its tile: a key that does not exist is read by nobody.

    >>> from patterncc import causal, compile, window
    >>> t = tables(compile(causal() & window(2), 100, block=32))
    >>> i = np.arange(100)
    >>> int(edge(t, 0, 0, i[:, None], i).sum())
    297
    """
    line = i >> t.row_shift
    if t.patterns.shape[0] * t.patterns.shape[1] > 1:
        b = b if t.patterns.shape[0] > 1 else b * 0
        h = h if t.patterns.shape[1] > 1 else h * 0
        line = line + t.patterns[b, h] * t.lines
    tile = j >> t.column_shift
    code = t.codes[t.pages[line, tile >> _PAGE], tile & (1 << _PAGE) - 1]
    row, column = i & (1 << t.row_shift) - 1, j & (1 << t.column_shift) - 1
    return (t.bits[code, row, column >> 5] >> (column & 31) & 1) == 1


def _across(layout: Layout) -> int:
    """Pages of a tile row, at least one."""
    return max(1, -(-layout.columns >> _PAGE))


def table_bytes(layout: Layout) -> int:
    """What the tables take at most, before they are made."""
    words = layout.block[0] * -(-layout.block[1] // 32)
    across = _across(layout)
    lower = min(layout.patterns * layout.lines * across, 3 * len(layout.rows.run)) << _PAGE
    masks = 2 + len(layout.zones) + len(layout.bits)
    return 4 * (masks * words + layout.patterns * layout.lines * across + lower)


def tables(layout: Layout) -> Tables:
    """The tables of a layout in token order."""
    drawn = [raster(layout.zones, layout.block), layout.bits]
    shape = (2, layout.block[0], -(-layout.block[1] // 32))
    ends = np.zeros(shape, dtype=np.uint32)
    ends[1] = np.uint32(0xFFFFFFFF)
    pages, codes = _pages(layout)
    return Tables(
        head_patterns(layout).copy(),
        pages,
        codes,
        np.concatenate([ends, *drawn]).view(np.int32),
        layout.lines,
        layout.block[0].bit_length() - 1,
        layout.block[1].bit_length() - 1,
    )


def _pages(layout: Layout) -> tuple[I32, I32]:
    """Both levels of the table of codes; pages that are full throughout are one page."""
    side, across = 1 << _PAGE, _across(layout)
    at, start, count, code = _pieces(layout)
    whole = (code == 1) & (count == side)
    pages = np.zeros(layout.patterns * layout.lines * across, dtype=np.int32)
    pages[at[whole]] = 1
    at, start, count, code = (x[~whole] for x in (at, start, count, code))
    own, place = distinct(at[:, None])
    pages[own[:, 0]] = 2 + np.arange(len(own))
    codes = np.zeros((2 + len(own), side), dtype=np.int32)
    codes[1] = 1
    first = np.repeat((2 + place) * side + start - (np.cumsum(count) - count), count)
    codes.reshape(-1)[first + np.arange(len(first))] = np.repeat(code, count)
    return pages.reshape(-1, across), codes


def _pieces(layout: Layout) -> tuple[NDArray[np.int64], ...]:
    """Runs cut where pages end: page over all lines, first tile in it, tiles, code."""
    across = _across(layout)
    line = np.repeat(np.arange(len(layout.rows.ptr) - 1), np.diff(layout.rows.ptr))
    first, count, word = layout.rows.run.T.astype(np.int64)
    parts = (first + count - 1 >> _PAGE) - (first >> _PAGE) + 1
    run = np.repeat(np.arange(len(first)), parts)
    page = (first >> _PAGE)[run] + np.arange(len(run)) - np.repeat(np.cumsum(parts) - parts, parts)
    start = np.maximum(first[run], page << _PAGE)
    end = np.minimum((first + count)[run], page + 1 << _PAGE)
    return line[run] * across + page, start & (1 << _PAGE) - 1, end - start, 1 + word[run]
