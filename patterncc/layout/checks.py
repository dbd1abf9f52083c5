"""Whether a layout is sound: arrays in range, rows and columns the same tiles, counts that add up.

`check` runs on every layout file before anything uses it: a kernel follows the arrays blindly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.errors import LayoutError
from patterncc.layout import masks
from patterncc.layout.build import Grid, edges_of
from patterncc.layout.limits import MAX_LENGTH, SIDES, SLOTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout, Runs


def check(layout: Layout) -> None:
    """Raise a LayoutError that names the first thing wrong."""
    _sizes(layout)
    _shapes(layout)
    _heads(layout)
    _runs("row", layout.rows, layout.columns, layout)
    _runs("col", layout.cols, layout.lines, layout)
    _zones(layout)
    _bits(layout)
    _missing_keys(layout)
    if not np.array_equal(corners(layout.rows, layout), corners(layout.cols, layout, turned=True)):
        raise LayoutError("rows and columns do not hold the same tiles with the same mask words")
    grid = Grid(layout.n, layout.n_k, layout.block, layout.patterns)
    counted = edges_of(layout.rows, layout.zones, layout.bits, grid)
    if counted != layout.edges:
        raise LayoutError(f"edges says {layout.edges}, the tiles hold {counted}")


def corners(runs: Runs, layout: Layout, *, turned: bool = False) -> NDArray[np.int64]:
    """The corners of all regions of one mask word, [m, 2]: a key that names the place, and a value.

    Let W(row, column) be the mask word + 1 of a touched tile and 0 elsewhere.  The corners are
    where W(r, c) - W(r-1, c) - W(r, c-1) + W(r-1, c-1) is not 0.  They determine W, there are at
    most four a run, and they are the same whether W is given by rows or by columns: an exact
    comparison of both directions that never lists the tiles.
    """
    lines = layout.columns if turned else layout.lines
    line = np.repeat(np.arange(len(runs.ptr) - 1, dtype=np.int64), np.diff(runs.ptr))
    pattern, line = np.divmod(line, max(1, lines))
    first = runs.run[:, 0].astype(np.int64)
    weight = runs.run[:, 2].astype(np.int64) + 1
    keys, values = [], []
    for step in (0, 1):
        for place, sign in ((first, 1), (first + runs.run[:, 1], -1)):
            r, c = (place, line + step) if turned else (line + step, place)
            keys.append((pattern * (layout.lines + 1) + r) * (layout.columns + 1) + c)
            values.append(weight * (sign if step == 0 else -sign))
    key, value = np.concatenate(keys), np.concatenate(values)
    order = np.argsort(key, kind="stable")  # four sorted sequences, merged, in the rows
    key, value = key[order], value[order]
    start = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else key
    total = np.add.reduceat(value, start) if len(key) else value
    kept = total != 0
    return np.stack([key[start][kept], total[kept]], axis=1)


def _sizes(layout: Layout) -> None:
    for name, value, most in (
        ("n", layout.n, MAX_LENGTH),
        ("n_k", layout.n_k, MAX_LENGTH),
        ("q_offset", layout.q_offset, 2**40),
        ("k_offset", layout.k_offset, 2**40),
    ):
        if not 0 <= value <= most:
            raise LayoutError(f"{name} is {value}; it lies in 0 .. {most}")
    if len(layout.block) != 2 or any(side not in SIDES for side in layout.block):
        raise LayoutError(f"block is {layout.block}; both sides are one of {SIDES}")


def _shapes(layout: Layout) -> None:
    """Ranks and lengths; lines follow from the sizes."""
    grid = Grid(layout.n, layout.n_k, layout.block, layout.patterns)
    for name, runs, lines in (("row", layout.rows, grid.lines), ("col", layout.cols, grid.columns)):
        if runs.lines != lines:
            raise LayoutError(f"{name}s has {runs.lines} lines; the sizes make {lines}")
        _shape(f"{name}_ptr", runs.ptr, (grid.patterns * lines + 1,))
        _shape(f"{name}_run", runs.run, (None, 3))
    _shape("head_pattern", layout.head_pattern, (None,))
    _shape("zones", layout.zones, (None, SLOTS, 6))
    _shape("bits", layout.bits, (None, layout.block[0], -(-layout.block[1] // 32)))


def _shape(name: str, array: NDArray[np.generic], shape: tuple[int | None, ...]) -> None:
    matches = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not matches:
        wanted = " x ".join("any" if want is None else str(want) for want in shape)
        raise LayoutError(f"{name} has shape {list(array.shape)}; it should be {wanted}")


def _heads(layout: Layout) -> None:
    heads = layout.head_pattern
    if not layout.patterns or not len(heads):
        raise LayoutError("no head has a pattern")
    if heads.min() < 0 or heads.max() >= layout.patterns:
        raise LayoutError(
            f"head_pattern names pattern {int(heads.max())} or {int(heads.min())}, "
            f"there are {layout.patterns}"
        )


def _runs(name: str, runs: Runs, across: int, layout: Layout) -> None:
    """Pointers ascend and runs of a line are sorted, apart, inside the line, and of known words."""
    ptr, run = runs.ptr.astype(np.int64), runs.run.astype(np.int64)
    if ptr[0] != 0 or ptr[-1] != len(run) or (np.diff(ptr) < 0).any():
        raise LayoutError(f"{name}_ptr does not ascend from 0 to {len(run)}, the number of runs")
    first, last, word = run[:, 0], run[:, 0] + run[:, 1], run[:, 2]
    bad = np.flatnonzero((first < 0) | (run[:, 1] < 1) | (last > across))
    if len(bad):
        raise LayoutError(
            f"{name}_run {bad[0]} covers tiles {first[bad[0]]} .. {last[bad[0]] - 1}; "
            f"a line has {across} tiles"
        )
    line = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    bad = np.flatnonzero((line[1:] == line[:-1]) & (first[1:] < last[:-1]))
    if len(bad):
        raise LayoutError(f"{name}_run {bad[0]} and the next overlap or are not sorted")
    known = len(layout.zones) + len(layout.bits)
    bad = np.flatnonzero((word < 0) | (word > known))
    if len(bad):
        raise LayoutError(
            f"{name}_run {bad[0]} has mask word {word[bad[0]]}; there are {known} masks"
        )


def _zones(layout: Layout) -> None:
    """Tile-local bounds, tight, used slots first."""
    height, width = layout.block
    z = layout.zones.astype(np.int64)
    used: NDArray[np.bool_] = (z != 0).any(axis=2)
    low, high = z[..., 0::2], z[..., 1::2]
    inside = (low >= [0, 0, 1 - height]).all(axis=2) & (high <= [height, width, width]).all(axis=2)
    inside &= (low < high).all(axis=2)
    bad = np.flatnonzero((used & ~inside).any(axis=1) | ~used[:, 0])
    if not len(bad):
        zero = np.zeros(used.shape, dtype=np.int64)
        packed = masks.pack(tuple(np.moveaxis(z, -1, 0)), zero, zero, layout.block)
        loose = used & (masks.unpack(packed) != z).any(axis=2)
        bad = np.flatnonzero(loose.any(axis=1) | (used[:, 1:] & ~used[:, :-1]).any(axis=1))
    if len(bad):
        raise LayoutError(
            f"zones {bad[0]} is {layout.zones[bad[0]].tolist()}; bounds are tile-local and tight "
            f"for tiles of {height} x {width}, unused slots are zeros and come last"
        )


def _bits(layout: Layout) -> None:
    """Bits past the tile's last column are clear, and no mask is empty."""
    spare = layout.block[1] % 32
    if spare and (layout.bits >> np.uint32(spare)).any():
        raise LayoutError(f"bits has columns past {layout.block[1]}, the tile's width")
    empty = np.flatnonzero(~layout.bits.any(axis=(1, 2)))
    if len(empty):
        raise LayoutError(f"bits {empty[0]} holds no pair; such a tile is left out")


def _missing_keys(layout: Layout) -> None:
    """In a last tile column that is cut, no tile is full and no mask reads a missing key."""
    exist = layout.n_k % layout.block[1]
    if not exist:
        return
    run = layout.rows.run
    last = run[:, 0].astype(np.int64) + run[:, 1] == layout.columns
    at = np.arange(32 * layout.bits.shape[2], dtype=np.uint64).reshape(-1, 32)
    past = ((at >= exist) << (at % 32)).sum(axis=1).astype(np.uint32)
    drawn = (np.bitwise_or.reduce(layout.bits, axis=1) & past).any(axis=1)
    zones = layout.zones[..., 3].max(axis=1, initial=0) > exist
    reads = np.concatenate([[True], zones, drawn])  # a full tile reads all its columns
    bad = np.flatnonzero(last & reads[run[:, 2]])
    if len(bad):
        raise LayoutError(f"row_run {bad[0]} reads past key {layout.n_k - 1}, the last one")
