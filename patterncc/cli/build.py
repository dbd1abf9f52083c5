"""compile, doctor and demo: make the kernel, ask what this machine can do, see it all at work."""

from __future__ import annotations

from pathlib import Path

import click

from patterncc.cli.answer import FAILED, WELL, Answer, answering, working
from patterncc.cli.options import Block, n_option, pattern_options, read
from patterncc.errors import PatternValueError

TARGETS = ("sm_80", "sm_90", "sm_100")


@click.command("compile")
@pattern_options
@n_option("Tokens.", required=True)
@click.option(
    "--target",
    default="sm_90",
    show_default=True,
    metavar="ARCH",
    help="GPU to compile for.",
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
    from patterncc.artifact import Artifact
    from patterncc.artifact.text import text

    loaded = read(file, params, bind, n)
    check_folder(output)
    with working(f"Compiling {loaded.name} for {target}") as say:
        made = Artifact.build(
            loaded, n, target=target, dtype=dtype, head_dim=head_dim, block=block, progress=say
        )
        made.save(output)
    return Answer({"output": str(output), **made.manifest}, text(output, made.manifest))


def check_folder(output: Path) -> None:
    """Refuse a folder that cannot be one, before anything is computed."""
    if output.exists() and not output.is_dir():
        raise PatternValueError(f"compile: {str(output)!r} is a file; name a folder")
    if not output.absolute().parent.is_dir():
        raise PatternValueError(
            f"compile: the folder {str(output.absolute().parent)!r} does not exist; make it"
        )


@click.command()
@answering
def doctor() -> Answer:
    """Say what is installed, which backend would run and why, and whether kernels compile here."""
    from patterncc import doctor as doc

    with working("Looking around"):
        found = doc.examine()
    return Answer(found, doc.text(found), WELL if found["ok"] else FAILED)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("build/demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for pictures and the summary page.",
)
@click.pass_context
@answering
def demo(ctx: click.Context, output: Path) -> Answer:
    """Run a real pretrained model with its attention replaced by compiled patterns."""
    from patterncc.demo import main

    as_json: bool = ctx.find_root().obj
    return Answer(main(output, say=lambda line: click.echo(line, err=as_json)), "")
