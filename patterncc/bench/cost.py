"""`patterncc bench cost`: the cost model's table of this machine's CPU, fitted to real runs.

Layouts of a few patterns at several tile sizes run through `attention`; what a pair, a tile, a run,
a row and a mask cost is then the fit to the times that is least wrong in proportion.  Patterns like
those of the gallery, which the fit has not seen, show how far it can be trusted.  The table is what
`patterncc compile --explain --target FILE` reads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls
from scipy.stats import spearmanr
from torch.nn.functional import scaled_dot_product_attention as sdpa

from patterncc.attend import attention
from patterncc.bench.protocol import machine, table
from patterncc.layout import choices, compile
from patterncc.layout.cost.model import price
from patterncc.layout.cost.tables import MASKS, SCHEMA, Device
from patterncc.layout.cost.work import Work, part, work
from patterncc.pattern import Pattern
from patterncc.primitives import (
    butterfly,
    causal,
    chunked,
    clusters,
    dilated,
    documents,
    full,
    global_tokens,
    grid,
    logsparse,
    prefix,
    random_blocks,
    sink,
    strided,
    summary,
    window,
)
from patterncc.zones.lower import lower

HEADS, HEAD_DIM = 2, 64
LENGTHS = (2048, 4096)
ROW = ("measured_ms", "predicted_ms", "ratio")
SHORT = 1024  # tokens of the dense attention that times are compared with
BLOCKS = ((64, 64), (128, 128), (64, 128), (256, 256))


@dataclass(frozen=True)
class Run:
    """One layout that ran: its tiles, and the seconds of one head."""

    name: str
    pattern: Pattern
    n: int
    block: tuple[int, int]
    work: Work
    seconds: float


def fitted(n: int) -> dict[str, Pattern]:
    """The patterns that the table is fitted to."""
    return {
        "full": full(),
        "causal": causal(),
        "window": causal() & window(n // 16),
        "narrow window": window(60, 60),
        "sinks": causal() & (window(n // 8) | sink(4)),
        "random blocks": random_blocks(6, block=64) | window(1, 1, block=64),
        "chunks": chunked(n // 8) & causal(),
        "strides": causal() & (window(64) | strided(n // 32)),
        "sparse blocks": random_blocks(2, block=64),
    }


def unseen(n: int) -> dict[str, Pattern]:
    """Patterns like those of the gallery, for the check."""
    lengths = [n * s // 100 for s in (40, 25, 20, 10)]
    return {
        "longformer": window(n // 32, n // 32) | global_tokens(range(0, n, n // 8)),
        "bigbird": window(1, 1, block=64)
        | global_tokens(range(64))
        | random_blocks(3, block=64, seed=1),
        "mistral": causal() & window(n // 4 - 1),
        "streaming-llm": causal() & (window(n // 32) | sink(4)),
        "sparse transformer, fixed": causal() & (chunked(128) | summary(128, 8)),
        "packed documents": causal() & documents([*lengths, n - sum(lengths)]),
        "prefix": causal() | prefix(n // 4),
        "butterfly": butterfly(block=64),
        "logsparse": logsparse(),
        "dilated": window(64, 64) | dilated(512, 512, 4),
        "neighbourhood": grid((64, n // 64), (7, 7)),
    }


def ordered(n: int) -> dict[str, tuple[Pattern, str]]:
    """Patterns that want another order, for the check, and the order."""
    labels = tuple(np.random.default_rng(0).integers(0, 16, n).tolist())
    return {
        "strides": (causal() & strided(64), "residue"),
        "strides and window": (causal() & (strided(64) | window(n // 32)), "residue"),
        "dilated": (causal() & dilated(n // 4, 0, 16), "residue"),
        "summary": (causal() & (chunked(128) | summary(128, 8)), "summary"),
        "clusters": (clusters(labels), "clusters"),
    }


def run(repeats: int = 5, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Fit the table, then predict what it has not seen and measure that too; on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dense = {d: dense_pair(SHORT, d, 4 * repeats) for d in (64, 128)}
        pair = dense[HEAD_DIM]
        known = [r for n in LENGTHS for r in measured(fitted(n), n, pair, repeats, progress)]
        found = fit(known, dense, threads)
        fresh = measured(unseen(LENGTHS[-1]), LENGTHS[-1], pair, repeats, progress)
        moved = in_orders(LENGTHS[-1], pair, found, repeats, progress)
    finally:
        torch.set_num_threads(threads)
    return {
        "bench": "cost",
        "machine": machine(),
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "table": found,
        "fitted": checked(known, found),
        "unseen": checked(fresh, found),
        "orders": moved,
    }


def in_orders(
    n: int,
    pair: float,
    values: dict[str, Any],
    repeats: int,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Token order and another, each predicted and measured."""
    found = replace(Device.of(values), processors=1)
    q, k, v = (torch.randn(1, HEADS, n, HEAD_DIM) for _ in range(3))
    short = _dense(q, k, v)
    rows = []
    for name, (p, order) in ordered(n).items():
        progress(f"{name} in two orders")
        for chosen in ("token", order):
            run = partial(attention, q, k, v, compile(p, n, block=128, order=chosen))
            seconds = _beside(partial(run, backend="cpu"), short, repeats) * pair * SHORT**2 * 1e-9
            (told,) = choices(p, n, block=128, order=chosen, target=found, heads=HEADS).layers
            rows.append(
                {
                    "pattern": name,
                    "order": told.chosen.order,
                    "measured_ms": seconds * 1e3,
                    "predicted_ms": told.chosen.seconds * 1e3,
                    "ratio": told.chosen.seconds / seconds,
                }
            )
    return rows


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], object]:
    """Dense attention of the first SHORT tokens."""
    first = [x[:, :, :SHORT].contiguous() for x in (q, k, v)]
    return lambda: sdpa(first[0], first[1], first[2])


def measured(
    patterns: dict[str, Pattern],
    n: int,
    pair: float,
    repeats: int,
    progress: Callable[[str], None],
) -> list[Run]:
    """Every pattern at every tile size, in turn with dense attention of 1,024 tokens.

    pair: nanoseconds of a pair in dense attention.  Times are in units of the dense attention of
    the same turn: a machine that slows down slows both.
    """
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, n, HEAD_DIM) for _ in range(3))
    short = _dense(q, k, v)
    unit = pair * SHORT**2 * 1e-9
    runs = []
    for name, p in patterns.items():
        progress(f"{name}, {n} tokens")
        parted = part(lower(p, n))
        for block in BLOCKS:
            run = partial(attention, q, k, v, compile(p, n, block=block, order="token"))
            ratio = _beside(partial(run, backend="cpu"), short, repeats)
            runs.append(Run(name, p, n, block, work(parted, block), ratio * unit))
    return runs


def _beside(way: Callable[[], object], other: Callable[[], object], repeats: int) -> float:
    """How many times as long one way takes as another: the median over turns."""
    way()
    return statistics.median(_seconds(way) / _seconds(other) for _ in range(repeats))


def _seconds(way: Callable[[], object]) -> float:
    """Processor time, which other programs hardly change."""
    start = time.process_time()
    way()
    return time.process_time() - start


def dense_pair(n: int, head_dim: int, repeats: int) -> float:
    """Nanoseconds of one pair in torch's dense attention, the least over runs."""
    q, k, v = (torch.randn(1, HEADS, n, head_dim) for _ in range(3))
    return min(_seconds(partial(sdpa, q, k, v)) for _ in range(repeats)) / HEADS / n**2 * 1e9


def fit(runs: Sequence[Run], dense: dict[int, float], threads: int) -> dict[str, Any]:
    """The table of a CPU, one core of it a processor."""
    columns = np.array([_terms(r) for r in runs], dtype=np.float64)
    seconds = np.array([r.seconds for r in runs])
    start = nnls(columns / seconds[:, None], np.ones(len(runs)))[0]
    scale = np.maximum(start, 1e-3 * seconds.mean() / columns.mean(axis=0))

    def off(x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logarithms of predicted over measured: twice as much is as wrong as half."""
        wrong: NDArray[np.float64] = np.log(columns @ (np.exp(x) * scale) / seconds)
        return wrong

    found = np.exp(least_squares(off, np.zeros(len(scale)), loss="soft_l1", f_scale=0.2).x) * scale
    pair, mask, tile, per_run, row, call = found
    now = machine()
    return {
        "schema": SCHEMA,
        "target": "cpu",
        "device": f"{now['processor']}, {threads} threads",
        "measured": True,
        "basis": "measured",
        "sources": [
            f"patterncc bench cost, {datetime.now(UTC):%Y-%m-%d}, "
            f"python {now['python']}, torch {now['versions']['torch']}"
        ],
        "dtype": "float32",
        "bytes_per_value": 4,
        "processors": threads,
        "pair_ns": {"64": _round(pair * 1e9), "128": _round(pair * 1e9 * dense[128] / dense[64])},
        "dense_pair_ns": {str(d): _round(x) for d, x in dense.items()},
        "step": [256, 256],
        "tile_pairs": round(tile / pair, 1),
        "run_pairs": round(per_run / pair, 1),
        "row_pairs": round(row / pair, 1),
        "mask_share": {name: _round(mask / pair) for name in MASKS},
        "bytes_per_second": _round(copy_speed()),
        "call_ns": _round(call * HEADS * 1e9),
    }


def _terms(r: Run) -> tuple[float, ...]:
    """What a run's time is made of: pairs, masked pairs, tiles, runs, rows, the call."""
    area = r.block[0] * r.block[1]
    w = r.work
    return w.tiles * area, w.partial * area, w.tiles, w.runs, w.rows, 1 / HEADS


def copy_speed(size: int = 2**27) -> float:
    """Bytes a second that a large copy reads and writes."""
    source, target = torch.zeros(size // 4), torch.zeros(size // 4)
    return 2 * size / min(_seconds(partial(target.copy_, source)) for _ in range(5))


def checked(runs: Sequence[Run], values: dict[str, Any]) -> dict[str, Any]:
    """Predicted beside measured, and how well tile sizes and patterns are ranked."""
    found = replace(Device.of(values), processors=1)  # as they were measured
    rows = []
    for r in runs:
        said = price([part(lower(r.pattern, r.n))], r.block, found, heads=HEADS).seconds
        rows.append(
            {
                "pattern": r.name,
                "n": r.n,
                "block": list(r.block),
                "measured_ms": r.seconds * 1e3,
                "predicted_ms": said * 1e3,
                "ratio": said / r.seconds,
            }
        )
    ratios = np.array([row["ratio"] for row in rows])
    return {
        "ratio": dict(zip(("least", "median", "most"), np.quantile(ratios, (0, 0.5, 1)).tolist())),
        "within_30_percent": float(((ratios > 1 / 1.3) & (ratios < 1.3)).mean()),
        "rank_agreement": float(
            spearmanr(ratios * [r.seconds for r in runs], [r.seconds for r in runs])[0]
        ),
        "chosen_over_best": _regret(rows),
        "cases": rows,
    }


def _regret(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """For each pattern, the time of the block predicted to be best over that of the best one."""
    lost = []
    for key in sorted({(r["pattern"], r["n"]) for r in rows}):
        same = [r for r in rows if (r["pattern"], r["n"]) == key]
        chosen = min(same, key=lambda r: r["predicted_ms"])["measured_ms"]
        lost.append(chosen / min(r["measured_ms"] for r in same))
    return {"median": float(np.median(lost)), "most": max(lost)}


def _round(x: float) -> float:
    return float(f"{x:.4g}")


def text(result: dict[str, Any]) -> str:
    """The table, then predicted beside measured."""
    lines = [f"{k}: {v}" for k, v in result["table"].items()]
    for name in ("fitted", "unseen"):
        found = result[name]
        shown = [
            [
                r["pattern"],
                str(r["n"]),
                "x".join(map(str, r["block"])),
                f"{r['measured_ms']:.2f}",
                f"{r['predicted_ms']:.2f}",
                f"{r['ratio']:.2f}",
            ]
            for r in found["cases"]
        ]
        least, median, most = (found["ratio"][k] for k in ("least", "median", "most"))
        lost = found["chosen_over_best"]
        lines += [
            "",
            f"{name}: predicted over measured {median:.2f} ({least:.2f} to {most:.2f}), "
            f"{found['within_30_percent']:.0%} within 30%, "
            f"rank agreement {found['rank_agreement']:.2f}",
            f"  the chosen tile takes {lost['median']:.2f} (at most {lost['most']:.2f}) times as "
            "long as the best",
            table(["pattern", "n", "block", "measured", "predicted", "ratio"], shown),
        ]
    shown = [
        [f"{r['pattern']}, {r['order']}", *(f"{r[x]:.2f}" for x in ROW)] for r in result["orders"]
    ]
    lines += ["", table(["orders", *ROW], shown)]
    return "\n".join(lines)
