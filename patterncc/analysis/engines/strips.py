"""Some sources followed from layer to layer, until they are full or stand still.

Sources are columns of bits (columns.py); those of one strip are carried together, 64 a word, and
never know of other strips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.engines import columns
from patterncc.analysis.engines.operator import Operator
from patterncc.analysis.engines.sample import column_counts
from patterncc.analysis.topology import Pairs, Topology
from patterncc.zones.algebra import expand, take

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]
    Bits = NDArray[np.uint64]

Span = tuple[int, int]
Spread = Callable[[Callable[[Span], "I64"], Iterable[Span]], Iterable["I64"]]
_COUNTED = 2**15  # rows of which columns are counted at once
_ONES = np.uint64(2**64 - 1)


@dataclass(frozen=True, eq=False)
class Run:
    """One run: the layers made ready, T, how many of its pairs each key has, and how it counts.

    `apart`: reach may leave T, and is met with it before it is counted.  `each`: counts are kept
    source by source.
    """

    t: Topology
    pairs: Pairs
    layers: tuple[Operator, ...]
    weights: I64
    apart: bool
    each: bool


@dataclass(frozen=True, eq=False)
class Strip:
    """What some sources reach: pairs of T after 0, 1, ... layers, in all or source by source.

    `settled`: no later layer changes anything.  `missing`: a pair of T that is then not reached.
    """

    allowed: int
    counts: tuple[I64, ...]
    settled: bool
    missing: tuple[int, int] | None

    @property
    def depth(self) -> int:
        """Layers that were followed."""
        return len(self.counts) - 1

    @property
    def full(self) -> bool:
        """These sources reach all of T that is theirs."""
        return int(self.counts[-1].sum()) == self.allowed

    def at(self, depth: int) -> I64:
        """Counts after `depth` layers; once nothing changes any more the last ones."""
        assert self.settled or depth <= self.depth
        return self.counts[min(depth, self.depth)]


def strip(run: Run, sources: I64, furthest: int, spans: Sequence[Span], spread: Spread) -> Strip:
    """Follow ascending sources through at most `furthest` layers; `spread` maps a layer over spans
    of rows, in turn or in threads."""
    t, words = run.t, -(-len(sources) // 64)
    allowed = int(run.weights[sources].sum())
    mask = allowed_bits(run.pairs, sources, words) if run.apart else None
    state = _start(t, sources, words)
    kept: dict[int, Bits] = {}  # what later layers of the same cycle read
    spare: list[Bits] = []
    counts, size, index, still = [_counted(run, state, mask)[1:]], -1, 0, 0
    while int(counts[-1].sum()) < allowed and still < t.settled and index < furthest:
        source = kept.get(t.source(index), state)
        out = spare.pop() if spare else np.empty_like(state)
        out[: t.memory] = state[: t.memory]
        advance = _advance(run, run.layers[index % len(run.layers)], source, state, out, mask)
        found = sum(spread(advance, spans), start=np.zeros(1, dtype=np.int64))
        still = still + 1 if int(found[0]) == size else 0
        if _needed(t, index):
            kept[index] = state
        else:
            spare.append(state)
        size, state, index = int(found[0]), out, index + 1
        if index % len(t.levels) == 0:
            spare += kept.values()
            kept.clear()
        counts.append(found[1:])
    full = int(counts[-1].sum()) == allowed
    stands = not full and still >= t.settled
    missing = _missing(run, state, sources) if stands else None
    return Strip(allowed, tuple(counts), full or stands, missing)


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


def _advance(
    run: Run, op: Operator, source: Bits, state: Bits, out: Bits, mask: Bits | None
) -> Callable[[Span], I64]:
    """One layer, as a function of a span of rows that gives its counts."""
    made = columns.ready(op, source)

    def advance(span: Span) -> I64:
        (first, last), words = span, state.shape[1]
        step = max(1, min(columns.block_rows(op, words), last - first))
        room = columns.scratch(op, step, words)
        total = np.zeros(1, dtype=np.int64)
        for a in range(first, last, step):
            b = min(a + step, last)
            columns.apply_block(op, made, source, state, out, (a, b), room)
            if not run.each:  # while the block is in cache
                total = total + _counts(run, out[a:b], None if mask is None else mask[a:b])
        if run.each:
            inside = None if mask is None else mask[first:last]
            total = total + _counts(run, out[first:last], inside)
        return total

    return advance


def _counted(run: Run, state: Bits, mask: Bits | None) -> I64:
    first = run.t.memory
    return _counts(run, state[first:], None if mask is None else mask[first:])


def _counts(run: Run, rows: Bits, mask: Bits | None) -> I64:
    """How many bits are set in all; then how many inside T, in all or source by source."""
    inside = rows if mask is None else rows & mask
    if run.each:
        each = np.zeros(64 * rows.shape[1], dtype=np.int64)
        for a in range(0, len(rows), _COUNTED):
            each += column_counts(inside[a : a + _COUNTED])
    else:
        each = np.array([_total(inside)])
    return np.concatenate([[each.sum() if mask is None else _total(rows)], each])


def _total(rows: Bits) -> int:
    """How many bits are set; three words never have more than a byte can count."""
    counts = np.bitwise_count(rows).reshape(-1)
    third = len(counts) // 3
    few = counts[:third] + counts[third : 2 * third]
    few += counts[2 * third : 3 * third]
    return int(few.sum(dtype=np.int64)) + int(counts[3 * third :].sum(dtype=np.int64))


def key_pairs(pairs: Pairs) -> I64:
    """How many pairs of T each key has."""
    out = np.zeros(pairs.zones.frame.n, dtype=np.int64)
    table = pairs.zones.disjoint().T.table
    wide = table[:, 1] - table[:, 0] >= 64
    for a, b, first, last, low, high in table[wide].tolist():
        at = np.arange(a, b)
        out[a:b] += np.minimum(last, at + high) - np.maximum(first, at + low)
    rest = take(table, ~wide)
    zone, at = expand(rest[:, 0], rest[:, 1])
    _, _, first, last, low, high = take(rest, zone).T
    np.add.at(out, at, np.minimum(last, at + high) - np.maximum(first, at + low))
    return out


def allowed_bits(pairs: Pairs, sources: I64, words: int) -> Bits:
    """T at the given sources, as a state."""
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


def _missing(run: Run, state: Bits, sources: I64) -> tuple[int, int]:
    """A pair of T that is not reached, as (query, key)."""
    missing = ~state & allowed_bits(run.pairs, sources, state.shape[1])
    rows, words = np.nonzero(missing)
    bits = int(missing[rows[0], words[0]])
    return int(rows[0]), int(sources[64 * int(words[0]) + (bits & -bits).bit_length() - 1])
