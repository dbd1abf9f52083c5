"""The finding about relays: tokens that all later ones read, and that have nothing to pass on.

Under causal masking a token at position t knows t + 1 tokens at most, whatever the depth.  Sinks at
the front are read by everyone and know nobody: they steady a softmax, but carry nothing forward.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from patterncc.analysis.lint.finding import Finding
from patterncc.analysis.lint.places import Family
from patterncc.analysis.topology import Topology, is_causal
from patterncc.zones import algebra

FEW = 16  # a relay that can know less than one in so many tokens passes on almost nothing
MOST_RUNS = 64  # runs of relay tokens that are followed


def idle_relays(t: Topology, families: tuple[Family, ...]) -> Iterator[Finding]:
    """PCC110: in a causal stack, tokens that at least half of the later queries read, and that know
    no more than one token in FEW after all layers."""
    if not all(is_causal(level.zones) for level in t.levels):
        return
    for family in families:
        if not family.known:
            continue
        relays = read_by_many(family.spots[0].zones.table, t.memory, t.frame.n)
        if not 0 < len(relays) <= MOST_RUNS:
            continue
        known, deep = _known(t, relays)
        if known * FEW > t.frame.n:
            continue
        one = _size(relays) == 1
        depth = f"after {len(t.levels)} layer{'s' if len(t.levels) > 1 else ''}"
        yield Finding.of(
            "PCC110",
            f"{family.place()}: token{'' if one else 's'} {_named(relays)} "
            f"{'is' if one else 'are'} read by half of the later queries or more, but "
            f"{'at any depth' if deep else depth} {'knows' if one else 'know'} at most {known} of "
            f"{t.frame.n} tokens and {'relays' if one else 'relay'} nothing else: the mask is "
            "causal",
            "as a sink it is well; to relay, put the token after what it collects (summary tokens "
            "at regular positions) or drop the causal mask",
        )


def read_by_many(table: algebra.I64, first: int, n: int) -> algebra.I64:
    """Runs of keys, from `first` on, that at least half of the queries from the key on read, within
    one zone; sorted intervals, int64 [m, 2].

    The readers of a key within a zone are as many as the least of some straight lines, so the first
    and the last key of a zone have the fewest.

    >>> read_by_many(np.array([[0, 99, 0, 3, -98, 1], [0, 99, 0, 99, -8, 1]]), 0, 99).tolist()
    [[0, 3]]
    """
    i0, i1, j0, j1, d0, d1 = table.T
    begin = np.maximum(j0, first)
    ends = np.stack([begin, j1 - 1])
    readers = np.minimum(i1, ends - d0 + 1) - np.maximum(i0, ends - d1 + 1)
    many = (2 * readers >= n - ends).all(axis=0) & (begin < j1)
    return algebra.merge_intervals(np.stack([begin, j1], axis=1)[many])


def _known(t: Topology, relays: algebra.I64) -> tuple[int, bool]:
    """How many tokens the relays can know at most, and whether that holds at any depth: no more
    than stand up to the last of them, and no more than they are told in as many steps as there are
    layers, whatever layer each takes."""
    most = int(relays[-1, 1])
    if most * FEW <= t.frame.n:
        return most, True
    table = np.concatenate([z.zones.table for z in {id(z): z for z in t.levels}.values()])
    known = relays
    for _ in t.levels:
        if _size(known) * FEW > t.frame.n or len(known) > MOST_RUNS:
            return t.frame.n, True
        zone, run = algebra.overlapping_pairs(table[:, 0], table[:, 1], known[:, 0], known[:, 1])
        i0, i1, j0, j1, d0, d1 = algebra.take(table, zone).T
        top, bottom = np.maximum(i0, known[run, 0]), np.minimum(i1, known[run, 1])
        told = np.stack([np.maximum(j0, top + d0), np.minimum(j1, bottom - 1 + d1)], axis=1)
        more = algebra.merge_intervals(np.concatenate([known, told]))
        if len(more) == len(known) and (more == known).all():
            return _size(known), True
        known = more
    return _size(known), False


def _size(intervals: algebra.I64) -> int:
    return int((intervals[:, 1] - intervals[:, 0]).sum())


def _named(intervals: algebra.I64) -> str:
    """The first runs in words."""
    words = [str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in intervals[:3].tolist()]
    more = f" and {len(intervals) - 3} runs more" if len(intervals) > 3 else ""
    return ", ".join(words) + more
