"""Pattern nodes, primitives' own checks, stacks: what can be said before any size is known."""

from __future__ import annotations

import numpy as np
import pytest

import patterncc as pc
from patterncc.primitives import PRIMITIVES


def test_operators_build_and_print_the_tree() -> None:
    a, b, c = pc.causal(), pc.window(3), pc.sink(1)
    assert str(a & (b | c)) == "causal() & (window(3) | sink(1))"
    assert str((a | b) | c) == str(a | b | c) == "causal() | window(3) | sink(1)"
    assert str(a - (b - c)) == "causal() - (window(3) - sink(1))"
    assert str(~(a | b).T) == "~(causal() | window(3)).T"
    assert ~~a == a and a == a.T.T
    assert len({a & b, pc.causal() & pc.window(3)}) == 1


def test_a_pattern_has_no_truth_value() -> None:
    with pytest.raises(pc.PatternError, match="write 'a & b'"):
        _ = pc.causal() and pc.window(3)
    with pytest.raises(pc.PatternError, match="joins two patterns; the right side is 3"):
        pc.causal() | 3  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.window(-2), "window: left must be at least -1, not -2"),
        (lambda: pc.window(2.5), r"window: left must be an integer, not 2\.5"),
        (lambda: pc.window(True), "window: left must be an integer, not True"),
        (lambda: pc.window(np.array([3])), r"must be an integer, not array\(\[3\]\)"),
        (lambda: pc.window(2**41), "at most 1099511627776"),
        (lambda: pc.summary(4, 5), "width 5 is larger than stride 4"),
        (lambda: pc.global_tokens(5), r"write global_tokens\(\[5\]\) for one token"),
        (lambda: pc.global_tokens([-1]), "tokens must be at least 0, not -1"),
        (lambda: pc.documents("two words"), "'two words' is not a name to bind"),
        (lambda: pc.documents("n"), "'n' cannot be bound"),
        (lambda: pc.documents([2**40, 2**40]), "lengths makes more than"),
        (lambda: pc.longnet([4, 8], [1]), "2 segments and 1 rates"),
        (lambda: pc.grid([4, 4], [1]), "shape has 2 axes and window 1"),
        (lambda: pc.grid([4], [1], edges="wrap"), '"cut" or "shift"'),
        (lambda: pc.tree([0]), r"parents\[0\] is 0; a parent stands before"),
        (lambda: pc.random_blocks(3, past=1), "past must be True or False, not 1"),
    ],
)
def test_arguments_are_checked_where_they_are_given(make: object, message: str) -> None:
    with pytest.raises(pc.PatternError, match=message):
        make()  # type: ignore[operator]


def test_every_primitive_says_what_its_edges_are() -> None:
    for kind in PRIMITIVES.values():
        assert kind.__doc__ and not kind.__doc__.startswith(kind.__name__ + "(")


def test_huge_ranges_cost_nothing() -> None:
    assert str(pc.global_tokens(range(10**12))) == "global_tokens(range(1000000000000))"


def test_graphs_compare_by_identity() -> None:
    a, b = (pc.edges(np.eye(3, dtype=bool)) for _ in range(2))
    assert a == a and a != b
    assert pc.edges("g.npz") == pc.edges("g.npz")


def test_stacks() -> None:
    local = pc.causal() & pc.window(3)
    s = pc.Stack([local, local, pc.heads([pc.causal(), local])], memory=4)
    assert len(s) == 3 and s.layer(3) == local and len(s.heads(2)) == 2 and len(s.heads(0)) == 1
    assert "memory 4" in str(s)
    assert pc.Stack(local).layers == (local,)
    for wrong in ([], [3], 5):
        with pytest.raises(pc.PatternError, match="Stack"):
            pc.Stack(wrong)  # type: ignore[arg-type]
    for wrong in ([], [3], 5):
        with pytest.raises(pc.PatternError, match="heads"):
            pc.heads(wrong)  # type: ignore[arg-type]


def test_unknown_public_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'windw'"):
        _ = pc.windw  # type: ignore[attr-defined]
    assert {"load", "attention", "causal"} <= set(dir(pc))
