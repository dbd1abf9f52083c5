"""Where the queries of cross-attention stand.

transformers asks for cross-attention's mask as if the queries stood at 0, or for none, in decode
steps too.  The self-attention of the same layer, which runs before, is told the truth; it leaves
it in a `Seat` that both share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor

from patterncc.errors import BackendError, PatternValueError
from patterncc.integrations.hf.modules import Found
from patterncc.stack import Stack, patterns_of


@dataclass(eq=False)
class Seat:
    """The position of a decoder layer's first query: written by its self-attention in each pass."""

    first: int | Tensor | None = None


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


def first_query(name: str, seat: Seat | None) -> int | Tensor:
    """The position of cross-attention's first query; each pass writes it anew.

    Raises BackendError where the self-attention of the layer has not run.
    """
    if seat is None:
        return 0  # a layer without self-attention keeps nothing between calls
    if seat.first is None:
        raise BackendError(
            f"{name}: cross-attention ran before the self-attention of its layer, so that the "
            "positions of its queries are not known; leave cross= out"
        )
    first, seat.first = seat.first, None
    return first


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
