"""Patterns to networkx and back, and the rules on the edges against `Rules`, edge by edge."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc.analysis.rules import Rules
from patterncc.analysis.topology import topology
from tests.reach_oracles import Mask, layer_masks, patterns, stacks


def mask_of(graph: networkx.DiGraph[int]) -> Mask:
    mask = np.zeros((len(graph), len(graph)), dtype=bool)
    for i, j in graph.edges:
        mask[i, j] = True
    return mask


@settings(max_examples=80)
@given(stacks(), st.integers(0, 24), st.integers(0, 5))
def test_a_layer_goes_out_edge_by_edge(stack: pc.Stack, n: int, layer: int) -> None:
    graph = pc.to_networkx(stack, n, layer=layer)
    assert list(graph) == list(range(stack.memory + n))
    assert (mask_of(graph) == layer_masks(stack, n)[layer % len(stack)]).all()
    rules = Rules(topology(stack, n), None, {})
    heads = stack.heads(layer)
    for i, j, told in graph.edges(data=True):
        assert told["rule"] == "; ".join(rules.of(layer, i, j))
        assert ("heads" in told) == (len(heads) > 1)


@settings(max_examples=60)
@given(stacks(), st.integers(0, 20))
def test_all_layers_and_single_heads(stack: pc.Stack, n: int) -> None:
    masks = layer_masks(stack, n)
    graph = pc.to_networkx(stack, n, layer=None)
    assert (mask_of(graph) == np.any(masks, axis=0)).all()
    for i, j, told in graph.edges(data=True):
        which = [l for l, mask in enumerate(masks) if mask[i, j]]
        if len(stack) > 1:
            assert told["layers"] == _runs(which)
    for layer in range(len(stack)):
        single = [
            pc.to_networkx(stack, n, layer=layer, head=h) for h in _head_numbers(stack, layer)
        ]
        assert (np.any([mask_of(g) for g in single], axis=0) == masks[layer]).all()
        assert not any("heads" in told for g in single for _, _, told in g.edges(data=True))


def _runs(numbers: list[int]) -> str:
    """Numbers with runs shortened, the slow way: split where a number is missing."""
    line = "".join("x" if k in numbers else " " for k in range(max(numbers) + 1))
    runs, start = [], 0
    for word in line.split(" "):
        if word:
            runs.append(str(start) if len(word) == 1 else f"{start}-{start + len(word) - 1}")
        start += len(word) + 1
    return ", ".join(runs)


def _head_numbers(stack: pc.Stack, layer: int) -> range:
    return range(len(stack.heads(layer)))


@settings(max_examples=80)
@given(patterns, st.integers(0, 24), st.integers(0, 3))
def test_the_round_trip_is_exact(p: pc.Pattern, n: int, layer: int) -> None:
    exact = pc.lower(p, n, layer=layer)
    graph = pc.to_networkx(p, n, layer=layer)
    assert pc.lower(pc.from_networkx(graph), n).equals(exact)
    matrix = scipy.sparse.csr_array(exact.dense())
    assert pc.lower(pc.from_scipy(matrix), n).equals(exact)


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40),
    st.sampled_from([networkx.Graph, networkx.DiGraph, networkx.MultiGraph, networkx.MultiDiGraph]),
)
def test_graphs_of_any_kind_come_in_and_go_out(
    n: int, pairs: list[tuple[int, int]], kind: type[networkx.Graph[int]]
) -> None:
    given = kind()
    given.add_nodes_from(range(n))
    given.add_edges_from((i % n, j % n) for i, j in pairs)
    back = pc.to_networkx(pc.from_networkx(given), n)
    assert list(back) == list(range(n))
    assert set(back.edges) == set(given.to_directed().edges())


def test_the_arrow_points_from_the_reader() -> None:
    graph = pc.to_networkx(pc.causal() & pc.window(1), 3)
    assert sorted(graph.edges) == [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)]
    assert graph.graph == {"pattern": "causal() & window(1)", "n": 3, "memory": 0}
    behind = pc.to_networkx(pc.Stack([pc.window(1)], memory=2), 2)
    assert sorted(behind.edges) == [(2, 1), (2, 2), (3, 2), (3, 3)]
    assert behind.graph["memory"] == 2


def test_names_heads_and_layers_are_told() -> None:
    near, hub = pc.window(7), pc.global_tokens([0, 1])
    both = pc.causal() & (near | hub)
    layer = pc.heads([both, both, pc.causal() & pc.strided(8)])
    graph = pc.to_networkx(layer, 64, names={"near": near, "hub": hub})
    assert graph.edges[40, 0] == {
        "rule": "hub: global_tokens([0, 1]) (head 0-1); strided(8) (head 2)",
        "heads": "0-2",
    }
    assert graph.edges[40, 39] == {"rule": "near: window(7) (head 0-1)", "heads": "0-1"}
    one = pc.to_networkx(layer, 64, head=2)
    assert one.edges[40, 0] == {"rule": "strided(8)"}
    stack = pc.Stack([layer, both])
    whole = pc.to_networkx(stack, 64, layer=None, names={"near": near, "hub": hub})
    assert whole.edges[40, 32] == {"rule": "strided(8) (head 2) (layer 0)", "layers": "0"}
    assert whole.edges[5, 4]["layers"] == "0-1"
    drawn = pc.to_networkx(pc.Stack([pc.random_edges(2)] * 3), 32, layer=2)
    assert (mask_of(drawn) == pc.lower(pc.random_edges(2), 32, layer=2).dense()).all()


def test_bound_names_and_long_rules() -> None:
    graph = pc.to_networkx(pc.documents("docs"), 6, docs=[2, 4])
    assert graph.number_of_edges() == 4 + 16
    labels = pc.clusters([k % 3 for k in range(500)])
    rules = {told for _, _, told in pc.to_networkx(labels, 30).edges(data="rule")}
    assert len(rules) == 1 and len(rules.pop()) == 240


def test_keys_chosen_by_content_are_edges_where_they_are_bound() -> None:
    p = pc.causal() & (pc.topk(2) | pc.window(1))
    chosen = np.array([[max(0, i - 5), i] for i in range(12)])
    graph = pc.to_networkx(pc.Stack([p, pc.window(1)]), 12, topk=chosen)
    assert graph.edges[9, 4] == {"rule": "topk(2)"}
    assert graph.edges[9, 9] == {"rule": "topk(2); window(1)"}
    rules = Rules(topology(p, 12, topk=chosen), None, {"topk": chosen})
    for i, j, rule in graph.edges(data="rule"):
        assert rule == "; ".join(rules.of(0, i, j))
    with pytest.raises(pc.PatternValueError, match=r"topk\(2\): 'topk' is not bound"):
        pc.to_networkx(p, 12)


def test_a_graph_goes_through_a_file(tmp_path: object) -> None:
    p = pc.causal() & (pc.window(3) | pc.sink(1))
    path = f"{tmp_path}/graph.graphml"
    networkx.write_graphml(pc.to_networkx(pc.heads([p, pc.strided(4)]), 20), path)
    union = pc.lower(p | pc.strided(4), 20)
    assert pc.lower(pc.edges(path), 20).equals(union)


def test_large_graphs_are_refused_before_they_are_built() -> None:
    with pytest.raises(pc.SizeError, match=r"2,147,516,416 edges, more than max_edges=1,000,000"):
        pc.to_networkx(pc.causal(), 65_536)
    with pytest.raises(pc.SizeError, match=r"nodes, more than .* take a shorter n"):
        pc.to_networkx(pc.window(0), 2**40)
    with pytest.raises(pc.SizeError, match=r"21 edges, more than max_edges=20"):
        pc.to_networkx(pc.causal(), 6, max_edges=20)
    assert pc.to_networkx(pc.causal(), 6, max_edges=21).number_of_edges() == 21


def test_what_cannot_be_taken_out_is_refused() -> None:
    layer = pc.heads([pc.causal(), pc.window(3)])
    with pytest.raises(pc.PatternValueError, match=r"head 2 of layer 0, which has heads 0 \.\. 1"):
        pc.to_networkx(layer, 8, head=2)
    with pytest.raises(pc.PatternValueError, match="layer must be at least 0"):
        pc.to_networkx(layer, 8, layer=-1)
    with pytest.raises(pc.PatternValueError, match="max_edges must be an integer"):
        pc.to_networkx(layer, 8, max_edges=1e6)  # type: ignore[arg-type]
    with pytest.raises(pc.PatternError, match=r"to_networkx: the first argument is a Stack"):
        pc.to_networkx("causal()", 8)  # type: ignore[arg-type]
    with pytest.raises(pc.PatternValueError, match="'max_edges' cannot be bound"):
        pc.documents("max_edges")


def test_what_cannot_come_in_is_refused() -> None:
    named = networkx.DiGraph([("a", "b")])
    with pytest.raises(pc.PatternValueError, match=r"node 'a' is not a position.*convert_node_"):
        pc.from_networkx(named)
    with pytest.raises(pc.PatternValueError, match="node -1 is not a position"):
        pc.from_networkx(networkx.DiGraph([(0, -1)]))
    with pytest.raises(pc.PatternValueError, match=r"node 2\.0 is not a position"):
        pc.from_networkx(networkx.DiGraph([(0, 2.0)]))
    with pytest.raises(pc.PatternError, match=r"give a networkx graph, not a list; pc\.edges"):
        pc.from_networkx([(0, 1)])
    with pytest.raises(pc.PatternError, match=r"scipy\.sparse matrix, not a ndarray; pc\.edges"):
        pc.from_scipy(np.eye(3))
    with pytest.raises(pc.PatternValueError, match=r"this has shape \[3\]"):
        pc.from_scipy(scipy.sparse.coo_array(np.ones(3)))
    far = pc.from_networkx(networkx.DiGraph([(0, 9)]))
    with pytest.raises(pc.PatternValueError, match=r"node 9 is not one of the positions 0 \.\. 4"):
        pc.lower(far, 5)
    changed = networkx.DiGraph([(0, 1)])
    kept = pc.from_networkx(changed)
    changed.add_edge(5, 5)
    assert pc.lower(kept, 2).count() == 1
