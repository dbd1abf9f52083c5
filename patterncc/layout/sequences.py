"""What a batch brings: document ids, key lengths and prefixes, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternValueError
from patterncc.layout.staircase import Spans
from patterncc.zones.labels import label_pairs
from patterncc.zones.zoneset import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """The runs of one id: where each starts, its id, and where the last one ends."""

    start: I64
    label: NDArray[Any]
    size: int

    @staticmethod
    def of(ids: NDArray[Any]) -> Labels:
        """The runs of ids [positions]."""
        start = np.append(0, np.flatnonzero(ids[1:] != ids[:-1]) + 1)[: len(ids)]
        return Labels(start, ids[start].astype(np.int64), len(ids))

    @property
    def end(self) -> I64:
        """Past the last position of each run."""
        return np.append(self.start[1:], self.size)

    def content(self) -> tuple[bytes, bytes]:
        """Equal for equal ids."""
        return self.start.tobytes(), self.label.tobytes()

    def ids(self) -> I64:
        """The id of each position again."""
        return np.repeat(self.label, self.end - self.start)

    def pairs(self, frame: Frame) -> int:
        """Boxes that the ids are in token order."""
        ids, (i0, i1, j0, j1) = self.ids(), frame.box
        same = (i0, i1) == (j0, j1)
        return label_pairs(ids[i0:i1], None if same else ids[j0:j1])[0]

    def spans(self) -> Spans | None:
        """The documents, or None where an id has several runs (it is a cluster then)."""
        real = self.label >= 0
        ordered = np.sort(self.label[real])
        if (ordered[1:] == ordered[:-1]).any():
            return None
        return Spans(self.start, self.end, real)


@dataclass(frozen=True, eq=False)
class Batch:
    """What the sequences of a batch bring: distinct ones, and which of them each sequence is.

    labels: of each distinct sequence; None without ids.  keys, prefix: its lengths.
    which: int32 [sequences]; one entry where all sequences of a batch are alike.
    """

    labels: tuple[Labels | None, ...]
    keys: tuple[int, ...]
    prefix: tuple[int, ...]
    which: NDArray[np.int32]

    @staticmethod
    def of(frame: Frame, doc_ids: object, key_lengths: object, prefix_lengths: object) -> Batch:
        """Checked against the frame; equal sequences found by their content.

        Raises PatternValueError for ids, lengths and batch sizes that do not fit.
        """
        ids = None if doc_ids is None else _ids(doc_ids, frame)
        keys = _lengths("key_lengths", key_lengths, frame.n_k, "the keys", frame.n_k)
        last = max(frame.q_offset + frame.n, frame.k_offset + frame.n_k)
        prefix = _lengths("prefix_lengths", prefix_lengths, last, "positions", 0)
        counts = {"doc_ids": len(ids)} if ids is not None and ids.ndim == 2 else {}
        for name, given in (("key_lengths", keys), ("prefix_lengths", prefix)):
            counts |= {name: len(given)} if given.ndim else {}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise PatternValueError(
                f"compile: different numbers of sequences: {listed}; give one entry a sequence, or "
                "one number or row for all"
            )
        if 0 in counts.values():
            raise PatternValueError("compile: a batch of no sequence has no mask")
        size = max([1, *counts.values()])
        rows = [None] if ids is None else [Labels.of(x) for x in np.atleast_2d(ids)]
        labels = rows * size if len(rows) == 1 else rows
        lengths = (np.broadcast_to(x, size).tolist() for x in (keys, prefix))
        return _distinct(list(zip(labels, *lengths)))

    @property
    def sequences(self) -> int:
        """1 where one mask serves any number of sequences."""
        return len(self.which)

    def __len__(self) -> int:
        """How many are distinct."""
        return len(self.keys)


def _distinct(given: list[tuple[Labels | None, int, int]]) -> Batch:
    """Equal sequences found: (labels, keys, prefix) of each."""
    places: dict[object, int] = {}
    which = []
    kept: list[tuple[Labels | None, int, int]] = []
    for each in given:
        key = (each[0] and each[0].content(), *each[1:])
        if key not in places:
            places[key] = len(kept)
            kept.append(each)
        which.append(places[key])
    labels, keys, prefix = zip(*kept)
    return Batch(labels, keys, prefix, np.array(which, dtype=np.int32))


def _ids(values: object, frame: Frame) -> NDArray[Any]:
    """[positions] or [sequences, positions], -1 for padding."""
    ids = _integers("doc_ids", values, (1, 2))
    positions = max(frame.q_offset + frame.n, frame.k_offset + frame.n_k)
    if ids.shape[-1] != positions:
        raise PatternValueError(
            f"compile: doc_ids has {ids.shape[-1]} ids a sequence for {positions} positions; give "
            "one a position, counted from position 0 up to the last query and key (-1 is padding)"
        )
    if ids.size and int(ids.min()) < -1:
        where = np.unravel_index(int(np.argmax(ids < -1)), ids.shape)
        place = ", ".join(str(int(x)) for x in where)
        raise PatternValueError(
            f"compile: doc_ids[{place}] is {int(ids[where])}; an id is 0 or more, or -1 for padding"
        )
    return ids


def _lengths(name: str, values: object, most: int, what: str, default: int) -> NDArray[Any]:
    """[] or [sequences], each 0 .. most."""
    if values is None:
        return np.array(default)
    lengths = _integers(name, values, (0, 1))
    bad = np.flatnonzero((lengths < 0) | (lengths > most))
    if len(bad):
        place = f"{name}[{bad[0]}]" if lengths.ndim else name
        found = int(np.atleast_1d(lengths)[bad[0]])
        raise PatternValueError(
            f"compile: {place} is {found}; it counts {what}, at least 0 and at most {most}"
        )
    return lengths


def _integers(name: str, values: object, ranks: tuple[int, int]) -> NDArray[Any]:
    """Integers of one of two ranks; torch tensors on the CPU are read in place."""
    sizes = (
        {np.size(x) for x in values} if isinstance(values, list | tuple) and _rows(values) else {}
    )
    if len(sizes) > 1:
        raise PatternValueError(
            f"compile: {name} cannot be read as integers: its rows have from {min(sizes)} to "
            f"{max(sizes)} entries; give every sequence as many"
        )
    try:
        array: NDArray[Any] = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise PatternValueError(f"compile: {name} cannot be read as integers: {error}") from None
    if array.ndim not in ranks or (array.dtype.kind not in "iu" and array.size):
        shapes = {0: "one number", 1: "a list", 2: "a list of equal rows"}
        raise PatternValueError(
            f"compile: {name} is {array.dtype} of shape {list(array.shape)}; it must be integers, "
            f"{shapes[ranks[0]]} or {shapes[ranks[1]]}"
        )
    return array if array.dtype.kind in "iu" else array.astype(np.int64)


def _rows(values: Sequence[object]) -> bool:
    """A list of lists, arrays or tensors, or a mixture of them and numbers."""
    return any(isinstance(x, list | tuple) or getattr(x, "ndim", 0) for x in values)
