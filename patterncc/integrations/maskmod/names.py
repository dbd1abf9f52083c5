"""What the variables of a mask function are called, so that messages can speak of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

_DEEPEST = 8  # functions inside functions


def title(fn: object) -> str:
    """The name of a function, for messages.

    >>> title(title)
    'title'
    """
    if isinstance(fn, functools.partial):
        return title(fn.func)
    return str(getattr(fn, "__name__", type(fn).__name__))


def names_of(fn: Callable[..., Any]) -> dict[int, str]:
    """The name of every tensor that a function can reach by name, by identity.

    Closures, defaults, globals that it mentions, attributes of a callable object, and the same of
    functions found there (`and_masks` holds the masks that it joins).
    """
    found: dict[int, str] = {}
    seen: set[int] = set()

    def look(name: str, value: object, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            found.setdefault(id(value), name)
        elif isinstance(value, tuple | list) and len(value) <= 64:
            for k, x in enumerate(value):
                look(f"{name}[{k}]", x, depth)
        elif depth and id(value) not in seen and (callable(value) or hasattr(value, "__dict__")):
            seen.add(id(value))
            for inner, x in _variables(value):
                look(inner, x, depth - 1)

    look(title(fn), fn, _DEEPEST)
    return found


def _variables(value: Any) -> Iterator[tuple[str, object]]:
    """Names and values that a function, a partial or an object holds."""
    if isinstance(value, functools.partial):
        yield "function", value.func
        for k, x in enumerate(value.args):
            yield f"argument {k}", x
        yield from value.keywords.items()
        return
    function = getattr(value, "__func__", value)
    code = getattr(function, "__code__", None)
    if code is None:
        if type(value).__module__.split(".")[0] != "torch" and not isinstance(value, type):
            yield from dict(getattr(value, "__dict__", {})).items()
            yield "__call__", getattr(value, "__call__", None)  # noqa: B004 - the method itself
        return
    if hasattr(value, "__self__"):
        yield "self", value.__self__
    for name, held in zip(code.co_freevars, function.__closure__ or ()):
        try:
            yield name, held.cell_contents
        except ValueError:  # a variable that is not set yet
            continue
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    yield from zip(
        arguments[code.co_argcount - len(function.__defaults__ or ()) :],
        function.__defaults__ or (),
    )
    yield from (function.__kwdefaults__ or {}).items()
    for name in code.co_names:
        held = function.__globals__.get(name)
        if isinstance(held, torch.Tensor) or getattr(held, "__code__", None) is not None:
            yield name, held
