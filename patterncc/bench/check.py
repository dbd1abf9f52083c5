"""`patterncc bench check`: every path of the generated kernels on a real GPU, held to float64.

Forward, split rows, both backward passes, every option of a score, decode in one piece and in
pages, packed sequences, masks built on the device, CUDA graphs.  What a kernel is to write is
filled with NaN before.  With TRITON_INTERPRET=1 the same runs on a CPU, slowly, and at small sizes.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from patterncc.bench import check_cases, gpu_device
from patterncc.bench.check_cases import Check, Place
from patterncc.bench.protocol import machine, save
from patterncc.errors import PatternError
from patterncc.kernels import runtime

Say = Callable[[str], None]


def run(
    *,
    only: str = "",
    quick: bool = False,
    output: Path | None = None,
    progress: Say | None = None,
    place: Place | None = None,
) -> dict[str, Any]:
    """Every check whose name holds `only`: passed, or what is wrong.

    quick: at small sizes, as a sanitizer needs them.  output: a file for the result, written after
    each check.  place: where to run in place of the GPU, for tests.

    Raises BackendError where there is no GPU and nothing is interpreted.
    """
    say = progress or (lambda _: None)
    place = place or here()
    place = replace(place, size=min(place.size, 160)) if quick else place
    result: dict[str, Any] = {
        "bench": "check",
        "device": place.name,
        "interpreted": runtime.interpreting(),
        "machine": machine(),
        "passed": 0,
        "failed": 0,
        "cases": [],
    }
    with poisoned():
        for check in check_cases.checks(place):
            if only not in check.name:
                continue
            say(check.name)
            done = _result(check)
            result["cases"].append(done)
            result["passed" if done["passed"] else "failed"] += 1
            if output is not None:
                save(output, result)
    return result


def here() -> Place:
    """The GPU; a CPU where Triton interprets its kernels."""
    if runtime.interpreting():
        return Place("interpreted on the CPU", torch.device("cpu"), "triton", 64)
    found = gpu_device.this_gpu(
        "check", "set TRITON_INTERPRET=1, which runs the same checks slowly on a CPU"
    )
    return Place(found.name, found.where, "triton", 1024)


@contextmanager
def poisoned() -> Iterator[None]:
    """torch fills memory that nobody has written with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def _result(check: Check) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        check.run()
        message = ""
    except PatternError as error:
        message = str(error)
    except Exception as error:  # whatever it is, the other checks are to run
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    return {
        "case": check.name,
        "passed": not message,
        "message": message[:2000],
        "seconds": time.perf_counter() - start,
    }


def text(result: dict[str, Any]) -> str:
    """PASS or FAIL for each check, then how many."""
    lines = [
        f"{'PASS' if c['passed'] else 'FAIL'}  {c['case']}"
        + (f"\n      {c['message']}" if c["message"] else "")
        for c in result["cases"]
    ]
    lines.append(f"{result['device']}: {result['passed']} passed, {result['failed']} failed")
    return "\n".join(lines)
