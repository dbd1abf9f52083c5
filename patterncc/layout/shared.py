"""What is equal is stored once: equal sums are candidates, and candidates are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Index = NDArray[np.intp]
    Equal = Callable[[Index, Index], NDArray[np.bool_]]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PART = 2**18  # numbers that are mixed at a time


def first_of_each(sums: NDArray[np.uint64], equal: Equal) -> tuple[Index, Index]:
    """Of equal things the first, ascending, and for each thing its place among those.

    equal(a, b) says pair by pair whether things are equal; it is asked about those of equal sums.
    Things of one sum that differ from the first of them are kept, each for itself.

    >>> words = np.array(["ab", "ba", "ab", "c"])
    >>> kept, place = first_of_each(
    ...     np.array([3, 3, 3, 9], dtype=np.uint64), lambda a, b: words[a] == words[b]
    ... )
    >>> words[kept].tolist(), place.tolist()
    (['ab', 'ba', 'c'], [0, 1, 0, 2])
    """
    every = np.arange(len(sums))
    order = np.argsort(sums, kind="stable")
    same = np.zeros(len(order), dtype=bool)
    same[1:] = sums[order[1:]] == sums[order[:-1]]
    first = np.empty(len(order), dtype=np.intp)
    first[order] = order[np.maximum.accumulate(np.where(same, 0, every))]
    copies = np.flatnonzero(first != every)
    for a in range(0, len(copies), _PART // 64):
        part = copies[a : a + _PART // 64]
        differ = part[~equal(part, first[part])]
        first[differ] = differ
    kept = np.flatnonzero(first == every)
    return kept, np.searchsorted(kept, first)


def distinct_bits(bits: NDArray[np.uint32]) -> tuple[Index, Index]:
    """The first of each distinct bit mask, and for each mask its place among those."""
    flat = bits.reshape(len(bits), bits.shape[1] * bits.shape[2])
    factor = mixed(np.arange(1, flat.shape[1] + 1)) | np.uint64(1)
    sums = np.empty(len(flat), dtype=np.uint64)
    step = max(1, _PART // flat.shape[1])
    for a in range(0, len(flat), step):
        sums[a : a + step] = (flat[a : a + step] * factor).sum(axis=1, dtype=np.uint64)
    return first_of_each(sums, lambda a, b: (flat[a] == flat[b]).all(axis=1))


def mixed(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Numbers spread over 64 bits."""
    z = values.astype(np.uint64) * _GOLDEN
    z ^= z >> np.uint64(32)
    z *= np.uint64(0xD6E8FEB86659FD93)
    z ^= z >> np.uint64(32)
    return z
