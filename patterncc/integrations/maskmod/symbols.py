"""Symbol: a tensor whose elements are nodes instead of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch

from patterncc.errors import PatternError
from patterncc.integrations.maskmod.nodes import Const, Node, text

MOST_ELEMENTS = 4096  # of a symbolic tensor, such as the row of a table that an index picks

Nodes = np.ndarray[Any, Any]  # of Node, dtype object, in the shape of the tensor they stand for


class AskedForError(PatternError):
    """Python asked for the value of what depends on the head or the sequence alone.

    names: "b", "h" or both.  shown: the expression.
    """

    def __init__(self, message: str, names: tuple[str, ...], shown: str) -> None:
        super().__init__(message)
        self.names, self.shown = names, shown


class Symbol(torch.Tensor):
    """A tensor that the mask function computes with; `like` is the dtype that torch gives it."""

    nodes: Nodes
    like: torch.dtype

    @staticmethod
    def of(nodes: Nodes, dtype: torch.dtype) -> Symbol:
        """A symbol for nodes of a dtype."""
        few_enough(list(nodes.shape), "a symbolic tensor")
        made = stand_in(nodes.shape, dtype).as_subclass(Symbol)
        made.nodes, made.like = nodes, dtype
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Reached only where nobody traces: the mode of a trace is asked before."""
        name = getattr(func, "__name__", func)
        raise PatternError(
            f"a symbolic index came to {name} outside the mask function, or through torch.ops; "
            "compute with it inside, by torch's functions and operators"
        )


def stand_in(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    """Ones: torch is asked for the dtype and shape of a result with them, never divides by 0."""
    return torch.ones(tuple(shape), dtype=dtype)


def few_enough(shape: list[int], what: str) -> None:
    """Refuse a tensor that would be written out element by element."""
    if int(np.prod([1, *shape])) > MOST_ELEMENTS:
        raise PatternError(
            f"{what} of shape {shape} would be written out in more than {MOST_ELEMENTS} elements; "
            "index all axes of the tensor by q_idx, kv_idx, b or h"
        )


def cell(node: Node) -> Nodes:
    """One node, as an array without axes."""
    made = np.empty((), dtype=object)
    made[()] = node
    return made


def element(nodes: Nodes, place: tuple[int, ...] = ()) -> Node:
    """The node at a place."""
    return cast(Node, nodes[place])


def mapped(of: Callable[..., Node], shape: tuple[int, ...], *arrays: Nodes) -> Nodes:
    """A function of nodes at every place, arrays broadcast to the shape."""
    spread = [np.broadcast_to(x, shape) for x in arrays]
    made = np.empty(shape, dtype=object)
    for place in np.ndindex(shape):
        made[place] = of(*(element(x, place) for x in spread))
    return made


def nodes_of(value: Any) -> tuple[Nodes, Any]:
    """The nodes of an argument, and what torch can be asked with in its place."""
    if isinstance(value, Symbol):
        return value.nodes, stand_in(value.nodes.shape, value.like)
    if isinstance(value, torch.Tensor):
        kept = value.detach().cpu()
        few_enough(list(kept.shape), "a tensor that is joined with the indices element by element")
        made = np.empty(tuple(kept.shape), dtype=object)
        for place in np.ndindex(made.shape):
            made[place] = Const(kept[place].item())
        return made, kept
    if isinstance(value, bool | int | float):
        return cell(Const(value)), value
    raise PatternError(f"an index is joined with {value!r}; numbers and tensors can be")


def flat(given: Any) -> Iterator[Any]:
    """Everything in nested tuples, lists, dicts and slices."""
    match given:
        case tuple() | list():
            for x in given:
                yield from flat(x)
        case dict():
            yield from flat(list(given.values()))
        case slice():
            yield from (given.start, given.stop, given.step)
        case _:
            yield given


def shown(symbol: object) -> str:
    """A symbol, or another argument, for messages."""
    if isinstance(symbol, Symbol):
        first = text(element(symbol.nodes.reshape(-1), (0,))) if symbol.nodes.size else "[]"
        return first if symbol.nodes.ndim == 0 else f"[{first}, ...]"
    if isinstance(symbol, torch.Tensor):
        return f"tensor{list(symbol.shape)}"
    return repr(symbol)


def refused(name: str, args: Any, remedy: str) -> PatternError:
    """The refusal of an operation, by name and with its arguments."""
    return PatternError(f"`{name}({', '.join(map(shown, args))})` cannot be read; {remedy}")
