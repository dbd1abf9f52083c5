"""The "sparse_attention" section of a DeepSpeed config, read with limits and checks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patterncc.errors import PatternError, PatternValueError, suggest
from patterncc.pattern import check_int

MAX_FILE = 4 * 2**20  # bytes of a config
MAX_LISTED = 65_536  # entries of a list of blocks
MAX_BLOCKS = 2**24  # a number of blocks
_SHOWN = 120  # characters of a value in a message

Config = Mapping[str, Any] | str | os.PathLike[str]

KEYS = (
    *("mode", "block", "different_layout_per_head", "num_local_blocks", "num_global_blocks"),
    *("attention", "horizontal_global_attention", "num_different_global_patterns"),
    *("num_random_blocks", "local_window_blocks", "global_block_indices"),
    *("global_block_end_indices", "num_sliding_window_blocks"),
)


def _section(config: Config) -> tuple[str, Mapping[str, Any]]:
    """The place for messages, and the section as it was given."""
    where, content = ("config", config) if isinstance(config, Mapping) else _read(config)
    if "sparse_attention" in content:
        section = content["sparse_attention"]
        if not isinstance(section, Mapping):
            raise PatternError(f'{where}: "sparse_attention" is an object, not {shown(section)}')
        return where, section
    if not any(key in content for key in KEYS):
        raise PatternError(
            f'{where}: there is no "sparse_attention" in it; '
            "give a DeepSpeed config that has the section, or the section itself"
        )
    return where, content


def _read(source: str | os.PathLike[str]) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(source, str | os.PathLike):
        raise PatternError(
            f"from_deepspeed: a {type(source).__name__} is no config; give a path or a dict"
        )
    path = Path(source)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PatternError(f"cannot read '{path}': {reason}") from None
    if len(data) > MAX_FILE:
        raise PatternError(f"{path} is larger than {MAX_FILE} bytes; a config is far smaller")
    try:
        found = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise PatternError(f"{path} is not a DeepSpeed config: {error}") from None
    if not isinstance(found, dict):
        raise PatternError(f"{path} is not a DeepSpeed config: a JSON object is needed")
    return str(path), found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated keys, which DeepSpeed refuses too."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{shown(key)} stands in it twice")
        found[key] = value
    return found


@dataclass(frozen=True)
class Section:
    """The section, read with checks, DeepSpeed's defaults under it; null is not given."""

    where: str
    given: Mapping[str, Any]

    @staticmethod
    def of(config: Config) -> Section:
        """The section of a config, its keys checked."""
        section = Section(*_section(config))
        for key in section.given:
            if key not in KEYS:
                near = suggest(shown(key), KEYS)
                raise section.wrong(f"key {shown(key)} is not known", near)
        return section

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.number("block", 16, 1, 2**20)

    def number(self, key: str, default: int, least: int, most: int = MAX_BLOCKS) -> int:
        value = self.given.get(key)
        return self._number(key, default if value is None else value, least, most)

    def _number(self, key: str, value: object, least: int, most: int) -> int:
        if not isinstance(value, int):
            raise self.wrong(f"{key} holds {shown(value)}", "an integer is needed")
        return check_int(self.where, key, value, least, most)

    def flag(self, key: str) -> bool:
        value = self.given.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(f"{key} is {shown(value)}", "it is true or false")
        return bool(value)

    def listed(self, key: str, default: Sequence[int] | None, least: int) -> list[int] | None:
        value = self.given.get(key)
        value = default if value is None else value
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) > MAX_LISTED:
            raise self.wrong(
                f"{key} is {shown(value)}", f"it is a list of at most {MAX_LISTED} integers"
            )
        return [self._number(key, x, least, MAX_BLOCKS) for x in value]

    def text(self, key: str, default: str, known: Iterable[str]) -> str:
        value = self.given.get(key)
        value = default if value is None else value
        if not isinstance(value, str) or value not in known:
            raise self.wrong(f"{key} is {shown(value)}", suggest(str(value)[:_SHOWN], known))
        return value

    def forward_only(self, default: str = "bidirectional") -> bool:
        known = ("unidirectional", "bidirectional")
        return self.text("attention", default, known) == "unidirectional"

    def horizontal(self, forward_only: bool) -> bool:
        value = self.flag("horizontal_global_attention")
        if value and forward_only:
            raise self.wrong(
                "horizontal_global_attention with unidirectional attention",
                "DeepSpeed has it for bidirectional attention only",
            )
        return value

    def hubs(self) -> list[tuple[int, int]]:
        """First global block and one past the last, as listed."""
        starts = self.listed("global_block_indices", [0], 0) or []
        ends = self.listed("global_block_end_indices", None, 1)
        if ends is None:
            return [(x, x + 1) for x in starts]
        if len(ends) != len(starts) or any(a >= b for a, b in zip(starts, ends, strict=True)):
            raise self.wrong(
                "global_block_end_indices do not fit global_block_indices",
                "one end for each index, and after it",
            )
        return list(zip(starts, ends, strict=True))

    def wrong(self, what: str, remedy: str) -> PatternValueError:
        return PatternValueError(f"{self.where}: sparse_attention: {what}; {remedy}")


def shown(value: object) -> str:
    """The value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
