"""What every command shares: one answer as text or JSON, errors without tracebacks, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import click

from patterncc.errors import PatternError, PatternSyntaxError

WELL, FAILED, BAD_INPUT = 0, 1, 2  # exit statuses


@dataclass(frozen=True)
class Answer:
    """What a command found: `data` for --json, `text` for people, and the exit status."""

    data: dict[str, Any]
    text: str
    status: int = WELL
    styled: Callable[[], None] | None = field(default=None, compare=False)


def answering(command: Callable[..., Answer]) -> Callable[..., None]:
    """Give a command --json, and print the Answer that it returns."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @wraps(command)
    def run(*context: click.Context, as_json: bool, **arguments: Any) -> None:
        answer = command(*context, **arguments)
        if as_json:
            click.echo(_json(answer.data))
        elif answer.styled and sys.stdout.isatty():
            answer.styled()
        elif answer.text:
            click.echo(_printable(answer.text))
        if answer.status != WELL:
            raise SystemExit(answer.status)

    return run


class Commands(click.Group):
    """The commands in the order given, errors as messages: exit 2, with --json also one object."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In order of use, not of the alphabet."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember whether JSON is wanted, for errors that come before a command runs."""
        ctx.obj = "--json" in args
        if args[:1] == ["--json"] and len(args) > 1:  # before the command it means the same
            args = [*args[1:], "--json"]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises on purpose becomes a message."""
        try:
            return super().invoke(ctx)
        except PatternError as error:
            _fail(ctx, type(error).__name__, str(error), _places(error))
        except (OSError, MemoryError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            _fail(ctx, type(error).__name__, str(error) or "out of memory", [])
        except click.UsageError as error:
            if ctx.obj:
                told = {"kind": "UsageError", "message": error.format_message()}
                click.echo(_json({"error": told}))
            raise


def _fail(ctx: click.Context, kind: str, message: str, places: list[dict[str, Any]]) -> None:
    click.echo(_printable(message if places else f"error: {message}"), err=True)
    if ctx.obj:
        told: dict[str, Any] = {"kind": kind, "message": message}
        click.echo(_json({"error": told | ({"places": places} if places else {})}))
    raise SystemExit(BAD_INPUT)


def _places(error: PatternError) -> list[dict[str, Any]]:
    """Each mistake of a file with its place, for tools that mark them in an editor."""
    if not isinstance(error, PatternSyntaxError):
        return []
    parts = ("file", "line", "column", "length")
    return [
        {"message": d.message, "remedy": d.remedy} | {k: getattr(d.span, k, None) for k in parts}
        for d in error.diagnostics
    ]


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, allow_nan=False)  # ASCII: file names may hold any bytes


def _printable(text: str) -> str:
    """Bytes of file names that are no text, written out: a terminal may refuse them.

    >>> _printable("caf\\udce9.yaml")
    'caf\\\\udce9.yaml'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while something long runs; silent unless a person looks on.

    It yields a function that says what is being done now.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(what)) as status:
        yield lambda now: status.update(escape(f"{what}: {now}"))
