"""Places: rectangles of slots in which positions ascend, and how zones of positions look there.

An order puts tokens that belong together next to one another: a residue class, a cluster, a line
of a grid.  Within such a rectangle of slots both sides ascend, so a zone is monotone there.  Where
both ascend by one step it is a zone again, exactly over the integers:

    i = a + step * s,  j = b + step * u      d0 <= j - i < d1
    <=>  ceil((d0 + a - b) / step) <= u - s < ceil((d1 + a - b) / step)

Elsewhere it is a staircase, cut into zones of few rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from patterncc.zones import algebra
from patterncc.zones.orders.order import Order
from patterncc.zones.orders.stairs import GRAIN, stairs
from patterncc.zones.zoneset import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

_FAR = 2**43


@dataclass(frozen=True, eq=False)
class Places:
    """Disjoint rectangles of slots: queries [q0, q1) by keys [k0, k1), int64 [m] each.

    In each of them positions ascend on both sides, by `step` at every slot where step is not 0.
    Key intervals are equal or disjoint, and so are query intervals.
    alike: both sides of every rectangle hold the same tokens.
    base: of residue classes, the coarser ones that they are sorted by.
    """

    frame: Frame
    order: Order
    q0: I64
    q1: I64
    k0: I64
    k1: I64
    step: int
    alike: bool = False
    base: int = 0

    def __len__(self) -> int:
        return len(self.q0)

    def table(self) -> I64:
        """The rectangles themselves as zones in slots."""
        return algebra.tighten(
            algebra.pack((self.q0, self.q1, self.k0, self.k1, np.int64(-_FAR), np.int64(_FAR)))
        )

    def seen(self, table: I64, limit: int = algebra.MAX_ZONES) -> I64:
        """A table of zones of positions, within the rectangles, as zones in slots.

        Raises SizeError before it would make more than `limit` zones or rows.
        """
        if not len(table) or not len(self):
            return table[:0]
        if self.step:
            return self._spaced(table, limit)
        if _sided(table, self.frame, self.alike):
            return self._compared(table, limit)
        return self._staircases(table, limit)

    def only(self, base: int, residue: int | None = None, apart: bool = False) -> Places:
        """The rectangles whose queries and keys are one class modulo a divisor of the step (or of
        two classes, if `apart`); with `residue`, of that class."""
        a = (self.order.queries[self.q0].astype(np.int64) + self.frame.q_offset) % base
        b = (self.order.keys[self.k0].astype(np.int64) + self.frame.k_offset) % base
        kept = (a != b) if apart else (a == b)
        if residue is not None:
            kept &= a == residue
        sides = (x[kept] for x in (self.q0, self.q1, self.k0, self.k1))
        return replace(self, **dict(zip(("q0", "q1", "k0", "k1"), sides)))

    def _spaced(self, table: I64, limit: int) -> I64:
        """Every zone in every rectangle that it meets, in closed form."""
        step, f = self.step, self.frame
        a = self.order.queries[self.q0].astype(np.int64) + f.q_offset
        b = self.order.keys[self.k0].astype(np.int64) + f.k_offset
        past = a + (self.q1 - self.q0 - 1) * step + 1
        if len(table) == 1:
            zone, at = np.zeros(len(self), dtype=np.intp), np.arange(len(self))
        else:
            zone, at = algebra.overlapping_pairs(table[:, 0], table[:, 1], a, past, limit)
        i0, i1, j0, j1, d0, d1 = algebra.take(table, zone).T
        a, b, q0, k0 = a[at], b[at], self.q0[at], self.k0[at]
        gap = a - b
        return algebra.tighten(
            algebra.pack(
                (
                    np.maximum(q0, q0 + _up(i0 - a, step)),
                    np.minimum(self.q1[at], q0 + _up(i1 - a, step)),
                    np.maximum(k0, k0 + _up(j0 - b, step)),
                    np.minimum(self.k1[at], k0 + _up(j1 - b, step)),
                    k0 - q0 + _up(d0 + gap, step),
                    k0 - q0 + _up(d1 + gap, step),
                )
            )
        )

    def _compared(self, table: I64, limit: int) -> I64:
        """Zones that only compare query and key: positions compare as slots do."""
        algebra.refuse_above(len(table) * len(self), "zones in an order", limit)
        zone, at = (x.ravel() for x in np.indices((len(table), len(self))))
        d0, d1 = table[zone, 4], table[zone, 5]
        i0, i1, j0, j1 = self.frame.box
        shift = self.k0[at] - self.q0[at]
        low = np.where(d0 <= j0 - i1 + 1, -_FAR, d0 + shift)
        high = np.where(d1 >= j1 - i0, _FAR, d1 + shift)
        return algebra.tighten(
            algebra.pack((self.q0[at], self.q1[at], self.k0[at], self.k1[at], low, high))
        )

    def _staircases(self, table: I64, limit: int) -> I64:
        """Every zone in every rectangle that it meets: each query slot reads one interval."""
        f = self.frame
        queries = _Ascending(self.q0, self.q1, self.order.queries, f.q_offset)
        keys = _Ascending(self.k0, self.k1, self.order.keys, f.k_offset)
        algebra.refuse_above(len(table) * len(self), "zones in rectangles", limit)
        zone, at = (x.ravel() for x in np.indices((len(table), len(self))))
        begin = queries.slot(at, table[zone, 0])
        end = queries.slot(at, table[zone, 1])
        some = begin < end
        zone, at, begin, end = zone[some], at[some], begin[some], end[some]
        run = self.order.queries[self.q1 - 1] - self.order.queries[self.q0] == self.q1 - self.q0 - 1
        if run.all() and 4 * len(keys.place) < int((end - begin).sum()):
            pair, slot, past = _turns(table[zone], at, begin, end, queries, keys, limit)
        else:
            algebra.refuse_above(int((end - begin).sum()), "rows of staircases", limit)
            pair, slot = algebra.expand(begin, end)
            past = slot + 1
        zone, at = zone[pair], at[pair]
        i = self.order.queries[slot].astype(np.int64) + f.q_offset
        first = keys.slot(at, np.maximum(i + table[zone, 4], table[zone, 2]))
        last = keys.slot(at, np.minimum(i + table[zone, 5], table[zone, 3]))
        some = first < last
        return stairs(slot[some], first[some], last[some], past[some])


def _turns(
    table: I64,
    at: NDArray[np.intp],
    begin: I64,
    end: I64,
    queries: _Ascending,
    keys: _Ascending,
    limit: int,
) -> tuple[NDArray[np.intp], I64, I64]:
    """Rows that read alike, of zones in rectangles whose queries follow one another: few keys come
    and go as the query moves on.  The zone's number, the first slot, past the last."""
    i = queries.position(at, begin)
    final = i + (end - begin - 1)
    _, _, j0, j1, d0, d1 = table.T
    comes = keys.slot(at, np.minimum(i + d1, j1)), keys.slot(at, np.minimum(final + d1, j1))
    goes = keys.slot(at, np.maximum(i + d0, j0)), keys.slot(at, np.maximum(final + d0, j0))
    count = sum(int(np.maximum(b - a, 0).sum()) for a, b in (comes, goes)) + len(table)
    algebra.refuse_above(count + int(((end - begin) // GRAIN).sum()), "steps of staircases", limit)
    new, key = algebra.expand(*comes)
    old, gone = algebra.expand(*goes)
    first = keys.position(at[new], key) - d1[new] + 1 - i[new] + begin[new]
    behind = keys.position(at[old], gone) - d0[old] + 1 - i[old] + begin[old]
    grain, multiple = algebra.expand(begin // GRAIN + 1, -(-end // GRAIN))
    zone = np.concatenate([np.arange(len(table)), new, old, grain])
    slot = np.concatenate([begin, first, behind, multiple * GRAIN])
    inside = (slot >= begin[zone]) & (slot < end[zone])
    turns = np.unique(zone[inside] * _WIDE + slot[inside])
    zone, slot = np.divmod(turns, _WIDE)
    past = np.append(slot[1:], 0)
    ends = np.append(zone[1:] != zone[:-1], True)[: len(zone)]
    past[ends] = end[zone[ends]]
    return zone, slot, past


class _Ascending:
    """One side of some rectangles: the first slot at or past a position, in each of them."""

    def __init__(self, first: I64, last: I64, tokens: NDArray[np.int32], offset: int) -> None:
        self.first, self.group = np.unique(first, return_inverse=True)
        ends = np.zeros_like(self.first)
        ends[self.group] = last
        owner, slot = algebra.expand(self.first, ends)
        self.place = owner * _WIDE + tokens[slot] + offset
        self.before = np.cumsum(ends - self.first) - (ends - self.first)

    def position(self, rectangle: NDArray[np.intp], slot: I64) -> I64:
        """The position of the token in a slot of a rectangle."""
        group = self.group[rectangle]
        found: I64 = self.place[slot - self.first[group] + self.before[group]] - group * _WIDE
        return found

    def slot(self, rectangle: NDArray[np.intp], position: I64) -> I64:
        """Of the tokens of a rectangle that are not before a position, the slot of the first."""
        group = self.group[rectangle]
        wanted = group * _WIDE + np.clip(position, 0, _WIDE - 1)
        found: I64 = np.searchsorted(self.place, wanted) - self.before[group] + self.first[group]
        return found


_WIDE = 2**42
"""Past every position; with fewer than 2**21 rectangles (place, position) is one int64."""


def _up(x: I64, step: int) -> I64:
    """ceil(x / step)."""
    return -(-x // step)


def _sided(table: I64, frame: Frame, alike: bool) -> bool:
    """Whether every zone only compares query and key (or not even that): its box follows from the
    frame and the band, and the band ends at 0, at 1 or past everything."""
    a, b, c, d = frame.box
    i0, i1, j0, j1, d0, d1 = table.T
    boxed = (i0 > np.maximum(a, c - d1 + 1)) | (i1 < np.minimum(b, d - d0))
    boxed |= (j0 > np.maximum(c, a + d0)) | (j1 < np.minimum(d, b + d1 - 1))
    free_low, free_high = d0 <= c - b + 1, d1 >= d - a
    if not alike:
        return bool((~boxed & free_low & free_high).all())
    low, high = free_low | (d0 >> 1 == 0), free_high | (d1 >> 1 == 0)
    return bool((~boxed & low & high).all())
