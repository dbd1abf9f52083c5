"""compile, doctor and demo: make the kernel, ask what this machine can do, see it all at work."""

from __future__ import annotations

from pathlib import Path

import click

from patterncc.cli.answer import FAILED, WELL, Answer, answering, working
from patterncc.cli.options import Block, n_option, pattern_options
from patterncc.errors import PatternValueError


@click.command("compile")
@pattern_options
@n_option("Tokens.", required=True)
@click.option(
    "--target",
    default="sm_90",
    show_default=True,
    metavar="ARCH",
    help="GPU to compile for: sm_80, sm_90 or sm_100.",
)
@click.option("--block", type=Block(), metavar="B[xB]", help="Tile size; default: chosen by cost.")
@click.option("--head-dim", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option(
    "--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), default="bf16", show_default=True
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for layout, kernel source and manifest.",
)
@answering
def compile_(
    file: Path,
    params: tuple[str, ...],
    bind: tuple[str, ...],
    n: int,
    target: str,
    block: tuple[int, int] | None,
    head_dim: int,
    dtype: str,
    output: Path,
) -> Answer:
    """Compile FILE for N tokens: layout, readable kernel source and a manifest, in DIR."""
    raise PatternValueError("compile: not there yet")


@click.command()
@answering
def doctor() -> Answer:
    """Say what is installed, which backend would run and why, and whether kernels compile here."""
    from patterncc import doctor as doc

    with working("Looking around"):
        found = doc.examine()
    return Answer(found, doc.text(found), WELL if found["ok"] else FAILED)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Run a real pretrained model with its attention replaced by compiled patterns."""
    from patterncc.demo import main

    main(list(arguments))
