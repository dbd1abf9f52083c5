"""`patterncc bench cpu`: patterns beside dense attention and FlexAttention, on this machine's CPU.

All ways of a case run in turn in one process.  Dense attention is torch's SDPA without a mask, the
fastest dense way there is; FlexAttention is compiled, and has no backward pass on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from patterncc.attend import attention
from patterncc.bench.protocol import in_turn, machine
from patterncc.layout import compile
from patterncc.layout.layout import Layout
from patterncc.pattern import Pattern
from patterncc.primitives import causal, documents, global_tokens, random_blocks, window
from patterncc.zones.lower import lower

HEADS, HEAD_DIM = 8, 64
SHARES = (31, 23, 17, 12, 10, 7)  # of the tokens that each document has, in percent

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One pattern of about 10% density; goal: the ratio to dense that is aimed at, by dtype."""

    name: str
    pattern: Pattern
    block: int
    backward: bool
    goal: dict[str, float]
    mask_mod: MaskMod | None = None


def cases(n: int) -> tuple[Case, ...]:
    """What is measured at n tokens."""
    reach, hubs = n * 3 // 64, n // 128
    lengths = [n * share // 100 for share in SHARES[1:]]
    lengths = [n - sum(lengths), *lengths]
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return ((i - j <= reach) & (j - i <= reach)) | (i < hubs) | (j < hubs)

    def packed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (document[i] == document[j])

    global_blocks, drawn = max(1, n // 4096), n // 1024
    bird = window(1, 1, block=64) | global_tokens(range(64 * global_blocks))
    bird |= random_blocks(drawn, block=64)
    tiles = torch.from_numpy(lower(bird, n).dense()[::64, ::64].copy())

    def table(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return tiles[i // 64, j // 64]

    wide = window(n // 20, n // 20)
    both = {"float32": 4.0, "bfloat16": 3.0}
    return (
        Case(
            f"window {2 * reach + 1} + {hubs} global tokens",
            window(reach, reach) | global_tokens(range(hubs)),
            128,
            False,
            {"float32": 4.5, "bfloat16": 4.0},
            near,
        ),
        Case(
            f"BigBird: 3 window, {global_blocks} global, {drawn} random blocks of 64",
            bird,
            64,
            False,
            {"float32": 2.5, "bfloat16": 1.2},
            table,
        ),
        Case(
            f"{len(lengths)} packed documents, causal",
            causal() & documents(lengths),
            128,
            False,
            {},
            packed,
        ),
        Case(f"window {2 * (n // 20) + 1}", wide, 128, True, both),
        Case("BigBird, as above", bird, 64, True, {}),
    )


def run(
    *,
    n: int = 8192,
    repeats: int = 5,
    flex: bool = True,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Seconds of each way with spread, ratios, and differences from masked dense attention."""
    say = progress or (lambda _: None)
    found = []
    for case in cases(n):
        layout = compile(case.pattern, n, block=case.block)
        mask = torch.from_numpy(layout.dense())
        for dtype in (torch.float32, torch.bfloat16):
            say(f"{case.name}, {_name(dtype)}")
            measure = _forward_backward if case.backward else _forward
            found.append(
                _row(case, layout, dtype, measure(case, layout, mask, dtype, repeats, flex))
            )
    return {
        "bench": "cpu",
        "machine": {
            **machine(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "n": n,
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "cases": found,
    }


def text(result: dict[str, Any]) -> str:
    """The table that a person reads: milliseconds, and how many times faster than each peer."""
    where = result["machine"]
    lines = [
        f"{where['processor']}, {where['threads']} threads, {where['capability']}, "
        f"torch {where['versions']['torch']}; {result['n']} tokens, {result['heads']} heads of "
        f"{result['head_dim']}; medians with [least, most] in ms",
    ]
    for row in result["cases"]:
        lines.append(f"{row['case']}, {row['pass']}, {row['dtype']} (density {row['density']:.1%})")
        for name, seconds in row["seconds"].items():
            low, mid, high = (1e3 * seconds[key] for key in ("min", "median", "max"))
            against = "" if name == "ours" else f"   ours is {row['ratio'][name]:.2f}x as fast"
            goal = f" (goal {row['goal']})" if name == "dense" and row["goal"] else ""
            lines.append(f"  {name:6} {mid:8.1f} [{low:.1f}, {high:.1f}]{against}{goal}")
        lines += [f"  {name:6} not run: {why}" for name, why in row["not_run"].items()]
        far = ", ".join(f"{k} {v:.1e}" for k, v in row["largest_difference"].items())
        lines.append(f"  largest difference from fp32 masked dense: {far}")
    return "\n".join(lines)


def _row(
    case: Case, layout: Layout, dtype: torch.dtype, measured: dict[str, Any]
) -> dict[str, Any]:
    ours = measured["seconds"]["ours"]["median"]
    return {
        "case": case.name,
        "pass": "forward + backward" if case.backward else "forward",
        "dtype": _name(dtype),
        "block": case.block,
        "density": layout.density,
        "tile_density": layout.tile_density,
        **measured,
        "ratio": {
            name: seconds["median"] / ours
            for name, seconds in measured["seconds"].items()
            if name != "ours"
        },
        "goal": case.goal.get(_name(dtype)),
    }


def _forward(
    case: Case, layout: Layout, mask: Tensor, dtype: torch.dtype, repeats: int, flex: bool
) -> dict[str, Any]:
    q, k, v = _inputs(layout.n, dtype)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: attention(q, k, v, layout),
        "dense": lambda: sdpa(q, k, v),
    }
    lost: dict[str, str] = {}
    if flex and case.mask_mod is not None:
        try:
            ways["flex"] = _flex(q, k, v, case.mask_mod, case.block)
        except Exception as error:  # a peer that cannot run here (no C++ compiler) is reported
            lost["flex"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    with torch.no_grad():
        seconds = in_turn(ways, repeats)
        true = sdpa(q.float(), k.float(), v.float(), attn_mask=mask)
        off = {
            name: float((way().float() - true).abs().max())
            for name, way in ways.items()
            if name != "dense"
        }
        off["masked dense"] = float((sdpa(q, k, v, attn_mask=mask).float() - true).abs().max())
    return {"seconds": seconds, "largest_difference": off, "not_run": lost}


def _flex(q: Tensor, k: Tensor, v: Tensor, mask_mod: MaskMod, block: int) -> Callable[[], Tensor]:
    """Compiled FlexAttention, its mask made outside the timing."""
    n = q.shape[2]
    mask = create_block_mask(mask_mod, None, None, n, n, device="cpu", BLOCK_SIZE=block)
    torch._dynamo.reset()  # else a second mask is compiled for any shape, which is slower
    call = torch.compile(flex_attention, dynamic=False)

    def way() -> Tensor:
        result: Tensor = call(q, k, v, block_mask=mask)
        return result

    with torch.no_grad():
        way()
    return way


def _forward_backward(
    case: Case, layout: Layout, mask: Tensor, dtype: torch.dtype, repeats: int, flex: bool
) -> dict[str, Any]:
    inputs = [x.requires_grad_() for x in _inputs(layout.n, dtype)]
    grad = _inputs(layout.n, dtype, seed=1)[0]

    def both(call: Callable[..., Tensor], leaves: list[Tensor], upstream: Tensor) -> list[Tensor]:
        out = call(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]

    def ours() -> list[Tensor]:
        return both(lambda q, k, v: attention(q, k, v, layout), inputs, grad)

    def masked(leaves: list[Tensor], upstream: Tensor) -> list[Tensor]:
        return both(lambda q, k, v: sdpa(q, k, v, attn_mask=mask), leaves, upstream)

    seconds = in_turn({"ours": ours, "dense": lambda: both(sdpa, inputs, grad)}, repeats)
    true = masked([x.detach().float().requires_grad_() for x in inputs], grad.float())

    def far(found: list[Tensor]) -> float:
        return max(float((a.float() - b).abs().max()) for a, b in zip(found, true))

    off = {"ours": far(ours()), "masked dense": far(masked(inputs, grad))}
    return {
        "seconds": seconds,
        "largest_difference": off,
        "not_run": {"flex": "no backward pass on a CPU"} if flex else {},
    }


def _inputs(n: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(1, HEADS, n, HEAD_DIM, generator=make).to(dtype) for _ in range(3)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
