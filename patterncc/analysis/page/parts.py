"""Pieces of the HTML report that several sections share: figures, badges, legends, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from patterncc.analysis.page.svg import after, percent
from patterncc.analysis.page.svg_reach import choosers, kind_of

if TYPE_CHECKING:
    from patterncc.analysis.curve import Depth, Figure
    from patterncc.analysis.report import Report

KINDS = {
    "dense": "dense attention",
    "sparse": "sparse attention",
    "recurrent": "recurrent",
    "convolution": "convolution",
    "hybrid": "attention beside a recurrence",
    "none": "reads nothing else",
}


def badge(words: str, engine: str = "") -> str:
    """How sure a figure is, and the engine that found it."""
    first = words.split()[0].rstrip(",:")
    kind = "bounds" if first == "at" else first
    said = f"{words} ({engine})" if engine else words
    wrap = " wrap" if len(said) > 40 else ""
    return f'<span class="badge {kind}{wrap}">{escape(said)}</span>'


def badges(figures: Sequence[Figure]) -> str:
    """One badge for each stretch of a curve that one engine found with one sureness; layer 0,
    which is known by itself, is left out."""
    runs = []
    for (kind, engine), group in groupby(
        list(enumerate(figures))[min(1, len(figures) - 1) :],
        key=lambda pair: (pair[1].badge.split()[0], pair[1].engine),
    ):
        layers = [l for l, _ in group]
        runs.append((kind, engine, layers[0], layers[-1]))
    if len(runs) == 1:
        return badge(runs[0][0], runs[0][1])
    if len(runs) > 4:
        kinds = {kind: engine for kind, engine, _, _ in runs}
        return " ".join(badge(f"{kind} in part", engine) for kind, engine in kinds.items())
    return " ".join(
        badge(f"{kind}, {after(a)}" if a == b else f"{kind}, layers {a} to {b}", engine)
        for kind, engine, a, b in runs
    )


def figure(title: str, caption: str, body: str, proof: str = "", legend: str = "") -> str:
    """A drawing with its name, what to look at, and how sure it is."""
    return (
        f'<figure><div class="head"><h3>{escape(title)}</h3>{proof}</div>'
        f"<figcaption>{escape(caption)}</figcaption>{legend}{body}</figure>"
    )


def share_words(f: Figure) -> str:
    """A share that says when it is a bound or an estimate.

    >>> from patterncc.analysis.curve import Figure
    >>> share_words(Figure.of(1, 3, 4, "tiles")), share_words(Figure.of(3, 3, 4, "zones"))
    ('at least 25%', '75%')
    """
    if f.exact:
        return percent(f.share)
    return f"{'at least' if f.certain else 'about'} {percent(f.share)}"


def absent(title: str, why: str) -> str:
    """What stands in place of a drawing that cannot be had: the reason, without its name."""
    why = re.sub(r"^[a-z_]+: ", "", why)
    return (
        f'<figure><div class="head"><h3>{escape(title)}</h3></div>'
        f'<p class="absent">{escape(sentence(why))}</p></figure>'
    )


def section(name: str, title: str, lede: str, *parts: str) -> str:
    """A part of the page with one sentence on why it matters."""
    said = f"<p>{escape(lede)}</p>" if lede else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{said}{"".join(parts)}</section>'


def pair(*figures: str) -> str:
    """Figures side by side where there is room."""
    return f'<div class="pair">{"".join(figures)}</div>'


def legend(entries: Iterable[tuple[str, str, str]]) -> str:
    """(swatch, name, value) in a row."""
    items = "".join(
        f"<li>{swatch}{escape(name)}{f' <b>{escape(value)}</b>' if value else ''}</li>"
        for swatch, name, value in entries
    )
    return f'<ul class="legend">{items}</ul>'


def line_swatch(kind: str) -> str:
    """A short line as the chart draws it."""
    return f'<svg aria-hidden="true"><line class="line {kind}" x1="1" x2="21" y1="6" y2="6"/></svg>'


def box_swatch(kind: str) -> str:
    """A patch as the chart fills it."""
    return f'<svg aria-hidden="true"><rect class="{kind}" width="22" height="12"/></svg>'


def ramp(prefix: str, count: int, low: str, high: str) -> str:
    """The shades of a heat map from light to dark, with what the ends stand for."""
    boxes = "".join(
        f'<rect class="{prefix}{k}" x="{18 * k - 18}" width="18" height="12"/>'
        for k in range(1, count + 1)
    )
    return (
        f'<li class="ramp"><span>{escape(low)}</span>'
        f'<svg aria-hidden="true" style="width:{18 * count}px">{boxes}</svg>'
        f"<span>{escape(high)}</span></li>"
    )


def kinds_legend(report: Report, before: Iterable[tuple[str, str, str]] = ()) -> str:
    """The kinds of layers that a chart shades, and the marks of borrowed keys and values and of
    choice by content."""
    t = report.topology
    layers = range(min(report.depth, len(t.levels)))
    held = dict.fromkeys(kind_of(t, report.asked, l) for l in layers)
    entries = [
        (box_swatch(f"band-{kind}"), f"{name} layer", "")
        for kind, name in KINDS.items()
        if kind in held
    ]
    if choosers(report.asked):
        full = '<svg aria-hidden="true"><circle class="chooser" cx="11" cy="6" r="4"/></svg>'
        entries.append((full, "chooses its keys by content", ""))
    if t.shared:
        ring = '<svg aria-hidden="true"><circle class="shared" cx="11" cy="6" r="4"/></svg>'
        entries.append((ring, "reads keys and values of an earlier layer", ""))
    return legend([*before, *entries])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """Rows of cells that are HTML already; columns named in `words` read from the left."""

    def kind(k: int) -> str:
        return ' class="words"' if k in words and k else ""

    head = "".join(f"<th{kind(k)}>{escape(x)}</th>" for k, x in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(k)}>{x}</td>" for k, x in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def depth_words(full: Depth) -> str:
    """A depth to full for people.

    >>> from patterncc.analysis.curve import Depth
    >>> depth_words(Depth(1200, 1200, False, 1200)), depth_words(Depth(3, None, False, 8))
    ('1,200', 'at least 3')
    """
    if full.never:
        return "never"
    if full.decided:
        return f"{full.lo:,}"
    return f"{full.lo:,} to {full.hi:,}" if full.hi is not None else f"at least {full.lo:,}"


def sentence(words: str) -> str:
    """Words with a capital and a full stop.

    >>> sentence("no query"), sentence("Done.")
    ('No query.', 'Done.')
    """
    if not words:
        return ""
    return words[0].upper() + words[1:] + ("" if words[-1] in ".!?" else ".")
