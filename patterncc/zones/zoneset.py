"""ZoneSet: an exact set of edges as a table of zones, six int64 numbers each.

    zone = { (i, j) : i0 <= i < i1,  j0 <= j < j1,  d0 <= j - i < d1 }

A box cut by a diagonal band.  The set is the *union* of its rows, which may overlap.  Every row is
kept *tight*: no bound can move inwards without losing an edge, so a zone is never empty, each query
of [i0, i1) reads some key, and each key of [j0, j1) is read by some query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.pattern import check_int
from patterncc.zones import algebra, sweep

if TYPE_CHECKING:
    from numpy.typing import NDArray

DENSE_LIMIT = 2**30  # entries of a bool matrix that `dense` will build


@dataclass(frozen=True)
class Frame:
    """The pairs that exist: n queries from position q_offset on, n_k keys from k_offset on."""

    n: int
    n_k: int
    q_offset: int = 0
    k_offset: int = 0

    @staticmethod
    def of(n: int, n_k: int | None = None, q_offset: int = 0, k_offset: int = 0) -> Frame:
        """A checked frame; without `n_k` the keys go up to the last query.

        >>> Frame.of(4, q_offset=12)
        Frame(n=4, n_k=16, q_offset=12, k_offset=0)
        """
        n = check_int("frame", "n", n, 0)
        q_offset = check_int("frame", "q_offset", q_offset, 0)
        k_offset = check_int("frame", "k_offset", k_offset, 0)
        keys = max(0, q_offset + n - k_offset) if n_k is None else n_k
        return Frame(n, check_int("frame", "n_k", keys, 0), q_offset, k_offset)

    @property
    def T(self) -> Frame:  # noqa: N802 - the name that matrices have
        """Keys and queries exchanged."""
        return Frame(self.n_k, self.n, self.k_offset, self.q_offset)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(first query, past the last, first key, past the last)."""
        return (
            self.q_offset,
            self.q_offset + self.n,
            self.k_offset,
            self.k_offset + self.n_k,
        )


@dataclass(frozen=True, eq=False)
class ZoneSet:
    """Exact edges within a frame: `table`, int64 [zones, 6], columns i0 i1 j0 j1 d0 d1."""

    frame: Frame
    table: NDArray[np.int64]

    @staticmethod
    def make(frame: Frame, rows: object) -> ZoneSet:
        """Clip rows of six integers to the frame, tighten them and drop the empty ones.

        >>> ZoneSet.make(Frame.of(8), [(0, 8, 0, 8, -2, 1)]).count()
        21
        """
        table = np.asarray(rows, dtype=np.int64).reshape(-1, 6)
        return ZoneSet(frame, algebra.tighten(algebra.clip(table, frame.box)))

    def __len__(self) -> int:
        """How many zones the table holds (not how many edges: that is `count`)."""
        return len(self.table)

    def __bool__(self) -> NoReturn:
        raise PatternError("a ZoneSet has no truth value; use z.count() or len(z)")

    def __or__(self, other: ZoneSet) -> ZoneSet:
        self._same_frame(other)
        return ZoneSet(self.frame, np.concatenate([self.table, other.table]))

    def __and__(self, other: ZoneSet) -> ZoneSet:
        self._same_frame(other)
        return ZoneSet(self.frame, algebra.intersect(self.table, other.table))

    def __sub__(self, other: ZoneSet) -> ZoneSet:
        self._same_frame(other)
        return ZoneSet(self.frame, sweep.difference(self.table, other.table))

    def __invert__(self) -> ZoneSet:
        i0, i1, j0, j1 = self.frame.box
        everything = ZoneSet.make(self.frame, [(i0, i1, j0, j1, j0 - i1, j1 - i0 + 1)])
        return everything - self

    def __matmul__(self, other: ZoneSet) -> ZoneSet:
        """Composition: (i, k) such that some j has (i, j) here and (j, k) in `other`."""
        a, b = self.frame, other.frame
        frame = Frame(a.n, b.n_k, a.q_offset, b.k_offset)
        return ZoneSet(frame, algebra.compose(self.table, other.table))

    @property
    def T(self) -> ZoneSet:  # noqa: N802 - the name that matrices have
        """(j, i) for every (i, j)."""
        return ZoneSet(self.frame.T, algebra.transpose(self.table))

    def simplify(self) -> ZoneSet:
        """The same edges in fewer zones: contained zones dropped, adjoining ones merged."""
        return ZoneSet(self.frame, algebra.simplify(self.table))

    def disjoint(self) -> ZoneSet:
        """The same edges, no edge in two zones."""
        return ZoneSet(self.frame, sweep.disjoint(self.table))

    def count(self) -> int:
        """How many edges, exactly, as a Python integer.

        >>> n = 2**40
        >>> ZoneSet.make(Frame.of(n), [(0, n, 0, n, -n, 1)]).count() == n * (n + 1) // 2
        True
        """
        return sweep.count(self.table)

    def slice(self, first: int, last: int) -> ZoneSet:
        """The edges of queries first <= i < last, in a frame of those queries."""
        i0, i1, _, _ = self.frame.box
        if not i0 <= first <= last <= i1:
            raise PatternValueError(f"slice [{first}, {last}) is outside the queries [{i0}, {i1})")
        frame = Frame(last - first, self.frame.n_k, first, self.frame.k_offset)
        return ZoneSet(frame, algebra.tighten(algebra.clip(self.table, frame.box)))

    def keys(self) -> NDArray[np.int64]:
        """The keys that some query reads: sorted disjoint intervals, int64 [m, 2]."""
        return algebra.merge_intervals(self.table[:, 2:4])

    def queries(self) -> NDArray[np.int64]:
        """The queries that read something: sorted disjoint intervals, int64 [m, 2]."""
        return algebra.merge_intervals(self.table[:, 0:2])

    def dense(self) -> NDArray[np.bool_]:
        """The bool mask [n, n_k], for small frames; True means "attend"."""
        if self.frame.n * self.frame.n_k > DENSE_LIMIT:
            raise SizeError(
                f"dense() of {self.frame.n} x {self.frame.n_k} passes {DENSE_LIMIT} entries; "
                "use count(), slice() or a layout"
            )
        return algebra.dense(self.table, self.frame.box)

    def equals(self, other: ZoneSet) -> bool:
        """The same frame and the same edges, exactly."""
        if self.frame != other.frame:
            return False
        return not len(sweep.symmetric_difference(self.table, other.table))

    def contains(self, other: ZoneSet) -> bool:
        """Every edge of `other` is an edge of this."""
        return not len(sweep.difference(other.table, self.table))

    def __str__(self) -> str:
        f = self.frame
        head = f"ZoneSet n={f.n} n_k={f.n_k} at ({f.q_offset}, {f.k_offset})"
        rows = [
            f"  i [{i0}, {i1})  j [{j0}, {j1})  j-i [{d0}, {d1})"
            for i0, i1, j0, j1, d0, d1 in self.table[:20].tolist()
        ]
        more = [f"  ... {len(self) - 20} more zones"] if len(self) > 20 else []
        return "\n".join([head, *rows, *more])

    __repr__ = __str__

    def _same_frame(self, other: ZoneSet) -> None:
        if self.frame != other.frame:
            raise PatternValueError(
                f"zone sets of different frames: {self.frame} and {other.frame}; "
                "lower both with the same n, n_k and offsets"
            )
