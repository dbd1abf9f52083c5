"""Which keys no query of a layout reads: the op clears them, so that NaN there reaches no row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout

PIECE = 1 << 24  # bytes of flags that one pass may make


def unread_keys(layout: Layout) -> NDArray[np.bool_]:
    """Bool [sequences, heads or 1, n_k]: True where no query reads the key.

    Empty, [sequences, 1, 0], where every key is read; a layout that varies from batch to batch
    always gives flags, for the next batch may have such keys.

    >>> from patterncc import causal, prefix
    >>> from patterncc.layout import compile
    >>> unread_keys(compile(causal(), 100)).shape
    (1, 1, 0)
    >>> unread_keys(compile(causal() & prefix(3), 100, block=16))[0, 0, :5].tolist()
    [False, False, False, True, True]
    """
    heads = len(layout.head_pattern) // layout.sequences
    read = np.zeros((len(layout.head_pattern), layout.n_k), dtype=bool)
    for term in layout.terms:
        by_pattern = _read(term)
        if term.order is not None:
            by_pattern = by_pattern[:, term.order.key_slots]
        read |= by_pattern[term.head_pattern]
    unread = ~read.reshape(layout.sequences, heads, layout.n_k)
    if not layout.varies and not unread.any():
        return unread[:, :1, :0]
    alike = heads == 1 or bool((unread == unread[:, :1]).all())
    return unread[:, :1] if alike and not layout.varies else unread


def _read(term: Layout) -> NDArray[np.bool_]:
    """Bool [patterns, n_k], by slots: some query reads the key."""
    side, runs = term.block[1], term.cols
    patterns = len(term.edges)
    read = np.zeros((patterns * runs.lines, side), dtype=bool)
    height = term.block[0]
    inner, last = _columns(term, height), _columns(term, term.n - (term.lines - 1) * height)
    column = np.repeat(np.arange(len(runs.ptr) - 1), np.diff(runs.ptr))
    step = max(1, PIECE // side)
    for low in range(0, len(runs.run), step):
        run, at = runs.run[low : low + step], column[low : low + step]
        ends = run[:, 0] + run[:, 1] == term.lines  # its last tile holds rows past the last query
        for some, flags in ((~ends | (run[:, 1] > 1), inner), (ends, last)):
            places, first = np.unique(at[some], return_index=True)
            if len(places):
                read[places] |= np.logical_or.reduceat(flags[run[some, 2]], first, axis=0)
    return read.reshape(patterns, runs.lines * side)[:, : term.n_k]


def _columns(term: Layout, rows: int) -> NDArray[np.bool_]:
    """Bool [mask words, BN]: a query among the first `rows` of a tile reads the column."""
    zones, side = term.zones.astype(np.int64), term.block[1]
    columns = np.zeros((1 + len(zones) + len(term.bits), side), dtype=bool)
    columns[0] = True
    i0, i1, j0, j1, d0, d1 = (zones[..., k, None] for k in range(6))
    i1 = np.minimum(i1, rows)
    j = np.arange(side)
    some = (np.maximum(j0, i0 + d0) <= j) & (j < np.minimum(j1, i1 + d1 - 1))
    some &= (i0 < i1) & (d0 < d1)
    columns[1 : 1 + len(zones)] = some.any(1)
    words = np.bitwise_or.reduce(term.bits[:, :rows], axis=1)
    packed = np.ascontiguousarray(words).astype("<u4").view(np.uint8)
    if len(packed):
        columns[1 + len(zones) :] = np.unpackbits(packed, axis=-1, bitorder="little")[:, :side]
    return columns
