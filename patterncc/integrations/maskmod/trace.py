"""Runs a mask function once, on symbols instead of indices, and keeps what it computes.

The four indices are a subclass of torch.Tensor, and a TorchFunctionMode is on while the function
runs: torch hands over every operation on them, ``document_id[q_idx]`` and ``torch.where`` included
(both are torch's documented points of extension).  An operation on symbols makes nodes, element by
element; anything else runs as it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from patterncc.errors import PatternError
from patterncc.integrations.maskmod.captured import Holder
from patterncc.integrations.maskmod.names import names_of
from patterncc.integrations.maskmod.nodes import Const, Node, Var, is_bool, text
from patterncc.integrations.maskmod.operations import perform
from patterncc.integrations.maskmod.symbols import Symbol, cell, element, flat

INDICES = ("b", "h", "q_idx", "kv_idx")
RANDOM = (
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
    *("bernoulli", "normal", "multinomial", "dropout", "bernoulli_", "random_", "uniform_"),
)


class Trace(TorchFunctionMode):
    """Catches every torch operation while a mask function runs."""

    def __init__(self, held: Holder) -> None:
        super().__init__()
        self._held = held

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch asks for each of its functions."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in RANDOM:
            raise PatternError(
                f"the function draws random numbers ({func.__name__}); draw them outside, and look "
                "them up by index, or write pc.random_blocks or pc.random_edges"
            )
        if any(isinstance(x, Symbol) for x in flat((args, kwargs))):
            return perform(self._held, func, args, kwargs)
        return func(*args, **kwargs)


def trace(fn: Callable[..., Any], numbers: Mapping[str, int] | None = None) -> Node:
    """The truth value that a mask function computes, as a node.

    numbers: plain integers in place of some indices' symbols.

    >>> text(trace(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx))
    'q_idx >= kv_idx'

    Raises PatternError for what cannot be traced, with the sub-expression and a remedy.
    """
    known = numbers or {}
    given = [
        known[name] if name in known else Symbol.of(cell(Var(name)), torch.int64)
        for name in INDICES
    ]
    with Trace(Holder(names_of(fn))):
        made = fn(*given)
    if isinstance(made, bool):
        return Const(made)
    plain = isinstance(made, torch.Tensor) and not isinstance(made, Symbol)
    if plain and made.numel() == 1 and made.dtype == torch.bool:
        return Const(bool(made.item()))
    if isinstance(made, Symbol) and made.nodes.size == 1:
        node = element(made.nodes.reshape(-1), (0,))
        if is_bool(node):
            return node
        raise PatternError(
            f"the function gives `{text(node)}`, a {made.like}, and a mask_mod gives a truth "
            "value; compare it, or end with .bool()"
        )
    if isinstance(made, torch.Tensor):
        shape = made.nodes.shape if isinstance(made, Symbol) else made.shape
        what = f"a tensor of shape {list(shape)}"
    else:
        what = type(made).__name__
    raise PatternError(
        f"the function gives {what}, and a mask_mod gives one truth value for one pair of indices "
        "(a score_mod, which changes scores, is no mask)"
    )
