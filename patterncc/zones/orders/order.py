"""Order: where each token stands when a mask is laid out in an order other than that of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from patterncc.errors import PatternValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Order:
    """A pair of permutations: slot s holds query ``queries[s]`` and key ``keys[s]``.

    Both count from the frame's first query and first key, int32 [n] and [n_k].  Where queries and
    keys are the same tokens in one order, both may be one array.

    >>> order = Order.of("by parity", [0, 2, 1, 3], [0, 2, 1, 3])
    >>> order.query_slots.tolist()
    [0, 2, 1, 3]
    """

    name: str
    queries: I32
    keys: I32

    @staticmethod
    def of(name: str, queries: object, keys: object | None = None) -> Order:
        """A checked order; without `keys` both sides have the one of the queries.

        Raises PatternValueError for what is no permutation.
        """
        first = _permutation(name, "queries", queries)
        return Order(name, first, first if keys is None else _permutation(name, "keys", keys))

    @cached_property
    def query_slots(self) -> I32:
        """The slot of each query: the inverse of `queries`."""
        return _inverse(self.queries)

    @cached_property
    def key_slots(self) -> I32:
        """The slot of each key: the inverse of `keys`."""
        return self.query_slots if self.keys is self.queries else _inverse(self.keys)

    @property
    def T(self) -> Order:  # noqa: N802 - the name that matrices have
        """Queries and keys exchanged."""
        return Order(self.name, self.keys, self.queries)


def _permutation(name: str, side: str, values: object) -> I32:
    """Values checked to hold each of 0 .. len - 1 once."""
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.zeros((0, 0))
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise PatternValueError(
            f"order {name!r}: the {side} are one list of integers, not "
            f"{array.dtype} {list(array.shape)}"
        )
    wrong = np.flatnonzero((array < 0) | (array >= len(array)))
    if len(wrong):
        raise PatternValueError(
            f"order {name!r}: entry {wrong[0]} of the {side} is {array[wrong[0]]}; a permutation "
            f"of {len(array)} tokens holds each of 0 .. {len(array) - 1} once"
        )
    counts = np.bincount(array.astype(np.int64), minlength=len(array))
    if len(array) and int(counts.max()) > 1:
        twice = int(np.argmax(counts))
        raise PatternValueError(
            f"order {name!r}: the {side} hold {twice} {counts[twice]} times and "
            f"{int(np.argmin(counts))} never; a permutation holds each token once"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


def _inverse(permutation: I32) -> I32:
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation), dtype=np.int32)
    return inverse
