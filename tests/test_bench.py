"""The benchmarks run and print what they measured; nothing here is timed."""

from __future__ import annotations

import json

from patterncc.bench import compile as compile_bench
from patterncc.bench import protocol, reach


def test_reach_is_exact_and_agrees_with_the_peer() -> None:
    result = reach.run(repeats=1, peer_n=200)
    assert json.loads(json.dumps(result)) == result
    assert [case["badge"] for case in result["cases"]] == ["exact"] * 3
    assert all(case["peak_bytes"] < 10e6 for case in result["cases"])
    assert result["peer"]["equal"]
    assert "1,099,511,627,776" in reach.text(result)


def test_compile_stays_within_its_memory() -> None:
    result = compile_bench.run(repeats=1, peer=False)
    assert [case["n"] for case in result["cases"]] == [1 << 20] * 2
    assert all(case["peak_bytes"] < 100e6 for case in result["cases"])
    assert "1,048,576" in compile_bench.text(result)


def test_ways_run_in_turn() -> None:
    order: list[str] = []
    times = protocol.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3 and times["a"]["runs"] == 2
