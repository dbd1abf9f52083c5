"""The masks that kernels are measured on, by name: the gallery's, and a grid of common shapes.

Each knows its pattern and, for FlexAttention, the same edges as a mask function written by hand:
`integrations.flex` would give one too, but a slower one than its users write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc import gallery
from patterncc.bench.compile_graphs import neighbours
from patterncc.language import load
from patterncc.layout import compile
from patterncc.primitives import (
    causal,
    documents,
    edges,
    full,
    global_tokens,
    random_blocks,
    window,
)
from patterncc.stack import Layer, Stack, patterns_of
from patterncc.zones.lower import names_in

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from patterncc.layout.layout import Layout

MaskMod = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], "Tensor"]
MakeMod = Callable[[object], MaskMod]
DENSITIES = (0.05, 0.125, 0.25, 0.5)
SHARES = (23, 17, 12, 10, 7, 5, 3)  # of the tokens that documents have, in percent; the rest is one
NEAREST = 32  # edges of a token in the graph of points in the plane


@dataclass(frozen=True)
class Mask:
    """One mask at one length.

    layer: what the pattern compiler takes.  index: its place in the stack, which random edges
    depend on.  memory: prepended keys.  band: how far to the left and right a query reads where
    that is all (-1: to the end).  grain: the blocks that edges come in, 1 for single pairs.
    mod: makes FlexAttention's mask function on a device.  pairs: counts them in each block of
    128 x 128, [patterns, lines, columns], where no layout in token order can hold them.
    """

    name: str
    n: int
    layer: Layer
    memory: int = 0
    bindings: dict[str, Any] = field(default_factory=dict)
    index: int = 0
    mod: MakeMod | None = None
    pairs: Callable[[], NDArray[np.int64]] | None = None
    band: tuple[int, int] | None = None
    grain: int = 1
    past_only: bool = False


def laid_out(mask: Mask, block: int | None = None, order: str | None = None) -> Layout:
    """The layout that `attention` would run, or one of a given block in a given order."""
    return compile(
        mask.layer,
        mask.n,
        q_offset=mask.memory,
        block=block,
        layer=mask.index,
        order=order,
        **mask.bindings,
    )


def gallery_masks(n: int) -> Iterator[Mask]:
    """Every distinct layer of every pattern file, at n tokens."""
    for path in sorted(gallery.folder().glob("*.yaml")):
        overrides, bindings = _sizes(path.stem, n)
        file = load(path, **overrides)
        yield from _layers(path.stem, n, file.stack, {**file.bindings, **bindings})


def _layers(name: str, n: int, stack: Stack, bindings: dict[str, Any]) -> Iterator[Mask]:
    """The layers of a stack that differ in more than a random draw."""
    seen: set[Layer] = set()
    for index, layer in enumerate(stack):
        if layer in seen:
            continue
        seen.add(layer)
        title = name if len(set(stack)) == 1 else f"{name}, layer {index}"
        named = names_in(patterns_of(layer))
        own = {k: v for k, v in bindings.items() if k in named}
        pairs = partial(routing_pairs, own["routing"]) if "routing" in own else None
        yield Mask(title, n, layer, stack.memory, own, index, pairs=pairs)


def _sizes(name: str, n: int) -> tuple[dict[str, object], dict[str, object]]:
    """Parameters and data that make a pattern file of a small example one of n tokens."""
    match name:
        case "neighbourhood-2d":
            return {"side": int(n**0.5)}, {}
        case "packed-documents":
            return {}, {"docs": document_lengths(n)}
        case "retrieval":  # chunks of a quarter of the text
            m, found = n // 4, 2 * 128
            each = [[c] * found for c in range(4)] + [[-1] * (m - 1)]
            each += [[c] * m for c in range(3)] + [[3]]
            return {"m": m}, {"chunk": [label for part in each for label in part]}
        case "routing":
            labels = np.random.default_rng(0).integers(0, 4, n)
            return {}, {"routing": labels}
        case _:
            return {}, {}


def document_lengths(n: int) -> list[int]:
    """Uneven lengths of packed documents that add up to n."""
    lengths = [n * share // 100 for share in SHARES]
    return [n - sum(lengths), *lengths]


def grid(n: int) -> Iterator[Mask]:
    """Common shapes at n tokens."""
    yield Mask("full", n, full(), mod=lambda _: _everything, band=(-1, -1))
    yield Mask("causal", n, causal(), mod=lambda _: _causal, band=(-1, 0), past_only=True)
    last = causal() & window(1023)
    yield Mask("window 1024", n, last, mod=lambda _: _window, band=(1023, 0), past_only=True)
    near = window(512, 512) | global_tokens(range(64))
    yield Mask("window 1025 + 64 globals", n, near, mod=lambda _: _window_globals)
    bird = window(1, 1, block=64) | global_tokens(range(64)) | random_blocks(3, block=64)
    yield Mask("BigBird", n, bird, mod=_table(bird, n, 64), grain=64)
    lengths = document_lengths(n)
    packed = causal() & documents(lengths)
    title = f"{len(lengths)} documents"
    yield Mask(title, n, packed, mod=_documents(lengths), past_only=True)
    for block in (64, 128):
        for density in DENSITIES:
            drawn = random_blocks(max(1, round(density * n / block)), block=block)
            title = f"{block}-blocks, {density:.4g}"
            yield Mask(title, n, drawn, mod=_table(drawn, n, block), grain=block)
    graph = neighbours(n, min(NEAREST, n - 1))
    yield Mask("nearest neighbours", n, edges(graph), mod=_listed(graph, n))


def irregular(n: int, density: float = 0.125) -> Mask:
    """Scattered 128-blocks, every other one with half of its pairs, drawn one by one.

    For lengths up to some 10,000: it lists the pairs.
    """
    rng = np.random.default_rng(0)
    side = n // 128
    held = rng.random((side, side)) < density / 2
    row, column = np.nonzero(held)
    inside = rng.random((len(row), 128, 128)) < 0.5
    tile, i, j = np.nonzero(inside)
    pairs = np.stack([row[tile] * 128 + i, column[tile] * 128 + j], axis=1).astype(np.int32)
    drawn = random_blocks(max(1, round(density / 2 * side)), block=128)
    mod = _listed(pairs, n, drawn)
    return Mask("half irregular 128-blocks", n, drawn | edges(pairs), mod=mod)


def _everything(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return j >= 0


def _causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return j <= i


def _window(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (j <= i) & (i - j < 1024)


def _window_globals(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return ((i - j <= 512) & (j - i <= 512)) | (i < 64) | (j < 64)


def _documents(lengths: list[int]) -> MakeMod:
    def make(device: Any) -> MaskMod:
        import torch

        size = torch.tensor(lengths, device=device)
        own = torch.repeat_interleave(torch.arange(len(lengths), device=device), size)

        def mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j <= i) & (own[i] == own[j])

        return mod

    return make


def routing_pairs(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs in each block of 128 x 128 of the gallery's routing, [2, lines, columns].

    Half the heads read a window of 32 tokens, the others the earlier tokens of their label.  Below
    the diagonal those of two blocks are the products of their histograms.
    """
    n = len(labels)
    starts = np.arange(0, n, 128)
    held = np.stack([np.add.reduceat(labels == x, starts, dtype=np.int64) for x in range(4)], 1)
    topic = np.tril(held @ held.T, -1)
    near = np.zeros_like(topic)
    for b, first in enumerate(starts.tolist()):
        i = np.arange(first, min(n, first + 128))[:, None]
        j = np.arange(max(0, first - 128), min(n, first + 128))
        own, seen = j >= first, (j <= i) & (i - j < 32)
        near[b, b], topic[b, b] = (
            seen[:, own].sum(),
            (own & (j <= i) & (labels[i] == labels[j])).sum(),
        )
        if b:
            near[b, b - 1] = seen[:, ~own].sum()
    return np.stack([near, topic])


def _table(layer: Layer, n: int, block: int) -> MakeMod:
    """For edges that fill blocks: one bool a block."""

    def make(device: Any) -> MaskMod:
        import torch

        blocks = torch.from_numpy(_corners(layer, n, block)).to(device)

        def mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            found: Tensor = blocks[i // block, j // block]
            return found

        return mod

    return make


def _corners(layer: Layer, n: int, block: int) -> NDArray[np.bool_]:
    """Which blocks are read."""
    layout = compile(layer, n, block=block, order="token")
    held = np.zeros((layout.lines, layout.columns), dtype=bool)
    for line in range(layout.lines):
        for first, count, _ in layout.rows.run[layout.rows.ptr[line] : layout.rows.ptr[line + 1]]:
            held[line, first : first + count] = True
    return held


def _listed(pairs: NDArray[np.int32], n: int, blocks: Layer | None = None) -> MakeMod:
    """For edges one by one, and 128-blocks beside them: one bool a pair."""

    def make(device: Any) -> MaskMod:
        import torch

        held = torch.zeros(n, n, dtype=torch.bool, device=device)
        if blocks is not None:
            drawn = torch.from_numpy(_corners(blocks, n, 128)).to(device)
            wide = drawn.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)
            held |= wide[:, :n]
        i, j = torch.from_numpy(pairs).to(device).long().unbind(1)
        held[i, j] = True

        def mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            found: Tensor = held[i, j]
            return found

        return mod

    return make
