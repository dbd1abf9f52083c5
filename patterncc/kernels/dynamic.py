"""Layouts of packed documents built on the device that holds the ids, without a host sync.

`compile(pattern, n, doc_ids=ids)` comes here where ids are a tensor on another device than the CPU.
Shapes of all tables follow from lengths and tile sides, and the kernels are those of layouts made
on the CPU for the same pattern: a new batch compiles nothing and waits for nothing.

Unlike there, values cannot be looked at: an id below 0 is padding, and an id that comes back after
another one starts a document of its own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import BackendError, PatternValueError, SizeError, TensorError
from patterncc.kernels import dynamic_tables, runtime, upload
from patterncc.kernels.dynamic_tables import Side, Spans
from patterncc.kernels.reference import LIMIT
from patterncc.kernels.spec import Spec
from patterncc.layout.batch import band_of, bases_of, block_of
from patterncc.pattern import check_int

if TYPE_CHECKING:
    from patterncc.stack import Layer
    from patterncc.zones.zoneset import Frame


@dataclass(frozen=True, eq=False)
class DynamicLayout:
    """A mask for `attention` whose counts nobody has asked for.

    tables: what the kernels read, int32, on the device.  plan: the text of its `Spec`.
    unread: bool [sequences, 1, n_k], True where no query reads the key.
    ids: int64 [sequences, positions]; keys: int64 [sequences, 1], how many keys exist.
    band: (low, high) of key minus query, counted within the layout, None for no bound.
    sequences: 1 where one mask serves the whole batch.
    """

    n: int
    n_k: int
    q_offset: int
    k_offset: int
    block: tuple[int, int]
    sequences: int
    pattern: str
    band: tuple[int | None, int | None]
    ids: Tensor
    keys: Tensor
    plan: str
    tables: tuple[Tensor, ...]
    unread: Tensor
    heads: None = None

    @property
    def device(self) -> torch.device:
        """Where its tables are."""
        return self.ids.device

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return sum(t.numel() * t.element_size() for t in self.tables)

    def dense(self) -> Tensor:
        """The mask, bool [n, n_k], or [sequences, 1, n, n_k], on the device; from the ids alone.

        Raises SizeError for more than `reference.LIMIT` entries.
        """
        if self.sequences * self.n * self.n_k > LIMIT:
            raise SizeError(
                f"dense() of {self.sequences} x {self.n} x {self.n_k} passes {LIMIT} entries"
            )
        spans = _spans(self, by_key=False)
        i = torch.arange(self.n, device=self.device)[:, None]
        j = torch.arange(self.n_k, device=self.device)
        mask = (spans.start[..., None] <= j) & (j < spans.end[..., None])
        low, high = self.band
        if low is not None:
            mask &= j - i >= low
        if high is not None:
            mask &= j - i < high
        return mask[:, None] if self.sequences > 1 else mask[0]

    def __repr__(self) -> str:
        return (
            f"<DynamicLayout {self.pattern[:100]}: {self.n} x {self.n_k}, block {self.block[0]} x "
            f"{self.block[1]}, on {self.device}>"
        )


def compile_dynamic(
    each: Layer,
    frame: Frame,
    block: tuple[int, int] | None,
    doc_ids: object,
    key_lengths: object = None,
    prefix_lengths: object = None,
    bindings: dict[str, Any] | None = None,
    target: str = "sm_90",
) -> DynamicLayout:
    """The layout of a band (full, causal, a window) within contiguous documents.

    >>> from patterncc import causal
    >>> from patterncc.zones import Frame
    >>> made = compile_dynamic(causal(), Frame.of(6), (16, 16), torch.tensor([0, 0, 0, 1, 1, -1]))
    >>> made.dense().int().sum(1).tolist()
    [1, 2, 3, 1, 2, 0]

    Raises PatternValueError for patterns, shapes and lengths that do not fit; values are not seen.
    """
    if prefix_lengths is not None:
        raise PatternValueError(
            "compile: prefix_lengths with ids on a device; give lists, arrays or CPU tensors"
        )
    band, sides = _band(each, frame, block, bindings or {}, target)
    ids, sequences = _ids(doc_ids, key_lengths, frame)
    keys = _keys(key_lengths, frame, ids)
    count = len(ids)
    cells = -(-frame.n // sides[0]) * -(-frame.n_k // sides[1]) * count
    if cells >= 2**31 or not (frame.n and frame.n_k):
        raise SizeError(
            f"compile: {count} x {frame.n} x {frame.n_k} tokens on a device; at least one of each, "
            "and fewer than 2**31 tiles"
        )
    text = f"{each}, documents" + (f" of {sequences} sequences" if sequences > 1 else "")
    sizes = (frame.n, frame.n_k, frame.q_offset, frame.k_offset)
    plan = _spec(frame, sides, sequences).text()
    made = DynamicLayout(*sizes, sides, sequences, text, band, ids, keys, plan, (), keys)
    skew = frame.k_offset - frame.q_offset
    side = Side(frame.n, frame.n_k, sides, skew, *band, by_key=False)
    spans = _spans(made, by_key=False), _spans(made, by_key=True)
    tables = tuple(dynamic_tables.tables(side, *spans))
    return replace(made, tables=tables, unread=_unread(made, spans[1]))


def _unread(made: DynamicLayout, spans: Spans) -> Tensor:
    """Bool [sequences, 1, n_k] from the queries of each key's document, cut by the band."""
    j = torch.arange(made.n_k, device=made.device)
    first, last = spans.start, spans.end
    low, high = made.band
    if high is not None:
        first = torch.maximum(first, j - high + 1)
    if low is not None:
        last = torch.minimum(last, j - low + 1)
    unread = (first >= last) | (j >= made.keys)
    return unread[: made.sequences, None]


def _spec(frame: Frame, block: tuple[int, int], sequences: int) -> Spec:
    """What the op is told: every mask class that a batch may need, so one set of kernels."""
    return Spec(
        n=frame.n,
        n_k=frame.n_k,
        q_offset=frame.q_offset,
        k_offset=frame.k_offset,
        block=block,
        patterns=sequences,
        full=True,
        zones=1,
        bits=True,
        layout_hash="dynamic",
        backend="triton",
        sequences=sequences,
    )


def documents_of(cu_seqlens: Any, positions: int) -> Tensor:
    """Document ids [positions] from the cumulated lengths that variable-length kernels take.

    cu_seqlens: integers [documents + 1], ascending from 0, as a tensor, a list or an array;
    positions past its last are padding.  Values are checked where that waits for no device.

    >>> documents_of([0, 3, 5], 7).tolist()
    [0, 0, 0, 1, 1, -1, -1]

    Raises PatternValueError for what holds no integers in one dimension, and on the CPU for lengths
    that do not ascend from 0.
    """
    positions = check_int("documents_of", "positions", positions, 0)
    bounds = _bounds(cu_seqlens)
    at = torch.arange(positions, device=bounds.device)
    ids = torch.searchsorted(bounds, at, right=True) - 1
    return torch.where(ids < len(bounds) - 1, ids, -1)


def _bounds(given: Any) -> Tensor:
    """int64 [documents + 1]: cumulated lengths, checked."""
    try:
        made = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    except (TypeError, ValueError):
        made = None
    whole = made is not None and not (
        made.is_floating_point() or made.is_complex() or made.dtype == torch.bool
    )
    if made is None or not whole or made.dim() != 1 or not len(made):
        what = type(given).__name__ if made is None else f"{made.dtype} {list(made.shape)}"
        raise PatternValueError(
            f"documents_of: cu_seqlens are integers in one dimension, not {what}; give "
            "[0, end of document 0, end of document 1, ...]"
        )
    made = made.to(torch.int64)
    seen = type(made) is Tensor and not torch.compiler.is_compiling()  # fake ones have no values
    if seen and made.device.type == "cpu":
        _check_ascends(made.tolist())
    return made


def _check_ascends(bounds: list[int]) -> None:
    if bounds[0] != 0:
        raise PatternValueError(
            f"documents_of: cu_seqlens starts with {bounds[0]}, not with 0; give cumulated lengths,"
            " [0, end of document 0, ...] (numpy.cumsum of the lengths, a 0 before it)"
        )
    for k, (low, high) in enumerate(itertools.pairwise(bounds)):
        if high < low:
            raise PatternValueError(
                f"documents_of: cu_seqlens[{k + 1}] is {high}, less than the {low} before it; "
                "cumulated lengths ascend (numpy.cumsum of the lengths, a 0 before it)"
            )


def prepared(layout: DynamicLayout, device: torch.device, requested: str) -> upload.Prepared:
    """What the op takes of it, for the backend that `requested` picks.

    Raises BackendError for another device, or a backend that needs the counts.
    """
    if device != layout.device:
        raise BackendError(
            f"attention: tensors on {device}, a layout built on {layout.device}; build it where "
            "they are"
        )
    if requested == "reference":
        text = replace(Spec.parse(layout.plan), backend="reference").text()
        return [layout.dense(), layout.unread], text, "reference"
    if _picked(device, requested) != "triton":
        raise BackendError(
            "attention: a layout built on the device runs on the Triton kernels; for others "
            "compile with doc_ids as a list, an array or a CPU tensor"
        )
    return [*layout.tables, layout.unread], layout.plan, "triton"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _picked(device: torch.device, requested: str) -> str:
    """The backend, a constant of a graph that torch traces."""
    return runtime.pick_backend(requested, device).backend


def _band(
    each: Layer,
    frame: Frame,
    block: tuple[int, int] | None,
    bindings: dict[str, Any],
    target: str,
) -> tuple[tuple[int | None, int | None], tuple[int, int]]:
    """The one band of a layer, and the tile."""
    bases, head = bases_of(each, frame, 0, bindings)
    band = band_of(bases[0]) if len(bases) == 1 else None
    if band is None or len(np.unique(head)) > 1:
        raise PatternValueError(
            f"compile: {each} with ids on a device; there one band for all heads is built (full, "
            "causal, a window): give the ids as a list, an array or a CPU tensor"
        )
    return band, block or block_of(bases, target)


def _ids(doc_ids: object, key_lengths: object, frame: Frame) -> tuple[Tensor, int]:
    """int64 [sequences or 1, positions], and how many sequences have a mask of their own."""
    lengths = key_lengths if isinstance(key_lengths, Tensor) and key_lengths.dim() else None
    positions = max(frame.q_offset + frame.n, frame.k_offset + frame.n_k)
    if doc_ids is None:
        assert isinstance(key_lengths, Tensor)
        doc_ids = torch.zeros(positions, dtype=torch.int64, device=key_lengths.device)
    ids = _integers("doc_ids", doc_ids, (1, 2))
    if ids.shape[-1] != positions:
        raise PatternValueError(
            f"compile: doc_ids has {ids.shape[-1]} ids a sequence for {positions} positions; give "
            "one a position, counted from position 0 up to the last query and key (-1 is padding)"
        )
    rows = ids if ids.dim() == 2 else ids[None]
    if lengths is not None:
        if ids.dim() == 2 and len(ids) != len(lengths):
            raise PatternValueError(
                f"compile: different numbers of sequences: doc_ids {len(ids)}, key_lengths "
                f"{len(lengths)}; give one entry a sequence, or one number or row for all"
            )
        rows = rows.expand(len(lengths), -1)
    if not len(rows):
        raise PatternValueError("compile: a batch of no sequence has no mask")
    return rows.to(torch.int64), len(rows)


def _keys(key_lengths: object, frame: Frame, ids: Tensor) -> Tensor:
    """int64 [sequences, 1], within the keys that there are."""
    if key_lengths is None:
        return torch.full((len(ids), 1), frame.n_k, dtype=torch.int64, device=ids.device)
    if isinstance(key_lengths, int):
        key_lengths = torch.full((), key_lengths, dtype=torch.int64, device=ids.device)
    lengths = _integers("key_lengths", key_lengths, (0, 1)).to(torch.int64)
    if lengths.device != ids.device:
        raise TensorError(
            f"compile: doc_ids on {ids.device}, key_lengths on {lengths.device}; put both on one"
        )
    return torch.clamp(lengths.reshape(-1, 1).expand(len(ids), 1), 0, frame.n_k)


def _integers(name: str, value: object, ranks: tuple[int, int]) -> Tensor:
    if not isinstance(value, Tensor):
        raise PatternValueError(
            f"compile: {name} is a {type(value).__name__} beside a tensor on a device; move it "
            "there"
        )
    if value.dim() not in ranks or value.is_floating_point() or value.dtype == torch.bool:
        raise PatternValueError(
            f"compile: {name} is {value.dtype} of shape {list(value.shape)}; it must be integers "
            f"of {ranks[0]} or {ranks[1]} dimensions"
        )
    return value


def _spans(x: DynamicLayout, *, by_key: bool) -> Spans:
    """The documents of each query's, or each key's, token."""
    positions = x.ids.shape[1]
    at = torch.arange(positions, device=x.device)
    change = x.ids[:, 1:] != x.ids[:, :-1]
    edge = torch.nn.functional.pad(change, (1, 0), value=True)
    start = torch.cummax(torch.where(edge, at, 0), 1).values
    edge = torch.nn.functional.pad(change, (0, 1), value=True)
    end = torch.cummin(torch.where(edge, at + 1, positions).flip(1), 1).values.flip(1)
    sides = ((x.n, x.q_offset), (x.n_k, x.k_offset))
    (own, own_offset), (across, offset) = sides[::-1] if by_key else sides
    start, end = (t[:, own_offset : own_offset + own] for t in (start, end))
    real = x.ids[:, own_offset : own_offset + own] >= 0
    limit = torch.full_like(x.keys, across) if by_key else x.keys
    first = torch.clamp(torch.minimum(start - offset, limit), min=0)
    last = torch.clamp(torch.minimum(end - offset, limit), min=0)
    return Spans(
        start=first,
        end=torch.where(real, last, first),
        own_start=start - own_offset,
        own_end=end - own_offset,
        real=real,
        limit=x.keys if by_key else torch.full_like(x.keys, own),
    )
