"""compare: several candidates side by side, and which of them no other beats."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patterncc.cli.answer import Answer, answering, working
from patterncc.cli.measure import DEFAULT_N, analysis_options
from patterncc.cli.options import Size, check_output, n_option, pairs, read, sizes_of
from patterncc.cli.styled import show
from patterncc.errors import PatternError, PatternSyntaxError, PatternValueError

if TYPE_CHECKING:
    from patterncc.language import PatternFile

MOST = 256  # candidates of one comparison


@click.command()
@click.argument("candidates", nargs=-1, required=True, metavar="CANDIDATE...")
@click.option(
    "-p",
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a parameter in every candidate that has it, as -p w=128.",
)
@click.option(
    "--bind",
    multiple=True,
    metavar="NAME=LIST",
    help="Data for a name in all candidates, as --bind docs=[100,200].",
)
@n_option("Tokens, the same for all; default: the longest that any of the files speaks of.")
@click.option("--depth", type=Size(0), metavar="L", help="Layers; default: each stack's own.")
@analysis_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the table and the plot: .html, .svg, .json or .txt.",
)
@answering
def compare(
    candidates: tuple[str, ...],
    params: tuple[str, ...],
    bind: tuple[str, ...],
    n: int | None,
    depth: int | None,
    output: Path | None,
    **options: Any,
) -> Answer:
    """Put candidates side by side: cost against depth to full, and cost against influence.

    A CANDIDATE is what analyze takes: a pattern file, a name in the gallery or a model's
    config.json.  Parameters may follow it, each after a colon: bigbird:w=2:r=4.  The same file
    may stand there several times with different ones.
    """
    from patterncc.analysis import analyze
    from patterncc.analysis.compare.comparison import ENDINGS, Comparison
    from patterncc.zones.lower import check_bindings, names_in

    check_output(output, ENDINGS)
    if len(candidates) > MOST:
        raise PatternValueError(f"compare: {len(candidates)} candidates; at most {MOST}")
    named = read_all(candidates, params, bind, n)
    patterns = chain(*(file.stack.patterns for file in named.values()))
    check_bindings("compare", patterns, pairs(bind, "--bind"))
    length = n or max((s for file in named.values() for s in sizes_of(file)), default=DEFAULT_N)
    chosen = {k: v for k, v in options.items() if v is not None}
    reports = {}
    with working(f"Comparing at {length:,} tokens") as say:
        for k, (label, loaded) in enumerate(named.items()):
            say(f"{label}, {k + 1} of {len(named)}")
            used = names_in(loaded.stack.patterns)
            bound: dict[str, Any] = {k: v for k, v in loaded.bindings.items() if k in used}
            try:
                report = analyze(loaded.stack, length, depth, **chosen, **bound)
            except PatternSyntaxError:
                raise  # it names its own place
            except PatternError as error:
                raise type(error)(f"{label}: {error}") from None
            reports[label] = replace(report, notes=(*report.notes, *loaded.notes))
        say("influence")
        found = Comparison.of(reports)
        if output is not None:
            found.save(output)
    wrote = f"wrote {output}" if output else ""
    text = "\n\n".join(filter(None, (str(found), wrote)))
    return Answer(found.to_json(), text, styled=lambda: show(found, wrote))


def read_all(
    candidates: tuple[str, ...], params: tuple[str, ...], bind: tuple[str, ...], n: int | None
) -> dict[str, PatternFile]:
    """Every candidate by its label; a shared parameter goes to those that have it, and it must be
    some candidate's."""
    shared = pairs(params, "-p")
    used: set[str] = set()
    found: dict[str, PatternFile] = {}
    for typed in dict.fromkeys(candidates):
        file, own = parted(typed)
        loaded = read(file, own, bind, n)
        has = {"length"} if file.suffix == ".json" else set(loaded.params)
        more = {k: v for k, v in shared.items() if k in has and k not in pairs(own, "-p")}
        if more:
            own += tuple(f"{k}={v}" for k, v in more.items())
            loaded = read(file, own, bind, n)
        used |= set(pairs(own, "-p"))
        label = " ".join((loaded.name or file.stem, ", ".join(own))).strip()
        found[typed if label in found else label] = loaded
    for name in shared:
        if name not in used:
            raise PatternValueError(f"-p {name!r}: none of the candidates has this parameter")
    return found


def parted(typed: str) -> tuple[Path, tuple[str, ...]]:
    """A candidate's file and the parameters after it; a file whose name holds a colon is itself.

    >>> parted("bigbird:w=2:r=4")
    (PosixPath('bigbird'), ('w=2', 'r=4'))
    """
    if Path(typed).exists():
        return Path(typed), ()
    file, *params = typed.split(":")
    return Path(file), tuple(params)
