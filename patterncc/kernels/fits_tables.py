"""Whether the tables that an op is given are those its text speaks of: looked at once a layout."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import TensorError
from patterncc.kernels.spec import Spec
from patterncc.kernels.terms import Term, Terms
from patterncc.kernels.work import LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIMIT = 1024  # layouts remembered
LARGEST_BLOCK = 4096

_Refs = tuple["ref[Tensor]", ...]
_sound: OrderedDict[tuple[object, ...], _Refs] = OrderedDict()
_named: OrderedDict[str, bytes] = OrderedDict()


def check_text(spec: Spec | Terms) -> None:
    """Refuse sizes that no layout has.

    Raises ValueError.
    """
    for s in [spec] if isinstance(spec, Spec) else [t.spec for t in spec.terms]:
        numbers = s.n, s.n_k, s.q_offset, s.k_offset, *s.block, s.patterns, s.zones, s.sequences
        if any(type(x) is not int for x in numbers) or len(s.block) != 2:
            raise ValueError("its sizes are no integers")
        if not all(1 <= x <= LARGEST_BLOCK for x in s.block) or min(s.patterns, s.sequences) < 1:
            raise ValueError(f"block {s.block}, {s.patterns} patterns, {s.sequences} sequences")
        if s.backend not in ("triton", "cpu", "reference"):
            raise ValueError(f"backend {s.backend!r}")
    if isinstance(spec, Terms) and not spec.terms:
        raise ValueError("no terms")


def check_tables(
    q: Tensor,
    given: Sequence[Tensor],
    tables: Sequence[Tensor],
    unread: Tensor,
    spec: Spec | Terms,
) -> None:
    """Refuse tables that are not those of the spec, or that name what they do not hold.

    What they hold is looked at on the CPU, once: `given`, the op's own list, is remembered as long
    as its tensors live.

    Raises TensorError.
    """
    first = spec if isinstance(spec, Spec) else spec.first
    if unread.dtype != torch.bool or unread.dim() != 3 or unread.device != q.device:
        _refuse(first, f"its last tensor is {unread.dtype} of shape {tuple(unread.shape)}")
    if unread.numel() and not (
        len(unread) in (1, len(q))
        and unread.shape[1] in (1, q.shape[1])
        and unread.shape[2] == first.n_k
    ):
        _refuse(first, f"its last tensor has shape {tuple(unread.shape)}, q {tuple(q.shape)}")
    key = (spec, q.shape[0], q.shape[1], q.device, *map(id, given))
    kept = _sound.get(key)
    if kept is not None and all(r() is not None for r in kept):
        return
    if isinstance(spec, Spec):
        _check_term(q, tables, spec)
    else:
        _check_terms(q, tables, spec)
    _sound[key] = tuple(ref(x) for x in given)
    while len(_sound) > LIMIT:
        _sound.popitem(last=False)


def _refuse(spec: Spec, why: str) -> None:
    raise TensorError(
        f"attention: the layout's tensors are not those of its plan text ({spec.backend} backend, "
        f"{spec.n} queries, {spec.n_k} keys, tiles of {spec.block[0]} x {spec.block[1]}): {why}; "
        "give both as upload.prepared or pc.carry gives them for one layout"
    )


def _check_terms(q: Tensor, tables: Sequence[Tensor], spec: Terms) -> None:
    """Each term's tables, and the index tensors of its order."""
    first = spec.first
    expected = sum(t.tensors for t in spec.terms)
    if len(tables) != expected:
        _refuse(first, f"it has {len(tables)} tensors and not {expected}")
    start = 0
    for t in spec.terms:
        frame = t.frame
        if (frame.n, frame.n_k, frame.backend) != (first.n, first.n_k, first.backend):
            _refuse(first, f"a term has {frame.n} queries and {frame.n_k} keys")
        _check_term(q, tables[start : start + t.tables], t.spec)
        own = tables[start + t.tables : start + t.tensors]
        if t.tokens:
            _check_flat(q, tables[start], own, t)
        for at, length in ((t.queries, first.n), (t.keys, first.n_k)):
            if at is not None:
                for x in (*own[at : at + 2],):
                    _check_index(x, length, length, t.spec)
        if t.placed:
            _check_index(own[-2], first.n, None, t.spec)
            _check_index(own[-1], first.n_k, None, t.spec)
        start += t.tensors


def _check_flat(q: Tensor, head_pattern: Tensor, own: Sequence[Tensor], t: Term) -> None:
    """A term of all heads: one pattern, the row of each slot and the slot of each row."""
    rows = q.shape[0] * q.shape[1] * t.tokens
    if t.spec.n != t.spec.n_k or head_pattern.numel() != 1:
        _refuse(t.spec, "a term of all heads has more patterns than one")
    _check_index(own[0], t.spec.n, rows, t.spec)
    _check_index(own[1], rows, t.spec.n, t.spec)


def _check_index(x: Tensor, length: int, end: int | None, spec: Spec) -> None:
    """An index of `length` numbers, below `end` where given."""
    if x.shape != (length,) or x.dtype != torch.int32:
        _refuse(spec, f"an order is {x.dtype} of shape {tuple(x.shape)}, not int32 of ({length},)")
    if end is not None and x.device.type == "cpu" and not _within(x.numpy(), 0, end):
        _refuse(spec, f"an order names tokens outside 0 to {end - 1}")


def _check_term(q: Tensor, tables: Sequence[Tensor], spec: Spec) -> None:
    """The tables of one spec, as its backend takes them."""
    if any(x.device != q.device for x in tables):
        _refuse(spec, f"they are on {tables[0].device}, q is on {q.device}")
    match spec.backend:
        case "cpu":
            _check_cpu(q, tables, spec)
        case "triton":
            _check_triton(q, tables, spec)
        case "reference":
            mask = tables[0] if tables else None
            if mask is None or mask.dtype != torch.bool or mask.shape[-2:] != (spec.n, spec.n_k):
                _refuse(spec, "they begin with no mask of its size")
        case _:
            assert_never(spec.backend)


def _check_heads(q: Tensor, head_pattern: Tensor, spec: Spec) -> None:
    """Sequences and heads that the layout lists are those of q."""
    listed, rest = divmod(head_pattern.numel(), spec.sequences)
    if rest or listed not in (1, q.shape[1]) or spec.sequences not in (1, len(q)):
        _refuse(
            spec,
            f"it lists {head_pattern.numel()} patterns for {spec.sequences} sequences, q has "
            f"shape {tuple(q.shape)}",
        )


def _check_cpu(q: Tensor, tables: Sequence[Tensor], spec: Spec) -> None:
    """head_pattern, ptr and run of rows and of columns, zones and bits; then a name or none."""
    if len(tables) != (7 if spec.layout_hash else 8):
        _refuse(spec, f"it has {len(tables)} tensors and not {7 if spec.layout_hash else 8}")
    if any(x.dtype != torch.int32 or x.device.type != "cpu" for x in tables[:7]):
        _refuse(spec, "tables must be int32 on the CPU")
    _check_heads(q, tables[0], spec)
    head_pattern, row_ptr, row_run, col_ptr, col_run, zones, bits = (
        x.detach().numpy() for x in tables[:7]
    )
    height, width = spec.block
    masks = zones.shape[1:] == (4, 6) and bits.ndim == 3 and bits.shape[1] == height
    if head_pattern.ndim != 1 or not masks or bits.shape[2] * 32 < width:
        _refuse(spec, f"zones have shape {zones.shape} and bits {bits.shape}")
    words = 1 + len(zones) + len(bits)
    rows = _patterns(row_ptr, row_run, spec.q_lines, spec.k_lines, words, spec)
    columns = _patterns(col_ptr, col_run, spec.k_lines, spec.q_lines, words, spec)
    known = {x for x in (rows, columns) if x is not None} or {spec.patterns}
    least = 1 if spec.sequences > 1 else spec.patterns  # an upper bound where sequences differ
    if len(known) > 1 or min(known) < least:
        _refuse(spec, f"it has {rows} patterns by rows, {columns} by columns, not {spec.patterns}")
    if not _within(head_pattern, 0, min(known)):
        _refuse(spec, f"heads name patterns outside 0 to {min(known) - 1}")
    name = spec.layout_hash or bytes(x & 255 for x in tables[7].reshape(-1).tolist()).hex()
    _keep_apart(name, tables, spec)


def _keep_apart(name: str, tables: Sequence[Tensor], spec: Spec) -> None:
    """Where other tables come by a name than before, what is kept by names is made again."""
    digest = hashlib.blake2b(f"{spec.n} {spec.n_k} {spec.block} {spec.sequences}".encode())
    for x in tables[:7]:
        digest.update(f"{tuple(x.shape)}".encode())
        digest.update(np.ascontiguousarray(x.detach().numpy()).data)
    if _named.setdefault(name, digest.digest()) != digest.digest():
        _sound.clear()
        _named.clear()
        forget()
        _named[name] = digest.digest()
    while len(_named) > LIMIT:
        _named.popitem(last=False)


def forget() -> None:
    """Forget what the CPU backend keeps by the names of layouts."""
    from patterncc.kernels.cpu import cache
    from patterncc.kernels.native import backward_run, run

    cache.clear()
    run._LINES.clear()
    with backward_run._lock:
        backward_run._kept.clear()


def _patterns(
    ptr: NDArray[np.int32],
    run: NDArray[np.int32],
    lines: int,
    across: int,
    words: int,
    spec: Spec,
) -> int | None:
    """How many patterns a table of runs holds, once every run is found to stand within it.

    None where a pattern has no lines.
    """
    count, rest = divmod(len(ptr) - 1, max(1, lines))
    if ptr.ndim != 1 or len(ptr) < 1 or rest or run.ndim != 2 or run.shape[1] != 3:
        _refuse(spec, f"ptr has shape {ptr.shape} and run {run.shape} for {lines} lines a pattern")
    sound = ptr[0] == 0 and ptr[-1] == len(run) and bool((ptr[1:] >= ptr[:-1]).all())
    ends = run[:, 0].astype(np.int64) + run[:, 1]
    if not (sound and _within(run[:, :2], 0, across + 1) and _within(ends, 0, across + 1)):
        _refuse(spec, f"its runs leave its {len(run)} runs or its {across} tiles")
    if not _within(run[:, 2], 0, words):
        _refuse(spec, f"its runs name masks outside 0 to {words - 1}")
    return count if lines else None


def _within(x: NDArray[np.integer], first: int, end: int) -> bool:
    return not x.size or (int(x.min()) >= first and int(x.max()) < end)


def _check_triton(q: Tensor, tables: Sequence[Tensor], spec: Spec) -> None:
    """What `tables.kernel_tables` lists, by shape: a look at values would wait for the device."""
    expected = 8 + 4 * len(LEVELS)
    if len(tables) != expected:
        _refuse(spec, f"it has {len(tables)} tensors and not {expected}")
    if any(x.dtype != torch.int32 for x in tables):
        _refuse(spec, "tables must be int32")
    head_pattern, row_ptr, row_run, col_ptr, col_run, zone = tables[:6]
    _check_heads(q, head_pattern, spec)
    short = len(row_ptr) <= spec.q_lines or len(col_ptr) <= spec.k_lines
    if short or row_run.shape[1:] != (4,) or col_run.shape[1:] != (4,) or zone.shape[2:] != (8,):
        _refuse(spec, f"ptr has {len(row_ptr)} and {len(col_ptr)} places")
    if any(x.dim() != 2 or x.shape[1] != 8 for x in tables[8::2]):
        _refuse(spec, "its work lists have other items")
