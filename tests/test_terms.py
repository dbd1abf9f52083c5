"""Terms and orders, held to the dense mask of the pattern, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc import primitives as pr
from patterncc.errors import SizeError
from patterncc.zones import Frame
from patterncc.zones.orders.cores import Where
from patterncc.zones.orders.moves import moved
from patterncc.zones.orders.order import Order
from patterncc.zones.orders.stairs import stairs
from patterncc.zones.orders.terms import BOXES, Term, cores, prepared, terms
from tests.strategies import frames, patterns, size, small

labels = st.lists(st.integers(-1, 3), min_size=64, max_size=64)
cored = st.one_of(
    st.builds(pr.strided, size),
    st.builds(pr.dilated, small, small, st.integers(2, 6)),
    st.builds(pr.clusters, labels),
    st.tuples(size, size).map(lambda t: pr.summary(max(t), min(t))),
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), min_size=1, max_size=3).map(
        lambda t: pr.longnet([s for s, _ in t], [r for _, r in t])
    ),
    st.lists(st.integers(1, 5), min_size=1, max_size=3).map(pr.axial),
)
with_cores = st.one_of(
    cored,
    st.builds(lambda a: pr.causal() & a, cored),
    st.builds(lambda a, b: pr.causal() & (a | b), cored, patterns()),
    st.builds(lambda a, b: a - b, cored, patterns()),
    st.builds(lambda a, b: b - a, cored, patterns()),
    st.builds(lambda a, b: (a | b).T, cored, cored),
    st.builds(lambda a, b, c: (a & b) | c, cored, patterns(), cored),
    st.builds(lambda a, b, c: ~(a | b) & c, cored, patterns(), cored),
)


def scattered(term: Term, frame: Frame) -> np.ndarray:
    """The mask of a term by original positions, counted from the frame's first query and key."""
    slots = term.zones.dense()
    if term.order is None:
        return slots
    mask = np.zeros((frame.n, frame.n_k), dtype=bool)
    mask[np.ix_(term.order.queries, term.order.keys)] = slots
    return mask


def added_up(found: list[Term], frame: Frame) -> np.ndarray:
    total = np.zeros((frame.n, frame.n_k), dtype=np.int64)
    for term in found:
        total += scattered(term, frame)
    return total


def lowered(p: pc.Pattern, f: Frame, head: int = 0) -> pc.ZoneSet:
    return pc.lower(p, f.n, f.n_k, f.q_offset, f.k_offset, head=head)


@settings(max_examples=300)
@given(with_cores, frames(24), st.integers(0, 5), st.sets(st.sampled_from(BOXES), min_size=1))
def test_terms_are_the_pattern_and_disjoint(
    p: pc.Pattern, f: Frame, head: int, kinds: set[str]
) -> None:
    found = terms(p, Where(f, head=head), kinds)
    assert (added_up(found, f) == lowered(p, f, head).dense()).all()


@settings(max_examples=150)
@given(patterns(), frames(30))
def test_any_pattern_splits_at_its_cores(p: pc.Pattern, f: Frame) -> None:
    assert (added_up(terms(p, Where(f)), f) == lowered(p, f).dense()).all()


@settings(max_examples=150)
@given(patterns(), frames(24), st.data())
def test_a_pattern_moves_to_any_order(p: pc.Pattern, f: Frame, data: st.DataObject) -> None:
    queries = data.draw(st.permutations(range(f.n)))
    keys = data.draw(st.permutations(range(f.n_k)))
    order = Order.of("drawn", queries, keys)
    z = lowered(p, f)
    assert (scattered(Term(order, moved(z, order)), f) == z.dense()).all()


@settings(max_examples=100)
@given(patterns(), frames(24), st.integers(1, 12))
def test_orders_that_keep_neighbours_move_run_by_run(p: pc.Pattern, f: Frame, run: int) -> None:
    def shuffled(n: int) -> np.ndarray:
        parts = [np.arange(a, min(a + run, n)) for a in range(0, n, run)]
        return np.concatenate(parts[::-1] or [np.arange(0)])

    order = Order.of("turned", shuffled(f.n), shuffled(f.n_k))
    z = lowered(p, f)
    assert (scattered(Term(order, moved(z, order)), f) == z.dense()).all()


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 600), st.integers(1, 600)), max_size=40)
)
def test_stairs_hold_their_rows(steps: list[tuple[int, int, int]]) -> None:
    row = np.cumsum([s for s, _, _ in steps], dtype=np.int64)
    first = np.sort(np.array([a for _, a, _ in steps], dtype=np.int64))
    last = np.maximum.accumulate(first + np.array([b for _, _, b in steps], dtype=np.int64))
    mask = np.zeros((130, 1300), dtype=bool)
    for i, a, b in zip(row.tolist(), first.tolist(), last.tolist()):
        mask[i, a:b] = True
    z = pc.ZoneSet.make(Frame(130, 1300), stairs(row, first, last))
    assert (z.dense() == mask).all()


def test_a_wide_staircase_is_boxes_and_fringes() -> None:
    row = np.arange(4096)
    table = stairs(row, np.zeros_like(row), row // 16 * 5 + 1)
    z = pc.ZoneSet.make(Frame(4096, 4096), table)
    assert z.count() == int((row // 16 * 5 + 1).sum())
    assert len(table) < 600


def test_a_band_divides_among_residues() -> None:
    """Closed form at a million tokens: a class of 1,024 tokens is a triangle."""
    n = 2**20
    (term,) = terms(pc.causal() & pc.strided(1024), Where(Frame.of(n)))
    assert term.order is not None and term.order.name == "residue 1024"
    assert len(term.zones) == 1024
    assert term.zones.count() == 1024 * 1024 * 1025 // 2


def test_a_window_beside_a_stride_is_its_own_term() -> None:
    p = pc.causal() & (pc.strided(64) | pc.window(100))
    found = terms(p, Where(Frame.of(4096)))
    assert [t.order and t.order.name for t in found] == ["residue 64", None]
    assert sum(t.zones.count() for t in found) == pc.lower(p, 4096).count()
    assert found[1].zones.equals(pc.lower(pc.causal() & pc.window(100), 4096))


def test_a_window_taken_out_of_a_stride_needs_one_term() -> None:
    found = terms(pc.strided(64) - pc.window(100, 100), Where(Frame.of(4096)))
    assert [t.order and t.order.name for t in found] == ["residue 64"]


def test_what_is_too_large_inside_its_boxes_is_moved_edge_by_edge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from patterncc.zones.orders import terms as module

    def refuse(*_: object) -> None:
        raise SizeError("too large")

    monkeypatch.setattr(module, "_within", refuse)
    p = pc.causal() & (pc.strided(4) | pc.window(2))
    found = terms(p, Where(Frame.of(32)))
    assert [t.order and t.order.name for t in found] == ["residue 4", None]
    assert (added_up(found, Frame.of(32)) == pc.lower(p, 32).dense()).all()


def test_longnet_at_the_sizes_of_its_paper() -> None:
    p = pc.causal() & pc.longnet([2048, 4096, 8192, 16384, 32768], [1, 2, 4, 6, 12])
    where = Where(Frame.of(2**18), head=5)
    found = terms(p, where)
    names = [t.order.name if t.order else "token" for t in found]
    assert names == ["residue 12", "residue 6 in 12", "residue 4", "residue 2", "token"]
    total = sum(t.zones.count() for t in found)
    short = terms(p, Where(Frame.of(2**15), head=5))
    segments = 2**18 // 2**15
    assert total == segments * sum(t.zones.count() for t in short)


def test_cores_are_seen_through_names() -> None:
    found = cores(prepared(pc.dilated(8, step=4) | pc.window(2)))
    assert [str(c) for c in found] == ["strided(4)"]
    assert str(prepared((pc.causal() & pc.dilated(8, step=4)).T)) == (
        "causal().T & strided(4) & window(0, 8)"
    )
    assert not cores(prepared(pc.causal() & pc.window(8)))


def test_an_order_that_tears_everything_apart_is_refused() -> None:
    order = Order.of("shuffled", np.random.default_rng(0).permutation(2**16))
    with pytest.raises(
        SizeError, match=r'2,147,516,416 edges of the pattern, .* use order="token"'
    ):
        moved(pc.lower(pc.causal(), 2**16), order)
