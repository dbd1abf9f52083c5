"""Masks in characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.show.cells import F64, Panel

_SHADES = " ·░▒▓█"
_HALVES = " ▀▄█"


def text(drawn: Panel) -> str:
    """The drawing in characters: half blocks for single pairs, shades of one character for cells.

    >>> from patterncc import Stack, causal, window
    >>> from patterncc.show import masks, panel
    >>> print(text(panel(masks(Stack([causal() & window(2)]), 8)[0], 64)))
    layer 0: n 8, 21 edges, density 0.328
      key 0 .. 7
    0 █▄
      ▀██▄
        ▀██▄
    7     ▀██▄
    """
    frame = drawn.frame
    lines = _half_blocks(drawn.share > 0) if drawn.pairwise else _shaded(drawn.share)
    last = frame.q_offset + frame.n - 1
    labels = [str(frame.q_offset), *[""] * (len(lines) - 2), str(last)][: len(lines)]
    width = max(map(len, labels))
    size = f"n {frame.n:,}" + (f" x {frame.n_k:,} keys" if frame.n_k != frame.n else "")
    head = f"{drawn.title}: {size}, {drawn.caption}"
    keys = f"{'':>{width}} key {frame.k_offset} .. {frame.k_offset + frame.n_k - 1}"
    if not drawn.pairwise:
        keys += f"; {_SHADES[1]} up to a quarter of a cell, {_SHADES[-1]} all of it"
    body = [f"{label:>{width}} {line}".rstrip() for label, line in zip(labels, lines, strict=True)]
    return "\n".join([head, keys, *body])


def _half_blocks(mask: NDArray[np.bool_]) -> list[str]:
    """Two rows of pairs in one line of characters."""
    if len(mask) % 2:
        mask = np.concatenate([mask, np.zeros_like(mask[:1])])
    codes = mask[0::2].astype(int) + 2 * mask[1::2]
    return ["".join(_HALVES[c] for c in line) for line in codes.tolist()]


def _shaded(share: F64) -> list[str]:
    """Cells as shades, two characters wide so that they come out square; any edge shows."""
    levels = np.where(share >= 1, len(_SHADES) - 1, np.ceil(share * (len(_SHADES) - 2)))
    return ["".join(2 * _SHADES[c] for c in line) for line in levels.astype(int).tolist()]
