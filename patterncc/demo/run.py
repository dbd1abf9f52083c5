"""The demo: pattern files, their reach, a real model running them, one long run, a page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patterncc import gallery
from patterncc.demo.page import page
from patterncc.language import PatternFile, load
from patterncc.zones.lower import lower

TOKENS, SEQUENCES = 128, 64
LONG = 16384

# Gallery files with their windows made small enough for a model of 128 tokens.
FILES: tuple[tuple[str, dict[str, int]], ...] = (
    ("mistral-7b", {"sliding_window": 32}),
    ("streaming-llm", {"recent": 32}),
    ("gpt-oss", {"sliding_window": 16}),
    ("gemma-3", {"sliding_window": 16}),
    ("llama-4", {"chunk": 32}),
    ("logsparse", {}),
)


@dataclass(frozen=True)
class Row:
    """One pattern in the model: what the analysis says of it and how close the model stays."""

    pattern: str
    density: float
    reach: float
    depth_to_full: int | None
    kl: float
    top1: float


def main(
    out: Path | str = "build/demo",
    *,
    say: Callable[[str], None] = print,
    files: tuple[tuple[str, dict[str, int]], ...] = FILES,
    long: int = LONG,
) -> dict[str, Any]:
    """Run everything, leave pictures and ``index.html`` in `out`, and return the figures."""
    start = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    loaded = [(load(gallery.path(name), **params), params) for name, params in files]
    rows = _fidelity([file for file, _ in loaded], say)
    timings = _long(long, say)
    pictures = _pictures(loaded, folder)
    _write(folder, rows, timings, pictures, long)
    seconds = time.perf_counter() - start
    say(f"\nPictures and summary: {folder / 'index.html'} ({seconds:.0f} s in all)")
    return {
        "patterns": [asdict(row) for row in rows],
        "long": {"n": long, "heads": 8, "head_dim": 64, "runs": [asdict(t) for t in timings]},
        "seconds": seconds,
        "page": str(folder / "index.html"),
    }


def _fidelity(files: list[PatternFile], say: Callable[[str], None]) -> list[Row]:
    from patterncc.fidelity import Candidate, default_text, fidelity, open_model, sequences

    model = open_model("glassllm")
    cut = sequences(model, [default_text()], TOKENS, SEQUENCES)
    say(
        f"A pretrained Llama of {model.model.num_parameters():,} parameters and {model.layers} "
        f"layers; {SEQUENCES} x {TOKENS} tokens of real text.\n"
        "Its attention replaced by compiled patterns:\n\n"
        f"{'pattern':<16}{'of causal':>10}{'reach':>9}{'full at':>9}{'KL':>9}{'top-1':>8}"
    )
    candidates = {file.name: Candidate(file.stack, file.bindings) for file in files}
    rows = []
    for found in fidelity(model, candidates, cut).rows:
        row = Row(
            found.name,
            found.foreseen.figures["density"],
            found.foreseen.figures["reach"],
            found.foreseen.depth_to_full,
            found.measured["kl"].mean,
            found.measured["top1"].mean,
        )
        rows.append(row)
        say(
            f"{row.pattern:<16}{row.density:>10.3f}{row.reach:>9.1%}{_depth(row):>9}"
            f"{row.kl:>9.4f}{row.top1:>8.3f}"
        )
    say(
        "\nof causal: share of the causal pairs that a layer reads, on average; reach: share that\n"
        "the model's layers connect; full at: layers that would connect them all; KL and top-1:\n"
        "the predicted next tokens against the same model with dense attention."
    )
    return rows


def _depth(row: Row) -> str:
    return "never" if row.depth_to_full is None else str(row.depth_to_full)


def _long(n: int, say: Callable[[str], None]) -> list[Any]:
    import torch

    from patterncc.demo.longrun import measure
    from patterncc.layout import compile

    file = load(gallery.path("streaming-llm"), recent=1024)
    (pattern,) = file.stack.heads(0)
    zones = lower(pattern, n)
    layout = compile(pattern, n)
    say(
        f"\nOne sequence of {n:,} tokens, 8 heads of 64, {file.name} with a window of 1024:\n"
        f"{zones.count() / (n * (n + 1) // 2):.1%} of the causal pairs, "
        "against dense causal attention in turn (a few minutes).\n\n"
        f"{'':<31}{'pattern':>9}{'dense':>9}{'faster':>9}{'difference':>12}"
    )
    timings = []
    for dtype in (torch.float32, torch.bfloat16):
        for t in measure(layout, zones, dtype):
            timings.append(t)
            say(
                f"{t.dtype:<11}{t.what:<20}{t.sparse:>8.3f}s{t.dense:>8.3f}s{t.ratio:>8.1f}x"
                f"{t.difference:>12.1e}"
            )
    say("\ndifference: the largest from dense attention under the same mask, gradients included.")
    return timings


def _pictures(
    loaded: list[tuple[PatternFile, dict[str, int]]], folder: Path
) -> list[tuple[str, str]]:
    from patterncc import show

    pictures = []
    for file, params in loaded:
        panels = [
            show.panel(mask, TOKENS) for mask in show.masks(file.stack, TOKENS, names=file.edges)
        ]
        show.picture(panels, file.name, folder / f"{file.name}.png")
        chosen = "".join(f", {k}={v}" for k, v in params.items())
        pictures.append((f"{file.name}.png", f"{file.name}{chosen}"))
    return pictures


def _write(
    folder: Path, rows: list[Row], timings: list[Any], pictures: list[tuple[str, str]], n: int
) -> None:
    model = (
        "In a pretrained language model",
        f"Attention replaced layer by layer, {SEQUENCES} x {TOKENS} tokens of real text. "
        "'Of causal' is the share of the causal pairs that a layer reads, on average, reach the "
        "share that the model's layers connect, 'full at' the layers that would connect them all; "
        "KL and top-1 compare the predicted next tokens with the dense model's.",
        ("pattern", "of causal", "reach", "full at", "KL", "top-1"),
        [
            (
                r.pattern,
                f"{r.density:.3f}",
                f"{r.reach:.1%}",
                _depth(r),
                f"{r.kl:.4f}",
                f"{r.top1:.3f}",
            )
            for r in rows
        ],
    )
    long = (
        f"One sequence of {n:,} tokens",
        "8 heads of 64 on this machine's CPU, the compiled pattern and dense causal attention in "
        "turn, medians. The difference is the largest from dense attention under the same mask.",
        ("run", "pattern, s", "dense, s", "times faster", "difference"),
        [
            (
                f"{t.dtype} {t.what}",
                f"{t.sparse:.3f}",
                f"{t.dense:.3f}",
                f"{t.ratio:.1f}",
                f"{t.difference:.1e}",
            )
            for t in timings
        ],
    )
    text = page("patterncc demo", [model, long], pictures)
    unfinished = folder / "index.html.part"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(folder / "index.html")
