"""The report as one self-contained HTML page: no script, no request, opens offline."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from patterncc._version import __version__
from patterncc.analysis import svg
from patterncc.analysis.svg import percent
from patterncc.analysis.text import counted, headline

if TYPE_CHECKING:
    from patterncc.analysis.report import Report
    from patterncc.analysis.topology import Level

MOST_MASKS = 24
CSS = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6577; --line: #d9dee7; --page: #ffffff;
  --card: #f5f7fa; --mark: #2457c5; --pale: #a9c1f2; --warn: #9a5b00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf2; --soft: #9aa5b8; --line: #323a48;
  --page: #14181f; --card: #1c222c; --mark: #7aa2ff; --pale: #34497d; --warn: #e5b062; --bad:
  #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 940px; padding: 32px 20px 56px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; line-height: 1.25; margin: 0 0 4px; } h2 { font-size: 16px; margin: 36px 0
8px; } p { margin: 4px 0; } .soft, figcaption, .tile span { color: var(--soft); font-size: 13px; }
pre { background: var(--card); padding: 10px 12px; overflow-x: auto; font-size: 13px; margin: 12px
0; } .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap:
12px;
  margin-top: 20px; }
.tile { background: var(--card); padding: 12px 14px; }
.tile b { display: block; font-size: 24px; font-weight: 600; line-height: 1.3; }
.tile span { display: block; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--line); stroke-width: 1; }
.line { fill: none; stroke: var(--mark); stroke-width: 2; }
.line.faint { stroke-dasharray: 4 3; }
.band, .bar.faint { fill: var(--pale); opacity: .5; }
.dot, .bar { fill: var(--mark); }
.hit { fill: transparent; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); font-size: 13px; }
th:first-child, td:first-child { text-align: left; }
.masks { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 16px; }
figure { margin: 0; }
figcaption { overflow-wrap: anywhere; margin-top: 4px; }
.mask { border: 1px solid var(--line); }
.paper { fill: var(--page); }
.s1 { fill: var(--mark); opacity: .22; } .s2 { fill: var(--mark); opacity: .36; }
.s3 { fill: var(--mark); opacity: .5; } .s4 { fill: var(--mark); opacity: .66; }
.s5 { fill: var(--mark); opacity: .82; } .s6 { fill: var(--mark); }
li { margin: 6px 0; }
footer { margin-top: 32px; }
.error { color: var(--bad); } .warning { color: var(--warn); }
"""


def render(report: Report) -> str:
    """The whole page."""
    title = f"Reach of {counted(report.layers, 'layer')} at {counted(report.n, 'token')}"
    body = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{escape(headline(report))}.</p>',
        _tiles(report),
        f"<pre>{escape(report.stack)}</pre>",
        _curve(report),
        _hops(report),
        _cost(report),
        _masks(report),
        _findings(report),
        f'<footer class="soft">patterncc {escape(__version__)}</footer>',
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{title}</title><style>{CSS}</style></head>\n"
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def _tiles(report: Report) -> str:
    last = report.reach[-1]
    flops = [c.flops_share for c in report.costs] or [0.0]
    kv = [c.kv_bytes / c.full_kv_bytes if c.full_kv_bytes else 0.0 for c in report.costs] or [0.0]
    depth = "open" if not report.full.decided else str(report.full)
    badge = "proved" if report.full.decided else str(report.full)
    shown = [
        ("depth to full", depth, badge),
        (
            f"pairs reached at {counted(report.depth, 'layer')}",
            percent(last.share),
            f"{last.badge}, {last.engine}",
        ),
        ("FLOPs of full attention", percent(sum(flops) / len(flops)), "4 D a edge, mean layer"),
        ("KV that a decode step reads", percent(sum(kv) / len(kv)), "of all positions, mean layer"),
    ]
    tiles = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(note)}</span></div>"
        for name, value, note in shown
    )
    return f'<div class="tiles">{tiles}</div>'


def _curve(report: Report) -> str:
    how = f"{report.pairs:,} allowed pairs ({report.pairs_name}; {report.pairs_how})."
    return (
        f'<h2>Reach over depth</h2><p class="soft">{escape(how)}</p>'
        f"{svg.reach_curve(report.reach, report.pairs)}"
    )


def _hops(report: Report) -> str:
    mean = report.mean_hops
    said = f"Mean {mean:.4g} over the pairs reached." if mean is not None else ""
    return (
        f'<h2>Hops</h2><p class="soft">The layer that first carries a pair. {said}</p>'
        f"{svg.hop_bars(report.hops, report.pairs)}"
    )


def _cost(report: Report) -> str:
    rows = []
    for _, group in groupby(report.costs, key=lambda c: (c.edges, c.kv_bytes)):
        run = list(group)
        c = run[0]
        kv = c.kv_bytes / c.full_kv_bytes if c.full_kv_bytes else 0.0
        cells = [
            f"{c.layer}" if len(run) == 1 else f"{c.layer} to {run[-1].layer}",
            str(c.heads),
            f"{round(sum(c.edges) / c.heads):,}",
            f"{c.density:.3g}",
            f"{c.flops:.3g}",
            percent(c.flops_share),
            f"{c.kv_bytes:,.0f}",
            percent(kv),
        ]
        rows.append("<tr>" + "".join(f"<td>{x}</td>" for x in cells) + "</tr>")
    names = ("layer", "heads", "edges", "density", "FLOPs", "of full", "KV bytes", "of full")
    head = "".join(f"<th>{x}</th>" for x in names)
    return (
        '<h2>Cost of a head</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _masks(report: Report) -> str:
    figures = []
    masks = _distinct_masks(report)
    for caption, level, head in masks[:MOST_MASKS]:
        picture = svg.thumbnail(level.head_zones[head], f"mask of {caption}")
        figures.append(f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>")
    more = len(masks) - MOST_MASKS
    note = f'<p class="soft">and {more} more</p>' if more > 0 else ""
    return (
        '<h2>Masks</h2><p class="soft">Queries down, keys across; '
        "darker where more pairs are edges.</p>"
        f'<div class="masks">{"".join(figures)}</div>{note}'
    )


def _distinct_masks(report: Report) -> list[tuple[str, Level, int]]:
    """Each distinct head of each distinct layer once, with what it is called."""
    levels = report.topology.levels
    uses: dict[int, list[int]] = {}
    for index, level in enumerate(levels):
        uses.setdefault(id(level), []).append(index)
    found = []
    for places in uses.values():
        level = levels[places[0]]
        where = f"layer {places[0]}" + (f" and {len(places) - 1} more" if len(places) > 1 else "")
        for head in range(len(level.head_zones)):
            count = level.head_index.count(head)
            which = (
                f", {count} of {len(level.head_index)} heads" if len(level.head_zones) > 1 else ""
            )
            found.append((where + which, level, head))
    return found


def _findings(report: Report) -> str:
    if not report.findings and not report.notes:
        return ""
    items = [
        f'<li><b class="{f.severity}">{f.severity} {f.code}</b> {escape(f.message)}.'
        f'<br/><span class="soft">{escape(f.remedy)}.</span></li>'
        for f in report.findings
    ]
    items += [f"<li>{escape(note)}.</li>" for note in report.notes]
    return f"<h2>Findings and notes</h2><ul>{''.join(items)}</ul>"
