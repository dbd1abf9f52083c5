"""Options that several commands take: sizes, parameters, bindings, files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patterncc.errors import PatternValueError
from patterncc.pattern import check_binding

if TYPE_CHECKING:
    from patterncc.language import PatternFile

_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


class Size(click.ParamType[int]):
    """A count: 4096, 1_048_576, 2**20 or 64Ki."""

    name = "size"

    def __init__(self, least: int = 1, most: int = 2**64) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or a usage error that says how to write one.

        >>> Size().convert("64Ki", None, None), Size().convert("2**20", None, None)
        (65536, 1048576)
        """
        if isinstance(value, int):
            return value
        match = re.fullmatch(
            r"(-?\d{1,30}(?:_\d{1,30}){0,9})(?:\*\*(\d{1,2})|(Ki|Mi|Gi))?", value.strip()
        )
        if not match:
            self.fail(f"{value!r} is not a size; write 4096, 2**20 or 64Ki", param, ctx)
        base, power, unit = match.groups()
        sign = -1 if base.startswith("-") else 1
        number: int = sign * int(base.lstrip("-")) ** int(power or 1) * _UNITS[unit or ""]
        if number < self.least:
            none = "; there is nothing to say of no token" if (number, self.least) == (0, 1) else ""
            self.fail(f"{number} is too small; it must be at least {self.least}{none}", param, ctx)
        if number > self.most:
            self.fail(f"{number} is too large; it must be at most {self.most}", param, ctx)
        return number


class Block(click.ParamType[tuple[int, int]]):
    """Tile sizes: 128, or 128x64 for queries x keys."""

    name = "block"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Queries and keys a tile; whether a layout can have them is the layout's to say."""
        match = re.fullmatch(r"(\d{1,9})(?:[x,](\d{1,9}))?", str(value).strip())
        if not match:
            self.fail(f"{value!r} is not a block; write 128 or 128x64", param, ctx)
        return int(match[1]), int(match[2] or match[1])


def pattern_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """FILE, -p NAME=VALUE and --bind NAME=LIST."""
    for option in (
        click.option(
            "--bind",
            multiple=True,
            metavar="NAME=LIST",
            help="Data for a name in the file, as --bind docs=[100,200] or --bind topk=FILE.npy.",
        ),
        click.option(
            "-p",
            "--param",
            "params",
            multiple=True,
            metavar="NAME=VALUE",
            help="Override a parameter of the file, as -p w=128.",
        ),
        click.argument("file", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


def n_option(help_text: str, required: bool = False) -> Callable[..., Any]:
    """--n, the number of tokens."""
    return click.option("--n", type=Size(), required=required, metavar="N", help=help_text)


def read(
    file: Path, params: tuple[str, ...] = (), bind: tuple[str, ...] = (), n: int | None = None
) -> PatternFile:
    """A pattern file with its overrides; a gallery name or a model's config.json will do too.

    n is the length asked for: a config is laid out for it unless -p length says another.
    """
    from patterncc import gallery
    from patterncc.language import load

    if file.is_dir() and (file / "config.json").is_file():
        file = file / "config.json"
    if file.suffix == ".json":
        return _from_config(file, params, bind, n)
    if not file.suffix and not file.exists():
        file = gallery.path(str(file))
    known = {p.stem for p in gallery.folder().glob("*.yaml")}
    if not file.exists() and file.stem in known:
        raise PatternValueError(
            f"no file {str(file)!r}; did you mean the gallery's {file.stem}? write {file.stem}"
        )
    loaded = load(file, **pairs(params, "-p"))
    if not bind:
        return loaded
    return replace(loaded, bindings={**loaded.bindings, **numbers(bind)})


def _from_config(
    file: Path, params: tuple[str, ...], bind: tuple[str, ...], n: int | None
) -> PatternFile:
    """A Hugging Face config.json seen as a pattern file."""
    from patterncc.config import read as read_config
    from patterncc.language import PatternFile
    from patterncc.stack import Stack

    given = pairs(params, "-p")
    if set(given) - {"length"}:
        raise PatternValueError(
            f"{file}: a model's config has no parameters to override with -p but length, "
            "the number of tokens"
        )
    length = Size().convert(given["length"], None, None) if given else n
    found = read_config(file, length)
    return PatternFile(
        name=found.name or file.stem,
        summary="",
        source=str(file),
        params={} if length is None else {"length": length},
        edges={},
        stack=Stack(found.layers, kv_from=found.kv_from, kv_heads=found.kv_heads),
        bindings=numbers(bind),
        expects=(),
        path=str(file),
        text="",
        notes=found.notes,
    )


def pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    """NAME=VALUE texts as a mapping.

    >>> pairs(("w=128", "hubs=[0, 5]"), "-p")
    {'w': '128', 'hubs': '[0, 5]'}
    """
    found: dict[str, str] = {}
    for text in given:
        name, sign, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if not sign or not name.isidentifier() or not value:
            raise PatternValueError(f"{option} {text!r}: write NAME=VALUE, as {option} w=128")
        if name in found:
            raise PatternValueError(f"{option} {name!r} is given twice")
        found[name] = value
    return found


def numbers(given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=LIST texts as integers, NAME=FILE.npy as the array that it holds.

    >>> numbers(("docs=[3, 5]", "labels=0,1,1"))
    {'docs': (3, 5), 'labels': (0, 1, 1)}
    """
    found: dict[str, Any] = {}
    for name, value in pairs(given, "--bind").items():
        check_binding("--bind", name)
        if value.endswith(".npy"):
            from patterncc.zones.choice import read_array

            found[name] = read_array(f"--bind {name}", value)
            continue
        bare = value[1:-1] if value[0] == "[" and value[-1] == "]" else value
        parts = bare.replace(" ", "").split(",")
        if not all(re.fullmatch(r"-?[0-9]{1,18}", part) for part in parts):
            raise PatternValueError(
                f"--bind {name}: {value!r} is not a list of integers; write {name}=[3,5], or "
                f"{name}=FILE.npy for an array"
            )
        found[name] = tuple(map(int, parts))
    return found


def check_output(path: Path | None, endings: tuple[str, ...]) -> None:
    """Refuse a file that could not be written, before the work that it is to hold."""
    if path is None:
        return
    if path.suffix not in endings:
        raise PatternValueError(
            f"-o: {str(path)!r} ends in {path.suffix or 'nothing'!r}; "
            f"use {', '.join(endings[:-1])} or {endings[-1]}"
        )
    if not path.parent.is_dir():
        raise PatternValueError(
            f"-o: cannot write {str(path)!r}: no folder {str(path.parent)!r}; make it first"
        )


def sizes_of(file: PatternFile) -> list[int]:
    """The lengths that a file speaks of, in `expect` and in its data, smallest first."""
    from patterncc.language import Measure

    found: set[int] = set()
    if file.path.endswith(".json") and isinstance(length := file.params.get("length"), int):
        found.add(length)
    for expect in file.expects:
        for term in expect.terms:
            if isinstance(term, Measure):
                found |= {v for k, v in term.arguments if k == "n" and isinstance(v, int)}
    return sorted(found)
