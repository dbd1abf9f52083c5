"""Sections of the HTML report that are drawn: reach, hops, influence, load, cost and masks."""

from __future__ import annotations

from html import escape
from itertools import accumulate
from typing import TYPE_CHECKING

from patterncc.analysis.cost import total
from patterncc.analysis.page import parts as html_parts
from patterncc.analysis.page import svg_hops, svg_influence, svg_masks, svg_reach, svg_rows
from patterncc.analysis.page import tables as html_tables
from patterncc.analysis.page.parts import (
    absent,
    badge,
    badges,
    box_swatch,
    figure,
    legend,
    line_swatch,
    pair,
    ramp,
    section,
    sentence,
    share_words,
    table,
)
from patterncc.analysis.page.svg import SHADES, after, percent, short
from patterncc.analysis.spread import Cone, cone_of, size
from patterncc.analysis.text import counted
from patterncc.errors import SizeError

if TYPE_CHECKING:
    from patterncc.analysis.report import Report

MOST_MASKS = 48
MOST_ZONES = 2**22  # of all masks that are drawn
MOST_CONE = 2**24  # zones that one cone may pass


def reach(report: Report) -> str:
    """The share of the allowed pairs after each layer."""
    content, entries = report.content, []
    caption = "A steep step is a layer that connects much, a flat stretch opens no new path."
    if content is not None:
        caption += " Some layers choose their keys by content: the band is what that leaves open."
        low, high = content.guaranteed.figures[-1], content.possible.figures[-1]
        if content.traced is not None:
            said = "traced, with what a run chose"
            entries.append((line_swatch("reach"), said, percent(report.reach[-1].share)))
        entries.append((line_swatch("reach faint"), "guaranteed", percent(low.share)))
        entries.append((line_swatch("reach faint"), "possible", percent(high.share)))
    return section(
        "reach",
        "Reach over depth",
        "Reach says what is possible: the share of allowed pairs (query, key) such that the query "
        "can depend on the key after so many layers.",
        figure(
            sentence(f"{share_words(report.reach[-1])} of the pairs {after(report.depth)}")[:-1],
            caption,
            svg_reach.reach_curve(report) + html_tables.numbers(report),
            badges(report.reach),
            html_parts.kinds_legend(report, entries),
        ),
    )


def open_choice(report: Report) -> str:
    """What figures of a stack stand for in which some layer's choice is not known."""
    if report.content is None or report.content.traced is not None:
        return ""
    return " Layers that choose by content are taken to choose everything that they may."


def hops(report: Report, query: int) -> str:
    """How many layers pairs take: all pairs, and the last query's by distance."""
    mean = report.mean_hops
    said = f", {mean:.3g} on average" if mean is not None else ""
    bars = figure(
        f"All pairs{said}",
        "How many allowed pairs each layer is the first to connect; 0 is each token itself.",
        svg_reach.hop_bars(report.hops, report.pairs),
        badges(report.reach),
    )
    found = svg_hops.hop_map(report.topology, query, report.depth)
    if found is None:
        why = (
            "The layers hold too many zones to walk back from the query through each depth; "
            "ask at a shorter length, or patterncc.analysis.cone for one depth"
        )
        return section("hops", "Layers that it takes", "", pair(bars, absent("By distance", why)))
    shades = [ramp("reach s", SHADES, f"up to {percent(1 / SHADES)}", "all keys at that distance")]
    if found.rest.any():
        shades.append(f"<li>{box_swatch('rest s5')}not reached</li>")
    heat = figure(
        f"The last query's keys, by distance (query {query:,})",
        "Upwards the layers it takes, to the right the distance: colour that climbs is distance "
        f"paid for with depth.{open_choice(report)}",
        svg_hops.hop_heat(found),
        badge("at most this" if open_choice(report) else "exact", "intervals"),
        f'<ul class="legend">{"".join(shades)}</ul>',
    )
    lede = "Each further layer on a path is one more place where information can be lost."
    return section("hops", "Layers that it takes", lede, pair(bars, heat))


def influence(report: Report, query: int) -> str:
    """The receptive cone of the last query with influence over it, and influence by distance."""
    found, cone = report.influence, _cone(report, query)
    if cone is None:
        near = absent("Receptive cone", "The layers hold too many zones to walk back from a query")
    else:
        near = _cone_figure(report, cone)
    if found is None:
        far = absent("Influence by distance", report.why_not["influence"])
    else:
        far = _distance_figure(report, cone)
    return section(
        "influence",
        "What the last token sees",
        "Reach says what is possible, influence how much survives: attention rollout gives every "
        "key of a query equal weight, before any training.",
        pair(near, far),
    )


def _cone(report: Report, query: int) -> Cone | None:
    t = report.topology
    if sum(len(t.level(l).zones) for l in range(report.depth)) > MOST_CONE:
        return None
    try:
        return cone_of(t, query, report.depth)
    except SizeError:
        return None


def _cone_figure(report: Report, cone: Cone) -> str:
    found = report.influence
    drawn = svg_influence.cone_chart(report.topology, cone, found)
    seen = size(cone.layers[0])
    every = report.topology.frame.n
    which = f"all {every:,}" if seen == every else f"{seen:,} of {every:,}"
    title = f"Query {cone.query:,} can depend on {which} positions"
    line = '<svg aria-hidden="true"><line class="outline" x1="1" x2="21" y1="6" y2="6"/></svg>'
    entries = [f"<li>{line}what is possible at all</li>"]
    caption = "Layers passed upwards, positions to the right; the query stands alone on top."
    if found is not None:
        entries.append(ramp("flow s", svg_influence.DECADES, "under 0.0001%", "10% and more"))
        caption += " Each shade is ten times the influence of the one before."
    away = svg_influence.outside(report.topology, cone)
    if away:
        caption += f" Not drawn: {counted(away, 'position')} far from the rest."
    caption += open_choice(report)
    sure = "at most this" if open_choice(report) else "exact"
    proof = badge(sure, "intervals; influence by rollout" if found else "intervals")
    return figure(title, caption, drawn, proof, f'<ul class="legend">{"".join(entries)}</ul>')


def _distance_figure(report: Report, cone: Cone | None) -> str:
    found = report.influence
    assert found is not None
    farthest = svg_influence.farthest(found, cone)
    near = f"within {counted(found.q50, 'token')}" if found.q50 else "itself"
    caption = (
        f"Half of what the last token holds comes from {near}, 99% from "
        f"within {found.q99:,}; spread as evenly over {short(found.participation)} positions it "
        "would be as diluted."
    )
    entries = [(line_swatch("mark"), "share of the influence within", "")]
    if report.heuristic_range is not None:
        caption += " The dashed line is a heuristic, 1.5 windows, not a result."
        entries.append((line_swatch("thumb"), "rule of thumb (heuristic)", ""))
    return figure(
        f"90% of the influence within {counted(found.q90, 'token')}",
        caption,
        svg_influence.distance_chart(found, farthest, report.heuristic_range),
        badge("exact but for rounding", f"rollout, alpha {found.alpha:g}"),
        legend(entries),
    )


def load(report: Report) -> str:
    """Which positions the whole model leans on."""
    found = report.hubs
    lede = (
        "If all final states lean on few tokens, those few have to carry everybody's information."
    )
    if found is None:
        why = report.why_not.get("hubs") or report.why_not.get("hub_load") or ""
        return section("load", "Hub load", lede, absent("Busiest positions", why))
    proof = badge("exact but for rounding", f"rollout, alpha {found.alpha:g}")
    one = "position carries" if found.positions < 200 else "positions carry"
    bars = figure(
        f"The busiest 1% of {one} {percent(min(1.0, found.top_share))} of the load",
        "How much all final states together draw from one input, as a multiple of an even share.",
        svg_rows.hub_bars(found),
        proof,
    )
    evenly = figure(
        f"As if {short(found.n_eff[0])} of {found.positions:,} inputs carried all",
        "N_eff on a log scale: how many positions would carry the load if they shared it evenly. "
        "Depth runs from the inputs on the left to the output on the right.",
        svg_rows.n_eff_curve(found),
        proof,
    )
    return section("load", "Hub load", lede, pair(bars, evenly))


def robustness(report: Report) -> str:
    """What is lost with one relay."""
    lede = "Each row cuts one token out of every layer and asks what the other tokens still reach."
    if not report.robustness:
        why = report.why_not.get("robustness", "No token stands out as a relay")
        return section("robustness", "A lost relay", lede, absent("Robustness", why))
    rows = html_tables.robustness_table(report.robustness)
    return section("robustness", "A lost relay", lede, rows)


def cost(report: Report) -> str:
    """Cumulative cost against depth, and reach against it."""
    if not report.costs:
        return ""
    sums, reached = total(report.costs), share_words(report.reach[-1])
    entries = [
        (line_swatch("reach"), "reach", reached),
        (line_swatch("flops"), "FLOPs", percent(sums.flops_share)),
        (line_swatch("kv"), "KV bytes that a decode step reads", percent(sums.kv_share)),
    ]
    if sums.kv_held_share != sums.kv_share:
        held = percent(sums.kv_held_share)
        entries.append((line_swatch("held"), "KV bytes that the cache holds", held))
    entries.append((line_swatch("full"), "full attention, FLOPs and KV", "100% at the end"))
    sure = "exact" if exact_cost(report) else "at most this"
    return section(
        "cost",
        "Cost against depth",
        "What the layers passed have cost, as a share of what full attention costs in "
        f"{counted(report.depth, 'layer')}, with the reach that it bought.",
        figure(
            sentence(f"{reached} of the pairs for {percent(sums.flops_share)} of the FLOPs")[:-1],
            "The wider the gap between reach and cost, the better the bargain.",
            svg_reach.cost_curves(report),
            badge(sure, "closed form") + badges(report.reach),
            legend(entries),
        ),
    )


def structure(report: Report) -> str:
    """Small-world figures and the spectral gap."""
    rows = html_tables.structure_rows(report)
    lede = "The union of all layers as a graph: how clustered it is, how short its paths are."
    absent_ones = "".join(
        absent(title, report.why_not[name])
        for name, title in (("small_world", "Small world"), ("spectrum", "Spectral gap"))
        if name in report.why_not
    )
    heads = ("figure", "value", "found", "how to read it")
    drawn = table(heads, rows, words=(0, 2, 3)) if rows else ""
    return section("structure", "The graph", lede, drawn, absent_ones)


_TOO_MANY = "; the others hold too many zones to draw here (patterncc show draws one)"


def _drawable(found: list[svg_masks.Mask]) -> list[svg_masks.Mask]:
    """The first masks, as many as are drawn in a few seconds."""
    zones = accumulate(len(mask.zones) for mask in found[:MOST_MASKS])
    return [mask for mask, sum_ in zip(found, zones, strict=False) if sum_ <= MOST_ZONES]


def exact_cost(report: Report) -> bool:
    """No layer's edges hang on what it chooses."""
    return all(c.edges == c.edges_least for c in report.costs)


def masks(report: Report) -> str:
    """Each distinct mask once, and the map of layers and heads."""
    t = report.topology
    found = svg_masks.distinct_masks(t, report.asked, report.costs)
    side = svg_masks.cell_side(t.frame.n)
    parts = []
    if len(found) > 1:
        caption = "Letters name the masks below; darker where a mask has more edges."
        parts.append(figure("By layer and head", caption, svg_masks.head_map(t, found)))
    pictures = []
    shown = _drawable(found)
    for mask in shown:
        place = svg_masks.where(mask, t)
        pictures.append(
            f"<figure>{svg_masks.thumbnail(mask)}"
            f"<figcaption><b>{mask.name}</b> <code>{escape(mask.text)}</code><br/>"
            f"{escape(place)}<br/>{svg_masks.density_words(mask, t.n)}</figcaption></figure>"
        )
    limits = svg_masks.shade_limits()
    scale = ramp("attention s", SHADES, f"above 0, to {percent(limits[0])}", "to 100% of its pairs")
    tokens = "one pair (query, key)" if side == 1 else f"{side:,} x {side:,} pairs"
    note = f"<li>a cell is {tokens}</li>"
    cut = ""
    if len(shown) < len(found):
        why = "; more would make a large page" if len(shown) == MOST_MASKS else _TOO_MANY
        cut = f'<p class="soft">Drawn: {len(shown)} of {len(found)}{why}.</p>'
    return section(
        "masks",
        "Masks",
        "Queries run down, keys across; darker where more of a cell's pairs are edges."
        + open_choice(report),
        *parts,
        f'<ul class="legend">{scale}{note}</ul><div class="masks">{"".join(pictures)}</div>{cut}',
    )
