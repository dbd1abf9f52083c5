"""How every benchmark measures: ways in turn in one process, medians, spreads, the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def in_turn(ways: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, Any]:
    """Run each way once uncounted, then all in turn `repeats` times: seconds of each.

    Each value is ``{"median": s, "min": s, "max": s, "runs": repeats}``.  A machine that slows down
    slows every way alike, so ratios of medians hold where single times do not.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: summary(seconds) for name, seconds in times.items()}


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, extremes and number of runs."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "runs": len(seconds),
    }


def peak_bytes(way: Callable[[], object]) -> int:
    """The most memory that Python and numpy held at once while `way` ran, in a run of its own."""
    tracemalloc.start()
    try:
        way()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def machine() -> dict[str, Any]:
    """Processor, cores and the versions that the figures depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in ("patterncc", "numpy", "torch", "triton")},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def version_of(name: str) -> str | None:
    """Of an installed package, None where it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def save(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result in one step: a reader finds the old file or the new one."""
    save_text(path, json.dumps(result, indent=2, allow_nan=False) + "\n")


def save_text(path: Path, text: str) -> None:
    """The same for any text."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".writing-", delete=False, encoding="utf-8"
    ) as part:
        part.write(text)
    os.replace(part.name, path)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left, the others to the right.

    >>> print(table(["case", "ms"], [["window", "5.1"], ["BigBird", "22"]]))
    case      ms
    window   5.1
    BigBird   22
    """
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths)))
        for row in [columns, *rows]
    )


def spread(seconds: Mapping[str, float]) -> str:
    """Median and extremes in milliseconds.

    >>> spread({"median": 0.0051, "min": 0.005, "max": 0.0079, "runs": 7})
    '5.1 (5.0 to 7.9) ms'
    """
    median, least, most = (f"{seconds[k] * 1e3:.1f}" for k in ("median", "min", "max"))
    return f"{median} ({least} to {most}) ms"
