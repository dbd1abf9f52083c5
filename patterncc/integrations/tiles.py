"""Tiles of a layout as other people's formats want them: lists of blocks, masks block by block.

Only layouts in token order have tiles that mean anything to another kernel: the others refuse, and
say how to compile one that does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import LayoutError, PatternError, PatternValueError, SizeError
from patterncc.layout import masks
from patterncc.layout.layout import Layout, Runs
from patterncc.layout.runs import spread
from patterncc.pattern import check_int

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I32 = NDArray[np.int32]
    I64 = NDArray[np.int64]
    Bool = NDArray[np.bool_]

_TILES = 2**21  # tiles that are listed at once, about
_LONG = 64  # tiles of a run from which on it is written for itself


def check_layout(target: str, layout: object) -> Layout:
    """`layout`, if it is one."""
    if not isinstance(layout, Layout):
        raise PatternError(
            f"{target}: give what pc.compile returns, one layer at a time, "
            f"not a {type(layout).__name__}"
        )
    return layout


def in_token_order(target: str, layout: object) -> Layout:
    """`layout`, if it is one whose tiles stand in token order, in one term."""
    layout = check_layout(target, layout)
    terms = layout.terms
    placed = [t.order.name for t in terms if t.order is not None]
    if placed or len(terms) > 1:
        has = f"{len(terms)} terms" if len(terms) > 1 else "its tokens"
        orders = ", ".join(sorted(set(placed)))
        raise LayoutError(
            f"{target}: this layout has {has}{f' in the order {orders}' if placed else ''}; "
            'its tiles mean nothing to another kernel: compile it with order="token"'
        )
    return layout


def allow(target: str, what: str, size: int, max_bytes: int, remedy: str) -> None:
    """Refuse a result of more bytes than allowed, before any of it is made."""
    most = check_int(target, "max_bytes", max_bytes, 0, 2**62)
    if size > most:
        raise SizeError(
            f"{target}: {what} would take {size:,} bytes, more than max_bytes={most:,}; {remedy}"
        )


def head_patterns(layout: Layout) -> I32:
    """int32 [sequences, heads]: the pattern of each head of each sequence; 1 serves any number."""
    return layout.head_pattern.reshape(layout.sequences, -1)


def pattern_of(target: str, layout: Layout, head: int | None, sequence: int | None) -> int:
    """Which pattern a head of a sequence has; both may be left out where all have the same.

    Raises PatternValueError where they differ and none was chosen, and for one that is not there.
    """
    table = head_patterns(layout)
    for axis, (name, chosen) in enumerate((("sequence", sequence), ("head", head))):
        if chosen is not None:
            there = table.shape[axis]
            chosen = check_int(target, name, chosen, 0)
            if there > 1 and chosen >= there:
                raise PatternValueError(
                    f"{target}: {name} {chosen} of a layout for {there}: 0 .. {there - 1}"
                )
            table = np.take(table, [chosen if there > 1 else 0], axis=axis)
    found = np.unique(table)
    if len(found) > 1:
        raise PatternValueError(
            f"{target}: this layout has {len(found)} different masks and the format holds one; "
            "export each with head= and sequence="
        )
    return int(found[0])


def part(runs: Runs, first: int, last: int) -> Runs:
    """The lines first .. last - 1, counted over all patterns."""
    ptr = runs.ptr[first : last + 1]
    return Runs(last - first, ptr - ptr[0], runs.run[ptr[0] : ptr[-1]])


@dataclass(frozen=True, eq=False)
class Tiles:
    """The touched tiles of one pattern, row by row, ascending: tile row, tile column, mask word."""

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    word: I32


def tiles_of(layout: Layout, pattern: int) -> Tiles:
    """All touched tiles of a pattern; a caller bounds their number first (`tile_counts`)."""
    lines = layout.lines
    return Tiles(*spread(part(layout.rows, pattern * lines, (pattern + 1) * lines)))


def tile_counts(layout: Layout) -> NDArray[np.int64]:
    """int64 [patterns]: how many tiles each pattern touches."""
    held = np.concatenate([[0], np.cumsum(layout.rows.run[:, 1], dtype=np.int64)])
    ends = held[layout.rows.ptr[:: layout.lines]] if layout.lines else np.zeros(1, dtype=np.int64)
    counts: NDArray[np.int64] = np.diff(ends) if layout.lines else np.zeros(layout.patterns, int)
    return counts


def blocks(layout: Layout, row: NDArray[Any], word: NDArray[Any]) -> Bool:
    """The masks of tiles as bool [tiles, block[0], block[1]]; queries past n are left out."""
    out = np.ones((len(word), *layout.block), dtype=bool)
    drawn = word - 1 - len(layout.zones)
    for where, packed in (
        (np.flatnonzero((word > 0) & (drawn < 0)), None),
        (np.flatnonzero(drawn >= 0), layout.bits),
    ):
        for first in range(0, len(where), 4096):
            at = where[first : first + 4096]
            if packed is None:
                bits = masks.raster(layout.zones[word[at] - 1], layout.block)
            else:
                bits = packed[drawn[at]]
            little = np.ascontiguousarray(bits.astype("<u4")).view(np.uint8)
            each = np.unpackbits(little, axis=-1, bitorder="little")[..., : layout.block[1]]
            out[at] = each.astype(bool)
    past = layout.n - (layout.lines - 1) * layout.block[0]
    out[row == layout.lines - 1, past:] = False
    return out


@dataclass(frozen=True, eq=False)
class Lists:
    """For each line of tiles of each pattern the tiles of one kind, ascending.

    count: int32 [patterns, lines]; index: int32 [patterns, lines, width], 0 behind the last.
    """

    count: I32
    index: I32


@dataclass(frozen=True, eq=False)
class Sides:
    """Partial and full tiles of one direction; `full` is None where there is no full tile."""

    partial: Lists
    full: Lists | None


def sides(layout: Layout, *, columns: bool, compact: bool) -> Sides:
    """The lists of one direction: rows of key tiles, or columns of query tiles.

    A full tile of the last tile row counts as partial where that row reaches past the last query,
    as in a block mask that was made from a padded dense one.
    compact: the width is that of the longest list (at least 1), else that of the whole line.
    """
    line, first, count, full = _stretches(layout, columns)
    lines = layout.columns if columns else layout.lines
    made = []
    for kind in (False, True):
        here = full == kind
        held = np.bincount(line[here], count[here], layout.patterns * lines).astype(np.int32)
        width = layout.lines if columns else layout.columns
        if compact:
            width = max(1, int(held.max(initial=0)))
        index = _filled(line[here], first[here], count[here], held, width)
        shape = (layout.patterns, lines)
        made.append(Lists(held.reshape(shape), index.reshape(*shape, width)))
        if not full.any():
            return Sides(made[0], None)
    return Sides(made[0], made[1])


def longest(layout: Layout, *, columns: bool) -> tuple[int, int]:
    """The tiles of the longest list of partial and of full tiles of a direction."""
    line, _, count, full = _stretches(layout, columns)
    held = [np.bincount(line[full == kind], count[full == kind]) for kind in (False, True)]
    return int(held[0].max(initial=0)), int(held[1].max(initial=0))


def _filled(line: I64, first: I64, count: I64, held: I32, width: int) -> I32:
    """int32 [lines, width]: the tiles of stretches, in the order of the stretches."""
    index = np.zeros((len(held), width), dtype=np.int32)
    flat = index.reshape(-1)
    before = np.cumsum(count) - count
    starts = np.cumsum(held, dtype=np.int64) - held
    place = line * width + before - starts[line]
    long = np.flatnonzero(count >= _LONG)
    for at, low, many in zip(*(x[long].tolist() for x in (place, first, count)), strict=True):
        flat[at : at + many] = np.arange(low, low + many, dtype=np.int32)
    short = np.flatnonzero(count < _LONG)
    for part in np.array_split(short, 1 + len(short) * _LONG // _TILES):
        inner = np.arange(count[part].sum())
        inner -= np.repeat(np.cumsum(count[part]) - count[part], count[part])
        flat[np.repeat(place[part], count[part]) + inner] = (
            np.repeat(first[part], count[part]) + inner
        )
    return index


def _stretches(layout: Layout, columns: bool) -> tuple[I64, I64, I64, Bool]:
    """Runs by line over all patterns: line, first tile, tiles, whether they count as full."""
    runs = layout.cols if columns else layout.rows
    line = np.repeat(np.arange(len(runs.ptr) - 1), np.diff(runs.ptr))
    first, count, word = runs.run.T.astype(np.int64)
    full = word == 0
    if not layout.n % layout.block[0]:
        return line, first, count, full
    if not columns:
        return line, first, count, full & (line % layout.lines != layout.lines - 1)
    cut = np.flatnonzero(full & (first + count == layout.lines))  # their last tile is partial
    line, first = np.append(line, line[cut]), np.append(first, np.full(len(cut), layout.lines - 1))
    count, full = (
        np.append(count, np.ones(len(cut), int)),
        np.append(full, np.zeros(len(cut), bool)),
    )
    count[cut] -= 1
    order = np.lexsort((first, line))
    return line[order], first[order], count[order], full[order]
