"""`patterncc bench gpu`: our kernels beside FlexAttention, SDPA and what else is installed.

The fair protocol: FlexAttention is compiled with max-autotune and its mask built outside the
timing; every way runs in turn in one process, on random tensors that are rotated past the last
cache (or, in decoding, after the cache was overwritten), timed by the GPU's own events; a figure is
the median, with the least and the most.  TFLOP/s count the pairs of the mask, 2 products forward
and 5 backward, whatever a way computes beside them.  What we compute is held to float64 first, and
not timed where it is wrong.  Cases that are lost are reported like the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patterncc.bench import exact, gpu_device, gpu_peers
from patterncc.bench.gpu_decode import DecodeCase, decode_cases, measure_decode
from patterncc.bench.gpu_device import Device, Timed
from patterncc.bench.gpu_peers import Peer, Way
from patterncc.bench.masks import Mask, MaskMod, grid, irregular, laid_out
from patterncc.bench.protocol import machine, save, spread, summary, table

Say = Callable[[str], None]
LONG = ("causal", "window 1024", "window 1025 + 64 globals", "BigBird", "64-blocks, 0.125")
NARROW = ("causal", "window 1024", "128-blocks, 0.125", "64-blocks, 0.125")
GROUPED = ("causal", "window 1024", "window 1025 + 64 globals")
QUICK = ("causal", "window 1024", "window 1025 + 64 globals", "128-blocks, 0.125")
PEERS_MAY = 10  # times what ours may be off by: more, and a peer computes something else
FLOP = {"forward": 4, "backward": 10}  # a pair and a value of the head dim


@dataclass(frozen=True)
class Case:
    """One mask, one shape, one pass; goal: TFLOP/s and the ratio to FlexAttention aimed at on an
    H100 at head dim 128."""

    mask: Mask
    way: str
    heads: int = 16
    kv_heads: int = 16
    head_dim: int = 128
    goal: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """What tells this case from all others."""
        shared = f", GQA {self.heads}:{self.kv_heads}" if self.heads != self.kv_heads else ""
        return f"{self.mask.name}, {self.mask.n}, dim {self.head_dim}{shared}, {self.way}"


def cases(n: int = 16384, long_n: int = 65536, quick: bool = False) -> Iterator[Case]:
    """The grid: every mask at n tokens, some longer, narrower or with grouped heads."""
    every = [*grid(n), irregular(n)]
    for mask in every:
        if not quick or mask.name in QUICK:
            yield from _both(mask)
    if quick:
        return
    for mask in every:
        if mask.name in NARROW:
            yield from _both(mask, head_dim=64)
        if mask.name in GROUPED:
            yield from _both(mask, heads=32, kv_heads=4)
    for mask in grid(long_n):
        if mask.name in LONG:
            yield from _both(mask, heads=8, kv_heads=8)


def _both(mask: Mask, **shape: Any) -> Iterator[Case]:
    for way in ("forward", "backward"):
        case = replace(Case(mask, way), **shape)
        yield replace(case, goal=goal(mask.name, way)) if case.head_dim == 128 else case


def goal(mask: str, way: str) -> tuple[float, float] | None:
    """TFLOP/s on an H100 and the ratio to FlexAttention that are aimed at."""
    forward = way == "forward"
    if mask.startswith("128-blocks"):
        return (610, 1.55) if forward else (480, 1.8)
    if mask.startswith("64-blocks"):
        return (450, 1.6) if forward else None
    known = {
        "full": ((640, 1.65), None),
        "causal": ((640, 1.65), (530, 1.8)),
        "window 1024": ((530, 1.8), (340, 1.8)),
        "window 1025 + 64 globals": ((0, 1.5), (0, 6.0)),
        "half irregular 128-blocks": ((0, 1.8), None),
    }
    return known.get(mask, (None, None))[0 if forward else 1]


def run(
    *,
    repeats: int = 9,
    only: str = "",
    ways: str = "",
    quick: bool = False,
    output: Path | None = None,
    resume: bool = False,
    progress: Say | None = None,
    device: Device | None = None,
    chosen: Iterable[Case | DecodeCase] | None = None,
) -> dict[str, Any]:
    """Median times of all ways over the grid.

    only: the cases whose names hold it.  ways: beside ours, only those whose names begin with one
    of these, commas between.  quick: a few cases, fewer runs.  output: a file that holds what is
    there so far, written whole after each case.  resume: keep what it holds already, of this
    device and these versions.  device, chosen: in place of the GPU and the grid, for tests.

    Raises BackendError where there is no GPU.
    """
    say = progress or (lambda _: None)
    device = device or gpu_device.this_gpu()
    if chosen is None:
        chosen = chain(cases(quick=quick), decode_cases(quick))
    listed = [c for c in chosen if only in c.name]
    wanted = tuple(w.strip() for w in ways.split(",")) if ways else ("",)
    result = _header(device)
    kept = _kept(output, result) if resume else {}
    result["cases"] = found = []
    runs = min(repeats, 3) if quick else repeats
    for at, case in enumerate(listed):
        say(f"{at + 1} of {len(listed)}, {case.name}")
        if case.name in kept:
            found.append(kept[case.name])
            continue
        if isinstance(case, Case):
            one = measure(case, device, runs, say, wanted)
        else:
            one = measure_decode(case, device, runs, say, wanted)
        found.append({"case": case.name, **one})
        device.release()
        if output is not None:
            save(output, result)
    return result


def _header(device: Device) -> dict[str, Any]:
    return {
        "bench": "gpu",
        "device": device.name,
        "device_facts": device.facts,
        "machine": machine(),
        "versions": gpu_peers.versions(),
        "dtype": "bfloat16",
        "protocol": __doc__.split("\n\n", 1)[1].strip() if __doc__ else "",
    }


def _kept(output: Path | None, header: Mapping[str, Any]) -> dict[str, Any]:
    """Cases of an earlier run of the same versions on the same device, by name."""
    if output is None or not output.exists():
        return {}
    held = json.loads(output.read_text(encoding="utf-8"))
    same = all(held.get(key) == header[key] for key in ("device", "versions"))
    return {c["case"]: c for c in held["cases"] if not c.get("failed")} if same else {}


@dataclass(frozen=True, eq=False)
class Ready:
    """A way that can be timed: its inputs, one set after another past the cache."""

    peer: Peer
    way: Way
    sets: list[list[Tensor]]


def measure(
    case: Case, device: Device, repeats: int, say: Say, wanted: tuple[str, ...] = ("",)
) -> dict[str, Any]:
    """Every way of one case: what it takes, what it is off by, or why it did not run.

    wanted: how the names of the peers begin.
    """
    mask, backward = case.mask, case.way == "backward"
    layout = laid_out(mask)
    edges = sum(t.head_edges for t in layout.terms) * case.heads // len(layout.head_pattern)
    row: dict[str, Any] = {
        "way": case.way,
        "mask": mask.name,
        "n": mask.n,
        "heads": case.heads,
        "kv_heads": case.kv_heads,
        "head_dim": case.head_dim,
        "density": layout.density,
        "blocks": [list(t.block) for t in layout.terms],
        "flop": FLOP[case.way] * edges * case.head_dim,
        "goal": None if case.goal is None else {"tflops": case.goal[0], "flex": case.goal[1]},
    }
    device.fresh()
    sets = inputs(case, device)
    truth = Truth(case, device, sets[0])
    ready, not_run, errors = [], {}, {}
    for peer in gpu_peers.peers(mask, layout, device, backward):
        if not peer.name.startswith(("ours", *wanted)):
            continue
        say(f"{case.name}: {peer.name}")
        try:
            made = Ready(peer, peer.make(), _placed(sets, backward, peer.rows_first))
            found = results(made, made.sets[0], backward)
            if peer.same:
                off = truth.of(found)
                errors[peer.name] = {name: e.to_dict() for name, e in off.items()}
                exact.demand(off, 1 if peer.name.startswith("ours") else PEERS_MAY)
            ready.append(made)
        except Exception as error:  # a peer's failure is a finding, not the end of the benchmark
            not_run[peer.name] = gpu_peers.reason(error)
        device.settle()
    seconds = timed(ready, backward, device, repeats)
    return row | {
        "failed": "ours" not in seconds,
        "seconds": seconds,
        "same_mask": {r.peer.name: r.peer.same for r in ready},
        "tflops": {name: row["flop"] / s["median"] / 1e12 for name, s in seconds.items()},
        "ratio": ratios(seconds),
        "errors": errors,
        "not_run": not_run,
    }


def inputs(case: Case, device: Device) -> list[list[Tensor]]:
    """Sets of q, k, v and the gradient of the output: two at least, together past the cache."""
    n, dim = case.mask.n, case.head_dim
    shapes = [(1, h, n, dim) for h in (case.heads, case.kv_heads, case.kv_heads, case.heads)]
    size = sum(2 * h * n * dim for _, h, _, _ in shapes)
    count = max(2, min(8, 1 + -(-2 * device.cache // size)))
    if count * size > device.memory:
        count = 1
    make = torch.Generator(device.where).manual_seed(0)
    return [
        [
            torch.randn(shape, generator=make, device=device.where).to(torch.bfloat16)
            for shape in shapes
        ]
        for _ in range(count)
    ]


def _placed(sets: list[list[Tensor]], backward: bool, rows_first: bool) -> list[list[Tensor]]:
    """The inputs as leaves of a graph, in memory as a way wants them."""
    if rows_first:
        sets = [[x.transpose(1, 2).contiguous().transpose(1, 2) for x in s] for s in sets]
    leaf = range(3) if backward else ()
    return [[x.detach().requires_grad_(at in leaf) for at, x in enumerate(s)] for s in sets]


def results(ready: Ready, given: list[Tensor], backward: bool) -> dict[str, Tensor]:
    """The output, and in a backward case the gradients."""
    q, k, v, grad = given
    if not backward:
        with torch.no_grad():
            return {"out": ready.way(q, k, v)}
    out = ready.way(q, k, v)
    grads = torch.autograd.grad(out, (q, k, v), grad)
    return dict(zip(("grad_q", "grad_k", "grad_v"), grads))


def timed(
    ready: list[Ready], backward: bool, device: Device, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds of one call of each way, all in turn `repeats` times."""
    times: dict[str, list[float]] = {r.peer.name: [] for r in ready}
    for turn in range(repeats + 1):
        for r in ready:
            found = _seconds(r, backward, device)
            if turn:
                times[r.peer.name].append(found)
    return {name: summary(seconds) for name, seconds in times.items()}


def _seconds(ready: Ready, backward: bool, device: Device) -> float:
    """Of one call, over all sets of inputs."""
    if not backward:
        with torch.no_grad():
            return device.clock.seconds([partial(ready.way, *s[:3]) for s in ready.sets])
    found = [device.clock.apart(_gradients(ready.way, s)) for s in ready.sets]
    return sum(found) / len(found)


def _gradients(way: Way, given: list[Tensor]) -> Timed:
    """A backward pass; the forward pass before it is not timed."""
    q, k, v, grad = given
    return Timed(
        lambda out: torch.autograd.grad(out, (q, k, v), grad),
        before=lambda: way(q, k, v),
    )


def ratios(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How many times as long each other way takes as ours; below 1 we lose."""
    if "ours" not in seconds:
        return {}
    mine = seconds["ours"]["median"]
    return {name: s["median"] / mine for name, s in seconds.items() if name != "ours"}


class Truth:
    """The right results of some heads, and what dense attention makes of them."""

    def __init__(self, case: Case, device: Device, given: list[Tensor]) -> None:
        assert case.mask.mod is not None
        self._rows = _rows(case.mask, case.mask.mod(device.where), device.where)
        self._group = case.heads // case.kv_heads
        self._kv = sorted({0, case.kv_heads - 1})
        self._heads = [h * self._group + g for h in self._kv for g in range(self._group)]
        q, k, v, grad = given
        q, k, v = q[:, self._heads], k[:, self._kv], v[:, self._kv]
        up = grad[:, self._heads] if case.way == "backward" else None
        self._rough = exact.dense(q, k, v, self._rows, up)
        wide = None if up is None else up.double()
        self._true = exact.dense(q.double(), k.double(), v.double(), self._rows, wide)

    def of(self, found: Mapping[str, Tensor]) -> dict[str, exact.Error]:
        """The errors of a way's results."""
        few = {
            name: x[:, self._kv if name in ("grad_k", "grad_v") else self._heads]
            for name, x in found.items()
        }
        return exact.errors(few, self._rough, self._true)


def _rows(mask: Mask, mod: MaskMod, where: torch.device) -> exact.Rows:
    """The mask by rows, from the function written by hand."""
    zero = torch.zeros((), dtype=torch.int64, device=where)
    keys = torch.arange(mask.n, device=where)[None]

    def rows(first: int, last: int) -> Tensor:
        i = torch.arange(first, last, device=where)[:, None]
        return mod(zero, zero, i, keys).expand(last - first, mask.n)[None]

    return rows


def text(result: dict[str, Any]) -> str:
    """The table that a person reads: one line a case and way, ours first."""
    versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items() if v)
    lines = [f"{result['device']}; {versions}; {result['dtype']}", ""]
    columns = ["case", "way", "time", "TFLOP/s or GB/s", "times ours"]
    rows = [row for c in result["cases"] for row in _lines(c)]
    lines.append(table(columns, rows))
    lost = [c for c in result["cases"] if any(r < 1 for r in same_ratios(c).values())]
    lines += ["", f"{len(result['cases'])} cases, {len(lost)} lost to a peer on the same mask"]
    lines += [f"  lost: {c['case']}" for c in lost]
    return "\n".join(lines)


def _lines(c: dict[str, Any]) -> list[list[str]]:
    rate = c.get("tflops") or c.get("gigabytes_per_second") or {}
    same = c.get("same_mask", {})
    rows = [
        [
            c["case"] if at == 0 else "",
            name if same.get(name, True) else f"{name} (dense)",
            spread(seconds),
            f"{rate[name]:,.0f}",
            f"{c['ratio'][name]:.2f}" if name in c["ratio"] else "",
        ]
        for at, (name, seconds) in enumerate(c["seconds"].items())
    ]
    missing = [
        [c["case"] if not rows else "", name, why[:90], "", ""]
        for name, why in c["not_run"].items()
        if not why.startswith("not installed")
    ]
    return rows + missing


def same_ratios(c: dict[str, Any]) -> dict[str, float]:
    """The ratios to the peers that compute the same mask, our own other ways left out."""
    same = c.get("same_mask", {})
    return {
        name: r
        for name, r in c["ratio"].items()
        if same.get(name, True) and not name.startswith("ours")
    }
