"""Text to a Python syntax tree whose every node knows its place in the pattern file.

Python's own parser reads the expression (`ast.parse`); nothing is ever compiled or run.  What could
overrun it (length, nesting) is refused before it starts.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass

from patterncc.errors import Diagnostic, Span
from patterncc.language.source import Scalar

MAX_LENGTH = 100_000  # characters of one expression
MAX_NESTING = 100  # brackets, calls and operators inside one another

_PREFIXES = re.compile(rf"(?:(?:[-+~]|\bnot\b)\s*){{{MAX_NESTING}}}")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_HINTS = (  # what people write from other languages, and what to write here
    (re.compile(r"&&"), "write '&' for the edges of both"),
    (re.compile(r"\|\|"), "write '|' for the edges of either"),
    (re.compile(r"!(?!=)"), "write '~' for the complement"),
    (re.compile(r"[∪∩∖¬]"), "write '|', '&', '-' and '~'"),
)


@dataclass(frozen=True, eq=False)
class Parsed:
    """One expression: the scalar it came from, its tree, and where its characters stand."""

    scalar: Scalar
    tree: ast.expr
    shift: int  # blanks in front of the expression
    line: str  # the expression on one line, as the parser saw it

    def span(self, node: ast.expr | ast.keyword) -> Span:
        """The place of a node in the pattern file."""
        return self.between(self.start(node), self.end(node))

    def between(self, first: int, last: int) -> Span:
        """The place of the characters first <= index < last of `line`."""
        return self.scalar.part(first + self.shift, last + self.shift)

    def start(self, node: ast.expr | ast.keyword) -> int:
        """The index in `line` of a node's first character."""
        return self._index(node.col_offset)

    def end(self, node: ast.expr | ast.keyword) -> int:
        """The index in `line` past a node's last character."""
        assert node.end_col_offset is not None
        return self._index(node.end_col_offset)

    def symbol(self, left: ast.expr, right: ast.expr, text: str) -> Span:
        """The place of an operator between two operands."""
        first = self.line.find(text, self.end(left), self.start(right))
        if first < 0:  # a tree that Python normalised; the operand is near enough
            return self.span(right)
        return self.between(first, first + len(text))

    def _index(self, offset: int) -> int:
        """Python counts the bytes of UTF-8; carets count characters."""
        if self.line.isascii():
            return offset
        return len(self.line.encode()[:offset].decode())


def parse(scalar: Scalar, problems: list[Diagnostic]) -> Parsed | None:
    """The syntax tree of an expression, or None with what is wrong added to `problems`.

    >>> from patterncc.language.source import plain
    >>> problems = []
    >>> parse(plain("window(3", "a.yaml"), problems)
    >>> print(problems[0])
    a.yaml:1:7: '(' is never closed
        window(3
              ^
        write the missing ')'
    """
    text = scalar.text.strip()
    shift = len(scalar.text) - len(scalar.text.lstrip())
    line = re.sub(r"[\r\n\t\f]", " ", text)
    found = _refusal(line)
    if found:
        what, first, last, remedy = found
        problems.append(Diagnostic(what, scalar.part(first + shift, last + shift), remedy))
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on how to write Python
            tree = ast.parse(line, mode="eval").body
    except SyntaxError as error:
        at = min((error.offset or len(line)) - 1, len(line) - 1)
        what = f"not an expression: {error.msg}"
        problems.append(Diagnostic(what, scalar.part(at + shift, at + shift + 1)))
    except (MemoryError, RecursionError, ValueError):
        problems.append(_too_deep(scalar))
    else:
        return Parsed(scalar, tree, shift, line)
    return None


def _too_deep(scalar: Scalar) -> Diagnostic:
    return Diagnostic(
        "nested too deep, or too long a chain of operators",
        scalar.part(0, 1),
        "give parts a name under 'edges'",
    )


def _refusal(line: str) -> tuple[str, int, int, str] | None:
    """(what, first, last, remedy) for text that Python's parser should not see."""
    if not line:
        return "an expression is missing", 0, 1, "write one, for example causal() & window(511)"
    if len(line) > MAX_LENGTH:
        what = f"an expression of {len(line)} characters; at most {MAX_LENGTH} are read"
        return what, 0, 1, 'put the data in a file and name it: edges("graph.npz")'
    deep = _PREFIXES.search(line)
    if deep:
        what = f"nested more than {MAX_NESTING} deep"
        return what, deep.start(), deep.start() + 1, "two of '~' or '-' cancel"
    return _unquoted(line)


def _unquoted(line: str) -> tuple[str, int, int, str] | None:
    """Brackets that do not match, and characters with another meaning in Python than they seem."""
    opened: list[int] = []
    quote, begun = "", 0
    for at, char in enumerate(line):
        if char == "\\":
            return "a backslash is refused", at, at + 1, "write '/' between folders"
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote, begun = char, at
        elif char == "#":
            return (
                "a comment cannot stand inside an expression",
                at,
                at + 1,
                "move it to a line above",
            )
        elif char in _CLOSING:
            opened.append(at)
            if len(opened) > MAX_NESTING:
                what = f"nested more than {MAX_NESTING} deep"
                return what, at, at + 1, "give parts a name under 'edges'"
        elif char in _CLOSING.values():
            if not opened:
                return f"'{char}' closes nothing", at, at + 1, "leave it out, or open it before"
            want = _CLOSING[line[opened.pop()]]
            if char != want:
                return f"'{char}' stands where '{want}' should", at, at + 1, f"write '{want}'"
        elif char in "&|!∪∩∖¬" and (hint := _hint(line, at)):
            return hint
    if quote:
        return f"{quote} is never closed", begun, begun + 1, f"write the missing {quote}"
    if line[-1] in "|&-~+*/%.,=<>":
        return f"nothing stands after '{line[-1]}'", len(line) - 1, len(line), "leave it out"
    if opened:
        at = opened[-1]
        return (
            f"'{line[at]}' is never closed",
            at,
            at + 1,
            f"write the missing '{_CLOSING[line[at]]}'",
        )
    return None


def _hint(line: str, at: int) -> tuple[str, int, int, str] | None:
    for pattern, remedy in _HINTS:
        found = pattern.match(line, at)
        if found:
            return f"'{found.group()}' is not an operator here", at, found.end(), remedy
    return None
