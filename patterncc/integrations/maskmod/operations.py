"""Which function reads which operation of torch, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from patterncc.errors import PatternError, suggest
from patterncc.integrations.maskmod import captured, elementwise, shapes
from patterncc.integrations.maskmod.captured import Holder
from patterncc.integrations.maskmod.nodes import variables
from patterncc.integrations.maskmod.symbols import AskedForError, Symbol, refused, shown, stand_in

Handler = Callable[[Holder, Any, Any, Any], Any]


def _itself(held: Holder, func: Any, args: Any, kwargs: Any) -> Any:
    return args[0]


def _constant(held: Holder, func: Any, args: Any, kwargs: Any) -> Any:
    """new_ones and its kin: a tensor of numbers, made as torch makes it."""
    symbol = args[0]
    kwargs = {k: v for k, v in kwargs.items() if k != "device"}
    return func(stand_in(symbol.nodes.shape, symbol.like), *args[1:], **kwargs)


def _number(held: Holder, func: Any, args: Any, kwargs: Any) -> Any:
    """Python wants a number or a truth value, and there is none."""
    symbol = next(x for x in args if isinstance(x, Symbol))
    what = func.__name__.strip("_")
    names = frozenset().union(*(variables(x) for x in symbol.nodes.reshape(-1)))
    if names and names <= {"b", "h"}:
        said = f"Python asks for the value of `{shown(symbol)}`"
        raise AskedForError(said, tuple(sorted(names)), shown(symbol))
    if what in ("bool", "is_nonzero", "contains", "equal"):
        raise PatternError(
            f"Python asks whether `{shown(symbol)}` is true, which differs from pair to pair; "
            "write & for `and`, | for `or`, ~ for `not`, torch.where(test, a, b) for `if`, "
            "(a <= x) & (x < b) for a <= x < b, torch.isin for `in`, torch.maximum for max()"
        )
    raise PatternError(
        f"Python asks for the number in `{shown(symbol)}` ({what}), which differs from pair to "
        "pair; use torch's operations: torch.floor, torch.abs, //, %, torch.minimum"
    )


def _written(held: Holder, func: Any, args: Any, kwargs: Any) -> str:
    return shown(args[0])


def _same(held: Holder, func: Any, args: Any, kwargs: Any) -> int:
    return id(args[0])


def _each(handler: Handler, *names: str) -> dict[str, Handler]:
    return dict.fromkeys(names, handler)


_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
_SHIFTS = ("lshift", "rshift", "div")

HANDLERS: dict[str, Handler] = {
    **_each(elementwise.elementwise, *elementwise.NAMES),
    **_each(elementwise.elementwise, *(f"__{x}__" for x in elementwise.NAMES)),
    **_each(elementwise.reflected, *(f"__r{x}__" for x in (*_OPERATORS, *_SHIFTS))),
    **_each(elementwise.in_place, *(f"__i{x}__" for x in (*_OPERATORS, *_SHIFTS))),
    **_each(elementwise.clamped, "clamp", "clip", "clamp_min", "clamp_max"),
    **_each(elementwise.cast, "to", "type", "type_as", "long", "int", "short", "bool"),
    **_each(elementwise.cast, "float", "double", "half", "bfloat16"),
    **_each(captured.getitem, "__getitem__"),
    **_each(captured.isin, "isin"),
    **_each(captured.bucketize, "bucketize", "searchsorted"),
    **_each(captured.take, "take", "index_select"),
    **_each(shapes.reshaped, "unsqueeze", "squeeze", "reshape", "view", "expand", "expand_as"),
    **_each(shapes.reshaped, "permute", "flatten", "transpose", "movedim", "broadcast_to"),
    **_each(shapes.reshaped, "tile", "repeat", "repeat_interleave", "flip", "roll"),
    **_each(shapes.fold, *shapes.FOLDS),
    **_each(shapes.extreme, "min", "max"),
    **_each(shapes.stack, "stack", "cat", "concat", "concatenate"),
    **_each(shapes.unbind, "unbind", "__iter__"),
    **_each(shapes.measured, "__get__", "__len__", "dim", "size", "numel", "is_floating_point"),
    **_each(_itself, "clone", "contiguous", "detach", "cpu", "cuda", "positive", "__pos__"),
    **_each(_constant, "new_ones", "new_zeros", "new_full", "new_tensor", "zeros_like"),
    **_each(_constant, "ones_like", "full_like"),
    **_each(_number, "__bool__", "__int__", "__index__", "__float__", "__contains__", "item"),
    **_each(_number, "tolist", "is_nonzero", "equal", "__array__", "numpy"),
    **_each(_written, "__repr__", "__str__", "__format__"),
    **_each(_same, "__hash__"),
}
"""By the name that torch gives a function, a method or an operator."""


def perform(held: Holder, func: Any, args: Any, kwargs: Any) -> Any:
    """The result of a torch function that was given symbols."""
    name = str(getattr(func, "__name__", func))
    if name in HANDLERS:
        return HANDLERS[name](held, func, args, kwargs)
    if name.endswith("_") and name[:-1] in HANDLERS:
        raise refused(name, args, f"it changes a tensor in place; write x = x.{name[:-1]}(...)")
    near = suggest(name, HANDLERS)
    remedy = "compute it outside the mask function and look it up by index"
    raise refused(name, args, f"{near} Or {remedy}" if near.startswith("did") else remedy)
