"""`patterncc bench reach`: reach over depth, exact and sampled, beside the graph libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from patterncc.analysis import analyze
from patterncc.bench import reach_cases as cases
from patterncc.bench import reach_peers
from patterncc.bench.protocol import in_turn, machine, spread, table
from patterncc.primitives import causal, sink, window
from patterncc.stack import Stack
from patterncc.zones.lower import lower

FEW = 3  # runs of a way that takes seconds


def run(
    *,
    repeats: int = 5,
    peer_n: int = 2048,
    hops_n: int = 8192,
    exact_n: int = 65_536,
    million: int = 1 << 20,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Seconds of every case, and of the peers at the lengths that they can do."""
    say = progress or (lambda _: None)
    few = min(FEW, repeats)
    found: list[dict[str, Any]] = []
    for n in (1 << 20, 10**9, 1 << 40):
        say(f"{cases.LAYERS} layers, {n:,} tokens")
        found.append(cases.curve(n, repeats))
    say(f"whole report, {million:,} tokens")
    found.append(cases.whole_report(million, few))
    say(f"exact hops, {exact_n:,} tokens")
    found += cases.exact_hops(exact_n, few)
    for n in (exact_n, million):
        say(f"sampled sources, {n:,} tokens")
        found += cases.sampled(n, repeats if n < million else few)
    say(f"small world and spectrum, {million:,} tokens")
    found += [cases.small_worlds(million, few), cases.gap(million, few)]
    say(f"every peer, {hops_n:,} tokens")
    hops = _hops(hops_n, repeats)
    say(f"scipy, {peer_n:,} tokens")
    return {
        "bench": "reach",
        "machine": machine(),
        "cases": found,
        "hops": hops,
        "peer": _peer(peer_n, repeats),
    }


def _hops(n: int, repeats: int) -> dict[str, Any]:
    """The exact hop distribution by every peer that is installed, ours in the same run."""
    zones = lower(cases.HOPS, n)
    ours = cases.exact_hops(n, max(repeats, FEW))
    depth = analyze(cases.HOPS, n).depth_to_full or 1
    histogram = [lo for lo, _ in analyze(cases.HOPS, n, depth).hops]
    peers = reach_peers.measure(zones, min(FEW, repeats))
    for found in peers.values():
        if "hops" in found:
            found["equal"] = _agrees(histogram, found, n)
    done = {name: p["seconds"]["median"] for name, p in peers.items() if "seconds" in p}
    best = min(done, key=lambda name: done[name])
    whole = ours[0]["seconds"]["median"]
    return {
        "case": "exact hops of a window +-8 and 2 random edges",
        "n": n,
        "hops": histogram,
        "patterncc": ours,
        "peers": peers,
        "best": best,
        "ratio": done[best] / whole,
    }


def _agrees(histogram: list[int], found: dict[str, Any], n: int) -> bool:
    """The same histogram; from a part of the sources, as many pairs and no hop that we lack."""
    if found["sources"] == n:
        return bool(found["hops"] == histogram)
    whole = sum(found["hops"]) * n == sum(histogram) * found["sources"]
    few = np.array(found["hops"]) * n / found["sources"]
    return bool(whole and len(few) <= len(histogram))


def _peer(n: int, repeats: int) -> dict[str, Any]:
    """A structured stack by sparse Boolean products, where n is small enough for them."""
    from scipy import sparse

    layers, p = 8, causal() & (window(63) | sink(4))
    stack = Stack([p] * layers)
    step = sparse.csr_array(lower(p, n).dense() | np.eye(n, dtype=bool)).astype(np.int32)

    def products() -> list[int]:
        reach, counts = sparse.csr_array(np.eye(n, dtype=np.int32)), []
        for _ in range(layers):
            reach = step @ reach
            reach.data[:] = 1
            counts.append(int(reach.nnz))
        return counts

    ours = [figure.lo for figure in analyze(stack, n).reach[1:]]
    ways: dict[str, Callable[[], object]] = {
        "patterncc": partial(analyze, stack, n),
        "scipy": products,
    }
    times = in_turn(ways, max(2, repeats // 2))
    return {
        "case": f"{layers} layers of a causal window 64 and 4 sinks",
        "n": n,
        "equal": products() == ours,
        "seconds": times,
        "ratio": times["scipy"]["median"] / times["patterncc"]["median"],
    }


def text(result: dict[str, Any]) -> str:
    """The result as a table for the terminal."""
    hops, peer = result["hops"], result["peer"]
    rows = [_row(c) for c in [*result["cases"], *hops["patterncc"]]]
    missing = []
    for name, found in hops["peers"].items():
        if "missing" in found:
            missing.append(f"{name} is not installed: {found['missing']}")
            continue
        part = "" if found["sources"] == hops["n"] else f", from {found['sources']} sources"
        agrees = "the same" if found["equal"] else "DIFFERS"
        rows.append(
            [f"{name}{part}", f"{hops['n']:,}", agrees, spread(found["seconds"]), ""],
        )
    for name, seconds in peer["seconds"].items():
        rows.append([f"{name}: {peer['case']}", f"{peer['n']:,}", "exact", spread(seconds), ""])
    return "\n".join(
        [
            table(["case", "tokens", "badge", "time", "peak"], rows),
            f"hops: the best peer, {hops['best']}, takes {hops['ratio']:.1f} times as long as the "
            "whole analysis",
            *missing,
            f"scipy takes {peer['ratio']:.0f} times as long; counts equal: {peer['equal']}",
        ]
    )


def _row(c: dict[str, Any]) -> list[str]:
    peak = f"{c['peak_bytes'] / 1e6:.1f} MB"
    return [c["case"], f"{c['n']:,}", c["badge"], spread(c["seconds"]), peak]
