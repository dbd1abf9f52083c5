"""The decode half of `patterncc bench gpu`: one query row against a cache of keys.

What a step reads is what it costs: figures are GB/s of the keys and values that the row reads.  The
cache of the GPU is overwritten before every call, so nothing stands in it from the call before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from patterncc.attend import attention
from patterncc.bench import exact, gpu_peers
from patterncc.bench.gpu_device import Device, Timed
from patterncc.bench.gpu_peers import UnavailableError
from patterncc.bench.protocol import summary
from patterncc.layout import compile
from patterncc.primitives import causal, window

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
PEERS_MAY = 10  # times what ours may be off by
LENGTHS = tuple(2**x for x in range(12, 20))  # 4,096 to 524,288 keys


@dataclass(frozen=True)
class DecodeCase:
    """One step: `batch` sequences whose caches hold n keys; reach: keys before the row that it
    reads, -1 for all."""

    n: int
    reach: int = -1
    batch: int = 8
    heads: int = 32
    kv_heads: int = 4
    head_dim: int = 128

    @property
    def name(self) -> str:
        """What tells this case from all others."""
        mask = "causal" if self.reach < 0 else f"window {self.reach + 1}"
        shape = f"batch {self.batch}, GQA {self.heads}:{self.kv_heads}"
        return f"{mask}, {self.n} keys, {shape}, decode"

    @property
    def active(self) -> int:
        """Keys that the row reads."""
        return self.n if self.reach < 0 else min(self.n, self.reach + 1)

    @property
    def active_bytes(self) -> int:
        """Bytes of keys and values that all rows read."""
        return 2 * self.batch * self.kv_heads * self.active * self.head_dim * 2


def decode_cases(quick: bool = False) -> Iterator[DecodeCase]:
    """Dense and windowed steps at 4,096 to 524,288 keys."""
    for n in LENGTHS[::3] if quick else LENGTHS:
        for reach in (-1, 1023):
            yield DecodeCase(n, reach)
    if not quick:
        yield DecodeCase(LENGTHS[-1], batch=1)
        yield DecodeCase(LENGTHS[4], batch=1, heads=32, kv_heads=32)


def measure_decode(
    case: DecodeCase,
    device: Device,
    repeats: int,
    say: Callable[[str], None],
    wanted: tuple[str, ...] = ("",),
) -> dict[str, Any]:
    """Every way of one step: what it takes, what it is off by, or why it did not run."""
    row: dict[str, Any] = {
        "way": "decode",
        "mask": "causal" if case.reach < 0 else f"window {case.reach + 1}",
        "n": case.n,
        "batch": case.batch,
        "heads": case.heads,
        "kv_heads": case.kv_heads,
        "head_dim": case.head_dim,
        "active_keys": case.active,
        "active_bytes": case.active_bytes,
        "goal": _goal(case),
    }
    device.fresh()
    given = _inputs(case, device)
    rough, true = (_dense(case, *given, dtype) for dtype in (torch.bfloat16, torch.float64))
    ready: dict[str, Callable[[], Tensor]] = {}
    not_run: dict[str, str] = {}
    errors = {}
    for name, make in _peers(case, device).items():
        if not name.startswith(("ours", *wanted)):
            continue
        say(f"{case.name}: {name}")
        try:
            ready[name] = partial(make(), *given)
            found = exact.errors({"out": ready[name]()}, {"out": rough}, {"out": true})
            errors[name] = {key: e.to_dict() for key, e in found.items()}
            exact.demand(found, 1 if name == "ours" else PEERS_MAY)
        except Exception as error:  # a peer's failure is a finding, not the end of the benchmark
            ready.pop(name, None)
            not_run[name] = gpu_peers.reason(error)
        device.settle()
    seconds = _timed(ready, device, repeats)
    return row | {
        "failed": "ours" not in seconds,
        "seconds": seconds,
        "gigabytes_per_second": {
            name: case.active_bytes / s["median"] / 1e9 for name, s in seconds.items()
        },
        "ratio": {
            name: s["median"] / seconds["ours"]["median"]
            for name, s in seconds.items()
            if name != "ours" and "ours" in seconds
        },
        "errors": errors,
        "not_run": not_run,
    }


def _timed(
    ready: dict[str, Callable[[], Tensor]], device: Device, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds of each way, all in turn `repeats` times, the cache overwritten before each."""
    times: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(repeats + 1):
        for name, way in ready.items():
            seconds = device.clock.apart(Timed(_without(way), device.flush))
            if turn:
                times[name].append(seconds)
    return {name: summary(each) for name, each in times.items()}


def _without(way: Callable[[], Tensor]) -> Callable[[object], Tensor]:
    """A call that takes what came before it and does not look at it."""
    return lambda _: way()


def _goal(case: DecodeCase) -> dict[str, float] | None:
    """From 64 MB of active keys and values 0.86 of the speed of a copy, and 2 or 5 times
    FlexAttention."""
    if case.reach >= 0:
        return {"flex": 5.0} if case.n >= 2**16 else None
    return {"of_copy": 0.86, "flex": 2.0} if case.active_bytes >= 64e6 else None


def _inputs(case: DecodeCase, device: Device) -> tuple[Tensor, Tensor, Tensor]:
    make = torch.Generator(device.where).manual_seed(0)

    def drawn(heads: int, length: int) -> Tensor:
        shape = (case.batch, heads, length, case.head_dim)
        x = torch.empty(shape, dtype=torch.bfloat16, device=device.where)
        return x.normal_(generator=make)

    return drawn(case.heads, 1), drawn(case.kv_heads, case.n), drawn(case.kv_heads, case.n)


def _dense(case: DecodeCase, q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """The step by dense attention over the keys that the row reads, one key head at a time."""
    seen = torch.ones(1, 1, case.active, dtype=torch.bool)
    group = case.heads // case.kv_heads
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    for b in range(case.batch):
        for h in range(case.kv_heads):
            heads = slice(h * group, (h + 1) * group)
            rows = q[b : b + 1, heads].to(dtype)
            keys, values = (x[b : b + 1, h : h + 1, -case.active :].to(dtype) for x in (k, v))
            out[b, heads] = exact.dense(rows, keys, values, lambda first, last: seen)["out"][0]
    return out


def _peers(case: DecodeCase, device: Device) -> dict[str, Callable[[], Step]]:
    """Ours first, then the peers, each as what makes it."""
    return {
        "ours": lambda: _ours(case, device),
        "flex": lambda: _flex(case, device),
        "sdpa flash": lambda: _sdpa(case, SDPBackend.FLASH_ATTENTION),
        "sdpa cudnn": lambda: _sdpa(case, SDPBackend.CUDNN_ATTENTION),
        "flash-attn 2": lambda: _flash_attn(case, "flash_attn"),
        "flash-attn 3": lambda: _flash_attn(case, "flash_attn_interface"),
        "flashinfer": lambda: _flashinfer(case),
    }


def _ours(case: DecodeCase, device: Device) -> Step:
    pattern = causal() if case.reach < 0 else causal() & window(case.reach)
    layout = compile(pattern, case.n)
    last = torch.full((case.batch,), case.n - 1, dtype=torch.int32, device=device.where)

    @torch.no_grad()
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, layout, enable_gqa=True, position=last, backend=device.backend)

    return step


def _flex(case: DecodeCase, device: Device) -> Step:
    last, reach = case.n - 1, case.active

    def mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i + last) & (i + last - j < reach)

    mask = create_block_mask(mod, None, None, 1, case.n, device=device.where, BLOCK_SIZE=128)
    call = device.compiled(flex_attention)

    @torch.no_grad()
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = call(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        return out

    return step


def _sdpa(case: DecodeCase, kind: SDPBackend) -> Step:
    """On the keys that the row reads, a view of the cache: no mask is needed."""

    @torch.no_grad()
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x[:, :, -case.active :] for x in (k, v))
        with sdpa_kernel(kind):
            return sdpa(q, k, v, enable_gqa=q.shape[1] != k.shape[1])

    return step


def _flash_attn(case: DecodeCase, package: str) -> Step:
    """flash_attn_with_kvcache, whose caches are [B, L, H, D]: a copy of ours, made once."""
    call = gpu_peers.installed(package).flash_attn_with_kvcache
    left = case.reach
    kept: list[Tensor] = []

    @torch.no_grad()
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not kept:
            lengths = torch.full((len(q),), case.n, dtype=torch.int32, device=q.device)
            kept.extend([*(x.transpose(1, 2).contiguous() for x in (k, v)), lengths])
        keys, values, lengths = kept
        found = call(
            q.transpose(1, 2),
            keys,
            values,
            cache_seqlens=lengths,
            causal=True,
            window_size=(left, 0 if left >= 0 else -1),
        )
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out.transpose(1, 2)

    return step


def _flashinfer(case: DecodeCase) -> Step:
    """single_decode_with_kv_cache, which takes one sequence: caches are [L, H, D]."""
    library = gpu_peers.installed("flashinfer")
    if case.batch != 1:
        raise UnavailableError("its decode of a batch takes paged caches; see batch 1")
    kept: list[Tensor] = []

    @torch.no_grad()
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not kept:
            kept.extend(x[0].transpose(0, 1).contiguous() for x in (k, v))
        out: Tensor = library.single_decode_with_kv_cache(
            q[0, :, 0], *kept, kv_layout="NHD", window_left=case.reach
        )
        return out[None, :, None]

    return step
