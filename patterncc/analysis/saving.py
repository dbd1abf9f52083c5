"""Results on disk: the kind by the name's ending, the file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from patterncc.errors import PatternError, PatternValueError


def save_as(path: str | os.PathLike[str], ways: Mapping[str, Callable[[], str]]) -> Path:
    """Write what the way of the name's ending gives, and say where.

    Raises PatternValueError for an ending that is none of `ways`, PatternError for a place that
    cannot be written.
    """
    target = Path(path)
    if target.suffix not in ways:
        ends = f"ends in {target.suffix!r}" if target.suffix else "has no ending"
        *most, last = ways
        raise PatternValueError(f"save: {str(target)!r} {ends}; use {', '.join(most)} or {last}")
    write_whole(target, ways[target.suffix]())
    return target


def write_whole(target: Path, content: str) -> None:
    """Write to a temporary name beside the target and move it there: the file appears whole, or
    what was there stays as it was."""
    name = None
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.fchmod(handle, 0o644)
        # names of files may hold bytes that are no text
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(content)
        os.replace(name, target)
        name = None
    except OSError as error:
        raise PatternError(
            f"save: cannot write {str(target)!r}: {error.strerror}; give another name or folder"
        ) from None
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)
