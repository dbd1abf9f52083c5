"""Reading a layout back: the dense mask that it stands for, and its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.errors import SizeError
from patterncc.layout import masks
from patterncc.layout.limits import DENSE_LIMIT
from patterncc.layout.runs import spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout, Runs

_LINES = 24  # lines of runs and of masks that a text shows


def dense(layout: Layout, *, columns: bool = False) -> NDArray[np.bool_]:
    """The mask that the rows hold, or the columns (the same one, laid out for backward)."""
    entries = layout.n * layout.n_k * len(layout.head_pattern)
    if entries > DENSE_LIMIT:
        raise SizeError(
            f"dense() of {len(layout.head_pattern)} x {layout.n} x {layout.n_k} passes "
            f"{DENSE_LIMIT} entries; read layout.rows.run instead"
        )
    height, width = layout.block
    lines, across = layout.lines, layout.columns
    tiles = np.zeros((layout.patterns, lines, across, height, width), dtype=bool)
    for line, position, word in _spread_parts(layout.cols if columns else layout.rows):
        if columns:
            pattern, column = np.divmod(line, max(1, across))
            row = position
        else:
            pattern, row = np.divmod(line, max(1, lines))
            column = position
        tiles[pattern, row, column] = _masks_of(layout, word)
    whole = tiles.transpose(0, 1, 3, 2, 4).reshape(layout.patterns, lines * height, across * width)
    each = whole[:, : layout.n, : layout.n_k]
    return each[0].copy() if layout.heads is None else each[layout.head_pattern]


def _spread_parts(
    runs: Runs, step: int = 4096
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]]:
    line, position, word = spread(runs)
    for first in range(0, len(line), step):
        part = slice(first, first + step)
        yield line[part], position[part], word[part]


def _masks_of(layout: Layout, word: NDArray[np.int32]) -> NDArray[np.bool_]:
    """The masks of words, bool [m, block[0], block[1]]."""
    height, width = layout.block
    out = np.ones((len(word), height, width), dtype=bool)
    zones = np.flatnonzero((word > 0) & (word <= len(layout.zones)))
    drawn = np.flatnonzero(word > len(layout.zones))
    bits = [
        masks.raster(layout.zones[word[zones] - 1], layout.block),
        layout.bits[word[drawn] - 1 - len(layout.zones)],
    ]
    for where, packed in zip((zones, drawn), bits, strict=True):
        little = np.ascontiguousarray(packed.astype("<u4")).view(np.uint8)
        out[where] = np.unpackbits(little, axis=-1, bitorder="little")[..., :width].astype(bool)
    return out


def text(layout: Layout) -> str:
    """A stable text of a layout: sizes, counts, the first runs and masks."""
    height, width = layout.block
    counts = f"{layout.full_tiles} full tiles, {layout.partial_tiles} partial"
    lines = [
        f"Layout of {layout.pattern or 'zones'}",
        f"  {layout.n} queries at {layout.q_offset}, {layout.n_k} keys at {layout.k_offset}, "
        f"tiles of {height} x {width}",
        f"  edges {', '.join(map(str, layout.edges))}, density {layout.density:.4g}, "
        f"tile density {layout.tile_density:.4g}: {counts}",
        f"  masks {len(layout.zones)} of zones, {len(layout.bits)} of bits",
    ]
    if layout.heads is not None:
        lines.append(f"  heads {' '.join(map(str, layout.head_pattern.tolist()))}")
    lines += _shown(list(_run_lines(layout)), layout.lines * layout.patterns, "rows")
    lines += _shown(list(_mask_lines(layout)), len(layout.zones), "masks of zones")
    return "\n".join(lines)


def _shown(shown: list[str], total: int, what: str) -> list[str]:
    more = total - len(shown)
    return [f"  {line}" for line in shown] + ([f"  ... {more} more {what}"] if more > 0 else [])


def _run_lines(layout: Layout) -> Iterator[str]:
    for line in range(min(_LINES, layout.lines * layout.patterns)):
        pattern, row = divmod(line, layout.lines)
        runs = layout.rows.run[layout.rows.ptr[line] : layout.rows.ptr[line + 1]].tolist()
        name = f"pattern {pattern} row {row}" if layout.patterns > 1 else f"row {row}"
        parts = [_run_text(layout, *run) for run in runs[:8]]
        parts += [f"... {len(runs) - 8} more runs"] if len(runs) > 8 else []
        yield f"{name}: {', '.join(parts) or 'nothing'}"


def _run_text(layout: Layout, first: int, count: int, word: int) -> str:
    place = f"{first}" if count == 1 else f"{first}..{first + count - 1}"
    if word == 0:
        return f"{place} full"
    if word <= len(layout.zones):
        return f"{place} mask {word}"
    return f"{place} bits {word}"


def _mask_lines(layout: Layout) -> Iterator[str]:
    for number, zones in enumerate(layout.zones[:_LINES].tolist(), start=1):
        parts = [
            f"i [{i0}, {i1}) j [{j0}, {j1}) j-i [{d0}, {d1})"
            for i0, i1, j0, j1, d0, d1 in zones
            if i1
        ]
        yield f"mask {number}: {' | '.join(parts)}"
