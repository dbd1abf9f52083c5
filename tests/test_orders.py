"""Layouts in other orders than that of tokens: exact in original positions, and worth it."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import patterncc as pc
from patterncc import primitives as pr
from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.layout import Layout
from patterncc.layout.checks import check
from patterncc.layout.reorder import NAMES, weigh
from patterncc.zones import Frame
from patterncc.zones.labels import label_pairs
from patterncc.zones.orders.graph import graph_order, grid_order
from patterncc.zones.orders.order import Order
from tests.strategies import frames, patterns
from tests.test_terms import with_cores

MILLION = 2**20
BLOCKS = st.tuples(*[st.sampled_from([16, 32, 64, 128, 256])] * 2)


def tiles(layout: Layout) -> list[tuple[str, int]]:
    """The order of each term and how many tiles it touches."""
    return [
        (t.order.name if t.order else "token", t.full_tiles + t.partial_tiles) for t in layout.terms
    ]


def hold(layout: Layout, mask: NDArray[np.bool_]) -> None:
    """The terms are disjoint and make up the mask, by original positions."""
    assert (layout.dense() == mask).all()
    assert sum(t.head_edges for t in layout.terms) == mask.sum()
    for term in layout.terms:
        check(term)


@st.composite
def graphs(draw: st.DrawFn, most: int = 40) -> pc.Pattern:
    node = st.integers(0, most - 1)
    pairs = draw(st.lists(st.tuples(node, node), max_size=60, unique=True))
    return pr.edges(np.array(pairs, dtype=np.int64).reshape(-1, 2))


named = st.one_of(
    st.tuples(with_cores, st.sampled_from(["residue", "clusters", "summary"])),
    st.tuples(
        st.builds(lambda g, p: pr.causal() & (g | p), graphs(), patterns()),
        st.sampled_from(["rcm", "metis"]),
    ),
    st.tuples(st.builds(lambda g, p: (g - p).T, graphs(), patterns()), st.just("rcm")),
    st.tuples(
        st.builds(lambda p: pr.causal() & (pr.grid([5, 8], [1, 2]) | p), patterns()),
        st.just("morton"),
    ),
)


@settings(max_examples=120)
@given(named, frames(40), BLOCKS)
def test_a_named_order_is_exact(
    asked: tuple[pc.Pattern, str], f: Frame, block: tuple[int, int]
) -> None:
    p, order = asked
    if f.q_offset == f.k_offset == 0 and max(f.n, f.n_k) < 40:
        f = Frame(40, 40)  # a graph has its nodes within an unsliced frame
    try:
        layout = pc.compile(p, f.n, f.n_k, f.q_offset, f.k_offset, block, order=order)
    except PatternValueError as error:
        assert "has none" in str(error) or "not one of the positions" in str(error)
        return
    hold(layout, pc.lower(p, f.n, f.n_k, f.q_offset, f.k_offset).dense())


@settings(max_examples=80)
@given(patterns(), frames(30), BLOCKS, st.data())
def test_given_permutations_are_exact(
    p: pc.Pattern, f: Frame, block: tuple[int, int], data: st.DataObject
) -> None:
    order = (
        data.draw(st.permutations(range(f.n))),
        np.array(data.draw(st.permutations(range(f.n_k))), dtype=np.int64),
    )
    layout = pc.compile(p, f.n, f.n_k, f.q_offset, f.k_offset, block, order=order)
    assert len(layout.terms) == 1
    hold(layout, pc.lower(p, f.n, f.n_k, f.q_offset, f.k_offset).dense())


@settings(max_examples=60)
@given(st.lists(with_cores, min_size=2, max_size=4), frames(24), BLOCKS, st.data())
def test_heads_in_several_orders_are_exact(
    heads: list[pc.Pattern], f: Frame, block: tuple[int, int], data: st.DataObject
) -> None:
    order = data.draw(st.sampled_from(["residue", "clusters", "summary"]))
    shape = (f.n, f.n_k, f.q_offset, f.k_offset)
    try:
        layout = pc.compile(pc.heads(heads), *shape, block, order=order)
    except PatternValueError as error:
        assert "has none" in str(error)
        return
    masks = [pc.lower(p, *shape, head=h).dense() for h, p in enumerate(heads)]
    hold(layout, np.stack(masks))


@settings(max_examples=30)
@given(with_cores, st.integers(30, 64), BLOCKS)
def test_the_models_choice_is_exact(p: pc.Pattern, n: int, block: tuple[int, int]) -> None:
    """Small thresholds, so that small patterns are reordered too."""
    from patterncc.layout import reorder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reorder, "WORTH", 0)
        patch.setattr(reorder, "NEAR", 0.5)
        patch.setattr(reorder, "GAIN", 100.0)
        layout = pc.compile(p, n, block=block)
    hold(layout, pc.lower(p, n).dense())


def test_strides_by_residue_at_a_million_tokens() -> None:
    layout = pc.compile(pc.causal() & pc.strided(1024), MILLION, block=128)
    assert tiles(layout) == [("residue 1024", 36_864)]
    assert layout.edges == (1024 * 1024 * 1025 // 2,)
    assert tiles(pc.compile(pc.causal() & pc.strided(1024), 2**17, block=128, order="token")) == [
        ("token", 66_048)
    ]


def test_summaries_first_at_a_million_tokens() -> None:
    layout = pc.compile(pc.causal() & pc.summary(128, 8), MILLION, block=128)
    assert tiles(layout) == [("summary", 2_101_248)]
    assert layout.partial_tiles == 8192


def test_a_window_stays_where_it_is_beside_a_stride() -> None:
    p = pc.causal() & (pc.strided(1024) | pc.window(512))
    layout = pc.compile(p, MILLION, block=128)
    assert tiles(layout) == [("token", 40_950), ("residue 1024", 36_864)]
    assert sum(t.head_edges for t in layout.terms) == pc.lower(p, MILLION).count()


def test_interleaved_clusters_compile_at_a_quarter_million_tokens() -> None:
    labels = np.random.default_rng(0).integers(0, 256, 2**18)
    p = pc.causal() & pc.clusters("labels")
    layout = pc.compile(p, 2**18, block=128, labels=labels)
    sizes = np.bincount(labels)
    assert layout.edges == (int((sizes * (sizes + 1) // 2).sum()),)
    ((name, touched),) = tiles(layout)
    assert name == "clusters"
    assert touched * 128 * 128 < 1.4 * layout.edges[0] + 3 * 2**18 * 128


@pytest.mark.parametrize("n", [2**12, 2**14])
def test_scattered_clusters_are_not_listed_in_token_order(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patterncc.layout import reorder

    lowered = []
    monkeypatch.setattr(reorder, "plain_term", lambda *given: lowered.append(given))
    labels = pc.clusters(np.random.default_rng(0).integers(0, 64, n).tolist())
    for p in (pc.causal() & labels, pc.causal() & labels & pc.strided(16)):
        layout = pc.compile(p, n, block=128)
        assert not lowered and [name for name, _ in tiles(layout)] == ["clusters"]
    layout = pc.compile(pc.causal() & (labels | pc.strided(64)), n, block=128)
    assert not lowered and {"clusters"} <= {name for name, _ in tiles(layout)}


def test_clusters_that_never_come_again_cost_what_documents_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No other order is tried, and the tables are those of documents."""
    from patterncc.layout import reorder

    lengths = np.random.default_rng(0).integers(1, 60, 2000)
    labels = np.repeat(np.random.default_rng(1).permutation(2000), lengths)
    n, tried = int(lengths.sum()), []
    monkeypatch.setattr(reorder, "terms", lambda *given: tried.append(given))
    layout = pc.compile(pc.causal() & pc.clusters("c"), n, c=labels)
    other = pc.compile(pc.causal() & pc.documents("d"), n, d=lengths)
    assert not tried and layout.order is None and not layout.rest
    assert (layout.rows.run == other.rows.run).all() and (layout.zones == other.zones).all()


def pairs_listed(queries: list[int], keys: list[int]) -> tuple[int, int]:
    """Runs listed and compared pair by pair."""
    runs = [[k for k, _ in itertools.groupby(side) if k >= 0] for side in (queries, keys)]
    met = [a for a in runs[0] for b in runs[1] if a == b]
    return len(met), len(set(met))


@given(*[st.lists(st.sampled_from([-1, 0, 1, 2, 2**40]), max_size=20)] * 2)
def test_pairs_of_runs_are_counted(queries: list[int], keys: list[int]) -> None:
    sides = (np.array(x, dtype=np.int64) for x in (queries, keys))
    assert label_pairs(*sides) == pairs_listed(queries, keys)


def test_a_refusal_says_where_its_limit_can_be_raised() -> None:
    labels = np.arange(2**14) % 2
    with pytest.raises(SizeError) as refused:
        pc.compile(pc.causal() & pc.clusters("c"), 2**14, order="token", c=labels)
    assert "raise max_zones" not in str(refused.value)
    with pytest.raises(PatternValueError, match="'max_zones' is no argument") as unknown:
        pc.compile(pc.causal(), 64, max_zones=9)  # type: ignore[call-overload]
    assert "did you mean 'max_zones'" not in str(unknown.value)
    with pytest.raises(PatternValueError, match="did you mean 'order'"):
        pc.compile(pc.causal(), 64, ordr="token")  # type: ignore[call-overload]


def test_longnet_at_the_sizes_of_its_paper() -> None:
    p = pc.causal() & pc.longnet([2048, 4096, 8192, 16384, 32768], [1, 2, 4, 6, 12])
    with pytest.raises(SizeError, match="longnet"):
        pc.compile(p, 2**18, block=128, order="token")
    layout = pc.compile(pc.heads([p] * 3), 2**18, block=128)
    assert [name for name, _ in tiles(layout)] == [
        *("token", "residue 12", "residue 6 in 12", "residue 4", "residue 2")
    ]


def test_heads_that_want_different_orders() -> None:
    """An empty pattern for the heads that have no edge in a term."""
    c = pc.causal()
    layout = pc.compile(
        pc.heads([c & pc.window(128), c & pc.strided(128), c & pc.strided(128)]), 2**16, block=128
    )
    assert [name for name, _ in tiles(layout)] == ["token", "residue 128"]
    first, second = layout.terms
    assert first.head_pattern.tolist() == [0, 1, 1] and first.edges[1] == 0
    assert second.head_pattern.tolist() == [0, 1, 1] and second.edges[0] == 0


def shuffled_window(n: int, w: int, more: bool) -> tuple[NDArray[np.int64], int]:
    """Edges of a window under a random numbering, and the tiles of 64 that it has by nature."""
    rng = np.random.default_rng(0)
    i = np.repeat(np.arange(n), 2 * w + 1)
    j = i + np.tile(np.arange(-w, w + 1), n)
    inside = (j >= 0) & (j < n)
    i, j = i[inside], j[inside]
    natural = len(np.unique((i // 64) * n + j // 64))
    if more:
        a, b = np.arange(n), rng.integers(0, n, n)
        i, j = np.concatenate([i, a, b]), np.concatenate([j, b, a])
    place = rng.permutation(n)
    return place[np.unique(np.stack([i, j], axis=1), axis=0)], natural


def test_a_shuffled_window_comes_back() -> None:
    graph, natural = shuffled_window(16_384, 8, more=False)
    layout = pc.compile(pc.edges(graph), 16_384, block=64)
    ((name, touched),) = tiles(layout)
    assert name == "rcm" and touched <= 1.01 * natural
    assert layout.edges == (len(graph),)


def test_a_shuffled_window_comes_back_from_under_random_edges() -> None:
    """At 65,536 tokens these are 125,708 tiles, as many as by nature (docs/reordering.md)."""
    n = 16_384
    graph, natural = shuffled_window(n, 8, more=True)
    layout = pc.compile(pc.edges(graph), n, block=64)
    ((name, touched),) = tiles(layout)
    assert name == "rcm" and touched <= natural + 2 * n  # a tile for every random edge and way
    assert layout.edges == (len(graph),)


def test_random_edges_have_no_order() -> None:
    graph = np.unique(np.random.default_rng(0).integers(0, 4096, (40_000, 2)), axis=0)
    assert pc.compile(pc.edges(graph), 4096, block=64).order is None
    asked = pc.compile(pc.edges(graph), 4096, block=64, order="rcm")
    assert asked.order is not None and asked.edges == (len(graph),)


def test_metis_parts_are_near_as_good() -> None:
    graph, natural = shuffled_window(16_384, 8, more=True)
    order = graph_order("metis", graph[:, 0], graph[:, 1], Frame.of(16_384))
    i, j = order.query_slots[graph[:, 0]].astype(int), order.key_slots[graph[:, 1]].astype(int)
    near = np.abs(i - j) <= 64
    assert len(np.unique((i[near] // 64) * 16_384 + j[near] // 64)) <= 1.2 * natural


def test_a_graph_in_good_order_is_left_alone() -> None:
    graph, _ = shuffled_window(16_384, 8, more=False)
    rank = np.empty(16_384, dtype=np.int64)
    rank[graph_order("rcm", graph[:, 0], graph[:, 1], Frame.of(16_384)).queries] = np.arange(16_384)
    layout = pc.compile(pc.edges(rank[graph]), 16_384, block=64)
    assert layout.order is None


def test_morton_squares_hold_a_neighbourhood() -> None:
    p = pc.grid([256, 256], 5)
    layout = pc.compile(p, 65_536, block=128, order="morton")
    token = pc.compile(p, 65_536, block=128, order="token")
    assert layout.edges == token.edges
    assert 2 * layout.partial_tiles < token.partial_tiles
    order = grid_order(pr.Grid([16, 32], 1), Frame.of(512))
    assert order.queries[:32].tolist() == [*range(16), *range(32, 48)]


def test_what_is_weighed_is_told() -> None:
    found = weigh(pc.causal() & pc.strided(64), Frame.of(8192), block=(128, 128))
    assert [c.name for c in found] == ["residue", "token"]
    assert found[0].seconds < found[1].seconds and not found[0].note
    found = weigh(pc.causal() & pc.window(64), Frame.of(8192))
    assert [c.name for c in found] == ["token"]
    labels = np.random.default_rng(0).integers(0, 4, 2**17)
    found = weigh(pc.clusters("labels"), Frame.of(2**17), bindings={"labels": labels})
    assert [c.name for c in found] == ["clusters", "token"]
    assert found[1].seconds == float("inf") and "max_zones" in found[1].note


def test_token_order_is_kept_where_asked() -> None:
    p = pc.causal() & pc.strided(64)
    layout = pc.compile(p, 8192, block=64, order="token")
    assert layout.order is None and not layout.rest
    assert layout.recipe is not None and layout.recipe.order == "token"


def test_patterns_that_cannot_gain_are_lowered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from patterncc.layout import reorder

    def never(*_: object, **__: object) -> None:
        raise AssertionError("weighed")

    monkeypatch.setattr(reorder, "terms", never)
    monkeypatch.setattr(reorder, "price", never)
    c = pc.causal()
    for p in (c & pc.window(512), c & (pc.window(64) | pc.global_tokens([3])), c & pc.chunked(64)):
        pc.compile(p, MILLION, block=128)
    pc.compile(c & pc.strided(8), 2048, block=128)  # so small that a launch costs more
    pc.compile(c & pc.clusters([k // 64 for k in range(4096)]), 4096, block=128)


def test_a_name_in_a_stack_goes_to_the_layers_that_can_take_it() -> None:
    stack = pc.Stack([pc.causal() & pc.window(8), pc.causal() & pc.strided(8)])
    first, second = pc.compile(stack, 64, block=16, order="residue")
    assert first.order is None
    assert second.order is not None and second.order.name == "residue 8"
    with pytest.raises(PatternValueError, match="has none"):
        pc.compile(pc.Stack([pc.causal()]), 64, order="residue")


def test_orders_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    p = pc.causal() & pc.strided(4)
    with pytest.raises(PatternValueError, match="order 'residu' is not known; did you mean"):
        pc.compile(p, 16, order="residu")
    with pytest.raises(PatternValueError, match=r"clusters or routing, and causal\(\).* has none"):
        pc.compile(p, 16, order="clusters")
    with pytest.raises(PatternValueError, match="holds 15 queries, the layout 16"):
        pc.compile(p, 16, order=list(range(15)))
    with pytest.raises(PatternValueError, match="holds each token once"):
        pc.compile(p, 4, order=[0, 1, 1, 3])
    with pytest.raises(PatternValueError, match="entry 2 of the keys is 7"):
        pc.compile(p, 3, order=([0, 1, 2], [0, 1, 7]))
    with pytest.raises(PatternValueError, match="one list of integers"):
        pc.compile(p, 4, order=0.5)
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(PatternError, match=r'pip install "patterncc\[metis\]"'):
        pc.compile(pc.edges(np.array([[0, 1]])), 4, order="metis")


def test_one_drawing_may_fill_a_tile_of_the_last_row_and_no_other() -> None:
    p = ~(pc.longnet([102, 229, 297], [10, 10, 3]) | pc.random_blocks(2, 16, 5))
    layout = pc.compile(pc.heads([pc.sink(1), p]), 816, block=32, order="residue")
    hold(layout, np.stack([pc.lower(x, 816, head=h).dense() for h, x in ((0, pc.sink(1)), (1, p))]))


def test_every_name_is_documented() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[1] / "docs" / "reordering.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f'`"{name}"`' in text


def test_an_order_object_is_taken_as_it_is() -> None:
    order = Order.of("back", list(range(63, -1, -1)))
    layout = pc.compile(pc.causal(), 64, block=16, order=order)
    assert layout.order is order
    assert (layout.dense() == pc.lower(pc.causal(), 64).dense()).all()


def test_many_zones_in_a_tile_are_never_fine_as_they_stand() -> None:
    made = pc.compile(pr.summary(2), 2**16, block=128)
    assert [t.order.name for t in made.terms if t.order] == ["summary"]
    assert made.partial_tiles == 0
