"""What the registered ops refuse: tensors and texts that do not fit each other.

An op may be called with anything, by a graph from a file as well, and kernels go by addresses: so
each call looks at ranks, shapes, dtypes and devices (microseconds), and the first call with a
layout's tables at what they hold (`fits_tables`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from patterncc.errors import TensorError
from patterncc.kernels.bundle import taken_apart
from patterncc.kernels.fits_tables import check_tables, check_text
from patterncc.kernels.plan import PAGES
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec
from patterncc.kernels.terms import Terms, parsed, sized


class Carried(NamedTuple):
    """A layout's tensors as an op is given them, and taken apart: tables, and the last one."""

    given: Sequence[Tensor]
    tables: list[Tensor]
    unread: Tensor

    @staticmethod
    def of(layout: Sequence[Tensor]) -> Carried:
        """Raises TensorError for what is no layout's list of tensors."""
        try:
            *tables, unread = taken_apart(layout)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            shapes = [tuple(x.shape) for x in layout]
            raise TensorError(
                f"attention: tensors of shapes {shapes} are not those of a layout ({error}); give "
                "what upload.prepared or pc.carry gives"
            ) from error
        return Carried(layout, tables, unread)


def planned(plan: str, q: Tensor | None = None, k: Tensor | None = None) -> Spec | Terms:
    """The spec or terms of an op's text; with q and k, their lengths where it leaves them open.

    Raises TensorError for what is no such text.
    """
    try:
        if q is None or k is None or q.dim() != 4 or k.dim() != 4:
            return _sound(plan)
        return _sound(plan, q.shape[2], k.shape[2])
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise TensorError(
            f"attention: the plan text is none that a layout gives ({error}); it is {plan[:80]!r}"
        ) from error


@lru_cache(maxsize=1024)
def _sound(plan: str, n: int | None = None, n_k: int | None = None) -> Spec | Terms:
    """The checked spec or terms of a text; for so many queries and keys where it leaves them open.

    Raises what a wrong text raises.
    """
    spec = parsed(plan) if n is None or n_k is None else sized(plan, n, n_k)
    check_text(spec)
    return spec


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Carried,
    spec: Spec | Terms,
    score: Score,
) -> None:
    """Refuse what does not fit in a pass over all rows of a layout.

    Raises TensorError.
    """
    frame = spec if isinstance(spec, Spec) else spec.first
    _check_tensors(q, k, v)
    if len(k) != len(q) or (q.shape[2], k.shape[2]) != (frame.n, frame.n_k):
        raise TensorError(
            f"attention: q has shape {_shape(q)} and k {_shape(k)}, the layout is for {frame.n} "
            f"queries and {frame.n_k} keys; batches must agree too"
        )
    _check_score(q, frame.n_k, score)
    check_tables(q, *layout, spec)


def check_grads(q: Tensor, v: Tensor, grad_out: Tensor, out: Tensor, lse: Tensor) -> None:
    """Refuse what a forward pass did not give, beside q and v that fit each other.

    Raises TensorError.
    """
    expected = (*q.shape[:3], v.shape[3])
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    for name, x, sides, dtype in (
        ("grad_out", grad_out, expected, q.dtype),
        ("out", out, expected, q.dtype),
        ("lse", lse, expected[:3], wide),
    ):
        _check_one(name, x, sides, dtype, q)


def check_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Carried,
    spec: Spec | Terms,
    score: Score,
    position: Tensor,
    block_table: Tensor | None,
    key_lengths: Tensor | None,
) -> None:
    """Refuse what does not fit in a decode step.

    Raises TensorError.
    """
    frame = spec if isinstance(spec, Spec) else spec.first
    _check_tensors(q, k, v)
    if frame.n < 0 or frame.n_k < 0:
        raise TensorError(
            "decode: the plan text leaves lengths open; give the one for a step (carry(..).step)"
        )
    batch = (len(q),)
    _check_one("position", position, batch, torch.int32, q)
    if key_lengths is not None:
        _check_one("key_lengths", key_lengths, batch, torch.int32, q)
    if block_table is None:
        if len(k) != len(q) or k.shape[2] > frame.n_k:
            raise TensorError(
                f"decode: q has shape {_shape(q)} and k {_shape(k)}, the layout is for at most "
                f"{frame.n_k} keys; batches must agree too"
            )
    else:
        side = k.shape[2]
        pages = -(-frame.n_k // side) if side in PAGES else 0
        if side not in PAGES or block_table.dim() != 2 or block_table.shape[1] < pages:
            raise TensorError(
                f"decode: block_table has shape {_shape(block_table)} and k {_shape(k)}, the "
                f"layout is for {frame.n_k} keys; pages hold a power of two from {PAGES[0]} to "
                f"{PAGES[-1]} keys, and a table names all pages of ({len(q)}) sequences"
            )
        _check_one("block_table", block_table, (len(q), block_table.shape[1]), torch.int32, q)
    _check_score(q, k.shape[2] if block_table is None else frame.n_k, score)
    check_tables(q, *layout, spec)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse q, k and v that no call takes together, whatever the layout."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.layout != torch.strided or x.dim() != 4:
            raise TensorError(
                f"attention: {name} is {x.layout} with {x.dim()} axes; it must be dense, "
                "(batch, heads, length, head dim)"
            )
        if x.dtype != q.dtype or x.device != q.device:
            raise TensorError(
                f"attention: q is {q.dtype} on {q.device}, {name} is {x.dtype} on {x.device}; "
                "they must be equal"
            )
    if k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise TensorError(
            f"attention: q has shape {_shape(q)}, k {_shape(k)} and v {_shape(v)}; k and v must "
            "agree in all but head dims, q and k in those"
        )
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise TensorError(
            f"attention: q has {q.shape[1]} heads and k {k.shape[1]}; q's must be a multiple of k's"
        )


def _check_score(q: Tensor, n_k: int, score: Score) -> None:
    """Refuse options that are not of q's heads and sequences."""
    heads = q.shape[1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    if score.slopes is not None:
        _check_one("slopes", score.slopes, (heads,), wide, q)
    if score.sinks is not None:
        _check_one("sinks", score.sinks, (heads,), wide, q)
    if score.bias is not None:
        columns = score.bias.shape[-1] if score.bias.dim() else 0
        _check_one("bias", score.bias, (heads, columns | 1), wide, q)  # 2 R + 1 is odd
    if score.keys is not None:
        _check_one("keys", score.keys, (len(q), n_k), torch.bool, q)


def _check_one(name: str, x: Tensor, sides: tuple[int, ...], dtype: torch.dtype, q: Tensor) -> None:
    """Refuse a tensor of another shape, dtype or device."""
    if x.shape != sides or x.dtype != dtype or x.device != q.device:
        raise TensorError(
            f"attention: {name} is {x.dtype} of shape {_shape(x)} on {x.device}; beside q of shape "
            f"{_shape(q)} on {q.device} it must be {dtype} of shape {sides} there"
        )


def _shape(x: Tensor) -> str:
    return f"{tuple(x.shape)}"
