"""compile, doctor and demo: make the kernel, ask what this machine can do, see it all at work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patterncc.cli.answer import FAILED, WELL, Answer, answering, working
from patterncc.cli.options import Block, n_option, pattern_options, read
from patterncc.errors import PatternValueError, SizeError

if TYPE_CHECKING:
    from patterncc.language import PatternFile
    from patterncc.layout.cost.choices import Choices

TARGETS = ("sm_80", "sm_90", "sm_100")


@click.command("compile")
@pattern_options
@n_option("Tokens.", required=True)
@click.option(
    "--target",
    default="sm_90",
    show_default=True,
    metavar="ARCH",
    help="GPU to compile for: sm_80, sm_90 or sm_100.  With --explain also cpu, or a table of "
    "patterncc bench cost.",
)
@click.option("--block", type=Block(), metavar="B[xB]", help="Tile size; default: chosen by cost.")
@click.option(
    "--head-dim",
    type=click.IntRange(1, 1024),
    default=64,
    show_default=True,
    help="Of queries, keys and values: 16 to 256 with -o; any with --explain alone.",
)
@click.option(
    "--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), default="bf16", show_default=True
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for layout, kernel source and manifest.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Say which token orders and tile sizes are weighed, which won and why, and whether dense "
    "attention would be faster; -o is then optional.",
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
    output: Path | None,
    explain: bool,
) -> Answer:
    """Compile FILE for N tokens: layout, readable kernel source and a manifest, in DIR.

    With --explain: the candidates that are weighed, the one that wins, and why.
    """
    if output is None and not explain:
        raise click.UsageError("Missing option '-o' / '--output'; or ask with --explain.")
    check_target(target, explain, output)
    loaded = read(file, params, bind, n)
    if output is not None:
        check_folder(output)
    data: dict[str, Any] = {}
    told = []
    with working(f"Compiling {loaded.name} for {target}") as say:
        if explain:
            say("weighing candidates")
            weighed = _weighed(loaded, n, block=block, target=target, head_dim=head_dim)
            data["choices"] = weighed.to_json()
            told.append(weighed.text())
        if output is not None:
            made, text = _written(loaded, n, target, dtype, head_dim, block, output, say)
            data |= {"output": str(output), **made}
            told.append(text)
    return Answer(data, "\n\n".join(told))


def _weighed(loaded: PatternFile, n: int, **asked: Any) -> Choices:
    """What compile weighs for a file."""
    from patterncc.layout import choices
    from patterncc.layout.limits import MAX_LENGTH

    if n > MAX_LENGTH:
        raise SizeError(
            f"compile: n = {n} is past {MAX_LENGTH}, the longest layout; give a smaller --n, or "
            "ask patterncc analyze, which answers up to 2**40 tokens"
        )
    more: dict[str, Any] = dict(loaded.bindings)
    return choices(loaded.stack, n, **asked, **more)


def _written(
    loaded: PatternFile,
    n: int,
    target: str,
    dtype: str,
    head_dim: int,
    block: tuple[int, int] | None,
    output: Path,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], str]:
    """The artifact in its folder: its manifest, and what was written in words."""
    from patterncc.artifact import Artifact
    from patterncc.artifact.text import text

    made = Artifact.build(
        loaded, n, target=target, dtype=dtype, head_dim=head_dim, block=block, progress=say
    )
    made.save(output)
    return made.manifest, text(output, made.manifest)


def check_target(target: str, explain: bool, output: Path | None) -> None:
    """Refuse what is no GPU where kernels are to be written, and a table that is not there."""
    if output is not None and (target == "cpu" or target.endswith(".json")):
        raise PatternValueError(
            f"compile: --target {target} is for --explain without -o; -o writes kernels of a GPU: "
            f"{', '.join(TARGETS)} (on a CPU pc.attention makes its own when it runs)"
        )
    if explain and target.endswith(".json") and not Path(target).is_file():
        raise PatternValueError(
            f"compile: --target: no file {target!r}; patterncc bench cost --json > cost.json makes "
            "a table of this machine"
        )


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
