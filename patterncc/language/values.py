"""Values of the expression language, what they are called in messages, and arithmetic on them.

Integers stay below MAX_INTEGER and lists below MAX_LIST, so that no line of a file can make the
reader work or hold more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from fractions import Fraction
from pathlib import Path

from patterncc.pattern import Pattern, Primitive
from patterncc.primitives import PRIMITIVES

MAX_INTEGER = 2**64  # of any intermediate result; of the denominator of a fraction too
MAX_LIST = 10**6  # elements of a list; a range given to global_tokens may be longer
MAX_ELEMENTS = 10**7  # of all lists that one file makes
MAX_TERMS = 10_000  # primitives and operators of one edge set, its named sets written out
MAX_FILE_TERMS = 10**6  # of all edge sets of one file

MAX_NOTED = 100  # mistakes of one file after which the rest of it is not read

FUNCTIONS = ("max", "min", "range")
NAMES = frozenset({*PRIMITIVES, *FUNCTIONS, "never"})  # what a file cannot name anew

Value = int | Fraction | str | None | tuple[int, ...] | range | Pattern
Number = int | Fraction
Numbers = tuple[int, ...] | range


class Bad:
    """In place of a value whose mistake has been noted."""


BAD = Bad()


@dataclass(frozen=True)
class Refused:
    """What is wrong with an operation, and how to mend it."""

    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Named:
    """A parameter or an edge set, and how large its expression is when written out."""

    value: Value | Bad
    terms: int = 1
    depth: int = 1


@dataclass
class Ledger:
    """What the expressions of one file hold together: small ones cannot add up without end."""

    elements: int = 0  # of lists
    terms: int = 0  # primitives and operators, named sets written out


@dataclass(frozen=True)
class Scope:
    """What an expression may refer to: names, the folder of graph files, fractions in `expect`."""

    names: Mapping[str, Named] = field(default_factory=dict)
    folder: Path | None = None
    fractions: bool = False
    ledger: Ledger = field(default_factory=Ledger)


def signature(name: str) -> str:
    """How a primitive is called.

    >>> signature("window")
    'window(left, right=0, block=1)'
    """
    kind: type[Primitive] = PRIMITIVES[name]
    shown = [f.name if f.default is MISSING else f"{f.name}={f.default!r}" for f in fields(kind)]
    return f"{name}({', '.join(shown)})".replace("'", '"')


def described(value: Value | Bad) -> str:
    """A value as messages call it.

    >>> described(3), described((1, 2)), described("docs")
    ('the number 3', 'a list', 'the text "docs"')
    """
    match value:
        case bool() | None:
            return str(value)
        case int() | Fraction():
            return f"the number {value}"
        case str():
            return f'the text "{value[:40]}"'
        case tuple() | range():
            return "a list"
        case _:
            return "an edge set"


def is_number(value: Value | Bad) -> bool:
    """A number, which True and False are not."""
    return isinstance(value, int | Fraction) and not isinstance(value, bool)


def bounded(value: Number) -> Number | Refused:
    """A number that is small enough to go on with."""
    if not -MAX_INTEGER <= value <= MAX_INTEGER or value.denominator > MAX_INTEGER:
        return Refused("a number past 2**64", "positions go up to 2**40")
    return value


def arithmetic(sign: str, left: Number, right: Number) -> Number | Refused:
    """The operator on two numbers; a power is refused before it is computed.

    >>> arithmetic("**", 2, 10), arithmetic("**", 10, 10**10)
    (1024, Refused(what='a power past 2**64', remedy='positions go up to 2**40'))
    """
    if sign in ("//", "%", "/") and right == 0:
        return Refused(f"'{sign}' by zero")
    if sign != "**":
        return bounded(_ARITHMETIC[sign](left, right))
    if not isinstance(left, int) or not isinstance(right, int) or right < 0:
        return Refused("'**' needs integers, the right one 0 or more")
    if right > 64 and abs(left) > 1:
        return Refused("a power past 2**64", "positions go up to 2**40")
    return bounded(left ** min(right, 64 + right % 2))


def concatenated(sign: str, left: Numbers, right: Value) -> Numbers | Refused:
    """Lists: a + b one after the other, a * 3 three times over.

    >>> concatenated("*", (0, 1), 3)
    (0, 1, 0, 1, 0, 1)
    """
    if sign == "+" and isinstance(right, tuple | range):
        length = len(left) + len(right)
    elif sign == "*" and isinstance(right, int) and not isinstance(right, bool):
        length = len(left) * max(0, right)
    else:
        need = "two lists" if sign == "+" else "a list and an integer"
        return Refused(f"'{sign}' takes {need} here, not {described(right)}")
    if length > MAX_LIST:
        return Refused(f"a list of {length} elements; at most {MAX_LIST} are kept")
    if isinstance(right, tuple | range):
        return (*left, *right)
    assert isinstance(right, int)
    return tuple(left) * right


_ARITHMETIC: dict[str, Callable[[Number, Number], Number]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "/": lambda a, b: Fraction(a) / Fraction(b),
}
