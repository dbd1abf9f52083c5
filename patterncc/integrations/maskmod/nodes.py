"""Expressions of a mask function: what it computes from q_idx, kv_idx, b and h, as a tree.

A node is an index, a constant, an operation on nodes, or an element of a tensor that the function
holds.  Operations keep the dtype that torch computes them in, so that `evaluate` repeats the very
arithmetic of the function, on a whole range of positions at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from patterncc.errors import PatternError, PatternValueError

MOST_OPERATIONS = 50_000  # in one expression, written out
_SHOWN = 160  # characters of an expression in a message

Number = int | float | bool


@dataclass(frozen=True)
class Var:
    """An index of the score: b, h, q_idx or kv_idx."""

    name: str
    size: int = 1


@dataclass(frozen=True)
class Const:
    """A number; a truth value is never equal to an integer."""

    value: Number
    kind: type = field(init=False)
    size: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", type(self.value))


@dataclass(frozen=True)
class Captured:
    """A tensor that the function holds, compared by content; `name` is for messages."""

    values: torch.Tensor = field(compare=False, repr=False)
    name: str = field(compare=False)
    digest: str

    @staticmethod
    def of(values: torch.Tensor, name: str) -> Captured:
        """A copy on the CPU with its digest."""
        kept = values.detach().to("cpu").contiguous().clone()
        if kept.dtype in (torch.bfloat16, torch.float16):
            kept = kept.to(torch.float32)  # exact
        digest = hashlib.blake2b(kept.numpy().tobytes(), digest_size=16)
        digest.update(f"{kept.dtype} {tuple(kept.shape)}".encode())
        return Captured(kept, name, digest.hexdigest())


@dataclass(frozen=True)
class Lookup:
    """An element of a captured tensor."""

    table: Captured
    index: tuple[Node, ...]

    @cached_property
    def size(self) -> int:
        """Operations, written out."""
        return 1 + sum(x.size for x in self.index)


@dataclass(frozen=True)
class Call:
    """An operation on elements, computed in `dtype`; `table` is a list it compares with."""

    op: str
    args: tuple[Node, ...]
    dtype: torch.dtype
    table: Captured | None = None

    @cached_property
    def size(self) -> int:
        """Operations, written out."""
        return 1 + sum(x.size for x in self.args)

    @cached_property
    def _hash(self) -> int:
        return hash((self.op, self.args, self.dtype, self.table))

    def __hash__(self) -> int:
        return self._hash


Node = Var | Const | Lookup | Call

_MATH: dict[str, Callable[..., torch.Tensor]] = {
    name: getattr(torch, name)
    for name in (
        *("floor", "ceil", "round", "trunc", "sqrt", "rsqrt", "exp", "exp2", "log", "log2"),
        *("log10", "sin", "cos", "tan", "tanh", "sigmoid", "square", "sign", "fmod", "pow"),
        *("log1p", "expm1", "frac", "reciprocal", "floor_divide", "remainder", "true_divide"),
    )
}

OPS: dict[str, Callable[..., torch.Tensor]] = {
    **_MATH,
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "//": torch.floor_divide,
    "%": torch.remainder,
    "/": torch.true_divide,
    "trunc_divide": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "neg": torch.neg,
    "abs": torch.abs,
    "min": torch.minimum,
    "max": torch.maximum,
    "<<": torch.bitwise_left_shift,
    ">>": torch.bitwise_right_shift,
    "bits&": torch.bitwise_and,
    "bits|": torch.bitwise_or,
    "bits^": torch.bitwise_xor,
    "bits~": torch.bitwise_not,
    "<=": torch.le,
    "<": torch.lt,
    "==": torch.eq,
    "&": torch.logical_and,
    "|": torch.logical_or,
    "~": torch.logical_not,
    "cast": lambda x: x,
    "isnan": torch.isnan,
}
"""Operations on elements, by the name that nodes carry."""

LOGIC = ("&", "|", "~", "<=", "<", "==", "isin", "isnan")  # these give truth values
_INFIX = {"bits&": "&", "bits|": "|", "bits^": "^"}
_ORDER = ("|", "&", "<=", "<", ">=", ">", "==", "+", "-", "*", "//", "%", "/", "<<", ">>")


def is_bool(node: Node) -> bool:
    """A truth value."""
    match node:
        case Var():
            return False
        case Const(value):
            return isinstance(value, bool)
        case Lookup(table):
            return table.values.dtype == torch.bool
        case Call(op, _, dtype):
            return op in LOGIC or dtype == torch.bool


def is_int(node: Node) -> bool:
    """An integer."""
    match node:
        case Var():
            return True
        case Const(value):
            return isinstance(value, int) and not isinstance(value, bool)
        case Lookup(table):
            return not (table.values.dtype.is_floating_point or is_bool(node))
        case Call(_, _, dtype):
            return not (dtype.is_floating_point or is_bool(node))


def children(node: Node) -> tuple[Node, ...]:
    """The nodes that a node is made of."""
    match node:
        case Lookup(_, index):
            return index
        case Call(_, args):
            return args
        case _:
            return ()


def walk(node: Node) -> Iterator[Node]:
    """Every node of a tree, each once, the root first."""
    seen: set[int] = set()
    stack = [node]
    while stack:
        top = stack.pop()
        if id(top) not in seen:
            seen.add(id(top))
            yield top
            stack.extend(reversed(children(top)))


def variables(node: Node) -> frozenset[str]:
    """The indices that a node depends on."""
    return frozenset(x.name for x in walk(node) if isinstance(x, Var))


def call(op: str, *args: Node, dtype: torch.dtype, table: Captured | None = None) -> Node:
    """An operation; of constants alone, its value."""
    node = Call(op, args, dtype, table)
    if node.size > MOST_OPERATIONS:
        raise PatternError(
            f"an expression grows past {MOST_OPERATIONS} operations: `{text(node)}`; "
            "compute what does not depend on the indices outside the mask function"
        )
    if all(isinstance(x, Const) for x in args):
        return Const(evaluate(node, {}).item())
    return node


def lookup(table: Captured, index: tuple[Node, ...]) -> Node:
    """An element of a tensor; at a constant place, its value."""
    node = Lookup(table, index)
    if all(isinstance(x, Const) for x in index):
        return Const(evaluate(node, {}).item())
    return node


def rebuilt(node: Node, given: Mapping[Node, Node]) -> Node:
    """The tree with some nodes replaced, constants folded."""
    made: dict[int, Node] = {}

    def new(x: Node) -> Node:
        if id(x) in made:
            return made[id(x)]
        fresh: Node
        if x in given:
            fresh = given[x]
        else:
            match x:
                case Lookup(table, index):
                    fresh = lookup(table, tuple(map(new, index)))
                case Call(op, args, dtype, table):
                    fresh = call(op, *map(new, args), dtype=dtype, table=table)
                case _:
                    fresh = x
        made[id(x)] = fresh
        return fresh

    return new(node)


def evaluate(node: Node, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The value of a node for tensors of indices, by torch's own arithmetic.

    Raises PatternValueError where a tensor is read outside its bounds.
    """
    made: dict[int, torch.Tensor] = {}

    def value(x: Node) -> torch.Tensor:
        if id(x) not in made:
            made[id(x)] = _value(x, given, value)
        return made[id(x)]

    return value(node)


def _value(
    x: Node, given: Mapping[str, torch.Tensor], value: Callable[[Node], torch.Tensor]
) -> torch.Tensor:
    match x:
        case Var(name):
            return given[name]
        case Const(number):
            return torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else None)
        case Lookup(table, index):
            places = tuple(value(k).to(torch.int64) for k in index)
            for k, place, size in zip(index, places, table.values.shape):
                _within(x, k, place, size)
            found: torch.Tensor = table.values[places]
            return found
        case Call(op, args, dtype, listed):
            if op == "where":
                test, a, b = map(value, args)
                return torch.where(test, a.to(dtype), b.to(dtype))
            values = [value(a).to(dtype) for a in args]
            if listed is None:
                return OPS[op](*values)
            if op == "isin":
                return torch.isin(values[0], listed.values)
            return torch.bucketize(values[0], listed.values, right=op.endswith("right"))


def _within(x: Lookup, index: Node, place: torch.Tensor, size: int) -> None:
    if not place.numel():
        return
    low, high = int(place.min()), int(place.max())
    if low < -size or high >= size:
        wrong = high if high >= size else low
        at = f"{text(index)} = {wrong}" if not isinstance(index, Const) else str(wrong)
        remedy = "n= and n_k=" if not isinstance(index, Const) else "heads= or batch="
        raise PatternValueError(
            f"`{text(x)}` is read at {at}, and {x.table.name} has {size} elements there; "
            f"give {remedy} that it covers"
        )


def text(node: Node, most: int = _SHOWN) -> str:
    """A node as Python writes it, a long one cut.

    >>> q = Var("q_idx")
    >>> text(call("<=", call("%", q, Const(4), dtype=torch.int64), Const(2), dtype=torch.int64))
    '(q_idx % 4) <= 2'
    """
    whole = _text(node, 0, 40)
    return whole if len(whole) <= most else f"{whole[: most - 4]} ..."


def _text(node: Node, level: int, depth: int) -> str:
    if depth == 0:
        return "..."
    match node:
        case Var(name):
            return name
        case Const(value):
            return str(value)
        case Lookup(table, index):
            return f"{table.name}[{', '.join(_text(x, 0, depth - 1) for x in index)}]"
        case Call("cast", (x,), dtype):
            return f"{_text(x, 1, depth - 1)}.to({dtype})"
        case Call("~" | "neg" | "bits~" as op, (x,)):
            sign = "-" if op == "neg" else "~"
            return f"{sign}{_text(x, 1, depth - 1)}"
        case Call("<=" | "<" as op, (a, b)) if _later(a, b):
            return _text(Call({"<=": ">=", "<": ">"}[op], (b, a), node.dtype), level, depth)
        case Call(op, args, _, table) if len(args) == 2 and (op in _ORDER or op in _INFIX):
            shown = f" {_INFIX.get(op, op)} ".join(_text(x, 1, depth - 1) for x in args)
            return f"({shown})" if level else shown
        case Call(op, args, _, table):
            names = {"min": "minimum", "max": "maximum"}
            listed = [_text(x, 0, depth - 1) for x in args] + ([table.name] if table else [])
            return f"{names.get(op, op)}({', '.join(listed)})"


def _later(a: Node, b: Node) -> bool:
    """Whether people would write b > a for a < b: the query before the key before a number."""
    order = ("q_idx", "kv_idx", "h", "b")
    place = [min([order.index(v) for v in variables(x)], default=len(order)) for x in (a, b)]
    return place[1] < place[0]
