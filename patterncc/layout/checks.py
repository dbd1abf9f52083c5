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

    U64 = NDArray[np.uint64]


def check(layout: Layout) -> None:
    """Raise a LayoutError that names the first thing wrong."""
    for number, term in enumerate(layout.terms):
        try:
            _check_term(term)
        except LayoutError as error:
            raise LayoutError(f"term {number}: {error}" if number else str(error)) from None
    _check_terms(layout)


def _check_term(layout: Layout) -> None:
    """One term by itself."""
    _sizes(layout)
    _shapes(layout)
    _heads(layout)
    _runs("row", layout.rows, layout.columns, layout)
    _runs("col", layout.cols, layout.lines, layout)
    _zones(layout)
    _bits(layout)
    _missing_keys(layout)
    if not agree(layout):
        raise LayoutError("rows and columns do not hold the same tiles with the same mask words")
    grid = Grid(layout.n, layout.n_k, layout.block, layout.patterns)
    counted = edges_of(layout.rows, layout.zones, layout.bits, grid)
    if counted != layout.edges:
        raise LayoutError(f"edges says {layout.edges}, the tiles hold {counted}")
    _order(layout)


def agree(layout: Layout) -> bool:
    """Whether rows and columns hold the same tiles with the same mask words.

    With numbers a, b, g drawn anew each time, the sum of a[row] b[column] g[word] over all touched
    tiles is the same both ways where the tiles are.  Where they are not, it is the same with odds
    below 2**-50, whoever made the layout.  A run is one term of the sum: no tile is listed.
    """
    draw = np.random.default_rng().integers  # seeded by the operating system
    rows, columns, words, patterns = (
        draw(2**64, size=count, dtype=np.uint64)
        for count in (
            layout.lines + 1,
            layout.columns + 1,
            1 + len(layout.zones) + len(layout.bits),
            layout.patterns,
        )
    )
    # differences of the numbers drawn: a run's tiles add up to the difference of two
    by_rows = _sum(layout.rows, np.multiply.outer(patterns, np.diff(rows)), columns, words)
    by_cols = _sum(layout.cols, np.multiply.outer(patterns, np.diff(columns)), rows, words)
    return by_rows == by_cols


def _sum(runs: Runs, lines: U64, ends: U64, words: U64) -> int:
    """The runs' sum of lines[its line] (ends[its end] - ends[its start]) words[its word]."""
    first, count, word = runs.run.T
    total = ends[first + count]
    total -= ends[first]
    total *= words[word]
    total *= np.repeat(lines.ravel(), np.diff(runs.ptr))
    return int(total.sum())


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
    if layout.sequences < 1 or len(heads) % layout.sequences:
        raise LayoutError(
            f"sequences is {layout.sequences}, head_pattern has {len(heads)} entries; each of the "
            "sequences has as many"
        )
    if not layout.patterns or not len(heads):
        raise LayoutError("no head has a pattern")
    if heads.min() < 0 or heads.max() >= layout.patterns:
        raise LayoutError(
            f"head_pattern names pattern {int(heads.max())} or {int(heads.min())}, "
            f"there are {layout.patterns}"
        )


def _runs(name: str, runs: Runs, across: int, layout: Layout) -> None:
    """Pointers ascend and runs of a line are sorted, apart, inside the line, and of known words."""
    ptr, run = runs.ptr, runs.run
    if ptr[0] != 0 or ptr[-1] != len(run) or (ptr[1:] < ptr[:-1]).any():
        raise LayoutError(f"{name}_ptr does not ascend from 0 to {len(run)}, the number of runs")
    first, word = run[:, 0], run[:, 2]
    last = first.astype(np.int64) + run[:, 1]
    bad = np.flatnonzero((first < 0) | (last <= first) | (last > across))
    if len(bad):
        raise LayoutError(
            f"{name}_run {bad[0]} covers tiles {first[bad[0]]} .. {last[bad[0]] - 1}; "
            f"a line has {across} tiles"
        )
    apart = first[1:] >= last[:-1]
    starts = ptr[1:-1]
    apart[starts[(starts > 0) & (starts < len(run))] - 1] = True  # the first run of a line
    bad = np.flatnonzero(~apart)
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


def _order(layout: Layout) -> None:
    """Each side of the order holds every token once."""
    if layout.order is None:
        return
    sides = ("queries", layout.order.queries, layout.n), ("keys", layout.order.keys, layout.n_k)
    for name, order, count in sides:
        _shape(f"order_{name}", order, (count,))
        if name == "keys" and order is layout.order.queries:
            continue
        if count and (order.min() < 0 or order.max() >= count):
            raise LayoutError(f"order_{name} names a token outside 0 .. {count - 1}")
        held = np.zeros(count, dtype=bool)
        held[order] = True
        if not held.all():
            raise LayoutError(
                f"order_{name} is no permutation of 0 .. {count - 1}: {int(np.argmin(held))} is "
                "missing"
            )


def _check_terms(layout: Layout) -> None:
    """Terms are of one frame and the same heads, and do not hold more pairs than there are.

    That no pair stands in two terms is not checked, only what follows from it: to list the pairs of
    different orders would cost more than attention over them.
    """
    for number, term in enumerate(layout.rest, start=1):
        if term.rest:
            raise LayoutError(f"term {number} has a rest of its own")
        for name in ("n", "n_k", "q_offset", "k_offset", "sequences"):
            if getattr(term, name) != getattr(layout, name):
                raise LayoutError(
                    f"term {number} has {name} {getattr(term, name)}, term 0 has "
                    f"{getattr(layout, name)}"
                )
        if len(term.head_pattern) != len(layout.head_pattern):
            raise LayoutError(
                f"term {number} is for {len(term.head_pattern)} heads, term 0 for "
                f"{len(layout.head_pattern)}"
            )
    pairs = layout.n * layout.n_k
    heads = [t.head_pattern.tolist() for t in layout.terms] if layout.rest else []
    for head in zip(*heads, strict=True):
        held = sum(t.edges[u] for t, u in zip(layout.terms, head, strict=True))
        if held > pairs:
            raise LayoutError(f"the terms hold {held} pairs of a head, there are {pairs}")
