"""How a score is made of a product of query and key: the options of one call, and their gradients.

With x = scale * (q . k), for the query at position i and the key at position j:

    x = softcap * tanh(x / softcap)        a soft limit (Gemma 2)
    x = x - slopes[head] * |i - j|         ALiBi
    x = x + bias[head, clamp(j - i, -R, R) + R]    relative positions (T5)
    x = -inf where not keys[batch, j]      padding

and the sum of each row's exponentials counts exp(sinks[head]) once more (gpt-oss).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Score:
    """The options of one call; None, or 0 for softcap, leaves a step out.

    slopes, sinks: fp32 [H].  bias: fp32 [H, 2 R + 1].  keys: bool [B, n_k], True may be read.
    query_at, key_at: int32 [n] and [n_k], the tokens that stand at slots, where an order moved
    them; else query s stands at q_offset + s and key t at k_offset + t.
    """

    scale: float
    softcap: float = 0.0
    slopes: Tensor | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None
    keys: Tensor | None = None
    query_at: Tensor | None = None
    key_at: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Nothing but a scale."""
        options = (self.slopes, self.bias, self.sinks, self.keys)
        return not self.softcap and all(x is None for x in options)


class Grads(NamedTuple):
    """What a backward pass gives; None where the option is absent."""

    q: Tensor
    k: Tensor
    v: Tensor
    slopes: Tensor | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None
