"""The rows engine: which positions each source reaches, token by token, 64 sources a word.

A source is a key j that spreads: R_l[:, j] is one bit column, and a layer ORs, into every position,
the bits of the keys that it reads (columns.py). Columns do not know of one another. All of them,
strip by strip, give every count exactly without ever holding a matrix; a sample of them gives an
estimate with its interval (sample.py), and proofs: a source that is not full at depth l shows that
the stack is not, one that stands still short of T shows that it never is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from patterncc.analysis.curve import Curve, Depth, Figure
from patterncc.analysis.engines import sample, strips
from patterncc.analysis.engines.operator import Operator, operator
from patterncc.analysis.engines.symbolic import State
from patterncc.analysis.topology import Level, Pairs, Topology
from patterncc.errors import SizeError
from patterncc.zones import ZoneSet
from patterncc.zones.algebra import refuse_above

if TYPE_CHECKING:
    from patterncc.analysis.engines.strips import I64, Strip

STRIP_WORDS = 2**18  # words of a state: 2 MiB, so that gathers find it in cache
MOST_COLUMNS = 1024  # sources of a strip
MOST_STATE = 2**24  # words that one state may hold: 128 MiB
MOST_WORK = 2**42  # words that the asked layers may touch
SEARCH_WORDS = 2**33  # the same for the search past the asked depth
SAMPLE_SEARCH_WORDS = 2**31  # the same in a sample, which can only show that it is farther
THREADS = min(8, os.cpu_count() or 1)
_MADE: WeakKeyDictionary[Level, Operator] = WeakKeyDictionary()  # layers made ready


@dataclass(frozen=True, eq=False)
class _Job:
    """A run, the depth of its curve, and how far the search for full reach may go."""

    run: strips.Run
    depth: int
    furthest: int


def work(t: Topology, depth: int, sources: int | None) -> float:
    """Words that `depth` layers of a run would touch, about 0.3 ns each in cache; infinite where
    the engine would refuse."""
    try:
        refuse_above(t.frame.n, "positions of bit columns", MOST_STATE)
        return depth * _layer_words(t.frame.n, _operators(t), sources)
    except SizeError:
        return float("inf")


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

    An interval holds with 95%, each for itself.  `states` are R_0, R_1, ... where another engine
    has found them exactly: they stay the figures of their layers. The depth to full is looked for
    past `depth` for as many layers as SEARCH_WORDS pay for; a sample never says that it is found.

    Raises SizeError where the length or the asked layers are too much.
    """
    n = t.frame.n
    refuse_above(n, "positions of bit columns", MOST_STATE)
    layers, weights = _operators(t), strips.key_pairs(pairs)
    able = np.flatnonzero(weights)
    whole = sources is None or sources >= len(able)
    words = _layer_words(n, layers, None if whole else sources)
    refuse_above(int(depth * words), "words to touch by the rows engine", MOST_WORK)
    budget = SEARCH_WORDS if sources is None else SAMPLE_SEARCH_WORDS
    furthest = depth + max(1, min(4096, int(budget / max(1.0, words))))
    job = _Job(strips.Run(t, pairs, layers, weights, not pairs.closed, not whole), depth, furthest)
    if whole:
        return _exact(job, able, states)
    assert sources is not None
    return _sampled(job, sample.draw(weights, sources, seed), states)


def _operators(t: Topology) -> tuple[Operator, ...]:
    """Each layer made ready, once for as long as it lives."""
    fresh = [level for level in dict.fromkeys(t.levels) if level not in _MADE]
    if fresh:
        with ThreadPoolExecutor(THREADS) as pool:
            made = pool.map(lambda v: operator(v.zones.table, t.frame.n), fresh)
            _MADE.update(zip(fresh, made, strict=True))
    return tuple(_MADE[level] for level in t.levels)


def _layer_words(n: int, layers: Sequence[Operator], sources: int | None) -> float:
    words = -(-(n if sources is None else min(n, sources)) // 64)
    return n * words * (2 + sum(op.passes for op in layers) / len(layers))


def _exact(job: _Job, able: I64, states: Sequence[State[ZoneSet]]) -> Curve:
    """Every source, in strips of columns, strips in threads."""
    t, total = job.run.t, job.run.pairs.count
    wide = min(MOST_COLUMNS, 64 * max(1, STRIP_WORDS // max(1, t.frame.n)))
    parts = [able[a : a + wide] for a in range(0, len(able), wide)]
    short: list[Strip] = []  # strips that are not full: no other need look past the depth

    def one(sources: I64) -> Strip:
        furthest = job.depth if short else job.furthest
        found = strips.strip(job.run, sources, furthest, [(t.memory, t.frame.n)], map)
        if not found.full:
            short.append(found)
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(one, parts))
    known = [state.count for state in states[: job.depth + 1]]
    counts = [sum(int(s.at(l).sum()) for s in found) for l in range(job.depth + 1)]
    assert known == counts[: len(known)]
    figures = [Figure.of(count, count, total, "zones") for count in known]
    figures += [Figure.of(count, count, total, "rows") for count in counts[len(known) :]]
    return Curve(tuple(figures), *_concluded(job, found), ())


def _sampled(job: _Job, drawn: sample.Draw, states: Sequence[State[ZoneSet]]) -> Curve:
    """Some sources in strips as wide as memory allows, spans of rows in threads."""
    t, total = job.run.t, job.run.pairs.count
    sources, column = np.unique(drawn.sources, return_inverse=True)
    wide = 64 * max(1, MOST_STATE // t.frame.n)
    cuts = np.linspace(t.memory, t.frame.n, 2 * THREADS + 1).astype(int).tolist()
    with ThreadPoolExecutor(THREADS) as pool:
        found = [
            strips.strip(job.run, sources[a : a + wide], job.furthest, [*pairwise(cuts)], pool.map)
            for a in range(0, len(sources), wide)
        ]
    known = [state.count for state in states[: job.depth + 1]]
    figures = [Figure.of(count, count, total, "zones") for count in known]
    if not states:
        figures = [Figure.of(t.n, t.n, total, "rows")]
    for l in range(len(figures), job.depth + 1):
        if len(figures) > 1 and l > max(s.depth for s in found):
            figures.append(figures[-1])
            continue
        reached = np.concatenate([s.at(l) for s in found])[: len(sources)]
        figures.append(_estimate(job.run, sources, reached, column, drawn.population))
    full, witness = _concluded(job, found)
    if not full.never:  # what all of the sample reach, the others may not
        full = Depth(full.lo, None, False, full.searched)
    return Curve(tuple(figures), full, witness, ())


def _estimate(
    run: strips.Run, sources: I64, reached: I64, column: I64, population: int | None
) -> Figure:
    """The figure of one layer: draw k is source c = column[k], which reaches reached[c]."""
    total, weights = run.pairs.count, run.weights[sources]
    shares = (reached / weights)[column]
    low, high = sample.interval(shares, population)
    certain = int(reached.sum())
    # of the sources that were not drawn, each query surely reaches itself
    least = certain + run.t.n - int((sources >= run.t.memory).sum())
    most = total - (int(weights.sum()) - certain)
    lo, hi = max(least, math.floor(low * total)), min(most, math.ceil(high * total))
    if lo > hi:  # the sample misleads, as one in twenty may
        lo, hi = least, most
    share = float(shares.mean())
    return Figure.estimate(share, max(share - low, high - share), lo, hi, total, "rows")


def _concluded(job: _Job, found: Sequence[Strip]) -> tuple[Depth, tuple[int, int] | None]:
    """The depth to full of these strips, and a pair that is never reached where there is one."""
    for strip in found:
        if strip.settled and not strip.full:
            return Depth(job.depth + 1, None, True, job.depth), strip.missing
    least = max((strip.depth + (not strip.full) for strip in found), default=0)
    searched = max((strip.depth for strip in found), default=0)
    most = least if all(strip.full for strip in found) else None
    return Depth(least, most, False, max(searched, job.depth)), None
