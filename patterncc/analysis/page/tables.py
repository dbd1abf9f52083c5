"""Tables of the HTML report: the stack, the curve in numbers, robustness and graph figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from patterncc.analysis.page import svg
from patterncc.analysis.page.parts import badge, depth_words, sentence, table
from patterncc.analysis.page.svg import percent
from patterncc.analysis.page.svg_masks import spans
from patterncc.analysis.page.svg_reach import kind_of
from patterncc.analysis.page.svg_rows import dumbbell

if TYPE_CHECKING:
    from patterncc.analysis.cost import LevelCost
    from patterncc.analysis.graph.value import Value
    from patterncc.analysis.report import Report
    from patterncc.analysis.robustness import Robustness
    from patterncc.analysis.topology import Kind

MOST_ROWS = 512  # of the curve in numbers
MOST_RUNS = 48  # of the stack


def stack_table(report: Report) -> str:
    """Layers of equal text and kind on one row, with what one head of them costs."""
    t = report.topology
    groups: dict[tuple[str, Kind], list[int]] = {}
    for index in range(len(t.levels)):
        what = str(report.asked.layers[index]), kind_of(t, report.asked, index)
        groups.setdefault(what, []).append(index)
    rows = []
    for (text, kind), layers in list(groups.items())[:MOST_RUNS]:
        swatch = f'<svg class="swatch" aria-hidden="true"><rect class="band-{kind}" width="12" '
        swatch += 'height="12"/></svg>'
        measured = [report.costs[l] for l in layers if l < len(report.costs)]
        borrowed = [l for l in layers if t.source(l) != l]
        said = f"<code>{escape(text)}</code>"
        if borrowed:
            sources = sorted({t.source(l) for l in borrowed})
            said += f'<br/><span class="soft">{_layers(borrowed)} read the keys and values of '
            said += f"{_layers(sources)}</span>"
        rows.append([swatch + escape(spans(layers)), said, kind, *_cost_cells(measured)])
    heads = ("layer", "pattern", "kind", "heads", "edges a head", "density", "FLOPs of full")
    more = len(groups) - MOST_RUNS
    note = f'<p class="soft">and {more} more kinds of layers</p>' if more > 0 else ""
    return table((*heads, "KV of full"), rows, words=(0, 1, 2)) + note


def _layers(numbers: Sequence[int]) -> str:
    return f"layer{'s' if len(numbers) > 1 else ''} {spans(numbers)}"


def _cost_cells(costs: Sequence[LevelCost]) -> list[str]:
    """Heads, edges, density, FLOPs and KV of some layers; the ends where they differ.

    Where layers choose by content the rest are upper bounds.
    """
    if not costs:
        return [""] * 5
    edges = [sum(each) / c.heads for c in costs for each in (c.edges_least, c.edges)]
    return [
        _between([float(c.heads) for c in costs], lambda v: f"{v:,.0f}"),
        _between(edges, lambda v: f"{v:,.0f}"),
        _between([c.density for c in costs], percent),
        _between([c.flops_share for c in costs], percent),
        _between([kv_share(c) for c in costs], percent),
    ]


def _between(values: Sequence[float], say: object) -> str:
    assert callable(say)
    low, high = say(min(values)), say(max(values))
    return str(low) if low == high else f"{low} to {high}"


def kv_share(c: LevelCost) -> float:
    """Keys and values that a decode step reads, of those of every position."""
    return c.kv_bytes / c.full_kv_bytes if c.full_kv_bytes else 0.0


def numbers(report: Report) -> str:
    """The reach curve layer by layer, each with its badge and engine."""
    rows = []
    for l in svg.thin(len(report.reach), MOST_ROWS):
        f, (lo, hi) = report.reach[l], report.hops[l]
        counted = f"{f.lo:,}" if f.exact else f"{f.lo:,} to {f.hi:,}"
        first = f"{lo:,}" if lo == hi else f"{lo:,} to {hi:,}"
        rows.append([f"{l}", counted, percent(f.share), first, badge(f.badge, f.engine)])
    heads = ("layers passed", "pairs reached", "share", "first reached here", "found")
    return (
        "<details><summary>The curve in numbers</summary>"
        f"{table(heads, rows, words=(0, 4))}</details>"
    )


def robustness_table(found: Sequence[Robustness]) -> str:
    """One row a relay: reach before and after it is lost, and the depth to full."""
    rows = [
        [
            f"{one.token:,}",
            _change(percent(one.before.share), percent(one.after.share)),
            _change(depth_words(one.full_before), depth_words(one.full_after)),
            dumbbell(one),
            badge(one.after.badge, one.after.engine),
        ]
        for one in found
    ]
    heads = ("lost token", "others' reach", "depth to full", "reach, 0 to 100%", "found")
    return table(heads, rows, words=(0, 3, 4))


def _change(before: str, after: str) -> str:
    """Before and after, or that nothing changed."""
    if before == after:
        return f'{escape(before)} <span class="soft">unchanged</span>'
    return f"{escape(before)} \u2192 <b>{escape(after)}</b>"


def structure_rows(report: Report) -> list[list[str]]:
    """Small-world figures and the spectral gap: value, badge, and what it tells."""
    rows = []
    found, mixing = report.small_world, report.spectrum
    if found is not None:
        rows += [
            _graph_row("mean degree", f"{found.degree:,.4g}", "exact", f"in the {found.graph}"),
            _value_row("clustering C", found.clustering, "share of neighbours that are joined"),
        ]
        for name, title, said in _SMALL_WORLD:
            value = getattr(found, name)
            if value is None:
                why = found.why_not.get(name, "")
                rows.append([title, "", "", f'<span class="soft">{escape(sentence(why))}</span>'])
            else:
                rows.append(_value_row(title, value, said))
    if mixing is not None:
        said = "1 for a complete graph, 0 for one in parts; mixing takes about 1 / gap layers"
        rows.append(_value_row("spectral gap", mixing.gap, f"{said} ({mixing.graph})"))
    return rows


_SMALL_WORLD = (
    ("path_length", "path length L", "mean number of edges between two tokens"),
    ("sigma", "sigma", "above 1 is a small world: clustered like a lattice, short like chance"),
    ("omega", "omega", "near 0 a small world, towards -1 a lattice, towards 1 a random graph"),
)


def _value_row(name: str, value: Value, said: str) -> list[str]:
    return _graph_row(name, f"{value.value:.4g}", value.badge, said)


def _graph_row(name: str, shown: str, proof: str, said: str) -> list[str]:
    return [name, f"<b>{shown}</b>", badge(proof), f'<span class="soft">{escape(said)}</span>']
