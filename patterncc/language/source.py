"""YAML text to nodes that know their place: every scalar is text, and nothing is read twice.

PyYAML's *events* are read one by one, so a file is refused at the first event past a bound and no
tree is built from it.  What YAML would do behind one's back is refused here: types, tags, anchors,
aliases, duplicate keys, and flow style (``{}`` and ``[]``), where YAML itself cuts an expression at
its commas.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from patterncc.errors import Diagnostic, Span

MAX_BYTES = 2**20  # of a pattern file
MAX_DEPTH = 16  # of nested mappings and lists; the deepest key of a pattern file stands at 6
MAX_NODES = 20_000  # mappings, lists and scalars together

# What YAML 1.1 does not allow, and the line breaks that other tools do not count as lines.
_UNREADABLE = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_BREAK = re.compile("\r\n|\n|\r")
_ESCAPE_LENGTH = {"x": 4, "u": 6, "U": 10}  # of \x41, \u0041 and \U00000041; the others are 2 long
_Loader: Any = getattr(yaml, "CLoader", yaml.Loader)  # only its event parser is used


@dataclass(frozen=True, eq=False)
class Source:
    """A text and its name; turns an index of a character into a place."""

    file: str
    text: str

    @cached_property
    def starts(self) -> list[int]:
        """The index at which each line starts."""
        return [0, *(m.end() for m in _BREAK.finditer(self.text))]

    @cached_property
    def lines(self) -> list[str]:
        """The lines, so that the places of a long one share its text."""
        return _BREAK.split(self.text)

    def index(self, line: int, column: int) -> int:
        """The character at a 0-based line and column, as YAML's marks give them."""
        return min(self.starts[min(line, len(self.starts) - 1)] + column, len(self.text))

    def span(self, first: int, last: int) -> Span:
        """The characters first <= index < last, cut at the end of their first line.

        >>> str(Source("a.yaml", "x: 1\\ny: two").span(8, 11))
        'a.yaml:2:4'
        """
        line = bisect_right(self.starts, first) - 1
        text = self.lines[line]
        column = first - self.starts[line]
        length = max(1, min(last - first, len(text) - column))
        return Span(self.file, line + 1, column + 1, length, text)


@dataclass(frozen=True, eq=False)
class Scalar:
    """A piece of text as YAML reads it, and where each of its characters stands in the file."""

    source: Source
    first: int
    last: int
    text: str
    style: str = ""  # "" plain, then as YAML writes it: ' " | >

    @cached_property
    def span(self) -> Span:
        """The whole scalar; for quoted and block scalars, what stands between the marks."""
        if not self.text:
            return self.source.span(self.first, self.last)
        return self.part(0, len(self.text))

    def part(self, first: int, last: int) -> Span:
        """Where the characters first <= index < last of the text stand."""
        places = self._places
        here = places[min(first, len(places) - 1)]
        end = places[min(last, len(places)) - 1] + 1 if last > first else here + 1
        return self.source.span(here, end)

    @cached_property
    def _places(self) -> list[int]:
        """The index in the source of every character of the text, then one past the last."""
        raw, at, places = self.source.text, self.first, []
        if self.style in ("|", ">"):
            at = _past_indent(raw, _past_break(raw, at))
        elif self.style:
            at += 1
        for char in self.text:
            if self.style == '"':
                at = _past_continuation(raw, at)
            if char in " \n\t" and at < len(raw) and raw[at] != "\\":
                places.append(at)
                at = _past_blank(raw, at)
                continue
            places.append(at)
            at += self._width(raw, at, char)
        return [*places, at]

    def _width(self, raw: str, at: int, char: str) -> int:
        """How many characters of the source stand for one of the text."""
        if self.style == '"' and raw[at : at + 1] == "\\":
            return _ESCAPE_LENGTH.get(raw[at + 1 : at + 2], 2)
        return 2 if self.style == "'" and char == "'" else 1


@dataclass(frozen=True, eq=False)
class Listing:
    """A block-style list."""

    span: Span
    items: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Entries:
    """A block-style mapping, keys in order and without repeats."""

    span: Span
    entries: tuple[tuple[Scalar, Node], ...]


@dataclass(frozen=True)
class Broken:
    """Something already reported, so that it is not reported twice."""

    span: Span


Node = Scalar | Listing | Entries | Broken


@dataclass
class _Open:
    """A collection whose end has not been read."""

    mapping: bool
    mark: Any
    flow: bool
    items: list[Node] = field(default_factory=list)


def plain(text: str, file: str) -> Scalar:
    """A text that stands alone, without YAML around it."""
    return Scalar(Source(file, text), 0, len(text), text)


def read_yaml(text: str, file: str, problems: list[Diagnostic]) -> Node | None:
    """The root node of one YAML document, or None; everything wrong with it is added to `problems`.

    >>> problems = []
    >>> root = read_yaml("edges:\\n  near: window(3)\\n", "a.yaml", problems)
    >>> [(key.text, type(node).__name__) for key, node in root.entries], problems
    ([('edges', 'Entries')], [])
    """
    source = Source(file, text)
    odd = _UNREADABLE.search(text)
    if odd:
        what = f"character U+{ord(odd.group()):04X} cannot stand in a pattern file"
        span = source.span(odd.start(), odd.end())
        problems.append(Diagnostic(what, span, "write plain text in UTF-8"))
        return None
    try:
        return _build(source, yaml.parse(text, Loader=_Loader), problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = source.index(mark.line, mark.column) if mark else 0
        remedy = "an expression with ': ', ' #' or a leading '@', '%' or '`' needs quotes around it"
        problems.append(
            Diagnostic(f"not readable as YAML: {error.problem}", source.span(at, at + 1), remedy)
        )
    return None


def _build(source: Source, events: Iterator[Any], problems: list[Diagnostic]) -> Node | None:
    """Nodes from events, with a stack of open collections: no recursion, however deep the file."""
    root: Node | None = None
    opened: list[_Open] = []
    for count, event in enumerate(events):
        node: Node | None = None
        if len(opened) > MAX_DEPTH or count > 2 * MAX_NODES:
            limit = f"{MAX_DEPTH} levels" if len(opened) > MAX_DEPTH else f"{MAX_NODES} entries"
            what = f"more than {limit} of YAML"
            problems.append(Diagnostic(what, _span(source, event), "flatten the file"))
            return None
        _refuse_marks(source, event, opened, problems)
        match event:
            case yaml.DocumentStartEvent() if root is not None:
                remedy = "keep one pattern to a file, without '---'"
                problems.append(Diagnostic("a second document", _span(source, event), remedy))
                return root
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                mapping = isinstance(event, yaml.MappingStartEvent)
                opened.append(_Open(mapping, event.start_mark, bool(event.flow_style)))
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                node = _close(source, opened.pop(), event.end_mark, opened, problems)
            case yaml.ScalarEvent():
                first, last = _range(source, event)
                node = Scalar(source, first, last, event.value, event.style or "")
            case yaml.AliasEvent():
                node = Broken(_span(source, event))
            case _:
                continue
        if node is not None and opened:
            opened[-1].items.append(node)
        elif node is not None:
            root = node
    return root


def _refuse_marks(
    source: Source, event: Any, opened: list[_Open], problems: list[Diagnostic]
) -> None:
    """Report aliases, anchors and tags; a flow collection is refused whole, once."""
    if any(o.flow for o in opened):
        return
    if isinstance(event, yaml.AliasEvent):
        what = f"'*{event.anchor}' is a YAML alias; pattern files have none"
        remedy = "name the edge set under 'edges' and use its name"
    elif getattr(event, "anchor", None):
        what = f"'&{event.anchor}' is a YAML anchor; pattern files have none"
        remedy = "leave it out, or put an expression that starts with '&' in quotes"
    elif getattr(event, "tag", None):
        tag = _short(event.tag.replace("tag:yaml.org,2002:", "!!"))
        what = f"the tag '{tag}' is refused: every value is text"
        remedy = "leave the tag out"
    elif isinstance(event, yaml.DocumentStartEvent) and event.tags:
        what, remedy = "a %TAG directive is refused: every value is text", "leave it out"
    else:
        return
    problems.append(Diagnostic(what, _span(source, event), remedy))


def _close(
    source: Source, done: _Open, end: Any, opened: list[_Open], problems: list[Diagnostic]
) -> Node:
    """The finished collection, or what is wrong with it."""
    first = source.index(done.mark.line, done.mark.column)
    span = source.span(first, source.index(end.line, end.column))
    if done.flow:
        if not any(o.flow for o in opened):
            what = "flow style ({} or []) is refused: YAML would cut an expression at its commas"
            remedy = (
                'put an expression in quotes, as "[300, 200]"; write lists and mappings a line each'
            )
            problems.append(Diagnostic(what, span, remedy))
        return Broken(span)
    if not done.mapping:
        return Listing(span, tuple(done.items))
    return Entries(span, tuple(_entries(done.items, problems)))


def _entries(items: list[Node], problems: list[Diagnostic]) -> Iterator[tuple[Scalar, Node]]:
    """Pairs of key and value, each key a scalar and once."""
    seen: dict[str, Scalar] = {}
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, Scalar):
            if not isinstance(key, Broken):
                problems.append(Diagnostic("a key must be a plain word", key.span))
            continue
        if key.text in seen:
            line = seen[key.text].span.line
            what = f"the key '{_short(key.text)}' stands twice"
            problems.append(
                Diagnostic(what, key.span, f"the first is on line {line}; keep one of them")
            )
            continue
        seen[key.text] = key
        yield key, value


def _range(source: Source, event: Any) -> tuple[int, int]:
    start, end = event.start_mark, event.end_mark
    return source.index(start.line, start.column), source.index(end.line, end.column)


def _span(source: Source, event: Any) -> Span:
    return source.span(*_range(source, event))


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _past_break(raw: str, at: int) -> int:
    """Past the end of the line: a block scalar starts below its header."""
    found = _BREAK.search(raw, at)
    return found.end() if found else len(raw)


def _past_indent(raw: str, at: int) -> int:
    """Past blanks and empty lines."""
    while at < len(raw) and raw[at] in " \t\r\n":
        at += 1
    return at


def _past_blank(raw: str, at: int) -> int:
    """Past one blank; past all of them where they hold a line break, since YAML folds those."""
    end = _past_indent(raw, at)
    return end if _BREAK.search(raw, at, end) else min(at + 1, end)


def _past_continuation(raw: str, at: int) -> int:
    """Past a backslash at the end of a line, which YAML drops with the blanks around it."""
    while raw[at : at + 1] == "\\" and raw[at + 1 : at + 2] in ("\n", "\r"):
        at = _past_blank(raw, at + 1)
    return at
