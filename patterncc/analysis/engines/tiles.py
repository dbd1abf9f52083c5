"""The tiles engine: reach as Boolean products of bit rows on square tiles.

The identity is kept apart, because it is not tile-aligned.  Three matrices follow S (reach without
the identity) from below and above:

    any    tiles that S may touch: an upper bound
    full   tiles that S surely fills: a lower bound
    cols   tiles in which every key is surely reached (the identity counted): it feeds `full`

S grows by one layer A as   any |= any(A) @ (any | I)
                            full |= full(A) @ cols  |  rows(A) @ full
                            cols |= cols(A) @ cols  |  full
where the right-hand sides of the products are those of the layer whose keys and values A reads.
Where every edge set fills the tiles that it touches, any and full are the same matrix and reach is
exact; a side of 1 always is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.curve import Curve, Depth, Figure
from patterncc.analysis.engines import bits, coarse
from patterncc.analysis.engines.symbolic import State
from patterncc.analysis.engines.zones import reached
from patterncc.analysis.topology import Pairs, Topology
from patterncc.errors import SizeError
from patterncc.stack import patterns_of
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import clip, tighten
from patterncc.zones.lower import leaves

if TYPE_CHECKING:
    from patterncc.analysis.engines.bits import Bits
    from patterncc.analysis.engines.coarse import I64, Counts

TOKEN_GRAIN = 4096  # positions up to which tiles of side 1 cost next to nothing
MOST_ROWS = 16384  # tile rows that are affordable: 32 MiB a matrix
BOUND_ROWS = 4096  # the same for bounds, which take four products a layer
FEW_PARTIAL = 4  # partial tiles a tile row that spoil no bound (a diagonal, an edge or two)
SEARCH_WORDS = 2**32  # 64-bit words that the search past the given depth may touch


@dataclass(frozen=True, eq=False)
class Known:
    """Pairs of T surely reached in single tiles, counted exactly; tiles in order, each once."""

    row: I64
    col: I64
    count: Counts

    @staticmethod
    def largest(size: int, parts: Sequence[Known | coarse.TileCounts]) -> Known:
        """The largest count that any part gives a tile: each alone is a lower bound."""
        row = np.concatenate([part.row for part in parts])
        col = np.concatenate([part.col for part in parts])
        count = np.concatenate([part.count for part in parts])
        order = np.lexsort((count, row * size + col))
        row, col, count = row[order], col[order], count[order]
        last = np.append((np.diff(row) != 0) | (np.diff(col) != 0), True)[: len(row)]
        return Known(row[last], col[last], count[last])


@dataclass(frozen=True, eq=False)
class Bounds:
    """S between two tile matrices; in an exact run the three are one."""

    any: Bits
    full: Bits
    cols: Bits
    known: Known

    def same(self, other: Bounds) -> bool:
        """Nothing was added."""
        return (
            np.array_equal(self.any, other.any)
            and np.array_equal(self.full, other.full)
            and np.array_equal(self.cols, other.cols)
        )


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the engine: its tiles, the layers through them, and what to count with."""

    t: Topology
    pairs: Pairs
    side: int
    levels: tuple[coarse.Coarse, ...]
    allowed: coarse.TileCounts
    whole: Bits
    known: tuple[Known, ...]
    exact: bool

    @property
    def size(self) -> int:
        """Tile rows, which are tile columns."""
        return -(-self.t.frame.n // self.side)

    @property
    def words(self) -> float:
        """64-bit words that one layer touches."""
        runs = max(len(c.any.row) for c in self.levels) / max(1, self.size)
        matrix = self.size * -(-self.size // 64)
        steps = max(1, math.ceil(math.log2(self.size + 1)))
        return matrix * (2 * steps + 3 * runs) * (1 if self.exact else 4)


def follow(
    run: Run,
    depth: int,
    states: Sequence[State[ZoneSet]],
) -> Curve:
    """The reach curve from the last exact state on, and the depth to full as far as bounds decide
    it.

    `states` are R_0, R_1, ... as the zones engine found them; they stay the figures of their
    layers.
    """
    t, pairs = run.t, run.pairs
    figures = [Figure.of(s.count, s.count, pairs.count, "zones") for s in states]
    begin = len(states) - 1
    keep = t.settled - t.period + 1  # the states that a layer may read
    recent = [_start(run, s.value) for s in states[-keep:]]
    search = _Search(pairs.count, begin)
    for l, figure in enumerate(figures):
        search.see(l, figure)
    index, still, budget, latest = begin, 0, _affordable(run), figures[-1]
    while index < depth or (not search.complete and still < t.settled and index < depth + budget):
        if not search.complete and still < t.settled:
            source = recent[t.source(index) - index - 1]
            new = _step(run, recent[-1], source, index % len(run.levels))
            still = still + 1 if new.same(recent[-1]) else 0
            recent = [*recent, new][-keep:]
            latest = Figure.of(*_count(run, new), pairs.count, "tiles")
        index += 1
        search.see(index, latest)
        if index <= depth:
            figures.append(latest)
    note = f"tiles of {run.side} x {run.side} from layer {begin + 1} on" + (
        ": every edge set fills its tiles, so the figures are exact"
        if run.exact
        else ": certified bounds, which meet where a figure is exact"
    )
    fixed = still >= t.settled
    return _finish(run, recent[-1], tuple(figures[: depth + 1]), search, fixed, (note,))


def _finish(
    run: Run,
    state: Bounds,
    figures: tuple[Figure, ...],
    search: _Search,
    fixed: bool,
    notes: tuple[str, ...],
) -> Curve:
    never = fixed and search.maybe is None
    if never:
        depth = Depth(search.seen + 1, None, True, search.seen)
        return Curve(figures, depth, _unreached(run, state), notes)
    least = search.maybe if search.maybe is not None else search.seen + 1
    return Curve(figures, Depth(least, search.surely, False, search.seen), None, notes)


class _Search:
    """Where the bounds first allow "full", and where they first prove it."""

    def __init__(self, total: int, begin: int) -> None:
        self.total, self.seen = total, begin
        self.maybe: int | None = None
        self.surely: int | None = None

    def see(self, layer: int, figure: Figure) -> None:
        """Take in the figure of one layer, in order."""
        self.seen = layer
        if self.maybe is None and figure.hi == self.total:
            self.maybe = layer
        if self.surely is None and figure.lo == self.total:
            self.surely = layer

    @property
    def complete(self) -> bool:
        """Proved to be full: no later layer adds anything."""
        return self.surely is not None


def only_boxes(t: Topology) -> bool:
    """No zone of any layer is cut by a diagonal: only then can edges fill the tiles they touch."""
    for level in t.levels:
        i0, i1, j0, j1, d0, d1 = level.zones.table.T
        if ((d0 > j0 - i1 + 1) | (d1 < j1 - i0)).any():
            return False
    return True


def prepare(
    t: Topology, pairs: Pairs, states: Sequence[State[ZoneSet]], side: int | None = None
) -> Run:
    """Coarsen every layer, at the given side or at the best one that is affordable, to go on from
    the last of `states`."""
    so_far = states[-1].value
    sides = _sides(t, so_far) if side is None else [side]
    side, seen = _coarsened(t, so_far, sides, coarser=side is None)
    exact = all(c.exact for c in seen.values()) and coarse.coarsen(so_far, side).exact
    allowed = coarse.tile_counts(pairs.zones.disjoint(), side)
    edges = {id(v): _known(t, pairs, side, [] if exact else [v.zones]) for v in t.levels}
    return Run(
        t,
        pairs,
        side,
        tuple(seen[id(level)] for level in t.levels),
        allowed,
        allowed.whole.bits(),
        tuple(edges[id(level)] for level in t.levels),
        exact,
    )


def _coarsened(
    t: Topology, so_far: ZoneSet, sides: Sequence[int], *, coarser: bool
) -> tuple[int, dict[int, coarse.Coarse]]:
    """The first side at which most touched tiles are full, else the last that fits; and the layers
    in it.  With `coarser`, where none fits the last side is doubled until one does.

    Raises SizeError where no side fits.
    """
    levels = {id(level): level.zones for level in t.levels}
    tried, best, refused = list(sides), None, None
    for side in tried:
        try:
            seen = {key: coarse.coarsen(zones, side) for key, zones in levels.items()}
            coarse.coarsen(so_far, side)
        except SizeError as error:
            refused = error
        else:
            best = side, seen
            if all(c.partial <= FEW_PARTIAL * c.any.size for c in seen.values()):
                break
        if coarser and best is None and side == tried[-1] and side < t.frame.n:
            tried.append(2 * side)
    if best is None:
        assert refused is not None
        raise refused
    return best


def _known(t: Topology, pairs: Pairs, side: int, parts: Sequence[ZoneSet]) -> Known:
    """What the identity and some edge sets alone reach of T."""
    found = [coarse.tile_counts(t.identity, side)]
    for zones in parts:
        try:
            found.append(coarse.tile_counts(reached(t, pairs, zones).disjoint(), side))
        except SizeError:
            continue  # too many partial tiles to count: the bound is only weaker
    return Known.largest(-(-t.frame.n // side), found)


def _start(run: Run, so_far: ZoneSet) -> Bounds:
    touched = coarse.coarsen(so_far, run.side).any.bits()
    known = _known(run.t, run.pairs, run.side, [] if run.exact else [so_far])
    if run.exact:
        return Bounds(touched, touched, touched, known)
    seen = coarse.coarsen(so_far | run.t.identity, run.side)
    full = seen.full.bits()
    return Bounds(touched, full, seen.cols.bits() | full, known)


def _step(run: Run, state: Bounds, source: Bounds, index: int) -> Bounds:
    layer = run.levels[index]
    touched = state.any | bits.product(layer.any, source.any | bits.eye(run.size))
    if run.exact:
        return Bounds(touched, touched, touched, state.known)
    full = state.full | bits.product(layer.full, source.cols)
    full |= bits.product(layer.rows, source.full)
    cols = full | state.cols | bits.product(layer.cols, source.cols)
    return Bounds(touched, full, cols, Known.largest(run.size, [state.known, run.known[index]]))


def _count(run: Run, state: Bounds) -> tuple[int, int]:
    """The least and the most pairs of T that are reached, the identity counted."""
    lowest = _weigh(run, state.full)
    rest = ~bits.picked(state.full, state.known.row, state.known.col)
    lowest += _sum(state.known.count[rest])
    tiles, tokens = _diagonal(run)
    bare = ~bits.picked(state.any, tiles, tiles)
    highest = _weigh(run, state.any) + _sum(tokens[bare])
    if run.exact:
        lowest = highest
    return min(lowest, run.pairs.count), min(highest, run.pairs.count)


def _weigh(run: Run, tiles: Bits) -> int:
    """Pairs of T inside a set of tiles."""
    counted = bits.picked(tiles, run.allowed.row, run.allowed.col)
    return run.side**2 * bits.total(tiles & run.whole) + _sum(run.allowed.count[counted])


def _sum(counts: Counts) -> int:
    if len(counts) and int(counts.max()) * len(counts) >= 2**62:
        return sum(int(x) for x in counts.tolist())
    return int(counts.sum())


def _diagonal(run: Run) -> tuple[I64, I64]:
    """Diagonal tiles, and how many queries each holds."""
    tiles = np.arange(run.size, dtype=np.int64)
    first = np.maximum(tiles * run.side, run.t.memory)
    last = np.minimum((tiles + 1) * run.side, run.t.frame.n)
    return tiles, np.maximum(last - first, 0)


def _unreached(run: Run, state: Bounds) -> tuple[int, int] | None:
    """A pair of T in a tile that nothing touches (the identity left out)."""
    missing = run.whole & ~state.any & ~bits.eye(run.size)
    rows, words = np.nonzero(missing)
    if len(rows):
        word = int(missing[rows[0], words[0]])
        column = 64 * int(words[0]) + (word & -word).bit_length() - 1
        return int(rows[0]) * run.side, column * run.side
    bare = ~bits.picked(state.any, run.allowed.row, run.allowed.col)
    for a, c in zip(run.allowed.row[bare].tolist(), run.allowed.col[bare].tolist(), strict=True):
        box = (a * run.side, (a + 1) * run.side, c * run.side, (c + 1) * run.side)
        inside = ZoneSet(run.t.frame, tighten(clip(run.pairs.zones.table, box))) - run.t.identity
        if len(inside):
            i0, _, j0, _, d0, _ = inside.table[0].tolist()
            return i0, max(j0, i0 + d0)
    return None


def _affordable(run: Run) -> int:
    """Layers that the search past the given depth may try."""
    return max(1, min(4096, int(SEARCH_WORDS / max(1.0, run.words))))


def _sides(t: Topology, so_far: ZoneSet) -> list[int]:
    """Sides to try: 1 where it costs little; else the patterns' own block, times a power of two;
    last 1 where it is affordable, or a power of two that makes few enough tile rows."""
    n = t.frame.n
    if n <= TOKEN_GRAIN:
        return [1]
    last = 1
    while n > MOST_ROWS and -(-n // last) > BOUND_ROWS:
        last *= 2
    block = _own_block(t, so_far)
    if block == 1:
        return [last]
    while -(-n // block) > MOST_ROWS:
        block *= 2
    return [block, last]


def _own_block(t: Topology, so_far: ZoneSet) -> int:
    """The greatest common divisor of the block sizes in the patterns, or where they name none, of
    the positions at which boxes begin and end."""
    sizes = [
        int(block)
        for patterns in map(patterns_of, t.stack.layers)
        for pattern in patterns
        for node in leaves(pattern)
        if (block := getattr(node, "block", 1)) > 1
    ]
    if sizes:
        return math.gcd(*sizes)
    corners = np.concatenate(
        [z.table[:, :4].ravel() for z in (so_far, *(v.zones for v in t.levels))]
    )
    return int(np.gcd.reduce(corners[corners != t.frame.n])) or 1
