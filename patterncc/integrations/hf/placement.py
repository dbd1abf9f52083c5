"""What a forward pass says of itself when it asks for a mask: where queries and keys stand.

transformers builds one mask for each kind of layer before the layers run.  In its place we give
them a `Placement`: the pattern of each layer is then laid on these places, and no mask is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patterncc.integrations.hf.own_mask import OwnMask


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the queries and keys of one forward pass stand.

    q_offset: the slot of the first query, a tensor where a static cache tells it so.  k_offset: the
    slot of the first key that the cache holds.  n_k: how many keys it holds.
    keys: bool [B, n_k], which keys are tokens; None where all are.
    own: the mask that the model itself asks for.  dense: makes the mask of the implementation that
    the model had before, for layers that keep it.
    """

    q_offset: int | Tensor
    k_offset: int
    n_k: int
    keys: Tensor | None
    own: OwnMask
    dense: Callable[[], Any]
    ndim: int = 4  # generate hands prepared masks to the model, which looks at this
