"""Keys and values of a decode step's cache on the CPU: in one piece, or in pages by a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patterncc.kernels.pages import check_entries

Keys = Tensor | tuple[int, int]
"""Which keys: their indices [S], or the first and the one past the last of a stretch."""


@dataclass(frozen=True, eq=False)
class Cache:
    """k [B, Hkv, n_k, D] and v [B, Hkv, n_k, Dv]; with a table k [pages, Hkv, page, D], v alike."""

    k: Tensor
    v: Tensor
    table: Tensor | None = None

    def take(self, some: slice, heads: slice, keys: Keys) -> tuple[Tensor, Tensor]:
        """Keys of some sequences and key heads, [b, K, S, D], and their values.

        Views for a stretch where the cache is in one piece, else copies.

        Raises TensorError for pages that are not there.
        """
        if self.table is not None:
            return self._paged(self.table[some], some.start, heads, indices(keys))
        k, v = self.k[some, heads], self.v[some, heads]
        if isinstance(keys, tuple):
            return k[:, :, slice(*keys)], v[:, :, slice(*keys)]
        return k.index_select(2, keys), v.index_select(2, keys)

    def _paged(
        self, table: Tensor, first: int, heads: slice, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        side = self.k.shape[2]
        of, slot = index // side, index % side
        page = table.long()[:, of]
        check_entries(table, of, (page >= 0) & (page < len(self.k)), self.k, first)
        k, v = (x[:, heads][page, :, slot].transpose(1, 2) for x in (self.k, self.v))
        return k, v


def indices(keys: Keys) -> Tensor:
    """The indices of keys, int64 [S].

    >>> indices((2, 5)).tolist()
    [2, 3, 4]
    """
    return torch.arange(*keys) if isinstance(keys, tuple) else keys
