"""`patterncc bench cpu`: patterns beside dense attention and FlexAttention, on this machine's CPU.

All ways of a case run in turn in one process.  Dense attention is torch's SDPA without a mask, the
fastest dense way there is; FlexAttention is compiled, and has no backward pass on a CPU.

Goals: a forward pass is no slower than FlexAttention; a forward and backward pass takes at most so
many times the *share*, the density times what dense attention takes.
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
from patterncc.kernels.native import run as native
from patterncc.kernels.native.plan import Kind
from patterncc.kernels.score import Score
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
    """One pattern of about 10% density.

    goal, by dtype: forward, the least ratio of FlexAttention's time to ours; forward and backward,
    the most of ours to the share.
    """

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
    no_slower = {"float32": 1.0, "bfloat16": 1.0}
    return (
        Case(
            f"window {2 * reach + 1} + {hubs} global tokens",
            window(reach, reach) | global_tokens(range(hubs)),
            128,
            False,
            no_slower,
            near,
        ),
        Case(
            f"BigBird: 3 window, {global_blocks} global, {drawn} random blocks of 64",
            bird,
            64,
            False,
            {"float32": 1.0},
            table,
        ),
        Case(
            f"{len(lengths)} packed documents, causal",
            causal() & documents(lengths),
            128,
            False,
            no_slower,
            packed,
        ),
        Case(
            f"window {2 * (n // 20) + 1}",
            wide,
            128,
            True,
            {"float32": 2.2, "bfloat16": 3.2},
        ),
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
            lines.append(f"  {name:6} {mid:8.1f} [{low:.1f}, {high:.1f}]{against}")
        lines.append(f"  {_goal(row)}; {row['kernels']} kernels")
        lines += [f"  {name:6} not run: {why}" for name, why in row["not_run"].items()]
        far = ", ".join(f"{k} {v:.1e}" for k, v in row["largest_difference"].items())
        lines.append(f"  largest difference from fp32 masked dense: {far}")
    return "\n".join(lines)


def _row(
    case: Case, layout: Layout, dtype: torch.dtype, measured: dict[str, Any]
) -> dict[str, Any]:
    seconds = {name: found["median"] for name, found in measured["seconds"].items()}
    ratio = {name: peer / seconds["ours"] for name, peer in seconds.items() if name != "ours"}
    over_share = seconds["ours"] / (layout.density * seconds["dense"])
    goal = case.goal.get(_name(dtype))
    reached = None
    if goal is not None and case.backward:
        reached = over_share <= goal
    elif goal is not None and "flex" in ratio:
        reached = ratio["flex"] >= goal
    return {
        "case": case.name,
        "pass": "forward + backward" if case.backward else "forward",
        "dtype": _name(dtype),
        "kernels": _kernels(case, dtype),
        "block": case.block,
        "density": layout.density,
        "tile_density": layout.tile_density,
        **measured,
        "ratio": ratio,
        "over_share": over_share,
        "goal": goal,
        "reached": reached,
    }


def _kernels(case: Case, dtype: torch.dtype) -> str:
    """Which kernels computed ours: native ones, or torch's own."""
    x = torch.empty(1, 1, 1, HEAD_DIM, dtype=dtype)
    passes: tuple[Kind, ...] = ("forward", "backward") if case.backward else ("forward",)
    ways = ["native" if native.runs(kind, x, x, Score(1.0)) else "torch's" for kind in passes]
    return " and ".join(dict.fromkeys(ways))


def _goal(row: dict[str, Any]) -> str:
    """How the row stands to its goal."""
    share = f"{row['over_share']:.2f} times density x dense"
    if row["goal"] is None:
        return share
    aim = f"at most {row['goal']}" if "backward" in row["pass"] else f"{row['goal']}x flex"
    said = {None: "not measured", True: "reached", False: "missed"}[row["reached"]]
    return f"{share}; goal {aim}: {said}"


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
