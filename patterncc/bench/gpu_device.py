"""What a benchmark runs on: a GPU with its clock, or, in tests, the CPU with another.

A GPU is timed by its own events.  Before the first of them it is kept busy until the calls between
the two are queued, so that no way is charged for the time in which Python launches its kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from patterncc.errors import BackendError

HERTZ = 2.0e9  # cycles a second that a busy wait is counted in: no GPU here runs faster
SPARE = 2e-4  # seconds that a GPU waits longer than the last launches took
Call = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """One call that is timed, and what is done before it outside the timing."""

    call: Callable[[Any], object]
    before: Callable[[], object] = lambda: None


class Clock(Protocol):
    """Seconds of calls; the first run of a way is not to be counted."""

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call, where all run one after another."""
        ...

    def apart(self, timed: Timed) -> float:
        """Of one call with something before it."""
        ...


class Wall:
    """The clock of this process, for devices that do not run ahead of it."""

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call, where all run one after another."""
        start = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - start) / len(calls)

    def apart(self, timed: Timed) -> float:
        """Of one call with something before it."""
        given = timed.before()
        start = time.perf_counter()
        timed.call(given)
        return time.perf_counter() - start


class Events:
    """CUDA events around calls, queued behind a busy wait."""

    def __init__(self) -> None:
        self._queueing = 1e-3  # seconds that the calls of the last timing took to queue

    def seconds(self, calls: Sequence[Call]) -> float:
        """Of one call, where all run one after another."""

        def every() -> None:
            for call in calls:
                call()

        return self._between(every) / len(calls)

    def apart(self, timed: Timed) -> float:
        """Of one call with something before it."""
        given = timed.before()
        return self._between(lambda: timed.call(given))

    def _between(self, work: Call) -> float:
        cuda: Any = torch.cuda  # whose events and busy wait have no types
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda._sleep(int(HERTZ * (1.5 * self._queueing + SPARE)))
        start.record()
        queued = time.perf_counter()
        work()
        self._queueing = min(1.0, time.perf_counter() - queued)
        end.record()
        end.synchronize()
        found: float = start.elapsed_time(end) / 1e3
        return found


@dataclass(frozen=True, eq=False)
class Device:
    """Where a benchmark runs.

    cache: bytes of its last cache.  memory: bytes that inputs may take.  compiled: what
    FlexAttention is compiled with.  backend: of `attention`.
    """

    name: str
    where: torch.device
    clock: Clock
    cache: int
    memory: int
    compiled: Callable[[Any], Any]
    backend: str
    facts: dict[str, Any]

    def flush(self) -> None:
        """Nothing of what was read before stands in the cache afterwards."""
        torch.empty(2 * self.cache, dtype=torch.int8, device=self.where).zero_()

    def settle(self) -> None:
        """Wait for everything that was started."""
        if self.where.type == "cuda":
            torch.cuda.synchronize(self.where)

    def fresh(self) -> None:
        """Forget what was compiled: the next case is not to count as a recompilation."""
        torch._dynamo.reset()

    def release(self) -> None:
        """Give back memory that is held for later tensors: peers have allocators of their own."""
        if self.where.type == "cuda":
            torch.cuda.empty_cache()


WITHOUT = "`patterncc bench plan`, which counts the same masks without one"


def this_gpu(asked: str = "gpu", instead: str = WITHOUT) -> Device:
    """The current GPU, for the benchmark `asked`; instead: what can be run without one.

    Raises BackendError, with the remedy, where there is none that can run the kernels.
    """
    if not torch.cuda.is_available() or torch.version.hip is not None:
        built = "was built for the CPU alone" if torch.version.cuda is None else "finds no GPU"
        raise BackendError(
            f"bench {asked}: torch {torch.__version__} {built}; run this on a machine with an "
            f"NVIDIA GPU of compute capability 8.0 or more, or {instead}"
        )
    where = torch.device("cuda", torch.cuda.current_device())
    facts = torch.cuda.get_device_properties(where)
    if facts.major < 8:
        raise BackendError(
            f"bench {asked}: {facts.name} has compute capability {facts.major}.{facts.minor}; the "
            "kernels need 8.0 or more"
        )
    return Device(
        name=facts.name,
        where=where,
        clock=Events(),
        cache=getattr(facts, "L2_cache_size", 0) or 50 * 2**20,
        memory=facts.total_memory // 3,
        compiled=autotuned,
        backend="triton",
        facts={
            "capability": f"{facts.major}.{facts.minor}",
            "processors": facts.multi_processor_count,
            "memory_bytes": facts.total_memory,
            "cuda": torch.version.cuda,
            "driver": driver(),
        },
    )


def autotuned(way: Any) -> Any:
    """FlexAttention as its authors measure it: every size tried, shapes fixed, no CUDA graphs."""
    return torch.compile(way, dynamic=False, mode="max-autotune-no-cudagraphs")


def driver() -> str | None:
    """The version of NVIDIA's driver, where it can be asked."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as lines:
            words = lines.readline().split()
    except OSError:
        return None
    return next((w for w in words if w[:1].isdigit() and "." in w), None)
