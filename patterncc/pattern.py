"""Pattern: what the user said about who reads whom; an expression tree, free of sizes.

A pattern is a set of edges ``(i, j)``: *query i reads key j*, both absolute positions.  Nodes are
frozen and hashable; ``|``, ``&``, ``-``, ``~`` and ``.T`` build larger patterns, and ``str`` gives
back the expression in the language of pattern files.  Sizes come in only when a pattern is lowered
(`patterncc.lower`).
"""

from __future__ import annotations

import hashlib
import keyword
import operator
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NoReturn, overload

from patterncc.errors import PatternError, PatternValueError

_SHOWN = 64  # integers that are written out


@dataclass(frozen=True)
class Pattern:
    """A set of edges (i, j), query i reads key j, without a sequence length.

    >>> from patterncc import causal, window, sink
    >>> causal() & (window(511) | sink(4))
    causal() & (window(511) | sink(4))
    """

    def __or__(self, other: Pattern) -> Pattern:
        return Union(_parts(Union, self) + _parts(Union, _pattern(other, "|")))

    def __and__(self, other: Pattern) -> Pattern:
        return Intersection(_parts(Intersection, self) + _parts(Intersection, _pattern(other, "&")))

    def __sub__(self, other: Pattern) -> Pattern:
        return Difference(self, _pattern(other, "-"))

    def __invert__(self) -> Pattern:
        return self.of if isinstance(self, Complement) else Complement(self)

    @property
    def T(self) -> Pattern:  # noqa: N802 - the name that matrices have
        """The transpose: (i, j) where this has (j, i)."""
        return self.of if isinstance(self, Transpose) else Transpose(self)

    def __bool__(self) -> NoReturn:
        raise PatternError(
            "a Pattern has no truth value; write 'a & b', 'a | b' and '~a' "
            "instead of 'a and b', 'a or b' and 'not a'"
        )

    def __str__(self) -> str:
        return _text(self, 0)

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Union(Pattern):
    """Edges of any part."""

    parts: tuple[Pattern, ...]


@dataclass(frozen=True, repr=False)
class Intersection(Pattern):
    """Edges of every part."""

    parts: tuple[Pattern, ...]


@dataclass(frozen=True, repr=False)
class Difference(Pattern):
    """Edges of `left` that `right` does not have."""

    left: Pattern
    right: Pattern


@dataclass(frozen=True, repr=False)
class Complement(Pattern):
    """Every pair of the frame that `of` does not have."""

    of: Pattern


@dataclass(frozen=True, repr=False)
class Transpose(Pattern):
    """(i, j) where `of` has (j, i)."""

    of: Pattern


class Primitive(Pattern):
    """A leaf of the tree; its dataclass fields are its arguments in pattern files."""

    def __str__(self) -> str:
        shown, keyword = [], False
        for f in fields(self):
            value = getattr(self, f.name)
            if value == f.default and type(value) is type(f.default):
                keyword = True  # a default left out: what follows is named
                continue
            shown.append(f"{f.name}={_value(value)}" if keyword else _value(value))
        return f"{name_of(type(self))}({', '.join(shown)})"

    __repr__ = __str__


class Integers(Sequence[int]):
    """Many integers in 8 bytes each: a frozen sequence, equal and hashed by content.

    Its text is a list as pattern files have it; a long one is told by its length and a digest.

    >>> Integers([3, 1]), Integers(range(100))
    ([3, 1], <100 integers, 4e655a94>)
    """

    __slots__ = ("data",)
    data: bytes

    def __init__(self, values: Iterable[int] | bytes) -> None:
        data = values if isinstance(values, bytes) else array("q", values).tobytes()
        object.__setattr__(self, "data", data)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Integers are frozen")

    def __len__(self) -> int:
        return len(self.data) // 8

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Integers: ...
    def __getitem__(self, index: int | slice) -> int | Integers:
        view = memoryview(self.data).cast("q")
        return Integers(view[index].tobytes()) if isinstance(index, slice) else view[index]

    def __eq__(self, other: object) -> bool:
        return self.data == other.data if isinstance(other, Integers) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.data)

    def __str__(self) -> str:
        if len(self) <= _SHOWN:
            return str(memoryview(self.data).cast("q").tolist())
        digest = hashlib.blake2b(self.data, digest_size=4).hexdigest()
        return f"<{len(self)} integers, {digest}>"

    __repr__ = __str__


def name_of(kind: type[Primitive]) -> str:
    """The language's name of a primitive class: RandomBlocks is 'random_blocks'.

    >>> from patterncc.primitives import RandomBlocks
    >>> name_of(RandomBlocks)
    'random_blocks'
    """
    special = {"LogSparse": "logsparse", "LongNet": "longnet"}
    if kind.__name__ in special:
        return special[kind.__name__]
    name = kind.__name__
    return "".join("_" + c.lower() if c.isupper() and k else c.lower() for k, c in enumerate(name))


def check_int(owner: str, name: str, value: object, least: int, most: int = 2**40) -> int:
    """`value` as an int within [least, most], or a PatternValueError that names the argument.

    >>> check_int("window", "left", 3, 0)
    3
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise PatternValueError(f"{owner}: {name} must be an integer, not {value!r}") from None
    if not least <= number <= most:
        bound = f"at least {least}" if number < least else f"at most {most}"
        raise PatternValueError(f"{owner}: {name} must be {bound}, not {number}")
    return number


ARGUMENTS = frozenset(
    (
        *("n", "n_k", "q_offset", "k_offset", "block", "layer", "head", "memory", "depth", "pairs"),
        *(
            "engine",
            "head_dim",
            "names",
            "query",
            "key",
            "token",
            "alpha",
            "sources",
            "seed",
            "max_zones",
            "max_tiles",
            "max_edges",
            "samples",
            "symmetrize",
            "steps",
            "bins",
            "order",
            "max_bytes",
            "target",
            "doc_ids",
            "key_lengths",
            "prefix_lengths",
            "cu_seqlens",
            "cu_seqlens_k",
            "total",
            "total_k",
        ),
        *("pattern", "patterns", "stack", "layout", "file", "self"),
    )
)
"""Names that functions taking bindings as keywords use for themselves."""


def check_binding(owner: str, name: str) -> str:
    """`name` as a keyword that data can be bound to, or a PatternValueError with the remedy.

    >>> check_binding("documents", "docs")
    'docs'
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise PatternValueError(f"{owner}: {name!r} is not a name to bind; use a plain word")
    if name in ARGUMENTS:
        raise PatternValueError(
            f"{owner}: '{name}' cannot be bound, functions have an argument of that name; "
            f"choose another, such as '{name}_ids'"
        )
    return name


def _text(p: Pattern, level: int) -> str:
    """The expression with as few parentheses as Python's precedence allows."""
    match p:
        case Union(parts):
            mine, text = 1, " | ".join(_text(x, 2) for x in parts)
        case Intersection(parts):
            mine, text = 2, " & ".join(_text(x, 3) for x in parts)
        case Difference(left, right):
            mine, text = 3, f"{_text(left, 3)} - {_text(right, 4)}"
        case Complement(of):
            mine, text = 4, f"~{_text(of, 4)}"
        case Transpose(of):
            mine, text = 5, f"{_text(of, 5)}.T"
        case _:
            return str(p)
    return f"({text})" if mine < level else text


def _value(value: object) -> str:
    if isinstance(value, range):
        start = f"{value.start}, " if value.start or value.step != 1 else ""
        step = f", {value.step}" if value.step != 1 else ""
        return f"range({start}{value.stop}{step})"
    if isinstance(value, tuple):
        if all(type(v) is int for v in value):  # the same text, ten times sooner
            return str(list(value))
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value)


def _pattern(other: object, symbol: str) -> Pattern:
    if not isinstance(other, Pattern):
        raise PatternError(f"'{symbol}' joins two patterns; the right side is {other!r}")
    return other


def _parts(kind: type[Union] | type[Intersection], p: Pattern) -> tuple[Pattern, ...]:
    return p.parts if isinstance(p, kind) else (p,)
