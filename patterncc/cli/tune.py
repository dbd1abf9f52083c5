"""tune: sizes of kernels, timed on the GPU that is here or compared for one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patterncc.cli.answer import Answer, answering, working
from patterncc.errors import PatternValueError

if TYPE_CHECKING:
    from patterncc.kernels.plan import Target
    from patterncc.kernels.tuning.compare import Found
    from patterncc.kernels.tuning.sizes import Key

KINDS = ("forward", "dq", "dkdv", "single", "decode")
TARGETS = ("sm_80", "sm_90", "sm_100")


@click.command()
@click.option(
    "--offline",
    type=click.Choice(TARGETS),
    help="Compare what sizes use, compiled for a GPU that need not be here.",
)
@click.option(
    "--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Kernels; all unless given."
)
@click.option(
    "--width",
    type=click.Choice(["half", "float32"]),
    multiple=True,
    help="Precisions: half is bf16 and fp16; both with --offline, half where kernels are timed.",
)
@click.option(
    "--head-dim",
    "head_dims",
    type=click.Choice(["64", "128", "256"]),
    multiple=True,
    help="Padded head dims; all with --offline, 64 and 128 where kernels are timed.",
)
@click.option("--every-tile", is_flag=True, help="Layouts' tiles of 64 too, not only of 128 x 128.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the table goes; timed ones are kept in the cache directory unless given.",
)
@answering
def tune(
    offline: str | None,
    kinds: tuple[str, ...],
    width: tuple[str, ...],
    head_dims: tuple[str, ...],
    every_tile: bool,
    output: Path | None,
) -> Answer:
    """Time the sizes that kernels may run at on this GPU, and keep the fastest for it.

    With --offline nothing runs: sizes are compiled for another GPU, and the likeliest clean one is
    told with its registers, stack and shared memory.  Clean: it fits into shared memory and a
    thread has at most 32 bytes of stack.  Where none is clean, the one that spills least.
    """
    from patterncc.kernels.tuning.candidates import keys
    from patterncc.kernels.tuning.sizes import HEAD_DIMS, TILES, WIDTHS

    if output is not None and output.suffix != ".json":
        raise PatternValueError(f"tune: {str(output)!r} is no .json; tables are JSON")
    dims = tuple(int(d) for d in head_dims) or (HEAD_DIMS if offline else HEAD_DIMS[:2])
    wanted = keys(
        tuple(k for k in KINDS if k in kinds or not kinds),  # type: ignore[misc]
        width or (WIDTHS if offline else WIDTHS[:1]),
        tuple(sorted(set(dims))),
        TILES if every_tile else TILES[:1],
    )
    if offline is not None:
        return _offline(offline, wanted, output)  # type: ignore[arg-type]
    return _here(wanted, output)


def _offline(target: Target, wanted: list[Key], output: Path | None) -> Answer:
    """Sizes compared by what they use."""
    from patterncc.kernels.tuning import compare as tune
    from patterncc.kernels.tuning import stored

    with working(f"Compiling for {target}") as say:
        found = tune.sweep(target, wanted, say)
    data = {"target": target, "basis": tune.OFFLINE, "keys": tune.report(found)}
    if output is not None:
        stored.store(tune.table_of(target, found), output, tune.notes_of(found))
    return _answer(data, found, output)


def _here(wanted: list[Key], output: Path | None) -> Answer:
    """Sizes timed on this machine's GPU."""
    from patterncc.kernels.tuning import compare as tune
    from patterncc.kernels.tuning import stored, timing

    device, name, target = timing.gpu()
    with working(f"Timing on {name}") as say:
        found = timing.timed(target, wanted, device, say)
    path = output or stored.path_of(name)
    table = tune.measured(target, found, name, stored.triton_version())
    stored.store(table, path, tune.notes_of(found))
    data = {"target": target, "device": name, "basis": table.basis, "keys": tune.report(found)}
    return _answer(data, found, path)


def _answer(data: dict[str, Any], found: list[Found], output: Path | None) -> Answer:
    from patterncc.kernels.tuning import compare as tune

    wrote = [f"wrote {output}"] if output else []
    return Answer(
        data | ({"wrote": str(output)} if output else {}),
        "\n".join([tune.text(found), data["basis"], *wrote]),
    )
