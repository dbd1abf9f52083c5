"""fidelity: patterns inside a pretrained model, beside what the analysis says of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from patterncc.cli.answer import Answer, answering, working
from patterncc.cli.compare import read_all
from patterncc.cli.options import Size, numbers, pairs
from patterncc.errors import PatternError, PatternValueError

if TYPE_CHECKING:
    from patterncc.fidelity import Candidate, Text

MOST = 64  # patterns of one table


@click.command()
@click.argument("model")
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="FILE",
    help="UTF-8 text, may be given several times; or kjv, docstrings, topics, which are there "
    "already.  Default: kjv, or docstrings where its package is not installed.",
)
@click.option(
    "--length",
    type=Size(2, 2**20),
    metavar="N",
    help="Tokens of a sequence; default: what the model takes, at most 1024.",
)
@click.option(
    "--count",
    type=Size(1, 2**20),
    metavar="K",
    help="Sequences, spread evenly over the texts; default: 64, of an encoder 24.",
)
@click.option(
    "--alpha",
    type=float,
    default=0.9,
    show_default=True,
    metavar="A",
    help="Weight of the residual stream in rollout, from 0 to 1.",
)
@click.option(
    "-p",
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a parameter in every file that has it, as -p w=128.",
)
@click.option(
    "--bind",
    multiple=True,
    metavar="NAME=LIST",
    help="Data for a name in all patterns, as --bind docs=[100,200].",
)
@answering
def fidelity(
    model: str,
    patterns: tuple[str, ...],
    texts: tuple[str, ...],
    length: int | None,
    count: int | None,
    alpha: float,
    params: tuple[str, ...],
    bind: tuple[str, ...],
) -> Answer:
    """Put each PATTERN into a pretrained MODEL and say how close the model stays to itself.

    MODEL is a folder of a transformers model (safetensors and a tokenizer), or glassllm or minilm,
    which install as packages.  A PATTERN is a pattern file, a name in the gallery, either with
    parameters after colons (streaming-llm:recent=32), or an expression: "causal() & window(31)".
    Nothing is downloaded and nothing is random.
    """
    candidates = _candidates(patterns, params, bind, length)
    read = [_text(name) for name in texts]
    with working(f"Putting patterns into {model}") as say:
        say("opening it")
        from patterncc.fidelity import default_text, open_model, sequences
        from patterncc.fidelity import fidelity as compare

        opened = open_model(model)
        say("cutting text into sequences")
        cut = sequences(opened, read or [default_text()], length, count)
        found = compare(opened, candidates, cut, alpha=alpha, progress=say)
    return Answer(found.to_json(), str(found))


def _candidates(
    patterns: tuple[str, ...], params: tuple[str, ...], bind: tuple[str, ...], n: int | None
) -> dict[str, Candidate]:
    """Every pattern by its label, in the order given."""
    from patterncc.fidelity import Candidate
    from patterncc.language import parse_expression
    from patterncc.stack import Stack
    from patterncc.zones.lower import names_in

    if len(patterns) > MOST:
        raise PatternValueError(f"fidelity: {len(patterns)} patterns; at most {MOST}")
    written = [p for p in patterns if _is_expression(p)]
    files = tuple(p for p in patterns if p not in written)
    named = read_all(files, params, bind, n) if files else {}
    if params and not files:
        raise PatternValueError(f"-p {params[0]!r}: an expression has no parameters")
    found: dict[str, Candidate] = {}
    labels = iter(named.items())
    for typed in dict.fromkeys(patterns):
        if typed in written:
            stack, bindings, label = Stack(parse_expression(typed)), numbers(bind), typed
        else:
            label, loaded = next(labels)
            stack, bindings = loaded.stack, dict(loaded.bindings)
        used = names_in(stack.patterns)
        found[label] = Candidate(stack, {k: v for k, v in bindings.items() if k in used})
    for name in pairs(bind, "--bind"):
        if not any(name in c.bindings for c in found.values()):
            raise PatternValueError(f"--bind {name!r}: none of the patterns has this name")
    return found


def _is_expression(typed: str) -> bool:
    return "(" in typed and not Path(typed).exists()


def _text(name: str) -> Text:
    from patterncc.fidelity import NAMED, named_text, read_text

    if name in NAMED and not Path(name).exists():
        return named_text(name)
    try:
        return read_text(name)
    except PatternError as error:
        if Path(name).exists() or Path(name).suffix:
            raise
        raise PatternError(f"{error}; texts that are there already: {', '.join(NAMED)}") from None
