"""Integer expressions as sums: a_1 t_1 + ... + a_k t_k + c, every term an index or no sum itself.

`tidy` first writes a node with few operations: shifts and bit masks become `//` and `%`, casts
between integers go, and what its bounds decide is decided.  Both keep the value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from patterncc.integrations.maskmod.nodes import (
    Call,
    Const,
    Lookup,
    Node,
    call,
    is_bool,
    is_int,
    lookup,
)
from patterncc.integrations.maskmod.ranges import bounds

INT = torch.int64
_ARITHMETIC = ("+", "-", "*", "neg", "//", "%", "abs", "min", "max", "where", "<=", "<", "==")


@dataclass(frozen=True)
class Linear:
    """A sum of terms with integer coefficients, none of them 0, and a constant."""

    terms: tuple[tuple[Node, int], ...]
    constant: int

    @staticmethod
    def of(terms: Mapping[Node, int], constant: int) -> Linear:
        """The sum without the terms that vanish."""
        return Linear(tuple((x, a) for x, a in terms.items() if a), constant)

    def __add__(self, other: Linear) -> Linear:
        total = dict(self.terms)
        for x, a in other.terms:
            total[x] = total.get(x, 0) + a
        return Linear.of(total, self.constant + other.constant)

    def times(self, factor: int) -> Linear:
        """Every coefficient and the constant times an integer."""
        return Linear.of({x: a * factor for x, a in self.terms}, self.constant * factor)

    def __sub__(self, other: Linear) -> Linear:
        return self + other.times(-1)

    def replaced(self, term: Node, by: Linear) -> Linear:
        """The sum with one term written as another sum."""
        rest = dict(self.terms)
        factor = rest.pop(term)
        return Linear.of(rest, self.constant) + by.times(factor)

    def node(self) -> Node:
        """The sum as an expression, constant last."""
        made: Node | None = None
        for x, a in sorted(self.terms, key=lambda t: t[1] < 0):
            part = x if abs(a) == 1 else call("*", Const(abs(a)), x, dtype=INT)
            if made is None:
                made = part if a > 0 else call("neg", part, dtype=INT)
            else:
                made = call("+" if a > 0 else "-", made, part, dtype=INT)
        if made is None:
            return Const(self.constant)
        if self.constant:
            sign = "+" if self.constant > 0 else "-"
            made = call(sign, made, Const(abs(self.constant)), dtype=INT)
        return made


def linear(node: Node) -> Linear:
    """An integer node as a sum.

    >>> from patterncc.integrations.maskmod.nodes import Var, text
    >>> q, k = Var("q_idx"), Var("kv_idx")
    >>> twice = call("-", q, call("-", k, q, dtype=INT), dtype=INT)
    >>> text(linear(twice).node())
    '(2 * q_idx) - kv_idx'
    """
    match node:
        case Const(value):
            return Linear((), int(value))
        case Call("+", (a, b)):
            return linear(a) + linear(b)
        case Call("-", (a, b)):
            return linear(a) - linear(b)
        case Call("neg", (a,)):
            return linear(a).times(-1)
        case Call("*", (a, Const(int(c)))) | Call("*", (Const(int(c)), a)):
            return linear(a).times(int(c))
        case _:
            return Linear(((node, 1),), 0)


def reduced(form: Linear, op: str) -> Linear | bool:
    """`form op 0` with coefficients that have no common factor, or its truth.

    >>> from patterncc.integrations.maskmod.nodes import Var
    >>> q = Var("q_idx")
    >>> reduced(Linear(((q, 4),), -7), "<=").constant, reduced(Linear(((q, 4),), -7), "==")
    (-1, False)
    """
    if not form.terms:
        return form.constant <= 0 if op == "<=" else form.constant == 0
    factor = math.gcd(*(a for _, a in form.terms))
    if op == "==" and form.constant % factor:
        return False
    terms = tuple((x, a // factor) for x, a in form.terms)
    return Linear(terms, -(-form.constant // factor))


def tidy(node: Node) -> Node:
    """The same value with fewer kinds of operations."""
    made: dict[int, Node] = {}

    def new(x: Node) -> Node:
        if id(x) not in made:
            match x:
                case Lookup(table, index):
                    made[id(x)] = lookup(table, tuple(map(new, index)))
                case Call(op, args, dtype, table):
                    made[id(x)] = _tidy_call(op, tuple(map(new, args)), dtype, table)
                case _:
                    made[id(x)] = x
        return made[id(x)]

    return new(node)


def _tidy_call(op: str, args: tuple[Node, ...], dtype: torch.dtype, table: object) -> Node:
    """One operation on tidy nodes."""
    values = args[1:] if op == "where" else args
    whole = all(map(is_int, values)) and not dtype.is_floating_point and dtype != torch.bool
    if whole and op in _ARITHMETIC:
        dtype = INT
    match op, args:
        case ("cast", (x,)) if whole:
            return x
        case (">>", (x, Const(int(k)))) if whole and 0 <= k < 62:
            return _divided(x, 1 << k)
        case ("<<", (x, Const(int(k)))) if whole and 0 <= k < 62:
            return call("*", x, Const(1 << k), dtype=INT)
        case ("bits&", (x, Const(int(m)))) if whole and m > 0 and not m & (m + 1):
            return _remainder(x, m + 1)
        case ("bits&", (Const(int(m)), x)) if whole and m > 0 and not m & (m + 1):
            return _remainder(x, m + 1)
        case ("//" | "floor_divide", (x, Const(int(c)))) if whole and c > 0:
            return _divided(x, c)
        case ("trunc_divide", (x, Const(int(c)))) if whole and c > 0 and bounds(x)[0] >= 0:
            return _divided(x, c)
        case ("%" | "remainder", (x, Const(int(c)))) if whole and c > 0:
            return _remainder(x, c)
        case ("fmod", (x, Const(int(c)))) if whole and c > 0 and bounds(x)[0] >= 0:
            return _remainder(x, c)
        case ("abs", (x,)) if whole:
            return x if bounds(x)[0] >= 0 else call("abs", x, dtype=INT)
        case ("min" | "max", (a, b)) if whole:
            return _extreme(op, a, b)
        case ("where", (Const(test), a, b)):
            return (a if test else b) if whole else call(op, *args, dtype=dtype)
        case ("&" | "|", (a, b)):
            return _joined(op, a, b)
        case ("~", (Call("~", (x,)),)) if is_bool(x):
            return x
        case _:
            return call(op, *args, dtype=dtype, table=table)  # type: ignore[arg-type]


def _joined(op: str, a: Node, b: Node) -> Node:
    """`and`, `or` without what is decided."""
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Const):
            neutral = bool(x.value) == (op == "&")
            return y if neutral else Const(bool(x.value))
    return a if a == b else call(op, a, b, dtype=torch.bool)


def _divided(x: Node, c: int) -> Node:
    low, high = bounds(x)
    if low // c == high // c:
        return Const(low // c)
    match x:
        case _ if c == 1:
            return x
        case Call("//", (y, Const(int(d)))) if d > 0:
            return _divided(y, c * d)
        case _:
            return call("//", x, Const(c), dtype=INT)


def _remainder(x: Node, c: int) -> Node:
    low, high = bounds(x)
    if low >= 0 and high < c:
        return x
    match x:
        case _ if c == 1:
            return Const(0)
        case Call("%", (y, Const(int(d)))) if d > 0 and d % c == 0:
            return _remainder(y, c)
        case _:
            return call("%", x, Const(c), dtype=INT)


def _extreme(op: str, a: Node, b: Node) -> Node:
    (a0, a1), (b0, b1) = bounds(a), bounds(b)
    if a1 <= b0:
        return a if op == "min" else b
    if b1 <= a0:
        return b if op == "min" else a
    return call(op, a, b, dtype=INT)


def split(form: Linear, term: Node, op: str) -> Node | None:
    """`form op 0` (<= or ==) without a minimum, maximum, absolute value or `where` term, by cases.

    None if the term is none of these.  |x| is max(x, -x).
    """
    factor = dict(form.terms)[term]

    def holds(by: Linear) -> Node:
        return call(op, form.replaced(term, by).node(), Const(0), dtype=INT)

    def at_most(a: Linear, b: Linear) -> Node:
        return call("<=", (a - b).node(), Const(0), dtype=INT)

    def both(a: Node, b: Node) -> Node:
        return _joined("&", a, b)

    match term:
        case Call("where", (test, a, b)):
            yes, no = holds(linear(a)), holds(linear(b))
            not_so = call("~", test, dtype=torch.bool)
            return _joined("|", both(test, yes), both(not_so, no))
        case Call("abs", (x,)):
            kind, first, second = "max", linear(x), linear(x).times(-1)
        case Call("min" | "max" as kind, (x, y)):
            first, second = linear(x), linear(y)
        case _:
            return None
    if op == "<=":  # the larger is at most r: both are; the smaller is at most r: one is
        every = (kind == "max") == (factor > 0)
        return _joined("&" if every else "|", holds(first), holds(second))
    one, other = at_most(second, first), at_most(first, second)  # that the first is the larger
    if kind == "min":
        one, other = other, one
    return _joined("|", both(one, holds(first)), both(other, holds(second)))


def is_case(node: Node) -> bool:
    """Whether `split` has an answer for a term."""
    return isinstance(node, Call) and node.op in ("where", "abs", "min", "max")
