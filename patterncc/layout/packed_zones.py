"""Zones of packed sequences: every pattern lowered at each sequence's own length, then moved.

Equal lengths are lowered once; where an edge follows from its two positions alone, one lowering at
the longest length is cut to all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc import primitives as leaf
from patterncc.errors import SizeError
from patterncc.layout import masks
from patterncc.layout.packing import Packing
from patterncc.layout.staircase import Pieces
from patterncc.pattern import Pattern
from patterncc.zones import algebra
from patterncc.zones.lower import leaves, lower
from patterncc.zones.site import FAR
from patterncc.zones.zoneset import Frame, ZoneSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

PREDICATES = (
    *(leaf.Full, leaf.Causal, leaf.Window, leaf.Dilated, leaf.Strided, leaf.Summary),
    *(leaf.Chunked, leaf.GlobalTokens, leaf.Sink, leaf.Prefix, leaf.LogSparse),
)
"""Leaves whose edge (i, j) follows from i and j alone: a shorter sequence is a cut of a longer."""

MAX_CUTS = 2**20
"""Zones times lengths up to which one lowering at the longest length is cut to all lengths."""


FEW = 16
"""Zones of a pattern up to which those that lie in another are looked for, at every length."""


def positional(p: Pattern) -> bool:
    """Whether an edge follows from its two positions alone."""
    return all(isinstance(x, PREDICATES) for x in leaves(p))


@dataclass(frozen=True)
class Drawn:
    """A pattern, and the head that its draws are keyed by."""

    pattern: Pattern
    head: int


@dataclass(frozen=True)
class Lowering:
    """Patterns at the lengths of a packing."""

    packing: Packing
    layer: int
    bindings: dict[str, Any]

    def one(self, drawn: Drawn, f: Frame) -> ZoneSet:
        """A pattern in one frame."""
        sizes = (f.n, f.n_k, f.q_offset, f.k_offset)
        return lower(drawn.pattern, *sizes, layer=self.layer, head=drawn.head, **self.bindings)

    def zones(self, drawn: Sequence[Drawn], column: I64) -> tuple[I64, I64]:
        """The zones of all sequences in the packed frame, and whose each is, ascending;
        column: which pattern each sequence has."""
        p = self.packing
        sizes, place = _distinct(np.concatenate([column[:, None], p.sizes], axis=1))
        tables, counts = [], np.zeros(len(sizes), dtype=np.int64)
        for each in np.unique(sizes[:, 0]).tolist():  # ascending, as the rows of `sizes` are
            mine = sizes[:, 0] == each
            table, counts[mine] = self._lowered(drawn[each], sizes[mine, 1:])
            tables.append(table)
        table = np.concatenate([x.T for x in tables], axis=1).T if tables else _none()
        ends = np.cumsum(counts)
        algebra.refuse_above(int(counts[place].sum()), "zones of packed sequences")
        owner, row = algebra.expand((ends - counts)[place], ends[place])
        di, dj = p.q_bounds[:-1] - p.q_offset, p.k_bounds[:-1] - p.k_offset
        moved = np.stack([di, di, dj, dj, dj - di, dj - di])[:, owner]
        moved += table.T[:, row]
        return moved.T, owner

    def _lowered(self, drawn: Drawn, sizes: I64) -> tuple[I64, I64]:
        """One pattern in several frames [m, 4], in positions: zones frame by frame, and how many
        zones each has."""
        some = np.flatnonzero((sizes[:, 0] > 0) & (sizes[:, 1] > 0))
        counts = np.zeros(len(sizes), dtype=np.int64)
        if len(some) > 1 and positional(drawn.pattern):
            cut = self._cut(drawn, sizes[some])
            if cut is not None:
                table, owner = cut
                counts[some] = np.bincount(owner, minlength=len(some))
                return table, counts
        tables = [self.one(drawn, Frame(*sizes[g].tolist())).table for g in some]
        counts[some] = list(map(len, tables))
        return np.concatenate([t.T for t in tables], axis=1).T if tables else _none(), counts

    def _cut(self, drawn: Drawn, sizes: I64) -> tuple[I64, I64] | None:
        """The same by one lowering that holds all frames, cut to each; None where that is more."""
        n, n_k, q, k = sizes.T
        q0, k0 = int(q.min()), int(k.min())
        try:
            whole = self.one(
                drawn, Frame(int((q + n).max()) - q0, int((k + n_k).max()) - k0, q0, k0)
            )
        except SizeError:
            return None  # the least and the last position may be those of different sequences
        zones = whole.table
        if len(zones) * len(sizes) > MAX_CUTS:
            return None
        i0, i1, j0, j1, d0, d1 = (x[None, :] for x in zones.T)
        first, last, left, right = (x[:, None] for x in (q, q + n, k, k + n_k))
        box = (
            *(np.maximum(i0, first), np.minimum(i1, last)),
            *(np.maximum(j0, left), np.minimum(j1, right)),
            *(np.maximum(d0, left - last + 1), np.minimum(d1, right - first)),
        )
        table = np.stack([x.ravel() for x in np.broadcast_arrays(*box)]).T
        owner = np.repeat(np.arange(len(sizes)), len(zones))
        tight, alive = algebra.tightened(table)
        if 1 < len(zones) <= FEW:
            alive &= ~_within_another(tight, alive, len(zones))
        return algebra.take(tight, alive), owner[alive]


def _within_another(table: I64, alive: NDArray[np.bool_], group: int) -> NDArray[np.bool_]:
    """Which zones lie in another one of their group of so many rows: a sink in a window that is
    longer than the sequence."""
    low, high = (table.T[k::2].reshape(3, -1, group) for k in (0, 1))
    within = alive.reshape(-1, 1, group) & alive.reshape(-1, group, 1)
    for c in range(3):
        within &= low[c][:, :, None] >= low[c][:, None, :]
        within &= high[c][:, :, None] <= high[c][:, None, :]
    later = np.tri(group, k=-1, dtype=bool)  # of equal ones the first stays
    mutual = within & within.swapaxes(1, 2)
    inner: NDArray[np.bool_] = (within & (~mutual | later)).any(axis=2).reshape(-1)
    return inner


def _none() -> I64:
    return np.empty((6, 0), dtype=np.int64).T


def _distinct(rows: I64) -> tuple[I64, NDArray[np.intp]]:
    """The distinct rows, ascending, and the place of each; columns that say nothing are skipped."""
    if not len(rows):
        return rows, np.zeros(0, dtype=np.intp)
    told: list[I64] = []
    for column in rows.T:
        if (column != column[0]).any() and not any(np.array_equal(column, x) for x in told):
            told.append(column)
    if not told:
        return rows[:1], np.zeros(len(rows), dtype=np.intp)
    kept, place = masks.distinct(np.stack(told, axis=1))
    first = np.empty(len(kept), dtype=np.intp)
    first[place] = np.arange(len(rows))
    return rows[first], place


# --- one zone a sequence: built from its steps


def single(owner: I64) -> bool:
    """No sequence has two zones (owners ascend)."""
    return not (owner[1:] == owner[:-1]).any()


def pieces_of(table: I64, frame: Frame, block: tuple[int, int], pattern: int) -> Pieces:
    """The rows of one mask, cut at tile rows and where a zone begins or ends.

    Rows of no zone read an empty interval that stands between those of their neighbours.
    """
    n, height = frame.n, block[0]
    i0, i1, j0, j1, d0, d1 = table.T
    starts = np.arange(0, n, height, dtype=np.int64)
    q0 = np.sort(np.concatenate([starts, i0, i1]), kind="stable")
    q0 = q0[q0 < n]
    q0 = q0[np.append(True, q0[1:] != q0[:-1])]
    q1 = np.append(q0[1:], n)
    lines = q0 // height + pattern * -(-n // height)
    if not len(table):
        zero, far = np.zeros_like(q0), np.full_like(q0, FAR)
        return Pieces(lines, q0, q1, zero, zero, -far, far)
    zone = np.searchsorted(i0, q0, side="right") - 1  # the last that begins at or before the piece
    after = np.minimum(zone + 1, len(table) - 1)
    inside = (zone >= 0) & (q0 < i1[zone])
    between = np.where(zone + 1 < len(table), j0[after], j1[-1])
    return Pieces(
        lines,
        q0,
        q1,
        np.where(inside, j0[zone], between),
        np.where(inside, j1[zone], between),
        np.where(inside, d0[zone], -FAR),
        np.where(inside, d1[zone], FAR),
    )
