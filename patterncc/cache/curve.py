"""Curve: how many keys a cache holds at each step, a sum of straight lines, and its exact peak."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.cache.spans import Spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Curve:
    """Keys held while step t is answered, for start <= t < stop, its own key included.

    From step ``step[k]`` on there are ``value[k] + slope[k] * (t - step[k])``, until the next entry
    begins; all int64 [entries], the first at `start`.

    >>> from patterncc import causal, lower, window
    >>> spans = Spans.of(lower(causal() & window(3), 100).table)
    >>> curve = Curve.of([(spans, 1)], 0, 100)
    >>> curve.peak, [curve.at(t) for t in (0, 1, 50, 99)]
    ((4, 3), [1, 2, 4, 4])
    """

    start: int
    stop: int
    step: I64
    value: I64
    slope: I64

    @staticmethod
    def of(parts: Iterable[tuple[Spans, int]], start: int, stop: int) -> Curve:
        """The sum over spans, each so many times."""
        events = [_events(spans.table, times) for spans, times in parts]
        zero = np.array([[start], [0], [0]], dtype=np.int64)
        step, turn, jump = np.concatenate([zero, *events], axis=1)
        order = np.argsort(step, kind="stable")
        step, turn, jump = step[order], turn[order], jump[order]
        new = np.flatnonzero(np.append(True, step[1:] != step[:-1]))
        step, turn, jump = step[new], np.add.reduceat(turn, new), np.add.reduceat(jump, new)
        slope = np.cumsum(turn)
        # a step adds its slope, and at an event the jump; between events the slope alone
        between = np.append(0, slope[:-1] * (np.diff(step) - 1))
        value = np.cumsum(slope + jump + between)
        # what happened before the first step counts there
        first = int(np.searchsorted(step, start))
        inside = slice(first, max(first + 1, int(np.searchsorted(step, stop))))
        return Curve(start, stop, step[inside], value[inside], slope[inside])

    def at(self, t: int) -> int:
        """Keys held while step t is answered."""
        k = int(np.searchsorted(self.step, t, side="right")) - 1
        return int(self.value[k] + self.slope[k] * (t - self.step[k]))

    @property
    def peak(self) -> tuple[int, int]:
        """The most keys, and the first step that needs them; (0, start) where there is no step."""
        if self.start >= self.stop:
            return 0, self.start
        final = np.append(self.step[1:], self.stop) - 1
        end = self.value + self.slope * (final - self.step)
        k = int(np.argmax(np.maximum(self.value, end)))
        if self.value[k] >= end[k]:
            return int(self.value[k]), int(self.step[k])
        return int(end[k]), int(final[k])


def _events(table: I64, times: int) -> I64:
    """Steps at which the count turns or jumps, int64 [3, m]: step, change of slope, jump.

    Keys of a piece come one a step from the first to the last; those of a level piece go all at
    once after their last step, those of a slanted one as they came.
    """
    first, last, slope, _ = table.T
    come = np.stack([np.append(first, last), np.repeat([1, -1], len(table))])
    level, slant = table[slope == 0].T, table[slope == 1].T
    gone = level[3] + 1
    leave = np.append(slant[0] + slant[3] + 1, slant[1] + slant[3] + 1)
    step = np.concatenate([come[0], gone, leave])
    turn = np.concatenate([come[1], np.zeros_like(gone), np.repeat([-1, 1], slant.shape[1])])
    jump = np.zeros_like(step)
    jump[len(come[0]) : len(come[0]) + len(gone)] = level[0] - level[1]
    return np.stack([step, turn * times, jump * times])
