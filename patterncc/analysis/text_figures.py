"""The later figures of a report as lines of text: influence, load, relays, the graph's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from patterncc.analysis.text import amount, counted, labelled, percent_text, share_text

if TYPE_CHECKING:
    from patterncc.analysis.content import Content
    from patterncc.analysis.flow.hubs import HubLoad
    from patterncc.analysis.flow.influence import Influence
    from patterncc.analysis.graph.smallworld import SmallWorld
    from patterncc.analysis.report import Report
    from patterncc.analysis.robustness import Robustness

NAMES = {  # of the figures, as text calls them
    "influence": "influence",
    "hubs": "hub load",
    "hub_load": "hub load",
    "robustness": "lost relays",
    "small_world": "small world",
    "spectrum": "spectral gap",
}
BUSIEST = 4  # tokens that are named


def figures(report: Report, width: int) -> list[str]:
    """A line or two each; for one that cannot be had, why not and what to do."""
    said: list[tuple[str, str]] = []
    if report.influence is not None:
        said.append(("influence", influence_text(report.influence)))
    if report.heuristic_range is not None:
        rule = f"1.5 windows: {amount(report.heuristic_range)} tokens (a heuristic, not a result)"
        said.append(("rule of thumb", rule))
    if report.hubs is not None:
        said.append(("hub load", hubs_text(report.hubs)))
    said += [("lost relay", text) for text in relay_texts(report.robustness)]
    if report.small_world is not None:
        said.append(("small world", small_world_text(report.small_world)))
    if report.spectrum is not None:
        said.append(("spectral gap", f"{report.spectrum.gap}, {report.spectrum.how}"))
    if report.content is not None:
        said += content_texts(report.content, report.depth)
    said += _missing(report.why_not)
    return [line for label, text in said for line in labelled(label, text, width)]


def influence_text(found: Influence) -> str:
    """Where the last token's influence lies, and how many inputs would share it evenly.

    >>> from patterncc import causal, window
    >>> from patterncc.analysis import influence
    >>> influence_text(influence(causal() & window(63), 1024, depth=8))[:65]
    'half within 123 tokens of query 1,023, 90% within 203, 99% within'
    """
    return (
        f"half within {found.q50:,} tokens of query {found.query:,}, 90% within {found.q90:,}, "
        f"99% within {found.q99:,}; as if {amount(found.participation)} inputs shared it evenly "
        f"(rollout, alpha {found.alpha:g})"
    )


def hubs_text(found: HubLoad) -> str:
    """How unevenly the reading rests on the inputs."""
    busiest = ", ".join(f"{token:,} ({amount(load)})" for token, load in found.busiest[:BUSIEST])
    return (
        f"the busiest 1% carry {percent_text(found.top_share, 3)}; as even as if "
        f"{amount(found.n_eff[0])} of {found.positions:,} positions carried it; busiest {busiest} "
        "(an even share is 1)"
    )


def relay_text(found: Robustness) -> str:
    """Reach among the other tokens before and after, and the depths to full.

    >>> from patterncc import global_tokens, window
    >>> from patterncc.analysis import robustness
    >>> relay_text(robustness(window(4, 4) | global_tokens([0]), 65, token=0, depth=2))
    "100% -> 24.8% of the other tokens' pairs, full at 2 -> 16"
    """
    before, after = (percent_text(f.share, 3) for f in (found.before, found.after))
    return (
        f"{before} -> {after} of the other tokens' pairs, "
        f"full at {found.full_before} -> {found.full_after}"
    )


def content_texts(found: Content, depth: int) -> list[tuple[str, str]]:
    """Reach of layers that choose by content: whatever they choose, at best, and as traced."""
    curves = {"guaranteed": found.guaranteed, "possible": found.possible, "traced": found.traced}
    return [
        (name, f"{share_text(c.figures[-1])} after {counted(depth, 'layer')}, full at {c.full}")
        for name, c in curves.items()
        if c is not None
    ]


def relay_texts(found: Sequence[Robustness]) -> list[str]:
    """A sentence for each relay, those with the same figures in one."""
    same: dict[str, list[str]] = {}
    for r in found:
        same.setdefault(relay_text(r), []).append(f"{r.token:,}")
    return [f"{' or '.join(tokens)}: {text}" for text, tokens in same.items()]


def small_world_text(found: SmallWorld) -> str:
    """Clustering, path length, sigma and omega with their badges, or why there are none.

    >>> from patterncc import causal, window
    >>> from patterncc.analysis.graph.smallworld import small_world
    >>> small_world_text(small_world(causal() & window(4), 1024))[:46]
    'C 0.6445 (exact), L 85.79 (exact), sigma 3.431'
    """
    values = {"C": "clustering", "L": "path_length", "sigma": "sigma", "omega": "omega"}
    had = {short: getattr(found, name) for short, name in values.items()}
    shown = ", ".join(f"{short} {value}" for short, value in had.items() if value is not None)
    none = [short for short, value in had.items() if value is None]
    why = next((found.why_not[n] for n in values.values() if n in found.why_not), "")
    missing = f"; no {', '.join(none)}: {why}" if none else ""
    return f"{shown} of the undirected skeleton{missing}"


def _missing(why_not: dict[str, str]) -> list[tuple[str, str]]:
    """Figures that cannot be had, those with one reason together."""
    reasons: dict[str, list[str]] = {}
    for name, why in why_not.items():
        owner, _, rest = why.partition(": ")
        reasons.setdefault(rest if rest and " " not in owner else why, []).append(
            NAMES.get(name, name)
        )
    return [("not computed", f"{', '.join(names)}: {why}") for why, names in reasons.items()]
