"""The group of commands, in the order in which a person meets them."""

from __future__ import annotations

import click

from patterncc._version import __version__
from patterncc.cli import build, cache, compare, fidelity, inspect, measure, tune
from patterncc.cli.answer import Commands

_COMMANDS = (
    inspect.check,
    inspect.show,
    measure.analyze,
    measure.explain,
    compare.compare,
    cache.cache,
    build.compile_,
    fidelity.fidelity,
    measure.bench,
    tune.tune,
    build.doctor,
    build.demo,
)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="patterncc")
@click.pass_context
def main(ctx: click.Context) -> None:
    """A compiler for attention topologies.

    Write down who may read whom, see what it reaches over depth, and compile it to a kernel.

    Exit status: 0 well, 1 an expectation or lint failed, 2 bad input.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in _COMMANDS:
    main.add_command(_command)
