"""Random edges that are the same on every machine: a counter-based hash, and draws made from it.

A row's numbers are splitmix64 started from a key: ``mix(key(seed, layer, head), row)`` is the
state, and number s of the row is ``finish(state + (s + 1) * GOLDEN)``, all modulo 2**64.  Nothing
is carried from one row to the next, so any slice of rows can be drawn alone.  A number below m is
the hash modulo m, which favours no value by more than one in 2**64 / m.

Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014 (the hash);
Bentley and Floyd, "A sample of brilliance", 1987 (draws without replacement).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from patterncc.primitives import RandomBlocks, RandomEdges
from patterncc.zones.site import Site

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    U64 = NDArray[np.uint64]
    Seen = Callable[[I64, int, I64], NDArray[np.bool_]]

GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_TABLE = 2**25  # entries of the "already drawn" table that one pass may hold
_PART = 2**14  # rows that are drawn at once, so that they stay in cache
_NETWORK = 4  # numbers a row up to which compare-and-exchange is quicker than a sort


def finish(state: U64) -> U64:
    """The output function of splitmix64: a bijection that spreads every bit.

    >>> hex(int(finish(np.array([GOLDEN], dtype=np.uint64))[0]))
    '0xe220a8397b1dcdaf'
    """
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def mix(key: int, values: I64) -> U64:
    """One new state for each value, under a key."""
    spread = values.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(key)
    return finish(spread + np.uint64(GOLDEN))


def key(*parts: int) -> int:
    """One 64-bit key from a few integers, the order of which matters.

    >>> key(0, 1) != key(1, 0)
    True
    """
    state = 0
    for part in parts:
        state = int(mix(state, np.array([part & _MASK], dtype=np.uint64).view(np.int64))[0])
    return state


def distinct(state: U64, candidates: I64, count: int) -> I64:
    """`count` distinct numbers below `candidates` for each row, ascending: int64 [rows, count].

    A row with fewer candidates than `count` gets them all; places left over hold -1, in front.
    Floyd's algorithm: for top = c - count .. c - 1 draw t in 0..top; take top if t is already in.
    """
    most = int(candidates.max(initial=0))
    count = min(count, most)
    rows = _PART
    seen: Seen = _seen_by_look
    if count > 32 and count * count > most:
        rows, seen = max(1, _TABLE // most), _seen_by_table(most)
        if most > _TABLE:
            rows, seen = _PART, _seen_by_set()
    chosen = np.empty((len(state), count), dtype=np.int64)
    for first in range(0, len(state), rows):
        part = slice(first, first + rows)
        chosen[part] = _ascending(_floyd(state[part], candidates[part], count, seen))
    return chosen


def random_blocks(p: RandomBlocks, at: Site) -> I64:
    """One box for each run of neighbouring key blocks that a block row draws."""
    return _drawn(p, p.per_row, p.block, p.past, p.seed, at)


def random_edges(p: RandomEdges, at: Site, before: Sequence[I64] = ()) -> I64:
    """Some tables, then one run of keys for each run of neighbours that a row draws, clipped and
    tight: one allocation, since there are as many zones as edges."""
    r = at.region
    found = _draws(p, p.per_row, 1, p.past, p.seed, at)
    if found is None:
        return np.concatenate([*before, at.clip(at.rows())])
    rows, drawn = found
    row, flat = np.repeat(rows, drawn.shape[1]), drawn.reshape(-1)
    if (r.j0, r.j1) != (0, at.frame.box[3]) or r.d0 > r.j0 - r.i1 + 1 or r.d1 < r.j1 - r.i0:
        offset = flat - row
        inside = (flat >= r.j0) & (flat < r.j1) & (offset >= r.d0) & (offset < r.d1)
        row, flat = row[inside], flat[inside]
    row, flat, opens, closes = _runs(row, flat)
    head = sum(map(len, before))
    table = np.empty((6, head + np.count_nonzero(opens)), dtype=np.int64)
    if head:
        np.concatenate([part.T for part in before], axis=1, out=table[:, :head])
    i0, i1, j0, j1, d0, d1 = table[:, head:]
    np.compress(opens, row, out=i0)
    np.compress(opens, flat, out=j0)
    np.compress(closes, flat, out=j1)
    j1 += 1
    np.add(i0, 1, out=i1)
    np.subtract(j0, i0, out=d0)
    np.subtract(j1, i0, out=d1)
    return table.T


def _drawn(p: object, per_row: int, block: int, past: bool, seed: int, at: Site) -> I64:
    """Boxes of what each block row in the region draws."""
    found = _draws(p, per_row, block, past, seed, at)
    if found is None:
        return at.rows()
    row, start, end = row_runs(*found)
    return at.rows(row * block, (row + 1) * block, start * block, end * block)


def _draws(
    p: object, per_row: int, block: int, past: bool, seed: int, at: Site
) -> tuple[I64, I64] | None:
    """The block rows of the region and what each draws: from all key blocks, or from those up to
    its own.  None where every row draws them all."""
    r = at.region
    first, last = r.i0 // block, (r.i1 - 1) // block
    _, _, _, key_end = at.frame.box
    blocks = -(-key_end // block)
    most = min(per_row, last + 1 if past else blocks)
    if not past and per_row >= blocks:
        return None
    at.allow((last - first + 1) * most, p)
    rows = np.arange(first, last + 1, dtype=np.int64)
    candidates = rows + 1 if past else np.full(len(rows), blocks, dtype=np.int64)
    return rows, distinct(mix(key(seed, at.layer, at.head), rows), candidates, per_row)


def row_runs(rows: I64, drawn: I64) -> tuple[I64, I64, I64]:
    """Ascending numbers of each row as runs: row, first, past the last; -1 is left out."""
    row, flat, opens, closes = _runs(np.repeat(rows, drawn.shape[1]), drawn.reshape(-1))
    return row[opens], flat[opens], flat[closes] + 1


def _runs(row: I64, drawn: I64) -> tuple[I64, I64, NDArray[np.bool_], NDArray[np.bool_]]:
    """What is drawn, without -1, and where runs of neighbours in a row open and close."""
    if bool((drawn < 0).any()):
        wanted = drawn >= 0
        row, drawn = row[wanted], drawn[wanted]
    opens = np.ones(len(drawn), dtype=bool)
    for a in range(0, len(drawn) - 1, _PART):  # in pieces that stay in cache
        b = min(a + _PART, len(drawn) - 1)
        follows = drawn[a + 1 : b + 1] == drawn[a:b] + 1
        opens[a + 1 : b + 1] = ~(follows & (row[a + 1 : b + 1] == row[a:b]))
    closes = np.ones(len(drawn), dtype=bool)
    closes[:-1] = opens[1:]
    return row, drawn, opens, closes


def _floyd(state: U64, candidates: I64, count: int, seen: Seen) -> I64:
    """The draws, int64 [count, rows]; rows with fewer candidates end early, the rest is -1."""
    chosen = np.empty((count, len(state)), dtype=np.int64)
    taken = np.minimum(candidates, count)
    short = bool((taken < count).any())
    for s in range(count):
        top = candidates - taken + s
        state = state + np.uint64(GOLDEN)
        draw = (finish(state) % (top + 1).astype(np.uint64)).astype(np.int64)
        np.copyto(draw, top, where=seen(chosen, s, draw))
        chosen[s] = np.where(s < taken, draw, -1) if short else draw
    return chosen


def _ascending(columns: I64) -> I64:
    """[count, rows] as [rows, count], each row ascending."""
    count = len(columns)
    if count > _NETWORK:
        return np.sort(columns.T, axis=1)
    for turn in range(count):
        for k in range(turn % 2, count - 1, 2):
            low = np.minimum(columns[k], columns[k + 1])
            np.maximum(columns[k], columns[k + 1], out=columns[k + 1])
            columns[k] = low
    return columns.T


def _seen_by_look(chosen: I64, s: int, draw: I64) -> NDArray[np.bool_]:
    """Whether each row's draw is among its first s: every one compared."""
    found = np.zeros(len(draw), dtype=bool)
    for k in range(s):
        found |= chosen[k] == draw
    return found


def _seen_by_table(most: int) -> Seen:
    """The same from a table of what each row has drawn, for many draws out of few candidates."""
    table: list[NDArray[np.bool_]] = []

    def seen(chosen: I64, s: int, draw: I64) -> NDArray[np.bool_]:
        if s == 0:
            table[:] = [np.zeros((len(draw), most + 1), dtype=bool)]
        else:
            table[0][np.arange(len(draw)), chosen[s - 1]] = True
        return table[0][np.arange(len(draw)), draw]

    return seen


def _seen_by_set() -> Seen:
    """The same from a set for each row, for many draws out of very many candidates."""
    drawn: list[set[int]] = []

    def seen(chosen: I64, s: int, draw: I64) -> NDArray[np.bool_]:
        if s == 0:
            drawn[:] = [set() for _ in range(len(draw))]
        else:
            for row, last in zip(drawn, chosen[s - 1].tolist()):
                row.add(last)
        pairs = zip(draw.tolist(), drawn)
        return np.fromiter((x in row for x, row in pairs), dtype=bool, count=len(draw))

    return seen
