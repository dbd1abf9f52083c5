"""Graphs from files and objects: what is an edge, what is refused, and what is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

import patterncc as pc
from patterncc.errors import PatternValueError, PatternWarning, SizeError
from patterncc.zones import graph_files

N = 6
WEIGHED = [(0, 1, 0.5), (2, 2, 0.0), (3, 1, -2.0), (5, 0, 1.0)]
LISTED = {(i, j) for i, j, _ in WEIGHED}
NONZERO = {(i, j) for i, j, w in WEIGHED if w}
Write = Callable[[Path], Any]


def edges_of(p: Any, n: int = N) -> set[tuple[int, int]]:
    return {(i, j) for i, j in np.argwhere(pc.lower(p, n).dense()).tolist()}


def text(path: Path) -> str:
    file = path / "graph.csv"
    lines = [f"{i},{j},{w}" for i, j, w in WEIGHED]
    file.write_text("\n".join(["# query key weight", *lines, ""]))
    return str(file)


def graph(path: Path) -> Any:
    made: Any = networkx.DiGraph()
    made.add_nodes_from(range(N))
    made.add_weighted_edges_from(WEIGHED)
    return made


def graphml(path: Path) -> str:
    networkx.write_graphml(graph(path), path / "graph.graphml")
    return str(path / "graph.graphml")


def array(path: Path) -> Any:
    return np.array(WEIGHED)


def sparse(path: Path) -> Any:
    i, j, w = zip(*WEIGHED, strict=True)
    return scipy.sparse.coo_array((w, (i, j)), (N, N))


def saved(path: Path) -> str:
    scipy.sparse.save_npz(path / "graph.npz", sparse(path).tocsr())
    return str(path / "graph.npz")


@pytest.mark.parametrize("write", [text, graph, graphml, array])
def test_weights_are_refused_unless_asked_for(write: Write, tmp_path: Path) -> None:
    source = write(tmp_path)
    with pytest.raises(PatternValueError, match='weights="nonzero"'):
        edges_of(pc.edges(source))


@pytest.mark.parametrize("write", [text, graph, graphml, array, sparse, saved])
def test_weights_mean_what_is_asked(write: Write, tmp_path: Path) -> None:
    source = write(tmp_path)
    assert edges_of(pc.edges(source, weights="ignore")) == LISTED
    assert edges_of(pc.edges(source, weights="nonzero")) == NONZERO


@pytest.mark.parametrize("write", [sparse, saved])
def test_entries_of_a_sparse_matrix_are_edges_where_they_are_not_0(
    write: Write, tmp_path: Path
) -> None:
    assert edges_of(pc.edges(write(tmp_path))) == NONZERO


def test_weights_of_one_are_no_weights() -> None:
    made: Any = networkx.Graph()
    made.add_nodes_from(range(N))
    made.add_weighted_edges_from([(0, 1, 1), (2, 3, 1.0)])
    assert edges_of(pc.edges(made)) == {(0, 1), (1, 0), (2, 3), (3, 2)}


@pytest.mark.parametrize(
    ("weights", "source", "message"),
    [
        ("none", [(0, 1)], "weights is 'nonzero' .* or 'ignore'"),
        ("nonzero", np.array([[0, 1, np.nan]]), "edge 0 is not a number"),
        ("ignore", np.array([[0, 1.5, 2]]), "node 1.5 of edge 0 is not an integer"),
        ("ignore", np.array([[0, np.inf, 2]]), "no finite number"),
        ("ignore", np.ones((2, 4)), "for a matrix of weights"),
    ],
)
def test_wrong_weights(weights: str, source: Any, message: str) -> None:
    with pytest.raises(PatternValueError, match=message):
        edges_of(pc.edges(source, weights=weights))


def test_weights_that_are_no_numbers_are_refused() -> None:
    made: Any = networkx.DiGraph()
    made.add_weighted_edges_from([(0, 1, "heavy")])
    with pytest.raises(PatternValueError, match="weights are numbers"):
        edges_of(pc.edges(made, weights="nonzero"))
    assert edges_of(pc.edges(made, weights="ignore")) == {(0, 1)}


def test_a_third_column_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("0 1\n\n2 3 0.25\n")
    with pytest.raises(PatternValueError, match=r"line 3 is '2 3 0.25'.* third column is a weight"):
        edges_of(pc.edges(str(file)))
    assert edges_of(pc.edges(str(file), weights="ignore")) == {(0, 1), (2, 3)}
    file.write_text("0 1 2 3\n")
    with pytest.raises(PatternValueError, match="line 1 is '0 1 2 3'; each line is two integers"):
        edges_of(pc.edges(str(file), weights="ignore"))


def test_repeats_are_kept_once_and_said() -> None:
    with pytest.warns(PatternWarning, match=r"2 of 5 edges are given more than once.*leaves 3"):
        assert edges_of(pc.edges([(0, 1), (0, 1), (4, 4), (4, 4), (5, 0)])) == {
            (0, 1),
            (4, 4),
            (5, 0),
        }
    with pytest.warns(PatternWarning, match="1 are self edges, kept as any other"):
        edges_of(pc.edges([(4, 4), (4, 4)]))


def test_self_edges_and_parallel_edges_of_graphs_count_once() -> None:
    """An undirected edge reads both ways, but a token that reads itself does so once."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert edges_of(pc.edges([(3, 3), (0, 1)])) == {(3, 3), (0, 1)}
        made: Any = networkx.Graph([(3, 3), (0, 1)])
        assert edges_of(pc.edges(made)) == {(3, 3), (0, 1), (1, 0)}
        many: Any = networkx.MultiGraph([(3, 3), (0, 1), (1, 0), (3, 3)])
        assert edges_of(pc.edges(many)) == {(3, 3), (0, 1), (1, 0)}


def test_nodes_out_of_range_are_named_and_counted() -> None:
    with pytest.raises(PatternValueError, match=r"edge 1 is \(2, 6\), and node 6 .*2 of 3 edges"):
        edges_of(pc.edges([(0, 1), (2, 6), (7, 0)]))
    with pytest.raises(PatternValueError, match="node -1"):
        edges_of(pc.edges(np.array([(0, -1)], dtype=np.int8)))
    with pytest.raises(PatternValueError, match="node 18446744073709551615"):
        edges_of(pc.edges(np.array([(0, 2**64 - 1)], dtype=np.uint64)))


@given(
    st.sampled_from([np.uint8, np.int16, np.uint32, np.int32, np.int64, np.uint64]),
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40, unique=True),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_integers_of_any_kind_in_any_slice(
    kind: type, pairs: list[tuple[int, int]], q_offset: int, k_offset: int
) -> None:
    source: Any = np.array(pairs, dtype=kind).reshape(-1, 2)
    for p, wanted in (
        (pc.edges(source), {*pairs}),
        (pc.edges(source).T, {(j, i) for i, j in pairs}),
        (pc.causal() & pc.edges(source), {(i, j) for i, j in pairs if j <= i}),
        (pc.window(3, 2) & pc.edges(source).T, {(j, i) for i, j in pairs if -3 <= i - j <= 2}),
    ):
        mask = pc.lower(p, 11, 12, q_offset + 1, k_offset).dense()
        found = {(i + q_offset + 1, j + k_offset) for i, j in np.argwhere(mask).tolist()}
        i0, j0 = q_offset + 1, k_offset
        assert found == {(i, j) for i, j in wanted if 0 <= i - i0 < 11 and 0 <= j - j0 < 12}


@given(
    st.lists(st.tuples(st.integers(0, 10**17), st.integers(0, 99)), max_size=20),
    st.sampled_from([" ", ",", "\t", " , "]),
    st.sampled_from(["\n", "\r\n", "\n\n", "\n# said\n", "  \n"]),
)
def test_texts_of_any_shape_are_the_same_graph(
    pairs: list[tuple[int, int]], between: str, after: str
) -> None:
    """The quick way through plain lines, and the slow one through comments, read alike."""
    lines = "".join(f"{i}{between}{j}{after}" for i, j in pairs)
    assert graph_files._from_text(lines.encode(), "edges").tolist() == [list(x) for x in pairs]
    assert graph_files._from_text(lines.rstrip().encode(), "edges").tolist() == [
        list(x) for x in pairs
    ]


@given(st.text(alphabet="01 9,\n\r-#.x", max_size=24))
def test_any_text_is_read_or_refused(content: str) -> None:
    def slowly() -> list[list[int]] | None:
        rows = [line.partition("#")[0].replace(",", " ").split() for line in content.splitlines()]
        try:
            found = [list(map(int, words)) for words in rows if words]
        except ValueError:
            return None
        return found if all(len(words) == 2 for words in found) else None

    try:
        found = graph_files._from_text(content.encode(), "edges").tolist()
    except PatternValueError:
        found = None
    assert found == slowly()


def test_limits_are_checked_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(graph_files, "EDGE_LIMIT", 3)
    (tmp_path / "a.txt").write_text("0 1\n" * 4)
    dense = np.ones((2, 2), dtype=bool)
    pairs = np.zeros((4, 2), dtype=int)
    sources = [str(tmp_path / "a.txt"), dense, pairs, scipy.sparse.csr_array(dense)]
    for source in [*sources, networkx.path_graph(4)]:
        with pytest.raises(SizeError, match="more than the limit of 3; give the edges of a part"):
            edges_of(pc.edges(source))


def test_graphs_are_equal_by_name_or_as_one_object(tmp_path: Path) -> None:
    pairs = np.array([(0, 1)])
    assert pc.edges("a.txt") == pc.edges(Path("a.txt")) and pc.edges(pairs) == pc.edges(pairs)
    assert len({pc.edges("a.txt"), pc.edges(Path("a.txt")), pc.edges("b.txt")}) == 2
    assert pc.edges(pairs) != pc.edges(pairs.copy())
    assert pc.edges("a.txt") != pc.edges("a.txt", weights="ignore")
    assert str(pc.edges("a.txt", weights="ignore")) == 'edges("a.txt", weights="ignore")'


def test_a_pattern_file_says_what_weights_mean(tmp_path: Path) -> None:
    source = text(tmp_path)
    file = tmp_path / "p.yaml"
    file.write_text(f'name: p\nedges:\n  graph: edges("{source}", weights="nonzero")\n')
    assert edges_of(pc.load(file).edges["graph"]) == NONZERO


def test_a_torn_sparse_matrix_is_refused_before_it_is_read() -> None:
    matrix = scipy.sparse.csr_array(np.eye(5))
    matrix.indptr[3] = 99
    with pytest.raises(PatternValueError, match="not a sound one"):
        pc.compile(pc.from_scipy(matrix), 5)


def test_a_node_past_all_positions_is_refused() -> None:
    with pytest.raises(PatternValueError, match="is not a position"):
        pc.compile(pc.from_networkx(networkx.Graph([(0, 10**30)])), 5)


def test_tensors_that_numpy_cannot_look_at_are_refused_with_the_remedy() -> None:
    sparse = torch.eye(4).to_sparse()
    with pytest.raises(PatternValueError, match=r"tensor\.coalesce\(\)\.indices\(\)\.T"):
        edges_of(pc.edges(sparse), 4)
    assert edges_of(pc.edges(sparse.coalesce().indices().T), 4) == {(i, i) for i in range(4)}


def test_an_edge_index_is_to_be_transposed() -> None:
    edge_index = np.array([[0, 1, 2], [3, 3, 3]])
    with pytest.raises(PatternValueError, match=r"transpose it: edge_index\.T"):
        edges_of(pc.edges(edge_index))
    assert edges_of(pc.edges(edge_index.T)) == {(0, 3), (1, 3), (2, 3)}
    assert edges_of(pc.edges(np.array([[0, 1], [2, 3]]))) == {(0, 1), (2, 3)}


@pytest.mark.parametrize("lengths", [(4,), (4, 6), (6, 4)])
def test_the_side_that_is_too_short_is_named(lengths: tuple[int, ...]) -> None:
    wide = np.ones((6, 9), dtype=bool)
    said = {(4,): "n > 8 ", (4, 6): "n > 8 ", (6, 4): "n_k > 8 "}[lengths]
    with pytest.raises(PatternValueError, match=f"lower with {said}"):
        pc.lower(pc.edges(wide), *lengths)
    assert pc.lower(pc.edges(wide), 6, 9).count() == 54


def test_a_node_that_no_length_reaches_is_only_to_be_numbered_anew() -> None:
    with pytest.raises(PatternValueError, match=r"number the nodes from 0 \(1 of 1"):
        edges_of(pc.edges(np.array([[2**63, 1]], dtype=np.uint64)))


def test_edge_lists_of_networkx(tmp_path: Path) -> None:
    """A text has one direction an edge; attributes in a third column are named."""
    file = str(tmp_path / "g.edgelist")
    ring = networkx.path_graph(3)
    networkx.write_edgelist(ring, file)
    with pytest.raises(PatternValueError, match=r"networkx\.write_edgelist\(G, path, data=False\)"):
        edges_of(pc.edges(file))
    networkx.write_edgelist(ring, file, data=False)
    assert edges_of(pc.edges(file)) == {(0, 1), (1, 2)}
    networkx.write_edgelist(ring.to_directed(), file, data=False)
    assert edges_of(pc.edges(file)) == edges_of(pc.edges(ring))


@pytest.mark.parametrize("line", ["1_0 2", "\u0661 2", "1 1_000"])
def test_numbers_are_written_in_plain_digits(line: str, tmp_path: Path) -> None:
    file = tmp_path / "g.txt"
    file.write_text(f"0 1\n{line}\n", encoding="utf-8")
    with pytest.raises(PatternValueError, match=r"line 2 is .*in the digits 0 to 9"):
        edges_of(pc.edges(str(file)), 2000)
