"""Zones moved to any order: run by run in closed form, or edge by edge, whichever is less."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.errors import SizeError
from patterncc.zones import algebra
from patterncc.zones.merge import zones_of_edges
from patterncc.zones.zoneset import Frame, ZoneSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.zones.orders.order import Order

    I64 = NDArray[np.int64]

MAX_MOVED = 2**23
"""Pieces of zones, or edges, that one pattern is moved as."""


_WORTH = 4  # edges to a piece from which runs are cut: single edges join to new zones


def moved(zones: ZoneSet, order: Order, limit: int = MAX_MOVED) -> ZoneSet:
    """The same edges in slots: a frame of the same size from 0 on, exact for every order.

    Where tokens that follow one another stay together, a zone is cut along such runs; elsewhere
    every edge is moved by itself.

    >>> from patterncc import causal, lower
    >>> from patterncc.zones.orders.order import Order
    >>> back = moved(lower(causal(), 3), Order.of("back", [2, 1, 0]))
    >>> back.dense().astype(int).tolist()
    [[1, 1, 1], [0, 1, 1], [0, 0, 1]]

    Raises SizeError, before anything is moved, where both ways would make more than `limit`.
    """
    frame = slot_frame(zones.frame)
    table = zones.table
    shift = [zones.frame.q_offset] * 2 + [zones.frame.k_offset] * 2
    shift += [zones.frame.k_offset - zones.frame.q_offset] * 2
    table = table - np.array(shift, dtype=np.int64)
    if not len(table):
        return ZoneSet(frame, table)
    single = algebra.single_rows(table, 1)
    held = int(algebra.areas(algebra.take(table, ~single)).astype(np.float64).sum())
    edges = int(np.count_nonzero(single)) + held
    most = limit if edges > limit else edges // _WORTH
    queries, keys = _Runs(order.query_slots), _Runs(order.key_slots)
    pieces = queries.count(table[:, 0], table[:, 1])
    if pieces <= most:
        cut = queries.cut(table)
        pieces = keys.count(cut[:, 2], cut[:, 3])
        if pieces <= most:
            return ZoneSet(
                frame, _placed(algebra.transpose(keys.cut(algebra.transpose(cut))), order)
            )
    if edges > limit:
        raise SizeError(
            f"order {order.name!r} would make {pieces:,} pieces or {edges:,} edges of the "
            f'pattern, more than {limit:,}; use order="token", an order that keeps neighbours '
            "together, or a pattern of fewer edges"
        )
    return ZoneSet(frame, moved_edges(*_listed(table), order))


def edges_of(zones: ZoneSet, limit: int = MAX_MOVED) -> tuple[I64, I64]:
    """Query and key of every edge, positions; an edge in several zones repeats.

    Raises SizeError before more than `limit` are listed.
    """
    held = int(algebra.areas(zones.table).astype(np.float64).sum())
    algebra.refuse_above(held, "single edges", limit)
    return _listed(zones.table)


def _listed(table: I64) -> tuple[I64, I64]:
    """Query and key of every edge of every zone."""
    zone, i = algebra.expand(table[:, 0], table[:, 1])
    low = np.maximum(table[zone, 2], i + table[zone, 4])
    high = np.minimum(table[zone, 3], i + table[zone, 5])
    row, j = algebra.expand(low, high)
    return i[row].astype(np.int64), j.astype(np.int64)


def moved_edges(query: I64, key: I64, order: Order) -> I64:
    """Zones in slots of single edges, counted from the frame's first query and key."""
    return algebra.tighten(
        zones_of_edges(
            order.query_slots[query].astype(np.int64), order.key_slots[key].astype(np.int64)
        )
    )


def slot_frame(frame: Frame) -> Frame:
    """The frame of slots: as many queries and keys, both from 0 on."""
    return Frame(frame.n, frame.n_k)


class _Runs:
    """Runs of neighbouring tokens that stand in neighbouring slots: where each begins."""

    def __init__(self, slots: NDArray[np.int32]) -> None:
        self.start = np.flatnonzero(np.append(True, np.diff(slots) != 1)) if len(slots) else slots
        self.end = np.append(self.start[1:], len(slots))

    def count(self, first: I64, last: I64) -> int:
        """How many pieces the intervals fall into."""
        return int((self._at(last - 1) - self._at(first) + 1).sum())

    def cut(self, table: I64) -> I64:
        """Zones cut at the starts of runs, by their first axis."""
        zone, run = algebra.expand(self._at(table[:, 0]), self._at(table[:, 1] - 1) + 1)
        pieces = np.array(algebra.take(table, zone), order="F")
        pieces[:, 0] = np.maximum(pieces[:, 0], self.start[run])
        pieces[:, 1] = np.minimum(pieces[:, 1], self.end[run])
        return algebra.tighten(pieces)

    def _at(self, token: I64) -> NDArray[np.intp]:
        return np.searchsorted(self.start, token, side="right") - 1


def _placed(pieces: I64, order: Order) -> I64:
    """Pieces that lie within one run of queries and one of keys, shifted to their slots."""
    i0, i1, j0, j1, d0, d1 = pieces.T
    s, u = order.query_slots[i0].astype(np.int64) - i0, order.key_slots[j0].astype(np.int64) - j0
    return algebra.pack((i0 + s, i1 + s, j0 + u, j1 + u, d0 + u - s, d1 + u - s))
