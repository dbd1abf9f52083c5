"""Operations on symbols that move, join or fold elements."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import torch

from patterncc.integrations.maskmod.captured import Holder
from patterncc.integrations.maskmod.elementwise import as_bool, cast_node, elementwise, operation
from patterncc.integrations.maskmod.nodes import Const, Node
from patterncc.integrations.maskmod.symbols import (
    Nodes,
    Symbol,
    cell,
    element,
    mapped,
    nodes_of,
    refused,
    stand_in,
)

FOLDS = {"any": "or", "all": "and", "sum": "+", "amin": "min", "amax": "max", "prod": "*"}
_EMPTY = {"or": Const(False), "and": Const(True), "+": Const(0), "*": Const(1)}


class Extreme(NamedTuple):
    """What torch.min and torch.max give along an axis, less the indices."""

    values: Symbol


def reshaped(held: Holder, func: Any, args: Any, kwargs: Any) -> Symbol:
    """Another shape: torch moves the numbers of the nodes, and the nodes follow."""
    symbol = args[0]
    if not isinstance(symbol, Symbol):
        raise refused(func.__name__, args, "only the shape of another tensor is asked for")
    order = torch.arange(symbol.nodes.size).reshape(symbol.nodes.shape)
    moved = func(
        order, *(nodes_of(x)[1] if isinstance(x, Symbol) else x for x in args[1:]), **kwargs
    )
    picked = symbol.nodes.reshape(-1)[moved.numpy().reshape(-1)]
    return Symbol.of(picked.reshape(tuple(moved.shape)), symbol.like)


def fold(held: Holder, func: Any, args: Any, kwargs: Any) -> Symbol:
    """A reduction over some axes of a symbolic tensor, or over all."""
    symbol, *rest = args
    given = dict(zip(("dim", "keepdim"), rest)) | kwargs
    result = func(stand_in(symbol.nodes.shape, symbol.like), **given)
    op, nodes = FOLDS[func.__name__], symbol.nodes
    if op in ("or", "and"):
        nodes = mapped(as_bool, nodes.shape, nodes)
    elif op == "+" and symbol.like == torch.bool:
        nodes = mapped(partial(cast_node, dtype=result.dtype), nodes.shape, nodes)
    dim = given.get("dim")
    axes = range(nodes.ndim) if dim is None else dim if isinstance(dim, tuple | list) else (dim,)
    axes = [a % max(1, nodes.ndim) for a in axes] if nodes.ndim else []
    front = np.moveaxis(nodes, axes, range(len(axes)))
    kept = front.shape[len(axes) :]
    rows = front.reshape(-1, *kept) if nodes.size else np.empty((0, *kept), dtype=object)
    made = np.empty(kept, dtype=object)
    for place in np.ndindex(kept):
        terms = [element(rows, (k, *place)) for k in range(len(rows))]
        made[place] = _folded(op, terms, result.dtype)
    return Symbol.of(made.reshape(tuple(result.shape)), result.dtype)


def _folded(op: str, terms: list[Node], dtype: torch.dtype) -> Node:
    if not terms:
        return _EMPTY[op]
    return reduce(lambda a, b: operation(op, [a, b], dtype), terms)


def extreme(held: Holder, func: Any, args: Any, kwargs: Any) -> Any:
    """min and max, of two tensors or along an axis."""
    name = func.__name__
    second = args[1] if len(args) > 1 else kwargs.get("other")
    if isinstance(second, torch.Tensor):
        both = torch.minimum if name == "min" else torch.maximum
        return elementwise(held, both, (args[0], second), {})
    found = fold(held, torch.amin if name == "min" else torch.amax, args, kwargs)
    return found if len(args) < 2 and "dim" not in kwargs else Extreme(found)


def stack(held: Holder, func: Any, args: Any, kwargs: Any) -> Symbol:
    """torch.stack and torch.cat."""
    parts, *rest = args
    dim = rest[0] if rest else kwargs.get("dim", 0)
    both = [nodes_of(x) for x in parts]
    result = func([torch.as_tensor(x[1]) for x in both], dim)
    join = np.stack if func.__name__ == "stack" else np.concatenate
    return Symbol.of(join([x[0] for x in both], axis=dim), result.dtype)


def unbind(held: Holder, func: Any, args: Any, kwargs: Any) -> Any:
    """The parts along an axis; also what a `for` or an unpacking sees."""
    symbol, *rest = args
    dim = rest[0] if rest else kwargs.get("dim", 0)
    rows = tuple(_symbol(row, symbol.like) for row in np.moveaxis(symbol.nodes, dim, 0))
    return iter(rows) if func.__name__ == "__iter__" else rows


def _symbol(row: Nodes | Node, dtype: torch.dtype) -> Symbol:
    return Symbol.of(row if isinstance(row, np.ndarray) else cell(row), dtype)


def measured(held: Holder, func: Any, args: Any, kwargs: Any) -> Any:
    """Shapes, dtypes and devices, as torch has them."""
    symbol = args[0]
    value = func(stand_in(symbol.nodes.shape, symbol.like), *args[1:], **kwargs)
    if isinstance(value, torch.Tensor):
        if symbol.nodes.ndim == 0:
            return symbol
        raise refused("transpose", args, "write .permute(...)")
    return value
