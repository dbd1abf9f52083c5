"""Random regular graphs: what the expander primitive draws, and how it is lowered.

A graph of even degree d is the union of d / 2 random Hamiltonian cycles, one of odd degree takes a
random perfect matching as well.  Edges drawn twice are then exchanged: a repeat (u, v) and another
edge (x, y) become (u, x) and (v, y), which keeps every degree.  Above half of all neighbours the
graph is the complement of a drawn one.  All numbers come from the hash of `patterncc.zones.random`.

Source: Shirzad et al., "Exphormer: sparse transformers for graphs", 2023 (expanders as attention);
Friedman, "A proof of Alon's second eigenvalue conjecture", 2003 (why random regular graphs expand).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from patterncc.errors import PatternValueError
from patterncc.primitives import Expander
from patterncc.zones import random
from patterncc.zones.site import Site

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

_ROUNDS = 64  # rounds of exchanges before a new start


def expander(p: Expander, at: Site) -> I64:
    """One box for each run of neighbouring key blocks that a block row reads.

    The graph's nodes are all key blocks from position 0 on; it is drawn whole, whatever the slice.
    """
    r, size = at.region, p.block
    _, _, _, key_end = at.frame.box
    blocks = -(-key_end // size)
    at.allow(blocks * (p.degree + 1), p)
    ends = regular_graph(blocks, p.degree, random.key(p.seed, at.layer, at.head))
    own = np.arange(r.i0 // size, min(blocks, -(-r.i1 // size)), dtype=np.int64)
    row = np.concatenate([ends[:, 0], ends[:, 1], own])
    read = np.concatenate([ends[:, 1], ends[:, 0], own])
    wanted = (row >= r.i0 // size) & (row * size < r.i1)
    code = np.sort(row[wanted] * blocks + read[wanted])
    grid = (code % blocks).reshape(len(own), p.degree + 1)  # every row has degree + 1 blocks
    row, start, end = random.row_runs(own, grid)
    return at.rows(row * size, (row + 1) * size, start * size, end * size)


def regular_graph(nodes: int, degree: int, key: int) -> I64:
    """The edges of a random graph whose nodes have `degree` neighbours: int64 [edges, 2], u < v.

    >>> regular_graph(4, 3, key=1).tolist()
    [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]

    Raises PatternValueError when no such graph exists: degree >= nodes, or both odd.
    """
    if degree >= nodes:
        raise PatternValueError(
            f"expander: degree {degree} needs at least {degree + 1} blocks and there are {nodes}; "
            "take a smaller degree or smaller blocks"
        )
    if degree * nodes % 2:
        raise PatternValueError(
            f"expander: no graph on {nodes} blocks gives each of them {degree} neighbours, both "
            f"odd; take degree {degree + 1} or another block size"
        )
    if 2 * degree > nodes:
        return _complement(nodes, regular_graph(nodes, nodes - 1 - degree, key))
    attempt = 0
    while True:
        codes = _exchange_repeats(_draw(nodes, degree, random.key(key, attempt)), nodes, key)
        if codes is not None:
            return np.stack([codes // nodes, codes % nodes], axis=1)
        attempt += 1


def _draw(nodes: int, degree: int, key: int) -> I64:
    """Edges u < v of random cycles and, for an odd degree, a matching; repeats are possible."""
    node = np.arange(nodes, dtype=np.int64)
    parts = [np.zeros((0, 2), dtype=np.int64)]
    for part in range((degree + 1) // 2):
        order = np.argsort(random.mix(random.key(key, part), node), kind="stable")
        if 2 * part + 1 == degree:
            parts.append(order.reshape(-1, 2))
        else:
            parts.append(np.stack([order, np.roll(order, -1)], axis=1))
    return np.sort(np.concatenate(parts), axis=1)


def _exchange_repeats(ends: I64, nodes: int, key: int) -> I64 | None:
    """Sorted codes u * nodes + v without repeats, or None when the rounds ran out."""
    for round_ in range(_ROUNDS):
        codes = ends[:, 0] * nodes + ends[:, 1]
        order = np.argsort(codes, kind="stable")
        ends, codes = ends[order], codes[order]
        bad = np.flatnonzero(codes[1:] == codes[:-1]) + 1
        if not len(bad):
            return codes
        numbers = random.mix(random.key(key, -1 - round_), np.arange(2 * len(bad)))
        other = (numbers[: len(bad)] % np.uint64(len(ends))).astype(np.int64)
        u, v = ends[bad].T
        x, y = np.where(
            (numbers[len(bad) :] & np.uint64(1)) == 0, ends[other].T, ends[other].T[::-1]
        )
        new = np.sort(np.stack([np.stack([u, x], axis=1), np.stack([v, y], axis=1)]), axis=2)
        made = new[..., 0] * nodes + new[..., 1]
        place = np.minimum(np.searchsorted(codes, made), len(codes) - 1)
        fine = ((codes[place] != made) & (new[..., 0] != new[..., 1])).all(axis=0)
        fine &= ~np.isin(other, bad)
        # no edge takes part twice, and no new edge is made twice
        fine &= (
            _first_of_its_kind(other) & _first_of_its_kind(made[0]) & _first_of_its_kind(made[1])
        )
        fine &= ~np.isin(made[0], made[1])
        ends = ends.copy()
        ends[bad[fine]], ends[other[fine]] = new[0, fine], new[1, fine]
    return None


def _first_of_its_kind(values: I64) -> NDArray[np.bool_]:
    """Which entries are the first with their value."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _complement(nodes: int, ends: I64) -> I64:
    """All pairs u < v that are not edges."""
    absent = np.ones((nodes, nodes), dtype=bool)
    absent[ends[:, 0], ends[:, 1]] = False
    return np.stack(np.nonzero(np.triu(absent, 1)), axis=1).astype(np.int64)
