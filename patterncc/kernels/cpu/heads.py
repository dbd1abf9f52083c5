"""Shapes and precisions of the CPU backend: sequences and heads by pattern, widths, fp32 sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from patterncc.errors import TensorError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check(q: Tensor) -> None:
    """Refuse what torch's flash kernel for the CPU does not take.

    Raises: TensorError.
    """
    if q.device.type == "cpu" and q.dtype in DTYPES:
        return
    known = ", ".join(str(t).removeprefix("torch.") for t in DTYPES)
    raise TensorError(
        f"the CPU backend takes CPU tensors of {known}; q is {q.dtype} on {q.device}: "
        "convert it, or choose another backend"
    )


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of LSE and of sums over several kernel calls."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def same_width(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All with the widest last axis, its elements neighbours in memory.

    The kernel wants D = Dv; columns of zeros change no score and no output.
    """
    width = max(x.shape[-1] for x in tensors)
    whole = (x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1])) for x in tensors)
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in whole)


def split(x: Tensor, axis: int, size: int) -> Tensor:
    """A view with `axis` cut in two, the inner part `size` long; a rest at the end is dropped.

    >>> split(torch.zeros(2, 7, 3), 1, 2).shape
    torch.Size([2, 3, 2, 3])
    """
    whole = x.shape[axis] // size
    if whole * size < x.shape[axis]:
        x = x.narrow(axis, 0, whole * size)
    return x.view(*x.shape[:axis], whole, size, *x.shape[axis + 1 :])


def sequence_groups(head_pattern: Tensor, sequences: int) -> list[tuple[Tensor | slice, Tensor]]:
    """The sequences of a batch that have the same patterns, and those patterns, one a head.

    A slice where they are all sequences or neighbours, so that views can be taken.

    >>> sequence_groups(torch.tensor([0, 1, 0]), 3)
    [(tensor([0, 2]), tensor([0])), (slice(1, 2, None), tensor([1]))]
    """
    if sequences == 1:
        return [(slice(None), head_pattern)]
    rows = head_pattern.view(sequences, -1)
    same: dict[tuple[int, ...], list[int]] = {}
    for sequence, row in enumerate(rows.tolist()):
        same.setdefault(tuple(row), []).append(sequence)
    return [(_picked(members), rows[members[0]]) for members in same.values()]


def _picked(members: list[int]) -> Tensor | slice:
    first, last = members[0], members[-1] + 1
    return slice(first, last) if last - first == len(members) else torch.tensor(members)


def head_groups(
    head_pattern: Tensor, heads: int, key_heads: int
) -> Iterator[tuple[int, slice, slice]]:
    """Cut the heads where the pattern changes: (pattern, key heads, members of each key head).

    >>> list(head_groups(torch.tensor([0, 0, 1, 1]), 4, 2))
    [(0, slice(0, 1, None), slice(0, 2, None)), (1, slice(1, 2, None), slice(0, 2, None))]
    """
    ratio = heads // key_heads
    if len(head_pattern) == 1:
        yield int(head_pattern[0]), slice(0, key_heads), slice(0, ratio)
        return
    table = head_pattern.view(key_heads, ratio).tolist()
    first = 0
    while first < key_heads:
        if len(set(table[first])) > 1:
            for member, pattern in enumerate(table[first]):
                yield pattern, slice(first, first + 1), slice(member, member + 1)
            first += 1
            continue
        last = first + 1
        while last < key_heads and table[last] == table[first]:
            last += 1
        yield table[first][0], slice(first, last), slice(0, ratio)
        first = last


def of_group(x: Tensor, keys: slice, members: slice, key_heads: int) -> Tensor:
    """A group's part of a tensor over queries: [B, H, n, ...] -> [B, K, G, n, ...], a view."""
    ratio = x.shape[1] // key_heads
    whole = split(x, 1, ratio)
    if keys == slice(0, key_heads) and members == slice(0, ratio):
        return whole
    return whole[:, keys, members]


def fold_queries(
    tensors: Sequence[Tensor], keys: slice, members: slice, key_heads: int
) -> list[Tensor]:
    """Tensors over queries as [X, G, n, ...], X pairs of batch and key head; views if possible."""
    picked = [of_group(x, keys, members, key_heads) for x in tensors]
    return [_joined(x) for x in picked]


def fold_keys(tensors: Sequence[Tensor], keys: slice) -> list[Tensor]:
    """Tensors over keys as [X, n_k, D]."""
    return [_joined(x[:, keys]) for x in tensors]


def _joined(x: Tensor) -> Tensor:
    """The two first axes as one."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def merged(
    out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor, dead: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Two results over disjoint keys as one: the weights are exp(LSE - total LSE).

    `dead` marks queries to which `part` gives no key (its LSE is -inf there).
    """
    weight = torch.sigmoid(part_lse - lse)
    if dead is not None:
        weight = weight.masked_fill(dead, 0.0)  # where both are -inf the difference is NaN
    total = torch.lerp(out, part.to(out.dtype), weight[..., None].to(out.dtype))
    return total, torch.logaddexp(lse, part_lse)
