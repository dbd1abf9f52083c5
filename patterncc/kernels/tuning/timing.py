"""Sizes of kernels timed on the GPU that is here: one pass of each kind over layouts that need it.

Candidates that spill or do not fit, as compiled for this GPU, are left out before anything runs.
Sizes of one key take turns, between runs the second-level cache is overwritten, and the median
counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from patterncc.errors import BackendError
from patterncc.kernels import launch, runtime, upload
from patterncc.kernels.plan import Target
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec
from patterncc.kernels.tuning import stored
from patterncc.kernels.tuning.candidates import candidates, dtype_of
from patterncc.kernels.tuning.compare import Compile, Found, Say, tried
from patterncc.kernels.tuning.sizes import Key, Size, Table
from patterncc.layout import Layout, compile
from patterncc.primitives import causal, sink, window

Run = Callable[[], object]
Clock = Callable[[Sequence[Run], torch.device], list[float]]

FLUSH = 256 << 20  # bytes written between runs, more than any second-level cache
REPEATS = 15


@dataclass(frozen=True)
class Workload:
    """How much a timed pass does: batch, query heads, heads of keys, tokens of a sequence and
    keys of a decode step."""

    batch: int = 2
    heads: int = 16
    kv_heads: int = 4
    tokens: int = 8192
    keys: int = 65_536


def gpu() -> tuple[torch.device, str, Target]:
    """The current GPU, its name and its target.

    Raises BackendError where there is none.
    """
    if not torch.cuda.is_available():
        raise BackendError(
            "tune: there is no GPU here to time kernels on; patterncc tune --offline sm_90 (or "
            "sm_80, sm_100) compares sizes by registers, spills and shared memory without one; the "
            "CPU's kernels have no sizes to choose"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    return device, torch.cuda.get_device_name(device), runtime.target_of(device)


def timed(
    target: Target,
    wanted: Iterable[Key],
    device: torch.device,
    say: Say = lambda _: None,
    *,
    work: Workload | None = None,
    compiler: Compile | None = None,
    clock: Clock | None = None,
) -> list[Found]:
    """For each key the fastest of the candidates that fit and do not spill.

    Raises BackendError where none of a key can run.
    """
    work, clock = work or Workload(), clock or on_gpu
    return [_timed(key, target, device, say, work, compiler, clock) for key in wanted]


def _timed(
    key: Key,
    target: Target,
    device: torch.device,
    say: Say,
    work: Workload,
    compiler: Compile | None,
    clock: Clock,
) -> Found:
    say(f"{key.kind}, {key.width}, head dim {key.head_dim}, {key.masks}: compiling")
    trials = [tried(key, size, target, compiler) for size in candidates(key, target)]
    able = [t for t in trials if t.clean] or [t for t in trials if t.used and t.used.fits]
    if not able:
        raise BackendError(
            f"{key.kind}, head dim {key.head_dim} on {target}: no size compiles and fits; the "
            f"first: {trials[0].note or 'too much shared memory'}"
        )
    say(f"{key.kind}, {key.width}, head dim {key.head_dim}, {key.masks}: timing {len(able)}")
    whole = prepared(key, device, work)
    runs = [_at(key, t.size, target, whole) for t in able]
    done = [replace(t, seconds=s) for t, s in zip(able, clock(runs, device), strict=True)]
    best = min(done, key=lambda t: t.seconds or 0.0)
    return Found(key, best, (*done, *(t for t in trials if t not in able)))


def _at(key: Key, size: Size, target: Target, run: Run) -> Run:
    """The pass with one kernel at a given size, the others at theirs."""
    table = Table(target, "one size tried", {key: size})

    def at() -> object:
        with stored.running_at(table):
            return run()

    return at


def prepared(key: Key, device: torch.device, work: Workload) -> Run:
    """One pass of a key's kind, on random tensors and a layout with its masks."""
    dtype = getattr(torch, dtype_of(key))
    decoding = key.kind == "decode"
    tokens = work.keys if decoding else work.tokens
    layout = layout_of(key, tokens)
    (*tensors, _), text, _ = upload.prepared(layout, device, "triton")  # but the unread keys
    spec, score = Spec.parse(text), Score(key.head_dim**-0.5)

    def drawn(heads: int, rows: int) -> Tensor:
        return torch.randn(work.batch, heads, rows, key.head_dim, device=device, dtype=dtype)

    q = drawn(work.heads, 1 if decoding else tokens)
    k, v = drawn(work.kv_heads, tokens), drawn(work.kv_heads, tokens)
    if decoding:
        last = torch.full((work.batch,), tokens - 1, dtype=torch.int32, device=device)
        return lambda: launch.decode(q, k, v, tensors, spec, score, last)
    if key.kind == "forward":
        return lambda: launch.forward(q, k, v, tensors, spec, score)
    out, lse = launch.forward(q, k, v, tensors, spec, score)
    grad = torch.randn_like(out)
    given = grad, q, k, v, out, lse, tensors, spec, score
    return lambda: launch.backward(*given, repeatable=key.kind != "single")


def layout_of(key: Key, tokens: int) -> Layout:
    """A layout whose masks are of the key's class: causal, windows with sinks, documents."""
    match key.masks:
        case "zone":
            return compile(causal(), tokens, block=key.tile)
        case "zones":
            near = causal() & (window(tokens // 8) | sink(4))
            return compile(near, tokens, block=key.tile)
        case "bits":
            ids = [int(t**0.5 / 3) for t in range(tokens)]  # documents of growing length
            return compile(causal(), tokens, doc_ids=ids, block=key.tile)


def on_gpu(runs: Sequence[Run], device: torch.device) -> list[float]:
    """Seconds of each, the median of `REPEATS` turns, by CUDA events."""
    flush = torch.empty(FLUSH, dtype=torch.int8, device=device)
    times: list[list[float]] = [[] for _ in runs]
    with torch.cuda.device(device):
        for turn in range(REPEATS + 2):  # the first two compile and warm up
            for run, seconds in zip(runs, times, strict=True):
                flush.zero_()
                start, end = (torch.Event(device, enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                end.synchronize()
                if turn > 1:
                    seconds.append(start.elapsed_time(end) / 1e3)
    return [statistics.median(seconds) for seconds in times]
