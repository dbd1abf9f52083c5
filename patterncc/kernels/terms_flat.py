"""Terms whose slots hold tokens of all sequences and heads, one behind the other.

A router gives each head of each sequence clusters of its own.  Their members are put side by side,
head after head, so that one pattern of tiles serves all: the term is attention of one sequence of
one head, over all slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patterncc.errors import TensorError
from patterncc.kernels.cpu.heads import wide
from patterncc.kernels.score import Score

if TYPE_CHECKING:
    from patterncc.kernels.spec import Spec


@dataclass(frozen=True, eq=False)
class Flat:
    """Where the tokens of such a term stand.

    order: int32 [slots], slot s holds row order[s] of q, rows of all its sequences and heads being
    counted through; an empty slot holds any.
    slots: int32 [B * H * tokens], the slot of each such row; that of a token in no cluster reads
    nothing and nobody reads it.
    """

    order: Tensor
    slots: Tensor
    tokens: int

    def gather(self, x: Tensor) -> Tensor:
        """[B, heads or key heads, tokens, ...] as the slots hold it, [1, 1, slots, ...]."""
        rows = x.reshape(-1, *x.shape[3:])
        return rows.index_select(0, self._rows(x.shape[0] * x.shape[1]))[None, None]

    def _rows(self, heads: int) -> Tensor:
        """The row of each slot in tensors of so many heads, over all sequences."""
        group = self._group(heads)
        if group == 1:
            return self.order
        head, token = self._places()
        return torch.div(head, group, rounding_mode="floor") * self.tokens + token

    def _group(self, heads: int) -> int:
        """Query heads to each of so many, over all sequences."""
        return self.slots.numel() // max(1, heads * self.tokens)

    def _places(self) -> tuple[Tensor, Tensor]:
        """The head of each slot, over all sequences, and its token."""
        head = torch.div(self.order, self.tokens, rounding_mode="floor")
        return head, self.order - head * self.tokens

    def may_read(self, keys: Tensor) -> Tensor:
        """Bool [B, tokens], which keys may be read, by slots: [1, slots]."""
        return keys.reshape(-1).index_select(0, self._rows(len(keys)))[None]

    def put_back(self, x: Tensor, sequences: int, heads: int) -> Tensor:
        """[1, 1, slots, ...] as [sequences, heads, tokens, ...]; for key heads that several query
        heads share, the sum over these."""
        placed = x[0, 0].index_select(0, self.slots)
        group = self._group(sequences * heads)
        if group == 1:
            return placed.view(sequences, heads, self.tokens, *x.shape[3:])
        grouped = placed.view(sequences, heads, group, self.tokens, *x.shape[3:])
        return grouped.sum(2, dtype=wide(x.dtype))


@dataclass(frozen=True, eq=False)
class FlatPart:
    """One such term with its tensors."""

    spec: Spec
    tables: Sequence[Tensor]
    queries: Flat

    @property
    def keys(self) -> Flat:
        """Keys stand where queries do."""
        return self.queries

    def score(self, score: Score) -> Score:
        """The options for this term: keys by slot, and no sinks.

        Raises TensorError for options of positions or heads: all slots are of one head here.
        """
        if score.slopes is not None or score.bias is not None:
            raise TensorError(
                "attention: alibi_slopes and relative_bias do not go with routed clusters, whose "
                "tokens stand in an order of their own in each head; leave them out, or route "
                "blocks (routed_blocks)"
            )
        keys = None if score.keys is None else self.queries.may_read(score.keys)
        return replace(score, sinks=None, keys=keys, partly=True)
