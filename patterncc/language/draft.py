"""A pattern file half put together, and how its YAML nodes are taken apart.

Each helper returns what it found and notes what is wrong, so that the passes of `assembly` read on.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from patterncc.errors import Diagnostic, PatternError, Span, joined, suggest
from patterncc.language.expectation import Expect
from patterncc.language.expression import evaluate, evaluate_edges
from patterncc.language.source import Broken, Entries, Listing, Node, Scalar
from patterncc.language.syntax import Parsed, parse
from patterncc.language.values import BAD, NAMES, Bad, Ledger, Named, Scope, Value
from patterncc.pattern import Pattern, check_int
from patterncc.stack import Layer


@dataclass
class Draft:
    """A file while it is put together: each pass fills in what it is named after."""

    file: str
    text: str
    folder: Path
    overrides: Mapping[str, object]
    problems: list[Diagnostic]
    nodes: dict[str, Node] = field(default_factory=dict)
    root: Span | None = None
    names: dict[str, Named] = field(default_factory=dict)  # parameters, then edge sets too
    params: dict[str, Value] = field(default_factory=dict)
    edges: dict[str, Pattern] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    kv_from: list[int] = field(default_factory=list)  # one a layer, wrong layers too
    kv_heads: int | None = None
    memory: int = 0
    bindings: dict[str, tuple[int, ...]] = field(default_factory=dict)
    expects: list[Expect] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)

    def note(self, what: str, span: Span | None, remedy: str = "") -> None:
        self.problems.append(Diagnostic(what, span, remedy))

    @property
    def scope(self) -> Scope:
        return Scope(self.names, self.folder, ledger=self.ledger)


def fields_of(draft: Draft, node: Node, known: Iterable[str], owner: str) -> dict[str, Node]:
    """The entries of a mapping by key, unknown ones reported."""
    if not isinstance(node, Entries):
        if not isinstance(node, Broken):
            draft.note(f"{owner} is a mapping of {joined(known)}", node.span)
        return {}
    found: dict[str, Node] = {}
    for key, value in node.entries:
        if key.text in known:
            found[key.text] = value
        else:
            what = f"unknown key '{_short(key.text)}' in {owner}"
            draft.note(what, key.span, suggest(key.text, known))
    return found


def items_of(draft: Draft, node: Node, key: str, example: str) -> tuple[Node, ...]:
    """The items of a list that holds at least one."""
    if isinstance(node, Listing):
        return node.items
    if not isinstance(node, Broken):
        draft.note(f"'{key}' is a list", node.span, f"write each item on a line: {example}")
    return ()


def named_entries(draft: Draft, key: str, *, taken: bool = True) -> list[tuple[str, Scalar]]:
    """The entries of `params`, `edges` or `bindings`: the names and their texts."""
    node = draft.nodes.get(key)
    if not isinstance(node, Entries):
        if node is not None and not isinstance(node, Broken):
            draft.note(f"'{key}' is a mapping of names", node.span, "write each as 'name: value'")
        return []
    found: list[tuple[str, Scalar]] = []
    for name, value in node.entries:
        if not name.text.isidentifier() or not name.text.isascii():
            what = f"'{_short(name.text)}' is not a name"
            draft.note(what, name.span, "use letters, digits and '_', a letter first")
        elif taken and (name.text in NAMES or keyword.iskeyword(name.text)):
            what = f"'{name.text}' is a word of the pattern language"
            draft.note(what, name.span, "choose another name")
        elif isinstance(value, Scalar):
            found.append((name.text, value))
        elif not isinstance(value, Broken):
            draft.note(f"'{name.text}' is one expression", value.span)
    return found


def parsed_text(draft: Draft, node: Scalar, what: str) -> Parsed | None:
    """The syntax tree of a scalar, where it holds something."""
    if not node.text.strip():
        draft.note(f"{what} is empty", node.span, "write an expression behind the ':'")
        return None
    return parse(node, draft.problems)


def edge_set(draft: Draft, node: Node, what: str) -> Pattern | None:
    """The edge set that a scalar's expression writes."""
    if not isinstance(node, Scalar):
        if not isinstance(node, Broken):
            draft.note(f"{what}: one expression is needed", node.span)
        return None
    parsed = parsed_text(draft, node, what)
    value = evaluate_edges(parsed, draft.scope, draft.problems).value if parsed else BAD
    return value if isinstance(value, Pattern) else None


def integer(draft: Draft, node: Node | None, key: str, default: int, least: int, most: int) -> int:
    """The value of a key that holds an integer; the default where it is missing or wrong."""
    if node is None or isinstance(node, Broken):
        return default
    if not isinstance(node, Scalar):
        draft.note(f"'{key}' is one integer", node.span)
        return default
    parsed = parsed_text(draft, node, f"'{key}'")
    value = evaluate(parsed, draft.scope, draft.problems).value if parsed else BAD
    if isinstance(value, Bad):
        return default
    try:
        return check_int(key, "the value", value, least, most)
    except PatternError as error:
        draft.note(str(error), node.span)
        return default


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
