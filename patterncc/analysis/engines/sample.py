"""What a sample of sources says about all of them: the draw, exact counts, and certain intervals.

Where every source has as many allowed pairs, sources are drawn without replacement. Elsewhere (the
causal triangle: an early key has more readers) they are drawn with replacement, each in proportion
to its allowed pairs. Either way the share of the allowed pairs that a drawn source reaches, a
number in [0, 1], has the share of all pairs as its mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.zones.random import key, mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    F64 = NDArray[np.float64]
    Bits = NDArray[np.uint64]

RISK = 0.05
_CAP = 0.9  # of the largest bet that cannot lose everything
_GRID = 16  # means tried at once; four rounds of it leave 1 / 65,536 of the first interval
_PURPOSE = 0x736F7572636573  # keeps these draws apart from those of random edges


@dataclass(frozen=True, eq=False)
class Draw:
    """Drawn sources in order, and how many there are to draw from (None: with replacement)."""

    sources: I64
    population: int | None


def draw(weights: I64, count: int, seed: int) -> Draw:
    """`count` sources drawn in proportion to their weights; those without weight never are.

    >>> draw(np.full(100, 7), 4, seed=0).population, draw(np.arange(9), 4, seed=0).population
    (100, None)
    """
    able = np.flatnonzero(weights)
    state = key(_PURPOSE, seed)
    if len(able) and bool((weights[able] == weights[able[0]]).all()):
        hashed = mix(state, able)
        first = np.argpartition(hashed, min(count, len(able)) - 1)[:count]
        return Draw(able[first[np.argsort(hashed[first])]], len(able))
    ends = np.cumsum(weights)
    ticket = mix(state, np.arange(count)) % np.uint64(ends[-1])
    return Draw(np.searchsorted(ends, ticket.astype(np.int64), side="right"), None)


def interval(values: F64, population: int | None, risk: float = RISK) -> tuple[float, float]:
    """An interval that holds the mean of all values with probability at least 1 - risk.

    Each end is a test by betting.  If the mean were m, a player who stakes a part of his capital on
    every draw being above m plays a fair game, whatever he learned from the draws before; his
    capital passes 2 / risk with a probability of at most risk / 2 (Markov).  The lower end is the
    least m at which it did not pass.  The upper end mirrors it.  Stakes follow the variance so far,
    so that values that differ little give a narrow interval.  Drawn without replacement, draw k is
    a draw from what is left, the mean of which is (N m - sum so far) / (N - k).

    Values in [0, 1], in the order of the draw.

    >>> low, high = interval(np.tile([0.4, 0.5, 0.6], 100), None)
    >>> 0.47 < low < 0.5 < high < 0.53
    True

    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
    J. R. Stat. Soc. B 86, 2024 (theorem 3; section 5 without replacement).
    """
    return _lower(values, population, risk), 1.0 - _lower(1.0 - values, population, risk)


def _lower(values: F64, population: int | None, risk: float) -> float:
    """The least mean at which the capital stays below 2 / risk; it falls as the mean grows."""
    count = len(values)
    before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
    drawn = np.arange(count)
    guess = (0.5 + before) / (drawn + 1)  # the mean so far, before the draw
    spread = np.cumsum((values - guess) ** 2)
    variance = (0.25 + np.concatenate([[0.0], spread[:-1]])) / (drawn + 1)
    goal = math.log(2 / risk)
    stake = np.sqrt(2 * goal / (count * variance))
    low, high = 0.0, float(values.mean())
    for _ in range(4):
        means = np.linspace(low, high, _GRID + 1)
        left = np.repeat(means[:, None], count, axis=1)
        if population is not None:
            left = (population * left - before) / np.maximum(population - drawn, 1)
        bet = np.minimum(stake, _CAP / np.maximum(left, 1e-12))
        capital = np.log(np.maximum(1 + bet * (values - left), 1e-300)).sum(axis=1)
        passed = int(np.argmax(np.append(capital < goal, True)))  # the first mean that stands
        if passed == 0:
            return low
        low, high = float(means[passed - 1]), float(means[min(passed, _GRID)])
    return low


def column_counts(rows: Bits) -> I64:
    """How many rows have each bit: int64 [64 * words].

    Full adders turn three rows into a sum and a carry of twice the weight, until few rows of each
    weight are left.

    >>> column_counts(np.array([[5], [1]], dtype=np.uint64))[:4].tolist()
    [2, 0, 1, 0]
    """
    total = np.zeros(64 * rows.shape[1], dtype=np.int64)
    weight = 1
    while len(rows):
        carries = []
        while len(rows) >= 24:
            third = len(rows) // 3
            a, b, c = rows[:third], rows[third : 2 * third], rows[2 * third : 3 * third]
            either = a ^ b
            carry = a & b
            carry |= either & c
            either ^= c
            carries.append(carry)
            rest = rows[3 * third :]
            rows = np.concatenate([either, rest]) if len(rest) else either
        total += weight * _unpacked(rows)
        rows = np.concatenate(carries) if carries else rows[:0]
        weight *= 2
    return total


def _unpacked(rows: Bits) -> I64:
    """Few rows bit by bit."""
    little = rows.astype("<u8", copy=False).view(np.uint8)
    bits = np.unpackbits(little, axis=1, bitorder="little")
    total: I64 = bits.sum(axis=0, dtype=np.int64)
    return total
