"""Reading an artifact back: nothing of a folder is believed before it was checked.

Names follow the patterns that `save` writes, so no path leaves the folder; sizes are looked at
before reading; sources are compared with their hashes and never executed.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patterncc.artifact.agree import (
    header_complaints,
    kernel_complaints,
    layout_complaints,
    strict_json,
)
from patterncc.artifact.artifact import SCHEMA, Artifact
from patterncc.artifact.folder import LAYOUT, MANIFEST, SOURCE
from patterncc.errors import LayoutError, PatternError
from patterncc.kernels.plan import Plan
from patterncc.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_MANIFEST = 2**24  # bytes
MAX_SOURCE = 2**20
MAX_LAYERS = 2**16


def load(folder: Path) -> Artifact:
    """As `Artifact.load`."""
    manifest = _manifest(folder)
    layers: dict[int, Layout] = {}
    kernels = manifest["kernels"]
    for row in manifest["layouts"]:
        layout = _layout(folder, row)
        for complaint in layout_complaints(manifest, row, layout):
            raise _wrong(folder, complaint)
        for index in row["layers"]:
            layers[index] = layout
        unknown = [name for name in row["kernels"] if name not in kernels]
        if unknown:
            raise _wrong(folder, f"{row['file']} runs {unknown[0]!r}, which is not in kernels")
    if sorted(layers) != list(range(sum(len(row["layers"]) for row in manifest["layouts"]))):
        raise _wrong(folder, "its layouts do not stand for layers 0, 1, .. each once")
    sources = {name: _source(folder, name, kernels) for name in kernels}
    for name in kernels:
        for complaint in kernel_complaints(manifest, name, plan_of(name, kernels)):
            raise _wrong(folder, complaint)
    return Artifact(tuple(layers[l] for l in sorted(layers)), sources, manifest)


def plan_of(name: str, kernels: dict[str, Any]) -> Plan:
    """The plan of a kernel in a manifest.

    Raises PatternError and its kinds for one that cannot be, or that is another's.
    """
    plan = Plan.parse(json.dumps(kernels[name]["plan"]))
    if f"{plan.kind}-{plan.digest}.py" != name:
        raise PatternError(f"{name} has the plan of {plan.kind}-{plan.digest}.py")
    return plan


def _wrong(folder: Path, what: str) -> LayoutError:
    return LayoutError(f"{folder / MANIFEST} is not a sound manifest: {what}")


def _read(path: Path, most: int) -> bytes:
    """A regular file of at most `most` bytes."""
    try:
        if not path.is_file():
            raise LayoutError(f"{path} is missing or no file; compile the pattern again")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise LayoutError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > most:
        raise LayoutError(f"{path} has more than {most} bytes, the most that are read")
    return data


def _manifest(folder: Path) -> dict[str, Any]:
    data = _read(folder / MANIFEST, MAX_MANIFEST)
    try:
        manifest = strict_json(data)
    except (ValueError, RecursionError) as error:
        raise _wrong(folder, f"it is not JSON: {error}") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise _wrong(folder, _schema_text(schema))
    for complaint in _complaints(manifest):
        raise _wrong(folder, complaint)
    found: dict[str, Any] = manifest
    return found


def _schema_text(schema: object) -> str:
    kind, _, number = SCHEMA.partition("/")
    match = re.fullmatch(rf"{re.escape(kind)}/([0-9]{{1,9}})", str(schema))
    if match and int(match[1]) > int(number):
        return f"its schema {schema!r} is newer than {SCHEMA!r}; update patterncc to read it"
    return f"its schema is {schema!r}, not {SCHEMA!r}; compile the pattern again"


def _complaints(manifest: dict[str, Any]) -> Iterator[str]:
    """What keeps the parts that are relied on from being what they should be."""
    yield from header_complaints(manifest)
    layouts, kernels = manifest.get("layouts"), manifest.get("kernels")
    if not isinstance(layouts, list) or not isinstance(kernels, dict):
        yield "layouts is a list and kernels an object"
        return
    count, files = 0, set[str]()
    for row in layouts:
        match row:
            case {"file": str(name), "hash": str(), "layers": list(layers), "kernels": list(used)}:
                count += len(layers)
                if not layers or name in files:  # each file is read once, however long the list
                    yield f"each of layouts has layers, and a file of its own, unlike {name!r}"
                files.add(name)
                if not LAYOUT.fullmatch(name):
                    yield f"{name!r} is not the name of a layout file"
                if not all(type(l) is int for l in layers) or count > MAX_LAYERS:
                    yield f"the layers of {name} are numbers, at most {MAX_LAYERS} in all"
                if not all(isinstance(k, str) for k in used):
                    yield f"the kernels of {name} are names"
            case _:
                yield "each of layouts has file, hash, layers and kernels"
    for name, row in kernels.items():
        match row:
            case {"sha256": str(), "plan": dict()} if SOURCE.fullmatch(name):
                continue
            case _:
                yield f"kernel {name!r} needs a name such as forward-0123456789abcdef.py, its "
                yield "sha256 and its plan"


def _layout(folder: Path, row: dict[str, Any]) -> Layout:
    layout = Layout.load(folder / row["file"])
    if layout.hash != row["hash"]:
        raise LayoutError(
            f"{folder / row['file']} has hash {layout.hash[:16]}, the manifest says "
            f"{row['hash'][:16]}: they are not of one artifact"
        )
    return layout


def _source(folder: Path, name: str, kernels: dict[str, Any]) -> str:
    data = _read(folder / name, MAX_SOURCE)
    found = hashlib.sha256(data).hexdigest()
    if found != kernels[name]["sha256"]:
        raise LayoutError(
            f"{folder / name} has sha256 {found[:16]}, the manifest says "
            f"{kernels[name]['sha256'][:16]}: it was altered"
        )
    try:
        plan_of(name, kernels)
        return data.decode("utf-8")
    except (PatternError, UnicodeDecodeError, TypeError, KeyError, ValueError) as error:
        raise _wrong(folder, f"the plan of {name} cannot be read: {error}") from None
