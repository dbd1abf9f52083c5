"""A model's own mask, read from the functions that transformers composes it of.

What is not known by name is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from patterncc.errors import BackendError
from patterncc.pattern import Pattern
from patterncc.primitives import causal, chunked, full, window

PACKED_IN_A_TRACE = (
    "patterncc: in a graph traced by torch.compile, sequences were packed behind each other "
    "(position_ids that restart) or the model added a mask of its own; run the model without "
    "torch.compile, or give one sequence a row with attention_mask"
)


@dataclass(frozen=True, eq=False)
class Packed:
    """Sequences behind each other, those of all rows of the batch in one line.

    starts: where each begins, and the end of the last.  positions: that of each one's first token,
    None where all are 0.
    """

    starts: tuple[int, ...]
    positions: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class OwnMask:
    """The model's own pattern, in numbers, and the sequences that are packed behind each other.

    past: queries read no later key.  left, right: a window, -1 for none.  chunk: 0 for none.
    """

    past: bool
    left: int = -1
    right: int = -1
    chunk: int = 0
    packed: Packed | None = None


def pattern_of(past: bool, left: int, right: int, chunk: int) -> Pattern:
    """A model's own mask as a pattern.

    >>> pattern_of(True, 7, 0, 0)
    causal() & window(7)
    """
    pattern: Pattern = causal() if past else full()
    if (left, right) != (-1, -1):
        pattern = pattern & window(left, right)
    return pattern & chunked(chunk) if chunk else pattern


def own_mask(mask_function: Callable[..., Any] | None, **given: Any) -> OwnMask:
    """Read the mask function that transformers hands to a mask interface.

    Raises BackendError for a function that transformers did not make, by its name.
    """
    if getattr(mask_function, "__closure__", ()) is None:
        return _open(mask_function)
    return _read(mask_function)


@lru_cache(maxsize=32)
def _open(mask_function: Callable[..., Any]) -> OwnMask:
    """The same of a function that holds nothing, so that each pass asks with the same one."""
    return _read(mask_function)


def _read(mask_function: Callable[..., Any] | None) -> OwnMask:
    past, left, right, chunk = False, -1, -1, 0
    documents = positions = None
    for name, held in () if mask_function is None else _leaves(mask_function):
        match name:
            case "causal_mask_function":
                past = True
            case "bidirectional_mask_function":
                pass
            case "sliding_window_overlay":
                left, right = held["sliding_window"] - 1, 0
            case "sliding_window_bidirectional_overlay":
                left = right = held["sliding_window"]
            case "chunked_overlay":
                chunk = held["chunk_size"]
            case "packed_sequence_mask_function":
                documents = held["packed_sequence_mask"]
            case "remap_positions_for_packed_sequence":
                positions = held["position_ids"]
            case _:
                raise _unknown(name)
    packed = None if documents is None else packed_of(documents, positions)
    return OwnMask(past, left, right, chunk, packed)


def _leaves(function: Callable[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and variables of each function of an intersection."""
    name = getattr(function, "__qualname__", type(function).__name__).split(".")[0]
    if not (getattr(function, "__module__", None) or "").startswith("transformers."):
        raise _unknown(name)
    cells = getattr(function, "__closure__", None) or ()
    held = {k: c.cell_contents for k, c in zip(function.__code__.co_freevars, cells, strict=True)}
    if name == "and_masks":
        for each in held["mask_functions"]:
            yield from _leaves(each)
        return
    if name == "remap_positions_for_packed_sequence":
        yield from _leaves(held["mask_function"])
    yield name, held


def _unknown(name: str) -> BackendError:
    return BackendError(
        f"the model adds a mask of its own, {name}, that patterncc does not know; state it in the "
        "pattern and leave it out, or pass fallback='dense' to run those calls with the attention "
        "that the model had"
    )


def packed_of(documents: Tensor, positions: Tensor | None) -> Packed:
    """From ids [B, n] of each token's sequence: numbers that rise where the next one begins."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    at = begins.flatten().nonzero().flatten()
    first: list[int] = [] if positions is None else positions.flatten()[at].tolist()
    return Packed((*at.tolist(), documents.numel()), tuple(first) if any(first) else None)


def traced_own_mask(
    mask_function: Callable[..., Any] | None,
    batch_size: int,
    q_length: int,
    kv_length: int,
    config: Any = None,
    **given: Any,
) -> OwnMask:
    """The same in a graph that torch traces, where functions cannot be read.

    The kind of mask follows from what is given with it.  That no sequences are packed and nothing
    is added is asserted while the graph runs, on neighbours: each token reads the one before it and
    not the one behind it.
    """
    past, size = "allow_is_bidirectional_skip" not in given, given.get("local_size")
    left, right, chunk = -1, -1, 0
    if given.get("use_vmap"):
        raise _unknown("or_mask_function or and_mask_function")
    if size is not None and size == getattr(config, "attention_chunk_size", None):
        if size == getattr(config, "sliding_window", None):
            raise _unknown(f"of {size} tokens, a window or a chunk: the config says both,")
        chunk = size
    elif size is not None:
        left, right = (size - 1, 0) if past else (size, size)
    whole = q_length == kv_length and q_length > 1 and given.get("attention_mask") is None
    if mask_function is not None and whole and past and not chunk:
        _check_plain(mask_function, batch_size, q_length, given["device"], previous=left != 0)
    return OwnMask(past, left, right, chunk)


def _check_plain(
    mask_function: Callable[..., Any], batch: int, n: int, device: Any, previous: bool
) -> None:
    """Assert on the device that every token reads the one before it and none the one behind it."""
    rows, tokens = torch.arange(batch, device=device)[:, None], torch.arange(n - 1, device=device)
    behind = mask_function(rows, 0, tokens, tokens + 1)
    plain = ~behind.any()
    if previous:
        plain = plain & mask_function(rows, 0, tokens + 1, tokens).all()
    torch._assert_async(
        plain,
        PACKED_IN_A_TRACE,
    )
