"""cache: what the KV cache of a stack must hold while it decodes, and what may be evicted when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from patterncc.cli.answer import Answer, answering, working
from patterncc.cli.options import Size, n_option, pattern_options, read
from patterncc.errors import PatternValueError


@click.command()
@pattern_options
@n_option("Tokens that are decoded, prefill included.", required=True)
@click.option(
    "--prefill",
    type=Size(0),
    default=0,
    metavar="P",
    help="Tokens that are answered at once before decoding begins; default 0.",
)
@click.option("--head-dim", type=click.IntRange(1, 1024), default=128, show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16", "fp8"]),
    default="bf16",
    show_default=True,
)
@click.option(
    "--kv-heads", type=Size(1, 2**16), metavar="H", help="Key/value heads; default: the stack's."
)
@click.option(
    "--draw",
    type=Size(0),
    metavar="L",
    help="Draw which keys of layer L are alive when, a row a step.",
)
@answering
def cache(
    file: Path,
    params: tuple[str, ...],
    bind: tuple[str, ...],
    n: int,
    prefill: int,
    head_dim: int,
    dtype: str,
    kv_heads: int | None,
    draw: int | None,
) -> Answer:
    """Say which keys the KV cache of FILE must hold while it decodes N tokens, exactly.

    FILE is a pattern file, the name of one in the gallery, or a model's config.json.  What no later
    query reads may be evicted without changing any output.
    """
    from patterncc.cache import cache_plan
    from patterncc.cache.text import picture

    loaded = read(file, params, bind, n)
    more: dict[str, Any] = dict(loaded.bindings)
    with working(f"Planning the cache of {loaded.name} for {n:,} tokens"):
        plan = cache_plan(
            loaded.stack,
            n,
            prefill=prefill,
            head_dim=head_dim,
            kv_heads=kv_heads,
            dtype=dtype,
            **more,
        )
        text = f"{loaded.name}: {plan}"
        data = {"file": str(file), "name": loaded.name, **plan.to_json()}
    if draw is not None:
        if draw >= len(plan.layers):
            raise PatternValueError(
                f"cache: --draw {draw}, and {loaded.name} has layers 0 .. {len(plan.layers) - 1}"
            )
        text += f"\n\nkeys of layer {draw}, 0 .. {plan.stop - 1}\n{picture(plan.layers[draw])}"
    return Answer(data, "\n".join((text, *loaded.notes)))
