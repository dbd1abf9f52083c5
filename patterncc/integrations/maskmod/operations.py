"""Operations of torch on symbols: what each makes of the nodes.

`perform` is asked for every torch function with a symbol among its arguments.  Elementwise ones are
in `ELEMENTWISE`; shapes, reductions and look-ups have a function each; the rest is refused by name.
Torch itself is asked for dtypes and shapes, by running the same function on ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from patterncc.errors import PatternError, suggest
from patterncc.integrations.maskmod.nodes import (
    Captured,
    Const,
    Lookup,
    Node,
    call,
    is_bool,
    lookup,
    placeholder,
    text,
)
from patterncc.integrations.maskmod.ranges import check_range
from patterncc.integrations.maskmod.trace import Symbol, cell

if TYPE_CHECKING:
    from patterncc.integrations.maskmod.trace import Nodes, Trace

_TORCH_NAMES: dict[str, str] = {
    **{"add": "+", "sub": "-", "subtract": "-", "mul": "*", "multiply": "*"},
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
ELEMENTWISE = frozenset(_TORCH_NAMES)
"""Names of torch's functions, methods and operators (without underscores) that work by element."""

_LEFT_ALONE = ("clone", "contiguous", "detach", "cpu", "cuda", "requires_grad_", "alias", "item_")
_CASTS = ("to", "type", "long", "int", "bool", "float", "double", "short", "half", "type_as")
_SHAPES = (
    "unsqueeze",
    "squeeze",
    "reshape",
    "view",
    "expand",
    "expand_as",
    "permute",
    "flatten",
    "transpose",
    "movedim",
    "broadcast_to",
    "tile",
    "repeat",
)
_FRESH = (
    "new_ones",
    "new_zeros",
    "new_full",
    "new_tensor",
    "new_empty",
    "zeros_like",
    "ones_like",
    "full_like",
)
_FOLDS = {"any": "|", "all": "&", "sum": "+", "amin": "min", "amax": "max", "prod": "*"}
_TRUTH = {
    "__bool__": "bool",
    "__int__": "int",
    "__index__": "int",
    "__float__": "float",
    "item": "item",
    "tolist": "tolist",
    "__contains__": "in",
    "is_nonzero": "bool",
}


def perform(at: Trace, func: Any, args: Any, kwargs: Any) -> Any:
    """The result of a torch function that was given symbols."""
    name = getattr(func, "__name__", str(func))
    plain = name.strip("_")
    if name == "__get__":  # shape, dtype, device, ndim: as torch has them
        return _attribute(func, args[0])
    if name in _TRUTH:
        _refuse_number(name, args[0])
    if name == "__getitem__":
        return _getitem(at, args[0], args[1])
    if name.startswith("__i") and plain[1:] in _TORCH_NAMES and plain not in _TORCH_NAMES:
        return _in_place(at, plain[1:], args, kwargs)
    if plain[1:] in _TORCH_NAMES and name.startswith("__r") and plain not in _TORCH_NAMES:
        return _elementwise(
            at,
            getattr(torch.Tensor, f"__{plain[1:]}__"),
            plain[1:],
            (_tensor(args[1]), args[0]),
            kwargs,
        )
    if name == "rsub":
        return _elementwise(at, torch.sub, "sub", (args[1], args[0]), kwargs)
    if plain in ("clamp", "clip", "clamp_min", "clamp_max", "clamp_") and not name.endswith("_"):
        return _clamp(at, plain, *args, **kwargs)
    if plain in ("min", "max"):
        return _extreme(at, func, plain, args, kwargs)
    if name.endswith("_") and not name.startswith("__") and name not in _LEFT_ALONE:
        raise _refused(name, args, "it changes a tensor in place; give the result a name instead")
    if plain in _TORCH_NAMES:
        return _elementwise(at, func, plain, args, kwargs)
    if plain in _LEFT_ALONE:
        return args[0]
    if plain in _CASTS:
        return _cast(func, args, kwargs)
    if plain in _SHAPES:
        return _reshaped(func, plain, args, kwargs)
    if plain in _FRESH:
        return func(placeholder(args[0].nodes.shape, args[0].like), *args[1:], **kwargs)
    if plain in _FOLDS:
        return _fold(at, func, plain, args, kwargs)
    if plain in (
        "isin",
        "bucketize",
        "searchsorted",
        "take",
        "stack",
        "cat",
        "unbind",
        "iter",
        "len",
        "dim",
        "size",
        "numel",
        "equal",
        "index_select",
        "is_floating_point",
    ):
        return _SPECIAL[plain](at, *args, **kwargs)
    raise _refused(name, args, suggest(plain, [*_TORCH_NAMES, *_FOLDS, *_SHAPES, "clamp", "isin"]))


def nodes_of(value: Any) -> tuple[Nodes, Any]:
    """The nodes of an argument, and a stand-in that torch can be asked with."""
    if isinstance(value, Symbol):
        return value.nodes, placeholder(value.nodes.shape, value.like)
    if isinstance(value, torch.Tensor):
        kept = value.detach().cpu()
        if kept.numel() > 4096:
            raise PatternError(
                f"a tensor of shape {list(kept.shape)} is joined with the indices element by "
                "element; index it by q_idx or kv_idx"
            )
        made = np.empty(tuple(kept.shape), dtype=object)
        for place in np.ndindex(made.shape):
            made[place] = Const(kept[place].item())
        return made, kept
    if isinstance(value, bool | int | float):
        return cell(Const(value)), value
    raise PatternError(f"an index is joined with {value!r}; numbers and tensors can be")


def _elementwise(at: Trace, func: Any, plain: str, args: Any, kwargs: Any) -> Symbol:
    """An operation on each element, broadcast as torch does."""
    rounding = kwargs.get("rounding_mode")
    extra = {k: v for k, v in kwargs.items() if k not in ("rounding_mode", "alpha", "out")}
    args = [*args, *extra.values()]
    parts, stand_ins = zip(*map(nodes_of, args))
    op = _TORCH_NAMES[plain]
    if rounding is not None:
        op = {"floor": "//", "trunc": "trunc_divide"}[rounding]
    if "alpha" in kwargs:
        raise _refused(plain, args, "alpha= is not read; write the product out")
    keep = {"rounding_mode": rounding} if rounding is not None else {}
    with torch.no_grad():
        shown = func(*stand_ins, **keep)
    dtype = shown.dtype
    if op in ("<", "<=", ">", ">=", "==", "!="):
        dtype = torch.result_type(*stand_ins)
    broadcast = np.broadcast_arrays(*parts)
    made = np.empty(tuple(shown.shape), dtype=object)
    for place in np.ndindex(made.shape):
        made[place] = operation(op, [x[place] for x in broadcast], dtype)
    return Symbol.of(made, shown.dtype)


def operation(op: str, args: list[Node], dtype: torch.dtype) -> Node:
    """One operation on one element, written with the few operations that nodes have."""
    truth = torch.bool

    def negated(x: Node) -> Node:
        return call("~", x, dtype=truth)

    match op, args:
        case (">" | ">=" as op, [a, b]):
            return operation({">": "<", ">=": "<="}[op], [b, a], dtype)
        case ("!=", [a, b]):
            return negated(operation("==", [a, b], dtype))
        case ("==", [a, b]) if is_bool(a) and is_bool(b):
            return negated(operation("xor", [a, b], truth))
        case ("and" | "or" | "xor" as op, [a, b]):
            return _logic(op, as_bool(a), as_bool(b))
        case ("not", [a]):
            return negated(as_bool(a))
        case ("&" | "|" | "^" as op, [a, b]) if dtype == truth:
            return _logic({"&": "and", "|": "or", "^": "xor"}[op], a, b)
        case ("&" | "|" | "^" as op, [a, b]):
            return call(f"bits{op}", a, b, dtype=dtype)
        case ("~", [a]):
            return negated(a) if dtype == truth else call("bits~", a, dtype=dtype)
        case ("*" | "min", [a, b]) if dtype == truth:
            return call("&", a, b, dtype=truth)
        case ("+" | "max", [a, b]) if dtype == truth:
            return call("|", a, b, dtype=truth)
        case ("where", [test, a, b]) if dtype == truth:
            return _logic(
                "or", call("&", test, a, dtype=truth), call("&", negated(test), b, dtype=truth)
            )
        case ("where", [test, a, b]):
            return call("where", as_bool(test), a, b, dtype=dtype)
        case ("square", [a]):
            return check_range(call("*", a, a, dtype=dtype))
        case _:
            return check_range(call(op, *args, dtype=dtype))


def _logic(op: str, a: Node, b: Node) -> Node:
    truth = torch.bool
    if op == "xor":
        return call(
            "|",
            call("&", a, call("~", b, dtype=truth), dtype=truth),
            call("&", call("~", a, dtype=truth), b, dtype=truth),
            dtype=truth,
        )
    return call({"and": "&", "or": "|"}[op], a, b, dtype=truth)


def as_bool(node: Node) -> Node:
    """Whether a value is not 0."""
    if is_bool(node):
        return node
    dtype = torch.int64
    match node:
        case Lookup(table):
            dtype = table.values.dtype
        case Const(value):
            return Const(bool(value))
        case _:
            dtype = getattr(node, "dtype", torch.int64)
    return call("~", call("==", node, Const(0), dtype=dtype), dtype=torch.bool)


def _cast(func: Any, args: Any, kwargs: Any) -> Symbol:
    """Another dtype; devices are left aside."""
    symbol = args[0]
    rest = [nodes_of(x)[1] if isinstance(x, Symbol) else x for x in args[1:]]
    if not isinstance(symbol, Symbol):  # a plain tensor cast like a symbol
        return func(symbol, *rest, **kwargs)  # type: ignore[no-any-return]
    rest = ["cpu" if isinstance(x, torch.device) else x for x in rest]
    kept = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
    if func.__name__ == "to" and not kept and all(isinstance(x, str) for x in rest):
        return symbol
    dtype = func(placeholder((), symbol.like), *rest, **kept).dtype
    made = np.empty(symbol.nodes.shape, dtype=object)
    for place in np.ndindex(made.shape):
        made[place] = cast_node(symbol.nodes[place], dtype)
    return Symbol.of(made, dtype)


def cast_node(node: Node, dtype: torch.dtype) -> Node:
    """A node in another dtype, without a word where the values stay the same."""
    if dtype == torch.bool:
        return as_bool(node)
    if is_bool(node):
        return call("where", node, Const(1), Const(0), dtype=dtype)
    return check_range(call("cast", node, dtype=dtype))


def _reshaped(func: Any, plain: str, args: Any, kwargs: Any) -> Symbol:
    """Another shape: torch moves the numbers of the nodes, we move the nodes."""
    symbol = args[0]
    order = torch.arange(symbol.nodes.size).reshape(symbol.nodes.shape)
    rest = [nodes_of(x)[1] if isinstance(x, Symbol) else x for x in args[1:]]
    moved = func(order, *rest, **kwargs)
    picked = symbol.nodes.reshape(-1)[moved.numpy().reshape(-1)]
    return Symbol.of(picked.reshape(tuple(moved.shape)), symbol.like)


def _fold(at: Trace, func: Any, plain: str, args: Any, kwargs: Any) -> Symbol:
    """A reduction over an axis of a symbolic tensor, or over all of it."""
    symbol = args[0]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    shown = func(placeholder(symbol.nodes.shape, symbol.like), *args[1:], **kwargs)
    nodes = symbol.nodes
    if plain in ("any", "all"):
        nodes = np.vectorize(as_bool, otypes=[object])(nodes) if nodes.size else nodes
    elif plain == "sum" and symbol.like == torch.bool:
        cast = functools.partial(cast_node, dtype=torch.int64)
        nodes = np.vectorize(cast, otypes=[object])(nodes)
    axes = tuple(range(nodes.ndim)) if dim is None else dim if isinstance(dim, tuple) else (dim,)
    axes = tuple(a % max(1, nodes.ndim) for a in axes) if nodes.ndim else ()
    op = {"|": "or", "&": "and"}.get(_FOLDS[plain], _FOLDS[plain])
    rows = np.moveaxis(nodes, axes, range(len(axes))) if axes else nodes[None]
    kept = rows.shape[len(axes) :] if axes else rows.shape[1:]
    rows = rows.reshape(-1, *kept) if rows.size else rows
    made = np.empty(kept, dtype=object)
    start = {"or": Const(False), "and": Const(True), "+": Const(0), "*": Const(1)}
    for place in np.ndindex(made.shape):
        terms = [rows[(k, *place)] for k in range(len(rows))]
        value = terms[0] if terms else start[op]
        for term in terms[1:]:
            value = operation(op, [value, term], shown.dtype)
        made[place] = value
    return Symbol.of(made.reshape(tuple(shown.shape)) if keepdim else made, shown.dtype)


def _extreme(at: Trace, func: Any, plain: str, args: Any, kwargs: Any) -> Any:
    """min and max of two tensors, or along an axis."""
    second = args[1] if len(args) > 1 else kwargs.get("other")
    if isinstance(second, torch.Tensor):
        both = torch.minimum if plain == "min" else torch.maximum
        return _elementwise(at, both, f"{plain}imum", (args[0], second), {})
    values = _fold(at, getattr(torch, f"a{plain}"), f"a{plain}", args, kwargs)
    if "dim" not in kwargs and len(args) < 2:
        return values
    return type("extreme", (), {"values": values, "__getitem__": lambda _, k: (values,)[k]})()


def _clamp(
    at: Trace,
    plain: str,
    x: Any,
    min: Any = None,
    max: Any = None,  # noqa: A002 - torch's names
) -> Any:
    """Held between two bounds."""
    if plain == "clamp_max":
        min, max = None, min
    if min is not None:
        x = _elementwise(at, torch.clamp_min, "maximum", (_tensor(x), min), {})
    if max is not None:
        x = _elementwise(at, torch.clamp_max, "minimum", (_tensor(x), max), {})
    return x


def _tensor(x: Any) -> Any:
    return x if isinstance(x, torch.Tensor) else torch.tensor(x)


def _in_place(at: Trace, plain: str, args: Any, kwargs: Any) -> Symbol:
    """`x += y`: the same symbol with other nodes, as torch changes the same tensor."""
    symbol = args[0]
    made = _elementwise(at, getattr(torch.Tensor, f"__{plain}__"), plain, args, kwargs)
    if not isinstance(symbol, Symbol) or made.nodes.shape != symbol.nodes.shape:
        raise _refused(plain, args, "it would change a tensor that the function holds")
    if made.like != symbol.like:
        raise _refused(plain, args, f"{symbol.like} cannot become {made.like} in place")
    symbol.nodes = made.nodes
    return symbol


def _attribute(func: Any, symbol: Symbol) -> Any:
    value = func(placeholder(symbol.nodes.shape, symbol.like))
    if isinstance(value, torch.Tensor):
        if symbol.nodes.ndim == 0:
            return symbol
        raise _refused("an attribute", (symbol,), "transpose with .permute(...)")
    return value


def _refuse_number(name: str, symbol: Symbol) -> None:
    what = text(symbol.nodes.reshape(-1)[0]) if symbol.nodes.size else "it"
    if _TRUTH[name] == "bool":
        raise PatternError(
            f"Python asks whether `{what}` is true, and that differs from pair to pair; write & for "
            "`and`, | for `or`, ~ for `not`, torch.where(test, a, b) for `if`, and "
            "(a <= x) & (x < b) for a <= x < b"
        )
    raise PatternError(
        f"Python asks for the number behind `{what}` ({_TRUTH[name]}), and that differs from pair "
        "to pair; stay with torch's operations (torch.floor, //, %, minimum, maximum)"
    )


def _refused(name: str, args: Any, remedy: str) -> PatternError:
    shown = [
        text(x.nodes.reshape(-1)[0]) if isinstance(x, Symbol) and x.nodes.size else "..."
        for x in args
    ]
    return PatternError(f"`{name}({', '.join(shown)})` cannot be read; {remedy}")


def _getitem(at: Trace, owner: torch.Tensor, index: Any) -> Symbol:
    """An element, or a part, of a captured tensor or of a symbolic one."""
    index = index if isinstance(index, tuple) else (index,)
    if isinstance(owner, Symbol):
        if any(isinstance(x, Symbol) for x in index):
            raise _refused("[]", (owner,), "a row of a table is indexed by numbers only")
        order = torch.arange(owner.nodes.size).reshape(owner.nodes.shape)[index]
        picked = owner.nodes.reshape(-1)[order.numpy().reshape(-1)].reshape(tuple(order.shape))
        return Symbol.of(picked, owner.like)
    table = at.captured(owner)
    index = _spelled_out(owner, index)
    wide = [x for x in index if isinstance(x, Symbol) and x.nodes.ndim]
    if wide and any(isinstance(x, Symbol) and x is not wide[0] for x in index):
        raise _refused("[]", wide, "index with one symbolic tensor that has axes at a time")
    if wide:
        return _gathered(at, owner, index, wide[0])
    return _element(table, owner, index)


def _spelled_out(owner: torch.Tensor, index: tuple[Any, ...]) -> tuple[Any, ...]:
    """One entry for each axis, None aside."""
    used = sum(x is not None and x is not Ellipsis for x in index)
    if any(isinstance(x, torch.Tensor) and not isinstance(x, Symbol) and x.ndim for x in index):
        raise _refused("[]", (), "a tensor is indexed by symbols and a tensor at once")
    gap = (slice(None),) * (owner.ndim - used)
    if any(x is Ellipsis for x in index):
        k = next(k for k, x in enumerate(index) if x is Ellipsis)
        return (*index[:k], *gap, *index[k + 1 :])
    return (*index, *gap)


def _element(table: Captured, owner: torch.Tensor, index: tuple[Any, ...]) -> Symbol:
    """Symbols at some axes, numbers and slices at the others."""
    fixed = tuple(x for x in index if not isinstance(x, Symbol))
    axes = [x for x in index if x is not None]
    if len(axes) != owner.ndim:
        raise PatternError(f"{table.name} has {owner.ndim} axes and is indexed by {len(axes)}")
    rest = [size for size, x in zip(owner.shape, axes) if not isinstance(x, Symbol)]
    if int(np.prod([1, *rest])) > 2**24:
        raise _refused("[]", (), f"{table.name} is read row by row; index all of its axes")
    order = torch.arange(int(np.prod([1, *rest]))).reshape(rest)[fixed]
    if order.numel() > 4096:
        raise PatternError(
            f"{table.name} of shape {list(owner.shape)} is read {order.numel()} elements at a "
            "time; index all of its axes"
        )
    made = np.empty(tuple(order.shape), dtype=object)
    for place in np.ndindex(made.shape):
        where = iter(np.unravel_index(int(order[place]), rest) if rest else ())
        full = tuple(
            x.nodes[()] if isinstance(x, Symbol) else Const(int(next(where))) for x in axes
        )
        made[place] = lookup(table, full)
    return Symbol.of(made, owner.dtype)


def _gathered(at: Trace, owner: torch.Tensor, index: tuple[Any, ...], wide: Symbol) -> Symbol:
    """A tensor indexed by a symbolic tensor with axes: element by element, stacked in front."""
    rows = []
    for node in wide.nodes.reshape(-1):
        one = Symbol.of(cell(node), wide.like)
        rows.append(_getitem(at, owner, tuple(one if x is wide else x for x in index)).nodes)
    if index[0] is not wide:
        raise _refused("[]", (wide,), "a symbolic tensor with axes comes as the first index")
    stacked = np.empty((len(rows), *rows[0].shape), dtype=object)
    for k, row in enumerate(rows):
        stacked[k] = row
    return Symbol.of(stacked.reshape(*wide.nodes.shape, *rows[0].shape), owner.dtype)


def _isin(at: Trace, x: Any, listed: Any, *, invert: bool = False, **_: Any) -> Symbol:
    """Membership in a list."""
    if not isinstance(x, Symbol) or isinstance(listed, Symbol):
        raise _refused("isin", (x,), "the first argument is an index, the second a tensor")
    table = at.captured(_tensor(listed))
    made = np.empty(x.nodes.shape, dtype=object)
    for place in np.ndindex(made.shape):
        node = call("isin", x.nodes[place], dtype=x.like, table=table)
        made[place] = call("~", node, dtype=torch.bool) if invert else node
    return Symbol.of(made, torch.bool)


def _bucket(at: Trace, x: Any, bounds: Any, *, right: bool = False, **more: Any) -> Symbol:
    """The number of bounds at or below an index."""
    if not isinstance(x, Symbol) or isinstance(bounds, Symbol) or more.get("sorter") is not None:
        raise _refused("bucketize", (x,), "an index is looked up in a sorted tensor")
    right = right or more.get("side") == "right"
    table = at.captured(bounds)
    dtype = torch.int32 if more.get("out_int32") else torch.int64
    made = np.empty(x.nodes.shape, dtype=object)
    for place in np.ndindex(made.shape):
        op = "bucketize right" if right else "bucketize"
        made[place] = call(op, x.nodes[place], dtype=x.like, table=table)
    return Symbol.of(made, dtype)


def _stack(at: Trace, parts: Any, dim: int = 0) -> Symbol:
    listed = [nodes_of(x) for x in parts]
    shown = torch.stack([torch.as_tensor(x[1]) for x in listed], dim)
    return Symbol.of(np.stack([x[0] for x in listed], axis=dim), shown.dtype)


def _cat(at: Trace, parts: Any, dim: int = 0) -> Symbol:
    listed = [nodes_of(x) for x in parts]
    shown = torch.cat([x[1] for x in listed], dim)
    return Symbol.of(np.concatenate([x[0] for x in listed], axis=dim), shown.dtype)


def _unbind(at: Trace, x: Symbol, dim: int = 0) -> tuple[Symbol, ...]:
    return tuple(
        Symbol.of(row if isinstance(row, np.ndarray) else cell(row), x.like)
        for row in np.moveaxis(x.nodes, dim, 0)
    )


def _size(at: Trace, x: Symbol, dim: int | None = None) -> Any:
    shape = torch.Size(x.nodes.shape)
    return shape if dim is None else shape[dim]


_SPECIAL: dict[str, Callable[..., Any]] = {
    "isin": _isin,
    "bucketize": _bucket,
    "searchsorted": lambda at, bounds, x, **more: _bucket(at, x, bounds, **more),
    "take": lambda at, owner, x: _getitem(at, owner.reshape(-1), x),
    "index_select": lambda at, owner, dim, x: _getitem(at, owner, (slice(None),) * dim + (x,)),
    "stack": _stack,
    "cat": _cat,
    "unbind": _unbind,
    "iter": lambda at, x: iter(_unbind(at, x)),
    "len": lambda at, x: len(x.nodes),
    "dim": lambda at, x: x.nodes.ndim,
    "size": _size,
    "numel": lambda at, x: x.nodes.size,
    "equal": lambda at, a, b: _refuse_number("__bool__", a if isinstance(a, Symbol) else b),
    "is_floating_point": lambda at, x: x.like.is_floating_point,
}
