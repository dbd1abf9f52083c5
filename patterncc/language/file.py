"""Pattern files: `load` and `loads` read one, and report all of its mistakes at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from patterncc.errors import Diagnostic, PatternError, PatternSyntaxError, Span
from patterncc.language.assembly import KEYS, PASSES
from patterncc.language.draft import Draft, fields_of
from patterncc.language.expectation import Expect
from patterncc.language.source import MAX_BYTES, Entries, Node, Scalar, read_yaml
from patterncc.language.values import MAX_NOTED, Value
from patterncc.pattern import Pattern
from patterncc.stack import Stack

MAX_SHOWN = 20  # mistakes of one file that are reported; a file of noise has thousands


@dataclass(frozen=True)
class PatternFile:
    """What a pattern file says, its parameters filled in.

    `edges` holds the named edge sets, `stack` the layers built from them, `bindings` the file's
    data for the names that documents, clusters and routing are bound to, `expects` what it claims.
    `notes` are what a model's config leaves open, where the stack was read from one.
    """

    name: str
    summary: str
    source: str
    params: dict[str, Value]
    edges: dict[str, Pattern]
    stack: Stack
    bindings: dict[str, tuple[int, ...]]
    expects: tuple[Expect, ...]
    path: str
    text: str = field(repr=False)
    notes: tuple[str, ...] = ()


def load(path: str | os.PathLike[str], /, **params: object) -> PatternFile:
    """Read a pattern file; keyword arguments override its parameters.

    An override is an integer, a list of integers, or the text of an expression over the parameters
    that stand before it.

    Raises PatternSyntaxError with all of the file's mistakes and their places, PatternError where
    the file cannot be read.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise PatternError(f"cannot read the pattern file '{name}': {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise PatternError(
            f"{name} is larger than {MAX_BYTES} bytes, the most that a pattern file may have; "
            'put the data in a file of its own and name it: edges("graph.npz")'
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PatternError(f"{name}:{line}: not UTF-8 text; save the file as UTF-8") from None
    return _read(text, name, Path(name).parent, params)


def loads(text: str, /, file: str = "<string>", **params: object) -> PatternFile:
    """The same from a text; graph files are sought in the current folder.

    >>> f = loads("edges:\\n  near: causal() & window(w - 1)\\nparams:\\n  w: 4\\n", w=512)
    >>> f.edges["near"]
    causal() & window(511)
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise PatternError(f"{file} is larger than {MAX_BYTES} bytes, the most that is read")
    return _read(text, file, Path(), params)


def _read(text: str, file: str, folder: Path, params: Mapping[str, object]) -> PatternFile:
    problems: list[Diagnostic] = []
    draft = Draft(file, text, folder, params, problems)
    root = read_yaml(text, file, problems)
    if isinstance(root, Entries):
        draft.root = root.span
        draft.nodes = fields_of(draft, root, KEYS, "a pattern file")
        for fill in PASSES:
            fill(draft)
    elif not problems:
        what = "a pattern file is a mapping with the keys " + ", ".join(KEYS)
        draft.note(what, root.span if root else Span(file, 1, 1, 1, ""), "start with 'edges:'")
    if problems:
        raise PatternSyntaxError(_sorted(problems))
    return PatternFile(
        name=_words(draft.nodes.get("name")) or Path(file).stem,
        summary=_words(draft.nodes.get("summary")),
        source=_words(draft.nodes.get("source")),
        params=draft.params,
        edges=draft.edges,
        stack=Stack(
            draft.layers, draft.memory, kv_from=draft.kv_from or None, kv_heads=draft.kv_heads
        ),
        bindings=draft.bindings,
        expects=tuple(draft.expects),
        path=file,
        text=text,
    )


def _words(node: Node | None) -> str:
    return " ".join(node.text.split()) if isinstance(node, Scalar) else ""


def _sorted(problems: list[Diagnostic]) -> list[Diagnostic]:
    """In the order of the file, the first MAX_SHOWN of them."""
    ordered = sorted(problems, key=_place)
    more = len(ordered) - MAX_SHOWN
    if more > 0:
        last = ordered[MAX_SHOWN - 1]
        many = "many" if len(ordered) >= MAX_NOTED else more
        told = f"{last.remedy}\n    ... and {many} more mistakes in this file".lstrip("\n")
        ordered[MAX_SHOWN - 1] = replace(last, remedy=told)
    return ordered[:MAX_SHOWN]


def _place(problem: Diagnostic) -> tuple[int, str, int, int]:
    if problem.span is None:
        return (0, "", 0, 0)
    return (1, problem.span.file, problem.span.line, problem.span.column)
