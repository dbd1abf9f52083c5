"""compare: the Pareto front against its definition, honest brackets, a table, JSON and a plot."""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import patterncc as pc
from patterncc.analysis import Comparison, compare
from patterncc.analysis.compare.front import Bracket, dominates, dominators
from patterncc.analysis.compare.plane import Axis
from patterncc.analysis.curve import Depth
from patterncc.cli import main
from patterncc.errors import PatternError, PatternValueError

NEAR, FAR = pc.causal() & pc.window(15), pc.causal() & pc.window(63)
SUNK = pc.causal() & (pc.window(15) | pc.sink(4))


def beats(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """The definition for known figures: nowhere more, somewhere less."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def surely(a: list[Bracket], b: list[Bracket]) -> bool:
    """a beats b whichever whole numbers of their brackets are the true ones."""

    def truths(point: list[Bracket]) -> list[tuple[int, ...]]:
        return list(product(*(range(int(x.best), int(x.worst) + 1) for x in point)))

    return all(beats(x, y) for x in truths(a) for y in truths(b))


brackets = st.tuples(st.integers(0, 5), st.integers(0, 2)).map(lambda t: Bracket(t[0], sum(t)))
points = st.lists(brackets, min_size=2, max_size=2)


@given(st.lists(points, max_size=7))
def test_the_front_is_what_none_surely_beats(field: list[list[Bracket]]) -> None:
    expected = tuple(
        tuple(k for k, other in enumerate(field) if surely(other, point)) for point in field
    )
    assert dominators(field) == expected


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_a_front_of_known_figures_covers_everything(field: list[tuple[int, int]]) -> None:
    found = dominators([[Bracket(x, x) for x in point] for point in field])
    front = {point for point, by in zip(field, found, strict=True) if not by}
    assert front == {p for p in field if not any(beats(q, p) for q in field)}
    assert all(any(beats(q, p) or q == p for q in front) for p in field)


def test_no_end_is_worse_than_any_depth() -> None:
    open_end, never = Bracket(3, math.inf), Bracket(math.inf, math.inf)
    cheap, dear = Bracket(1, 1), Bracket(2, 2)
    assert dominates([cheap, never], [dear, never])
    assert dominates([cheap, open_end], [dear, never])
    assert not dominates([cheap, open_end], [dear, Bracket(9, 9)])
    assert not dominates([cheap, open_end], [cheap, open_end])


def test_figures_are_those_of_the_reports() -> None:
    found = pc.compare({"near": NEAR, "far": FAR, "mixed": pc.Stack([NEAR, FAR])}, 256, depth=4)
    for c, stack in zip(found.candidates, (NEAR, FAR, pc.Stack([NEAR, FAR])), strict=True):
        r = pc.analyze(stack, 256, 4)
        assert c.flops_share == pytest.approx(sum(x.flops_share for x in r.costs) / 4)
        assert c.depth_to_full == r.full and c.reach == r.reach[-1]
        assert r.influence is not None
        assert (c.q50, c.q90) == (r.influence.q50, r.influence.q90)
    assert found.front("depth") == ("near", "mixed", "far")


def test_a_candidate_that_costs_more_and_gives_no_more_is_beaten() -> None:
    found = compare({"near": NEAR, "sunk": SUNK, "again": NEAR}, 256, depth=4)
    near, sunk, again = found.candidates
    assert sunk.beaten["depth"] == ("near", "again")  # a causal sink relays nothing forward
    assert near.on_front("depth") and again.on_front("depth")  # equals do not beat each other
    with pytest.raises(PatternValueError, match="no plane 'cost'"):
        near.on_front("cost")


def test_equal_edges_cost_the_same_whatever_is_allowed() -> None:
    both = compare({"ahead": pc.window(8, 8), "causal": pc.window(16, 0)}, 512, depth=2)
    ahead, causal = both.candidates
    assert ahead.report.pairs > causal.report.pairs
    assert ahead.flops_share == pytest.approx(causal.flops_share, rel=0.02)
    assert any("allowed pairs differ" in note for note in both.notes)


def test_undecided_depths_win_only_what_is_proved() -> None:
    open_end = replace(pc.analyze(NEAR, 256), full=Depth(3, None, False, 9))
    between = replace(pc.analyze(SUNK, 256), full=Depth(3, 5, False, 9))
    found = Comparison.of({"open": open_end, "between": between, "far": pc.analyze(FAR, 256)})
    assert found.front("depth") == ("open", "between")  # 5 at most, for less than far costs
    assert any("not decided" in note for note in found.notes)
    assert ">= 3" in str(found) and "3-5" in str(found)


def test_no_influence_is_said_and_takes_no_part() -> None:
    state = pc.Stack([pc.recurrent(), NEAR])
    found = compare({"state": state, "near": NEAR}, 256)
    c = found.candidates[0]
    assert c.q50 is None and c.why_not and "influence" not in c.beaten
    assert found.front("influence") == ("near",)
    assert any("state: not placed by influence" in note for note in found.notes)
    assert "state: its cost is that of attention alone, without recurrences" in str(found.notes)
    assert c.to_json()["beaten_by"]["influence"] is None


def test_layers_that_choose_cost_between_two_ends() -> None:
    chooses = pc.causal() & (pc.window(15) | pc.topk(8))
    found = compare({"chooses": chooses, "near": NEAR, "all": pc.causal()}, 256)
    c, near, _ = found.candidates
    assert c.flops_share_least == pytest.approx(near.flops_share)
    assert c.flops_share > near.flops_share
    assert found.front("depth") == ("near", "chooses", "all")  # nothing is proved of it
    assert "<= " in str(found)


def test_text() -> None:
    text = str(compare({"near": NEAR, "far": FAR, "chunks": pc.chunked(16) & NEAR}, 256, depth=4))
    assert text == (
        """\
3 candidates at 256 tokens

candidate  FLOPs     KV  full at  reach  half within  best
near       12.1%  6.25%       17  41.9%           14  both
far        43.7%    25%        5  <100%           59  both
chunks     6.61%  6.25%    never  6.61%           12  both

FLOPs, KV: shares of full attention's, over the whole stack; KV is what a decode
    step reads
reach: allowed pairs reached at each candidate's depth
half within: the distance within which half of the last token's influence lies
    (q50 of the rollout, alpha 0.5); more is farther. Dense causal layers gather
    influence at the first tokens, and it falls with alpha: try several before
    you rank by it
best by cost and depth: chunks, near, far
best by cost and influence: chunks, near, far
note: 4 layers asked of a stack of 1: it repeats cyclically"""
    )


def test_long_names_give_way_and_lines_fit() -> None:
    long = {f"a very long name of a candidate that says too much, {k}": NEAR for k in range(3)}
    found = compare(long, 256)
    assert max(map(len, str(found).splitlines())) <= 80
    assert [c["name"] for c in found.to_json()["candidates"]] == list(long)


def test_saved_files_are_whole_and_ask_for_nothing(tmp_path: Path) -> None:
    found = compare({"near <&>": NEAR, "far": FAR, "chunks": pc.chunked(16)}, 256)
    assert json.loads(found.save(tmp_path / "c.json").read_text()) == found.to_json()
    assert found.save(tmp_path / "c.txt").read_text() == f"{found}\n"
    drawing = found.save(tmp_path / "c.svg").read_text()
    assert "near <&>" in list(ET.fromstring(drawing).itertext())
    page = found.save(tmp_path / "c.html").read_text()
    assert "<script" not in page and "url(" not in page and "http" not in page
    with pytest.raises(PatternValueError, match=r"ends in '\.pdf'; use \.html, .* or \.txt"):
        found.save(tmp_path / "c.pdf")
    with pytest.raises(PatternError, match="cannot write"):
        found.save(tmp_path / "none" / "c.svg")
    assert sorted(os.listdir(tmp_path)) == ["c.html", "c.json", "c.svg", "c.txt"]


@pytest.mark.parametrize("n, depth", [(0, 2), (1, 0), (64, 0)])
def test_nothing_to_compare_is_drawn_too(n: int, depth: int, tmp_path: Path) -> None:
    found = compare({"near": NEAR, "none": pc.causal() & ~pc.causal()}, n, depth)
    ET.fromstring(found.save(tmp_path / "c.svg").read_text())
    assert json.dumps(found.to_json(), allow_nan=False) and str(found)


@given(st.lists(st.floats(0, 1e12, allow_subnormal=False), min_size=1, max_size=6))
def test_axes_hold_their_values_and_have_ticks(values: list[float]) -> None:
    axis = Axis.over(values, 0, 100)
    assert all(-1e-9 <= axis(v) <= 100 + 1e-9 for v in values)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(-1e-9 <= axis(t) <= 100 + 1e-9 for t in ticks)


def test_refusals() -> None:
    with pytest.raises(PatternValueError, match="no candidates"):
        compare({}, 256)
    with pytest.raises(PatternError, match="mapping from names to stacks"):
        compare([NEAR], 256)  # type: ignore[arg-type]
    with pytest.raises(PatternError, match=r"compare: far: .*not a str"):
        compare({"near": NEAR, "far": "window"}, 256)  # type: ignore[dict-item]
    with pytest.raises(PatternValueError, match="different n: 64, 256"):
        Comparison.of({"a": pc.analyze(NEAR, 64), "b": pc.analyze(NEAR, 256)})


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["compare", *words])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_the_command_reads_what_analyze_reads(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 16}')
    words = ["mistral-7b", "bigbird:r=1", "bigbird", str(config), "--n", "512", "--json"]
    status, output = run(*words)
    found = json.loads(output)
    names = [c["name"] for c in found["candidates"]]
    assert status == 0 and names[:3] == ["mistral-7b", "bigbird r=1", "bigbird"]
    assert found["n"] == 512 and found["schema"] == "patterncc.comparison/1"


def test_a_terminal_shows_the_same_words() -> None:
    from patterncc.cli.styled import comparison_text

    found = compare({"near": NEAR, "never": pc.chunked(16) & NEAR}, 256)
    shown = comparison_text(found)
    assert shown.plain == str(found)
    marked = {(shown.plain[s.start : s.end], s.style) for s in shown.spans}
    assert {("both", "bold green"), ("never", "bold red")} <= marked


def test_shared_parameters_go_to_those_that_have_them() -> None:
    status, output = run("bigbird", "bigbird:r=2", "mistral-7b", "-p", "r=1", "--n", "512")
    assert status == 0
    assert "bigbird r=1" in output and "bigbird r=2" in output


@pytest.mark.parametrize(
    "words, told",
    [
        (("bigbird", "-p", "zz=1"), "none of the candidates"),
        (("bigbird:zz=1",), "zz"),
        (("bigbird:w",), "NAME=VALUE"),
        (("bigbirt",), "gallery has no pattern"),
        (("bigbird", "-o", "c.pdf"), "use .html"),
        (("bigbird", "-o", "no/such/c.svg"), "no folder"),
        (("bigbird", "--engine", "zone"), "did you mean 'zones'"),
        (("bigbird", "--alpha", "2", "--n", "64"), "alpha"),
        (("bigbird", "--n", "0"), "too small"),
        ((), "CANDIDATE"),
    ],
)
def test_the_command_refuses(
    words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output = run(*words)
    assert status == 2 and told in output
    assert not os.listdir()
