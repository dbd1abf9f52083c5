"""Lowering of runs of keys given row by row, and of boxes given as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.errors import PatternValueError
from patterncc.pattern import Integers
from patterncc.primitives import Boxes, Spans
from patterncc.zones.site import FAR, Site, integers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


def spans(p: Spans, at: Site) -> I64:
    """Zones of consecutive rows whose two ends each stand still or move by one."""
    ends = [_rows("first", p.first, at), _rows("last", p.last, at)]
    first, last = (np.clip(x, at.region.j0, at.region.j1) for x in ends)
    start, stop, lower, upper = chains(first, last)
    at.allow(len(start), "spans")
    row, far = at.region.i0 + start, stop - start - 1
    low, high = first[start], last[start]
    table = at.rows(
        row,
        row + far + 1,
        low,
        high + upper * far,
        np.where(lower == 1, low - row, -FAR),
        np.where(upper == 1, high - row, FAR),
    )
    return table


def chains(first: I64, last: I64) -> tuple[I64, I64, I64, I64]:
    """Maximal chains of rows whose ends each stand still (0) or move by one a row (1).

    Gives start row, row past the end, and how the first and the last key move; every row that
    reads a key is in exactly one chain.
    """
    read = last > first
    step = np.stack([np.diff(first), np.diff(last)])
    smooth = ((step == 0) | (step == 1)).all(axis=0) & read[:-1] & read[1:]
    kind = np.where(smooth, 2 * step[0] + step[1], -1)
    rows = np.arange(len(first))
    if not len(rows):
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty, empty
    # steps of one kind in a row are one chain; the row between two chains belongs to the first
    begins = np.flatnonzero(np.diff(kind, prepend=-2) != 0)
    ends = np.append(begins[1:], len(kind))
    chained = kind[begins] >= 0 if len(begins) else np.zeros(0, dtype=bool)
    after = np.concatenate([[False], chained[:-1]]) if len(begins) else chained
    start, stop = (begins + after)[chained], (ends + 1)[chained]
    move = kind[begins][chained]
    covered = np.zeros(len(rows) + 1, dtype=np.int64)
    np.add.at(covered, start, 1)
    np.add.at(covered, stop, -1)
    single = np.flatnonzero(read & (np.cumsum(covered[:-1]) == 0))
    start = np.concatenate([start, single])
    stop = np.concatenate([stop, single + 1])
    move = np.concatenate([move, np.zeros(len(single), dtype=np.int64)])
    return start, stop, move // 2, move % 2


def boxes(p: Boxes, at: Site) -> I64:
    """The boxes as they are; clipping makes them tight."""
    _, i1, _, j1 = at.frame.box
    for name, most, end, things in (("n", p.n, i1, "queries"), ("n_k", p.n_k, j1, "keys")):
        if most is not None and end > most:
            raise PatternValueError(
                f"boxes: the table was made for {name}={most} and is lowered for {end} {things}; "
                "make it again for that length"
            )
    table = as_array(p.table).reshape(-1, 6)
    at.allow(len(table), "boxes")
    return table


def as_array(values: Sequence[int]) -> I64:
    """The integers as an array, not copied where they are packed."""
    if isinstance(values, Integers):
        return np.frombuffer(values.data, dtype=np.int64)
    return np.array(values, dtype=np.int64)


def _rows(name: str, values: Sequence[int] | str | int | None, at: Site) -> I64:
    """One bound for every query of the region."""
    r = at.region
    if values is None or isinstance(values, int):
        return np.full(r.i1 - r.i0, FAR if values is None else values, dtype=np.int64)
    if isinstance(values, str):
        name, array = values, integers("spans", values, at.bound("spans", values))
    else:
        array = as_array(values)
    _, i1, _, _ = at.frame.box
    if len(array) < i1:
        raise PatternValueError(
            f"spans: {name} has {len(array)} entries for {i1} query positions; "
            "give one a position, counted from position 0"
        )
    return array[r.i0 : r.i1]
