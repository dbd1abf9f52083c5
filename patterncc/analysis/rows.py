"""The rows engine: which positions each source reaches, token by token, 64 sources a word.

A source is a key j that spreads: R_l[:, j] is one bit column, and a layer ORs, into every position,
the bits of the keys that it reads (columns.py). Columns do not know of one another. All of them,
strip by strip, give every count exactly without ever holding a matrix; a sample of them gives an
estimate with its interval (sample.py), and proofs: a source that is not full at depth l shows that
the stack is not, one that stands still short of T shows that it never is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis import columns, sample
from patterncc.analysis.curve import Curve, Depth, Figure
from patterncc.analysis.symbolic import State
from patterncc.analysis.topology import Pairs, Topology
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import expand, refuse_above, take

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Bits = NDArray[np.uint64]

STRIP_WORDS = 2**17  # words of a state: 1 MiB, so that gathers find it in cache
MOST_STATE = 2**24  # words that one state may hold: 128 MiB
MOST_WORK = 2**42  # words that the asked layers may touch
SEARCH_WORDS = 2**34  # the same for the search past the asked depth
THREADS = min(8, os.cpu_count() or 1)
_ONES = np.uint64(2**64 - 1)

Map = Callable[[Callable[[tuple[int, int]], int], Iterable[tuple[int, int]]], Iterable[int]]


@dataclass(frozen=True, eq=False)
class Run:
    """One run: the layers made ready, T by source, and how far the search may go."""

    t: Topology
    pairs: Pairs
    depth: int
    furthest: int
    layers: tuple[columns.Operator, ...]
    weights: I64  # allowed pairs of each key
    apart: bool  # reach may leave T: it is met with it before it is counted


@dataclass(frozen=True, eq=False)
class Strip:
    """What some sources reach: pairs of T after 0, 1, ... layers, until nothing changes any more.

    `each[l]` says it source by source, in sampled runs.
    """

    allowed: int
    counts: tuple[int, ...]
    each: tuple[I64, ...]
    still: bool
    missing: tuple[int, int] | None

    @property
    def full(self) -> bool:
        """The last count is all of T that these sources have."""
        return self.counts[-1] == self.allowed

    def at(self, depth: int) -> int:
        """The count after `depth` layers; none is left out before nothing changes any more."""
        return self.counts[min(depth, len(self.counts) - 1)]


def work(t: Topology, depth: int, sources: int | None) -> float:
    """Words that `depth` layers of a run would touch, about 0.3 ns each in cache."""
    return depth * _layer_words(t.frame.n, _operators(t), sources)


def follow(
    t: Topology,
    pairs: Pairs,
    depth: int,
    *,
    sources: int | None = None,
    seed: int = 0,
    states: Sequence[State[ZoneSet]] = (),
) -> Curve:
    """The reach curve from all sources, exact, or from `sources` of them, estimated.

    Estimates hold with 95% each.  `states` are R_0, R_1, ... where another engine has found them
    exactly: they stay the figures of their layers. The depth to full is looked for past `depth`
    for as many layers as SEARCH_WORDS pay for; a sample never says that reach is full.

    Raises SizeError where the length or the asked layers are too much.
    """
    run = _prepare(t, pairs, depth, sources)
    able = np.flatnonzero(run.weights)
    if sources is None or sources >= len(able):
        return _exact(run, able, states)
    return _sampled(run, sample.draw(run.weights, sources, seed), states)


def _prepare(t: Topology, pairs: Pairs, depth: int, sources: int | None) -> Run:
    n = t.frame.n
    refuse_above(n, "positions of bit columns", MOST_STATE)
    layers = _operators(t)
    words = _layer_words(n, layers, sources)
    refuse_above(int(depth * words), "words to touch by the rows engine", MOST_WORK)
    search = max(1, min(4096, int(SEARCH_WORDS / max(1.0, words))))
    apart = not pairs.closed
    return Run(t, pairs, depth, depth + search, layers, key_pairs(pairs), apart)


def _operators(t: Topology) -> tuple[columns.Operator, ...]:
    made: dict[int, columns.Operator] = {}
    for level in t.levels:
        if id(level) not in made:
            made[id(level)] = columns.operator(level.zones.table, t.frame.n)
    return tuple(made[id(level)] for level in t.levels)


def _layer_words(n: int, layers: tuple[columns.Operator, ...], sources: int | None) -> float:
    words = -(-(n if sources is None else min(n, sources)) // 64)
    return n * words * (2 + sum(op.passes for op in layers) / len(layers))


def key_pairs(pairs: Pairs) -> I64:
    """How many pairs of T each key is in."""
    n = pairs.zones.frame.n
    out = np.zeros(n, dtype=np.int64)
    table = pairs.zones.disjoint().T.table
    wide = table[:, 1] - table[:, 0] >= 64
    for a, b, x0, x1, low, high in table[wide].tolist():
        at = np.arange(a, b)
        out[a:b] += np.minimum(x1, at + high) - np.maximum(x0, at + low)
    rest = take(table, ~wide)
    zone, at = expand(rest[:, 0], rest[:, 1])
    size = np.minimum(rest[zone, 3], at + rest[zone, 5]) - np.maximum(
        rest[zone, 2], at + rest[zone, 4]
    )
    np.add.at(out, at, size)
    return out


def _exact(run: Run, able: I64, states: Sequence[State[ZoneSet]]) -> Curve:
    """Every source, in strips of columns, strips in threads."""
    n, total = run.t.frame.n, run.pairs.count
    wide = 64 * max(1, min(STRIP_WORDS // max(1, n), -(-len(able) // 64)))
    parts = [able[a : a + wide] for a in range(0, len(able), wide)]
    open_at: list[int] = []  # a strip that is not full: the others need not look past the depth

    def one(sources: I64) -> Strip:
        strip = _strip(run, sources, run.depth if open_at else run.furthest, map, False)
        if not strip.full:
            open_at.append(1)
        return strip

    with ThreadPoolExecutor(THREADS) as pool:
        strips = list(pool.map(one, parts))
    counts = [sum(strip.at(l) for strip in strips) for l in range(run.depth + 1)]
    known = [state.count for state in states[: run.depth + 1]]
    assert known == counts[: len(known)]
    figures = [Figure.of(count, count, total, "zones") for count in known]
    figures += [Figure.of(count, count, total, "rows") for count in counts[len(known) :]]
    return _concluded(run, tuple(figures), strips, certain=True)


def _sampled(run: Run, draw: sample.Draw, states: Sequence[State[ZoneSet]]) -> Curve:
    """Some sources in one strip, blocks of rows in threads."""
    total = run.pairs.count
    sources, column = np.unique(draw.sources, return_inverse=True)
    with ThreadPoolExecutor(THREADS) as pool:
        strip = _strip(run, sources, run.furthest, pool.map, True)
    known = [state.count for state in states[: run.depth + 1]] or [run.t.n]
    figures = [Figure.of(count, count, total, "zones" if states else "rows") for count in known]
    weights = run.weights[sources]
    # of the sources that were not drawn, each query surely reaches itself
    others = run.t.n - int((sources >= run.t.memory).sum())
    for l in range(len(known), run.depth + 1):
        if l >= len(strip.each) and l > len(known):
            figures.append(figures[-1])
            continue
        reached = strip.each[min(l, len(strip.each) - 1)]
        shares = (reached / weights)[column]
        low, high = sample.interval(shares, draw.population)
        certain = int(reached.sum())
        lowest, highest = certain + others, total - (strip.allowed - certain)
        lo, hi = int(low * total), -int(-high * total // 1)
        if lo > highest or hi < lowest:  # the one sample in twenty that misleads
            lo, hi = lowest, highest
        lo, hi = max(lo, lowest), min(hi, highest)
        share = float(shares.mean())
        error = max(share - low, high - share)
        figures.append(Figure.estimate(share, error, lo, hi, total, "rows"))
    return _concluded(run, tuple(figures), [strip], certain=False)


def _concluded(
    run: Run, figures: tuple[Figure, ...], strips: Sequence[Strip], *, certain: bool
) -> Curve:
    """The depth to full, or what is known of it."""
    for strip in strips:
        if strip.still and not strip.full:
            return Curve(figures, Depth(run.depth + 1, None, True, run.depth), strip.missing, ())
    reached = max((len(strip.counts) - 1 for strip in strips), default=0)
    if not all(strip.full for strip in strips):
        return Curve(figures, Depth(reached + 1, None, False, reached), None, ())
    if certain:
        return Curve(figures, Depth(reached, reached, False, max(reached, run.depth)), None, ())
    return Curve(figures, Depth(reached, None, False, max(reached, run.depth)), None, ())


def _strip(run: Run, sources: I64, furthest: int, each_block: Map, apiece: bool) -> Strip:
    """Follow some sources until they are full, stand still, or `furthest` layers have run."""
    t, words = run.t, -(-len(sources) // 64)
    allowed = int(run.weights[sources].sum())
    mask = _allowed_bits(run.pairs, sources, words) if run.apart else None
    state = _start(t, sources, words)
    kept: dict[int, Bits] = {}
    spare: list[Bits] = []
    count, size = _counted(t, state, mask), -1
    counts, each, index, still = [count], [], 0, 0
    if apiece:
        each.append(_apiece(t, state, mask, len(sources)))
    while count < allowed and still < t.settled and index < furthest:
        source = kept.get(t.source(index), state)
        out = spare.pop() if spare else np.empty_like(state)
        op = run.layers[index % len(run.layers)]
        new_size, count = _step(t, op, source, state, out, mask, each_block)
        still = still + 1 if new_size == size else 0
        if _needed(t, index):
            kept[index] = state
        elif not any(state is other for other in kept.values()):
            spare.append(state)
        size, state, index = new_size, out, index + 1
        if index % len(t.levels) == 0:
            spare += kept.values()
            kept.clear()
        counts.append(count)
        if apiece:
            each.append(_apiece(t, state, mask, len(sources)))
    stands = count < allowed and still >= t.settled
    missing = _missing(run, state, sources) if stands else None
    return Strip(allowed, tuple(counts), tuple(each), stands or count == allowed, missing)


def _needed(t: Topology, index: int) -> bool:
    """A later layer of the same cycle reads what goes into this one."""
    if not t.shared:
        return False
    end = index - index % len(t.levels) + len(t.levels)
    return any(t.source(later) == index for later in range(index + 1, end))


def _start(t: Topology, sources: I64, words: int) -> Bits:
    """Every source has reached itself."""
    state = np.zeros((t.frame.n, words), dtype=np.uint64)
    column = np.arange(len(sources))
    state[sources, column // 64] = np.uint64(1) << (column % 64).astype(np.uint64)
    return state


def _step(
    t: Topology,
    op: columns.Operator,
    source: Bits,
    state: Bits,
    out: Bits,
    mask: Bits | None,
    each_block: Map,
) -> tuple[int, int]:
    """One layer; how many bits are set in all, and inside T."""
    out[: t.memory] = state[: t.memory]
    made = columns.ready(op, source)

    def block(rows: tuple[int, int]) -> int:
        a, b = rows
        columns.apply_block(op, made, source, state, out, a, b)
        return int(np.bitwise_count(out[a:b]).sum(dtype=np.int64))

    spans = columns.blocks(op, t.memory, t.frame.n, state.shape[1])
    size = sum(each_block(block, spans))
    return size, size if mask is None else _counted(t, out, mask)


def _counted(t: Topology, state: Bits, mask: Bits | None) -> int:
    """Pairs of T that are reached."""
    rows = state[t.memory :] if mask is None else state[t.memory :] & mask[t.memory :]
    return int(np.bitwise_count(rows).sum(dtype=np.int64))


def _apiece(t: Topology, state: Bits, mask: Bits | None, sources: int) -> I64:
    """The same for each source."""
    total = np.zeros(64 * state.shape[1], dtype=np.int64)
    for a in range(t.memory, t.frame.n, 2**16):
        rows = state[a : a + 2**16]
        total += sample.column_counts(rows if mask is None else rows & mask[a : a + 2**16])
    return total[:sources]


def _allowed_bits(pairs: Pairs, sources: I64, words: int) -> Bits:
    """T at the given sources."""
    table = pairs.zones.disjoint().table
    out = np.zeros((pairs.zones.frame.n, words), dtype=np.uint64)
    zone, row = expand(table[:, 0], table[:, 1])
    low = np.searchsorted(sources, np.maximum(table[zone, 2], row + table[zone, 4]))
    high = np.searchsorted(sources, np.minimum(table[zone, 3], row + table[zone, 5]))
    for word in range(words):
        a, b = np.clip(low - 64 * word, 0, 64), np.clip(high - 64 * word, 0, 64)
        some = a < b
        first, last = a[some].astype(np.uint64), b[some].astype(np.uint64)
        bits = (_ONES << first) & (_ONES >> (np.uint64(64) - last))
        np.bitwise_or.at(out, (row[some], word), bits)
    return out


def _missing(run: Run, state: Bits, sources: I64) -> tuple[int, int] | None:
    """A pair of T that is not reached, as (query, key)."""
    missing = ~state & _allowed_bits(run.pairs, sources, state.shape[1])
    rows, words = np.nonzero(missing)
    bits = int(missing[rows[0], words[0]])
    return int(rows[0]), int(sources[64 * int(words[0]) + (bits & -bits).bit_length() - 1])
