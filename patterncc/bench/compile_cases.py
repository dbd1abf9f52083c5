"""What `patterncc bench compile` compiles: a name, a length, what was asked, and the way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from patterncc.artifact import Artifact
from patterncc.layout import Layout, compile
from patterncc.pattern import Pattern
from patterncc.primitives import (
    causal,
    chunked,
    clusters,
    documents,
    full,
    global_tokens,
    random_blocks,
    sink,
    strided,
    summary,
    window,
)


@dataclass(frozen=True)
class Case:
    """One way that is timed.

    asked: seconds that the project wants it to stay below; None where nothing was asked.
    make: does it once, lowering included, and gives the layout.
    """

    name: str
    n: int
    asked: float | None
    make: Callable[[], Layout]


def main_case() -> Pattern:
    """A causal window of 512 tokens and 64 global tokens."""
    return causal() & (window(511) | global_tokens(range(64)))


def bigbird() -> Pattern:
    """A block window of 3, 64 global tokens, 3 random blocks."""
    return window(1, 1, block=64) | global_tokens(range(64)) | random_blocks(3, block=64)


def structured(million: int) -> list[Case]:
    """Patterns of few zones at two lengths, block 128."""
    named: dict[str, Pattern] = {
        "window 512 + 64 global tokens, causal": main_case(),
        "window 4096 + 4 sinks, causal": causal() & (window(4095) | sink(4)),
        "causal": causal(),
        "chunks of 8192, causal": causal() & chunked(8192),
        "window +-256 + first token both ways": window(256, 256) | global_tokens([0]),
    }
    found = []
    for n, asked in ((million, 0.010), (16 * million, 0.200)):
        found += [Case(k, n, asked, partial(compile, p, n, block=128)) for k, p in named.items()]
    return found


def scattered(million: int) -> list[Case]:
    """Many zones: random blocks, and a hundred thousand packed documents."""
    many, n = million // 10, 16 * million
    lengths = packed(many, n)
    return [
        Case("BigBird, block 64", million, 0.060, partial(compile, bigbird(), million, block=64)),
        Case(
            f"{many:,} packed documents, causal",
            n,
            0.300,
            partial(compile, causal() & documents("docs"), n, block=128, docs=lengths),
        ),
    ]


def reordered(million: int) -> list[Case]:
    """Patterns whose tiles are dense in another order of tokens."""
    labels = np.random.default_rng(0).integers(0, 256, million)
    named: dict[str, tuple[Pattern, dict[str, Any]]] = {
        "strided(1024), causal": (causal() & strided(1024), {}),
        "summary(128, 8), causal": (causal() & summary(128, 8), {}),
        "256 clusters of scattered tokens, causal": (causal() & clusters("ids"), {"ids": labels}),
    }
    return [
        Case(k, million, None, partial(compile, p, million, block=128, **more))
        for k, (p, more) in named.items()
    ]


def packed(count: int, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Lengths of `count` documents that fill n tokens, drawn evenly."""
    cuts = np.random.default_rng(0).choice(np.arange(1, n), count - 1, replace=False)
    return np.diff(np.sort(cuts), prepend=0, append=n)


def batch(n: int, count: int) -> list[Case]:
    """A packed batch by the document of each token, as a training step has it."""
    ids = np.repeat(np.arange(count), packed(count, n))
    return [
        Case(
            f"{count} documents by doc_ids, {name}",
            n,
            0.003,
            partial(compile, pattern, n, block=128, doc_ids=ids),
        )
        for name, pattern in (("causal", causal()), ("both ways", full()))
    ]


def artifact(n: int) -> tuple[Case, tempfile.TemporaryDirectory[str]]:
    """Loading a folder, everything checked; and the folder, to be cleaned up."""
    folder = tempfile.TemporaryDirectory(prefix="patterncc-bench-")
    path = Path(folder.name) / "artifact"
    Artifact.build(main_case(), n, block=128, resources=False).save(path)
    return Case("load an artifact", n, 0.020, lambda: Artifact.load(path).layouts[0]), folder
