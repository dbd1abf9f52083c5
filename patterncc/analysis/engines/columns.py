"""One layer applied to bit columns: every position gathers the bits of the keys that it reads.

A state is uint64 [positions, words]; bit b of word w is source 64 * w + b, and row i holds the
sources that have reached position i.  A layer A turns a state X into the OR of X over the keys of
each row (operator.py says in which ways).  Rows are worked on in blocks that stay in cache; what a
block cannot see (running ORs, ORs of ranges) is made ready before.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.engines.operator import Operator, Ranges, Ranked, operator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Bits = NDArray[np.uint64]

__all__ = [
    "Operator",
    "Ranked",
    "Ready",
    "apply_block",
    "block_rows",
    "operator",
    "range_or",
    "ready",
    "running_or",
    "scratch",
]

FEW = 64  # ranges up to which each is reduced by itself
BLOCK_WORDS = 2**16  # words of a block of rows: 512 KiB


@dataclass(frozen=True, eq=False)
class Ready:
    """What blocks need of a whole state: a running OR for each scan, the OR of each stretch."""

    scans: tuple[Bits, ...]
    stretches: Bits | None


def ready(op: Operator, source: Bits) -> Ready:
    """What the blocks of one application need of the whole state."""
    scans = tuple(_running(source, zone) for zone in op.scans)
    if op.ranges is None:
        return Ready(scans, None)
    return Ready(scans, _stretch_bits(op.ranges, source))


def _running(source: Bits, zone: tuple[int, ...]) -> Bits:
    """out[k] is the OR of the zone's keys up to (or from) its k-th."""
    _, _, j0, j1, _, d1 = zone
    part = source[j0:j1]
    if d1 < j1 - zone[0]:  # the far end moves: keys from j0 on
        return running_or(part)
    return running_or(part[::-1])[::-1]


def running_or(rows: Bits) -> Bits:
    """out[k] = rows[0] | ... | rows[k], in two levels so that each step is a long slice."""
    count, words = rows.shape
    side = max(1, int(count**0.5))
    whole = np.zeros((-(-count // side) * side, words), dtype=np.uint64)
    whole[:count] = rows
    cube = whole.reshape(-1, side, words)
    for k in range(1, side):
        cube[:, k] |= cube[:, k - 1]
    carried = np.bitwise_or.accumulate(cube[:, -1], axis=0)
    cube[1:] |= carried[:-1, None]
    return whole[:count]


def _stretch_bits(ranges: Ranges, source: Bits) -> Bits:
    """The OR over all ranges of each stretch."""
    value = range_or(source, ranges.first, ranges.last)
    out = np.zeros((len(ranges.starts) - 1, source.shape[1]), dtype=np.uint64)
    for member in ranges.members:
        assert member.row is not None
        out[member.row] |= value[member.index]
    return out


def range_or(source: Bits, first: I64, last: I64) -> Bits:
    """The OR of source[first[r]:last[r]] for every r; no range is empty.

    Few ranges are folded one by one; of many, each is two windows of 2**k rows.
    """
    out = np.empty((len(first), source.shape[1]), dtype=np.uint64)
    if len(first) <= FEW:
        for r, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            out[r] = _fold(source[a:b])
        return out
    level_of = np.frexp((last - first).astype(np.float64))[1] - 1
    window, spare = source, np.empty_like(source)
    for level in range(int(level_of.max()) + 1):
        if level:
            step = 2 ** (level - 1)
            np.bitwise_or(window[:-step], window[step:], out=spare[:-step])
            spare[-step:] = window[-step:]
            window, spare = spare, (np.empty_like(source) if window is source else window)
        at = np.flatnonzero(level_of == level)
        out[at] = window[first[at]] | window[last[at] - 2**level]
    return out


def _fold(rows: Bits) -> Bits:
    """The OR of all rows, by halves."""
    while len(rows) > 1:
        half = len(rows) // 2
        folded = rows[:half] | rows[half : 2 * half]
        if len(rows) % 2:
            folded[0] |= rows[-1]
        rows = folded
    first: Bits = rows[0]
    return first


def block_rows(op: Operator, words: int) -> int:
    """Rows of a block: what stays in cache, but more than the windows that are doubled for it."""
    return max(64, BLOCK_WORDS // max(1, words), 2 * _widest(op))


def scratch(op: Operator, rows: int, words: int) -> tuple[Bits, Bits]:
    """Room for the work on one block of `rows` rows; no two threads may share it."""
    room = np.empty((2, rows + _widest(op), words), dtype=np.uint64)
    return room[0], room[1]


def _widest(op: Operator) -> int:
    return max((zone[5] - zone[4] for zone in op.slides), default=0)


def apply_block(
    op: Operator,
    made: Ready,
    source: Bits,
    state: Bits,
    out: Bits,
    span: tuple[int, int],
    room: tuple[Bits, Bits],
) -> None:
    """out[a:b] = state[a:b] | (A source)[a:b] for the rows of one block, [a, b)."""
    a, b = span
    slides = op.slides
    if slides and source is state and _holds_block(slides[0], a, b):
        _double(source, slides[0], a, b, out[a:b], room)  # the token itself is in the window
        slides = slides[1:]
    else:
        np.copyto(out[a:b], state[a:b])
    for zone in slides:
        _slide(zone, source, out, a, b, room)
    for zone, running in zip(op.scans, made.scans, strict=True):
        _scan(zone, running, out, a, b)
    if op.gathers:
        _gather(op.gathers, source, out, a, b, room[0])
    if op.ranges is not None:
        assert made.stretches is not None
        _stretch(op.ranges, made.stretches, out, a, b)


def _holds_block(zone: tuple[int, ...], a: int, b: int) -> bool:
    """Every row of [a, b) reads a whole window of at least two keys, itself among them."""
    i0, i1, j0, j1, d0, d1 = zone
    fits = i0 <= a and b <= i1 and j0 <= a + d0 and b - 1 + d1 <= j1
    return fits and d0 <= 0 < d1 and d1 - d0 > 1


def _slide(
    zone: tuple[int, ...], source: Bits, out: Bits, a: int, b: int, room: tuple[Bits, Bits]
) -> None:
    """A band over rows [a, b)."""
    i0, i1, j0, j1, d0, d1 = zone
    a, b = max(a, i0), min(b, i1)
    if a >= b:
        return
    low, high = max(j0, a + d0), min(j1, b - 1 + d1)
    if d1 - d0 == 1:
        out[a:b] |= source[low:high]
    elif (low, high) == (a + d0, b - 1 + d1):
        out[a:b] |= _double(source, zone, a, b, None, room)
    else:  # keys outside the zone are nothing
        window = np.zeros((b - a + d1 - d0 - 1, source.shape[1]), dtype=np.uint64)
        window[low - a - d0 : high - a - d0] = source[low:high]
        out[a:b] |= _double(window, (0, 0, 0, 0, 0, d1 - d0), 0, b - a, None, room)


def _double(
    source: Bits,
    zone: tuple[int, ...],
    a: int,
    b: int,
    out: Bits | None,
    room: tuple[Bits, Bits],
) -> Bits:
    """The OR of source[i + d0 : i + d1] for every row i of [a, b): windows of one key, two, four
    and so on, the last of just the width (d1 - d0 > 1)."""
    d0, d1 = zone[4:]
    width, step = d1 - d0, 1
    window, spare, other = source[a + d0 : b - 1 + d1], *room
    while True:
        more = min(step, width - step)
        last = step + more == width
        made = out if last and out is not None else spare[: len(window) - more]
        np.bitwise_or(window[: len(window) - more], window[more:], out=made)
        if last:
            return made
        window, step = made, step + more
        spare, other = other, spare


def _scan(zone: tuple[int, ...], running: Bits, out: Bits, a: int, b: int) -> None:
    """A zone of which one end moves, over rows [a, b)."""
    i0, i1, j0, j1, d0, d1 = zone
    a, b = max(a, i0), min(b, i1)
    if a >= b:
        return
    # the key at which row i stands moves with i until it meets the end of the box
    ahead = d1 < j1 - i0
    shift, turn = (d1 - 1 - j0, j1 - d1 + 1) if ahead else (d0 - j0, j0 - d0)
    turn = min(max(turn, a), b)
    if ahead:
        out[a:turn] |= running[a + shift : turn + shift]
        out[turn:b] |= running[-1]
    else:
        out[a:turn] |= running[0]
        out[turn:b] |= running[turn + shift : b + shift]


def _gather(
    gathers: tuple[Ranked, ...], source: Bits, out: Bits, a: int, b: int, room: Bits
) -> None:
    here, taken = out[a:b], room[: b - a]
    for gather in gathers:
        if gather.row is None:
            np.take(source, gather.index[a:b], axis=0, out=taken, mode="clip")
            np.bitwise_or(here, taken, out=here)
            continue
        x, y = np.searchsorted(gather.row, (a, b))
        if x < y:
            out[gather.row[x:y]] |= source[gather.index[x:y]]


def _stretch(ranges: Ranges, value: Bits, out: Bits, a: int, b: int) -> None:
    """What each stretch reads, for those of its rows that are in [a, b)."""
    first = int(ranges.starts[0])
    if ranges.of_row is not None:
        top, bottom = max(a, first), min(b, int(ranges.starts[-1]))
        if top < bottom:
            out[top:bottom] |= value[ranges.of_row[top - first : bottom - first]]
        return
    starts = ranges.starts.tolist()
    for s, (x, y) in enumerate(pairwise(starts)):
        top, bottom = max(a, x), min(b, y)
        if top < bottom:
            out[top:bottom] |= value[s]
