"""Train a language model with a pattern and dense: python examples/train_char_lm.py

Both start from the same weights and read the same characters in the same order; they differ in one
line, the call that attends.  The text is what Python brings along: its help topics and the sources
of its standard library.  About ten minutes on two cores; --quick takes half a minute (too short for
a pattern to be faster), --resume goes on where a run was broken off.  Results go to ./char_lm/.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from rich.progress import Progress, TimeElapsedColumn
from torch import Tensor, nn
from torch.nn import functional

import patterncc as pc

# Each character reads the 128 before it, itself counted, and the last 8 of every earlier block of
# 128.  What stands further back comes in two steps: into the end of its block, and from there.
PATTERN = pc.causal() & (pc.window(127) | pc.summary(128, 8))


@dataclass(frozen=True)
class Settings:
    """What a run depends on; a checkpoint goes on only under the same ones."""

    context: int = 2048
    batch: int = 1
    steps: int = 1200
    layers: int = 4
    width: int = 128
    heads: int = 4
    rate: float = 2e-3
    warm_up: int = 40
    seed: int = 0
    every: int = 100  # steps between two looks at the held-out text
    held_out: int = 16  # stretches of `context` characters that it is measured on


QUICK = Settings(context=256, batch=1, steps=6, layers=2, width=32, heads=2, every=3, held_out=2)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Texts = tuple[Tensor, Tensor]  # to train on, and held out; int64 [length] each


def read_text(place: Path | None) -> Texts:
    """Held out are every twelfth of Python's own files, or the last twelfth of a given one."""
    if place is not None:
        text = place.read_text(encoding="utf-8")
        cut = len(text) * 11 // 12
        return characters(text[:cut]), characters(text[cut:])
    library = Path(os.__file__).parent
    texts = ["\n".join(topics.values())]
    texts += [p.read_text(encoding="utf-8", errors="ignore") for p in sorted(library.glob("*.py"))]
    rest = "".join(text for k, text in enumerate(texts) if k % 12 != 5)
    return characters(rest), characters("".join(texts[5::12]))


def characters(text: str) -> Tensor:
    return torch.tensor(bytearray(text.encode("ascii", "ignore")), dtype=torch.int64)


def batch_of(text: Tensor, settings: Settings, step: int) -> Tensor:
    """[batch, context + 1], drawn from the step alone: a resumed run reads the same."""
    draw = torch.Generator().manual_seed(1_000_003 * settings.seed + step)
    starts = torch.randint(len(text) - settings.context, (settings.batch,), generator=draw)
    return torch.stack([text[s : s + settings.context + 1] for s in starts])


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def sparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return pc.attention(q, k, v, layout(q.shape[2]))  # the one line that differs


@cache
def layout(n: int) -> pc.Layout:
    return pc.compile(PATTERN, n)


class Block(nn.Module):
    """Attention and an MLP, both behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, attend: Attend, turn: tuple[Tensor, Tensor]) -> Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = attend(rotated(q, turn), rotated(k, turn), v)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class CharacterModel(nn.Module):
    """Characters to the loss of each next one; the same weights whatever attends."""

    def __init__(self, attend: Attend, settings: Settings) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        self.attend, self.head_dim = attend, settings.width // settings.heads
        self.embedding = nn.Embedding(128, settings.width)  # ASCII
        each = (Block(settings.width, settings.heads) for _ in range(settings.layers))
        self.blocks, self.norm = nn.ModuleList(each), nn.RMSNorm(settings.width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [batch, n + 1] to nats a character."""
        powers = torch.arange(0, self.head_dim, 2) / self.head_dim
        angles = torch.arange(ids.shape[1] - 1)[:, None] * 1e4**-powers
        x, turn = self.embedding(ids[:, :-1]), (angles.cos(), angles.sin())
        for block in self.blocks:
            x = block(x, self.attend, turn)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions."""
    (cos, sin), (a, b) = turn, x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Run:
    """One model on its way: the loss of each step, and what is held out along (step, seconds)."""

    def __init__(self, attend: Attend, settings: Settings) -> None:
        self.model = CharacterModel(attend, settings)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.losses, self.times, self.curve = [], [], []

    def step(self, ids: Tensor, rate: float) -> None:
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.model(ids)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(float(loss.detach()))
        self.times.append(time.perf_counter() - start)

    @torch.no_grad()
    def look(self, held_out: Tensor, settings: Settings) -> None:
        """The loss on stretches spread evenly over the held-out text."""
        starts = torch.linspace(0, len(held_out) - settings.context - 1, settings.held_out).long()
        parts = [self.model(held_out[s : s + settings.context + 1][None]) for s in starts]
        loss = float(torch.stack(parts).mean())
        self.curve.append((len(self.losses), sum(self.times), loss))

    def state(self) -> tuple[Any, ...]:
        kept = self.losses, self.times, self.curve
        return self.model.state_dict(), self.optimizer.state_dict(), *kept

    def load(self, model: Any, optimizer: Any, *kept: Any) -> None:
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.losses, self.times, self.curve = kept


def train(
    settings: Settings, texts: Texts, checkpoint: Path, resume: bool = False, until: int = 1 << 30
) -> dict[str, Run]:
    """Both models in turn, step by step, so that a machine that slows down slows both alike.

    A checkpoint is written after each look at the held-out text.  until: break off there.
    """
    if (least := min(map(len, texts))) <= settings.context:
        raise SystemExit(f"{least:,} characters; a stretch has {settings.context + 1:,}, give more")
    runs = {"pattern": Run(sparse, settings), "dense": Run(dense, settings)}
    if resume and checkpoint.exists():
        load(runs, checkpoint, settings)
    done, last = len(runs["dense"].losses), settings.steps
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as bar:
        task = bar.add_task("training", total=last, completed=done)
        for step in range(done, min(last, until)):
            ids, rate = batch_of(texts[0], settings, step), rate_of(settings, step)
            for run in runs.values():
                if not run.curve:
                    run.look(texts[1], settings)
                run.step(ids, rate)
            if (step + 1) % settings.every == 0 or step + 1 == last:
                for run in runs.values():
                    run.look(texts[1], settings)
                save(runs, checkpoint, settings)
            found = ", ".join(f"{name} {run.curve[-1][2]:.3f}" for name, run in runs.items())
            bar.update(task, advance=1, description=f"held out: {found}")
    return runs


def rate_of(settings: Settings, step: int) -> float:
    """Warm-up, then half a cosine down to a tenth."""
    fall = 0.55 + 0.45 * math.cos(math.pi * step / settings.steps)
    return settings.rate * min((step + 1) / settings.warm_up, fall)


def save(runs: dict[str, Run], checkpoint: Path, settings: Settings) -> None:
    """Whole or not at all: a run that is broken off here leaves the checkpoint before."""
    part = checkpoint.with_suffix(".part")
    states = {name: run.state() for name, run in runs.items()}
    torch.save({"settings": asdict(settings), "runs": states}, part)
    os.replace(part, checkpoint)


def load(runs: dict[str, Run], checkpoint: Path, settings: Settings) -> None:
    state = torch.load(checkpoint, weights_only=True)  # tensors and plain values, no code
    if state["settings"] != asdict(settings):
        made = f"{checkpoint} is of a run with other settings, {state['settings']}"
        raise SystemExit(f"{made}; leave out --resume to begin anew")
    for name, run in runs.items():
        run.load(*state["runs"][name])


def step_times(settings: Settings, text: Tensor, n: int, repeats: int) -> list[float]:
    """Seconds of a step on n characters, with the pattern and dense: medians, in turn."""
    long = replace(settings, context=n, batch=1)
    runs = [Run(sparse, long), Run(dense, long)]
    for step in range(repeats + 1):
        for run in runs:
            run.step(batch_of(text, long, step), settings.rate)
    return [float(torch.tensor(run.times[1:]).median()) for run in runs]


def draw(runs: dict[str, Run], settings: Settings, place: Path) -> None:
    """Held-out loss against characters read and against seconds spent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, run in runs.items():
        steps, seconds, losses = zip(*run.curve[1:], strict=True)  # what is untrained is far above
        read = [step * settings.batch * settings.context / 1e6 for step in steps]
        left.plot(read, losses, marker="o", markersize=3, label=name)
        right.plot(seconds, losses, marker="o", markersize=3, label=name)
    left.locator_params(axis="x", nbins=5)
    left.set(xlabel="million characters read", ylabel="held-out loss, nats a character")
    right.set(xlabel="seconds of training")
    left.legend()
    figure.savefig(place, dpi=120)


def main(arguments: Sequence[str] | None = None) -> dict[str, Run]:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a tiny model, in seconds")
    options.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    options.add_argument("--text", type=Path, help="a text file in place of Python's own texts")
    options.add_argument("--out", type=Path, default=Path("char_lm"), help="a folder for results")
    given = options.parse_args(arguments)
    settings, lengths = (QUICK, (256, 512)) if given.quick else (Settings(), (2048, 8192))
    given.out.mkdir(parents=True, exist_ok=True)

    report, n = pc.analyze(PATTERN, settings.context), settings.context
    share = layout(n).density * 2 * n / (n + 1)
    print(f"{PATTERN} at {n:,} characters: {share:.1%} of the causal pairs;")
    print(f"all of them are reached after {report.depth_to_full} of {settings.layers} layers")

    texts = read_text(given.text)
    print(f"{len(texts[0]):,} characters to train on, {len(texts[1]):,} held out")
    runs = train(settings, texts, given.out / "checkpoint.pt", given.resume)

    print("   step  pattern    dense   (held out, nats a character)")
    for mine, other in zip(runs["pattern"].curve, runs["dense"].curve, strict=True):
        print(f"{mine[0]:7,} {mine[2]:8.3f} {other[2]:8.3f}")
    for name, run in runs.items():
        bits = run.curve[-1][2] / math.log(2)
        print(
            f"{name:8} {len(run.times)} steps, {sum(run.times):.0f} s, {bits:.3f} bits a character"
        )
    for n in lengths:
        mine, other = step_times(settings, texts[0], n, repeats=2 if given.quick else 5)
        times = f"{mine:.3f} s with the pattern, {other:.3f} s dense"
        print(f"a step on {n:,} characters: {times}, {other / mine:.2f} times as fast")
    if find_spec("matplotlib"):
        draw(runs, settings, given.out / "curve.png")
        print(f"wrote {given.out / 'curve.png'}")
    return runs


if __name__ == "__main__":
    main()
