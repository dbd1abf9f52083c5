"""Expressions of pattern files: Python's grammar, walked by an evaluator of its own, never `eval`.

A value is an integer, a truth value, None, a text, a list of integers (a tuple, or a `range`, which
costs nothing however long) or a Pattern.  Every mistake is noted with its place and the walk goes
on, so that one reading reports all of them.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction

from patterncc.errors import Diagnostic, PatternError, PatternSyntaxError, Span, suggest
from patterncc.language.refusals import LANGUAGE, refusal
from patterncc.language.source import plain
from patterncc.language.syntax import MAX_NESTING, Parsed, parse
from patterncc.language.values import (
    BAD,
    FUNCTIONS,
    MAX_ELEMENTS,
    MAX_FILE_TERMS,
    MAX_LIST,
    MAX_NOTED,
    MAX_TERMS,
    Bad,
    Named,
    Refused,
    Scope,
    Value,
    arithmetic,
    bounded,
    concatenated,
    described,
    is_number,
    signature,
)
from patterncc.pattern import Pattern
from patterncc.primitives import PRIMITIVES

MAX_SUGGESTED = 1000  # names among which the nearest is sought

_OPERATORS: dict[type[ast.operator], str] = {
    **{ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**"},
    **{ast.BitOr: "|", ast.BitAnd: "&", ast.Div: "/", ast.BitXor: "^", ast.MatMult: "@"},
    **{ast.LShift: "<<", ast.RShift: ">>"},
}
_REMEDIES = {
    "/": "write '//', which drops the remainder",
    "^": "for the edges of exactly one side write (a | b) - (a & b)",
    "@": "layers compose by themselves; list them under 'layers'",
    "<<": "write * 2**k",
    ">>": "write // 2**k",
}


def parse_expression(
    text: str, *, file: str = "<expression>", names: Mapping[str, Pattern | int] | None = None
) -> Pattern:
    """The pattern that an expression of the pattern language writes.

    >>> parse_expression("causal() & (window(w - 1) | sink(4))", names={"w": 512})
    causal() & (window(511) | sink(4))

    Raises PatternSyntaxError with every mistake of the text and its place.
    """
    problems: list[Diagnostic] = []
    scope = Scope({name: Named(value) for name, value in (names or {}).items()})
    parsed = parse(plain(text, file), problems)
    named = evaluate_edges(parsed, scope, problems) if parsed else Named(BAD)
    if problems:
        raise PatternSyntaxError(problems)
    assert isinstance(named.value, Pattern)
    return named.value


def evaluate(parsed: Parsed, scope: Scope, problems: list[Diagnostic]) -> Named:
    """The value of an expression, BAD with its mistakes added to `problems`."""
    walk = _Walk(parsed, scope, problems)
    value = walk.value(parsed.tree, 1)
    return Named(value, walk.terms, walk.depth)


def evaluate_edges(parsed: Parsed, scope: Scope, problems: list[Diagnostic]) -> Named:
    """The same for an expression that must be an edge set."""
    named = evaluate(parsed, scope, problems)
    if isinstance(named.value, Pattern | Bad):
        return named
    what = f"an edge set is needed here, not {described(named.value)}"
    problems.append(
        Diagnostic(what, parsed.span(parsed.tree), "for example causal() & window(511)")
    )
    return Named(BAD)


_BOUND = ("documents", "clusters", "spans")  # primitives that take the name of data


@dataclass
class _Walk:
    """One walk over one expression."""

    parsed: Parsed
    scope: Scope
    problems: list[Diagnostic]
    terms: int = 0
    depth: int = 0
    called: str = ""  # the primitive whose arguments are walked

    def note(self, what: str, where: ast.expr | ast.keyword | Span, remedy: str = "") -> Bad:
        span = where if isinstance(where, Span) else self.parsed.span(where)
        self.problems.append(Diagnostic(what, span, remedy))
        return BAD

    def value(self, node: ast.expr, depth: int) -> Value | Bad:
        """The value of a node that stands `depth` levels inside the expression."""
        self.depth = max(self.depth, depth)
        if len(self.problems) >= MAX_NOTED:
            return BAD
        if depth > MAX_NESTING:
            return self.note(
                f"nested more than {MAX_NESTING} deep", node, "give parts a name under 'edges'"
            )
        match node:
            case ast.Constant():
                return self.constant(node)
            case ast.Name():
                return self.name(node, depth)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return self.listed(node, items, depth)
            case ast.BinOp():
                return self.chain(node, depth)
            case ast.UnaryOp():
                return self.unary(node, depth)
            case ast.Attribute():
                return self.attribute(node, depth)
            case ast.Call():
                return self.call(node, depth)
            case _:
                return self.refuse(node, depth)

    def constant(self, node: ast.Constant) -> Value | Bad:
        value = node.value
        if isinstance(value, float) and not self.scope.fractions:
            return self.note("a fraction cannot stand here", node, "sizes are integers")
        if isinstance(value, float) and math.isfinite(value):
            text = self.parsed.line[self.parsed.start(node) : self.parsed.end(node)]
            exact = text if re.fullmatch(r"[0-9.]{1,24}", text) else repr(value)
            return self.settled(bounded(Fraction(exact)), node)
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, int):
            return self.note(f"{node.value!r} is not part of the pattern language", node, LANGUAGE)
        return self.settled(bounded(value), node)

    def settled(self, result: Value | Refused, where: ast.expr | Span) -> Value | Bad:
        """The result of an operation, or the note that it was refused."""
        if isinstance(result, Refused):
            return self.note(result.what, where, result.remedy)
        return result

    def name(self, node: ast.Name, depth: int) -> Value | Bad:
        known = self.scope.names.get(node.id)
        if known is not None:
            self.depth = max(self.depth, depth + known.depth - 1)
            if self.depth > MAX_NESTING:
                what = f"'{node.id}' makes this nest more than {MAX_NESTING} deep"
                return self.note(what, node, "use a shorter chain of names")
            return known.value if self.count(known.terms, node) else BAD
        if node.id in PRIMITIVES:
            how = signature(node.id)
            return self.note(f"'{node.id}' is a primitive and is called", node, f"write {how}")
        if node.id in FUNCTIONS:
            return self.note(f"'{node.id}' is a function and is called", node)
        if node.id == "never":
            return self.note("'never' stands in 'expect' only", node)
        number = {"never"} if self.scope.fractions else set()
        if len(self.scope.names) > MAX_SUGGESTED:
            return self.note(f"unknown name '{node.id}'", node)
        near = suggest(node.id, {*self.scope.names, *PRIMITIVES, *FUNCTIONS, *number})
        if near.startswith("known"):
            near = suggest(node.id, self.scope.names)
        if self.called in _BOUND:
            near += f'; a bound name stands in quotes: {self.called}("{node.id}")'
        return self.note(f"unknown name '{node.id}'", node, near)

    def count(self, terms: int, node: ast.expr) -> bool:
        """Add to the size of the expression; False, once, when it passes its bound."""
        before, self.terms = self.terms, self.terms + terms
        self.scope.ledger.terms += terms
        remedy = 'put the edges in a file and name it: edges("graph.npz")'
        if before <= MAX_TERMS < self.terms:
            what = f"more than {MAX_TERMS} primitives and operators, named sets written out"
            self.note(what, node, remedy)
        elif self.scope.ledger.terms > MAX_FILE_TERMS:
            what = f"more than {MAX_FILE_TERMS} primitives and operators in this file"
            self.note(what, node, remedy)
            return False
        return self.terms <= MAX_TERMS

    def keep(self, values: Value | Refused, where: ast.expr | Span) -> bool:
        """Add a list to what the file holds; False when it passes the bound."""
        if isinstance(values, tuple | range):
            self.scope.ledger.elements += len(values)
        if self.scope.ledger.elements <= MAX_ELEMENTS:
            return True
        what = f"more than {MAX_ELEMENTS} elements in the lists of this file"
        self.note(what, where, "make lists shorter, or give them when the pattern is lowered")
        return False

    def listed(self, node: ast.expr, items: list[ast.expr], depth: int) -> Value | Bad:
        numbers: list[int] = []
        well = True
        for item in items:
            value = self.value(item, depth + 1)
            if isinstance(value, Bad):
                well = False
            elif isinstance(value, bool) or not isinstance(value, int):
                well = False
                self.note(f"a list holds integers, not {described(value)}", item)
            else:
                numbers.append(value)
        return tuple(numbers) if well else BAD

    def chain(self, node: ast.BinOp, depth: int) -> Value | Bad:
        """Operators from the left, in a loop: a union of many parts nests no deeper than of two."""
        links: list[ast.BinOp] = []
        first: ast.expr = node
        while isinstance(first, ast.BinOp):
            links.append(first)
            first = first.left
        links.reverse()
        depths = [depth + 1]
        for outer, inner in zip(links[::-1], links[-2::-1], strict=False):
            flat = type(outer.op) is type(inner.op) and isinstance(outer.op, ast.BitOr | ast.BitAnd)
            depths.append(depths[-1] + (not flat))
        depths.reverse()
        total = self.value(first, depths[0])
        for link, level in zip(links, depths, strict=True):
            right = self.value(link.right, level)
            total = self.binary(link, total, right)
        return total

    def binary(self, node: ast.BinOp, left: Value | Bad, right: Value | Bad) -> Value | Bad:
        sign = _OPERATORS[type(node.op)]
        if sign in _REMEDIES and not (sign == "/" and self.scope.fractions):
            what = f"'{sign}' is not part of the pattern language"
            return self.note(what, self.sign(node), _REMEDIES[sign])
        if isinstance(left, Bad) or isinstance(right, Bad):
            return BAD
        if isinstance(left, Pattern) and isinstance(right, Pattern) and sign in "|&-":
            if not self.count(1, node):
                return BAD
            return left | right if sign == "|" else left & right if sign == "&" else left - right
        if is_number(left) and is_number(right) and sign not in "|&":
            assert isinstance(left, int | Fraction) and isinstance(right, int | Fraction)
            result = arithmetic(sign, left, right)
            return self.settled(result, self.sign(node) if isinstance(result, Refused) else node)
        if isinstance(left, tuple | range) and sign in ("+", "*"):
            values = concatenated(sign, left, right)
            return self.settled(values, self.sign(node)) if self.keep(values, node) else BAD
        need = "edge sets" if sign in "|&" else "two integers"
        need = "two edge sets or two integers" if sign == "-" else need
        what = f"'{sign}' joins {need}, not {described(left)} and {described(right)}"
        return self.note(what, self.sign(node))

    def sign(self, node: ast.BinOp) -> Span:
        """Where the operator stands."""
        return self.parsed.symbol(node.left, node.right, _OPERATORS[type(node.op)])

    def unary(self, node: ast.UnaryOp, depth: int) -> Value | Bad:
        if isinstance(node.op, ast.Not):
            start = self.parsed.start(node)
            where = self.parsed.between(start, start + 3)
            return self.note("'not' asks for a truth value", where, "write '~' for the complement")
        value = self.value(node.operand, depth + 1)
        if isinstance(value, Bad):
            return BAD
        if isinstance(node.op, ast.Invert) and isinstance(value, Pattern):
            return ~value if self.count(1, node) else BAD
        if not isinstance(node.op, ast.Invert) and is_number(value):
            assert isinstance(value, int | Fraction)
            return -value if isinstance(node.op, ast.USub) else value
        sign = {ast.Invert: "~", ast.USub: "-", ast.UAdd: "+"}[type(node.op)]
        need = "an edge set" if sign == "~" else "an integer"
        remedy = "write '~' for the complement" if isinstance(value, Pattern) else ""
        return self.note(f"'{sign}' takes {need}, not {described(value)}", node, remedy)

    def attribute(self, node: ast.Attribute, depth: int) -> Value | Bad:
        if node.attr != "T":
            end = self.parsed.end(node)
            where = self.parsed.between(end - len(node.attr), end)
            return self.note(f"unknown attribute '{node.attr}'", where, "'.T' is the only one")
        value = self.value(node.value, depth + 1)
        if isinstance(value, Bad):
            return BAD
        if not isinstance(value, Pattern):
            return self.note(f"'.T' transposes an edge set, not {described(value)}", node)
        return value.T if self.count(1, node) else BAD

    def call(self, node: ast.Call, depth: int) -> Value | Bad:
        if not isinstance(node.func, ast.Name):
            return self.note("only primitives, 'range', 'min' and 'max' are called", node.func)
        name = node.func.id
        outer, self.called = self.called, name
        positional = [self.value(a, depth + 1) for a in node.args]
        named = {k.arg: self.value(k.value, depth + 1) for k in node.keywords}
        self.called = outer
        if name in FUNCTIONS:
            return self.function(node, name, positional)
        if name in self.scope.names:
            what = f"'{name}' is a name of this file and is not called"
            return self.note(what, node.func, f"write {name}")
        if name not in PRIMITIVES:
            near = suggest(name, {*PRIMITIVES, *FUNCTIONS})
            return self.note(f"unknown primitive '{name}'", node.func, near)
        arguments = self.bound(node, name, positional, named)
        if arguments is None or not self.count(1, node):
            return BAD
        return self.made(node, name, arguments)

    def bound(
        self,
        node: ast.Call,
        name: str,
        positional: list[Value | Bad],
        named: dict[str | None, Value | Bad],
    ) -> dict[str, Value] | None:
        """The arguments by name, or None with what is wrong noted and the signature quoted."""
        kind = PRIMITIVES[name]
        how = signature(name)
        known = [f.name for f in fields(kind)]
        before = len(self.problems)
        if len(positional) > len(known):
            many = f"{len(positional)} argument{'s' if len(positional) > 1 else ''}"
            what = f"{name}: {many} given; it takes {len(known) or 'none'}"
            self.note(what, node.args[len(known)], how)
        bound: dict[str, Value | Bad] = dict(zip(known, positional, strict=False))
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg not in known:
                near = suggest(keyword.arg or "", known)
                what = f"{name}: no argument '{keyword.arg or '**'}'"
                self.note(what, keyword, f"{near} {how}" if near.startswith("did") else how)
            elif keyword.arg in bound:
                self.note(f"{name}: argument '{keyword.arg}' is given twice", keyword, how)
            else:
                bound[keyword.arg] = named[keyword.arg]
        required = [f.name for f in fields(kind) if f.default is MISSING]
        missing = [f"'{m}'" for m in required if m not in bound]
        if missing and len(self.problems) == before:
            what = f"{name}: argument{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing"
            self.note(what, node, how)
        good = {k: v for k, v in bound.items() if not isinstance(v, Bad)}
        return good if len(self.problems) == before and len(good) == len(bound) else None

    def made(self, node: ast.Call, name: str, arguments: dict[str, Value]) -> Value | Bad:
        """The primitive itself; its own checks point at the argument that they name."""
        for key, value in arguments.items():
            lazy = name == "global_tokens"
            if isinstance(value, range) and not lazy and len(value) > MAX_LIST:
                what = f"{name}: {key} has {len(value)} elements; at most {MAX_LIST} are kept"
                return self.note(what, self.argument(node, name, key))
            if not (isinstance(value, range) and lazy) and not self.keep(value, node):
                return BAD
        if name == "edges":
            source = self.graph(node, arguments["source"])
            if isinstance(source, Bad):
                return source
            arguments = {**arguments, "source": source}
        try:
            return PRIMITIVES[name](**arguments)
        except PatternError as error:
            what = str(error)
            key = what.removeprefix(f"{name}: ").split(" ")[0]
            return self.note(what, self.argument(node, name, key), signature(name))

    def argument(self, node: ast.Call, name: str, key: str) -> ast.expr:
        """The node that gives an argument; the call itself where none is named `key`."""
        for keyword in node.keywords:
            if keyword.arg == key:
                return keyword.value
        known = [f.name for f in fields(PRIMITIVES[name])]
        place = known.index(key) if key in known else len(node.args)
        return node.args[place] if place < len(node.args) else node

    def graph(self, node: ast.Call, source: Value) -> str | Bad:
        """The file of edges("file"), relative to the pattern file's folder."""
        where = self.argument(node, "edges", "source")
        if not isinstance(source, str) or not source or '"' in source:
            what = f"edges: a file name is needed, not {described(source)}"
            return self.note(what, where, 'write it in quotes: edges("graph.npz")')
        if self.scope.folder is None:
            return source
        path = self.scope.folder / source
        if not path.is_file():
            what = f"edges: no file '{path}'"
            return self.note(what, where, "the name is relative to the pattern file's folder")
        return path.as_posix()

    def function(self, node: ast.Call, name: str, given: list[Value | Bad]) -> Value | Bad:
        """range, min and max over integers."""
        if any(isinstance(v, Bad) for v in given):
            return BAD
        most = 3 if name == "range" else MAX_LIST
        numbers = [v for v in given if isinstance(v, int) and not isinstance(v, bool)]
        how = "range(count), range(first, past_last) or range(first, past_last, step)"
        if node.keywords or len(numbers) != len(given) or not 1 <= len(given) <= most:
            remedy = f"write {how}" if name == "range" else f"write {name}(a, b)"
            return self.note(f"{name}: integers are needed", node, remedy)
        if name != "range":
            return min(numbers) if name == "min" else max(numbers)
        if any(abs(v) > 2**40 for v in numbers):
            return self.note("range: positions go up to 2**40", node)
        if len(numbers) == 3 and numbers[2] == 0:
            return self.note("range: the step is zero", node)
        return range(*numbers)

    def refuse(self, node: ast.expr, depth: int) -> Bad:
        """What Python's grammar has and this language does not."""
        if isinstance(node, ast.BoolOp):
            for operand in node.values:
                self.value(operand, depth + 1)
        self.problems.append(refusal(self.parsed, node))
        return BAD
