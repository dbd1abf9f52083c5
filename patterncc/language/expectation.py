"""`expect` lines: comparisons between measures of a stack and numbers, read here, proved later.

A measure is a call such as ``density(n=4096)``; the numbers beside it are arithmetic on parameters,
fractions allowed and exact; ``never`` is the depth of a stack that is never full, larger than
every integer.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, replace
from fractions import Fraction

from patterncc.errors import Diagnostic, PatternError, Span, suggest
from patterncc.language.expression import evaluate
from patterncc.language.source import Scalar
from patterncc.language.syntax import Parsed, parse
from patterncc.language.values import BAD, Bad, Scope, Value
from patterncc.pattern import Pattern, check_int

NEVER = math.inf  # the depth of a stack whose reach stops short of full
MAX_DEPTH = 10_000  # layers

MEASURES: dict[str, tuple[str, ...]] = {
    "depth_to_full": ("n",),
    "density": ("n",),
    "tile_density": ("n", "block"),
    "reach": ("n", "depth"),
    "edges": ("n",),
}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    **{ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
}


@dataclass(frozen=True)
class Measure:
    """A figure of the stack that is to be computed, and for which sizes."""

    name: str
    arguments: tuple[tuple[str, int | tuple[int, int]], ...]

    def __str__(self) -> str:
        shown = [f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in self.arguments]
        return f"{self.name}({', '.join(shown)})"


Term = Measure | int | Fraction | float  # the float is NEVER


@dataclass(frozen=True)
class Expect:
    """Terms with a comparison between each and the next, all of which must hold."""

    text: str
    span: Span
    terms: tuple[Term, ...]
    comparisons: tuple[str, ...]


def parse_expect(scalar: Scalar, scope: Scope, problems: list[Diagnostic]) -> Expect | None:
    """The expectation that a line writes, or None with its mistakes added to `problems`.

    >>> from patterncc.language.source import plain
    >>> e = parse_expect(plain("1 < depth_to_full(n=4096) <= 2 * 6", "a.yaml"), Scope(), [])
    >>> [str(t) for t in e.terms], e.comparisons
    (['1', 'depth_to_full(n=4096)', '12'], ('<', '<='))
    """
    parsed = parse(scalar, problems)
    if parsed is None:
        return None
    tree = parsed.tree
    if not isinstance(tree, ast.Compare):
        what = "an expectation compares a measure with a number"
        remedy = "for example density(n=4096) < 0.25"
        problems.append(Diagnostic(what, parsed.span(tree), remedy))
        return None
    terms = [_term(parsed, side, scope, problems) for side in (tree.left, *tree.comparators)]
    signs = [_comparison(parsed, tree, place, problems) for place in range(len(tree.ops))]
    good = tuple(t for t in terms if not isinstance(t, Bad))
    if len(good) < len(terms) or not all(signs):
        return None
    if not any(isinstance(t, Measure) for t in good):
        known = ", ".join(sorted(MEASURES))
        problems.append(Diagnostic("nothing is measured", parsed.span(tree), f"known: {known}"))
        return None
    return Expect(parsed.line, parsed.span(tree), good, tuple(signs))


def _comparison(parsed: Parsed, tree: ast.Compare, place: int, problems: list[Diagnostic]) -> str:
    sign = _COMPARISONS.get(type(tree.ops[place]), "")
    if not sign:
        span = parsed.span(tree.comparators[place])
        remedy = "write ==, !=, <, <=, > or >="
        problems.append(Diagnostic("not a comparison of numbers", span, remedy))
    return sign


def _term(parsed: Parsed, node: ast.expr, scope: Scope, problems: list[Diagnostic]) -> Term | Bad:
    match node:
        case ast.Name(id="never"):
            return NEVER
        case ast.Call(func=ast.Name(id=name)) if name in MEASURES:
            return _measure(parsed, node, name, scope, problems)
        case ast.Call(func=ast.Name(id=name)) if name not in ("min", "max"):
            what = f"unknown measure '{name}'"
            problems.append(Diagnostic(what, parsed.span(node.func), suggest(name, MEASURES)))
            return BAD
        case ast.Name(id=name) if name in MEASURES and name not in scope.names:
            what = f"'{name}' is a measure and is called"
            problems.append(Diagnostic(what, parsed.span(node), f"write {_usage(name)}"))
            return BAD
        case _:
            value = _evaluated(parsed, node, scope, problems)
            if isinstance(value, bool | str | None | tuple | range | Pattern):
                what = "a number is needed here"
                problems.append(Diagnostic(what, parsed.span(node)))
                return BAD
            return value


def _measure(
    parsed: Parsed, node: ast.Call, name: str, scope: Scope, problems: list[Diagnostic]
) -> Measure | Bad:
    """A call of a measure, every argument given by name and checked."""
    before = len(problems)
    usage = f"write {_usage(name)}"
    if node.args:
        problems.append(Diagnostic(f"{name}: name its arguments", parsed.span(node.args[0]), usage))
    found: dict[str, int | tuple[int, int]] = {}
    for keyword in node.keywords:
        key, span = keyword.arg or "**", parsed.span(keyword.value)
        if key not in MEASURES[name]:
            problems.append(Diagnostic(f"{name}: no argument '{key}'", parsed.span(keyword), usage))
            continue
        value = _evaluated(parsed, keyword.value, scope, problems)
        try:
            if not isinstance(value, Bad):
                found[key] = _size(name, key, value)
        except PatternError as error:
            problems.append(Diagnostic(str(error), span, usage))
    missing = [f"'{key}'" for key in MEASURES[name] if key not in found]
    if missing and len(problems) == before:
        what = f"{name}: argument{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing"
        problems.append(Diagnostic(what, parsed.span(node), usage))
    if len(problems) > before:
        return BAD
    return Measure(name, tuple((key, found[key]) for key in MEASURES[name]))


def _size(name: str, key: str, value: Value) -> int | tuple[int, int]:
    if key == "block" and isinstance(value, tuple) and len(value) == 2:
        return check_int(name, key, value[0], 1), check_int(name, key, value[1], 1)
    least = 0 if key == "depth" else 1
    return check_int(name, key, value, least, MAX_DEPTH if key == "depth" else 2**40)


def _evaluated(
    parsed: Parsed, node: ast.expr, scope: Scope, problems: list[Diagnostic]
) -> Value | Bad:
    """A part of the line, with fractions allowed."""
    part = Parsed(parsed.scalar, node, parsed.shift, parsed.line)
    return evaluate(part, replace(scope, fractions=True), problems).value


def _usage(name: str) -> str:
    shown = {"n": "n=4096", "block": "block=64", "depth": "depth=2"}
    return f"{name}({', '.join(shown[key] for key in MEASURES[name])})"
