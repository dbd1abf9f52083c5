"""Tensors that a mask function holds, looked up by symbols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from patterncc.integrations.maskmod.nodes import Captured, Const, Node, call, lookup
from patterncc.integrations.maskmod.symbols import (
    Symbol,
    cell,
    element,
    few_enough,
    mapped,
    refused,
)


class Holder:
    """The tensors of one mask function, each copied once, with their names for messages."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._known: dict[int, tuple[torch.Tensor, Captured]] = {}

    def captured(self, tensor: torch.Tensor) -> Captured:
        """The tensor as it is now."""
        if id(tensor) not in self._known:
            name = self._names.get(id(tensor), f"tensor{list(tensor.shape)}")
            self._known[id(tensor)] = (tensor, Captured.of(tensor, name))
        return self._known[id(tensor)][1]


def getitem(held: Holder, func: Any, args: Any, kwargs: Any) -> Symbol:
    """tensor[index], the tensor or the index symbolic."""
    owner, index = args
    index = index if isinstance(index, tuple) else (index,)
    if isinstance(owner, Symbol):
        if any(isinstance(x, Symbol) for x in index):
            raise refused("[]", args, "a row that an index picked is indexed by numbers only")
        order = torch.arange(owner.nodes.size).reshape(owner.nodes.shape)[index]
        picked = owner.nodes.reshape(-1)[order.numpy().reshape(-1)]
        return Symbol.of(picked.reshape(tuple(order.shape)), owner.like)
    index = _whole(owner, index, args)
    wide = [x for x in index if isinstance(x, Symbol) and x.nodes.ndim]
    if not wide:
        return _element(held.captured(owner), owner, index)
    if index[0] is not wide[0] or any(isinstance(x, Symbol) for x in index[1:]):
        raise refused("[]", args, "a symbolic tensor with axes comes as the first and only index")
    rows = [
        _element(
            held.captured(owner), owner, (Symbol.of(cell(node), wide[0].like), *index[1:])
        ).nodes
        for node in wide[0].nodes.reshape(-1)
    ]
    shape = (*wide[0].nodes.shape, *rows[0].shape)
    return Symbol.of(np.stack(rows).reshape(shape), owner.dtype)


def _whole(owner: torch.Tensor, index: tuple[Any, ...], args: Any) -> tuple[Any, ...]:
    """One entry for each axis, and None where a new one is asked for."""
    if any(isinstance(x, torch.Tensor) and not isinstance(x, Symbol) and x.ndim for x in index):
        raise refused("[]", args, "index by symbols or by a tensor, one after the other")
    used = sum(x is not None and x is not Ellipsis for x in index)
    gap = (slice(None),) * (owner.ndim - used)
    for k, x in enumerate(index):
        if x is Ellipsis:
            return (*index[:k], *gap, *index[k + 1 :])
    return (*index, *gap)


def _element(table: Captured, owner: torch.Tensor, index: tuple[Any, ...]) -> Symbol:
    """Symbols without axes at some places of the index, numbers and slices at the others."""
    axes = [x for x in index if x is not None]
    if len(axes) != owner.ndim:
        raise IndexError(f"{table.name} has {owner.ndim} axes and is indexed by {len(axes)}")
    rest = [size for size, x in zip(owner.shape, axes) if not isinstance(x, Symbol)]
    numbers = tuple(int(x) if isinstance(x, torch.Tensor) else x for x in index if not _symbolic(x))
    order = torch.arange(int(np.prod([1, *rest]))).reshape(rest)[numbers]
    few_enough(list(order.shape), f"{table.name}, looked up row by row,")
    made = np.empty(tuple(order.shape), dtype=object)
    for place in np.ndindex(made.shape):
        fixed = iter(np.unravel_index(int(order[place]), rest) if rest else ())
        made[place] = lookup(
            table,
            tuple(element(x.nodes) if _symbolic(x) else Const(int(next(fixed))) for x in axes),
        )
    return Symbol.of(made, owner.dtype)


def _symbolic(x: object) -> bool:
    return isinstance(x, Symbol)


def isin(held: Holder, func: Any, args: Any, kwargs: Any) -> Symbol:
    """Membership of an index in a list."""
    x, listed = args
    if not isinstance(x, Symbol) or isinstance(listed, Symbol):
        raise refused("isin", args, "the first argument is an index, the second a tensor")
    table = held.captured(torch.as_tensor(listed))
    dtype = torch.result_type(torch.ones((), dtype=x.like), table.values)

    def member(node: Node) -> Node:
        found = call("isin", node, dtype=dtype, table=table)
        return call("~", found, dtype=torch.bool) if kwargs.get("invert") else found

    return Symbol.of(mapped(member, x.nodes.shape, x.nodes), torch.bool)


def bucketize(held: Holder, func: Any, args: Any, kwargs: Any) -> Symbol:
    """How many sorted bounds stand below an index (`right`: at it, too)."""
    x, bounds = args if func.__name__ == "bucketize" else args[::-1]
    if not isinstance(x, Symbol) or isinstance(bounds, Symbol) or kwargs.get("sorter") is not None:
        raise refused(func.__name__, args, "an index is looked up in a sorted tensor")
    table = held.captured(bounds)
    right = kwargs.get("right", False) or kwargs.get("side") == "right"
    op = "bucketize right" if right else "bucketize"
    dtype = torch.result_type(torch.ones((), dtype=x.like), table.values)
    made = mapped(lambda n: call(op, n, dtype=dtype, table=table), x.nodes.shape, x.nodes)
    return Symbol.of(made, torch.int32 if kwargs.get("out_int32") else torch.int64)


def take(held: Holder, func: Any, args: Any, kwargs: Any) -> Symbol:
    """`take` counts through the whole tensor, `index_select` along one axis."""
    if func.__name__ == "take":
        return getitem(held, func, (args[0].reshape(-1), args[1]), {})
    owner, dim, index = args
    return getitem(held, func, (owner, (slice(None),) * (dim % owner.ndim) + (index,)), {})
