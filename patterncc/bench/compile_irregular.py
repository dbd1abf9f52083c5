"""Explicit graphs: what a million tokens with ten million edges take, and orders found again."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from patterncc.bench.compile_graphs import anywhere, neighbours
from patterncc.bench.protocol import in_turn, peak_bytes, spread, table
from patterncc.errors import SizeError
from patterncc.layout import Layout, compile
from patterncc.primitives import edges, window
from patterncc.zones.lower import lower

Say = Callable[[str], None]
BLOCK = 64


def graphs(n: int, count: int, repeats: int, say: Say) -> dict[str, Any]:
    """A nearest-neighbour graph compiled, a uniform one refused: seconds, memory, sizes."""
    say(f"nearest neighbours, {count // n * n:,} edges")
    pairs = neighbours(n, count // n)
    way = partial(compile, edges(pairs), n, block=BLOCK)
    layout = way()
    found = {
        "nearest_neighbours": {
            "n": n,
            "edges": sum(layout.edges),
            "equal_edges": sum(layout.edges)
            == len(np.unique(pairs[:, 0].astype(np.int64) * n + pairs[:, 1])),
            "tiles": layout.full_tiles + layout.partial_tiles,
            "bytes": layout.nbytes,
            "seconds": in_turn({"ours": way}, repeats)["ours"],
            "peak_bytes": peak_bytes(way),
        }
    }
    say(f"uniform, {count:,} edges")
    found["uniform"] = uniform(n, count)
    return found


def _once(pairs: np.ndarray[Any, np.dtype[Any]], n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The edges in order, repeats counted once."""
    keys = np.unique(pairs[:, 0].astype(np.int64) * n + pairs[:, 1])
    return np.stack(np.divmod(keys, n), axis=1)


def uniform(n: int, count: int) -> dict[str, Any]:
    """What is said of edges drawn anywhere, how soon, and with how much memory."""
    graph = edges(_once(anywhere(n, count), n))
    said = ""

    def way() -> None:
        nonlocal said
        try:
            compile(graph, n, block=BLOCK)
        except SizeError as error:
            said = str(error)

    start = time.perf_counter()
    way()
    seconds = time.perf_counter() - start
    return {"n": n, "seconds": seconds, "peak_bytes": peak_bytes(way), "refused": said}


def shuffled(n: int, say: Say) -> dict[str, Any]:
    """A window +-8 whose tokens were shuffled, alone and with a random edge a token, both ways."""
    say(f"a shuffled window of {n:,} tokens")
    rng = np.random.default_rng(0)
    place = rng.permutation(n)
    near = place[_pairs(window(8, 8), n)]
    far = np.stack([np.arange(n), rng.integers(0, n, n)], axis=1)
    mixed = _once(np.concatenate([near, far, far[:, ::-1]]), n)
    natural = compile(window(8, 8), n, block=BLOCK)
    return {
        "n": n,
        "natural_tiles": _tiles(natural),
        "window": _found(edges(near), n),
        "window and a random edge": _found(edges(mixed), n),
    }


def _found(graph: Any, n: int) -> dict[str, Any]:
    start = time.perf_counter()
    layout = compile(graph, n, block=BLOCK)
    return {
        "tiles": _tiles(layout),
        "orders": [term.order.name if term.order else "token" for term in layout.terms],
        "seconds": time.perf_counter() - start,
    }


def _tiles(layout: Layout) -> int:
    return layout.full_tiles + layout.partial_tiles


def _pairs(pattern: Any, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Every edge of a band, [edges, 2]."""
    found = []
    for i0, i1, j0, j1, d0, d1 in lower(pattern, n).table.tolist():
        for d in range(d0, d1):
            i = np.arange(max(i0, j0 - d), min(i1, j1 - d))
            found.append(np.stack([i, i + d], axis=1))
    return np.concatenate(found)


def text(found: dict[str, Any], mixed: dict[str, Any]) -> str:
    """Both as tables."""
    near, far = found["nearest_neighbours"], found["uniform"]
    rows = [
        [
            f"nearest neighbours, {near['edges']:,} edges",
            spread(near["seconds"]),
            f"{near['peak_bytes'] / 1e6:,.0f} MB",
            f"{near['tiles']:,}",
        ],
        [
            "uniform: " + ("refused" if far["refused"] else "compiled"),
            f"{far['seconds'] * 1e3:.0f} ms",
            f"{far['peak_bytes'] / 1e6:,.0f} MB",
            "",
        ],
    ]
    parts = [table([f"explicit graph of {near['n']:,} tokens", "time", "peak", "tiles"], rows)]
    orders = [
        [name, f"{row['tiles']:,}", " + ".join(row["orders"]), f"{row['seconds']:.1f} s"]
        for name, row in mixed.items()
        if isinstance(row, dict)
    ]
    orders.insert(0, ["the window in its own order", f"{mixed['natural_tiles']:,}", "token", ""])
    columns = [f"shuffled +-8 of {mixed['n']:,} tokens", "tiles of 64", "order", "time"]
    return "\n\n".join([*parts, table(columns, orders), far["refused"]])
