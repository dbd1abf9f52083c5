"""What the distances between queries and keys prove by themselves: residue classes never mix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.topology import Pairs, Topology

if TYPE_CHECKING:
    from patterncc.zones.algebra import I64


def common_step(tables: Iterable[I64]) -> int:
    """The greatest common divisor of all distances between a query and a key; 0 where every query
    reads itself alone.

    A tight zone has every distance from d0 to d1 - 1, so two of them leave 1 as the divisor.

    >>> common_step([np.array([[6, 9, 0, 3, -6, -5]]), np.array([[0, 9, 0, 9, 0, 1]])])
    6
    """
    step = 0
    for table in tables:
        if len(table) and int((table[:, 5] - table[:, 4]).max()) > 1:
            return 1
        step = int(np.gcd.reduce(np.abs(table[:, 4]), initial=step))
    return step


def never_crossed(t: Topology, pairs: Pairs) -> tuple[int, int] | None:
    """A pair of T that no number of layers reaches, as (query, key), because its distance is no
    multiple of the common step; None where the step is 1 or every such pair is outside T."""
    step = common_step({id(level): level.zones.table for level in t.levels}.values())
    if step == 1:
        return None
    table = pairs.zones.table
    for back in (1, 2):  # of two neighbouring distances at most one is a multiple
        distance = table[:, 5] - back
        missed = distance % step != 0 if step else distance != 0
        held = np.flatnonzero(missed & (distance >= table[:, 4]))
        if len(held):
            i0, _, j0, _, _, _ = table[held[0]].tolist()
            query = max(i0, j0 - int(distance[held[0]]))
            return query, query + int(distance[held[0]])
    return None
