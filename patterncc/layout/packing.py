"""Where the sequences of a packed batch lie: cumulated lengths, read and checked.

    cu_seqlens      0   3       7 8     sequence b holds rows cu_seqlens[b] .. cu_seqlens[b + 1] - 1
    rows            a a a b b b b c     its token t stands at position q_offset[b] + t

Keys likewise.  Positions are a sequence's own: they count from where it starts, wherever it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternValueError, SizeError
from patterncc.layout.limits import MAX_LENGTH
from patterncc.pattern import check_int
from patterncc.zones.zoneset import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Packing:
    """B sequences behind each other, int64 throughout.

    q_bounds, k_bounds: [B + 1], the rows and the keys of sequence b are [bounds[b], bounds[b + 1]).
    q_offset, k_offset: [B], the positions of its first query and its first key.
    total, total_k: rows and keys of the packed tensors; those past the last bound are padding.
    apart: lengths of keys or offsets were given, so that rows do not say how far a key is.
    """

    q_bounds: I64
    k_bounds: I64
    q_offset: I64
    k_offset: I64
    total: int
    total_k: int
    apart: bool = False

    @staticmethod
    def of(
        cu_seqlens: object,
        cu_seqlens_k: object = None,
        q_offset: object = None,
        k_offset: object = 0,
        total: int | None = None,
        total_k: int | None = None,
    ) -> Packing:
        """Checked.  Without `q_offset` the last query of a sequence stands where its last key does.

        >>> p = Packing.of([0, 2, 3], [0, 5, 9])
        >>> p.q_offset.tolist()
        [3, 3]

        Raises PatternValueError for what are no cumulated lengths, and offsets that do not fit.
        """
        q = bounds("cu_seqlens", cu_seqlens)
        k = q if cu_seqlens_k is None else bounds("cu_seqlens_k", cu_seqlens_k)
        if len(q) != len(k):
            raise PatternValueError(
                f"compile_packed: cu_seqlens is of {len(q) - 1} sequences, cu_seqlens_k of "
                f"{len(k) - 1}; give both an entry for each sequence and a 0 before them"
            )
        count = len(q) - 1
        keys_at = _offsets("k_offset", k_offset, count)
        if q_offset is None:
            ahead = np.diff(k) - np.diff(q) + keys_at  # fewer keys than queries: keys come later
            queries_at, keys_at = np.maximum(ahead, 0), keys_at + np.maximum(-ahead, 0)
        else:
            queries_at = _offsets("q_offset", q_offset, count)
        _check_last(np.diff(q) + queries_at, np.diff(k) + keys_at)
        whole = _total("total", total, q, "cu_seqlens")
        if total_k is None and cu_seqlens_k is None:
            total_k = whole
        whole_k = _total("total_k", total_k, k, "cu_seqlens_k")
        apart = cu_seqlens_k is not None or q_offset is not None or bool(keys_at.any())
        return Packing(q, k, queries_at, keys_at, whole, whole_k, apart)

    @property
    def sequences(self) -> int:
        """How many."""
        return len(self.q_bounds) - 1

    @property
    def frame(self) -> Frame:
        """All rows and keys, counted through."""
        return Frame(self.total, self.total_k)

    @property
    def positions(self) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
        """The position of each row and of each key in its sequence, 0 in padding; None where rows
        and keys of all sequences lie at the same places."""
        if not self.apart:
            return None
        ways = (
            (self.q_bounds, self.q_offset, self.total),
            (self.k_bounds, self.k_offset, self.total_k),
        )
        found = [np.zeros(total, dtype=np.int32) for _, _, total in ways]
        for out, (ends, offset, _) in zip(found, ways, strict=True):
            count = np.diff(ends)
            out[: ends[-1]] = np.arange(ends[-1]) + np.repeat(offset - ends[:-1], count)
        return found[0], found[1]

    @property
    def sizes(self) -> I64:
        """[B, 4]: queries, keys, and the positions of the first of each."""
        lengths = np.diff(self.q_bounds), np.diff(self.k_bounds)
        return np.stack([*lengths, self.q_offset, self.k_offset], axis=1)


def bounds(name: str, values: object) -> I64:
    """int64 [B + 1]: cumulated lengths, ascending from 0."""
    given = _integers(name, values)
    if given.ndim != 1 or not len(given):
        raise PatternValueError(
            f"compile_packed: {name} has shape {list(given.shape)}; cumulated lengths are "
            "[0, end of sequence 0, end of sequence 1, ...]"
        )
    if given[0] != 0:
        raise PatternValueError(
            f"compile_packed: {name} starts with {given[0]}, not with 0; put a 0 before the "
            "cumulated lengths"
        )
    back = np.flatnonzero(given[1:] < given[:-1])
    if len(back):
        at = int(back[0])
        raise PatternValueError(
            f"compile_packed: {name}[{at + 1}] is {given[at + 1]}, less than {given[at]}, the one "
            "before it; cumulated lengths ascend (numpy.cumsum of the lengths, a 0 before it)"
        )
    if given[-1] > MAX_LENGTH:
        raise SizeError(
            f"compile_packed: {name} ends at {given[-1]}, past {MAX_LENGTH}, the longest layout"
        )
    return given


def _offsets(name: str, values: object, count: int) -> I64:
    """int64 [count]: one position a sequence, or one for all."""
    given = _integers(name, values)
    if given.ndim > 1 or (given.ndim == 1 and len(given) != count):
        raise PatternValueError(
            f"compile_packed: {name} has shape {list(given.shape)} for {count} sequences; give one "
            "number, or one for each"
        )
    bad = np.flatnonzero((np.atleast_1d(given) < 0) | (np.atleast_1d(given) > MAX_LENGTH))
    if len(bad):
        place = f"{name}[{bad[0]}]" if given.ndim else name
        raise PatternValueError(
            f"compile_packed: {place} is {np.atleast_1d(given)[bad[0]]}; a position is at least 0 "
            f"and at most {MAX_LENGTH}"
        )
    return np.broadcast_to(given, count)


def _check_last(queries: I64, keys: I64) -> None:
    """Positions are int32 in kernels: past the last query and key of each sequence."""
    for name, past in (("queries", queries), ("keys", keys)):
        if len(past) and past.max() > MAX_LENGTH:
            b = int(past.argmax())
            raise SizeError(
                f"compile_packed: the {name} of sequence {b} stand up to position {past[b]}, past "
                f"{MAX_LENGTH}, the last of a layout"
            )


def _total(name: str, value: int | None, ends: I64, of: str) -> int:
    last = int(ends[-1])
    if value is None:
        return last
    value = check_int("compile_packed", name, value, 0, MAX_LENGTH)
    if value < last:
        raise PatternValueError(
            f"compile_packed: {name} = {value}, but {of} ends at {last}; rows past the last "
            "sequence are padding, so it is at least that"
        )
    return value


def _integers(name: str, values: object) -> NDArray[Any]:
    """int64 of any rank; torch tensors on the CPU are read in place."""
    try:
        array: NDArray[Any] = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise PatternValueError(
            f"compile_packed: {name} cannot be read as integers: {error}"
        ) from None
    if array.dtype.kind not in "iu" and array.size:
        raise PatternValueError(
            f"compile_packed: {name} is {array.dtype} of shape {list(array.shape)}; it must be "
            "integers"
        )
    return array.astype(np.int64)
