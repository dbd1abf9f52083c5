"""Small-world figures and the spectral gap, held to networkx and to dense eigenvalues."""

from __future__ import annotations

import json
import math
import tracemalloc

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reach_oracles import layer_masks, stacks

from patterncc import (
    causal,
    chunked,
    dilated,
    documents,
    edges,
    expander,
    full,
    global_tokens,
    prefix,
    random_blocks,
    random_edges,
    sink,
    window,
)
from patterncc.analysis.graph import clustering, distance
from patterncc.analysis.graph.skeleton import skeleton
from patterncc.analysis.graph.smallworld import small_world, small_world_of
from patterncc.analysis.graph.spectrum import spectrum
from patterncc.analysis.graph.value import Value, mean_of
from patterncc.analysis.topology import topology
from patterncc.errors import PatternValueError
from patterncc.stack import Stack

Mask = NDArray[np.bool_]


def joined(stack: Stack, n: int) -> Mask:
    """The skeleton's adjacency matrix, without self-loops."""
    mask = np.zeros((stack.memory + n,) * 2, dtype=bool)
    for layer in layer_masks(stack, n):
        mask |= layer | layer.T
    np.fill_diagonal(mask, False)
    return mask


def graph(stack: Stack, n: int) -> nx.Graph:
    return nx.from_numpy_array(joined(stack, n).astype(int))


@settings(max_examples=60, deadline=None)
@given(stacks(), st.integers(0, 40))
def test_every_way_to_the_clustering_agrees_with_networkx(stack: Stack, n: int) -> None:
    s = skeleton(topology(stack, n))
    g = graph(stack, n)
    assert s.edges == g.number_of_edges()
    want = nx.average_clustering(g) if len(g) else 0.0
    found = clustering.clustering(s, 64, 0, 0.025)
    assert found.badge == "exact" and found.value == pytest.approx(want, abs=1e-12)
    if s.size:
        each = clustering.local(s, np.arange(s.size))
        assert each == pytest.approx([nx.clustering(g, i) for i in range(s.size)])
        if not len(s.others) and s.block == 1 and (closed := clustering.closed_form(s)) is not None:
            assert closed == pytest.approx(want, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(stacks(), st.integers(2, 40))
def test_every_way_to_the_path_length_agrees_with_networkx(stack: Stack, n: int) -> None:
    s = skeleton(topology(stack, n))
    g = graph(stack, n)
    hops = distance.operator(s)
    ways = [
        distance.path_length(s, 64, 0, 0.025),
        distance._from_all(s, hops),
        distance._from_some(s, hops, 100, 0, 0.025),
    ]
    if not len(s.others) or s.block > 1:
        ways.append(distance._by_zones(s) or ways[0])
    connected = nx.is_connected(g)
    want = nx.average_shortest_path_length(g) if connected else math.nan
    for found in ways:
        assert isinstance(found, Value) == connected
        if isinstance(found, Value):
            assert found.lo - 1e-9 <= want <= found.hi + 1e-9
            assert found.kind != "exact" or found.value == pytest.approx(want)


@settings(max_examples=60, deadline=None)
@given(stacks(), st.integers(2, 40))
def test_the_gap_is_that_of_the_dense_matrix(stack: Stack, n: int) -> None:
    a = joined(stack, n) | np.eye(stack.memory + n, dtype=bool)
    d = a.sum(axis=1)
    want = 1 - np.linalg.eigvalsh(a / np.sqrt(d * d[:, None]))[-2]
    found = spectrum(stack, n, symmetrize=True)
    assert found.gap.badge == "exact" and found.gap.value == pytest.approx(want, abs=1e-9)


SMALL = window(2, 2) | random_edges(1)  # a small world of 600 positions, whose truth is known
SIZE = 600


def test_intervals_hold_the_truth_over_seeds() -> None:
    s = skeleton(topology(SMALL, SIZE))
    g = graph(Stack([SMALL]), SIZE)
    c, length = nx.average_clustering(g), nx.average_shortest_path_length(g)
    hops, held = distance.operator(s), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        index = rng.integers(0, SIZE, 300)
        for most in (1, 3, 32):
            drawn = clustering.sampled(s, index, rng, most)
            found = mean_of(drawn, 0.0, 1.0, 0.025)
            assert found.hi - found.lo < 0.3
            held += found.lo <= c <= found.hi
        sought = distance._from_some(s, hops, 120, seed, 0.025)
        assert isinstance(sought, Value) and sought.kind == "estimate"
        assert sought.lo <= length <= sought.hi and sought.hi - sought.lo < 1.0
    assert held >= 115  # of 120, at 97.5%


def test_samples_of_all_neighbours_are_the_local_clustering() -> None:
    s = skeleton(topology(SMALL, SIZE))
    index = np.arange(SIZE)
    drawn = clustering.sampled(s, index, np.random.default_rng(0), 10**6)
    assert drawn == pytest.approx(clustering.local(s, index))


@pytest.mark.parametrize("n", [256, 250])
def test_blocks_of_equal_positions_are_counted_once(n: int) -> None:
    """250 is no multiple of the block: the last one is shorter."""
    p = window(1, 1, block=4) | random_blocks(1, block=4, seed=3)
    t = topology(p, n)
    s, g = skeleton(t), graph(Stack([p]), n)
    assert s.block == 4 and s.edges == g.number_of_edges()
    found = small_world_of(t)
    assert found.clustering.badge == "exact"
    assert found.clustering.value == pytest.approx(nx.average_clustering(g))
    assert found.path_length is not None
    assert found.path_length.value == pytest.approx(nx.average_shortest_path_length(g))


@settings(max_examples=60, deadline=None)
@given(stacks(), st.integers(2, 40))
def test_many_zones_make_the_same_skeleton(stack: Stack, n: int) -> None:
    """The ways of long tables, with their bounds set to nothing."""
    t, wanted = topology(stack, n), joined(stack, n)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MERGED", "LARGEST", "FEW"):
            patch.setattr(f"patterncc.analysis.graph.skeleton.{name}", 1)
        s = skeleton(t)
        at, low, high = s.rows(np.arange(s.size))
        found = np.zeros_like(wanted)
        for i, a, b in zip(at.tolist(), low.tolist(), high.tolist(), strict=True):
            assert not found[i, a:b].any()
            found[i, a:b] = True
    assert s.edges == wanted.sum() // 2
    assert (found == wanted | np.eye(s.size, dtype=bool)).all()


@pytest.mark.parametrize("w", [1, 2, 7, 300])
def test_a_window_has_closed_forms(w: int) -> None:
    g = graph(Stack([window(w, 0)]), 157)
    found = small_world(window(w, 0), 157)
    assert found.path_length is not None and found.path_length.badge == "exact"
    assert found.path_length.value == pytest.approx(nx.average_shortest_path_length(g))
    assert found.clustering.value == pytest.approx(nx.average_clustering(g))


@pytest.mark.parametrize(
    "p",
    [
        window(4) | prefix(40),
        window(3) | sink(9) & prefix(50),
        (window(3, 3) - dilated(2, 2, 2)) | window(1),
        Stack(window(6), memory=4),
    ],
)
def test_doubling_gives_bounds_that_hold_the_truth(p: object) -> None:
    t = topology(p, 300)  # type: ignore[arg-type]
    found = distance._by_zones(skeleton(t))
    want = nx.average_shortest_path_length(graph(t.stack, 300))
    assert isinstance(found, Value) and found.kind in ("bounds", "exact")
    assert found.lo - 1e-9 <= want <= found.hi + 1e-9
    assert found.hi <= 1.02 * found.lo


def test_the_formulas_know_lattices_random_graphs_and_small_worlds() -> None:
    lattice = small_world(window(5, 5), 2**16)
    assert lattice.lattice_clustering == pytest.approx(3 * 8 / (4 * 9), rel=1e-4)
    assert lattice.clustering.value == pytest.approx(2 / 3, rel=1e-3)
    assert lattice.omega is not None and lattice.omega.value < -0.99
    random = small_world(random_edges(5), 4096)
    assert random.sigma is not None and random.sigma.value == pytest.approx(1, abs=0.2)
    assert random.omega is not None and random.omega.value == pytest.approx(1, abs=0.05)
    between = small_world(window(5, 5) | random_edges(1), 4096)
    assert between.sigma is not None and between.sigma.lo > 50
    assert between.omega is not None and abs(between.omega.value) < 0.5


def test_a_hub_makes_the_diameter_two_and_the_path_length_exact() -> None:
    found = small_world(causal() & (window(511) | sink(4)), 2**20)
    assert found.path_length is not None and found.path_length.badge == "exact"
    pairs = found.nodes * (found.nodes - 1) / 2
    assert found.path_length.value == pytest.approx(2 - found.edges / pairs, rel=1e-12)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("p", [window(0), window(1), full(), random_edges(1)])
def test_where_a_figure_is_missing_a_sentence_stands(n: int, p: object) -> None:
    found = small_world(p, n)  # type: ignore[arg-type]
    text = json.loads(json.dumps(found.to_json(), allow_nan=False))
    for name in ("path_length", "sigma", "omega"):
        assert (text[name] is None) == (len(text["why_not"].get(name, "")) > 20)
    assert str(found).startswith("small world: ")


def test_a_disconnected_skeleton_has_clustering_and_no_path_length() -> None:
    found = small_world(chunked(64), 2**20)
    assert found.clustering == Value.exactly(1.0)
    assert found.path_length is found.sigma is found.omega is None
    assert "not connected" in found.why_not["path_length"]


def test_layers_heads_and_memory_are_united() -> None:
    stack = Stack([causal() & window(3), sink(2)], memory=5)
    found, g = small_world(stack, 60), graph(stack, 60)
    assert found.nodes == 65 and found.edges == g.number_of_edges()
    assert "all layers and heads" in found.to_json()["graph"]


def test_wide_zones_are_never_expanded() -> None:
    t = topology(window(8, 8) | global_tokens([5]) | full() & sink(9), 2**20)
    tracemalloc.start()
    found = small_world_of(t)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.clustering.badge == "exact" and peak < 2**27


def test_random_edges_take_a_few_hundred_bytes_a_position() -> None:
    n = 2**18
    t = topology(window(8, 8) | random_edges(2), n)
    tracemalloc.start()
    small_world_of(t, samples=56)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 800 * n


@pytest.mark.parametrize("w", [1, 4, 9])
def test_the_gap_of_a_window_on_a_ring_and_on_a_path(w: int) -> None:
    n = 500
    fact = 2 * math.pi**2 / 3 * w * (w + 1) / n**2
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    ring = spectrum(edges(np.minimum(apart, n - apart) <= w), n)
    assert ring.gap.value == pytest.approx(fact, rel=0.01)
    path = spectrum(window(w, w), n)
    assert path.gap.value == pytest.approx(fact / 4, rel=0.03)


@pytest.mark.parametrize("degree", [4, 8, 16])
def test_a_random_regular_graph_expands(degree: int) -> None:
    found = spectrum(expander(degree, block=1), 3000)
    second = found.second * (degree + 1) - 1  # without the self-loops, and not normalised
    assert second == pytest.approx(2 * math.sqrt(degree - 1), rel=0.03)
    assert found.gap.kind == "estimate" and found.gap.hi - found.gap.lo < 0.02 * found.gap.hi


@pytest.mark.parametrize(
    "p", [SMALL, window(3, 3), window(1) | chunked(30), expander(4, block=4), chunked(50)]
)
def test_the_gap_lies_in_its_interval(p: object) -> None:
    n = 900
    a = joined(Stack([p]), n) | np.eye(n, dtype=bool)  # type: ignore[list-item]
    d = a.sum(axis=1)
    want = 1 - np.linalg.eigvalsh(a / np.sqrt(d * d[:, None]))[-2]
    for seed in range(3):
        gap = spectrum(p, n, symmetrize=True, seed=seed).gap  # type: ignore[arg-type]
        assert gap.lo - 1e-9 <= want <= gap.hi + 1e-9


@pytest.mark.parametrize("w", [8, 64, 90])
def test_a_slow_walk_gets_no_wrong_figure(w: int) -> None:
    """Up to 64 the inverse gives the gap, above there are only bounds."""
    n = 2**15
    fact = math.pi**2 / 6 * w * (w + 1) / n**2
    gap = spectrum(window(w, w), n).gap
    assert gap.kind == ("estimate" if w <= 64 else "bounds")
    assert gap.lo <= fact * 1.02 and fact * 0.99 <= gap.hi <= fact * 1.02
    assert gap.lo == 0 or gap.lo > 0.98 * gap.hi


@pytest.mark.parametrize("n", [300, 1100])
def test_the_gap_of_what_is_not_connected_is_0(n: int) -> None:
    """No rounding is left over that would look like a slow walk."""
    near = window(3, 3)
    for p in (
        near & documents([n // 2, n - n // 2]),
        near & documents([1, n - 1]),
        near & documents([n - 1, 1]),
        near & documents([100] * (n // 100)),
        dilated(21, 21, 7),
        window(0),
    ):
        found = spectrum(p, n).gap
        assert found.lo == 0
        assert found.kind == "bounds" or found.value == found.hi == 0


def test_asymmetric_topologies_are_refused_with_the_remedy() -> None:
    with pytest.raises(PatternValueError, match=r"triangular.*symmetrize=True"):
        spectrum(causal() & window(3), 64)
    with pytest.raises(PatternValueError, match=r"does not read it.*symmetrize=True"):
        spectrum(window(2, 2) | random_edges(1), 64)
    assert "symmetrised" in spectrum(causal() & window(3), 64, symmetrize=True).graph
    assert "symmetrised" not in spectrum(Stack([window(3, 0), window(0, 3)]), 64).graph
    with pytest.raises(PatternValueError, match="n >= 2"):
        spectrum(full(), 1)
