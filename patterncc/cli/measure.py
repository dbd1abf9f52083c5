"""analyze, explain and bench: what a stack reaches, why two tokens meet, how long things take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from patterncc.cli.answer import FAILED, WELL, Answer, answering, working
from patterncc.cli.options import Size, check_output, n_option, pattern_options, read, sizes_of
from patterncc.cli.styled import show

DEFAULT_N = 4096


STAGES = {  # figures that are computed when they are first read, and what is said meanwhile
    "influence": "influence of the last token",
    "hubs": "hub load",
    "robustness": "robustness to lost relays",
    "small_world": "small-world figures",
    "spectrum": "spectral gap",
    "content": "layers that choose by content",
}


def analysis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What analyze and compare both let one choose; None where it is left to the analysis."""
    for option in (
        click.option(
            "--seed", type=Size(0), metavar="S", help="Of that draw and of sampled figures; 0."
        ),
        click.option(
            "--sources",
            type=Size(0),
            metavar="K",
            help="Tokens that are drawn where only a sample can be followed; 512.  0 keeps to "
            "certain bounds.",
        ),
        click.option(
            "--alpha",
            type=float,
            metavar="A",
            help="Weight of the residual stream in influence, from 0 to 1; 0.5.",
        ),
        click.option(
            "--pairs",
            metavar="NAME",
            help="Pairs that count: causal, all or documents; inferred unless given.",
        ),
        click.option(
            "--engine",
            metavar="NAME",
            help="How reach is found: auto (the cheapest exact one), offsets, zones, tiles or "
            "rows.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@pattern_options
@n_option("Tokens; default: the longest that the file expects something of, else 4096.")
@click.option("--depth", type=Size(0), metavar="L", help="Layers; default: the stack's own.")
@analysis_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help="Write a .html, .json or .txt report.",
)
@answering
def analyze(
    file: Path,
    params: tuple[str, ...],
    bind: tuple[str, ...],
    n: int | None,
    depth: int | None,
    output: Path | None,
    **options: Any,
) -> Answer:
    """Say what FILE reaches over depth, how much of it survives, and what it costs.

    FILE is a pattern file, the name of one in the gallery, or a model's config.json.
    """
    from patterncc.analysis import analyze as analyse

    check_output(output, (".html", ".json", ".txt"))
    loaded = read(file, params, bind, n)
    length = n or max(sizes_of(loaded), default=DEFAULT_N)
    more = {k: v for k, v in options.items() if v is not None} | loaded.bindings
    with working(f"Following {loaded.name} over {length:,} tokens") as say:
        say("reach")
        report = analyse(loaded.stack, length, depth, **more)
        notes = (*report.notes, *loaded.notes)
        report = replace(report, notes=notes, name=loaded.name)
        for figure, stage in STAGES.items():
            say(stage)
            getattr(report, figure, None)
        if output is not None:
            say(f"writing {output}")
            report.save(output)
        data = {"file": str(file), "name": loaded.name, **report.to_json()}
    wrote = f"wrote {output}" if output else ""
    text = "\n\n".join(filter(None, (str(report), wrote)))
    return Answer(data, text, styled=lambda: show(report, wrote))


@click.command()
@pattern_options
@click.option(
    "--query", "-i", type=Size(0), required=True, metavar="I", help="The token that reads."
)
@click.option(
    "--key", "-j", type=Size(0), required=True, metavar="J", help="The token that is read."
)
@n_option("Tokens; default: as for analyze, and enough for both.")
@click.option(
    "--depth", type=Size(0), metavar="L", help="Layers to search; default: the stack's own."
)
@answering
def explain(
    file: Path,
    params: tuple[str, ...],
    bind: tuple[str, ...],
    query: int,
    key: int,
    n: int | None,
    depth: int | None,
) -> Answer:
    """Say which rules let I read J; else the shortest path between them over the layers."""
    from patterncc.analysis import explain as explained

    loaded = read(file, params, bind, n)
    memory = loaded.stack.memory  # positions count it, lengths do not
    usual = max(sizes_of(loaded), default=DEFAULT_N)  # random edges depend on the length
    length = n or max(usual, query + 1 - memory, key + 1 - memory)
    more: dict[str, Any] = dict(loaded.bindings)
    with working(f"Searching paths from {key} to {query}"):
        found = explained(loaded.stack, length, query, key, depth, names=loaded.edges, **more)
    return Answer({"file": str(file), "n": length, **found.to_json()}, str(found))


BENCHES = {  # and the options that each takes, so that others are refused before anything is loaded
    "compile": ("repeats",),
    "reach": ("repeats",),
    "cpu": ("n", "repeats"),
    "cost": ("repeats",),
    "plan": ("n", "only"),
    "gpu": ("repeats", "only", "ways", "quick", "output", "resume"),
    "check": ("only", "quick", "output"),
    "build": ("repeats", "only"),
    "train": ("n", "repeats"),
    "swap": ("n", "repeats"),
    "report": ("folder",),
}


@click.command()
@click.argument("what", type=click.Choice(list(BENCHES)))
@click.option(
    "--repeats",
    type=click.IntRange(1, 1000),
    help="compile, reach, cpu, cost, gpu, build, train, swap: runs of each way; medians are shown.",
)
@n_option("cpu, plan, train, swap: tokens.")
@click.option(
    "--only", metavar="TEXT", help="plan, gpu, check, build: only cases whose name holds TEXT."
)
@click.option("--ways", metavar="NAMES", help="gpu: only these beside ours, as flex,sdpa.")
@click.option(
    "--quick", is_flag=True, default=None, help="gpu: a few cases, fewer runs; check: small sizes."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="gpu, check: written whole after each case.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="report: where the JSON files and the page lie; docs/benchmarks.",
)
@click.option("--resume", is_flag=True, default=None, help="gpu: keep the cases that FILE holds.")
@answering
def bench(what: str, **options: Any) -> Answer:
    """Measure patterncc beside its peers in the same run; losses are shown too.

    plan counts instead, and needs no GPU.  gpu needs one, and so does check, which holds every
    kernel to float64 there.  report writes the page of what was measured.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in BENCHES[what]:
            takers = ", ".join(w for w, names in BENCHES.items() if name in names)
            raise click.UsageError(f"bench {what} has no --{name}; those that have: {takers}")
    check_output(given.get("output"), (".json",))
    module = import_module(f"patterncc.bench.{what}")
    with working(f"Measuring {what}") as say:
        result: dict[str, Any] = module.run(progress=say, **given)
    status = FAILED if result.get("failed") else WELL
    told = module.text(result) if hasattr(module, "text") else _plain(result)
    return Answer(result, told, status)


def _plain(value: object, indent: str = "") -> str:
    """A result without a table of its own, line by line."""
    match value:
        case dict():
            return "\n".join(f"{indent}{k}:{_below(v, indent)}" for k, v in value.items())
        case list():
            return "\n".join(f"{indent}-{_below(v, indent)}" for v in value)
        case _:
            return f"{indent}{value}"


def _below(value: object, indent: str) -> str:
    return "\n" + _plain(value, indent + "  ") if isinstance(value, dict | list) else f" {value}"
