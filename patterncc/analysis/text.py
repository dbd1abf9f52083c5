"""The report as plain text: stable, diffable, readable at 80 columns."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patterncc.analysis.curve import Figure
    from patterncc.analysis.report import Report

WIDTH = 80
MOST_LINES = 24  # layers of the curve that are printed before it is thinned


def render(report: Report, width: int = WIDTH) -> str:
    """Headline, reach curve, cost and findings of a report, one statement a line."""
    parts = [_headline(report), _curve(report, width), _cost(report)]
    if report.findings:
        parts.append([line for f in report.findings for line in str(f).splitlines()])
    if report.notes:
        parts.append([f"note: {note}" for note in report.notes])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def headline(report: Report) -> str:
    """The depth to full in one sentence.

    >>> from patterncc import causal, window
    >>> from patterncc.analysis import analyze
    >>> headline(analyze(causal() & window(15), 256))
    'full at 17 layers (the stack has 1)'
    """
    full = report.full
    have = f"the stack has {report.layers}"
    if full.never:
        pair = report.witness
        shown = f": query {pair[0]} never sees key {pair[1]}" if pair else ""
        return f"never full, however many layers{shown}"
    if full.decided:
        return f"full at {counted(full.lo, 'layer')} ({have})"
    return f"full depth not decided: {full} layers, searched to {full.searched} ({have})"


def counted(number: int, thing: str) -> str:
    """A number with its noun.

    >>> counted(1, "layer"), counted(1200, "layer")
    ('1 layer', '1,200 layers')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def share_text(figure: Figure) -> str:
    """A share in per cent with the badge that belongs to it."""
    return f"{percent_text(figure.share)} {figure.badge} ({figure.engine})"


def percent_text(share: float, digits: int = 4) -> str:
    """A share in per cent; nothing but all is called 100%.

    >>> percent_text(0.12345), percent_text(1.0), percent_text(0.999999), percent_text(0.5, 3)
    ('12.35%', '100%', '<100%', '50%')
    """
    shown = f"{100 * share:.{digits}g}%"
    return "<100%" if shown == "100%" and share != 1.0 else shown


def wrapped(sentence: str, width: int = WIDTH) -> list[str]:
    """A sentence on lines of at most `width`, the later ones indented."""
    return textwrap.wrap(sentence, width, subsequent_indent="    ", break_on_hyphens=False)


def _headline(report: Report) -> list[str]:
    stack = report.stack.splitlines()
    return [
        f"Reach of a stack of {counted(report.layers, 'layer')} at {counted(report.n, 'token')}"
        + (f", {stack[0].partition(', ')[2]}" if ", " in stack[0] else ""),
        *stack[1:],
        f"allowed pairs  {report.pairs:,} ({report.pairs_name}; {report.pairs_how})",
        f"depth to full  {headline(report)}",
        f"{'at ' + counted(report.depth, 'layer'):<13}  {share_text(report.reach[-1])}",
    ]


def _curve(report: Report, width: int) -> list[str]:
    lines = ["layer  share of allowed pairs"]
    for first, last in _stretches(report):
        figure = report.reach[last]
        place = f"{first}" if first == last else f"{first}-{last}"
        text = share_text(figure)
        room = max(10, width - 10 - 34)
        bar = "#" * round(room * figure.share)
        lines.append(f"{place:>7}  {bar:<{room}} {text}")
    if report.mean_hops is not None:
        lines.append(f"mean hops {report.mean_hops:.4g} over the pairs reached")
    return lines


def _stretches(report: Report) -> list[tuple[int, int]]:
    """Layers to print: equal ends of the curve joined, long curves thinned evenly."""
    runs = [
        [l for l, _ in group] for _, group in groupby(enumerate(report.reach), key=lambda p: p[1])
    ]
    if len(runs) > MOST_LINES:
        step = (len(runs) - 1) / (MOST_LINES - 1)
        runs = [runs[round(k * step)] for k in range(MOST_LINES)]
    return [(run[0], run[-1]) for run in runs]


def _cost(report: Report) -> list[str]:
    lines = ["layer    heads  edges a head  density  FLOPs of full  KV of full"]
    keyed = groupby(report.costs, key=lambda c: (c.edges, c.kv_bytes))
    for _, group in keyed:
        run = list(group)
        c = run[0]
        place = f"{c.layer}" if len(run) == 1 else f"{c.layer}-{run[-1].layer}"
        kv = c.kv_bytes / c.full_kv_bytes if c.full_kv_bytes else 0.0
        lines.append(
            f"{place:>7}  {c.heads:>5}  {round(sum(c.edges) / c.heads):>12,}  {c.density:>7.3g}  "
            f"{percent_text(c.flops_share):>13}  {percent_text(kv):>10}"
        )
    return lines if report.costs else []
