"""Runs: intervals of tiles merged, tiles of one mask word joined, both laid out by lines (CSR).

A tile is named by one integer, ``line * stride + position`` with a stride one larger than the line
is long: tiles of one line are neighbours when their keys are, and the last of a line never is next
to the first of the following one.  Intervals of tiles are pairs of such keys, half-open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.layout.layout import Runs

if TYPE_CHECKING:
    from numpy.typing import NDArray


def ordering(key: NDArray[np.int64]) -> NDArray[np.intp] | None:
    """Indices that sort `key`, equal ones in their order, or None where it is sorted already.

    Keys are not negative.  Where key and index fit in one integer those are sorted: keys that stand
    in no order at all sort in half the time, and others in the same.
    """
    if bool((key[1:] >= key[:-1]).all()):
        return None
    bits = len(key).bit_length()
    if int(key.max()).bit_length() + bits > 63:
        return np.argsort(key, kind="stable")
    place = key << bits
    place |= np.arange(len(key))
    place.sort(kind="stable")
    place &= (1 << bits) - 1
    return place


def merged(
    first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The union of the intervals [first, last) as sorted intervals that neither overlap nor adjoin.

    >>> [x.tolist() for x in merged(np.array([5, 0, 2]), np.array([7, 2, 4]))]
    [[0, 5], [4, 7]]
    """
    order = ordering(first)
    if order is not None:
        first, last = first[order], last[order]
    if len(first) < 2:
        return first, last
    reach = np.maximum.accumulate(last)
    apart = first[1:] > reach[:-1]
    starts = np.concatenate(([True], apart))
    ends = np.concatenate((apart, [True]))
    return first[starts], reach[ends]


def inside(
    key: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each key lies in one of the merged intervals."""
    if not len(first):
        return np.zeros(len(key), dtype=bool)
    place = np.searchsorted(first, key, side="right") - 1
    held: NDArray[np.bool_] = (place >= 0) & (key < last[place])
    return held


def lay(
    full_first: NDArray[np.int64],
    full_last: NDArray[np.int64],
    key: NDArray[np.int64],
    word: NDArray[np.int32],
    lines: int,
    length: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`ptr` and `run` of full intervals and of partial tiles with their words; both sorted and
    disjoint.

    lines: how many lines there are over all patterns; length: tiles in a line.
    """
    stride = length + 1
    new = np.ones(len(key), dtype=bool)
    new[1:] = (key[1:] != key[:-1] + 1) | (word[1:] != word[:-1])
    head = np.flatnonzero(new)
    start = np.concatenate([full_first, key[head]])
    count = np.concatenate([full_last - full_first, np.diff(head, append=len(key))])
    words = np.concatenate([np.zeros(len(full_first), dtype=np.int32), word[head]])
    order = ordering(start)
    if order is not None:
        start, count, words = start[order], count[order], words[order]
    line = start // stride
    run = np.empty((len(start), 3), dtype=np.int32)
    run[:, 0] = start - line * stride
    run[:, 1] = count
    run[:, 2] = words
    ptr = np.zeros(lines + 1, dtype=np.int32)
    np.cumsum(np.bincount(line, minlength=lines), out=ptr[1:])
    return ptr, run


def spread(runs: Runs) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Every tile of the runs, one by one: line (over all patterns), position, mask word.

    For small layouts only: a causal mask of a million tokens has 33 million tiles.
    """
    count = runs.run[:, 1].astype(np.int64)
    line = np.repeat(np.arange(len(runs.ptr) - 1, dtype=np.int64), np.diff(runs.ptr))
    before = np.cumsum(count) - count
    position = np.arange(count.sum(), dtype=np.int64) + np.repeat(runs.run[:, 0] - before, count)
    return np.repeat(line, count), position, np.repeat(runs.run[:, 2], count)
