"""An artifact as a folder: written beside it first, so that a failure leaves what was there."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from patterncc.artifact.artifact import Artifact
from patterncc.artifact.build import KINDS, names_of
from patterncc.errors import PatternError

MANIFEST = "manifest.json"
LAYOUT = re.compile(r"layout(-\d{1,9})?\.safetensors")
SOURCE = re.compile(rf"({'|'.join(KINDS)})-([0-9a-f]{{16}})\.py")


def save(artifact: Artifact, folder: Path) -> None:
    """As `Artifact.save`."""
    part = None
    try:
        part = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
        written = _fill(artifact, part)
        part.chmod(0o755)
        if folder.exists():
            _check_targets(folder, written)
            for name in written:
                os.replace(part / name, folder / name)
            for old in folder.iterdir():  # of an earlier artifact, which the manifest replaced
                ours = LAYOUT.fullmatch(old.name) or SOURCE.fullmatch(old.name)
                if ours and old.name not in written:
                    old.unlink()
        else:
            os.replace(part, folder)
    except OSError as error:
        raise PatternError(f"compile: cannot write {str(folder)!r}: {error.strerror}") from None
    except ValueError as error:  # a zero byte in the path, say
        raise PatternError(f"compile: cannot write {str(folder)!r}: {error}") from None
    finally:
        if part is not None and part.exists():
            shutil.rmtree(part)


def _fill(artifact: Artifact, folder: Path) -> list[str]:
    """Every file of the artifact, the manifest last; their names."""
    names = names_of(artifact.layouts)
    for name, layout in zip(names, dict.fromkeys(artifact.layouts), strict=True):
        layout.save(folder / name)
    for name, text in artifact.sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    text = json.dumps(artifact.manifest, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return [*names, *artifact.sources, MANIFEST]


def _check_targets(folder: Path, names: list[str]) -> None:
    """Refuse before the first file is replaced."""
    for name in names:
        if (folder / name).is_dir():
            raise PatternError(
                f"compile: {str(folder / name)!r} is a folder, and a file of that name is to be "
                "written; name another folder"
            )
