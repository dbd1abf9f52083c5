"""`patterncc bench train`: a training step of a whole language model, sparse beside dense.

A step is the forward pass, the loss, the backward pass and AdamW.  Both models start from the same
weights, read the same bytes and take turns in one process; they differ in one line, the call that
attends.  Dense attention is torch's causal SDPA, the fastest dense way there is.  A third model
attends to nothing and shows what of a step is not attention.

Goal: at most 10% of the causal pairs at 8,192 tokens, and at least twice as fast a step in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, linear
from torch.nn.functional import scaled_dot_product_attention as sdpa

from patterncc.attend import attention
from patterncc.bench.protocol import in_turn, machine, spread
from patterncc.layout import compile
from patterncc.layout.layout import Layout
from patterncc.pattern import Pattern
from patterncc.primitives import causal, sink, window

LAYERS, WIDTH, HEADS, VOCABULARY = 4, 256, 8, 256
SINKS = 4
SHARE = 0.10  # of the causal pairs
GOAL = 2.0  # times as fast as dense, in fp32

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def pattern_of(n: int) -> Pattern:
    """A causal window and sinks that hold SHARE of the causal pairs of n tokens.

    Of n tokens a causal window of w keys holds the share 1 - (1 - w / n)^2 of the pairs.

    >>> print(pattern_of(8192))
    causal() & (window(415) | sink(4))
    """
    wide = int(n * (1 - math.sqrt(1 - SHARE)))
    return causal() & (window(max(1, wide - SINKS - 1)) | sink(SINKS))


def run(
    *,
    n: int = 8192,
    repeats: int = 5,
    width: int = WIDTH,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Seconds of a step with spread, how many times faster ours is, and what the loss differs by.

    The difference is that of the loss from the same model's under a dense mask of the same edges.
    """
    say = progress or (lambda _: None)
    layout = compile(pattern_of(n), n)
    ids = torch.randint(VOCABULARY, (1, n + 1), generator=torch.Generator().manual_seed(1))
    ways: dict[str, Attend] = {
        "ours": lambda q, k, v: attention(q, k, v, layout),
        "dense": lambda q, k, v: sdpa(q, k, v, is_causal=True),
        "no attention": lambda q, k, v: v,
    }
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        say(f"{name}: steps of {n:,} tokens")
        seconds = in_turn({way: _step(at, ids, width, dtype) for way, at in ways.items()}, repeats)
        ratio = seconds["dense"]["median"] / seconds["ours"]["median"]
        say(f"{name}: the loss under a dense mask")
        masked = _loss(_masked(layout), ids, width, dtype)
        far = _loss(ways["ours"], ids, width, dtype) - masked
        goal = GOAL if dtype is torch.float32 else None
        found.append(
            {
                "dtype": name if dtype is torch.float32 else f"{name} autocast",
                "seconds": seconds,
                "ratio": ratio,
                "goal": goal,
                "reached": None if goal is None else ratio >= goal,
                "loss_difference": abs(far),
            }
        )
    return {
        "bench": "train",
        "machine": {**machine(), "threads": torch.get_num_threads()},
        "n": n,
        "model": {
            "layers": LAYERS,
            "width": width,
            "heads": HEADS,
            "vocabulary": VOCABULARY,
            "parameters": sum(p.numel() for p in _Model(width).parameters()),
        },
        "pattern": str(pattern_of(n)),
        "causal_share": layout.density * n * n / (n * (n + 1) / 2),
        "cases": found,
    }


def text(result: dict[str, Any]) -> str:
    """The table that a person reads."""
    where, model = result["machine"], result["model"]
    lines = [
        f"{where['processor']}, {where['threads']} threads, torch {where['versions']['torch']}",
        f"{model['layers']} layers, width {model['width']}, {model['heads']} heads, "
        f"{model['parameters']:,} parameters; {result['n']:,} tokens a step",
        f"{result['pattern']}: {result['causal_share']:.1%} of the causal pairs",
        "forward, loss, backward and AdamW; medians of a step (least to most)",
    ]
    for row in result["cases"]:
        lines.append(row["dtype"])
        lines += [f"  {name:12} {spread(took)}" for name, took in row["seconds"].items()]
        aim = "" if row["goal"] is None else f"; goal {row['goal']}: {_said(row['reached'])}"
        lines.append(f"  ours is {row['ratio']:.2f} times as fast as dense{aim}")
        lines.append(
            f"  loss differs from masked dense attention's by {row['loss_difference']:.1e}"
        )
    return "\n".join(lines)


def _said(reached: bool) -> str:
    return "reached" if reached else "missed"


def _step(attend: Attend, ids: Tensor, width: int, dtype: torch.dtype) -> Callable[[], float]:
    """A training step of a model of its own."""
    model = _Model(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def step() -> float:
        loss = model.loss(ids, attend, dtype)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def _loss(attend: Attend, ids: Tensor, width: int, dtype: torch.dtype) -> float:
    with torch.no_grad():
        return float(_Model(width).loss(ids, attend, dtype))


def _masked(layout: Layout) -> Attend:
    """Dense attention under a mask of the layout's edges."""
    mask = torch.from_numpy(layout.dense())
    return lambda q, k, v: sdpa(q, k, v, attn_mask=mask)


class _Block(nn.Module):
    """Attention with rotary positions and an MLP, both behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        parts = self.qkv(self.before(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        seen = attend(_rotated(q, turn), _rotated(k, turn), v)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(gelu(self.up(self.between(x))))
        return result


class _Model(nn.Module):
    """A byte-level language model; the same weights whenever it is made."""

    def __init__(self, width: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(VOCABULARY, width)
            self.blocks = nn.ModuleList(_Block(width) for _ in range(LAYERS))
            self.norm = nn.RMSNorm(width)
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.head_dim = width // HEADS

    def loss(self, ids: Tensor, attend: Attend, dtype: torch.dtype) -> Tensor:
        """Of each next byte; in bf16 by autocast, as a training loop has it."""
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            inputs, wanted = ids[:, :-1], ids[:, 1:]
            powers = torch.arange(0, self.head_dim, 2) / self.head_dim
            angles = torch.arange(inputs.shape[1])[:, None] * 1e4**-powers
            turn = angles.cos(), angles.sin()
            x = self.embedding(inputs)
            for block in self.blocks:
                x = block(x, turn, attend)
            logits = linear(self.norm(x), self.embedding.weight)
            return cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())


def _rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)
