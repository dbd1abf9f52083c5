"""`patterncc bench reach`: exact reach over depth, beside Boolean matrix products of scipy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from patterncc.analysis import analyze
from patterncc.bench.protocol import in_turn, machine, peak_bytes, spread, table
from patterncc.primitives import causal, sink, window
from patterncc.stack import Stack
from patterncc.zones.lower import lower

LAYERS = 48


def run(
    *, repeats: int = 5, peer_n: int = 2048, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Median seconds of `analyze` at three lengths, and of scipy at a length that it can do."""
    say = progress or (lambda _: None)
    stack = Stack([causal() & (window(511) | sink(4))] * LAYERS)
    cases = []
    for n in (1 << 20, 10**9, 1 << 40):
        say(f"48 layers, {n} tokens")
        way = partial(analyze, stack, n)
        report = way()
        cases.append(
            {
                "case": f"{LAYERS} layers of a causal window 512 and 4 sinks",
                "n": n,
                "badge": report.reach[LAYERS].badge,
                "share_at_depth": report.reach[LAYERS].share,
                "seconds": in_turn({"patterncc": way}, repeats)["patterncc"],
                "peak_bytes": peak_bytes(way),
            }
        )
    say(f"scipy at {peer_n} tokens")
    return {"bench": "reach", "machine": machine(), "cases": cases, "peer": _peer(peer_n, repeats)}


def _peer(n: int, repeats: int) -> dict[str, Any]:
    """The same question by sparse Boolean products, where n is small enough for them."""
    import numpy as np
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
    times = in_turn(
        {"patterncc": lambda: analyze(stack, n), "scipy": products}, max(2, repeats // 2)
    )
    return {
        "case": f"{layers} layers of a causal window 64 and 4 sinks",
        "n": n,
        "equal": products() == ours,
        "seconds": times,
        "ratio": times["scipy"]["median"] / times["patterncc"]["median"],
    }


def text(result: dict[str, Any]) -> str:
    """The result as a table for the terminal."""
    rows = [
        [
            c["case"],
            f"{c['n']:,}",
            c["badge"],
            spread(c["seconds"]),
            f"{c['peak_bytes'] / 1e6:.1f} MB",
        ]
        for c in result["cases"]
    ]
    peer = result["peer"]
    for name, seconds in peer["seconds"].items():
        rows.append([f"{name}: {peer['case']}", f"{peer['n']:,}", "exact", spread(seconds), ""])
    shown = table(["case", "tokens", "badge", "time", "peak"], rows)
    return f"{shown}\nscipy takes {peer['ratio']:.0f} times as long; counts equal: {peer['equal']}"
