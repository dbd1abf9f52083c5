"""Graphs of many edges: exact for every block, both ways, in memory near the size of the result."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc.bench.compile_graphs import anywhere, neighbours
from patterncc.errors import SizeError
from patterncc.layout import thin
from patterncc.layout.build import build
from patterncc.layout.decode import dense
from patterncc.pattern import Pattern
from patterncc.zones import Frame, ZoneSet, algebra, sweep
from patterncc.zones.merge import row_runs, zones_of_edges
from tests.oracles import is_tight

SIDES = st.sampled_from([16, 32, 64, 128, 256])
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture
def strokes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zones of one query are taken as strokes however few there are."""
    monkeypatch.setattr(thin, "MANY", 1)


def graph(seed: int, n: int, n_k: int) -> np.ndarray[Any, Any]:
    """Random edges of some kinds: scattered, in clumps of full rows, near the diagonal."""
    rng = np.random.default_rng(seed)
    mask = rng.random((n, n_k)) < rng.choice([0, 0.003, 0.05, 0.6])
    for _ in range(int(rng.integers(0, 5))):
        i, j = rng.integers(0, n), rng.integers(0, n_k)
        mask[i : i + rng.integers(1, 60), j : j + rng.integers(1, 200)] |= rng.random() < 0.8
    if rng.random() < 0.5:
        offset = np.arange(n_k) - np.arange(n)[:, None]
        mask |= (np.abs(offset) < rng.integers(0, 9)) & (rng.random((n, n_k)) < rng.random())
    found: np.ndarray[Any, Any] = mask
    return found


def held(mask: np.ndarray[Any, Any], frame: Frame) -> Pattern:
    """The mask as edges, at the positions of a frame."""
    return pc.edges(np.argwhere(mask) + [frame.q_offset, frame.k_offset])


@settings(deadline=None)
@given(seeds, st.integers(1, 300), st.integers(1, 300), st.integers(0, 3), SIDES, SIDES)
@pytest.mark.usefixtures("strokes")
def test_any_graph_is_exact_both_ways(
    seed: int, n: int, n_k: int, offset: int, height: int, width: int
) -> None:
    frame = Frame(n, n_k, 7 * offset, 5 * offset)
    mask = graph(seed, n, n_k)
    made = pc.compile(
        held(mask, frame), n, n_k, 7 * offset, 5 * offset, (height, width), order="token"
    )
    assert (dense(made) == mask).all()
    assert (dense(made, columns=True) == mask).all()
    assert made.edges == (int(mask.sum()),)


COMPOSED = [
    lambda e: e | pc.window(9, 3),
    lambda e: pc.causal() & e,
    lambda e: e - pc.documents((40, 1, 70, 200)),
    lambda e: (e | pc.random_edges(2)) & ~pc.chunked(64),
    lambda e: e | pc.global_tokens((0, 77)) | e.T,
    lambda e: pc.documents((100, 100, 100)) & (e | pc.dilated(64, 0, step=3)),
]


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 270), st.integers(0, len(COMPOSED) - 1), SIDES, SIDES)
@pytest.mark.usefixtures("strokes")
def test_graphs_in_patterns_are_exact_both_ways(
    seed: int, n: int, which: int, height: int, width: int
) -> None:
    p = COMPOSED[which](pc.edges(graph(seed, n, n)))
    wanted = pc.lower(p, n).dense()
    made = pc.compile(p, n, block=(height, width), order="token")
    assert (dense(made) == wanted).all()
    assert (dense(made, columns=True) == wanted).all()


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 200), SIDES)
@pytest.mark.usefixtures("strokes")
def test_heads_have_graphs_of_their_own(seed: int, n: int, side: int) -> None:
    masks = [graph(seed + k, n, n) for k in range(2)]
    heads = pc.heads([pc.edges(masks[0]), pc.causal(), pc.edges(masks[1])])
    made = pc.compile(heads, n, block=side, order="token")
    for way in (dense(made), dense(made, columns=True)):
        assert (way[0] == masks[0]).all() and (way[2] == masks[1]).all()


def zone_sets(seed: int, n: int, n_k: int) -> ZoneSet:
    """Overlapping zones of one query and of several, as the algebra may leave them."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 400))
    i, j = rng.integers(0, n, count), rng.integers(0, n_k, count)
    tall, wide = rng.choice([1, 1, 1, 5, 90], count), rng.choice([1, 1, 3, 40, 300], count)
    low = j - i - tall + rng.integers(0, 5, count) * (tall > 1)
    return ZoneSet.make(Frame(n, n_k), np.stack([i, i + tall, j, j + wide, low, low + 400], axis=1))


@settings(deadline=None)
@given(seeds, st.integers(1, 300), st.integers(1, 300), SIDES, SIDES)
@pytest.mark.usefixtures("strokes")
def test_zones_that_overlap_are_drawn_once(
    seed: int, n: int, n_k: int, height: int, width: int
) -> None:
    sets = [zone_sets(seed + k, n, n_k) for k in range(2)]
    made = build(sets, [0, 1], (height, width))
    for columns in (False, True):
        for found, zones in zip(dense(made, columns=columns), sets, strict=True):
            assert (found == zones.dense()).all()
    assert made.edges == tuple(z.count() for z in sets)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 260), SIDES)
def test_strokes_and_zones_give_the_same_tiles(seed: int, n: int, side: int) -> None:
    """The threshold decides how a layout is made, never what it holds."""
    p, patch = pc.edges(graph(seed, n, n)), pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(thin, "MANY", 1)
        a = pc.compile(p, n, block=side, order="token")
    b = pc.compile(p, n, block=side, order="token")
    assert (dense(a) == dense(b)).all()
    assert (a.full_tiles, a.partial_tiles) == (b.full_tiles, b.partial_tiles)


def test_equal_tiles_are_stored_once() -> None:
    """The same scattered tile in every place: one mask, and two where one tile differs."""
    rng = np.random.default_rng(5)
    tile = rng.random((64, 64)) < 0.3
    mask = np.tile(tile, (8, 8))
    made = pc.compile(pc.edges(mask), 512, block=64, order="token")
    assert (made.partial_tiles, len(made.bits)) == (64, 1)
    mask[70, 70] ^= True
    made = pc.compile(pc.edges(mask), 512, block=64, order="token")
    assert (made.partial_tiles, len(made.bits)) == (64, 2)
    assert (made.dense() == mask).all()


def test_sums_that_collide_do_not_merge_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thin, "MANY", 1)
    monkeypatch.setattr(thin, "mixed", lambda values: np.ones(len(values), dtype=np.uint64))
    rng = np.random.default_rng(6)
    mask = rng.random((256, 256)) < 0.2
    made = pc.compile(pc.edges(mask), 256, block=64, order="token")
    assert (made.dense() == mask).all()


def measured(way: Any) -> tuple[Any, int]:
    """What a call returns, and the bytes that it held at most."""
    tracemalloc.start()
    try:
        found = way()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


N, DEGREE = 2**14, 10


def test_a_graph_of_neighbours_takes_memory_near_its_result() -> None:
    """Edges in any order: no zone is more than an edge, and few bytes an edge are ever held."""
    near = neighbours(N, DEGREE)
    p = pc.edges(near)
    zones = pc.lower(p, N)
    assert zones.count() == len(near) == N * DEGREE
    assert len(zones) < len(near) / 2
    made, peak = measured(lambda: pc.compile(p, N, block=64, order="token"))
    assert made.edges == (len(near),)
    assert peak < 60 * len(near)


def test_ways_to_give_a_graph_give_one_layout() -> None:
    import scipy.sparse

    near = neighbours(2000, 5)
    matrix = scipy.sparse.coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), (2000, 2000))
    sources = [near, near[::-1], near.astype(np.uint64), matrix, matrix.tocsr()]
    layouts = [pc.compile(pc.edges(s), 2000, block=64, order="token") for s in sources]
    layouts.append(pc.compile(pc.from_scipy(matrix), 2000, block=64, order="token"))
    assert len({made.rows.run.tobytes() + made.bits.tobytes() for made in layouts}) == 1


def test_edges_anywhere_are_answered_before_masks_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from patterncc.layout import budget

    monkeypatch.setattr(budget, "HOPELESS", 2**14)
    n = 2**16
    p = pc.edges(np.unique(anywhere(n, 50_000), axis=0))

    def refused() -> str:
        with pytest.raises(SizeError) as caught:
            pc.compile(p, n, block=64, order="token")
        return str(caught.value)

    message, peak = measured(refused)
    for part in ("50000 edges touch 48", "of the 1048576 tiles of 64 x 64", "random_blocks", "GB"):
        assert part in message
    assert peak < 2**26
    made = pc.compile(p, n, block=64, order="token", max_tiles=30_000_001)
    assert made.edges == (50_000,)
    assert pc.compile(pc.edges(neighbours(2**14)), 2**14, block=16, order="token").partial_tiles


def test_a_limit_on_memory_stops_before_allocating() -> None:
    near = pc.lower(pc.edges(neighbours(N, DEGREE)), N)
    loose = pc.lower(pc.edges(np.unique(anywhere(4096, 20_000), axis=0)), 4096)

    def refused(zones: ZoneSet, side: int, limit: int) -> str:
        with pytest.raises(SizeError) as caught:
            build([zones], [0], (side, side), max_bytes=limit)
        return str(caught.value)

    message, peak = measured(lambda: refused(near, 64, 2**20))
    assert "max_bytes = 1048576" in message and "larger blocks" in message
    assert peak < near.table.nbytes
    message, peak = measured(lambda: refused(loose, 256, 2**21))
    assert "256 tiles of 256 x 256 as bit masks would take" in message
    assert peak < 2**21 + loose.table.nbytes


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60),
    st.sampled_from([0, 2**20, 2**40]),
    st.sampled_from([0, 2**20, 2**40]),
)
def test_runs_of_edges_however_far_apart(
    pairs: list[tuple[int, int]], down: int, right: int
) -> None:
    given_edges = np.array(pairs, dtype=np.int64).reshape(-1, 2) + [down, right]
    runs = row_runs(given_edges[:, 0], given_edges[:, 1])
    listed = [
        (i, j)
        for i, a, b in zip(runs.row, runs.start, runs.end, strict=True)
        for j in range(int(a), int(b))
    ]
    assert listed == sorted({(i + down, j + right) for i, j in pairs})
    assert runs.repeats == len(pairs) - len(listed)
    frame = Frame(40, 40, down, right)
    zones = ZoneSet(frame, zones_of_edges(given_edges[:, 0], given_edges[:, 1]))
    assert is_tight(zones)
    assert {(i - down, j - right) for i, j in listed} == set(
        map(tuple, np.argwhere(zones.dense()).tolist())
    )


def test_long_chains_become_zones_in_graphs_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from patterncc.zones import merge

    monkeypatch.setattr(merge, "_MANY", 1000)
    n = 4096
    window = np.arange(n).repeat(5), np.arange(n).repeat(5) + np.tile(np.arange(5), n)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, n, (2, 2 * n))
    row, col = np.concatenate([window, noise], axis=1)
    zones = zones_of_edges(row, col)
    assert zones[0].tolist()[1] > 8  # a stretch of the window that no noise touches
    assert len(zones_of_edges(*noise)) == len(row_runs(*noise).row)
    assert ZoneSet(Frame(n, n + 4), zones).count() == len(set(zip(row, col, strict=True)))


@given(st.lists(st.integers(-1, 3), max_size=40), st.data())
def test_boxes_of_a_grid_are_counted_as_they_stand(labels: list[int], data: st.DataObject) -> None:
    n = len(labels)
    zones = pc.lower(pc.clusters(labels), n)
    assert sweep.on_grid(zones.table)
    assert zones.count() == int(zones.dense().sum())
    if len(zones):
        again = ZoneSet(zones.frame, zones.table[[*range(len(zones)), 0]])
        assert not sweep.on_grid(again.table)
        assert again.count() == zones.count()


def test_clusters_of_many_runs_are_counted_without_a_sweep() -> None:
    """A sweep would cut every box at every row: twice as many pieces."""
    labels = [0, 0, 1, 1] * 750
    zones = pc.lower(pc.clusters(labels), len(labels))
    count, peak = measured(zones.count)
    assert (len(zones), count) == (1_125_000, 4_500_000)
    assert peak < 3 * zones.table.nbytes


ROUND = [
    pc.documents((9, 1, 0, 30, 400)),
    pc.window(5, 2),
    ~pc.causal(),
    pc.global_tokens((3, 40)),
    pc.chunked(7) | pc.window(2),
]


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 120), st.integers(0, len(ROUND) - 1))
def test_graphs_are_cut_by_patterns_edge_by_edge(seed: int, n: int, which: int) -> None:
    """The way that long tables take, taken by short ones."""
    e, p, patch = pc.edges(graph(seed, n, n)), ROUND[which], pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(sweep, "_MANY", 0)
        context.setattr(algebra, "_PIECE", 3)
        minus, both = pc.lower(e - p, n), pc.lower(e & p, n)
    mask, cut = pc.lower(e, n).dense(), pc.lower(p, n).dense()
    assert (minus.dense() == mask & ~cut).all() and (both.dense() == mask & cut).all()
    assert is_tight(minus) and sum(algebra.areas(minus.table).tolist()) == (mask & ~cut).sum()
