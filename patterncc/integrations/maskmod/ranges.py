"""Bounds of integer expressions, so that arithmetic in narrow dtypes is known not to wrap around.

Positions stay below 2**31, and torch computes with them in 64 bits; what is held in a narrower
tensor, or cast to one, can pass the end of its dtype.
"""

from __future__ import annotations

import torch

from patterncc.errors import PatternError
from patterncc.integrations.maskmod.nodes import Call, Const, Lookup, Node, Var, is_int, text

_FAR = 2**31 - 1  # the last position: layouts are shorter


def bounds(node: Node) -> tuple[int, int]:
    """The least and the largest value that an integer node could have, never too narrow.

    >>> q = Var("q_idx")
    >>> bounds(Call("%", (q, Const(8)), torch.int64))
    (0, 7)
    """
    match node:
        case Var():
            return 0, _FAR
        case Const(value):
            return int(value), int(value)
        case Lookup(table):
            values = table.values
            return (int(values.min()), int(values.max())) if values.numel() else (0, 0)
        case Call(op, args, dtype):
            held = (
                torch.iinfo(dtype) if not dtype.is_floating_point and dtype != torch.bool else None
            )
            whole = (held.min, held.max) if held else (-(2**63), 2**63)
            if not all(is_int(x) for x in (args[1:] if op == "where" else args)):
                return whole
            known = _bounds(op, [bounds(x) for x in (args[1:] if op == "where" else args)])
            return known if known is not None else whole


def _bounds(op: str, given: list[tuple[int, int]]) -> tuple[int, int] | None:
    a = given[0]
    b = given[1] if len(given) > 1 else (0, 0)
    match op:
        case "+":
            return a[0] + b[0], a[1] + b[1]
        case "-":
            return a[0] - b[1], a[1] - b[0]
        case "*":
            corners = [x * y for x in a for y in b]
            return min(corners), max(corners)
        case "neg":
            return -a[1], -a[0]
        case "abs":
            return 0, max(abs(a[0]), abs(a[1]))
        case "//" if b[0] > 0:
            corners = [x // y for x in a for y in b]
            return min(corners), max(corners)
        case "%" if b[0] > 0:
            return 0, b[1] - 1
        case "min":
            return min(a[0], b[0]), min(a[1], b[1])
        case "max":
            return max(a[0], b[0]), max(a[1], b[1])
        case "where":
            return min(a[0], b[0]), max(a[1], b[1])
        case "cast":
            return a
        case "bits&" if min(a[0], b[0]) >= 0:
            return 0, min(a[1], b[1])
        case "<<" if a[0] >= 0 and b[0] >= 0 and b[1] < 62:
            return 0, a[1] << b[1]
        case ">>" if b[0] >= 0:
            return min(a[0], a[0] >> b[0]), max(a[1], a[1] >> b[0])
        case "bits|" | "bits^" | "bits&":  # no more bits than either has
            most = max(x.bit_length() for x in (*a, *b))
            return -(1 << most) if min(a[0], b[0]) < 0 else 0, (1 << most) - 1
        case "bits~":
            return -a[1] - 1, -a[0] - 1
        case "fmod" if b[0] > 0:
            return 1 - b[1] if a[0] < 0 else 0, b[1] - 1
        case "sign":
            return -1, 1
        case _:
            return None


def check_range(node: Node) -> Node:
    """The node, or a PatternError if its dtype is too narrow for all that it could be."""
    if not isinstance(node, Call) or node.dtype.is_floating_point or node.dtype == torch.bool:
        return node
    whole = torch.iinfo(node.dtype)
    if not all(is_int(x) for x in node.args):
        return node
    known = _bounds(node.op, [bounds(x) for x in node.args[1 if node.op == "where" else 0 :]])
    if known is None or (whole.min <= known[0] and known[1] <= whole.max):
        return node
    raise PatternError(
        f"`{text(node)}` is computed in {node.dtype} and could reach "
        f"{known[1] if known[1] > whole.max else known[0]}, which wraps around; "
        "hold the tensor in torch.int64, or index with q_idx and kv_idx as they come"
    )
