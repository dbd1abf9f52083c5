"""A comparison as one SVG file and as one self-contained HTML page: no script, no request."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from patterncc._version import __version__
from patterncc.analysis.compare.comparison import depth_bracket
from patterncc.analysis.compare.plane import HEIGHT, WIDTH, Mark, plane
from patterncc.analysis.compare.text import cells, depth_text, legend, reach_text
from patterncc.analysis.page.svg import short
from patterncc.analysis.text import counted, percent_text

if TYPE_CHECKING:
    from patterncc.analysis.compare.comparison import Candidate, Comparison

COLOURS = """
svg.planes { --ink: #1c2330; --soft: #5b6577; --line: #e1e5ec; --page: #ffffff; --mark: #2457c5; }
@media (prefers-color-scheme: dark) { svg.planes { --ink: #e6eaf2; --soft: #9aa5b8;
  --line: #2a3240; --page: #14181f; --mark: #7aa2ff; } }
.planes text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.planes .title { fill: var(--ink); font-size: 14px; font-weight: 600; }
.planes .label { fill: var(--ink); paint-order: stroke; stroke: var(--page); stroke-width: 4px;
  stroke-linejoin: round; }
.planes .label.soft { fill: var(--soft); }
.planes .paper { fill: var(--page); }
.planes .grid { stroke: var(--line); stroke-width: 1; }
.planes .grid.base { stroke: var(--soft); } .planes .grid.cut { stroke-dasharray: 3 3; }
.planes .front { fill: none; stroke: var(--mark); stroke-width: 1.5; opacity: .55; }
.planes circle, .planes .bar { stroke-width: 1.5; }
.planes .on { fill: var(--mark); stroke: var(--mark); }
.planes .off { fill: var(--page); stroke: var(--soft); }
"""
PAGE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 980px; padding: 32px 20px 56px; font: 15px/1.5 system-ui,
  sans-serif; background: #ffffff; color: #1c2330; }
h1 { font-size: 22px; line-height: 1.25; margin: 0 0 16px; }
.pair { display: flex; flex-wrap: wrap; gap: 16px; }
.pair svg { flex: 1 1 420px; min-width: 0; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; margin: 20px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid #d9dee7;
  white-space: nowrap; }
th { font-weight: 500; } th, .soft { color: #5b6577; font-size: 13px; }
td:first-child, th:first-child, td:last-child, th:last-child { text-align: left; }
p { margin: 4px 0; } footer { margin-top: 28px; }
@media (prefers-color-scheme: dark) { body { background: #14181f; color: #e6eaf2; }
  th, td { border-color: #323a48; } th, .soft { color: #9aa5b8; } }
"""


def drawing(found: Comparison) -> str:
    """Both planes side by side as one SVG file, its style inside."""
    left, right = _planes(found)
    wide = 2 * WIDTH
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="planes" viewBox="0 0 {wide} {HEIGHT}" '
        f'width="{wide}" height="{HEIGHT}" role="img" aria-label="{escape(_title(found))}">'
        f"<style>{COLOURS}</style>"
        f'<rect class="paper" width="{wide}" height="{HEIGHT}"/>\n{left}\n'
        f'<g transform="translate({WIDTH} 0)">{right}</g></svg>\n'
    )


def page(found: Comparison) -> str:
    """The planes, the table and the notes as one page that opens offline."""
    title = _title(found)
    drawings = "".join(
        f'<svg class="planes" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{inside}</svg>'
        for inside in _planes(found)
    )
    said = "".join(f"<p>{escape(line)}.</p>" for line in [*legend(found), *found.notes])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{PAGE}{COLOURS}</style></head>\n<body>"
        f'<h1>{escape(title)}</h1>\n<div class="pair">{drawings}</div>\n{_table(found)}\n'
        f'<div class="soft">{said}</div>\n'
        f'<footer class="soft">patterncc {escape(__version__)}</footer></body></html>\n'
    )


def _title(found: Comparison) -> str:
    return f"{counted(len(found.candidates), 'candidate')} at {counted(found.n, 'token')}"


def _planes(found: Comparison) -> tuple[str, str]:
    """Cost against depth, and cost against influence."""
    cost = "FLOPs of full attention (fewer are better)"
    depth = plane(
        "Cost against depth",
        [_by_depth(c) for c in found.candidates],
        cost,
        "layers to full reach (fewer are better)",
        percent_text,
        short,
        more_is_better=False,
    )
    influence = plane(
        "Cost against influence",
        [_by_influence(c, c.q50) for c in found.candidates if c.q50 is not None],
        cost,
        "half of the influence within (more is farther)",
        percent_text,
        short,
        more_is_better=True,
    )
    return depth, influence


def _by_depth(c: Candidate) -> Mark:
    at = depth_bracket(c.depth_to_full)
    return Mark(c.name, c.flops_share, at.best, at.worst, c.on_front("depth"), _tip(c))


def _by_influence(c: Candidate, value: float) -> Mark:
    return Mark(c.name, c.flops_share, value, value, c.on_front("influence"), _tip(c))


def _tip(c: Candidate) -> str:
    far = "" if c.q50 is None else f", half of the influence within {c.q50:,}, 90% within {c.q90:,}"
    return (
        f"{c.name}: {percent_text(c.flops_share)} of the FLOPs, full at {depth_text(c)}, "
        f"reach {reach_text(c)}{far}"
    )


def _table(found: Comparison) -> str:
    names, *listed = cells(found)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in listed
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
