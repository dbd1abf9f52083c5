"""What Python's grammar has and the pattern language has not, and what to write instead."""

from __future__ import annotations

import ast

from patterncc.errors import Diagnostic
from patterncc.language.syntax import Parsed

LANGUAGE = "expressions are names, integers, lists, calls, arithmetic and | & - ~ .T"

_NAMED: dict[type[ast.expr], str] = {
    **{ast.Lambda: "a lambda", ast.IfExp: "'if ... else'", ast.Subscript: "an index"},
    **{ast.ListComp: "a comprehension", ast.SetComp: "a comprehension"},
    **{ast.DictComp: "a comprehension", ast.GeneratorExp: "a comprehension"},
    **{ast.Dict: "a dictionary", ast.Set: "a set in braces", ast.JoinedStr: "an f-string"},
    **{ast.Starred: "'*'", ast.NamedExpr: "':='", ast.Await: "'await'", ast.Yield: "'yield'"},
}


def refusal(parsed: Parsed, node: ast.expr) -> Diagnostic:
    """The message for a node that no expression may hold.

    >>> from patterncc.language.source import plain
    >>> from patterncc.language.syntax import parse
    >>> parsed = parse(plain("causal() and full()", "a.yaml"), [])
    >>> print(refusal(parsed, parsed.tree))
    a.yaml:1:10: 'and' joins truth values, not edge sets
        causal() and full()
                 ^^^
        write '&'
    """
    if isinstance(node, ast.BoolOp):
        word, sign = ("and", "&") if isinstance(node.op, ast.And) else ("or", "|")
        where = parsed.symbol(node.values[0], node.values[1], word)
        return Diagnostic(f"'{word}' joins truth values, not edge sets", where, f"write '{sign}'")
    if isinstance(node, ast.Compare):
        what = "a comparison stands in 'expect' only"
        return Diagnostic(what, parsed.span(node), "move it there")
    what = _NAMED.get(type(node), type(node).__name__)
    return Diagnostic(f"{what} is not part of the pattern language", parsed.span(node), LANGUAGE)
