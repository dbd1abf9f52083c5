"""`patterncc bench build`: how long a kernel takes to build, cold and from the caches.

Cold: its source is emitted and compiled by Triton for a GPU that need not be here, into an empty
cache; imports are not counted, and of the tools that read registers nothing is.  Source: it is
emitted, found in the cache of sources, checked and imported, as each process does once.  Cached:
Triton finds what it compiled.  Processor seconds, of the assembler too, are told beside those of
the clock: other programs on the machine hardly change them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from patterncc.bench.protocol import machine, summary, table
from patterncc.kernels import offline, runtime
from patterncc.kernels.choose import choose
from patterncc.kernels.emit import emit, entry
from patterncc.kernels.emit.kernels import BODIES
from patterncc.kernels.plan import Kind, Plan, Target
from patterncc.kernels.spec import Spec

COLD, CACHED = 1.5, 0.005  # seconds aimed at
SPEC = Spec(65536, 65536, 0, 0, (128, 128), 1, True, 1, False, "0" * 16, "triton")
Say = Callable[[str], None]


def run(
    *, repeats: int = 5, target: Target = "sm_90", only: str = "", progress: Say | None = None
) -> dict[str, Any]:
    """Seconds of every kind of kernel, bf16 at head dim 128, with masks of zones."""
    say = progress or (lambda _: None)
    kinds = [kind for kind in BODIES if only in kind]
    plans = {kind: _plan(kind, target) for kind in kinds}
    say("imports")
    if plans:  # whatever is imported at the first compilation is not counted
        with _empty_cache():
            offline.build(emit(plans[kinds[0]]), plans[kinds[0]])
    cases = []
    for kind, plan in plans.items():
        say(kind)
        cases.append({"case": kind, "plan": plan.digest, **_measured(plan, repeats)})
    return {
        "bench": "build",
        "machine": {**machine(), "load": round(os.getloadavg()[0], 1)},
        "target": target,
        "goal": {"cold": COLD, "cached": CACHED},
        "cases": cases,
    }


def _plan(kind: Kind, target: Target) -> Plan:
    """The default plan; gradients of an option are those of a plan that has it."""
    packed = 16 if kind == "decode" else 1
    plan = choose(kind, SPEC, target, "bfloat16", 128, 128, heads=packed)
    return replace(plan, slopes=kind == "slopes", bias=kind == "bias")


def _measured(plan: Plan, repeats: int) -> dict[str, Any]:
    """Seconds of the clock and of processors of each way."""
    ways: dict[str, tuple[list[float], list[float]]] = {
        "cold": ([], []),
        "source": ([], []),
        "cached": ([], []),
    }
    for _ in range(repeats):
        with _empty_cache() as folder:
            for name, way in (
                ("cold", lambda: offline.build(emit(plan), plan)),
                ("cached", lambda: offline.build(emit(plan), plan)),
            ):
                for held, seconds in zip(ways[name], _timed(way)):
                    held.append(seconds)
            _load(plan, folder)
            for held, seconds in zip(ways["source"], _timed(lambda: _load(plan, folder))):
                held.append(seconds)
    return {
        "seconds": {name: summary(wall) for name, (wall, _) in ways.items()},
        "processor_seconds": {name: summary(used) for name, (_, used) in ways.items()},
    }


def _load(plan: Plan, folder: Path) -> None:
    """What `runtime.kernel` does in a process that has not run the plan."""
    path = runtime.save_source(emit(plan), plan.kind, folder)
    runtime.load_source(path, entry(plan))


def _timed(way: Callable[[], object]) -> tuple[float, float]:
    before, start = _processor(), time.perf_counter()
    way()
    return time.perf_counter() - start, _processor() - before


def _processor() -> float:
    """Processor seconds of this process and of those that it waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


@contextmanager
def _empty_cache() -> Iterator[Path]:
    """Triton's cache in a folder of its own, which is gone afterwards."""
    name = "TRITON_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield Path(folder) / "sources"
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def text(result: dict[str, Any]) -> str:
    """The table that a person reads: milliseconds."""
    where, goal = result["machine"], result["goal"]
    columns = ["kernel", "cold", "processor", "source", "cached by Triton"]
    rows = []
    for c in result["cases"]:
        seconds = cast("dict[str, dict[str, float]]", c["seconds"])
        used = c["processor_seconds"]["cold"]["median"]
        shown = [f"{seconds[name]['median'] * 1e3:,.1f}" for name in ("cold", "source", "cached")]
        rows.append([c["case"], shown[0], f"{used * 1e3:,.0f}", *shown[1:]])
    return (
        f"{where['processor']}, triton {where['versions']['triton']}, for {result['target']}; "
        f"medians in ms; aimed at: {goal['cold'] * 1e3:,.0f} cold, {goal['cached'] * 1e3:.0f} "
        f"from the cache of sources\n{table(columns, rows)}"
    )
