"""Drawing masks: exact shares of edges on a grid of cells, as text, PNG or SVG.

A small mask is drawn pair by pair.  A large one is cut into cells, and the share of each cell's
pairs that are edges is counted from the zones, exactly; no matrix of the mask's size is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.errors import PatternValueError, SizeError
from patterncc.zones import algebra, sweep

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.zones.zoneset import Frame, ZoneSet

    F64 = NDArray[np.float64]

MOST_PIECES = 2**25  # (zone, cell) pairs that one drawing may look at
_CHUNK = 2**19
_SHADES = " ·░▒▓█"
_HALVES = " ▀▄█"


@dataclass(frozen=True)
class Panel:
    """One drawing and its words; `share`, float64 [rows, columns], is each cell's edges over pairs."""

    title: str
    frame: Frame
    edges: int
    share: F64

    @property
    def pairwise(self) -> bool:
        """Whether each cell is a single (query, key) pair."""
        return self.share.shape == (self.frame.n, self.frame.n_k)

    @property
    def caption(self) -> str:
        """Edges and density in words."""
        pairs = self.frame.n * self.frame.n_k
        density = self.edges / pairs if pairs else 0.0
        return f"{self.edges:,} edges, density {density:.3g}"


def panel(title: str, zones: ZoneSet, most: int) -> Panel:
    """A drawing of `zones` on at most `most` cells each way."""
    frame = zones.frame
    if not frame.n or not frame.n_k:
        raise PatternValueError(f"show: nothing to draw, {frame.n} queries and {frame.n_k} keys")
    longest = max(frame.n, frame.n_k)
    rows, columns = frame.n, frame.n_k
    if longest > most:
        rows = max(1, round(most * frame.n / longest))
        columns = max(1, round(most * frame.n_k / longest))
    counts = cell_counts(zones, rows, columns)
    i0, i1, j0, j1 = frame.box
    heights, widths = np.diff(_cuts(i0, i1, rows)), np.diff(_cuts(j0, j1, columns))
    share = counts / (heights[:, None].astype(np.float64) * widths)
    return Panel(title, frame, int(counts.sum()), share)


def cell_counts(zones: ZoneSet, rows: int, columns: int) -> NDArray[np.int64]:
    """Edges in each cell of a grid over the frame, exactly: int64 [rows, columns].

    Row r holds the queries from ``n * r // rows`` up to the next row's; columns likewise.

    >>> from patterncc import lower, causal
    >>> cell_counts(lower(causal(), 8), 2, 2).tolist()
    [[10, 0], [16, 10]]
    """
    i0, i1, j0, j1 = zones.frame.box
    if (i1 - i0) * (j1 - j0) >= 2**62:
        raise SizeError(f"show: {i1 - i0:,} x {j1 - j0:,} pairs; draw at most 2**31 tokens")
    across, down = _cuts(j0, j1, columns), _cuts(i0, i1, rows)
    table = sweep.disjoint(zones.table)
    total = np.zeros(rows * columns, dtype=np.int64)
    pieces = 0
    for start in range(0, len(table), _CHUNK):
        bands, row = _split(table[start : start + _CHUNK], 0, down)
        for part in range(0, len(bands), _CHUNK):
            some = bands[part : part + _CHUNK]
            cells, column, owner = _split_columns(some, across)
            pieces += len(cells)
            if pieces > MOST_PIECES:
                raise SizeError(
                    f"show: more than {MOST_PIECES:,} pieces to count; draw fewer cells (--cells)"
                )
            flat = row[part : part + _CHUNK][owner] * columns + column
            np.add.at(total, flat, algebra.areas(cells).astype(np.int64))
    return total.reshape(rows, columns)


def _cuts(first: int, last: int, parts: int) -> NDArray[np.int64]:
    """Where the cells begin: `parts` + 1 bounds from first to last."""
    return np.array([first + (last - first) * k // parts for k in range(parts + 1)], dtype=np.int64)


def _split(
    table: NDArray[np.int64], axis: int, cuts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Tight zones cut along queries (axis 0) or keys (axis 2), and the cell of each piece."""
    owner, cell = algebra.expand(
        np.searchsorted(cuts, table[:, axis], side="right") - 1,
        np.searchsorted(cuts, table[:, axis + 1], side="left"),
    )
    pieces = algebra.take(table, owner).copy(order="F")
    pieces[:, axis] = np.maximum(pieces[:, axis], cuts[cell])
    pieces[:, axis + 1] = np.minimum(pieces[:, axis + 1], cuts[cell + 1])
    # a tight zone has an edge in each of its queries and keys, so no piece is empty
    return algebra.tighten(pieces), cell


def _split_columns(
    table: NDArray[np.int64], cuts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.intp], NDArray[np.intp]]:
    """As `_split` along keys, with the index of the zone that each piece comes from."""
    pieces, column = _split(table, 2, cuts)
    counts = np.searchsorted(cuts, table[:, 3], side="left") - (
        np.searchsorted(cuts, table[:, 2], side="right") - 1
    )
    return pieces, column, np.repeat(np.arange(len(table)), counts)


def text(drawn: Panel) -> str:
    """The drawing in characters: half blocks for single pairs, shades of one character for cells.

    >>> from patterncc import lower, causal, window
    >>> print(text(panel("near", lower(causal() & window(2), 8), 64)))
    near: n 8, 21 edges, density 0.328
      key 0 .. 7
    0 █▄
      ▀▀█▄
        ▀▀█▄
    7     ▀▀█▄
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
        keys += f"; from {_SHADES[1]} (up to a quarter of a cell) to {_SHADES[-1]} (all of it)"
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
