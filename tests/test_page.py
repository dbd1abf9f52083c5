"""The HTML page without a browser: whole, self-contained, and saying what the report says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc import primitives as pc
from patterncc.analysis import Report, analyze
from patterncc.analysis.curve import Depth, Figure
from patterncc.analysis.page import sections as html_sections
from patterncc.analysis.page import svg, svg_hops, svg_masks
from patterncc.analysis.page.page import headline, render
from patterncc.analysis.page.parts import depth_words
from patterncc.analysis.page.svg_influence import _outline, decades
from patterncc.analysis.page.svg_reach import cumulated
from patterncc.analysis.spread import merge_intervals
from patterncc.analysis.topology import topology
from patterncc.pattern import Pattern
from patterncc.stack import Stack, heads
from tests.reach_oracles import layer_masks, patterns, sharing_stacks, slow_reach

LOCAL = pc.causal() & pc.window(15)
SECTIONS = ["reach", "hops", "influence", "load", "robustness", "cost", "masks", "structure"]


def unsure(make: Callable[[int, int], Figure]) -> Report:
    """A report whose later layers are not exact."""
    report = analyze(LOCAL, 256, depth=4)
    first, *rest = report.reach
    figures = (first, *(make(f.lo, report.pairs) for f in rest))
    return replace(report, reach=figures, full=Depth(5, None, False, 8))


CASES: dict[str, Callable[[], Report]] = {
    "windows": lambda: analyze(Stack([LOCAL] * 5 + [pc.causal()]), 256, 12),
    "hubs": lambda: analyze(pc.window(8, 8) | pc.global_tokens([0]), 512, 3),
    "never": lambda: analyze(Stack([pc.causal() & pc.chunked(16)] * 3), 128),
    "bounds": lambda: unsure(lambda lo, total: Figure.of(lo, min(total, 2 * lo), total, "tiles")),
    "estimates": lambda: unsure(
        lambda lo, total: Figure.estimate(lo / total, 0.01, 256, total, total, "rows")
    ),
    "recurrent": lambda: analyze(Stack([pc.recurrent(), pc.convolution(4), LOCAL]), 64),
    "shared": lambda: analyze(Stack([LOCAL, LOCAL, LOCAL], kv_from=[0, 1, 1]), 96),
    "heads": lambda: analyze(Stack([heads([LOCAL, pc.causal() & pc.strided(8)]), LOCAL]), 100),
    "memory": lambda: analyze(Stack([LOCAL] * 2, memory=16), 64),
    "long": lambda: analyze(Stack([pc.causal() & (pc.window(4095) | pc.sink(4))] * 4), 10**9),
    "content": lambda: analyze(Stack([LOCAL, LOCAL | pc.causal() & pc.topk(4)]), 64),
    "traced": lambda: analyze(
        Stack([LOCAL, LOCAL | pc.causal() & pc.topk(1)]), 64, topk=[[i // 2] for i in range(64)]
    ),
    "one": lambda: analyze(pc.causal(), 1),
    "none": lambda: analyze(pc.causal(), 0),
    "no layers": lambda: analyze(pc.causal(), 8, depth=0),
    "no edges": lambda: analyze(pc.causal() - pc.causal(), 8),
    "escaped": lambda: analyze(pc.documents("docs") & pc.causal(), 8, docs=[3, 5]),
}
EVERY = pytest.mark.parametrize("name", CASES)


@cache
def page(name: str) -> tuple[Report, str, ElementTree.Element]:
    """A report, its page, and the page read as XML: every tag closed, every quote escaped."""
    report = CASES[name]()
    text = render(report)
    return report, text, ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


def words(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def part(root: ElementTree.Element, name: str) -> ElementTree.Element:
    return next(s for s in root.iter("section") if s.get("id") == name)


@EVERY
def test_asks_for_nothing_and_runs_nothing(name: str) -> None:
    _, text, root = page(name)
    assert "http" not in text and "url(" not in text and "@import" not in text
    for element in root.iter():
        assert element.tag not in ("script", "link", "img", "iframe", "object", "use", "image")
        assert not {"src", "href", "action", "srcset", "data"} & set(element.attrib)
        assert not any(key.startswith("on") for key in element.attrib)


@EVERY
def test_drawings_have_names_and_places(name: str) -> None:
    _, text, root = page(name)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    for drawing in root.iter("svg"):
        named = drawing.get("aria-label") or drawing.get("aria-hidden")
        assert named or drawing.get("viewBox", "").startswith("0 0")  # the stretched part of one
    for figure in root.iter("figure"):
        assert words(figure)
    assert not re.search(r'="[^"]*\b(nan|inf|None)\b', text)
    for box in root.iter("rect"):
        held = [box.get(k, "0") for k in ("x", "y", "width", "height")]
        if all(v.endswith("%") for v in held):
            x, y, width, height = (float(v[:-1]) for v in held)
            assert min(x, y) >= -0.1 and x + width <= 100.1 and y + height <= 100.1


@EVERY
def test_every_section_is_there(name: str) -> None:
    report, _, root = page(name)
    there = [s.get("id") for s in root.iter("section")]
    expected = [s for s in SECTIONS if s != "cost" or report.costs] if report.n else []
    assert [s for s in there if s in SECTIONS] == expected
    assert "layers" in there and ("findings" in there) == bool(report.findings)


@EVERY
def test_what_cannot_be_had_is_said(name: str) -> None:
    report, _, root = page(name)
    said = words(root).lower()
    for why in report.why_not.values() if report.n else []:
        assert " ".join(why.partition(": ")[2].lower().split()) in said


@EVERY
def test_the_curve_in_numbers_is_the_reports(name: str) -> None:
    report, _, root = page(name)
    if not report.n:
        return
    rows = [[words(cell) for cell in row.iter("td")] for row in part(root, "reach").iter("tr")][1:]
    assert len(rows) == len(report.reach)
    for row, f, (lo, hi) in zip(rows, report.reach, report.hops, strict=True):
        assert row[1] == (f"{f.lo:,}" if f.exact else f"{f.lo:,} to {f.hi:,}")
        assert row[2] == svg.percent(f.share)
        assert row[3] == (f"{lo:,}" if lo == hi else f"{lo:,} to {hi:,}")
        assert row[4] == f"{f.badge} ({f.engine})"


@EVERY
def test_the_headline_has_the_reports_figures(name: str) -> None:
    report, _, root = page(name)
    tiles = [words(e) for e in root.iter("div") if e.get("class") == "tile"]
    last = report.reach[-1]
    assert any(svg.percent(last.share) in t and last.badge in t for t in tiles)
    full = depth_words(report.full).replace(" ", "")
    assert f"layers{full}" in tiles[0].replace(" ", "")
    assert words(next(root.iter("h1"))) == headline(report)
    if report.influence is not None:
        assert any(f"{report.influence.q90:,}" in t for t in tiles)


@pytest.mark.parametrize("name", ["windows", "hubs"])
def test_figures_of_tokens_are_the_reports(name: str) -> None:
    report, _, root = page(name)
    assert report.influence is not None and report.hubs is not None
    near = words(part(root, "influence"))
    for q in (report.influence.q50, report.influence.q90, report.influence.q99):
        assert f"within {q:,}" in near
    load = words(part(root, "load"))
    for position, weight in report.hubs.busiest[:12]:
        assert f"position {position:,} carries {weight:.4g} times" in load
    relays = words(part(root, "robustness"))
    for one in report.robustness:
        before, after = svg.percent(one.before.share), svg.percent(one.after.share)
        assert f"{before} before, {after} after" in relays
        assert f"{one.token:,}{before} " in relays


def test_a_heuristic_is_called_one() -> None:
    _, _, root = page("windows")
    assert "heuristic" not in words(part(root, "influence"))  # two kinds of layers: there is none
    alone = ElementTree.fromstring(render(analyze(LOCAL, 256, 4)).removeprefix("<!DOCTYPE html>\n"))
    said = words(part(alone, "influence"))
    assert "heuristic, 1.5 windows, not a result" in said and "rule of thumb 24" in said


def test_badges_tell_exact_from_bounds_and_estimates() -> None:
    for name, kind in (("windows", "exact"), ("bounds", "bounds"), ("estimates", "estimate")):
        _, _, root = page(name)
        badges = [e.get("class", "") for e in part(root, "reach").iter("span")]
        assert any(f"badge {kind}" in b for b in badges), name


def test_layers_are_shaded_by_kind_and_sharing_is_marked() -> None:
    _, text, _ = page("recurrent")
    assert all(f'class="band-{kind}"' in text for kind in ("recurrent", "convolution", "sparse"))
    _, text, root = page("shared")
    assert text.count('class="shared"') == 3  # one layer in two charts, and the legend
    assert "layer 2 read the keys and values of layer 1" in words(part(root, "layers"))


def test_layers_that_choose_by_content_are_a_band() -> None:
    report, text, root = page("content")
    assert report.content is not None
    low, high = report.content.guaranteed.figures[-1], report.content.possible.figures[-1]
    said = words(part(root, "reach"))
    assert f"guaranteed {svg.percent(low.share)}" in said
    assert f"possible {svg.percent(high.share)}" in said and "traced" not in said
    assert 'class="fill reach"' in text and text.count('class="chooser"') == 3
    for name in ("hops", "influence", "masks"):
        assert "choose everything that they may" in words(part(root, name))
    assert "at most this (closed form)" in words(part(root, "cost"))
    assert "topk(4)" in words(part(root, "masks")) and "topk(4)" in words(part(root, "layers"))
    report, _, root = page("traced")
    said = words(part(root, "reach"))
    assert f"traced, with what a run chose {svg.percent(report.reach[-1].share)}" in said
    assert "choose everything that they may" not in words(root)


def test_what_stands_far_off_is_counted_not_drawn() -> None:
    _, _, root = page("long")
    assert "Not drawn: 4 positions far from the rest." in words(part(root, "influence"))


def many() -> Stack:
    """16 layers of 16 heads, no two alike."""
    return Stack(
        [
            heads([pc.causal() & (pc.window(l) | pc.sink(1 + h)) for h in range(16)])
            for l in range(16)
        ]
    )


def test_pages_stay_small() -> None:
    report = analyze(many(), 96)
    body = html_sections.masks(report)
    assert len(body) < 300_000
    assert body.count("<figure>") == html_sections.MOST_MASKS + 1
    assert "Drawn: 48 of 256; more would make a large page." in body
    deep = render(analyze(pc.causal() & pc.window(1), 512, depth=400))
    assert len(deep) < 700_000


@given(sharing_stacks(), st.integers(1, 24), st.integers(0, 6), st.data())
def test_hops_of_a_query_are_those_of_dense_products(
    stack: Stack, n: int, depth: int, data: st.DataObject
) -> None:
    t = topology(stack, n)
    query = data.draw(st.integers(t.memory, t.frame.n - 1))
    found = svg_hops.hop_map(t, query, depth)
    assert found is not None
    rows = [r[query] for r in slow_reach(layer_masks(stack, n), depth, stack.kv_from)]
    first = np.array([next((l for l, r in enumerate(rows) if r[j]), -1) for j in range(t.frame.n)])
    away = np.abs(np.arange(t.frame.n) - query)
    for b, (near, far) in enumerate(pairwise(found.edges)):
        held = first[(near <= away) & (away < far)]
        for l in range(depth + 1):
            assert found.share[l, b] == ((held == l).mean() if len(held) else 0)
        assert found.rest[b] == ((held == -1).mean() if len(held) else 0)


@given(st.integers(0, 3000), st.booleans())
def test_bins_of_distance_cover_every_distance_once(farthest: int, even: bool) -> None:
    edges = svg_hops.distance_edges(farthest, even)
    assert edges[0] == 0 and edges[-1] == farthest + 1 and (np.diff(edges) > 0).all()
    for place, word in svg_hops.distance_ticks(edges):
        assert 0 <= place <= len(edges) - 1 and word


def test_hops_are_refused_where_walks_are_too_many() -> None:
    t = topology(Stack([LOCAL, pc.causal() & pc.window(2)]), 64)
    assert svg_hops.hop_map(t, 63, 5000) is None


def squares(path: str) -> Iterator[tuple[int, int]]:
    """Cells that a path of `cells` fills."""
    for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path):
        yield from ((int(y), int(x) + k) for k in range(int(width)))


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_cells_fill_what_is_shaded(rows: list[list[int]]) -> None:
    shades = np.array(rows)
    drawn = np.zeros_like(shades)
    for path in svg.cells(shades):
        root = ElementTree.fromstring(path)
        for y, x in squares(root.get("d", "")):
            drawn[y, x] += int(root.get("class", "")[1:])
    assert (drawn == shades).all()


def test_the_outline_runs_around_the_cone() -> None:
    sets = [np.array([[0, 4]]), np.array([[2, 3]])]
    drawn = re.findall(r"M(\d+) (\d+)([Hv])(\d+)", _outline(sets))
    level = {(int(x), int(y), int(to)) for x, y, kind, to in drawn if kind == "H"}
    upright = {(int(x), int(y)) for x, y, kind, _ in drawn if kind == "v"}
    assert level == {(0, 2, 4), (0, 1, 2), (3, 1, 4), (2, 0, 3)}
    assert upright == {(0, 1), (4, 1), (2, 0), (3, 0)}


def test_shades_of_influence_are_decades() -> None:
    mass = np.array([1, 0.5, 0.1, 0.099, 1e-2, 1e-6, 1e-7, 1e-20, 0])
    assert decades(mass).tolist() == [7, 7, 7, 6, 6, 2, 1, 1, 0]


@given(patterns, st.integers(1, 120))
def test_thumbnails_hold_the_share_of_each_cell(pattern: Pattern, n: int) -> None:
    zones = topology(Stack(pattern), n).levels[0].zones
    dense, side = zones.dense(), svg_masks.cell_side(n)
    share = svg_masks.cell_shares(zones)
    assert len(share) == -(-n // side)
    for row in range(len(share)):
        for col in range(len(share)):
            held = dense[row * side : (row + 1) * side, col * side : (col + 1) * side]
            assert share[row, col] == pytest.approx(held.mean())


def test_masks_of_too_many_zones_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_sections, "MOST_ZONES", 0)
    body = html_sections.masks(page("heads")[0])
    assert "Drawn: 0 of 2; the others hold too many zones" in body


def test_masks_are_told_apart_by_their_edges() -> None:
    both = heads([LOCAL, pc.causal(), LOCAL])
    t = topology(Stack([both, pc.causal(), pc.recurrent(), LOCAL]), 64)
    found = svg_masks.distinct_masks(t, t.stack)
    assert [(m.name, m.kind) for m in found] == [
        ("A", "attention"),
        ("B", "attention"),
        ("C", "recurrent"),
    ]
    assert svg_masks.where(found[0], t) == "layer 0, heads 0, 2 of 3; layer 3"
    assert [m.edges for m in found[:2]] == [
        analyze(p, 64).costs[0].edges[0] for p in (LOCAL, pc.causal())
    ]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6), st.integers(0, 70))
def test_positions_are_counted_by_distance(pairs: list[tuple[int, int]], query: int) -> None:
    table = np.array([(a, a + b) for a, b in pairs], dtype=np.int64).reshape(-1, 2)
    held = merge_intervals(table)
    edges = svg_hops.distance_edges(80, even=False)
    positions = {p for a, b in held.tolist() for p in range(a, b)}
    slow = [sum(near <= abs(p - query) < far for p in positions) for near, far in pairwise(edges)]
    assert svg_hops.in_bins(held, query, edges).tolist() == slow


def test_costs_add_up_to_the_total() -> None:
    report, _, _ = page("windows")
    flops = cumulated([c.flops for c in report.costs], [c.full_flops for c in report.costs])
    assert flops[0] == 0 and flops[-1] == pytest.approx(
        sum(c.flops for c in report.costs) / sum(c.full_flops for c in report.costs)
    )
