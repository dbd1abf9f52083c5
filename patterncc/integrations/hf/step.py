"""One more token, with nothing unusual about it: the short way of a decode step to the op.

`serve` looks at all that a call may bring.  Most of what it finds is the same for all layers of a
pass, or for all steps of a layer; here it is found once and kept with the pass or the layouts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from patterncc.attend.ready import Ready, transformed
from patterncc.errors import PatternError
from patterncc.integrations.hf.checks import HARMLESS
from patterncc.integrations.hf.placement import Placement
from patterncc.integrations.hf.reading import held_by
from patterncc.integrations.hf.state import Patterned

_PLAIN = HARMLESS | {"softcap", "use_cache", "sliding_window", "output_router_logits"}
_MOST = 64  # kinds of steps remembered for one pattern


class _Place(NamedTuple):
    """Where the token of a pass stands, and how many keys the model asked for a mask of."""

    start: int
    keys: int


def step(
    state: object,
    place: object,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float,
    scaling: float | None,
    given: dict[str, Any],
) -> Tensor | None:
    """The output [B, 1, H, Dv] of a pattern's decode step; None for `serve` to look closer.

    q [B, H, 1, D], k and v [B, Hkv, n_k, D].  The short way is for the self-attention of a decoder
    over a cache in one piece, all of whose slots up to the token hold tokens.
    """
    if not isinstance(state, Patterned) or not isinstance(place, Placement):
        return None
    sides = q.shape
    if sides[2] != 1 or is_grad_enabled() or is_compiling():
        return None
    if dropout or not given.keys() <= _PLAIN:
        return None
    if state.part != "decoder" or state.seat is not None or state.record.packed is not None:
        return None
    if not state.layouts.only_past:  # tokens that were answered may have waited for this one
        return None
    memo = place.memo
    if "step" not in memo:
        memo["step"] = _place_of(place)
    at: _Place | None = memo["step"]
    if at is None or k.shape[2] != at.keys or held_by(k) is not None:
        return None
    start = at.start
    softcap, device = given.get("softcap"), q.device
    kind = (start.bit_length(), device, q.dtype, scaling, softcap, sides, k.shape[1], v.shape[3])
    ready = state.layouts.ready.get(kind) or _made(state, kind, start, q, k, v, scaling, softcap)
    if ready is None or start >= ready.rows:
        return None
    if at.keys > ready.keys:  # a static cache; what nobody has written yet, no row reads
        k, v = k.narrow(2, 0, ready.keys), v.narrow(2, 0, ready.keys)
    if device not in memo:
        memo[device] = torch.full(sides[:1], start, dtype=torch.int32, device=device)
    return ready.run(q, k, v, memo[device]).transpose(1, 2)


def _place_of(place: Placement) -> _Place | None:
    """What the layers of a pass share; None where a token stands by more than its slot."""
    start, keys = place.start(wait=False), place.given.get("kv_length")
    if not isinstance(start, int) or not isinstance(keys, int) or not 0 < start < keys:
        return None
    if place.k_offset or transformed():
        return None
    try:
        packed = place.packed
    except PatternError:
        return None
    return None if packed or place.padding(start + 1) else _Place(start, keys)


def _made(
    state: Patterned,
    kind: object,
    start: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    softcap: float | None,
) -> Ready | None:
    """What all steps of a kind share, kept from now on; None for what `attention` refuses."""
    k, v = k.narrow(2, 0, start + 1), v.narrow(2, 0, start + 1)
    try:
        layout = state.layouts.step(start + 1, start + 1)
        made = Ready.of(q, k, v, layout, backend=state.backend, scale=scaling, softcap=softcap)
    except PatternError:
        return None
    kept = state.layouts.ready
    if len(kept) >= _MOST:
        kept.clear()
    kept[kind] = made
    return made
