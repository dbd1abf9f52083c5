"""A layout's tile rows turned into few, large attention calls for the CPU.

torch's flash kernel for the CPU answers one question well: many queries against one stretch of
keys, over a batch.  A schedule cuts the touched tiles of a pattern into *segments* (neighbouring
tiles read by one chunk of query rows) and gathers segments that repeat into one call:

    Band      chunks at a constant step, whose segments move at a constant step: the slanted band of
              a window (keys move with the queries), a sink or global column (keys stand still)
    Scatter   chunks that read a few tiles each, at places without order: tiles copied side by side

Calls that read different keys for one query are merged by LSE, so any cut is exact.  Nothing here
imports torch, and nothing is larger than the layout itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from patterncc.kernels.cpu.mask import Masks
from patterncc.kernels.cpu.segments import BIAS_KEYS, Rows, Segment, cut, words_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What things cost, in units of one query-key pair inside a large call (measured at head dim 64).
MERGE_ROW = 75  # merging one query row of a second result by LSE
GATHER_KEY = 60  # copying one key and one value
CALL = 4000  # starting a kernel, shared by the heads
MASK = 0.05  # adding a bias to one pair
GRAD_KEY = 45  # adding the gradients of one key and one value to the sums, in the backward pass

SHORT_KEYS = (
    640  # an unrepeated segment up to here is copied next to others; a longer one is a call
)
REPEATS = 4  # a segment seen in so many chunks is worth a call of its own
STACKED = 1.1  # segments share a call if that costs at most so many times as much
CHUNKS = (1, 2, 3, 4, 6, 8, 12, 16)  # tile rows of one chunk that are tried
CHUNK_QUERIES = (48, 512)  # least and most queries of a chunk, where the tile allows


@dataclass(frozen=True, eq=False)
class Band:
    """`batch` chunks; number b reads keys first_key + b * key_step .. + keys for the queries
    first_query + b * query_step .. + queries.

    words: None when all pairs are edges, else int32 [tile rows, tiles], one mask word a tile, the
    same for every chunk.  corner: where the first query and key stand inside those tiles.
    fresh: no earlier call has written these queries.
    """

    first_query: int
    query_step: int
    queries: int
    first_key: int
    key_step: int
    keys: int
    batch: int
    words: NDArray[np.int32] | None
    corner: tuple[int, int]
    fresh: bool


@dataclass(frozen=True, eq=False)
class Scatter:
    """Chunk `chunks[b]` reads the key tiles `tiles[b]`, copied side by side.

    chunks: int64 [batch].  tiles: int64 [batch, count].  side: keys of a tile.
    words: None when all tiles are full, else int32 [batch, tile rows, count].
    """

    chunks: NDArray[np.int64]
    queries: int
    side: int
    tiles: NDArray[np.int64]
    words: NDArray[np.int32] | None
    fresh: bool


Call = Band | Scatter


@dataclass(frozen=True, eq=False)
class Schedule:
    """All calls of one pattern, in the order in which they run.

    chunk: queries of a chunk.  merges: some query is written by more than one call.
    """

    calls: tuple[Call, ...]
    chunk: int
    merges: bool
    cost: float


def build(rows: Rows, masks: Masks, backward: bool = False) -> Schedule:
    """The cheapest schedule over the chunk sizes that are tried, for one of the two passes."""
    lines = len(rows.ptr) - 1
    low, high = CHUNK_QUERIES
    sizes = [c for c in CHUNKS if c == 1 or low <= c * rows.block[0] <= high]
    sizes = [c for c in sizes if c <= max(1, lines)]
    best: Schedule | None = None
    for size in sizes:
        schedule = build_chunks(rows, masks, size, backward)
        if best is None or schedule.cost < best.cost:
            best = schedule
        elif schedule.cost > 1.2 * best.cost:
            break  # waste grows with the chunk
    assert best is not None
    return best


def build_chunks(rows: Rows, masks: Masks, size: int, backward: bool = False) -> Schedule:
    """The schedule with `size` tile rows in a chunk."""
    segments = [s for chunk in cut(rows, size) for s in chunk]
    repeated, lone = _repeats(segments, rows, size)
    irregular: dict[int, list[Segment]] = defaultdict(list)
    singles = []
    for s in _stacked(lone, rows, size):
        if (
            len(s.rows) == size
            and _movable(s, rows, size)
            and s.tiles * rows.block[1] <= SHORT_KEYS
        ):
            irregular[s.chunk].append(s)
        else:
            singles.append([s])
    drafts: list[Call] = []
    for group in sorted(repeated + singles, key=lambda g: -len(g) * g[0].tiles):
        drafts.append(_band(group, rows, masks, size))
    drafts += _scatters(irregular, rows, size)
    return _ordered(drafts, rows, size, backward)


def _movable(s: Segment, rows: Rows, size: int) -> bool:
    """All its queries and keys exist, so it may stand in a batch with others of its shape."""
    whole_keys = (s.first + s.tiles) * rows.block[1] <= rows.n_k
    return whole_keys and (s.chunk + 1) * size * rows.block[0] <= rows.n


def _repeats(
    segments: Sequence[Segment], rows: Rows, size: int
) -> tuple[list[list[Segment]], list[Segment]]:
    """Segments in groups that one strided call can serve, and those that stand alone."""
    moving: dict[object, list[Segment]] = defaultdict(list)
    standing: dict[object, list[Segment]] = defaultdict(list)
    lone = []
    for s in segments:
        if _movable(s, rows, size):
            standing[s.first, s.tiles, s.rows].append(s)
        else:
            lone.append(s)
    groups = []
    for same in standing.values():
        for group in _progressions(same):
            if len(group) >= REPEATS:
                groups.append(group)
                continue
            for s in group:
                ahead = s.first * rows.block[1] - s.chunk * size * rows.block[0]
                moving[ahead, s.tiles, s.rows].append(s)
    for same in moving.values():
        for group in _progressions(same):
            if len(group) >= REPEATS:
                groups.append(group)
            else:
                lone += group
    return groups, lone


def _stacked(lone: list[Segment], rows: Rows, size: int) -> list[Segment]:
    """Masked segments of neighbouring chunks over nearly the same keys, as one of more rows.

    A window's first and last rows, cut off by the ends of the sequence, become one call each.
    """
    stacked: list[Segment] = []
    for s in sorted(lone, key=lambda s: (s.chunk, s.first)):
        below = next((x for x in stacked[-4:] if _stackable(x, s, rows, size)), None)
        if below is None:
            stacked.append(s)
            continue
        first = min(below.first, s.first)
        tiles = max(below.first + below.tiles, s.first + s.tiles) - first
        moved = [
            tuple((a + x.first - first, count, word) for a, count, word in row)
            for x in (below, s)
            for row in x.rows
        ]
        stacked[stacked.index(below)] = Segment(below.chunk, first, tiles, tuple(moved))
    return stacked


def _stackable(a: Segment, b: Segment, rows: Rows, size: int) -> bool:
    """b stands right below a, and one call for both costs little more than one for each."""
    height, width = rows.block
    first, last = min(a.first, b.first), max(a.first + a.tiles, b.first + b.tiles)
    queries = (len(a.rows) + len(b.rows)) * height
    shared = a.tiles + b.tiles - (last - first)
    if a.full or b.full or a.chunk * size + len(a.rows) != b.chunk * size:
        return False
    if 2 * shared < min(a.tiles, b.tiles) or (last - first) * width > BIAS_KEYS or queries > 512:
        return False
    apart = [_pairs(len(x.rows) * height, x.tiles * width) + CALL for x in (a, b)]
    return _pairs(queries, (last - first) * width) + CALL < STACKED * sum(apart)


def _progressions(segments: list[Segment]) -> list[list[Segment]]:
    """Cut into lists whose chunks are equally far apart, greedily."""
    groups: list[list[Segment]] = []
    for s in sorted(segments, key=lambda s: s.chunk):
        if groups and len(groups[-1]) > 1:
            a, b = groups[-1][-2:]
            if s.chunk - b.chunk == b.chunk - a.chunk:
                groups[-1].append(s)
                continue
        elif groups:
            groups[-1].append(s)
            continue
        groups.append([s])
    return groups


def _band(group: list[Segment], rows: Rows, masks: Masks, size: int) -> Band:
    """One call for a group, trimmed to the queries and keys that its masks use."""
    s, chunk = group[0], size * rows.block[0]
    first, key = s.chunk * chunk, s.first * rows.block[1]
    queries = min(len(s.rows) * rows.block[0], rows.n - first)
    keys = min(s.tiles * rows.block[1], rows.n_k - key)
    step = (group[1].chunk - s.chunk) * chunk if len(group) > 1 else chunk
    key_step = (group[1].first - s.first) * rows.block[1] if len(group) > 1 else 0
    if s.full:
        if key_step == 0 and step == chunk:  # neighbours that read the same keys: one long chunk
            queries = queries if len(group) == 1 else chunk * len(group)
            return Band(first, queries, queries, key, 0, keys, 1, None, (0, 0), False)
        return Band(first, step, queries, key, key_step, keys, len(group), None, (0, 0), False)
    words = words_of(s)
    i0, i1, j0, j1 = masks.bounds(words)
    i1, j1 = min(i1, queries), min(j1, keys)
    return Band(
        first + i0, step, i1 - i0, key + j0, key_step, j1 - j0, len(group), words, (i0, j0), False
    )


def _scatters(irregular: dict[int, list[Segment]], rows: Rows, size: int) -> list[Call]:
    """One call for all chunks with the same number of unordered tiles."""
    shapes: dict[tuple[int, bool], list[list[Segment]]] = defaultdict(list)
    for segments in irregular.values():
        count = sum(s.tiles for s in segments)
        shapes[count, all(s.full for s in segments)].append(segments)
    calls: list[Call] = []
    for (_, full), chunks in sorted(shapes.items()):
        calls.append(
            Scatter(
                chunks=np.array([c[0].chunk for c in chunks], dtype=np.int64),
                queries=size * rows.block[0],
                side=rows.block[1],
                tiles=np.array(
                    [[s.first + t for s in c for t in range(s.tiles)] for c in chunks],
                    dtype=np.int64,
                ),
                words=None
                if full
                else np.stack([np.concatenate([words_of(s) for s in c], axis=1) for c in chunks]),
                fresh=False,
            )
        )
    return calls


def _ordered(drafts: list[Call], rows: Rows, size: int, backward: bool) -> Schedule:
    """Mark the first call of each chunk, and add up the cost."""
    chunk = size * rows.block[0]
    written = np.zeros(-(-rows.n // chunk) if rows.n else 0, dtype=bool)
    calls: list[Call] = []
    merges, cost = False, 0.0
    for call in drafts:
        if isinstance(call, Band):
            if call.queries <= 0 or call.keys <= 0:
                continue  # tiles whose masks hold nothing
            starts = call.first_query + call.query_step * np.arange(call.batch)
            ends = starts + call.queries - 1
            touched = np.unique(
                np.concatenate(
                    [np.arange(a, b + 1) for a, b in zip(starts // chunk, ends // chunk)]
                )
            )
        else:
            touched = call.chunks
        fresh = not written[touched].any()
        written[touched] = True
        merges |= not fresh
        calls.append(replace(call, fresh=fresh))
        cost += _cost(call, fresh, rows.block[1], backward)
    return Schedule(tuple(calls), chunk, merges, cost)


def _cost(call: Call, fresh: bool, side: int, backward: bool) -> float:
    """Estimated time of a call for one head, in pairs."""
    if isinstance(call, Band):
        batch, keys, gathered = call.batch, call.keys, 0
    else:
        batch, keys = len(call.chunks), call.tiles.shape[1] * side
        gathered = keys
    pairs = _pairs(call.queries, keys, call.words is not None)
    rows = call.queries * (MERGE_ROW if not fresh and not backward else MERGE_ROW / 3)
    copied = gathered * GATHER_KEY + (keys * GRAD_KEY if backward else 0)
    return batch * (pairs + rows + copied) + CALL


def _pairs(queries: int, keys: int, masked: bool = True) -> float:
    """Estimated time of the kernel alone; short chunks leave its matrix products too small."""
    return queries * keys * (0.97 + 2200 / queries**2 + (MASK if masked else 0))
