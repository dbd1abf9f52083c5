"""The kernels' tables of packed documents, made where their ids live, without waiting for it.

Every shape follows from lengths and tile sides alone: no tensor's value is read on the host.  A row
of tiles (a *line*) has a fixed list of runs, of which those of no tile are moved out of the way:

    first document of the line        its diagonal       last document of the line
    [curve ...] [constant ...] [cut]  [bits ...]  [constant ...] [curve ...]

Only the first document of a line reads to the left of the line's own tokens, only the last one to
the right of them, and between stand at most a few tiles, whose masks are bits.  To the left a tile
is crossed by the window's or the document's first key (*curve*), is read whole by the document's
rows (*constant*, full if these are all rows), or holds the end of the keys (*cut*).  The columns
are made by the same function with queries and keys exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count as count_up

import torch
from torch import Tensor

from patterncc.kernels.work import LEVELS

FAR = 4096  # past every tile-local diagonal; stands for no bound


@dataclass(frozen=True)
class Side:
    """One direction, local counts: own tokens make lines, the others make columns.

    own, across: how many there are of each.  tile: of own tokens x of others.  skew: a token's own
    count minus its count among the others.  low, high: it reads others of counts minus its own in
    [low, high), None for no bound; 0 - skew lies in between.  by_key: own tokens are keys.
    """

    own: int
    across: int
    tile: tuple[int, int]
    skew: int
    low: int | None
    high: int | None
    by_key: bool

    @property
    def lines(self) -> int:
        """Rows of tiles."""
        return -(-self.own // self.tile[0])

    @property
    def columns(self) -> int:
        """Columns of tiles."""
        return -(-self.across // self.tile[1])

    @property
    def T(self) -> Side:  # noqa: N802 - the name that matrices have
        """The other direction."""
        return Side(
            self.across,
            self.own,
            self.tile[::-1],
            -self.skew,
            None if self.high is None else 1 - self.high,
            None if self.low is None else 1 - self.low,
            not self.by_key,
        )

    @property
    def before(self) -> int:
        """Tiles that the first keys of a document's rows in one line can cross; 0 if none lies to
        the left."""
        if self.low is not None and self.low >= -self.skew:
            return 0
        return self._crossed(self.low)

    @property
    def behind(self) -> int:
        """The same of the ends, to the right."""
        if self.high is not None and self.high <= 1 - self.skew:
            return 0
        return self._crossed(self.high)

    def _crossed(self, bound: int | None) -> int:
        return 1 + (0 if bound is None else -(-(self.tile[0] - 1) // self.tile[1]))

    @property
    def diagonal(self) -> int:
        """Columns that a line's own tokens can meet."""
        first = [(r * self.tile[0] - self.skew) % self.tile[1] for r in range(16)]
        return (max(first) + self.tile[0] - 1) // self.tile[1] + 1

    @property
    def slots(self) -> int:
        """Zones of a line."""
        return self.before + 2 * bool(self.before) + bool(self.behind) + self.behind


@dataclass(frozen=True)
class Spans:
    """Documents by token, int64 [S, tokens], as counts of the other side, and which tokens count.

    start, end: of the token's document; equal for padding.  own_start, own_end: in own counts.
    limit: how many own tokens count, [S, 1].
    """

    start: Tensor
    end: Tensor
    own_start: Tensor
    own_end: Tensor
    real: Tensor
    limit: Tensor


@dataclass(frozen=True)
class Lines:
    """The runs of each line, all int64 [S, lines, runs], and the masks that they name.

    kind: 0 none and full tiles, 1 a zone, 2 bits; index: which one of the line.
    zones: [S, lines, slots, 6]; bits: int32 [S, lines, diagonal, own tokens of a tile, words].
    """

    first: Tensor
    count: Tensor
    kind: Tensor
    index: Tensor
    zones: Tensor
    bits: Tensor


def tables(side: Side, by_rows: Spans, by_columns: Spans) -> list[Tensor]:
    """head_pattern, ptr and run of rows and of columns, zone, bits and bits by key: what
    `tables.kernel_tables` gives for a layout.  `side` is that of the queries."""
    rows, columns = lines(side, by_rows), lines(side.T, by_columns)
    sequences = by_rows.start.shape[0]
    zone_count = sequences * (side.lines * side.slots + side.T.lines * side.T.slots)
    row_ptr, row_run = _compact(rows, 0, zone_count)
    col_ptr, col_run = _compact(columns, sequences * side.lines * side.slots, zone_count)
    zones = torch.cat([rows.zones.flatten(0, 2), _exchanged(columns.zones).flatten(0, 2)])
    zone = torch.nn.functional.pad(zones, (0, 2)).to(torch.int32)[:, None]
    head_pattern = torch.arange(sequences, dtype=torch.int32, device=zone.device)
    bits = [x.bits.flatten(0, 2) for x in (rows, columns)]
    work = [
        *whole_lines(row_ptr, row_run, sequences),
        *whole_lines(col_ptr, col_run, sequences),
    ]
    return [head_pattern, row_ptr, row_run, col_ptr, col_run, zone, *bits, *work]


def whole_lines(ptr: Tensor, run: Tensor, sequences: int) -> list[Tensor]:
    """The work lists of one direction: whole lines, longest first, the same for every level."""
    count = len(ptr) - 1
    steps = run[ptr[1:].long(), 3] - run[ptr[:-1].long(), 3]
    line = torch.arange(count, device=ptr.device)
    each = count // sequences
    zero = torch.zeros_like(steps)
    columns = [line % each, line // each, ptr[:-1], zero, steps, zero - 1, zero, zero]
    items = torch.stack([x.to(torch.int32) for x in columns], 1)
    ordered = items[torch.argsort(steps, descending=True, stable=True)]
    return [ordered, ordered.new_zeros(0, 4)] * len(LEVELS)


def lines(side: Side, spans: Spans) -> Lines:
    """All lines of one direction."""
    height, width = side.tile
    device = spans.start.device
    top = torch.arange(side.lines, device=device) * height
    last = torch.clamp(top + height, max=side.own) - 1
    rows = last - top + 1  # tokens that exist
    live = torch.clamp(spans.limit - top, min=torch.zeros_like(rows), max=rows)  # that count
    low, high = spans.start, spans.end
    at = torch.arange(side.own, device=device)
    if side.low is not None:
        low = torch.maximum(low, at + side.low)
    if side.high is not None:
        high = torch.minimum(high, at + side.high)
    left = torch.div(top - side.skew, width, rounding_mode="floor")  # columns of the diagonal
    runs = _before(side, spans, top, live, rows, left) if side.before else []
    words, tiles = _diagonal(side, low, high, top, last, live, left)
    runs += tiles
    if side.behind:
        runs += _behind(side, spans, top, last, live, rows, left + side.diagonal)
    zones = [torch.stack(r.bounds, -1) for r in runs if r.bounds]
    empty = torch.zeros(*live.shape, 0, 6, dtype=torch.int64, device=device)
    count = [torch.clamp(r.last - r.first, min=0) for r in runs]
    kind = [torch.where(r.full, 0, 1 if r.bounds else 2) for r in runs]
    zone_at, bits_at = count_up(), count_up()
    index = [next(zone_at if r.bounds else bits_at) for r in runs]
    return Lines(
        first=torch.stack([r.first for r in runs], 2),
        count=torch.stack(count, 2),
        kind=torch.stack(kind, 2),
        index=torch.stack([torch.full_like(live, i) for i in index], 2),
        zones=torch.stack(zones, 2) if zones else empty,
        bits=words,
    )


@dataclass(frozen=True)
class Run:
    """Tiles [first, last) of every line, of one mask: full, else a zone, else the next bits."""

    first: Tensor
    last: Tensor
    full: Tensor
    bounds: tuple[Tensor, ...]

    @staticmethod
    def of(first: Tensor, last: Tensor, full: Tensor, bounds: list[Tensor | int]) -> Run:
        """Bounds of one zone (own tokens, others, their difference), none for bits."""
        some = (
            b.expand_as(first) if isinstance(b, Tensor) else torch.full_like(first, b)
            for b in bounds
        )
        return Run(first, last, full, tuple(some))


def _before(
    side: Side, spans: Spans, top: Tensor, live: Tensor, rows: Tensor, left: Tensor
) -> list[Run]:
    """Runs left of the diagonal: of the line's first document."""
    width = side.tile[1]
    start, end = spans.start[:, top], spans.end[:, top]
    held = torch.minimum(spans.own_end[:, top] - top, live) * spans.real[:, top]
    first, steep = start, start
    if side.low is not None:
        first = torch.maximum(start, top + side.low)
        steep = torch.maximum(start, top + held - 1 + side.low)
    none = torch.zeros_like(held, dtype=torch.bool)
    stop = torch.clamp(torch.minimum(-(-end // width), left), max=side.columns)
    stop = torch.where(held > 0, stop, 0)
    flat = -(-steep // width)  # from here on all rows of the document read whole tiles
    runs = []
    for t in range(side.before):
        column = first // width + t
        diagonal = -FAR if side.low is None else _near(side.low + top - column * width)
        box = [start - column * width, torch.clamp(end - column * width, max=width)]
        bounds: list[Tensor | int] = [0, held, torch.clamp(box[0], 0, width), box[1]]
        bounds += [diagonal, FAR]
        once = torch.minimum(torch.minimum(column + 1, flat), stop)
        runs.append(Run.of(column, once, none, bounds))
    whole = _whole(end, side) if side.by_key else end // width
    full = held == (side.tile[0] if side.by_key else rows)
    bounds = [0, held, 0, width, -FAR, FAR]
    runs.append(Run.of(flat, torch.minimum(whole, stop), full, bounds))
    cut = torch.maximum(flat, whole)
    bounds = [0, held, 0, torch.clamp(end - cut * width, 0, width), -FAR, FAR]
    runs.append(Run.of(cut, torch.minimum(cut + 1, stop), none, bounds))
    return runs


def _behind(
    side: Side,
    spans: Spans,
    top: Tensor,
    last: Tensor,
    live: Tensor,
    rows: Tensor,
    right: Tensor,
) -> list[Run]:
    """Runs right of the diagonal: of the line's last document."""
    width = side.tile[1]
    end = spans.end[:, last]
    begin = torch.clamp(spans.own_start[:, last] - top, min=0)
    none = torch.zeros_like(begin, dtype=torch.bool)
    some = spans.real[:, last] & (begin < live)
    right = torch.clamp(right, min=0)
    first, steep = end, end
    if side.high is not None:
        first = torch.minimum(end, top + begin + side.high)
        steep = torch.minimum(end, top + live - 1 + side.high)
    flat = torch.maximum(_whole(first, side) if side.by_key else first // width, right)
    full = (begin == 0) & (live == (side.tile[0] if side.by_key else rows))
    stop = torch.where(some, flat, right)
    bounds: list[Tensor | int] = [begin, live, 0, width, -FAR, FAR]
    runs = [Run.of(right.expand_as(stop), stop, full, bounds)]
    stop = torch.where(some, -(-steep // width), 0)
    for t in range(side.behind):
        column = flat + t
        diagonal = FAR if side.high is None else _near(side.high + top - column * width)
        across = torch.clamp(end - column * width, 0, width)
        bounds = [begin, live, 0, across, -FAR, diagonal]
        runs.append(Run.of(column, torch.minimum(column + 1, stop), none, bounds))
    return runs


def _diagonal(
    side: Side,
    low: Tensor,
    high: Tensor,
    top: Tensor,
    last: Tensor,
    live: Tensor,
    left: Tensor,
) -> tuple[Tensor, list[Run]]:
    """Runs of the tiles that hold a line's own tokens, one a tile, and their bits."""
    height, width = side.tile
    at = top[:, None] + torch.arange(height, device=top.device)
    row = torch.clamp(at, max=side.own - 1)
    counts = (at - top[:, None] < live[..., None])[..., None]
    below = _below(width, top.device)
    all_live = live == (height if side.by_key else last - top + 1)
    made, runs = [], []
    for t in range(side.diagonal):
        column = left + t
        start = (column * width)[:, None]
        ends = (torch.clamp(x[:, row] - start, 0, width) for x in (low, high))
        first, past = (below[x] for x in ends)
        words = torch.where(counts, past & ~first, 0)
        made.append(words)
        until = (column + 1) * width
        if side.by_key:
            until = torch.clamp(until, max=side.across)
        full = (low[:, last] <= column * width) & (high[:, top] >= until) & all_live
        touched = (words != 0).any(-1).any(-1) & (column >= 0) & (column < side.columns)
        runs.append(Run.of(column.expand_as(full), column + touched, full, []))
    return torch.stack(made, 2), runs


def _whole(end: Tensor, side: Side) -> Tensor:
    """Columns filled up to `end`: the last one may be cut off by the last query."""
    width = side.tile[1]
    return torch.where(end == side.across, -(-end // width), end // width)


def _near(diagonal: Tensor) -> Tensor:
    return torch.clamp(diagonal, -FAR, FAR)


def _below(width: int, device: torch.device) -> Tensor:
    """[b]: bits 0 .. b - 1 of a row of `width` columns, as `fragment_order` puts them.

    int32 [width + 1, words]: bit 2 t + b of word q of a group of 128 is its column 8 t + 2 q + b.
    """
    groups = -(-width // 128)
    bit = torch.arange(32, device=device)
    word = torch.arange(4 * groups, device=device)[:, None]
    column = word // 4 * 128 + bit // 2 * 8 + word % 4 * 2 + bit % 2
    set_bits = column < torch.arange(width + 1, device=device)[:, None, None]
    words = (set_bits.to(torch.int64) << bit).sum(-1)
    signed = torch.where(words >= 2**31, words - 2**32, words)
    return signed.to(torch.int32)


def _exchanged(zones: Tensor) -> Tensor:
    """Zones of keys x queries as zones of queries x keys."""
    k0, k1, q0, q1, d0, d1 = zones.unbind(-1)
    return torch.stack([q0, q1, k0, k1, 1 - d1, 1 - d0], -1)


def _compact(x: Lines, zone_base: int, zone_count: int) -> tuple[Tensor, Tensor]:
    """ptr and run: runs of some tile one after the other; what is behind them are sentinels."""
    sequences, lines, width = x.first.shape
    line = torch.arange(sequences * lines, device=x.first.device).view(sequences, lines, 1)
    zone = zone_base + line * x.zones.shape[2] + x.index
    bits = zone_count + line * x.bits.shape[2] + x.index
    word = torch.where(x.kind == 0, 0, 1 + torch.where(x.kind == 1, zone, bits))
    count = x.count.flatten()
    kept = count > 0
    place = torch.cumsum(kept, 0)
    tiles = torch.cumsum(count, 0)
    size = len(count)
    run = torch.zeros(size + 3, 4, dtype=torch.int64, device=count.device)
    run[:, 3] = tiles[-1]
    target = torch.where(kept, place - 1, size + 2)  # the last entry takes what is dropped
    columns = [x.first.flatten(), count, word.flatten(), tiles - count]
    run.index_copy_(0, target, torch.stack(columns, 1))
    ends = place.view(-1, width)[:, -1]
    ptr = torch.nn.functional.pad(ends, (1, 0))
    return ptr.to(torch.int32), run[:-1].to(torch.int32)
