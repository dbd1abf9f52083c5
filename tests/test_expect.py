"""Proving expectations: comparisons of brackets, exact fractions, errors with their place."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc import PatternError
from patterncc.expect import Bracket, Outcome, _compared, prove
from patterncc.language import NEVER, loads

SIGNS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
brackets = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda t: Bracket(min(t), max(t)))


def outcomes(edges: str, *lines: str, extra: str = "", **bindings: object) -> list[Outcome]:
    text = f"edges:\n  a: {edges}\n{extra}expect:\n" + "".join(f"  - {line}\n" for line in lines)
    return list(prove(loads(text, "a.yaml"), **bindings))


@given(st.sampled_from(sorted(SIGNS)), brackets, brackets)
def test_a_comparison_holds_if_it_does_for_every_value(
    sign: str, left: Bracket, right: Bracket
) -> None:
    values = {
        SIGNS[sign](a, b)
        for a in range(int(left.lo), int(left.hi) + 1)
        for b in range(int(right.lo), int(right.hi) + 1)
    }
    assert _compared(sign, left, right) == (values.pop() if len(values) == 1 else None)


def test_fractions_are_exact() -> None:
    found = outcomes(
        "causal() & window(2)",
        "density(n=10) == 0.27",
        "density(n=10) == 27/100",
        "density(n=10) > 0.27",
        "0.269999999999999999 < density(n=10) < 0.270000000000000001",
        "density(n=10) < 2.7e-1",
        "reach(n=10, depth=1) == 27/55",
    )
    assert [o.holds for o in found] == [True, True, False, True, False, True]
    assert {o.badge for o in found} == {"exact"}


def test_never_and_depths() -> None:
    found = outcomes(
        "causal() & chunked(64)",
        "depth_to_full(n=512) == never",
        "depth_to_full(n=512) > 1000000",
        "depth_to_full(n=512) != 3",
        "depth_to_full(n=64) < never",
        "depth_to_full(n=512) == depth_to_full(n=513)",
        "0.126 < reach(n=512, depth=9) < 0.128",
    )
    assert [o.holds for o in found] == [True] * 6
    assert found[0].actual == "never"
    assert found[4].actual == "never, never"


def test_a_chain_holds_if_each_link_does() -> None:
    found = outcomes(
        "causal()", "1 <= edges(n=4) <= 10", "1 <= edges(n=4) < 10", "20 < edges(n=4) < 30"
    )
    assert [o.holds for o in found] == [True, False, False]


def test_layers_and_heads_add_up() -> None:
    extra = (
        "layers:\n  - repeat: 2\n    edges: a\n"
        "  - heads:\n      - count: 3\n        edges: a\n      - edges: full()\n"
    )
    found = outcomes(
        "causal()",
        "edges(n=4) == 5 * 10 + 16",
        "density(n=4) == (2 * 10/16 + (3 * 10 + 16) / 64) / 3",
        "tile_density(n=32, block=16) == (3/4 + 3/4 + (3 * 3/4 + 1) / 4) / 3",
        extra=extra,
    )
    assert [str(o) for o in found if not o.holds] == []


def test_memory_counts_as_keys() -> None:
    found = outcomes("causal()", "edges(n=4) == 22", "density(n=4) == 22/28", extra="memory: 3\n")
    assert [o.holds for o in found] == [True, True]


def test_bindings_of_the_file_and_over_them() -> None:
    extra = "bindings:\n  docs: '[2, 2]'\n"
    assert outcomes('documents("docs")', "edges(n=4) == 8", extra=extra)[0].holds
    over = outcomes('documents("docs")', "edges(n=4) == 10", extra=extra, docs=[1, 3])
    assert over[0].holds


def test_bounds_say_so_and_decide_what_they_can() -> None:
    bounded = Bracket(10, NEVER)
    assert str(bounded) == "at least 10"
    assert str(Bracket(1, 2)) == "at least 1, at most 2"
    assert _compared("==", bounded, Bracket(9, 9)) is False
    assert _compared("==", bounded, Bracket(NEVER, NEVER)) is None
    assert _compared(">", bounded, Bracket(9, 9)) is True


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("edges(n=8) == 1", "cannot prove 'edges(n=8) == 1'"),
        ("tile_density(n=8, block=17) < 1", "cannot prove 'tile_density(n=8, block=17) < 1'"),
    ],
)
def test_what_cannot_be_computed_says_where(line: str, message: str) -> None:
    edges = 'documents("docs")' if "edges" in line else "full()"
    with pytest.raises(PatternError) as caught:
        outcomes(edges, line)
    assert str(caught.value).startswith(f"a.yaml:4:5: {message}: ")
    assert "^^^" in str(caught.value)


def test_the_text_of_an_outcome() -> None:
    found = outcomes("causal()", "depth_to_full(n=8) == 1", "density(n=9) > 5/9")
    assert list(map(str, found)) == [
        "holds: depth_to_full(n=8) == 1  (1, exact)",
        "fails: density(n=9) > 5/9  (0.5556, exact)",
    ]
