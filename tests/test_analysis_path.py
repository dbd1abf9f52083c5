"""explain and cones against breadth-first search over (layer, position)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patterncc import primitives as pc
from patterncc.analysis import cone, explain
from patterncc.errors import PatternError, PatternValueError
from patterncc.stack import Stack, heads
from tests.reach_oracles import Mask, layer_masks, slow_reach, stacks


def slow_path(masks: list[Mask], query: int, key: int) -> tuple[int, int] | None:
    """(fewest layers, and of those ways fewest hops), by trying every layer and position."""
    size, far = len(masks[0]), 10**6
    hops = np.full(size, far)
    hops[key] = 0
    for l in range(len(masks) * (size + 1)):
        if hops[query] < far:
            return l, int(hops[query])
        through = np.where(masks[l % len(masks)], hops[None, :] + 1, far).min(axis=1)
        hops = np.minimum(hops, through)
    return None


@settings(max_examples=150)
@given(stacks(), st.integers(1, 30), st.data())
def test_paths_are_valid_and_shortest(stack: Stack, n: int, data: st.DataObject) -> None:
    query = stack.memory + data.draw(st.integers(0, n - 1))
    key = data.draw(st.integers(0, stack.memory + n - 1))
    found = explain(stack, n, query, key)
    masks = layer_masks(stack, n)
    truth = slow_path(masks, query, key)
    assert [d.layer for d in found.direct] == [l for l, m in enumerate(masks) if m[query, key]]
    assert all(d.rules for d in found.direct)
    if truth is None:
        assert found.never and found.layers is None and not found.path
        return
    assert (found.layers, len(found.path)) == truth
    at, last = key, -1
    for step in found.path:
        assert last < step.layer < truth[0]
        assert step.key == at and masks[step.layer % len(masks)][step.query, step.key]
        assert step.rules
        at, last = step.query, step.layer
    assert at == query


@settings(max_examples=80)
@given(stacks(), st.integers(1, 30), st.integers(0, 6), st.data())
def test_cones_are_rows_of_reach(stack: Stack, n: int, depth: int, data: st.DataObject) -> None:
    assume(stack.memory + n > 0)
    query = stack.memory + data.draw(st.integers(0, n - 1))
    found = cone(stack, n, query, depth)
    masks = layer_masks(stack, n)
    row = slow_reach(masks, depth)[depth][query]
    marked = np.zeros_like(row)
    for a, b in found.layers[0].tolist():
        marked[a:b] = True
    assert (marked == row).all()
    assert found.sizes()[depth] == 1 and found.sizes()[0] == row.sum()
    assert len(found.to_json()["layers"]) == depth + 1


def test_rules_are_called_by_name_and_by_head() -> None:
    near, hub = pc.window(7), pc.global_tokens([0, 1])
    both = pc.causal() & (near | hub)
    stack = Stack([heads([both, both, pc.causal() & pc.strided(8)])])
    e = explain(stack, 64, 40, 0, names={"near": near, "hub": hub})
    assert e.direct[0].rules == ("hub: global_tokens([0, 1]) (head 0-1)", "strided(8) (head 2)")
    e = explain(stack, 64, 40, 39, names={"near": near, "hub": hub})
    assert e.direct[0].rules == ("near: window(7) (head 0-1)",)
    e = explain(stack, 64, 40, 39, names={"core": near | hub})
    assert e.direct[0].rules == ("core: window(7) | global_tokens([0, 1]) (head 0-1)",)


def test_a_path_at_a_million_tokens() -> None:
    n = 2**20
    stack = Stack([pc.causal() & (pc.window(4095) | pc.sink(4))] * 48)
    e = explain(stack, n, n - 1, n - 100_000)
    assert e.layers == -(-99_999 // 4095) == len(e.path)
    assert "the stack has 48" in e.reason
    far = explain(stack, n, n - 1, 9)
    assert far.layers == -(-(n - 10) // 4095) and far.layers > 48


def test_why_there_is_no_path() -> None:
    e = explain(pc.causal() & pc.chunked(16), 64, 40, 3)
    assert e.never
    assert e.reason == (
        "no path, however many layers: key 3 reaches 13 of 64 positions, [3, 16), "
        "and stops there after 1 layers"
    )
    assert not explain(pc.causal(), 8, 2, 5).direct
    itself = explain(pc.causal() & pc.window(3), 8, 5, 5)
    assert itself.layers == 0 and itself.path == ()
    slow = explain(pc.window(1), 10_000, 9_999, 0)
    assert slow.layers is None and not slow.never
    assert "no path within 4096 layers" in slow.reason


def test_positions_outside_are_refused() -> None:
    with pytest.raises(PatternError, match=r"query 8 is outside \[0, 8\)"):
        explain(pc.causal(), 8, 8, 0)
    with pytest.raises(PatternError, match=r"outside \[4, 12\) \(4 memory positions come first\)"):
        explain(Stack(pc.causal(), memory=4), 8, 3, 0)
    with pytest.raises(PatternValueError, match="query must be an integer"):
        cone(pc.causal(), 8, "x")  # type: ignore[arg-type]


def test_one_pair_is_asked_without_lowering_the_whole_frame() -> None:
    p = pc.causal() & pc.window(100) & (pc.strided(2) | pc.sink(4))
    found = explain(p, 2**20 * 64, query=2**25, key=2**25 - 90)
    assert found.direct and found.direct[0].rules == ("window(100)", "strided(2)")
