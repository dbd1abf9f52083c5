"""The report as one self-contained HTML page: no script, no request, opens offline."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from patterncc._version import __version__
from patterncc.analysis.cost import total
from patterncc.analysis.page import sections
from patterncc.analysis.page.parts import badge, depth_words, section, sentence, share_words
from patterncc.analysis.page.style import CSS
from patterncc.analysis.page.svg import percent
from patterncc.analysis.page.tables import stack_table
from patterncc.analysis.text import counted

if TYPE_CHECKING:
    from patterncc.analysis.report import Report

MOST_FINDINGS = 6  # that stand open


def render(report: Report) -> str:
    """The whole page."""
    named = f"{escape(report.name)}, " if report.name else ""
    title = f"Reach of {named}{counted(report.layers, 'layer')} at {counted(report.n, 'token')}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{title}</title><style>{CSS}</style></head>\n"
        f"<body><main>\n{chr(10).join(_body(report))}\n</main></body></html>\n"
    )


def _body(report: Report) -> list[str]:
    parts = [_header(report), _findings(report)]
    if report.n:
        query = report.topology.frame.n - 1
        parts += [
            sections.reach(report),
            sections.hops(report, query),
            sections.influence(report, query),
            sections.load(report),
            sections.robustness(report),
            sections.cost(report),
            sections.masks(report),
            sections.structure(report),
        ]
    lede = "Each kind of layer once; FLOPs and KV bytes are those of one head."
    parts += [section("layers", "The stack", lede, stack_table(report)), _notes(report), _footer()]
    return [part for part in parts if part]


def headline(report: Report) -> str:
    """What the page finds, in one line.

    >>> from patterncc import causal, window
    >>> from patterncc.analysis import analyze
    >>> headline(analyze(causal() & window(15), 256, depth=4))
    '4 layers connect 41.9% of the pairs; full takes 17'
    """
    full, layers = report.full, counted(report.depth, "layer")
    share = share_words(report.reach[-1])
    if not report.n:
        return "No tokens, nothing to reach"
    if full.never:
        return "Never full, however many layers"
    if full.decided and not full.lo:
        return "Full before any layer"
    if full.decided and full.lo <= report.depth:
        return f"Full after {full.lo} of {layers}"
    connect = "connects" if report.depth == 1 else "connect"
    if full.decided:
        return f"{layers} {connect} {share} of the pairs; full takes {full.lo:,}"
    return f"{layers} {connect} {share} of the pairs; full takes {depth_words(full)}"


def _header(report: Report) -> str:
    t = report.topology
    memory = f", {t.memory:,} memory positions" if t.memory else ""
    missing, named = "", f"{escape(report.name)}: " if report.name else ""
    if report.witness is not None:
        query, key = report.witness
        missing = f" Query {query:,} never sees key {key:,}."
    return (
        f'<header><p class="eyebrow">{named}{counted(report.layers, "layer")}, '
        f"{counted(report.n, 'token')}{memory}</p>"
        f"<h1>{escape(headline(report))}</h1>"
        f'<p class="soft">{report.pairs:,} allowed pairs ({escape(report.pairs_name)}: '
        f"{escape(report.pairs_how)}).{missing}</p>"
        f"{_tiles(report)}</header>"
    )


def _tiles(report: Report) -> str:
    last, full = report.reach[-1], report.full
    sums = total(report.costs)
    cost = badge("exact" if sections.exact_cost(report) else "at most this", "closed form")
    engine = last.engine
    if full.decided:
        depth, proof = depth_words(full), badge("exact", engine)
    else:
        depth, proof = depth_words(full), badge("bounds", engine)
    of = ""
    if full.decided and not full.never:
        has = "of" if full.lo <= report.layers else "stack has"
        of = f" <small>{has} {report.layers:,}</small>"
    shown = [
        ("Depth to full, layers", escape(depth) + of, "reach", proof),
        (
            f"Reach after {counted(report.depth, 'layer')}",
            percent(last.share) if last.certain else share_words(last),
            "reach",
            badge(last.badge, engine),
        ),
    ]
    found = report.influence
    if found is not None:
        near = f"{found.q90:,} <small>tokens</small>"
        proof = badge("exact but for rounding", f"rollout, alpha {found.alpha:g}")
        shown.append(("90% of influence within", near, "flow", proof))
    shown += [
        (
            "FLOPs of full attention",
            percent(sums.flops_share),
            "flops",
            cost,
        ),
        ("KV read of full attention", percent(sums.kv_share), "kv", cost),
    ]
    tiles = "".join(
        f'<div class="tile"><span class="name">{escape(name)}</span>'
        f'<b class="{kind}">{value}</b>{proof}</div>'
        for name, value, kind, proof in shown
    )
    return f'<div class="tiles">{tiles}</div>'


def _findings(report: Report) -> str:
    if not report.findings:
        return ""
    items = [
        f'<li class="{f.severity}"><b>{f.severity} {escape(f.code)}</b> '
        f'{escape(sentence(f.message))}<br/><span class="soft">{escape(sentence(f.remedy))}'
        "</span></li>"
        for f in report.findings
    ]
    shown = f'<ul class="findings">{"".join(items[:MOST_FINDINGS])}</ul>'
    if len(items) > MOST_FINDINGS:
        shown += (
            f"<details><summary>and {len(items) - MOST_FINDINGS} more</summary>"
            f'<ul class="findings">{"".join(items[MOST_FINDINGS:])}</ul></details>'
        )
    lede = "What is probably not meant, and how to mend it."
    return section("findings", "Findings", lede, shown)


def _notes(report: Report) -> str:
    if not report.notes:
        return ""
    items = "".join(f"<li>{escape(sentence(note))}</li>" for note in report.notes)
    return section("notes", "Notes", "", f'<ul class="findings">{items}</ul>')


def _footer() -> str:
    return (
        f"<footer><p>{badge('exact')} counted to the last pair. {badge('bounds')} the truth lies "
        f"between two proved numbers. {badge('estimate')} from sampled sources, with its 95% "
        "interval. Reach: R_0 is the identity, R_l = (I | A_l) R_(l-1). Influence: rollout of "
        "alpha I + (1 - alpha) mean over heads of D^-1 A (Abnar and Zuidema 2020).</p>"
        f"<p>patterncc {escape(__version__)}</p></footer>"
    )
