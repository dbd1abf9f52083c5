"""Zones of one query each, by the million: sorted by tile as plain integers, drawn into bits.

What a zone of one query holds in a tile is a run of keys, and a run in a tile is one integer, a
*stroke*:

    tile << 24 | query << 16 | first key << 8 | last key        all but the tile counted inside it

So one sort of integers brings the strokes of every tile together.  A tile of few strokes joins the
tiles of other zones; a crowded one is drawn at once.  Equal drawings are found before any is made,
so what is allocated is what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from patterncc.layout import masks
from patterncc.layout.limits import SLOTS
from patterncc.layout.runs import inside
from patterncc.layout.shared import distinct_bits, first_of_each, mixed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from patterncc.zones.zoneset import ZoneSet

    I64 = NDArray[np.int64]
    Intervals = tuple[I64, I64]

MANY = 2**13
"""Zones of one query from which they are taken as strokes."""

CROWDED = SLOTS
"""Strokes above which a tile is drawn; up to as many stay zones, merged where that is exact."""

_SHIFT = 24
_PART = 2**15  # zones and strokes that are looked at together, so that they stay in cache
_SALT = np.uint64(0x9E3779B97F4A7C15)  # tells zones from strokes


def thin_zones(zones: ZoneSet, height: int, tiles: int) -> NDArray[np.bool_] | None:
    """Which zones of a set are taken as strokes, None where there are too few, or too many tiles.

    A lone query in the last tile row is left out: there a zone may fill a tile.
    """
    table, frame = zones.table, zones.frame
    if len(table) < MANY or tiles >= 2 ** (62 - _SHIFT) or height > 256:
        return None
    thin: NDArray[np.bool_] = table[:, 1] - table[:, 0] == 1
    if frame.n % height == 1:
        thin &= table[:, 0] != frame.q_offset + frame.n - 1
    return thin if np.count_nonzero(thin) >= MANY else None


@dataclass(frozen=True)
class Lone:
    """Zones of one query of a set that are taken as strokes.

    which: marks them, None for all; count: how many strokes they are.
    line: the line of the set's first tile row.
    """

    zones: ZoneSet
    which: NDArray[np.bool_] | None
    line: int
    count: int

    def parts(self) -> Iterator[tuple[I64, I64, I64]]:
        """Query, first key and past the last of each, counted from the frame's, in parts."""
        table, frame = self.zones.table.T, self.zones.frame
        for a in range(0, table.shape[1], _PART):
            part = table[:, a : a + _PART]
            i, j0, j1 = part[0], part[2], part[3]
            if self.which is not None:
                some = self.which[a : a + _PART]
                i, j0, j1 = i[some], j0[some], j1[some]
            yield i - frame.q_offset, j0 - frame.k_offset, j1 - frame.k_offset


def lone(zones: ZoneSet, which: NDArray[np.bool_], line: int, width: int) -> Lone:
    """The marked zones, their strokes counted before any is made."""
    found = Lone(zones, None if which.all() else which, line, 0)
    count = sum(
        len(i) + int(((j1 - 1) // width - j0 // width).sum()) for i, j0, j1 in found.parts()
    )
    return replace(found, count=count)


def strokes(sets: Sequence[Lone], block: tuple[int, int], stride: int) -> I64:
    """All strokes in ascending order; those of a query that overlap or adjoin are one.

    stride: tiles of a line, and one.
    """
    stroke = np.empty(sum(each.count for each in sets), dtype=np.int64)
    done = 0
    for each in sets:
        for zones in each.parts():
            for made in _strokes(*zones, block, each.line, stride):
                stroke[done : done + len(made)] = made
                done += len(made)
    if not all((p[1:] >= p[:-1]).all() for p in _pieces(stroke)):
        stroke.sort(kind="stable")  # zones mostly stand by query: long ascending stretches
    return _merged(stroke) if any(map(_any_close, _pieces(stroke))) else stroke


def _strokes(
    query: I64, start: I64, end: I64, block: tuple[int, int], line: int, stride: int
) -> Iterator[I64]:
    """The strokes of some zones: those in the tile that each begins in, then the others."""
    height, width = block
    tile = query // height
    query -= tile * height
    tile += line
    tile *= stride
    first = start // width
    left = first * width
    wide = np.flatnonzero(end > left + width)
    if len(wide):
        count = (end[wide] - 1) // width - first[wide]
        again = np.repeat(wide, count)
        before = np.cumsum(count) - count
        column = first[again] + 1 + np.arange(len(again)) - np.repeat(before, count)
        yield _joined(tile[again] + column, query[again], 0, end[again] - column * width, width)
    tile += first
    yield _joined(tile, query, start - left, end - left, width)


def _joined(tile: I64, query: I64, first: I64 | int, end: I64, width: int) -> I64:
    """Strokes from their parts; `end` may lie past the tile."""
    stroke: I64 = tile << _SHIFT
    stroke |= query << 16
    stroke |= np.minimum(end - 1, width - 1)
    stroke |= first << 8
    return stroke


def _pieces(stroke: I64) -> Iterator[I64]:
    """Pieces that stay in cache, each with the first of the next."""
    return (stroke[a : a + _PART + 1] for a in range(0, len(stroke), _PART))


def _any_close(stroke: I64) -> bool:
    """Whether a stroke begins before or right behind the end of the one before, of its query."""
    line, first, last = stroke >> 16, (stroke >> 8) & 255, stroke & 255
    return bool(((line[1:] == line[:-1]) & (first[1:] <= last[:-1] + 1)).any())


def _merged(stroke: I64) -> I64:
    """Ascending strokes, those of a query that overlap or adjoin made one."""
    line, first = stroke >> 16, (stroke >> 8) & 255
    reach = np.maximum.accumulate(line << 8 | stroke & 255)
    opens = np.ones(len(stroke), dtype=bool)
    opens[1:] = (line[1:] != line[:-1]) | (first[1:] > (reach[:-1] & 255) + 1)
    ends = np.append(np.flatnonzero(opens)[1:], len(stroke)) - 1
    merged: I64 = (stroke[opens] & ~np.int64(255)) | (reach[ends] & 255)
    return merged


@dataclass(frozen=True)
class Crowd:
    """Tiles to draw: their keys, ascending; where the strokes of each begin; the strokes.

    Other zones that touch those tiles stand in `zone` (packed), `owner` says in which tile; both
    ascend, tile by tile.
    """

    tile: I64
    start: NDArray[np.intp]
    stroke: I64
    owner: NDArray[np.intp]
    zone: I64


def divided(stroke: I64, key: I64, packed: I64, full: Intervals) -> tuple[Crowd, I64, I64]:
    """The crowded tiles, and keys and packed zones of all others: strokes as zones, and `packed`.

    Strokes in tiles that are full anyhow are dropped.
    """
    tile, _, size = _tiles(stroke)
    if len(full[0]):
        free = ~inside(tile, *full)
        if not free.all():
            stroke = stroke[np.repeat(free, size)]
            tile, _, size = _tiles(stroke)
    many = size > CROWDED
    crowded = np.repeat(many, size)
    few = stroke[~crowded]
    tile, size = tile[many], size[many]
    place = np.minimum(np.searchsorted(tile, key), max(0, len(tile) - 1))
    met = tile[place] == key if len(tile) else np.zeros(len(key), dtype=bool)
    owner, zone = place[met], packed[met]
    order = np.lexsort((zone, owner))
    crowd = Crowd(tile, np.cumsum(size) - size, stroke[crowded], owner[order], zone[order])
    key, packed = key[~met], packed[~met]
    if len(few):
        key, packed = (np.concatenate(x) for x in ((few >> _SHIFT, key), (_zones(few), packed)))
    return crowd, key, packed


def _tiles(stroke: I64) -> tuple[I64, NDArray[np.intp], NDArray[np.intp]]:
    """The tiles of ascending strokes, where each begins, and how many strokes it has."""
    tile = stroke >> _SHIFT
    new = np.ones(len(tile), dtype=bool)
    np.not_equal(tile[1:], tile[:-1], out=new[1:])
    start = np.flatnonzero(new)
    return tile[start], start, np.diff(start, append=len(tile))


def touched(stroke: I64) -> tuple[int, int]:
    """How many tiles ascending strokes touch, and how many edges they are."""
    tiles, edges = min(1, len(stroke)), len(stroke)
    for piece in _pieces(stroke):
        tile = piece >> _SHIFT
        tiles += int(np.count_nonzero(tile[1:] != tile[:-1]))
        own = piece[:_PART]
        edges += int(((own & 255) - (own >> 8 & 255)).sum())
    return tiles, edges


def _zones(stroke: I64) -> I64:
    """Strokes as packed tile-local zones."""
    i, first, end = (stroke >> 16) & 255, (stroke >> 8) & 255, (stroke & 255) + 1
    return masks.join(i, i + 1, first, end, first - i, end - i)


def distinct(crowd: Crowd) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Of tiles with equal strokes and zones the first, and for each tile its place among those."""
    others = np.searchsorted(crowd.owner, np.arange(len(crowd.tile)))

    def equal(a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.bool_]:
        drawn = _equal(crowd.stroke, crowd.start, a, b, 2**_SHIFT - 1)
        return drawn & _equal(crowd.zone, others, a, b, -1)

    return first_of_each(_sums(crowd), equal)


def _sums(crowd: Crowd) -> NDArray[np.uint64]:
    """One number for each tile, equal where strokes and zones are."""
    sums = np.zeros(len(crowd.tile), dtype=np.uint64)
    end = np.append(crowd.start[1:], len(crowd.stroke))
    step = _PART // 64
    for a in range(0, len(sums), step):
        first, last = crowd.start[a], end[min(a + step, len(sums)) - 1]
        spread = mixed(crowd.stroke[first:last] & (2**_SHIFT - 1))
        sums[a : a + step] = np.add.reduceat(spread, crowd.start[a : a + step] - first)
    np.add.at(sums, crowd.owner, mixed(crowd.zone) * _SALT)
    return sums


def _equal(
    values: I64, start: NDArray[np.intp], a: NDArray[np.intp], b: NDArray[np.intp], bits: int
) -> NDArray[np.bool_]:
    """Whether lists a[k] and b[k] agree in some bits; list x is values[start[x] : start[x + 1]]."""
    size = np.diff(start, append=len(values))
    equal: NDArray[np.bool_] = size[a] == size[b]
    some = np.flatnonzero(equal)
    count = size[a[some]]
    before = np.cumsum(count) - count
    step = np.arange(int(count.sum())) - np.repeat(before, count)
    left, right = (values[np.repeat(start[x[some]], count) + step] for x in (a, b))
    equal[np.repeat(some, count)[(left ^ right) & bits != 0]] = False
    return equal


def drawn(
    crowd: Crowd, kept: NDArray[np.intp], place: NDArray[np.intp], block: tuple[int, int]
) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Distinct bits, uint32 [masks, block[0], ceil(block[1] / 32)], and which ones each tile has.

    kept, place: the tiles to draw and which of those each tile is like, as `distinct` found.
    """
    height, words = block[0], -(-block[1] // 32)
    bits = np.zeros(len(kept) * height * words, dtype=np.uint32)
    size = np.diff(crowd.start, append=len(crowd.stroke))[kept]
    ends = np.cumsum(size)
    cuts = np.unique(np.searchsorted(ends, np.arange(_PART, int(size.sum()), _PART))).tolist()
    for a, b in zip([0, *cuts], [*cuts, len(kept)], strict=True):
        if a == b:
            continue
        count = size[a:b]
        before = np.cumsum(count) - count
        at = np.repeat(crowd.start[kept[a:b]] - before, count) + np.arange(int(count.sum()))
        slot = np.repeat(np.arange(a, b), count)
        _draw(crowd.stroke[at], slot, bits, height, words)
    made = bits.reshape(len(kept), height, words)
    if not len(crowd.zone):
        return made, place
    _add_zones(crowd, kept, made, block)
    # other zones may cut one drawing in several ways
    once, same = distinct_bits(made)
    return (made, place) if len(once) == len(made) else (made[once], same[place])


def _draw(
    stroke: I64, slot: NDArray[np.intp], bits: NDArray[np.uint32], height: int, words: int
) -> None:
    """Ascending strokes of ascending slots into the bits, word by word."""
    line = (slot * height + ((stroke >> 16) & 255)) * words
    first, last = (stroke >> 8) & 255, stroke & 255
    for word in range(words):
        some = np.flatnonzero((first < 32 * word + 32) & (last >= 32 * word))
        if not len(some):
            continue
        low, high = (np.clip(x[some] - 32 * word, 0, 32) for x in (first, last + 1))
        value, place = masks.ONES[high] & ~masks.ONES[low], line[some] + word
        new = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
        bits[place[new]] = np.bitwise_or.reduceat(value, new)


def _add_zones(
    crowd: Crowd, kept: NDArray[np.intp], bits: NDArray[np.uint32], block: tuple[int, int]
) -> None:
    """The other zones of the tiles, added to what their strokes drew."""
    slot = np.full(len(crowd.tile), -1, dtype=np.intp)
    slot[kept] = np.arange(len(kept))
    for a in range(0, len(crowd.zone), _PART // 64):
        part = slice(a, a + _PART // 64)
        at = slot[crowd.owner[part]]
        some = at >= 0
        drawn = masks.raster(masks.unpack(crowd.zone[part][some])[:, None], block)
        np.bitwise_or.at(bits, at[some], drawn)
