"""A cache in pages as one tensor, and how many of its keys count as a mask of keys.

For what looks at all keys anyway: dense attention, and terms whose keys stand in an order of their
own.  The backends' own decode steps read pages where they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from patterncc.errors import TensorError
from patterncc.kernels.score import Score

Read = Callable[[Tensor, Tensor, Score], Tensor]
"""The output of a step's rows for other keys and values, fp32, and options."""

COLUMNS = 8  # head dim of keys that are all alike


def unpaged(
    k: Tensor,
    v: Tensor,
    n_k: int,
    score: Score,
    block_table: Tensor | None,
    key_lengths: Tensor | None,
    read: Read,
) -> tuple[Tensor, Tensor, Score]:
    """k and v as tensors of n_k keys, and the options with a mask of the keys that count.

    Keys whose page is not there do not count.

    Raises TensorError on the CPU for such a key where a row reads it; `read` tells.
    """
    at = torch.arange(n_k, device=k.device)
    keys = score.keys
    if key_lengths is not None:
        within = at < key_lengths[:, None]
        keys = within if keys is None else keys & within
    if block_table is not None:
        here = ((block_table >= 0) & (block_table < len(k)))[:, at // k.shape[2]]
        absent = ~here if keys is None else ~here & keys
        if k.device.type == "cpu" and bool(absent.any()):
            wanted = _reading(absent, k.shape[1], keys, read)
            check_entries(block_table, at // k.shape[2], ~wanted, k)
        keys = here if keys is None else keys & here
        k, v = gathered(k, block_table, n_k), gathered(v, block_table, n_k)
    return k, v, replace(score, keys=keys)


def _reading(absent: Tensor, heads: int, keys: Tensor | None, read: Read) -> Tensor:
    """The first key among `absent`, bool [B, n_k], that a row reads: True there, or nowhere.

    Scores are all 0 and values mark keys: an output above 0 has read a marked one.  Where there is
    none one step tells; else halving finds it.
    """
    B, n_k = absent.shape
    k = torch.zeros(1, device=absent.device).expand(B, heads, n_k, COLUMNS)

    def marked(low: int, high: int) -> Tensor:
        v = torch.zeros(B, n_k, device=absent.device)
        v[:, low:high] = absent[:, low:high].float()
        out = read(k, v[:, None, :, None].expand(k.shape), Score(1.0, keys=keys))
        return (out > 0).flatten(1).any(1)

    found, low, high = marked(0, n_k), 0, n_k
    while bool(found.any()) and high - low > 1:
        half = marked(low, (low + high) // 2)
        if bool(half.any()):
            found, high = half, (low + high) // 2
        else:
            low = (low + high) // 2
            found = marked(low, high)
    first = torch.zeros_like(absent)
    first[:, low] = found
    return first


def check_entries(
    block_table: Tensor, pages: Tensor, sound: Tensor, k: Tensor, first: int = 0
) -> None:
    """Refuse a table [sequences, ..] that names pages which the cache lacks.

    pages: the columns that keys stand in, [keys]; sound: bool [sequences, keys], False for a key
    that is read and has no page.  first: the number of the table's first sequence.

    Raises TensorError.
    """
    if bool(sound.all()):
        return
    sequence, key = (int(x) for x in (~sound).nonzero()[0])
    column = int(pages[key])
    entry = int(block_table[sequence, column])
    raise TensorError(
        f"attention: block_table[{first + sequence}, {column}] is {entry}, "
        f"the cache has pages 0 to {len(k) - 1} (k has shape {list(k.shape)}); name a page for "
        "every key that a row reads, or leave the later ones out with key_lengths"
    )


def gathered(x: Tensor, block_table: Tensor, n_k: int) -> Tensor:
    """[pages, Hkv, page, D] by a table, int [B, pages of a sequence], as [B, Hkv, n_k, D].

    Pages that are not there give zeros.

    >>> x = torch.arange(6.0).reshape(3, 1, 2, 1)
    >>> gathered(x, torch.tensor([[2, 0], [-1, 1]]), 3)[..., 0].tolist()
    [[[4.0, 5.0, 0.0]], [[0.0, 0.0, 2.0]]]
    """
    table = block_table[:, : -(-n_k // x.shape[2])].long()
    here = (table >= 0) & (table < len(x))
    if not len(x):
        return x.new_zeros(len(table), x.shape[1], n_k, x.shape[3])
    picked = x[torch.where(here, table, 0)]  # [B, pages, Hkv, page, D]
    picked = picked.masked_fill(~here[:, :, None, None, None], 0.0)
    return picked.transpose(1, 2).flatten(2, 3)[:, :, :n_k]
