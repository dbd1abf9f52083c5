"""Runs a mask function once, on symbols instead of indices, and keeps what it computes.

The four indices are `Symbol`, a subclass of torch.Tensor, and a TorchFunctionMode is on while the
function runs: torch hands every operation on them to us, ``document_id[q_idx]`` and
``torch.where`` included (both are torch's documented points of extension).  An operation on symbols
makes nodes, element by element; anything else runs as it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from patterncc.errors import PatternError
from patterncc.integrations.maskmod.names import names_of
from patterncc.integrations.maskmod.nodes import (
    Captured,
    Const,
    Node,
    Var,
    is_bool,
    placeholder,
    text,
)

INDICES = ("b", "h", "q_idx", "kv_idx")
MOST_ELEMENTS = 4096  # of a symbolic tensor, such as the row of a table that an index picks

Nodes = np.ndarray[Any, Any]  # of Node, dtype object, in the shape of the tensor they stand for


class Symbol(torch.Tensor):
    """A tensor whose elements are nodes; it has no numbers of its own."""

    nodes: Nodes
    like: torch.dtype

    @staticmethod
    def of(nodes: Nodes, dtype: torch.dtype) -> Symbol:
        """A symbol for nodes that torch would give the dtype."""
        if nodes.size > MOST_ELEMENTS:
            raise PatternError(
                f"a symbolic tensor of shape {list(nodes.shape)} is past {MOST_ELEMENTS} elements; "
                "index the tensor with all of its indices"
            )
        made = placeholder(nodes.shape, dtype).as_subclass(Symbol)
        made.nodes, made.like = nodes, dtype
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # after the trace, or where the mode is off
        raise PatternError(
            "a symbolic index was used outside the mask function; compute with it inside only"
        )


def cell(node: Node) -> Nodes:
    """One node, as an array without axes."""
    made = np.empty((), dtype=object)
    made[()] = node
    return made


class Trace(TorchFunctionMode):
    """Catches every torch operation while a mask function runs."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self._captured: dict[int, tuple[torch.Tensor, Captured]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from patterncc.integrations.maskmod.operations import perform

        kwargs = kwargs or {}
        if not any(isinstance(x, Symbol) for x in _flat((args, kwargs))):
            return func(*args, **kwargs)
        return perform(self, func, args, kwargs)

    def captured(self, tensor: torch.Tensor) -> Captured:
        """The tensor as the function holds it, copied once."""
        if id(tensor) not in self._captured:
            default = f"tensor{list(tensor.shape)}"
            name = self._names.get(id(tensor), default)
            self._captured[id(tensor)] = (tensor, Captured.of(tensor, name))
        return self._captured[id(tensor)][1]


def _flat(given: Any) -> Iterator[Any]:
    """Everything in nested tuples, lists and dicts."""
    match given:
        case tuple() | list():
            for x in given:
                yield from _flat(x)
        case dict():
            yield from _flat(list(given.values()))
        case slice():
            yield from (given.start, given.stop, given.step)
        case _:
            yield given


def trace(fn: Callable[..., Any]) -> Node:
    """The truth value that a mask function computes, as a node.

    >>> from patterncc.integrations.maskmod.nodes import text
    >>> text(trace(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx))
    'kv_idx <= q_idx'

    Raises PatternError for what cannot be traced, with the sub-expression and a remedy.
    """
    given = [Symbol.of(cell(Var(name)), torch.int64) for name in INDICES]
    with Trace(names_of(fn)):
        made = fn(*given)
    return _truth(made)


def _truth(made: object) -> Node:
    """What the function gave, as one truth value."""
    if isinstance(made, bool):
        return Const(made)
    if isinstance(made, Symbol):
        if made.nodes.size == 1:
            node: Node = made.nodes.reshape(-1)[0]
            if is_bool(node):
                return node
            raise PatternError(
                f"the mask function gives `{text(node)}`, {made.like}; a mask_mod gives a truth "
                "value: compare it, or end with .bool()"
            )
        raise PatternError(
            f"the mask function gives a tensor of shape {list(made.nodes.shape)}; a mask_mod gives "
            "one truth value for one pair of indices"
        )
    if isinstance(made, torch.Tensor) and made.numel() == 1 and made.dtype == torch.bool:
        return Const(bool(made.item()))
    raise PatternError(
        f"the mask function gives {type(made).__name__}; a mask_mod gives one truth value "
        "(a score_mod, which changes scores, is no mask)"
    )
