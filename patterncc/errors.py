"""What can go wrong, and where: one root exception, a few kinds, source spans with carets.

Every message says what is wrong, where it stands (``file:line:column`` and a caret where a file is
involved), and how to mend it.  ``assert`` is kept for the project's own invariants.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SHOWN = 160  # characters of a source line in a message


class PatternError(Exception):
    """Root of every error that patterncc raises on purpose."""


class PatternValueError(PatternError, ValueError):
    """A value that a pattern, a size or an option cannot have."""


class SizeError(PatternValueError):
    """An operation was refused before allocating, because its result would pass a stated limit."""


class TensorError(PatternError, ValueError):
    """Tensors whose shape, dtype or device does not fit the layout; both sides are quoted."""


class LayoutError(PatternError, ValueError):
    """A layout, or a layout file, that fails its checks."""


class BackendError(PatternError, RuntimeError):
    """A backend that cannot run what it was asked to run."""


class PatternWarning(UserWarning):
    """What was taken as it stands and may not be what was meant; ``warnings.filterwarnings`` turns
    it into an error or off."""


@dataclass(frozen=True)
class Span:
    """A stretch of one line of a source: 1-based line and column, and its length in characters."""

    file: str
    line: int
    column: int
    length: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def caret(self) -> str:
        """The source line with a caret under the span; of a long line, the stretch around it.

        >>> print(Span("a.yaml", 3, 9, 5, "  near: windw(3)").caret())
          near: windw(3)
                ^^^^^
        """
        first = max(0, self.column - 1 - _SHOWN // 2) if len(self.text) > _SHOWN else 0
        text = self.text[first : first + _SHOWN]
        pad = "".join("\t" if c == "\t" else " " for c in text[: self.column - 1 - first])
        carets = "^" * max(1, min(self.length, len(text) - len(pad)))
        before, after = "..." if first else "", "..." if first + _SHOWN < len(self.text) else ""
        return f"{before}{text}{after}\n{' ' * len(before)}{pad}{carets}"


@dataclass(frozen=True)
class Diagnostic:
    """One thing wrong in a source: what, where, and how to mend it."""

    message: str
    span: Span | None = None
    remedy: str = ""

    def __str__(self) -> str:
        head = f"{self.span}: {self.message}" if self.span else self.message
        lines = [head]
        if self.span:
            lines += ["    " + line for line in self.span.caret().splitlines()]
        if self.remedy:
            lines.append(f"    {self.remedy}")
        return "\n".join(lines)


class PatternSyntaxError(PatternError, ValueError):
    """A pattern file or expression with mistakes: all of them, each with its place."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        assert diagnostics
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(str(d) for d in diagnostics))


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known name, or lists the known ones.

    >>> suggest("windw", ["window", "causal"])
    "did you mean 'window'?"
    >>> suggest("xyz", ["window", "causal"])
    'known: causal, window'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return "known: " + ", ".join(names) if names else "none are defined"


def joined(items: Iterable[object], limit: int = 6) -> str:
    """A short comma list for messages: at most `limit` items, then how many more.

    >>> joined(range(8), limit=3)
    '0, 1, 2, ... (5 more)'
    """
    listed = [str(x) for x in items]
    more = len(listed) - limit
    return ", ".join(listed[:limit]) + (f", ... ({more} more)" if more > 0 else "")
