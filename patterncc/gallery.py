"""Where the pattern files that come with patterncc lie: in the checkout, or inside the wheel."""

from __future__ import annotations

from pathlib import Path

from patterncc.errors import PatternValueError, suggest


def folder() -> Path:
    """The folder of the gallery's YAML files.

    >>> (folder() / "bigbird.yaml").is_file()
    True
    """
    here = Path(__file__).resolve().parent
    packed = here / "patterns"
    return packed if packed.is_dir() else here.parent / "patterns"


def path(name: str) -> Path:
    """The file of a gallery pattern, by its name.

    >>> path("mistral-7b").name
    'mistral-7b.yaml'

    Raises PatternValueError for a name that the gallery does not have.
    """
    known = {p.stem: p for p in folder().glob("*.yaml")}
    if name not in known:
        raise PatternValueError(f"the gallery has no pattern '{name}'; {suggest(name, known)}")
    return known[name]
