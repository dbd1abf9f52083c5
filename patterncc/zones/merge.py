"""From single edges to zones: runs in a row, then boxes, bands and triangles of equal runs.

An edge is one integer, ``row << bits | key``, so a sort of integers orders a graph.  Most runs of
an irregular graph belong to no longer chain: they become zones of one row each, written straight
into the table, and where a sample shows that hardly any run has a chain, none is looked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.zones import algebra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

_SLOPES = ((0, 0), (1, 1), (0, 1), (1, 0))
"""How the two ends of a run may move from one row to the next: a box, a band, two triangles."""

_PART = 2**15  # edges that are looked at together where there are more than a cache holds
_FAR = 2**43  # past every position and every difference of positions
_MANY = 2**18  # runs from which a sample says whether chains are worth a look
_SAMPLE = 2**15  # runs of that sample
_AHEAD = (1, 2, 4, 8)  # rows on at which a chain of the sample is looked for
_SHARE = 1 / 50  # of the sample that must be in such chains


@dataclass(frozen=True)
class Runs:
    """Runs of neighbouring keys, by row and then by key; no two of a row touch.

    row, start, end: int64 [runs]; keys start .. end - 1 of a row.
    repeats: how many of the edges that were given stood there before.
    """

    row: I64
    start: I64
    end: I64
    repeats: int


def zones_of_edges(row: NDArray[Any], col: NDArray[Any]) -> I64:
    """Zones that hold exactly the given edges, whatever their order and repeats; int64 [zones, 6].

    Neighbours in a row form runs; runs of consecutive rows whose ends each stand still or move by
    one form a zone, each run in the longest such chain it belongs to.  The table is tight: longer
    chains first, then what is left, by row and key.

    >>> zones_of_edges(np.array([4, 5, 6, 5]), np.array([1, 2, 3, 2])).tolist()
    [[4, 7, 1, 4, -3, -2]]
    """
    return zones_of_runs(row_runs(row, col))


def row_runs(row: NDArray[Any], col: NDArray[Any]) -> Runs:
    """The runs of a graph's edges, in any order and with repeats; rows and keys from 0 up.

    >>> row_runs(np.array([5, 4, 5, 5]), np.array([2, 7, 1, 2]))
    Runs(row=array([4, 5]), start=array([7, 1]), end=array([8, 3]), repeats=1)
    """
    if not len(row):
        none = np.zeros(0, dtype=np.int64)
        return Runs(none, none, none, 0)
    bits = (int(col.max()) + 1).bit_length()  # a gap: the last key of a row is next to nothing
    if int(row.max()).bit_length() + bits > 62:
        return _far_runs(row, col)
    edge = np.empty(len(row), dtype=np.int64)
    for part in _parts(len(row)):
        np.left_shift(row[part], bits, out=edge[part], dtype=np.int64)
        edge[part] |= col[part]
    if not _ascends(edge):
        edge.sort()
    given = len(edge)
    if any((edge[p][1:] == edge[p][:-1]).any() for p in _parts(given, 1)):
        edge = edge[np.append(True, edge[1:] != edge[:-1])]
    return _cut(edge, bits, given - len(edge))


def _cut(edge: I64, bits: int, repeats: int) -> Runs:
    """The runs of distinct ascending edges, part by part: nothing as long as they is made."""
    steps = [np.count_nonzero(edge[p][1:] - edge[p][:-1] != 1) for p in _parts(len(edge), 1)]
    row, start, end = np.empty((3, sum(steps) + 1), dtype=np.int64)
    keys = (1 << bits) - 1
    row[0], start[0], end[-1] = edge[0] >> bits, edge[0] & keys, (edge[-1] & keys) + 1
    done = 0
    for part in _parts(len(edge), 1):
        edges = edge[part]
        opens = np.flatnonzero(edges[1:] - edges[:-1] != 1)
        to = slice(done, done + len(opens))
        ended = edges[opens]
        opens += 1
        opened = edges[opens]
        np.right_shift(opened, bits, out=row[1:][to])
        np.bitwise_and(opened, keys, out=start[1:][to])
        np.bitwise_and(ended, keys, out=end[to])
        end[to] += 1
        done += len(opens)
    return Runs(row, start, end, repeats)


def _ascends(values: I64) -> bool:
    return all(bool((values[p][1:] >= values[p][:-1]).all()) for p in _parts(len(values), 1))


def _parts(length: int, more: int = 0) -> list[slice]:
    """Slices that stay in cache, each with the first of the next where `more` is 1."""
    return [slice(a, min(a + _PART + more, length)) for a in range(0, max(1, length - more), _PART)]


def _far_runs(row: NDArray[Any], col: NDArray[Any]) -> Runs:
    """The same for positions so far apart that two do not fit in one integer."""
    rows, cols = np.unique(row), np.unique(col)
    # a gap between ranks wherever there is one between keys keeps neighbours neighbours
    rank = np.cumsum(np.append(0, np.minimum(np.diff(cols), 2)))
    runs = row_runs(np.searchsorted(rows, row), rank[np.searchsorted(cols, col)])
    start, end = (cols[np.searchsorted(rank, x)] for x in (runs.start, runs.end - 1))
    return Runs(rows[runs.row].astype(np.int64), start, end + 1, runs.repeats)


def zones_of_runs(runs: Runs) -> I64:
    """Chains of runs as zones, then every other run as a zone of one row."""
    kind, chains = _chained(runs)
    single = np.flatnonzero(kind < 0) if len(chains) else slice(None)
    row, start, end = runs.row[single], runs.start[single], runs.end[single]
    long = sum(x.shape[1] for x in chains)
    table = np.empty((6, long + len(row)), dtype=np.int64)
    if long:
        table[:, :long] = algebra.tighten(np.concatenate(chains, axis=1).T).T
    for part in _parts(len(row)):
        i0, i1, j0, j1, d0, d1 = table[:, long:][:, part]
        i0[:], j0[:], j1[:] = row[part], start[part], end[part]
        np.add(i0, 1, out=i1)
        np.subtract(j0, i0, out=d0)
        np.subtract(j1, i0, out=d1)
    return table.T


def _chained(runs: Runs) -> tuple[NDArray[np.int8], list[I64]]:
    """Which slope each run is chained along (-1 for none), and the zones of the chains, loose."""
    count = len(runs.row)
    kind = np.full(count, -1, dtype=np.int8)
    if not count or (count > _MANY and not _worth_chaining(runs)):
        return kind, []
    # in a long graph a chain of a few rows is hardly better than those rows, and slower to look up
    best = np.full(count, 1 if count <= _MANY else _AHEAD[-1] - 1)
    every, code = np.arange(count), _codes(runs)
    for k, slopes in enumerate(_SLOPES):
        linked = _next(runs, code, every, slopes, (1,))
        held = np.zeros(count, dtype=bool)
        held[linked >= 0] = held[linked[linked >= 0]] = True
        picked = np.flatnonzero(held)
        order, opens = _chains(*_lines(runs, picked, slopes))
        sizes = np.diff(np.append(np.flatnonzero(opens), len(picked)))
        length = np.empty(len(picked), dtype=np.int64)
        length[order] = np.repeat(sizes, sizes)
        longer = length > best[picked]
        best[picked[longer]], kind[picked[longer]] = length[longer], k
    return kind, [x for k in range(len(_SLOPES)) if (x := _zones(runs, kind, k)).shape[1]]


def _zones(runs: Runs, kind: NDArray[np.int8], k: int) -> I64:
    """One zone for each chain of the runs of a kind, int64 [6, zones], not yet tight."""
    row, a, b = _lines(runs, np.flatnonzero(kind == k), _SLOPES[k])
    order, opens = _chains(row, a, b)
    first, last = order[opens], order[np.append(opens[1:], True)[: len(opens)]]
    zone = np.empty((6, len(first)), dtype=np.int64)
    low, high = _SLOPES[k]
    zone[0], zone[1] = row[first], row[last] + 1
    zone[2], zone[4] = (-_FAR, a[first]) if low else (a[first], -_FAR)
    zone[3], zone[5] = (_FAR, b[first]) if high else (b[first], _FAR)
    return zone


def _lines(runs: Runs, index: NDArray[Any], slopes: tuple[int, int]) -> tuple[I64, I64, I64]:
    """The row of each run, and where its two ends stood in row 0 along the slopes."""
    row = runs.row[index]
    return row, runs.start[index] - slopes[0] * row, runs.end[index] - slopes[1] * row


def _chains(row: I64, a: I64, b: I64) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """An order that puts runs of consecutive rows with equal (a, b) together; where chains open."""
    order = np.lexsort([row, b, a])
    row, a, b = row[order], a[order], b[order]
    opens = np.ones(len(row), dtype=bool)
    opens[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1]) | (row[1:] != row[:-1] + 1)
    return order, opens


def _codes(runs: Runs) -> I64 | None:
    """Row and first key of each run as one integer, with room for some rows and keys more; None
    where the two do not fit."""
    far = _AHEAD[-1]
    bits = (int(runs.end.max()) + far).bit_length()
    if int(runs.row[-1] + far).bit_length() + bits > 62:
        return None
    return runs.row << bits | runs.start


def _next(
    runs: Runs,
    code: I64 | None,
    index: NDArray[np.intp],
    slopes: tuple[int, int],
    ahead: tuple[int, ...],
) -> I64:
    """The run that each of some runs becomes some rows on along the slopes, of several distances
    the last one; -1 where there is none at one of them."""
    if code is None:
        return _next_far(runs, index, slopes, ahead)
    low, high = slopes
    bits = (int(runs.end.max()) + _AHEAD[-1]).bit_length()
    here, end = code[index], runs.end[index]
    linked = np.ones(len(index), dtype=bool)
    for rows in ahead:
        wanted = here + ((rows << bits) + low * rows)
        place = np.minimum(np.searchsorted(code, wanted), len(code) - 1)
        linked &= (code[place] == wanted) & (runs.end[place] == end + high * rows)
    return np.where(linked, place, -1)


def _next_far(
    runs: Runs, index: NDArray[np.intp], slopes: tuple[int, int], ahead: tuple[int, ...]
) -> I64:
    """The same by look-up, for positions so far apart that two do not fit in one integer."""
    keys = zip(runs.row.tolist(), runs.start.tolist(), runs.end.tolist(), strict=True)
    place = {key: k for k, key in enumerate(keys)}
    low, high = slopes
    linked = np.zeros(len(index), dtype=np.int64)
    for rows in ahead:
        some = zip(*(x[index].tolist() for x in (runs.row, runs.start, runs.end)), strict=True)
        found = (place.get((i + rows, a + low * rows, b + high * rows), -1) for i, a, b in some)
        at = np.fromiter(found, np.int64, len(index))
        linked = np.where((linked < 0) | (at < 0), -1, at)
    return linked


def _worth_chaining(runs: Runs) -> bool:
    """Whether a sample of runs, taken evenly, has its share of runs that reach some rows on."""
    index = np.linspace(0, len(runs.row) - 1, _SAMPLE).astype(np.intp)
    found, code = np.zeros(len(index), dtype=bool), _codes(runs)
    for slopes in _SLOPES:
        found |= _next(runs, code, index, slopes, _AHEAD) >= 0
    return bool(np.count_nonzero(found) > _SHARE * len(index))
