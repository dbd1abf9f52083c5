"""A config.json as named fields: read with limits, each value checked where it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patterncc.errors import PatternError, PatternValueError
from patterncc.pattern import check_int

MAX_BYTES = 4 * 2**20  # id2label tables of classifiers are the largest part; weights are not JSON
MAX_LAYERS = 100_000
MAX_HEADS = 2**16
_SHOWN = 240  # characters of what is wrong in a message: a value can be megabytes of text

Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclass
class Fields:
    """The fields of one config, its family's defaults under them, and the notes made on the way."""

    where: str
    given: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """The value given, else transformers' default for the family (noted), else None."""
        if name in self.given:
            return self.given[name]
        value = self.defaults.get(name)
        if value is not None and value is not False:
            self.note(f"{name} is not in the config: {value}, the default of transformers")
        return value

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def number(self, name: str, least: int = 1, most: int = 2**40) -> int:
        value = self.get(name)
        if value is None:
            raise self.wrong(f"{name} is missing or null", f'give "{name}" an integer')
        return check_int(self.where, name, value, least, most)

    def optional(self, name: str, least: int = 1) -> int | None:
        value = self.get(name)
        return None if value is None else check_int(self.where, name, value, least)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(f"{name} is {value!r}", f'"{name}" is true, false or null')
        return bool(value)

    def listed(self, name: str, length: int | None = None) -> list[Any] | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self.wrong(f"{name} is {value!r}", f'"{name}" is a list, or null')
        if length is not None and len(value) != length:
            raise self.wrong(
                f"{name} has {len(value)} entries and the model {length} layers",
                f'"{name}" needs one entry for each layer',
            )
        return list(value)

    def wrong(self, what: str, remedy: str) -> PatternValueError:
        shown = what if len(what) <= _SHOWN else what[:_SHOWN] + "..."
        return PatternValueError(f"{self.where}: {shown}; {remedy}")


def open_source(source: Source) -> tuple[str, str, Mapping[str, Any]]:
    """The place for messages, a name, and the JSON object of a path, a folder or a mapping.

    Raises PatternError for what cannot be read or is not a JSON object.
    """
    if isinstance(source, Mapping):
        return "config", str(source.get("_name_or_path") or ""), source
    if not isinstance(source, str | os.PathLike):
        raise PatternError(
            f"from_hf: {type(source).__name__} is no config; give the path of a config.json, "
            "the folder it lies in, or its content as a dict (of a config object: .to_dict())"
        )
    path = Path(source)
    if path.is_dir():
        path /= "config.json"
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise PatternError(
            f"cannot read the config '{path}': {error.strerror or error}; "
            "give the path of a model's config.json or of its folder"
        ) from None
    if len(data) > MAX_BYTES:
        raise PatternError(
            f"{path} is larger than {MAX_BYTES} bytes; a model's config.json is far smaller"
        )
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PatternError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise PatternError(f"{path} is not a model's config: a JSON object is needed")
    return str(path), path.absolute().parent.name, found
