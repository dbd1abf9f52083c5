"""Where the queries of cross-attention stand.

transformers asks for cross-attention's mask as if the queries stood at 0, or for none, in decode
steps too.  The self-attention of the same layer, which runs before, is told the truth; it leaves
it in a `Seat` that both share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from patterncc.errors import BackendError, PatternValueError
from patterncc.integrations.hf.modules import Found
from patterncc.integrations.hf.traits import same_for_all_queries
from patterncc.stack import Layer, Stack, patterns_of


@dataclass(eq=False)
class Seat:
    """Where a decoder layer's queries stand: written by its self-attention in each pass.

    first: the position of the first.  shift: slots of padding before each sequence, [B], if any.
    """

    first: int | Tensor | None = None
    shift: Tensor | None = None


def seats(found: Iterable[Found]) -> dict[str, Seat]:
    """A seat for each layer that has self- and cross-attention, under the names of both."""
    listed = tuple(found)
    own = [f for f in listed if f.part != "cross"]
    shared: dict[str, Seat] = {}
    for f in listed:
        beside = max(own, key=lambda g: len(_both(f, g)), default=None)
        if f.part == "cross" and beside and any(x.isdigit() for x in _both(f, beside)):
            shared[f.name] = shared[beside.name] = Seat()
    return shared


def _both(one: Found, other: Found) -> list[str]:
    """What the names of two modules begin with: their layer, where they are of one."""
    pairs = zip(one.name.split("."), other.name.split("."), strict=False)
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def first_query(name: str, seat: Seat | None, layer: Layer) -> int | Tensor:
    """The position of cross-attention's first query; each pass writes it anew.

    Raises BackendError where the self-attention of the layer has not run, and for decoders whose
    sequences are padded on the left, unless all queries of the pattern read the same keys.
    """
    if seat is None:
        return 0  # a layer without self-attention keeps nothing between calls
    if seat.first is None:
        raise BackendError(
            f"{name}: cross-attention ran before the self-attention of its layer, so that the "
            "positions of its queries are not known; leave cross= out"
        )
    if seat.shift is not None and not same_for_all_queries(layer):
        _check_not_shifted(name, seat.shift)
    first, seat.first = seat.first, None
    return first


def _check_not_shifted(name: str, shift: Tensor) -> None:
    why = (
        f"{name}: the decoder's sequences are padded on the left, so that its positions differ "
        "from one sequence to the next, and the pattern of cross depends on them; pad the "
        "decoder's tokens on the right, or give one sequence at a time"
    )
    if torch.compiler.is_compiling():
        torch._assert_async((shift == 0).all(), why)
        return
    raise BackendError(why)


def check_cross(stack: Stack) -> None:
    """Refuse causal patterns on cross-attention: its queries and keys are of two sequences."""
    for l, layer in enumerate(stack):
        for pattern in patterns_of(layer):
            if "causal()" in str(pattern):
                raise PatternValueError(
                    f"hf.apply: cross, layer {l}: {pattern} is causal, but queries and keys of "
                    "cross-attention are two sequences: query i stands in the decoder's, key j in "
                    "the encoder's; state which it reads with window(left, right), sink, or "
                    "pc.from_mask_mod for a slanted band"
                )
