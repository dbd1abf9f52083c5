"""The benchmarks run and print what they measured; nothing here is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from inspect import signature

import numpy as np
import pytest

from patterncc import lower, random_edges, window
from patterncc.bench import compile as compile_bench
from patterncc.bench import compile_cases, protocol, reach, reach_peers
from patterncc.cli.measure import BENCHES, bench


def test_reach_agrees_with_every_peer() -> None:
    result = reach.run(repeats=1, peer_n=200, hops_n=128, exact_n=600, million=2000)
    assert json.loads(json.dumps(result)) == result
    exact, rest = result["cases"][:6], result["cases"][6:]
    assert [case["badge"] for case in exact] == ["exact"] * 6
    assert all(case["peak_bytes"] < 10e6 for case in exact)
    assert all("95%" in case["badge"] and 0 < case["error"] < 0.1 for case in rest[:4])
    assert [case["case"].split(" of ")[0] for case in rest[4:]] == [
        "sigma and omega",
        "spectral gap",
    ]
    hops = result["hops"]
    assert sum(hops["hops"]) == 128**2 and hops["best"] in hops["peers"]
    for found in hops["peers"].values():
        assert found["equal"] if "hops" in found else found["missing"].startswith("pip install")
    assert result["peer"]["equal"]
    shown = reach.text(result)
    assert "1,099,511,627,776" in shown and "whole report" in shown and "networkx, from" in shown


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(n: int, i: object, j: object) -> reach_peers.Way:
        raise ImportError

    absent = reach_peers.Peer("no-such-library", "nothing", lacking)
    monkeypatch.setattr(reach_peers, "PEERS", (absent, reach_peers.PEERS[-1]))
    hops = reach._hops(64, 1)
    assert hops["peers"]["no-such-library"] == {"missing": "pip install no-such-library"}
    assert hops["best"] == "networkx" and hops["peers"]["networkx"]["equal"]


def test_edges_of_zones_are_listed_once() -> None:
    zones = lower(window(2, 3) | window(1, 1) | random_edges(2), 40)
    i, j = reach_peers.edges(zones)
    mask = zones.dense()
    np.fill_diagonal(mask, False)
    assert np.array_equal(np.argwhere(mask), np.stack([i, j], axis=1))


def test_compile_measures_every_case_that_was_asked_for() -> None:
    result = compile_bench.run(
        repeats=1, peer=False, million=1 << 13, batch_n=1 << 13, edges=80 << 10, shuffled_n=1 << 12
    )
    assert json.loads(json.dumps(result)) == result
    asked = [case["asked_seconds"] for case in result["cases"]]
    assert asked == [0.010] * 5 + [0.200] * 5 + [0.060, 0.300, 0.003, 0.003, 0.020] + [None] * 3
    graph = result["graphs"]["nearest_neighbours"]
    assert graph["equal_edges"] and graph["edges"] == 80 << 10
    assert result["shuffled"]["window"]["tiles"] >= result["shuffled"]["natural_tiles"]
    shown = compile_bench.text(result)
    assert "load an artifact" in shown and "nearest neighbours" in shown


def test_compile_stays_within_its_memory() -> None:
    for case in compile_cases.structured(1 << 20)[:5] + compile_cases.scattered(1 << 20)[:1]:
        assert protocol.peak_bytes(case.make) < 40e6, case.name


def test_ways_run_in_turn() -> None:
    order: list[str] = []
    times = protocol.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3 and times["a"]["runs"] == 2


@pytest.mark.parametrize("what", BENCHES)
def test_a_benchmark_takes_what_the_command_line_says(what: str) -> None:
    """And nothing else that is an option, so that no module is loaded only to refuse one."""
    options = {p.name for p in bench.params} - {"what", "as_json"}
    taken = signature(import_module(f"patterncc.bench.{what}").run).parameters
    assert set(BENCHES[what]) == options & set(taken)


def test_an_option_is_refused_before_anything_is_loaded() -> None:
    code = """
import sys
from click.testing import CliRunner
from patterncc.cli.main import main
done = CliRunner().invoke(main, ["bench", "reach", "--only", "x"])
assert done.exit_code == 2 and "plan, gpu, check, build" in done.output, done.output
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
