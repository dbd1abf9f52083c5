"""Reports and comparisons in colours: the words of their plain text, marked by what they say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from patterncc.analysis import Comparison, Report

MOST_WIDTH = 120  # columns that a report uses of a wide terminal
LEAST_WIDTH = 60
LABELS = (
    r"allowed pairs|depth to full|at [\d,]+ layers?|influence|rule of thumb|hub load|"
    r"lost relay|small world|spectral gap|guaranteed|possible|traced|not computed"
)
RULES = (  # what is marked and how; where two meet the later one wins
    (r"^(Reach of a stack .*| +(after|layer)  .*)$", "bold"),
    (rf"^({LABELS})(?= )", "cyan"),
    (r"(?<=full at )[\d,]+ layers?|never full", "bold"),
    (r"\bexact(?= \(\w+\)$)", "green"),
    (r"\bbounds \[[^\]]*\]", "yellow"),
    (r"\bestimate \+- \S+ \(95%\)", "magenta"),
    (r"^ +[\d-]+  #+(?= .* exact )", "green"),
    (r"^ +[\d-]+  #*\.*(?= .* bounds )", "yellow"),
    (r"^ +[\d-]+  #+(?= .* estimate )", "magenta"),
    (r"^ +[\d-]+(?=  [#.])", "default"),
    (r"\ba heuristic, not a result\b", "yellow"),
    (r"^error PCC\d+", "bold red"),
    (r"^warning PCC\d+", "bold yellow"),
    (r"^note PCC\d+|^note:", "bold cyan"),
    (r"(?<=  )dense(?= )", "bold blue"),
    (r"(?<=  )(recurrent|convolution|hybrid)(?= )", "bold magenta"),
    (r"(?<=  )none(?= )", "bold red"),
)
COMPARED = (  # the same for a comparison
    (r"^([\d,]+ candidates? at .*|candidate  .*)$", "bold"),
    (r"(?<=  )(both|depth|influence)$", "bold green"),
    (r"(?<=  )never(?= )", "bold red"),
    (r"(?<=  )(>= [\d,]+|[\d,]+-[\d,]+)(?= )", "yellow"),
    (r"~[\d.e-]+%", "magenta"),
    (r"^(FLOPs, KV|reach|half within|best by cost and \w+)(?=:)", "cyan"),
    (r"^note:", "bold cyan"),
)


def report_text(report: Report, width: int) -> Text:
    """The report's plain text at a width, with its marks and whole bars.

    >>> from patterncc import causal, window
    >>> from patterncc.analysis import analyze
    >>> shown = report_text(analyze(causal() & window(15), 256), 80)
    >>> [shown.plain[s.start:s.end] for s in shown.spans if s.style == "green"][:2]
    ['exact', 'exact']
    """
    from rich.text import Text

    from patterncc.analysis.text import render

    shown = Text(render(report, min(max(width, LEAST_WIDTH), MOST_WIDTH)), no_wrap=True)
    _mark(shown, RULES)
    bars = re.sub(r"(?m)(?<=\d  )#+(?= )", lambda bar: "\N{FULL BLOCK}" * len(bar[0]), shown.plain)
    shown.plain = bars
    return shown


def comparison_text(found: Comparison) -> Text:
    """A comparison's plain text with its marks."""
    from rich.text import Text

    shown = Text(str(found), no_wrap=True)
    _mark(shown, COMPARED)
    return shown


def _mark(shown: Text, rules: tuple[tuple[str, str], ...]) -> None:
    for pattern, style in rules:
        for found in re.finditer(pattern, shown.plain, re.M):
            shown.stylize(style, *found.span())


def show(found: Report | Comparison, more: str) -> None:
    """Print what was found in colours, a report as wide as the terminal, and what else is to be
    said."""
    from rich.console import Console

    from patterncc.analysis import Report

    console = Console(highlight=False)
    wide = console.width
    text = report_text(found, wide) if isinstance(found, Report) else comparison_text(found)
    console.print(text, soft_wrap=True)
    if more:
        console.print(f"\n{more}", markup=False)
