"""The report as plain text: stable, diffable, readable at 80 columns."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from patterncc.analysis.cost import total

if TYPE_CHECKING:
    from patterncc.analysis.cost import LevelCost
    from patterncc.analysis.curve import Figure
    from patterncc.analysis.report import Report

WIDTH = 80
LABEL = 15  # columns of what stands before a figure
MOST_LINES = 24  # layers of the curve that are printed before it is thinned


def render(report: Report, width: int = WIDTH) -> str:
    """All sections of a report, an empty line between them."""
    return "\n\n".join("\n".join(lines) for lines in sections(report, width) if lines)


def sections(report: Report, width: int = WIDTH) -> list[list[str]]:
    """Headline, reach curve, figures, cost, findings and notes, each as its lines."""
    from patterncc.analysis.text_figures import figures

    return [
        _headline(report, width),
        _curve(report, width),
        figures(report, width),
        _cost(report, width),
        [line for f in report.findings for line in _finding(str(f), width)],
        [line for note in report.notes for line in wrapped(f"note: {note}", width)],
    ]


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
    return f"not decided: {full} layers, searched to {full.searched} ({have})"


def counted(number: int, thing: str) -> str:
    """A number with its noun.

    >>> counted(1, "layer"), counted(1200, "layer")
    ('1 layer', '1,200 layers')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def share_text(figure: Figure) -> str:
    """A share in per cent with the badge that belongs to it."""
    share = percent_text(figure.share)
    if not figure.certain and figure.share == 1.0:
        share = "about 100%"  # of a sample: it never says that reach is full
    return f"{share} {figure.badge} ({figure.engine})"


def percent_text(share: float, digits: int = 4) -> str:
    """A share in per cent; nothing but all is called 100%.

    >>> percent_text(0.12345), percent_text(1.0), percent_text(0.999999), percent_text(0.5, 3)
    ('12.35%', '100%', '<100%', '50%')
    """
    shown = f"{100 * share:.{digits}g}%"
    return "<100%" if shown == "100%" and share != 1.0 else shown


def wrapped(sentence: str, width: int = WIDTH, indent: int = 4) -> list[str]:
    """A sentence on lines of at most `width`, the later ones indented."""
    return textwrap.wrap(sentence, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def labelled(label: str, sentence: str, width: int = WIDTH) -> list[str]:
    """A figure's name and what is to be said of it, the words in one column.

    >>> labelled("hub load", "even")
    ['hub load       even']
    """
    lines = wrapped(sentence, max(24, width - LABEL), 0)
    return [f"{'' if k else label:<{LABEL}}{line}" for k, line in enumerate(lines)]


def amount(value: float) -> str:
    """A number that need not be whole: no digits behind the point from 100 on.

    >>> amount(26541.7), amount(9.87654)
    ('26,542', '9.88')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def place(first: int, last: int) -> str:
    """A run of layers.

    >>> place(3, 3), place(0, 11)
    ('3', '0-11')
    """
    return f"{first}" if first == last else f"{first}-{last}"


def _headline(report: Report, width: int) -> list[str]:
    stack = report.stack.splitlines()
    memory = f", {stack[0].partition(', ')[2]}" if ", " in stack[0] else ""
    return [
        f"Reach of {report.name + ', ' if report.name else ''}a stack of "
        f"{counted(report.layers, 'layer')} at {counted(report.n, 'token')}{memory}",
        *(line for text in stack[1:] for line in wrapped(text, width, 6)),
        *labelled(
            "allowed pairs",
            f"{report.pairs:,} ({report.pairs_name}; {report.pairs_how})",
            width,
        ),
        *labelled("depth to full", headline(report), width),
        *labelled(f"at {counted(report.depth, 'layer')}", share_text(report.reach[-1]), width),
    ]


def _curve(report: Report, width: int) -> list[str]:
    texts = {l: share_text(report.reach[l]) for _, l in _stretches(report)}
    room = max(10, width - 11 - max(map(len, texts.values())))
    lines = ["  after  share of allowed pairs"]
    for first, last in _stretches(report):
        bar = _bar(report, last, room)
        lines.append(f"{place(first, last):>7}  {bar:<{room}} {texts[last]}")
    if report.mean_hops is not None:
        lines.append(f"mean hops {report.mean_hops:.4g} over the pairs reached")
    return lines


def _bar(report: Report, layer: int, room: int) -> str:
    """The share as a bar; dots for what may be reached as well."""
    figure = report.reach[layer]
    sure = round(room * figure.share)
    open_ = figure.certain and figure.hi > figure.lo and report.pairs
    return "#" * sure + "." * (round(room * figure.hi / report.pairs) - sure if open_ else 0)


def _stretches(report: Report) -> list[tuple[int, int]]:
    """Numbers of layers to print: equal ends of the curve joined, long curves thinned evenly."""
    runs = [
        [l for l, _ in group] for _, group in groupby(enumerate(report.reach), key=lambda p: p[1])
    ]
    if len(runs) > MOST_LINES:
        step = (len(runs) - 1) / (MOST_LINES - 1)
        runs = [runs[round(k * step)] for k in range(MOST_LINES)]
    return [(run[0], run[-1]) for run in runs]


def _cost(report: Report, width: int) -> list[str]:
    def key(c: LevelCost) -> tuple[object, ...]:
        return c.kind, c.edges, c.edges_least, c.kv_bytes, c.kv_shared, c.how

    lines = ["  layer  kind         heads  edges a head  density  FLOPs of full  KV of full"]
    remarks: dict[str, list[str]] = {}
    for _, group in groupby(report.costs, key=key):
        run = list(group)
        c, where = run[0], place(run[0].layer, run[-1].layer)
        kv = c.kv_bytes / c.full_kv_bytes if c.full_kv_bytes else 0.0
        edges = f"{round(sum(c.edges) / c.heads):,}"
        lines.append(
            f"{where:>7}  {c.kind:<11}  {c.heads:>5}  "
            f"{'<= ' * (c.edges != c.edges_least) + edges:>12}  {c.density:>7.3g}  "
            f"{percent_text(c.flops_share):>13}  {percent_text(kv):>10}"
        )
        if c.how:
            remarks.setdefault(c.how, []).append(where)
        if c.kv_shared:
            remarks.setdefault("keys and values of another layer, none held", []).append(where)
    sums = total(report.costs)
    held = f", held {percent_text(sums.kv_held_share)}" * (sums.kv_held_share != sums.kv_share)
    said = [f"layer {', '.join(where)}: {how}" for how, where in remarks.items()]
    said.append(
        f"whole stack: {percent_text(sums.flops_share)} of full attention's FLOPs, "
        f"{percent_text(sums.kv_share)} of its KV cache read a step{held}"
    )
    return lines + [line for text in said for line in wrapped(text, width)] if report.costs else []


def _finding(text: str, width: int) -> list[str]:
    first, *rest = text.splitlines()
    more = [wrapped(line.strip(), width - 4, 0) for line in rest]
    return wrapped(first, width) + [f"    {line}" for lines in more for line in lines]
