"""Layers that choose their keys by content: lowering what is bound, and bounds where nothing is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import patterncc as pc
from patterncc.errors import PatternValueError
from patterncc.zones.lower import keyed, lower

Indices = NDArray[np.int64]


def slow_topk(indices: Indices, n: int, block: int) -> NDArray[np.bool_]:
    """Edge by edge."""
    dense = np.zeros((n, n), dtype=bool)
    for i, row in enumerate(indices[:n].tolist()):
        for chosen in row:
            if chosen >= 0:
                dense[i, chosen * block : (chosen + 1) * block] = True
    return dense


@st.composite
def chosen(draw: st.DrawFn, n: int, count: int, block: int) -> Indices:
    """What a model may have chosen: fewer and repeated keys included, neighbours likely."""
    blocks = -(-n // block)
    one = st.lists(st.integers(-1, blocks - 1), min_size=count, max_size=count)
    rows = draw(st.lists(one, min_size=1, max_size=3))
    held = [rows[draw(st.integers(0, len(rows) - 1))] for _ in range(n)]
    return np.array(held, dtype=np.int64).reshape(n, count)


@given(st.data(), st.integers(1, 30), st.integers(0, 4), st.integers(1, 7))
def test_topk_is_the_edges_that_are_bound(
    data: st.DataObject, n: int, count: int, block: int
) -> None:
    indices = data.draw(chosen(n, count, block))
    truth, p = slow_topk(indices, n, block), pc.topk(count, block)
    assert (lower(p, n, topk=indices).dense() == truth).all()
    if count:
        assert (lower(p, n, topk=tuple(indices.ravel().tolist())).dense() == truth).all()
    assert (lower(p.T, n, topk=indices).dense() == truth.T).all()
    near = np.tri(n, dtype=bool)
    assert (lower(pc.causal() & p, n, topk=indices).dense() == truth & near).all()
    assert (lower(pc.causal() - p, n, topk=indices).dense() == near & ~truth).all()
    first = data.draw(st.integers(0, n - 1))
    part = lower(p, n - first, n, first, topk=indices)
    assert (part.dense() == truth[first:]).all()


def test_equal_choices_of_neighbours_are_one_zone() -> None:
    indices = np.repeat([[3, 4, 9], [0, -1, 9]], [40, 24], axis=0)
    z = lower(pc.topk(3, block=4), 64, topk=indices)
    assert len(z) == 3 and z.count() == 40 * 12 + 24 * 8


def test_what_is_bound_may_differ_by_layer_and_head() -> None:
    p, n = pc.causal() & pc.topk(1), 4
    a, b = np.array([[0]] * n), np.array([[0], [1], [1], [2]])
    counts: list[Any] = [
        [lower(p, n, layer=l, topk=given).count() for l in (0, 1)]
        for given in (b, np.stack([a, b]), {0: a, 1: b}, {0: a, (1, 0): b})
    ]
    edges = lower(p, n, topk=b).table.tolist()
    assert counts == [[4, 4]] * 4
    assert lower(p, n, layer=1, topk=np.stack([a, b])).table.tolist() == edges
    assert lower(p, n, layer=1, topk={0: a, (1, 0): b}).table.tolist() == edges
    labels = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    one = [lower(pc.routing(2), n, layer=l, routing=labels) for l in (0, 1)]
    assert [z.dense()[0].tolist() for z in one] == [
        [True, True, False, False],
        [True, False, True, False],
    ]
    assert keyed(p) == (True, True) and keyed(p, {"topk": b}) == (False, False)
    assert keyed(p, {"topk": np.stack([a, b])}) == (True, False)
    assert keyed(p, {"topk": {(0, 0): a}}) == (True, True) == keyed(pc.routing(2))
    stack = pc.Stack([p] * 2)
    made = pc.compile(stack, n, topk=np.stack([a, b]))
    assert [layout.dense()[3].tolist() for layout in made] == [
        [True, False, False, False],
        [False, False, True, False],
    ]


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({}, r"topk\(2\): 'topk' is not bound: .* pass what it chose as topk=.* or ask analyze"),
        ({"topk": {1: [[0, 1]] * 4}}, "'topk' is not bound in layer 0"),
        ({"topk": [[0, 1, 2]] * 4}, r"an int array \[n, <=2\].* shape \[4, 3\]"),
        ({"topk": [[0.5, 1]] * 4}, "got float64"),
        ({"topk": [[0, 1], [0]]}, "rows of topk differ in length; fill them up with -1"),
        ({"topk": [0, 1, 2]}, "a flat list of 3 indices is not rows of 2"),
        ({"topk": [[0, 1]] * 3}, "rows for 3 queries, and the last one is at position 3"),
        ({"topk": [[0, 4]] * 4}, "query 0 chooses key 4, and there are 4"),
        ({"topk": [[0, -2]] * 4}, "query 0 chooses key -2"),
    ],
)
def test_what_cannot_be_bound(bound: dict[str, Any], message: str) -> None:
    with pytest.raises(PatternValueError, match=message):
        lower(pc.causal() & pc.topk(2), 4, **bound)
    with pytest.raises(PatternValueError, match=message):
        pc.compile(pc.causal() & pc.topk(2), 4, **bound)


def test_a_layer_without_an_entry() -> None:
    with pytest.raises(PatternValueError, match="bound for 2 layers, and this is layer 2"):
        lower(pc.topk(1), 4, layer=2, topk=np.zeros((2, 4, 1), dtype=int))
    with pytest.raises(PatternValueError, match="query 2 chooses key block 2, and there are 2"):
        lower(pc.topk(1, block=4), 8, topk=[[0], [1], [2], [0], [0], [0], [0], [0]])
    with pytest.raises(PatternValueError, match="topk: count must be at least 0, not -1"):
        pc.topk(-1)
