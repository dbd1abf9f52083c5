"""FlexAttention's mask functions as patterns: traced on symbols, read exactly or refused.

function -> trace -> nodes -> tidy (linear) -> read (marks, tables, join, grids) -> Pattern
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from patterncc.errors import PatternError, PatternValueError
from patterncc.integrations.maskmod.linear import tidy
from patterncc.integrations.maskmod.names import title
from patterncc.integrations.maskmod.nodes import (
    Const,
    Lookup,
    Node,
    Var,
    rebuilt,
    text,
    variables,
    walk,
)
from patterncc.integrations.maskmod.read import Reader
from patterncc.integrations.maskmod.symbols import AskedForError
from patterncc.integrations.maskmod.tables import Frame
from patterncc.integrations.maskmod.trace import trace
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import Boxes
from patterncc.stack import Heads
from patterncc.stack import heads as layer_of

MOST_POSITIONS = 2**27  # that a table of values is written out for
_ARGUMENTS = {
    "b": (
        "batch",
        "pass batch=0 for the first sequence, or leave the lengths out and bind them "
        "to all sequences at once: compile(..., key_lengths=...)",
    ),
    "h": ("heads", "pass heads=, the number of query heads"),
}
"""What tells the number that an index stands for."""


def from_mask_mod(
    fn: Callable[..., Any],
    *,
    n: int | None = None,
    n_k: int | None = None,
    heads: int | None = None,
    batch: int | None = None,
) -> Pattern | Heads:
    """The pattern of a FlexAttention mask function ``fn(b, h, q_idx, kv_idx)``, exactly.

    The function runs on symbols; nothing is sampled, and what cannot be read is refused with
    the sub-expression named.  Comparisons, arithmetic, `&`, `|`, `~`, `torch.where` and captured
    tensors are read as they are written.

    n, n_k: queries and keys, for functions of an index that have no pattern at every length; they
        are computed for every position.  Where the function looks up ``tensor[q_idx]`` or
        ``tensor[kv_idx]``, the lengths of these tensors are taken; else n_k is n.
    heads: for a mask that depends on h: the result is ``pc.heads([...])``, a pattern a head.  Where
        the function asks Python about h (``if h < 2``), it runs once for each head, h an int.
    batch: for a mask that depends on b: which sequence of the batch is read.

    >>> import torch
    >>> from_mask_mod(lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx - kv_idx <= 511))
    window(511)
    >>> document_id = torch.tensor([0, 0, 0, 1, 1])
    >>> def mask(b, h, q_idx, kv_idx):
    ...     return (document_id[q_idx] == document_id[kv_idx]) & (q_idx >= kv_idx)
    >>> from_mask_mod(mask)
    causal() & documents([3, 2])

    Raises PatternError for what cannot be traced or read, SizeError for what would be too large.
    """
    if not callable(fn):
        raise PatternError(f"from_mask_mod: give a mask function, not {fn!r}")
    given = {
        name: check_int("from_mask_mod", name, value, low, MOST_POSITIONS)
        for name, value, low in (
            ("n", n, 0),
            ("n_k", n_k, 0),
            ("heads", heads, 1),
            ("batch", batch, 0),
        )
        if value is not None
    }
    try:
        return _read_function(fn, given)
    except PatternError as error:
        raise type(error)(f"from_mask_mod: {title(fn)}: {error}") from None


def _read_function(fn: Callable[..., Any], given: dict[str, int]) -> Pattern | Heads:
    """The pattern; read with numbers for heads and batch where Python asks about these."""
    try:
        return _read(_traced(fn), given)
    except AskedForError as asked:
        missing = [(x, _ARGUMENTS[x]) for x in asked.names if _ARGUMENTS[x][0] not in given]
        if missing:
            name, (_, remedy) = missing[0]
            raise PatternValueError(f"`{asked.shown}` depends on {name}; {remedy}") from None
    numbers = {"b": given["batch"]} if "batch" in given else {}
    if "heads" not in given:
        return _read(_traced(fn, numbers), given)
    nodes = [_traced(fn, {**numbers, "h": h}) for h in range(given["heads"])]
    made = {node: _read(node, given) for node in dict.fromkeys(nodes)}
    each = [made[node] for node in nodes]
    return layer_of([p for p in each if isinstance(p, Pattern)])  # all: no node depends on h


def _traced(fn: Callable[..., Any], numbers: Mapping[str, int] | None = None) -> Node:
    """What the function computes; what goes wrong inside it is told as it stands."""
    try:
        return trace(fn, numbers)
    except PatternError:
        raise
    except Exception as error:
        raise PatternError(f"the function raises {type(error).__name__}: {error}") from error


def _read(node: Node, given: dict[str, int]) -> Pattern | Heads:
    """The pattern, head by head where they differ."""
    names = variables(node)
    for name, (argument, remedy) in _ARGUMENTS.items():
        if name in names and argument not in given:
            raise PatternValueError(f"`{_smallest(node, name)}` depends on {name}; {remedy}")
    if "b" in names:
        node = rebuilt(node, {Var("b"): Const(given["batch"])})
    if "h" not in names:
        return _head(node, given)
    made: dict[Node, Pattern] = {}
    each = []
    for h in range(given["heads"]):
        own = rebuilt(node, {Var("h"): Const(h)})
        if own not in made:
            made[own] = _head(own, given)
        each.append(made[own])
    return layer_of(each)


def _head(node: Node, given: dict[str, int]) -> Pattern:
    node = tidy(node)
    frame = _frame(node, given)
    if frame is not None and not (frame.n and frame.n_k):
        return Boxes((), frame.n, frame.n_k)
    return Reader(frame).pattern(node)


def _frame(node: Node, given: dict[str, int]) -> Frame | None:
    """The lengths that were given, or those of tensors that an index looks up as it is."""
    found: dict[str, int] = {}
    for x in walk(node):
        if isinstance(x, Lookup):
            for index, size in zip(x.index, x.table.values.shape):
                if isinstance(index, Var):
                    found[index.name] = min(size, found.get(index.name, size))
    n = given.get("n", found.get("q_idx"))
    n_k = given.get("n_k", found.get("kv_idx", given.get("n")))
    n, n_k = (n_k if n is None else n), (n if n_k is None else n_k)
    return None if n is None or n_k is None else Frame(n, n_k)


def _smallest(node: Node, name: str) -> str:
    """The smallest expression around an index."""
    holders = [x for x in walk(node) if name in variables(x) and x != Var(name)]
    return text(min(holders, key=lambda x: x.size)) if holders else name


__all__ = ["from_mask_mod"]
