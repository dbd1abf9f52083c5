"""Where a pattern is lowered: the frame, the part of it that is wanted, and what is bound there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternValueError, SizeError, suggest
from patterncc.zones import algebra
from patterncc.zones.zoneset import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

FAR = 2**43
"""Past every position and every difference of positions (both stay within 2**41)."""


@dataclass(frozen=True)
class Region:
    """One zone in plain integers: i0 <= i < i1, j0 <= j < j1, d0 <= j - i < d1."""

    i0: int
    i1: int
    j0: int
    j1: int
    d0: int = -FAR
    d1: int = FAR

    @property
    def empty(self) -> bool:
        """No pair fits."""
        return self.i0 >= self.i1 or self.j0 >= self.j1 or self.d0 >= self.d1

    def meet(self, other: Region) -> Region:
        """The pairs of both.

        >>> Region(0, 9, 0, 9).meet(Region(3, 5, 0, 99, -1, 1))
        Region(i0=3, i1=5, j0=2, j1=5, d0=-1, d1=1)
        """
        i0, i1 = max(self.i0, other.i0), min(self.i1, other.i1)
        j0, j1 = max(self.j0, other.j0), min(self.j1, other.j1)
        d0, d1 = max(self.d0, other.d0), min(self.d1, other.d1)
        i0, i1 = max(i0, j0 - d1 + 1), min(i1, j1 - d0)
        j0, j1 = max(j0, i0 + d0), min(j1, i1 + d1 - 1)
        return Region(i0, i1, j0, j1, max(d0, j0 - i1 + 1), min(d1, j1 - i0))

    @property
    def T(self) -> Region:  # noqa: N802 - the name that matrices have
        """Keys and queries exchanged."""
        return Region(self.j0, self.j1, self.i0, self.i1, 1 - self.d1, 1 - self.d0)


@dataclass(frozen=True)
class Site:
    """What lowering a primitive may look at.

    Rows are needed only inside `region`, a part of the frame; a primitive may return more there and
    beyond its bounds, since everything is clipped to the region afterwards.
    """

    frame: Frame
    region: Region
    layer: int
    head: int
    max_zones: int
    bindings: Mapping[str, object]

    @property
    def T(self) -> Site:  # noqa: N802 - the name that matrices have
        """The same place seen from the keys."""
        return replace(self, frame=self.frame.T, region=self.region.T)

    @property
    def positions(self) -> int:
        """Past the last position that is a query or a key."""
        _, i1, _, j1 = self.frame.box
        return max(i1, j1)

    def within(self, region: Region) -> Site:
        """The same site, asked for less."""
        return replace(self, region=self.region.meet(region))

    def rows(
        self,
        i0: Any = None,
        i1: Any = None,
        j0: Any = None,
        j1: Any = None,
        d0: Any = -FAR,
        d1: Any = FAR,
    ) -> I64:
        """Rows of a table from numbers or arrays; what is left out is the region's own bound."""
        r = self.region
        columns = (
            r.i0 if i0 is None else i0,
            r.i1 if i1 is None else i1,
            r.j0 if j0 is None else j0,
            r.j1 if j1 is None else j1,
            d0,
            d1,
        )
        shape = np.broadcast_shapes((1,), *(np.shape(c) for c in columns))
        flat = np.empty((6, int(np.prod(shape))), dtype=np.int64)
        for k, column in enumerate(columns):
            flat[k] = np.broadcast_to(column, shape).reshape(-1) if np.ndim(column) else column
        return flat.T

    def none(self) -> I64:
        """No rows."""
        return np.empty((6, 0), dtype=np.int64).T

    def clip(self, table: I64) -> I64:
        """Rows cut to the region and made tight, the empty ones dropped."""
        r = self.region
        flat = np.empty((6, len(table)), dtype=np.int64)
        for k, bound in enumerate((r.i0, r.i1, r.j0, r.j1, r.d0, r.d1)):
            (np.minimum if k % 2 else np.maximum)(table[:, k], bound, out=flat[k])
        return algebra.tighten(flat.T)

    def allow(self, count: int, owner: object) -> None:
        """Refuse before allocating when `owner` would make more than `max_zones` zones."""
        if count > self.max_zones:
            text = str(owner)
            text = text if len(text) <= 80 else f"{text[:76]} ..."
            raise SizeError(
                f"{text} would make {count} zones, more than max_zones = {self.max_zones}, for "
                f"{self.frame.n} queries and {self.frame.n_k} keys; take a slice of the queries, "
                "intersect it with a window or take a coarser grain (pc.lower alone takes another "
                "max_zones)"
            )

    def bound(self, owner: str, name: str) -> object:
        """What the keyword `name` is bound to."""
        if name not in self.bindings:
            near = f"; {suggest(name, self.bindings)}" if self.bindings else ""
            raise PatternValueError(
                f"{owner}: '{name}' is not bound; pass it with the sizes as {name}=[...], on the "
                f"command line as --bind {name}=[...]{near}"
            )
        return self.bindings[name]


def integers(owner: str, name: str, values: object) -> I64:
    """`values` as a 1-D int64 array, or a PatternValueError that says what they are instead."""
    array = np.asarray(values)
    if array.ndim == 1 and array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise PatternValueError(
            f"{owner}: {name} is a list of integers, one dimension; "
            f"got {array.dtype} of shape {list(array.shape)}"
        )
    if array.dtype == np.uint64 and int(array.max()) > FAR:
        raise PatternValueError(f"{owner}: {name} holds {int(array.max())}, past 2**43")
    return array.astype(np.int64, copy=False)
