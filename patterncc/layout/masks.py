"""Masks of partial tiles: tile-local zones packed into integers, unions resolved, bits drawn.

A tile-local zone has bounds of 0 .. 256 and diagonals of -255 .. 256, so all six fit in 56 bits.
Tight zones are canonical: two equal masks of one zone are two equal integers, and nothing needs
hashing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.layout.budget import Budget
from patterncc.layout.limits import SLOTS
from patterncc.layout.shared import distinct_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MERGED = 2 * SLOTS  # zones of a tile that are merged where that is exact
_COMPARED = 64  # zones of a tile of which contained ones are dropped
_TOGETHER = 2**10  # unions of few zones up to which those of two, three ... are decided together
_CHUNK = 2**21  # entries of the temporary arrays
_LAST = np.iinfo(np.int64).max
ONES = ((1 << np.arange(33, dtype=np.uint64)) - 1).astype(np.uint32)  # [b]: bits 0 .. b - 1 set


def pack(
    bounds: tuple[NDArray[Any], ...],
    row: NDArray[Any],
    column: NDArray[Any],
    block: tuple[int, int],
) -> NDArray[np.int64]:
    """The part of each zone inside its tile, tile-local, tight, packed into a positive integer.

    `bounds` are the six columns i0 .. d1 of zones that touch the tile (row, column).

    >>> one = tuple(np.array([x]) for x in (0, 512, 0, 512, -511, 1))
    >>> unpack(pack(one, np.array([2]), np.array([2]), (128, 128))).tolist()
    [[0, 128, 0, 128, -127, 1]]
    """
    height, width = block
    top, left = row * height, column * width
    i0, i1, j0, j1, d0, d1 = _tighten(
        np.maximum(bounds[0] - top, 0),
        np.minimum(bounds[1] - top, height),
        np.maximum(bounds[2] - left, 0),
        np.minimum(bounds[3] - left, width),
        bounds[4] + (top - left),
        bounds[5] + (top - left),
    )
    return join(i0, i1, j0, j1, d0, d1)


def join(
    i0: NDArray[Any],
    i1: NDArray[Any],
    j0: NDArray[Any],
    j1: NDArray[Any],
    d0: NDArray[Any],
    d1: NDArray[Any],
) -> NDArray[np.int64]:
    """Six tile-local bounds as one integer of 9 + 9 + 9 + 9 + 10 + 10 bits."""
    packed: NDArray[np.int64] = (i0 << 9 | i1).astype(np.int64) << 38
    packed |= (j0 << 9 | j1).astype(np.int64) << 20
    packed |= (d0 + 256) << 10 | (d1 + 256)
    return packed


def _tighten(
    i0: NDArray[Any],
    i1: NDArray[Any],
    j0: NDArray[Any],
    j1: NDArray[Any],
    d0: NDArray[Any],
    d1: NDArray[Any],
) -> tuple[NDArray[Any], ...]:
    """The tight bounds, in place: one pass over rows, keys and diagonals reaches them."""
    np.maximum(i0, j0 - d1 + 1, out=i0)
    np.minimum(i1, j1 - d0, out=i1)
    np.maximum(j0, i0 + d0, out=j0)
    np.minimum(j1, i1 - 1 + d1, out=j1)
    np.maximum(d0, j0 - i1 + 1, out=d0)
    np.minimum(d1, j1 - i0, out=d1)
    return i0, i1, j0, j1, d0, d1


def unpack(packed: NDArray[np.int64]) -> NDArray[np.int32]:
    """int32 [..., 6] of packed zones; six zeros for 0, the empty slot."""
    shifts = np.array([47, 38, 29, 20, 10, 0])
    widths = np.array([511, 511, 511, 511, 1023, 1023])
    fields = (packed[..., None] >> shifts) & widths
    fields[..., 4:] -= 256
    fields[packed == 0] = 0
    unpacked: NDArray[np.int32] = fields.astype(np.int32)
    return unpacked


def areas(zones: NDArray[Any]) -> NDArray[np.int64]:
    """How many pairs each tight zone [..., 6] holds: its box less what the band cuts off."""
    i0, i1, j0, j1, d0, d1 = (zones[..., c] for c in range(6))
    above = np.maximum(j1 - i0 - d1, 0)  # the upper right corner, a staircase of this many steps
    below = np.maximum(d0 - (j0 - i1 + 1), 0)
    held = (i1 - i0) * (j1 - j0) - (above * (above + 1) + below * (below + 1)) // 2
    counted: NDArray[np.int64] = held.astype(np.int64)
    return counted


def union_areas(zones: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many pairs unions of a few tight zones [m, k, 6] hold, by inclusion and exclusion."""
    total = np.zeros(len(zones), dtype=np.int64)
    members = np.flatnonzero(zones.any(axis=(0, 2))).tolist()  # slots in use, usually two
    for count in range(1, len(members) + 1):
        for chosen in combinations(members, count):
            low = zones[:, chosen, 0::2].max(axis=1)
            high = zones[:, chosen, 1::2].min(axis=1)
            meet = np.stack(
                _tighten(*(side[:, c] for c in range(3) for side in (low, high))), axis=1
            )
            some = (meet[:, 0::2] < meet[:, 1::2]).all(axis=1)
            total += np.where(some, areas(meet), 0) * (1 if count % 2 else -1)
    return total


def raster(zones: NDArray[np.int32], block: tuple[int, int]) -> NDArray[np.uint32]:
    """Unions of tile-local zones [m, k, 6] as bits, uint32 [m, block[0], ceil(block[1] / 32)]."""
    height, width = block
    words = -(-width // 32)
    bounds = zones.astype(np.int16)[..., None]  # union, zone, bound, row
    i = np.arange(height, dtype=np.int16)
    inside = (i >= bounds[:, :, 0]) & (i < bounds[:, :, 1])
    low = np.maximum(bounds[:, :, 2], i + bounds[:, :, 4])
    high = np.where(inside, np.minimum(bounds[:, :, 3], i + bounds[:, :, 5]), 0)
    out = np.empty((len(zones), height, words), dtype=np.uint32)
    for w in range(words):
        first, last = np.clip(low - 32 * w, 0, 32), np.clip(high - 32 * w, 0, 32)
        # an interval that ends before it begins leaves no bit
        np.bitwise_or.reduce(ONES[last] & ~ONES[first], axis=1, out=out[:, :, w])
    return out


@dataclass(frozen=True)
class Words:
    """The mask word of each tile, and the tables it points into: as `Layout` holds them."""

    word: NDArray[np.int32]
    zones: NDArray[np.int32]
    bits: NDArray[np.uint32]


def settle(
    packed: NDArray[np.int64],
    start: NDArray[np.intp],
    rows: NDArray[np.int64],
    budget: Budget,
) -> Words:
    """The mask word of each tile.

    Tile t holds the zones packed[start[t] : start[t + 1]], and rows[t] of its queries exist.  Equal
    masks get one word; the order of a tile's zones does not matter.
    """
    count = np.diff(start, append=len(packed))
    block = budget.block
    single, several = np.flatnonzero(count == 1), np.flatnonzero(count > 1)
    if not len(several):
        table, place = distinct(packed[start][:, None])
        return Words((place + 1).astype(np.int32), _table(table), _no_bits(block))
    r, entry = _resolved(packed, start[several], count[several], rows[several], budget)
    alone, few = (r.kind == 1) & (r.zones[:, 1] == 0), (r.kind == 1) & (r.zones[:, 1] != 0)
    ones, place = distinct(np.concatenate([packed[start[single]], r.zones[alone, 0]])[:, None])
    word = np.zeros(len(start), dtype=np.int32)
    word[single] = place[: len(single)] + 1
    code = np.zeros(len(r.kind), dtype=np.int32)
    code[alone] = place[len(single) :] + 1
    table, place = distinct(r.zones[few])
    code[few] = place + (len(ones) + 1)
    once, place = distinct_bits(r.bits)
    code[r.kind == 2] = place + (len(ones) + len(table) + 1)
    word[several] = code[entry]
    return Words(word, np.concatenate([_table(ones), _table(table)]), r.bits[once])


def _table(packed: NDArray[np.int64]) -> NDArray[np.int32]:
    """int32 [m, SLOTS, 6] of packed zones [m, up to SLOTS]."""
    table = np.zeros((len(packed), SLOTS, 6), dtype=np.int32)
    table[:, : packed.shape[1]] = unpack(packed)
    return table


def _no_bits(block: tuple[int, int]) -> NDArray[np.uint32]:
    return np.zeros((0, block[0], -(-block[1] // 32)), dtype=np.uint32)


@dataclass(frozen=True)
class _Resolved:
    """What each of m unions of zones amounts to.

    kind: int8 [m], 0 full, 1 a few zones, 2 bits.
    zones: int64 [m, SLOTS], packed, ascending, 0 last.
    bits: uint32 [number of kind 2, ...], in order.
    """

    kind: NDArray[np.int8]
    zones: NDArray[np.int64]
    bits: NDArray[np.uint32]


def _resolved(
    packed: NDArray[np.int64],
    start: NDArray[np.intp],
    count: NDArray[np.intp],
    rows: NDArray[np.int64],
    budget: Budget,
) -> tuple[_Resolved, NDArray[np.intp]]:
    """The distinct unions of tiles of several zones, resolved, and which one each tile has."""
    block = budget.block
    owner = np.repeat(np.arange(len(start)), count)
    before = np.cumsum(count) - count
    zone = packed[np.arange(len(owner)) + np.repeat(start - before, count)]
    order = np.lexsort((zone, owner))
    zone = zone[order]
    new = np.ones(len(zone), dtype=bool)
    new[1:] = (zone[1:] != zone[:-1]) | (owner[1:] != owner[:-1])  # duplicates dropped
    zone, owner = zone[new], owner[new]
    count = np.bincount(owner, minlength=len(start))
    start = np.cumsum(count) - count
    entry = np.zeros(len(start), dtype=np.intp)
    groups: list[NDArray[np.int64]] = []
    offset = 0
    for k in np.unique(count).tolist():
        where = np.flatnonzero(count == k)
        unions = np.empty((len(where), k + 1), dtype=np.int64)
        unions[:, 0] = rows[where]
        unions[:, 1:] = zone[start[where][:, None] + np.arange(k)]
        unions, place = distinct(unions)
        entry[where] = place + offset
        offset += len(unions)
        groups.append(unions)
    parts: list[_Resolved] = []
    drawn = 0
    for unions in _padded(groups):
        k = unions.shape[1] - 1
        step = max(1, _CHUNK // (k * max(k, block[0])))
        for first in range(0, len(unions), step):
            part = unions[first : first + step]
            parts.append(_resolve(part[:, 1:], part[:, 0], block))
            drawn += len(parts[-1].bits)
            budget.draw(drawn)
    return (
        _Resolved(
            np.concatenate([p.kind for p in parts]),
            np.concatenate([p.zones for p in parts]),
            np.concatenate([p.bits for p in parts]),
        ),
        entry,
    )


def _padded(groups: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Groups of few zones as one where they are short: many small steps take longer than one."""
    few = [g for g in groups if g.shape[1] <= _MERGED + 1]
    if len(few) < 2 or sum(map(len, few)) > _TOGETHER:
        return groups
    one = np.zeros((sum(map(len, few)), few[-1].shape[1]), dtype=np.int64)
    ends = np.cumsum([len(g) for g in few]).tolist()
    for group, end in zip(few, ends, strict=True):
        one[end - len(group) : end, : group.shape[1]] = group
    return [one, *groups[len(few) :]]


def _resolve(unions: NDArray[np.int64], rows: NDArray[Any], block: tuple[int, int]) -> _Resolved:
    """Decide unions of up to k distinct packed zones [m, k], ascending, filled up with 0."""
    if unions.shape[1] <= _MERGED:
        unions = _merged(unions)
    elif unions.shape[1] <= _COMPARED:
        unions = _without_contained(unions)
    zones = unpack(unions)
    kind = np.where((unions != 0).sum(axis=1) > SLOTS, 2, 1).astype(np.int8)
    few = np.zeros((len(unions), SLOTS), dtype=np.int64)
    few[:, : unions.shape[1]] = unions[:, :SLOTS]
    few[kind != 1] = 0
    held = areas(zones).sum(axis=1)  # less than the tile settles it; the others are counted exactly
    counted = np.flatnonzero((held >= rows * block[1]) & (kind == 1))
    held[counted] = union_areas(unpack(few[counted]))
    drawn = np.flatnonzero(kind == 2)
    bits = raster(zones[drawn], block)
    held[drawn] = np.bitwise_count(bits).sum(axis=(1, 2))
    kind[held == rows * block[1]] = 0
    return _Resolved(kind, few, bits[kind[drawn] == 2])


def _merged(unions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of zones whose hull holds no further pair replaced by it, one a turn in each union;
    zeros moved to the end."""
    zones = unpack(unions)
    left, right = np.triu_indices(unions.shape[1], 1)
    todo = np.arange(len(unions) if len(left) else 0)
    while len(todo):
        part = zones[todo]
        hull = np.empty((len(todo), len(left), 6), dtype=np.int32)
        hull[..., 0::2] = np.minimum(part[:, left, 0::2], part[:, right, 0::2])
        hull[..., 1::2] = np.maximum(part[:, left, 1::2], part[:, right, 1::2])
        held, used = areas(part), part[..., 1] > 0
        # else there is surely something between
        near = areas(hull) <= held[:, left] + held[:, right]
        union, pair = np.nonzero(near & used[:, left] & used[:, right])
        both = np.stack([part[union, left[pair]], part[union, right[pair]]], axis=1)
        exact = areas(hull[union, pair]) == union_areas(both)
        union, pair = union[exact], pair[exact]
        first = np.flatnonzero(np.diff(union, prepend=-1))
        union, pair = union[first], pair[first]
        todo = todo[union]
        zones[todo, left[pair]] = hull[union, pair]
        zones[todo, right[pair]] = 0
    columns = (zones[..., c] for c in range(6))
    return _ascending(np.where(zones[..., 1] > 0, join(*columns), _LAST))


def _without_contained(unions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Zones inside another zone of the same union replaced by 0, and zeros moved to the end."""
    z = unpack(unions)
    low, high = z[..., 0::2], z[..., 1::2]
    inside = np.ones((*unions.shape, unions.shape[1]), dtype=bool)  # union, which zone, in what
    for c in range(3):
        inside &= low[:, :, None, c] >= low[:, None, :, c]
        inside &= high[:, :, None, c] <= high[:, None, :, c]
    contained = inside.sum(axis=2) > 1  # each is inside itself, and equal ones are gone already
    return _ascending(np.where(contained, _LAST, unions))


def _ascending(packed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each row sorted, _LAST turned into 0 at its end."""
    ordered = np.sort(packed, axis=1)
    ordered[ordered == _LAST] = 0
    return ordered


def sizes(zones: NDArray[np.int32], bits: NDArray[np.uint32]) -> NDArray[np.int64]:
    """How many pairs each mask word holds, words 1 and up."""
    areas_of = areas(zones[:, 0])
    several = np.flatnonzero(zones[:, 1:].any(axis=(1, 2)))
    for first in range(0, len(several), _CHUNK // 64):
        part = several[first : first + _CHUNK // 64]
        areas_of[part] = union_areas(zones[part])
    total: NDArray[np.int64] = np.concatenate([areas_of, held(bits)])
    return total


def held(bits: NDArray[np.uint32]) -> NDArray[np.int64]:
    """How many pairs each of some bit masks holds; in pieces that stay in cache."""
    count = np.empty(len(bits), dtype=np.int64)
    step = max(1, _CHUNK // 64 // (bits.shape[1] * bits.shape[2]))
    for first in range(0, len(bits), step):
        part = np.bitwise_count(bits[first : first + step])
        count[first : first + step] = part.sum(axis=(1, 2), dtype=np.int64)
    return count


def distinct(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """The distinct rows of an integer array [m, k] in ascending order, and for each row its place
    among them.

    >>> [x.tolist() for x in distinct(np.array([[7], [3], [7]]))]
    [[[3], [7]], [1, 0, 1]]
    """
    if rows.shape[1] == 1:
        values = np.sort(rows[:, 0])
        new = np.ones(len(values), dtype=bool)
        np.not_equal(values[1:], values[:-1], out=new[1:])
        values = values[new]
        return values[:, None], np.searchsorted(values, rows[:, 0])
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    place = np.empty(len(rows), dtype=np.intp)
    place[order] = np.cumsum(new) - 1
    return ordered[new], place
