"""Operations on symbols that work element by element, and casts."""

from __future__ import annotations

from typing import Any

import torch

from patterncc.integrations.maskmod.captured import Holder
from patterncc.integrations.maskmod.nodes import Call, Const, Lookup, Node, call, is_bool
from patterncc.integrations.maskmod.ranges import check_range
from patterncc.integrations.maskmod.symbols import Symbol, mapped, nodes_of, refused, stand_in

NAMES: dict[str, str] = {
    **{"add": "+", "sub": "-", "subtract": "-", "rsub": "-", "mul": "*", "multiply": "*"},
    **{"floor_divide": "//", "floordiv": "//", "remainder": "%", "mod": "%"},
    **{"div": "/", "divide": "/", "true_divide": "/", "truediv": "/", "pow": "pow", "fmod": "fmod"},
    **{"neg": "neg", "negative": "neg", "abs": "abs", "absolute": "abs"},
    **{"minimum": "min", "maximum": "max", "fmin": "min", "fmax": "max"},
    **{"lt": "<", "less": "<", "le": "<=", "less_equal": "<=", "gt": ">", "greater": ">"},
    **{"ge": ">=", "greater_equal": ">=", "eq": "==", "ne": "!=", "not_equal": "!="},
    **{"and": "&", "bitwise_and": "&", "or": "|", "bitwise_or": "|", "xor": "^"},
    **{"bitwise_xor": "^", "logical_and": "and", "logical_or": "or", "logical_xor": "xor"},
    **{"logical_not": "not", "invert": "~", "bitwise_not": "~"},
    **{"lshift": "<<", "bitwise_left_shift": "<<", "rshift": ">>", "bitwise_right_shift": ">>"},
    **{"where": "where", "sign": "sign", "sgn": "sign", "square": "square", "isnan": "isnan"},
    **{name: name for name in ("floor", "ceil", "round", "trunc", "sqrt", "rsqrt", "exp", "exp2")},
    **{name: name for name in ("log", "log2", "log10", "log1p", "expm1", "sin", "cos", "tan")},
    **{name: name for name in ("tanh", "sigmoid", "frac", "reciprocal")},
}
"""torch's functions, methods and operators (without underscores), and what nodes call them."""

_ROUNDING = {"floor": "//", "trunc": "trunc_divide", None: "/"}
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


def elementwise(held: Holder, func: Any, args: Any, kwargs: Any) -> Symbol:
    """An operation on each element, broadcast as torch does."""
    name = func.__name__.strip("_")
    op = NAMES[name]
    listed = [*args, *(v for k, v in kwargs.items() if k not in ("rounding_mode", "alpha"))]
    if kwargs.get("alpha", 1) != 1 or kwargs.get("out") is not None:
        raise refused(name, args, "alpha= and out= are not read; write the product or a name out")
    kept = {k: v for k, v in kwargs.items() if k == "rounding_mode"}
    if kept:
        op = _ROUNDING[kept["rounding_mode"]]
    parts, stand_ins = zip(*map(nodes_of, listed))
    result = func(*stand_ins, **kept)
    dtype = torch.result_type(*stand_ins) if op in _COMPARISONS else result.dtype
    order = parts[::-1] if name == "rsub" else parts
    made = mapped(lambda *x: operation(op, list(x), dtype), tuple(result.shape), *order)
    return Symbol.of(made, result.dtype)


def reflected(held: Holder, func: Any, args: Any, kwargs: Any) -> Symbol:
    """`3 - x`: Python hands it over the other way round."""
    straight = getattr(torch.Tensor, func.__name__.replace("__r", "__", 1))
    first = args[1] if isinstance(args[1], torch.Tensor) else torch.tensor(args[1])
    return elementwise(held, straight, (first, args[0]), kwargs)


def in_place(held: Holder, func: Any, args: Any, kwargs: Any) -> Symbol:
    """`x += y`: the same symbol with other nodes, as torch changes the same tensor."""
    symbol = args[0]
    straight = getattr(torch.Tensor, func.__name__.replace("__i", "__", 1))
    made = elementwise(held, straight, args, kwargs)
    if not isinstance(symbol, Symbol) or made.nodes.shape != symbol.nodes.shape:
        raise refused(func.__name__, args, "it would change a tensor that the function holds")
    if made.like != symbol.like:
        raise refused(func.__name__, args, f"{symbol.like} cannot become {made.like} in place")
    symbol.nodes = made.nodes
    return symbol


def clamped(held: Holder, func: Any, args: Any, kwargs: Any) -> Any:
    """Held between two bounds, either of them left out."""
    name = func.__name__
    names = {"clamp_min": ("x", "min"), "clamp_max": ("x", "max")}.get(name, ("x", "min", "max"))
    given = dict(zip(names, args)) | kwargs
    value = given.pop("x", None) if "x" in given else given.pop("input")
    for bound, limit in (("min", torch.maximum), ("max", torch.minimum)):
        if given.get(bound) is not None:
            value = elementwise(held, limit, (_tensor(value), _tensor(given[bound])), {})
    return value


def _tensor(x: Any) -> Any:
    return x if isinstance(x, torch.Tensor) else torch.tensor(x)


def operation(op: str, args: list[Node], dtype: torch.dtype) -> Node:
    """One operation on one element, written with the few operations that nodes have."""
    truth = torch.bool
    match op, args:
        case (">" | ">=", [a, b]):
            return operation("<" if op == ">" else "<=", [b, a], dtype)
        case ("!=", [a, b]):
            return negated(operation("==", [a, b], dtype))
        case ("==", [a, b]) if is_bool(a) and is_bool(b):
            return negated(_logic("xor", a, b))
        case ("and" | "or" | "xor", [a, b]):
            return _logic(op, as_bool(a), as_bool(b))
        case ("not", [a]):
            return negated(as_bool(a))
        case ("&" | "|" | "^", [a, b]) if dtype == truth:
            return _logic({"&": "and", "|": "or", "^": "xor"}[op], a, b)
        case ("&" | "|" | "^", [a, b]):
            return call(f"bits{op}", a, b, dtype=dtype)
        case ("~", [a]):
            return negated(a) if dtype == truth else call("bits~", a, dtype=dtype)
        case ("*" | "min", [a, b]) if dtype == truth:
            return _logic("and", a, b)
        case ("+" | "max", [a, b]) if dtype == truth:
            return _logic("or", a, b)
        case ("where", [test, a, b]) if dtype == truth:
            test = as_bool(test)
            return _logic("or", _logic("and", test, a), _logic("and", negated(test), b))
        case ("where", [test, a, b]):
            return call("where", as_bool(test), a, b, dtype=dtype)
        case ("square", [a]):
            return check_range(call("*", a, a, dtype=dtype))
        case _:
            return check_range(call(op, *args, dtype=dtype))


def negated(x: Node) -> Node:
    """Not x."""
    return call("~", x, dtype=torch.bool)


def _logic(op: str, a: Node, b: Node) -> Node:
    if op == "xor":
        return _logic("or", _logic("and", a, negated(b)), _logic("and", negated(a), b))
    return call({"and": "&", "or": "|"}[op], a, b, dtype=torch.bool)


def as_bool(node: Node) -> Node:
    """Whether a value is not 0."""
    if is_bool(node):
        return node
    match node:
        case Const(value):
            return Const(bool(value))
        case Lookup(table):
            dtype = table.values.dtype
        case Call():
            dtype = node.dtype
        case _:
            dtype = torch.int64
    return negated(call("==", node, Const(0), dtype=dtype))


def cast(held: Holder, func: Any, args: Any, kwargs: Any) -> Any:
    """Another dtype; devices are left aside."""
    symbol, *rest = args
    rest = [nodes_of(x)[1] if isinstance(x, Symbol) else x for x in rest]
    if not isinstance(symbol, Symbol):  # a plain tensor, cast like a symbol
        return func(symbol, *rest, **kwargs)
    if func.__name__ == "to":
        rest = [x for x in rest if not isinstance(x, torch.device | str)]
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "copy")}
        if not rest and not kwargs:
            return symbol
    dtype = func(stand_in((), symbol.like), *rest, **kwargs).dtype
    made = mapped(lambda x: cast_node(x, dtype), symbol.nodes.shape, symbol.nodes)
    return Symbol.of(made, dtype)


def cast_node(node: Node, dtype: torch.dtype) -> Node:
    """A node in another dtype."""
    if dtype == torch.bool:
        return as_bool(node)
    if is_bool(node):
        return call("where", node, Const(1), Const(0), dtype=dtype)
    return check_range(call("cast", node, dtype=dtype))
