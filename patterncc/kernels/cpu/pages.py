"""Keys and values of a decode step's cache on the CPU: in one piece, or in pages by a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from patterncc.kernels.pages import check_entries

Stretch = tuple[int, int]
"""The first key and the one past the last."""


@dataclass(frozen=True)
class Joined:
    """Several stretches, ascending and apart; few, for each is copied by itself."""

    stretches: tuple[Stretch, ...]


Keys = Tensor | Stretch | Joined
"""Which keys: their indices [S], or where they stand side by side."""


@dataclass(frozen=True, eq=False)
class Cache:
    """k [B, Hkv, n_k, D] and v [B, Hkv, n_k, Dv]; with a table k [pages, Hkv, page, D], v alike."""

    k: Tensor
    v: Tensor
    table: Tensor | None = None

    def take(self, some: slice, heads: slice, keys: Keys) -> tuple[Tensor, Tensor]:
        """Keys of some sequences and key heads, [b, K, S, D], and their values.

        Views for one stretch where the cache is in one piece, else copies.

        Raises TensorError for pages that are not there.
        """
        if self.table is not None:
            return self._paged(self.table[some], some.start, heads, indices(keys))
        k, v = self.k, self.v
        if some != slice(0, len(k)) or heads != slice(0, k.shape[1]):
            k, v = k[some, heads], v[some, heads]
        match keys:
            case Tensor():
                return k.index_select(2, keys), v.index_select(2, keys)
            case Joined(stretches):
                return _joined(k, stretches), _joined(v, stretches)
            case (first, last):
                return k.narrow(2, first, last - first), v.narrow(2, first, last - first)
            case _:
                assert_never(keys)

    def _paged(
        self, table: Tensor, first: int, heads: slice, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        side = self.k.shape[2]
        of, slot = index // side, index % side
        page = table.long()[:, of]
        check_entries(table, of, (page >= 0) & (page < len(self.k)), self.k, first)
        k, v = (x[:, heads][page, :, slot].transpose(1, 2) for x in (self.k, self.v))
        return k, v


def _joined(x: Tensor, stretches: Sequence[Stretch]) -> Tensor:
    return torch.cat([x.narrow(2, first, last - first) for first, last in stretches], 2)


def indices(keys: Keys) -> Tensor:
    """The indices of keys, int64 [S].

    >>> indices((2, 5)).tolist()
    [2, 3, 4]
    """
    match keys:
        case Tensor():
            return keys
        case Joined(stretches):
            return torch.cat([torch.arange(*s) for s in stretches])
        case (first, last):
            return torch.arange(first, last)
        case _:
            assert_never(keys)
