"""Lint: every rule where it must speak and where it must not, held to dense masks."""

from __future__ import annotations

import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from patterncc import analyze
from patterncc import primitives as pc
from patterncc.analysis.lint import heads as lint_heads
from patterncc.analysis.lint import mixing as lint_mixing
from patterncc.analysis.lint import parts as lint_parts
from patterncc.analysis.lint import relay as lint_relay
from patterncc.analysis.lint import tiles as lint_tiles
from patterncc.analysis.lint.places import families, place
from patterncc.analysis.lint.run import RULES, SEVERITY, Finding, lint
from patterncc.analysis.topology import Topology, topology
from patterncc.cli.options import sizes_of
from patterncc.language import load
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Stack, heads
from patterncc.zones import Frame, ZoneSet
from patterncc.zones.lower import lower
from tests.oracles import Mask
from tests.reach_oracles import layer_masks, leaves, patterns, slow_reach, stacks
from tests.strategies import zone_rows

ROOT = Path(__file__).parent.parent
causal, window, sink = pc.causal(), pc.window, pc.sink


def found(stack: Stack | Pattern | Heads, n: int, **bindings: object) -> dict[str, Finding]:
    """Findings by code; a code that is said twice fails."""
    listed = lint(topology(stack, n, **bindings))
    by_code = {f.code: f for f in listed}
    assert len(by_code) == len(listed), [str(f) for f in listed]
    return by_code


def codes(stack: Stack | Pattern | Heads, n: int, **bindings: object) -> set[str]:
    return {f.code for f in lint(topology(stack, n, **bindings))}


def head_masks(t: Topology) -> list[list[Mask]]:
    """Dense [frame, frame] masks, layers by heads."""
    return [[level.head_zones[k].dense() for k in level.head_index] for level in t.levels]


# --- rows, keys, leaks ------------------------------------------------------------------------


def test_queries_that_read_nothing_are_said_once_with_every_layer_and_head() -> None:
    mixed = heads([causal] * 2 + [causal & pc.summary(8)] * 2)
    f = found(Stack([causal, mixed, mixed, causal]), 64)["PCC102"]
    assert f.message.startswith("layers 1 and 2, heads 2 and 3: 7 of 64 queries read no key")
    assert "the first is 0" in f.message and f.severity == "warning"
    assert "PCC102" not in codes(Stack([causal] * 4), 64)


def test_draws_that_differ_are_one_finding() -> None:
    f = found(Stack([causal & pc.random_edges(1)] * 4), 64)["PCC102"]
    assert f.message.startswith("layers 0 to 3: up to ")


def test_a_layer_without_edges_is_an_error() -> None:
    f = found(Stack([causal, pc.documents([64]) - pc.full()]), 64)["PCC101"]
    assert f.message == "layer 1 has no edges at n=64: every output is 0"
    assert f.severity == "error"


def test_leaks_name_layer_and_head() -> None:
    stack = Stack([causal] * 3 + [heads([causal & window(3)] * 6 + [window(2, 1)] * 2)])
    f = found(stack, 16)["PCC104"]
    assert f.message == (
        "layer 3, heads 6 and 7 read the future while most heads are causal: query 14 reads key 15"
    )
    assert f.severity == "error"
    assert "PCC104" not in codes(Stack([window(2, 2)] * 3 + [causal]), 16)


@given(stacks(), st.integers(2, 24))
def test_rows_and_keys_agree_with_dense_masks(stack: Stack, n: int) -> None:
    t = topology(stack, n)
    masks = [m[stack.memory :] for layer in head_masks(t) for m in layer]
    said = {f.code for f in lint(t)}
    assert ("PCC101" in said) == any(not m.any() for m in masks)
    assert ("PCC102" in said) == any(m.any() and not m.any(axis=1).all() for m in masks)
    assert ("PCC103" in said) == (not np.any(masks, axis=0).any(axis=0).all())


# --- parts that add or cut nothing ------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        (window(64) | window(128), "window(64) adds no edge"),
        (window(9) | sink(2) | window(9), "window(9) adds no edge at n=640: it stands there twice"),
        (causal | window(4), "window(4) adds no edge"),
        (causal & pc.chunked(64) & (window(40) | window(9)), "window(9) adds no edge"),
        (causal & (pc.dilated(8, step=4) | pc.strided(2)), "dilated(8, step=4) adds no edge"),
        ((pc.dilated(8, step=4) | pc.strided(2)).T, "dilated(8, step=4) adds no edge"),
    ],
    ids=str,
)
def test_useless_parts_of_a_union(pattern: Pattern, part: str) -> None:
    f = found(pattern, 640)["PCC107"]
    assert part in f.message and f.severity == "warning"


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        (pc.chunked(8) & window(8, 8), "window(8, 8) cuts nothing"),
        (window(9) & window(4), "window(9) cuts nothing"),
        (causal & (window(9) - window(3).T), None),
        (window(30) - window(9, 9).T & sink(4), None),
        ((causal & window(4)) - (window(9, 9) - window(9)), "takes nothing away"),
    ],
    ids=str,
)
def test_parts_that_cut_nothing(pattern: Pattern, part: str | None) -> None:
    said = {f.code: f for f in lint(topology(pattern, 640))}
    assert ("PCC108" in said) == (part is not None)
    assert part is None or part in said["PCC108"].message


@pytest.mark.parametrize("n", [4, 16, 512, 4096])
def test_a_short_length_makes_no_part_useless(n: int) -> None:
    for p in (
        causal & (window(1020) | sink(4)),
        causal & (window(4095) | pc.summary(128, 8)),
        causal & pc.chunked(8192) & window(8191 // 2),
        causal & pc.dilated(1024, step=512) | window(600),
        window(3) | pc.global_tokens([5000]),
        pc.full() - pc.global_tokens([5000]),
    ):
        assert not codes(p, n) & {"PCC107", "PCC108"}, p


def test_what_is_switched_off_or_depends_on_data_is_not_useless() -> None:
    assert not codes(window(3) | pc.global_tokens(range(0)) | sink(0), 64) & {"PCC107"}
    short = causal & pc.documents("docs") & window(100)
    assert not codes(short, 64, docs=[20, 44]) & {"PCC107", "PCC108"}


def test_a_useless_part_must_be_so_in_every_draw() -> None:
    p = window(7, 7, block=16) | pc.random_blocks(1, block=16)
    assert "PCC107" not in codes(Stack([p] * 8), 160)


def test_what_is_too_large_to_subtract_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    p = window(4) | window(0, 4) | window(4, 4)
    assert "window(4, 4) adds no edge" in found(p, 64)["PCC107"].message
    monkeypatch.setattr(lint_parts, "MOST_PIECES", 0)
    p = window(4) | window(0, 4) | window(3, 3)
    f = found(p, 64)["PCC114"]
    assert "whether window(3, 3) changes any edge" in f.message and f.severity == "note"


def test_two_rows_say_that_a_part_adds_edges_where_all_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lint_parts, "MOST_LOWERED", 100)
    assert not codes(causal & (window(8) | pc.random_edges(2)), 512) & {"PCC107", "PCC114"}
    assert "PCC114" in codes(causal & (window(8) | pc.random_edges(2) | window(9)), 512)


@given(patterns, st.integers(1, 20))
def test_a_part_is_useless_when_what_it_holds_is_elsewhere(pattern: Pattern, n: int) -> None:
    def dense(p: Pattern) -> Mask:
        return lower(p, n).dense()

    for part in lint_parts.parts_of(pattern):
        rest = np.any([dense(p) for p in part.rest] + [np.zeros((n, n), bool)], axis=0)
        inside = not (dense(part.alone) & ~rest).any()
        assert inside == bool((dense(part.without) == dense(pattern)).all())


@given(zone_rows(), zone_rows())
def test_covered_agrees_with_dense(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> None:
    frame = Frame.of(24)
    x, y = ZoneSet.make(frame, a), ZoneSet.make(frame, b)
    assert lint_parts.covered(x.table, y.table) == (not (x.dense() & ~y.dense()).any())


@given(patterns, st.integers(1, 24))
def test_removing_what_is_told_changes_no_row(pattern: Pattern, n: int) -> None:
    t = topology(pattern, n)
    said = sum(f.code in ("PCC107", "PCC108") for f in lint(t))
    draws = [lint_parts._Draw(t, s, {(pattern, n): s.zones.table}) for s in families(t)[0].spots]
    smaller = pattern
    for _ in range(said):
        smaller = next(
            p.without for p in lint_parts.parts_of(smaller) if lint_parts._useless(draws, p, False)
        )
    assert (lower(smaller, n).dense() == lower(pattern, n).dense()).all()


def test_what_is_chosen_by_content_is_not_judged_by_all_that_it_may_be() -> None:
    near = causal & window(15)
    chosen = Stack([near | causal & pc.topk(8), near | near & sink(2)])
    assert [f.message[:7] for f in analyze(chosen, 512).findings] == ["layer 1"]
    assert not analyze(causal & pc.topk(8), 512).findings


# --- what never mixes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([pc.dilated(12, 12, step=4)], "multiples of 4: tokens of different residues modulo 4"),
        ([pc.strided(6), causal & pc.dilated(9, step=9)], "multiples of 3"),
        ([window(0)], "no token reads another"),
        (
            [causal & pc.chunked(8)],
            "at least 8 groups that never mix in any layer",
        ),
    ],
)
def test_tokens_that_never_mix(layers: list[Pattern], text: str) -> None:
    f = found(Stack(layers), 64)["PCC109"]
    assert text in f.message and f.severity == "warning"


def test_tokens_that_mix_or_are_apart_on_purpose() -> None:
    assert "PCC109" not in codes(Stack([pc.strided(6), pc.dilated(4, step=4), window(1)]), 64)
    assert "PCC109" not in codes(Stack([pc.dilated(8, step=4), pc.dilated(9, step=3)]), 64)
    assert "PCC109" not in codes(causal & pc.documents([30, 34]), 64)
    assert "PCC109" not in codes(pc.tree([-1, 0, 0, -1, 3, 3]), 6)
    assert "PCC109" not in codes(window(0), 1)


@given(stacks(), st.integers(2, 24))
def test_the_common_step_divides_every_distance(stack: Stack, n: int) -> None:
    t = topology(stack, n)
    step = lint_mixing.common_step([level.zones.table for level in t.levels])
    i, j = np.nonzero(np.any(layer_masks(stack, n), axis=0))
    assert step == math.gcd(*(abs(i - j)).tolist())


@given(stacks(), st.integers(2, 24))
def test_groups_are_never_finer_than_the_graph(stack: Stack, n: int) -> None:
    t = topology(stack, n)
    groups = lint_mixing.groups([level.zones.table for level in t.levels])
    i, j = np.nonzero(np.any(layer_masks(stack, n), axis=0))
    graph = nx.Graph((a, b) for a, b in zip(i.tolist(), j.tolist(), strict=True) if a != b)
    parts = list(nx.connected_components(graph))
    if groups is None:
        return
    count, first, last = groups
    assert 1 < count <= len(parts)
    mine = [p for p in parts if first <= min(p) <= last]
    assert first == min(min(p) for p in parts) and max(map(max, mine)) == last


# --- relays -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hub", [sink(4), pc.global_tokens([0]), pc.prefix(4).T | sink(2), sink(201) - sink(200)]
)
def test_relays_that_relay_nothing(hub: Pattern) -> None:
    f = found(Stack([causal & (window(15) | hub)] * 3), 1024)["PCC110"]
    assert f.message.startswith("layers 0 to 2: token") and f.severity == "note"
    assert "of 1024 tokens and relay" in f.message


@pytest.mark.parametrize(
    "pattern",
    [
        causal & (window(15) | pc.global_tokens([700])),
        causal & (pc.chunked(128) | pc.summary(128, 4)),
        causal & (window(15) | pc.global_tokens(range(0, 1024, 64))),
        window(15, 15) | pc.global_tokens([0]),
        causal & window(15),
        causal & window(900),
        causal,
    ],
    ids=str,
)
def test_relays_that_relay(pattern: Pattern) -> None:
    assert "PCC110" not in codes(Stack([pattern] * 3), 1024)


def test_sinks_make_a_window_no_shallower() -> None:
    near, sunk = causal & window(15), causal & (window(15) | sink(4))
    depths = [analyze(p, 256).depth_to_full for p in (near, sunk)]
    assert depths == [17, 17]
    assert "but at any depth know at most 4 of 256 tokens" in found(sunk, 256)["PCC110"].message


@given(stacks(), st.integers(2, 24))
def test_relays_are_read_by_many_and_know_no_more_than_told(stack: Stack, n: int) -> None:
    t = topology(stack, n)
    assume(all(not np.triu(m, 1).any() for m in layer_masks(stack, n)))
    reach = slow_reach(layer_masks(stack, n), len(stack))[-1]
    for family in families(t):
        zones = family.spots[0].zones
        relays = lint_relay.read_by_many(zones.table, t.memory, t.frame.n)
        keys = [k for a, b in relays.tolist() for k in range(a, b)]
        later = t.frame.n - np.array(keys, dtype=int)
        assert (2 * zones.dense()[:, keys].sum(axis=0) >= later).all()
        if keys:
            assert reach[keys].any(axis=0).sum() <= lint_relay._known(t, relays)[0]


# --- heads that share keys and values ---------------------------------------------------------


def test_grouped_heads_that_disagree() -> None:
    near, far = causal & window(255), causal
    mixed = found(Stack([heads([near, far] * 4)] * 6 + [far], kv_heads=4), 4096)["PCC111"]
    assert mixed.message.startswith("layers 0 to 5: 4 of 4 key/value heads")
    assert "16,384 keys in all for the last query, 8,704 if equal" in mixed.message
    assert mixed.remedy.startswith("order the query heads")
    split = found(heads([near] * 3 + [far] * 5), 4096)
    assert "PCC111" not in split
    split = found(Stack([heads([near] * 3 + [far] * 5)], kv_heads=2), 4096)
    assert "side by side" not in split["PCC111"].message
    assert "PCC111" not in found(Stack([heads([near] * 4 + [far] * 4)], kv_heads=4), 4096)


@given(st.lists(patterns, min_size=2, max_size=6), st.integers(1, 3), st.integers(1, 20))
def test_loads_agree_with_dense(listed: list[Pattern], kv_heads: int, n: int) -> None:
    listed = listed[: len(listed) // kv_heads * kv_heads]
    assume(listed)
    t = topology(Stack([heads(listed)], kv_heads=kv_heads), n)
    rows = [m[-1] for m in head_masks(t)[0]]
    size = len(rows) // kv_heads
    union = [np.any(rows[k : k + size], axis=0).sum() for k in range(0, len(rows), size)]
    loads = lint_heads._loads(t, t.levels[0])
    index = t.levels[0].head_index
    groups = [set(index[k : k + size]) for k in range(0, len(rows), size)]
    assert (loads is not None) == any(len(g) > 1 for g in groups)
    assert loads is None or loads.now == sum(union)


# --- tiles ------------------------------------------------------------------------------------


def test_padding_of_the_patterns_own_blocks() -> None:
    p = window(1, 1, block=64) | pc.random_blocks(2, block=64)
    f = found(Stack([p] * 4), 1030)["PCC112"]
    assert f.message.startswith("layers 0 to 3: blocks of 64 tokens do not divide 1030: ")
    assert f.remedy == "cut or pack the sequence to 1024 or 1088 tokens" and f.severity == "note"
    assert "PCC112" not in codes(p, 1024) | codes(p, 2**16 + 1)


def test_padding_of_tiles() -> None:
    f = found(Stack([causal & window(64), causal & window(200)]), 520)["PCC112"]
    assert f.message.startswith("layers 0 and 1: blocks of 128 tokens do not divide 520: up to 2")
    assert f.remedy.endswith("to 512 or 640 tokens, or compile with smaller tiles")
    assert "PCC112" not in codes(causal & window(64), 500) | codes(causal & window(64), 1000)


@given(stacks(), st.integers(1, 40), st.integers(2, 9))
def test_what_lies_past_the_end_agrees_with_dense(stack: Stack, n: int, side: int) -> None:
    t = topology(stack, n)
    for level in t.levels:
        touched = dense_tiles(level.zones.dense(), stack.memory, side)
        exist = sum(pairs for _, pairs in touched.values())
        share = lint_tiles.past_the_end(lint_tiles.tiles(t, level.zones.table, side), side)
        assert share == pytest.approx(1 - exist / (len(touched) * side**2) if touched else 0)


def test_tiles_nearly_empty() -> None:
    f = found(Stack([causal & window(127), causal & pc.strided(128)]), 4096)["PCC113"]
    assert f.message.startswith("layer 1: 100% of the tiles of 128 x 128") and f.severity == "note"
    for p in (causal, causal & window(255), window(1, 1, block=64), pc.summary(128, 8)):
        assert "PCC113" not in codes(p, 4096)
    small = found(pc.grid([64, 64], [2, 2]) & pc.chunked(32), 4096)
    assert "compile with block=" in small["PCC113"].remedy
    assert "PCC113" not in codes(pc.strided(128), 256)


def dense_tiles(mask: Mask, memory: int, side: int) -> dict[tuple[int, int], tuple[int, int]]:
    """(tile row, tile column) -> (edges, pairs) of every tile that is touched."""
    mask, touched = mask[memory:], {}
    for r in range(-(-mask.shape[0] // side)):
        for c in range(-(-mask.shape[1] // side)):
            part = mask[r * side : (r + 1) * side, c * side : (c + 1) * side]
            if part.any():
                touched[r, c] = (int(part.sum()), part.size)
    return touched


@given(stacks(), st.integers(1, 40), st.integers(1, 9))
def test_tiles_agree_with_dense(stack: Stack, n: int, side: int) -> None:
    t = topology(stack, n)
    for level in t.levels:
        zones = level.zones.disjoint()
        counted = lint_tiles.tiles(t, zones.table, side)
        assert counted.looked == counted.of and (counted.weight == 1).all()
        columns = (counted.row, counted.first, counted.count, counted.pairs, counted.exist)
        runs = zip(*(c.tolist() for c in columns), strict=True)
        told = {(r, c): (p, e) for r, a, k, p, e in runs for c in range(a, a + k)}
        assert told == dense_tiles(zones.dense(), stack.memory, side)
        loose = lint_tiles.tiles(t, level.zones.table, side)
        assert lint_tiles.nearly_empty(loose) <= lint_tiles.nearly_empty(counted)


@given(leaves, st.integers(40, 90))
def test_sampled_tile_rows_stand_for_all(pattern: Pattern, n: int) -> None:
    t = topology(pattern, n * 16)
    assume(len(t.levels[0].zones))
    rows, weight = lint_tiles._sampled(t.levels[0].zones.table, 0, 4, n * 4)
    assert weight.sum() == pytest.approx(n * 4) and len(rows) <= lint_tiles.MOST_ROWS
    assert (np.diff(rows) > 0).all() and rows[0] == 0 and rows[-1] == n * 4 - 1


# --- all together -----------------------------------------------------------------------------


@given(stacks(), st.integers(0, 40))
def test_every_finding_is_well_said(stack: Stack, n: int) -> None:
    listed = lint(topology(stack, n))
    assert [f.severity for f in listed] == sorted(
        (f.severity for f in listed), key=["error", "warning", "note"].index
    )
    for f in listed:
        assert f.severity == SEVERITY[f.code] and f.remedy
        assert len(f.message) < 400 and "\n" not in f.message
    assert len(set(listed)) == len(listed)


def test_places() -> None:
    assert place([(0, None), (1, None), (2, None), (5, (0, 1, 2))]) == (
        "layers 0 to 2; layer 5, heads 0 to 2"
    )
    assert place([(3, (1,)), (3, (4,))]) == "layer 3, heads 1 and 4"


def test_a_billion_tokens_and_many_layers_take_few_zones() -> None:
    t = topology(Stack([causal & (window(511) | sink(4))] * 48), 10**9)
    assert [f.code for f in lint(t)] == ["PCC110"]
    assert lint_tiles.tiles(t, t.levels[0].zones.table, 128).looked <= lint_tiles.MOST_ROWS


GALLERY = {
    "retrieval": {"PCC102"},
    "sparse-transformer-fixed": {"PCC102"},
    "sparse-transformer-strided": {"PCC113"},
    "star-transformer": {"PCC113"},
    "streaming-llm": {"PCC110"},
}


@pytest.mark.parametrize("file", sorted(ROOT.glob("patterns/*.yaml")), ids=lambda p: p.stem)
def test_the_gallery_says_only_what_is_so(file: Path) -> None:
    loaded = load(file)
    n = next(iter(sizes_of(loaded)), 4096)
    assert codes(loaded.stack, n, **loaded.bindings) == GALLERY.get(file.stem, set())


def test_every_code_is_in_the_docs() -> None:
    import re

    text = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| (PCC\d+) \| (\w+) \|", text, re.M))
    assert told == SEVERITY
    assert len(RULES) == len(set(RULES))
