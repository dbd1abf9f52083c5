"""A model's own mask, read from the functions that transformers composes it of.

What is not known by name is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patterncc.errors import BackendError
from patterncc.pattern import Pattern
from patterncc.primitives import causal, chunked, full, window


@dataclass(frozen=True, eq=False)
class OwnMask:
    """The model's own pattern, and the documents that it packs behind each other, if any.

    documents: ids [B, n] of each token's document.
    """

    pattern: Pattern
    documents: Tensor | None = None


def own_mask(mask_function: Callable[..., Any]) -> OwnMask:
    """Read the mask function that transformers hands to a mask interface.

    Raises BackendError for a function that transformers did not make, by its name.
    """
    pattern: Pattern = full()
    documents = None
    for leaf, held in _leaves(mask_function):
        match leaf:
            case "causal_mask_function":
                pattern = pattern & causal()
            case "bidirectional_mask_function":
                pass
            case "sliding_window_overlay":
                pattern = pattern & window(held["sliding_window"] - 1, 0)
            case "sliding_window_bidirectional_overlay":
                pattern = pattern & window(held["sliding_window"], held["sliding_window"])
            case "chunked_overlay":
                pattern = pattern & chunked(held["chunk_size"])
            case "packed_sequence_mask_function":
                documents = held["packed_sequence_mask"]
            case _:
                raise BackendError(
                    f"the model adds a mask of its own, {leaf}, that patterncc does not know; "
                    "state it in the pattern and leave it out, or pass fallback='dense' to run "
                    "those calls with the attention that the model had"
                )
    return OwnMask(pattern, documents)


def _leaves(function: Callable[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and variables of each function of an intersection."""
    name = function.__qualname__.split(".")[0]
    cells = function.__closure__ or ()
    held = {k: c.cell_contents for k, c in zip(function.__code__.co_freevars, cells, strict=True)}
    if name == "and_masks":
        for each in held["mask_functions"]:
            yield from _leaves(each)
    elif name == "remap_positions_for_packed_sequence":
        yield from _leaves(held["mask_function"])
    else:
        yield name, held
