"""Work lists: the rows (or columns) of tiles cut into items of even work, longest first.

An item is a stretch of one line of tiles.  A line that would take longer than its share of the
device is cut into several items; each writes its part to a *slot*, and slots are merged by LSE (or
summed, for gradients).  Everything here is numbers about a layout: no torch.

Columns of an item, int32 [items, 8]:

    0 row      tile row (tile column in the transposed direction)
    1 owner    the head pattern listed at this place reads it; 0 where one serves all
    2 run      its first run, a row of the run table
    3 skip     tiles of that run which belong to the item before
    4 steps    its tiles
    5 slot     where its part goes; -1: it is the whole line and writes the result itself
    6 lead     at the first item: how many items run for all heads before the sections start
    7          0

Columns of a part, int32 [slots, 4]: row, owner, then at the first slot of a line how many it has
(0 at its others), and 0.  The slots of a line follow one another in the order of its tiles.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from patterncc.layout.layout import Runs

LEVELS = (1, 4, 16, 64)
"""Heads (batch x heads) that run at once for which a list is made: few heads need more cuts."""

# What a program costs beside its tiles, in tiles of 128 x 128 at head dim 128 (about 2 us on an
# H100).  Filling the pipeline and storing 32 KiB is about one; a part stores 64 KiB of fp32
# instead, and merging reads them again; the launch that merges waits for the last item.
START = 1.0
PART = 0.5
MERGE = 0.5
LAUNCH = 2.0
MERGERS = 8  # programs that merge one line

SIMULATED = 1024  # programs: so few are cut in several ways, and the fastest is taken
SLACK = 1 / 32  # of the ideal time; the last item may end this much after it
LEAST = 1024  # tokens along a line: shorter parts cost more to merge than they save, as a rule
FEWEST = 8  # tiles, however wide


@dataclass(frozen=True, eq=False)
class WorkList:
    """Items and parts of one direction of a layout."""

    items: NDArray[np.int32]
    parts: NDArray[np.int32]


def work_list(
    runs: Runs,
    head_pattern: NDArray[np.int32],
    lines: int,
    units: int,
    processors: int,
    width: int = 128,
) -> WorkList:
    """The items of all listed heads, longest first.

    lines: tile rows of one pattern.  units: how often the list runs at once, at least (batch x
    heads, or the batch alone where heads are listed).  processors: of the device.  width: tokens of
    a tile along the line.

    >>> from patterncc.layout.layout import Runs
    >>> runs = Runs(2, np.array([0, 2, 3]), np.array([[0, 9, 1], [9, 51, 0], [7, 3, 0]]))
    >>> work = work_list(runs, np.array([0]), 2, 1, 3)
    >>> work.items[:3, :6].tolist(), work.parts[0].tolist()
    ([[0, 0, 0, 0, 20, 0], [0, 0, 1, 11, 20, 1], [0, 0, 1, 31, 20, 2]], [0, 0, 3, 0])
    """
    found = Lines.of(runs, head_pattern, lines)
    longest = np.argsort(-found.tiles, kind="stable")
    sizes = found.tiles[longest], units, processors
    leading = _leading(*sizes)
    leads = np.zeros(len(longest), dtype=bool)
    leads[longest[:leading]] = True

    def made(slack: float, least: int) -> WorkList:
        pieces = np.empty_like(longest)
        pieces[longest] = _pieces(*sizes, least, leading, slack)
        return found.items(runs, pieces, leads)

    least = max(FEWEST, LEAST // width)
    cut = made(SLACK, least)
    if not len(cut.parts) or len(longest) * units > SIMULATED:
        return cut
    slacks, shortest = (4 * SLACK, SLACK), (least, max(1, least // 2), 2 * least)
    others = [made(*choice) for choice in [*product(slacks, shortest), (np.inf, least)]]
    return min([cut, *others], key=lambda x: makespan(x, units, processors, 1)[0])


@dataclass(frozen=True, eq=False)
class Lines:
    """The lines of all listed heads, one after the other.

    lines: of one head.  line: where each stands in the table of runs.  before: tiles before each
    run.  tiles: of each line.
    """

    lines: int
    line: NDArray[np.int64]
    before: NDArray[np.int64]
    tiles: NDArray[np.int64]

    @staticmethod
    def of(runs: Runs, head_pattern: NDArray[np.int32], lines: int) -> Lines:
        line = (head_pattern.astype(np.int64)[:, None] * lines + np.arange(lines)).reshape(-1)
        before = np.zeros(len(runs.run) + 1, dtype=np.int64)
        np.cumsum(runs.run[:, 1], out=before[1:])
        return Lines(lines, line, before, (before[runs.ptr[1:]] - before[runs.ptr[:-1]])[line])

    def items(self, runs: Runs, pieces: NDArray[np.int64], leads: NDArray[np.bool_]) -> WorkList:
        """Every line in so many pieces of even length, longest first; those that lead, before."""
        place = np.repeat(np.arange(len(self.line)), pieces)
        piece = np.arange(len(place)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        first, last = (self.tiles[place] * x // pieces[place] for x in (piece, piece + 1))
        cut, inside = pieces[place] > 1, piece > 0
        start = self.before[runs.ptr[self.line[place]][inside]] + first[inside]
        items = np.zeros((len(place), 8), dtype=np.int32)
        items[:, 0], items[:, 1] = place % self.lines, place // self.lines
        items[:, 2], items[:, 4] = runs.ptr[self.line[place]], last - first
        items[inside, 2] = np.searchsorted(self.before, start, side="right") - 1
        items[inside, 3] = start - self.before[items[inside, 2]]
        items[:, 5] = np.where(cut, np.cumsum(cut) - 1, -1)
        parts = np.zeros((int(cut.sum()), 4), dtype=np.int32)
        parts[:, :2] = items[cut, :2]
        parts[:, 2] = np.where(inside, 0, pieces[place])[cut]
        items = items[np.lexsort((-items[:, 4], ~leads[place]))]
        items[:1, 6] = leads[place].sum()
        return WorkList(items, parts)


def _leading(tiles: NDArray[np.int64], units: int, processors: int) -> int:
    """How many of the longest lines run for all heads before the sections.

    A program that starts when all work before it is evenly spread ends at most its own length
    later.  So a line ends in time if it is no longer than a processor's share of the work from it
    on and of `SLACK` of all heads' work.  In the last section only lines of the same head follow:
    the longest lines, if they were late there, lead, and are followed by everything else.
    """
    cost = tiles + START
    rest = cost.sum() - np.cumsum(cost) + cost
    late = cost * processors > rest + SLACK * units * cost.sum()
    return len(late) if late.all() else int(late.argmin())


def _pieces(
    tiles: NDArray[np.int64],
    units: int,
    processors: int,
    least: int,
    leading: int,
    slack: float,
) -> NDArray[np.int64]:
    """Into how many items each line is cut; `tiles` of the lines, longest first.

    What is late where it stands (see `_leading`) is cut: its items are no longer than a processor's
    share of all that follows it, which is in items no longer than that.  They are sorted in among
    the shorter lines.  What ends in time does so the more where more heads run.
    """
    cost = tiles + START
    share = np.full(len(tiles), slack * units * cost.sum())
    after = cost.sum() - np.cumsum(cost)  # of the same head
    share[:leading] += units * after[:leading]
    share[leading:] += after[leading:]
    late = cost * processors > share + cost
    cap = np.maximum(share / processors - START - PART, least)
    wanted = np.minimum(np.ceil(tiles / cap), tiles // least)
    return np.where(late, np.maximum(wanted, 1), 1).astype(np.int64)


def makespan(
    work: WorkList, units: int, processors: int, together: int, programs: int = 1
) -> tuple[float, float]:
    """(time, ideal) of one launch and of the merging after it, in tiles.

    Each program goes to the processor that is free first, in the order of the launch: the leading
    items for all units; then sections of `together` units, in each the other items, longest first.
    Innermost are the `programs` that share a tile row, and the units.  A program costs its tiles
    and `START`, one of a cut line `PART` more; merging costs `LAUNCH` and `MERGE` a part.  ideal:
    the tiles of all lines and `START` for each, spread evenly.

    >>> one = WorkList(np.array([[0, 0, 0, 0, 7, -1, 0, 0]], np.int32), np.zeros((0, 4), np.int32))
    >>> makespan(one, 8, 4, 8)
    (16.0, 16.0)
    """
    costs = work.items[:, 4] + START + PART * (work.items[:, 5] >= 0)
    lead = int(work.items[:1, 6].sum())
    sections = [min(together, units - at) for at in range(0, units, together)]
    groups = [(costs[:lead], units), *((costs[lead:], size) for size in sections)]
    time = _greedy(
        (float(c) for group, size in groups for c in group for _ in range(size * programs)),
        processors,
    )
    counts = work.parts[:, 2][work.parts[:, 2] > 0]
    if len(counts):
        each = MERGE / MERGERS * counts
        time += LAUNCH + _greedy(
            (float(c) for c in each for _ in range(MERGERS * units * programs)), processors
        )
    whole = int((work.items[:, 5] < 0).sum()) + len(counts)
    tiles = int(work.items[:, 4].sum(dtype=np.int64))
    return time, (tiles + START * whole) * units * programs / processors


def _greedy(costs: Iterable[float], processors: int) -> float:
    """When the last program ends, each started on the processor that is free first."""
    free = [0.0] * processors
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)
