"""Small-world figures and the spectral gap, held to networkx and to dense eigenvalues."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reach_oracles import layer_masks, stacks

from patterncc.analysis import clustering, distance
from patterncc.analysis.skeleton import skeleton
from patterncc.analysis.spectrum import spectrum
from patterncc.analysis.topology import topology
from patterncc.analysis.value import Value
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


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=100, deadline=None)
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
