"""`Layout.at`: the same graph at another length.

Shorter is a cut of the arrays: the tile rows and columns that are left keep their runs, and only
the masks of the last tile row and the last tile column change.  A tile that was full and reaches
past the new last key gets a mask that leaves the missing keys out.  Nothing is lowered again, so a
layout from a file, and one of random edges drawn for its own length, are cut just the same.  Terms
in another order than that of tokens are laid out anew (`recut`).

Longer needs the pattern: the layout is compiled again as its `recipe` says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from patterncc.errors import LayoutError, PatternValueError
from patterncc.layout import masks
from patterncc.layout.budget import Budget
from patterncc.layout.build import Grid, edges_of
from patterncc.layout.layout import Layout, Recipe, Runs
from patterncc.layout.limits import MAX_LENGTH
from patterncc.layout.recut import recut
from patterncc.pattern import check_int
from patterncc.primitives import Expander
from patterncc.stack import patterns_of
from patterncc.zones.lower import leaves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I32 = NDArray[np.int32]
    I64 = NDArray[np.int64]

_QUERIES, _KEYS = 1, 2  # which ends cut a tile, added up: the class of the tile


@dataclass(frozen=True)
class _Cut:
    """The grid that is left, and how many queries and keys of a tile are left in each class."""

    grid: Grid

    @property
    def limits(self) -> tuple[I64, I64]:
        """Queries and keys that exist in a tile, by class: int64 [4] each."""
        height, width = self.grid.block
        queries, keys = self.grid.n % height or height, self.grid.n_k % width or width
        return np.array([height, queries] * 2), np.array([width, width, keys, keys])

    @property
    def T(self) -> _Cut:  # noqa: N802 - the name that matrices have
        """Queries and keys exchanged."""
        return _Cut(self.grid.T)


@dataclass(frozen=True)
class _Kept:
    """Runs of one direction with the line and the class of each, lines ascending."""

    line: I64
    kind: NDArray[np.uint8]
    run: I32


@dataclass(frozen=True)
class _Masks:
    """The tables of a cut layout; `word[class, old word]` is the new word, -1 for no pair left."""

    word: I32
    zones: I32
    bits: NDArray[np.uint32]


def at(layout: Layout, n: int, n_k: int | None = None) -> Layout:
    """The layout for the first n queries; see `Layout.at`."""
    n = check_int("layout.at", "n", n, 0, MAX_LENGTH)
    if n_k is None:
        n_k = keys_at(layout, n)
    n_k = check_int("layout.at", "n_k", n_k, 0, MAX_LENGTH)
    if (n, n_k) == (layout.n, layout.n_k):
        return layout
    if n > layout.n or n_k > layout.n_k:
        return _longer(layout, n, n_k)
    # in another order every later slot moves: tiles are laid out anew
    terms = [_shorter(t, n, n_k) if t.order is None else recut(t, n, n_k) for t in layout.terms]
    first, *rest = terms
    return replace(first, rest=tuple(t for t in rest if len(t.rows.run)), recipe=layout.recipe)


def keys_at(layout: Layout, n: int) -> int:
    """Keys beside n queries: up to the last query where the layout's end there, else its own.

    >>> from patterncc import compile, full
    >>> keys_at(compile(full(), 8, block=16), 5), keys_at(compile(full(), 8, 12, block=16), 5)
    (5, 12)
    """

    def usual(queries: int) -> int:
        return max(0, layout.q_offset + queries - layout.k_offset)

    return usual(n) if layout.n_k == usual(layout.n) else layout.n_k


def _shorter(layout: Layout, n: int, n_k: int) -> Layout:
    """One term in token order, cut to n x n_k."""
    grid = Grid(n, n_k, layout.block, layout.patterns)
    cut = _Cut(grid)
    rows, cols = _kept(layout.rows, cut), _kept(layout.cols, cut.T)
    # seen from the keys, the two ends of a class change places
    cols = replace(cols, kind=np.array([0, 2, 1, 3], dtype=np.uint8)[cols.kind])
    made = _masks(layout, rows, cut)
    row_runs = _joined(rows, made.word, grid)
    return replace(
        layout,
        n=n,
        n_k=n_k,
        rows=row_runs,
        cols=_joined(cols, made.word, grid.T),
        zones=made.zones,
        bits=made.bits,
        edges=edges_of(row_runs, made.zones, made.bits, grid),
        rest=(),
        recipe=None,
        positions=layout.positions and (layout.positions[0][:n], layout.positions[1][:n_k]),
    )


def _kept(runs: Runs, cut: _Cut) -> _Kept:
    """The runs inside the grid, cut at its last tile; the last tile stands alone where it is
    partly past the end."""
    grid = cut.grid
    lines, across = grid.lines, grid.columns
    starts = [runs.ptr[u * runs.lines :][: lines + 1] for u in range(grid.patterns)]
    run = np.concatenate([runs.run[p[0] : p[-1]] for p in starts])
    counts = np.concatenate([np.diff(p) for p in starts])
    line = np.repeat(np.arange(grid.patterns * lines, dtype=np.int64), counts)
    inside = run[:, 0] < across
    if not inside.all():
        run, line = run[inside], line[inside]
    run[:, 1] = np.minimum(run[:, 1], across - run[:, 0])
    if grid.n_k % grid.block[1]:
        several = (run[:, 0] + run[:, 1] == across) & (run[:, 1] > 1)
        run, line = np.repeat(run, 1 + several, axis=0), np.repeat(line, 1 + several)
        alone = np.flatnonzero(several) + np.cumsum(several)[several]
        run[alone - 1, 1] -= 1
        run[alone, :2] = across - 1, 1
    kind = np.zeros(len(run), dtype=np.uint8)
    if grid.n % grid.block[0]:
        kind[line % lines == lines - 1] |= _QUERIES
    if grid.n_k % grid.block[1]:
        kind[run[:, 0] == across - 1] |= _KEYS
    return _Kept(line, kind, run)


def _masks(layout: Layout, kept: _Kept, cut: _Cut) -> _Masks:
    """Each mask that is still used, cut as its tiles are, and the tables of what is left."""
    count = len(layout.zones)
    used = np.zeros((4, 1 + count + len(layout.bits)), dtype=bool)
    used[kept.kind, kept.run[:, 2]] = True
    code = np.zeros(used.shape, dtype=np.int32)  # a full tile without a missing key stays full
    used[:_KEYS, 0] = False
    kind, word = np.nonzero(used)
    drawn = word > count
    table = _Drawn.of(layout, kind[drawn], word[drawn] - count - 1, cut)
    some = _settled(layout, kind[~drawn], word[~drawn], cut)
    code[kind[~drawn], word[~drawn]] = some.word
    code[kind[drawn], word[drawn]] = np.where(
        table.word > 0, table.word + len(some.zones), table.word
    )
    return _Masks(code, some.zones, table.bits)


def _settled(layout: Layout, kind: NDArray[np.intp], word: NDArray[np.intp], cut: _Cut) -> _Masks:
    """Masks of zones cut to their classes and settled as a compilation settles its tiles; word 0
    stands for a full tile, here one that reaches past the last key."""
    height, width = layout.block
    whole = np.zeros((1, *layout.zones.shape[1:]), dtype=np.int32)
    whole[0, 0] = 0, height, 0, width, 1 - height, width
    queries, keys = (limit[kind] for limit in cut.limits)
    i0, i1, j0, j1, d0, d1 = np.moveaxis(np.concatenate([whole, layout.zones])[word], -1, 0)
    i1, j1 = np.minimum(i1, queries[:, None]), np.minimum(j1, keys[:, None])
    alive = (i0 < i1) & (j0 < j1) & (j0 - i1 + 1 < d1) & (j1 - 1 - i0 >= d0)
    zero = np.zeros(i0.shape, dtype=np.int64)
    packed = masks.pack((i0, i1, j0, j1, d0, d1), zero, zero, layout.block)
    # alone, one zone can fill what is left of a last tile row
    full = alive & (masks.areas(masks.unpack(packed)) == (queries * width)[:, None])
    some = alive.any(axis=1) & ~full.any(axis=1)
    left, owners = packed[some][alive[some]], np.count_nonzero(alive[some], axis=1)
    budget = Budget(cut.grid.n, cut.grid.n_k, layout.block)
    made = masks.settle(left, np.cumsum(owners) - owners, queries[some], budget)
    out = np.where(full.any(axis=1), 0, -1).astype(np.int32)
    out[some] = made.word
    return _Masks(out, made.zones, made.bits)


@dataclass(frozen=True)
class _Drawn:
    """Bit masks after a cut: the word of each, counted from 1, 0 for full and -1 for nothing."""

    word: I32
    bits: NDArray[np.uint32]

    @staticmethod
    def of(layout: Layout, kind: NDArray[np.intp], index: NDArray[np.intp], cut: _Cut) -> _Drawn:
        """Rows and columns past the ends cleared; equal masks stored once."""
        queries, keys = (limit[kind] for limit in cut.limits)
        bits = layout.bits[index]
        low = 32 * np.arange(bits.shape[2])
        left = np.clip(keys[:, None] - low, 0, 32).astype(np.uint64)
        columns = ((np.uint64(1) << left) - np.uint64(1)).astype(np.uint32)
        bits &= columns[:, None, :]
        bits[np.arange(layout.block[0]) >= queries[:, None]] = 0
        held = np.bitwise_count(bits).sum(axis=(1, 2), dtype=np.int64)
        seen: dict[bytes, int] = {}
        partial = (held > 0) & (held < queries * layout.block[1])
        word = np.where(held > 0, 0, -1).astype(np.int32)
        word[partial] = [seen.setdefault(b.tobytes(), len(seen) + 1) for b in bits[partial]]
        table = np.frombuffer(b"".join(seen), dtype=np.uint32).reshape(-1, *bits.shape[1:])
        return _Drawn(word, table.copy())


def _joined(kept: _Kept, words: I32, grid: Grid) -> Runs:
    """Runs with their new words, empty ones dropped, neighbours of one word joined."""
    word = words[kept.kind, kept.run[:, 2]]
    some = word >= 0
    line, run, word = kept.line[some], kept.run[some], word[some]
    run[:, 2] = word
    new = np.ones(len(run), dtype=bool)
    new[1:] = (line[1:] != line[:-1]) | (word[1:] != word[:-1])
    new[1:] |= run[1:, 0] != run[:-1, 0] + run[:-1, 1]
    head = np.flatnonzero(new)
    if len(head) < len(run):
        length = np.add.reduceat(run[:, 1], head)
        line, run = line[head], run[head]
        run[:, 1] = length
    ptr = np.zeros(grid.patterns * grid.lines + 1, dtype=np.int32)
    np.cumsum(np.bincount(line, minlength=len(ptr) - 1), out=ptr[1:])
    return Runs(grid.lines, ptr, run)


def _longer(layout: Layout, n: int, n_k: int) -> Layout:
    """The layout compiled anew for more tokens, where that is the same graph."""
    from patterncc.layout.compiler import compile

    recipe = layout.recipe
    asked = f"layout.at({n}): this layout of {layout.n} queries and {layout.n_k} keys cannot grow"
    if recipe is None:
        raise LayoutError(
            f"{asked}: it holds no pattern, as layouts from files and of batches do not; compile "
            f"the pattern for n={n}"
        )
    _check_draws(recipe, asked)
    if recipe.order is not None and not isinstance(recipe.order, str):
        raise PatternValueError(
            f"{asked}: its order is a permutation that was given for this length; compile for "
            f"n={n} with one of as many tokens, or without"
        )
    made = compile(
        recipe.source,
        n,
        n_k,
        layout.q_offset,
        layout.k_offset,
        layout.block if len(layout.terms) == 1 else recipe.block,
        layer=recipe.layer,
        order=recipe.order,
        max_tiles=recipe.max_tiles,
        max_bytes=recipe.max_bytes,
        target=recipe.target,
        **recipe.bindings,
    )
    assert isinstance(made, Layout)
    return replace(made, device=layout.device, recipe=recipe)


def _check_draws(recipe: Recipe, asked: str) -> None:
    """Refuse patterns whose edges among the first tokens change with the length."""
    source = recipe.source
    for p in patterns_of(source):
        for leaf in leaves(p):
            if getattr(leaf, "past", True) and not isinstance(leaf, Expander):
                continue
            known = "write it with past=True, or " if hasattr(leaf, "past") else ""
            raise PatternValueError(
                f"{asked}: the edges of {leaf} are drawn for one length, another length is another "
                f"graph; {known}compile once at the longest length and take slices of it"
            )
