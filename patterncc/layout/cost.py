"""The cost model: the time of one forward pass, from counts of tiles and a device's table.

tiles of a row      full ones cost their pairs, masked ones a share more
+ tiles, runs, rows what each costs beyond its pairs
-> over the device's processors; no sooner than the longest row, and than memory allows
+ copies            gathers of an order, merges of terms
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterncc.layout.cost_tables import Device, device
from patterncc.layout.cost_work import Work, work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.zones.order import Order
    from patterncc.zones.zoneset import ZoneSet

HEADS = 32
"""Heads (batch x heads) that are thought to run at once when nothing else is said."""


@dataclass(frozen=True)
class Estimate:
    """What a layout would cost, predicted.

    seconds: one forward pass of one head, among `heads` that run together, at `head_dim`.
    full, partial: tiles, summed over patterns; exact: whether they are the layout's own counts,
    else `full` is a lower bound and `full + partial` an upper one.
    masked: pairs of query and key in partial tiles.  bytes: of the layout's tables, at most.
    dense_seconds: dense attention over the same queries and keys, its causal half where no edge
    looks ahead.
    split_seconds: the same as seconds, were heavy rows split over processors.
    copy_seconds: of that, gathering by an order.
    bound: what the time is bound by: "tiles", "longest row" or "memory".
    """

    seconds: float
    full: int
    partial: int
    masked: int
    bytes: int
    dense_seconds: float
    split_seconds: float
    copy_seconds: float
    bound: str
    exact: bool
    block: tuple[int, int]
    target: str
    heads: int
    head_dim: int
    order: str


def estimate(
    zone_sets: Sequence[ZoneSet],
    block: tuple[int, int],
    *,
    target: str = "sm_90",
    order: Order | None = None,
    heads: int = HEADS,
    head_dim: int = 64,
    weights: Sequence[float] | None = None,
) -> Estimate:
    """Predict one forward pass over the tiles of some patterns, all in one frame.

    zone_sets: one a pattern, counted in the slots of `order` where one is given: the order itself
    only adds the gathers.  weights: heads of each pattern; equal ones unless given.

    >>> from patterncc import causal, lower, window
    >>> z = [lower(causal() & window(1023), 65536)]
    >>> small, large = estimate(z, (64, 64)), estimate(z, (128, 128))
    >>> large.seconds < small.seconds < small.dense_seconds
    True
    >>> large.full, large.partial
    (3556, 1016)

    Raises PatternValueError for a target that names no device.
    """
    found, frame = device(target), zone_sets[0].frame
    works = [work(z, block) for z in zone_sets]
    shares = _shares(len(works), weights)
    total = sum(w * _pairs(x, block, found) for w, x in zip(shares, works))
    longest = max(_row(x, block, found) for x in works)
    pair = found.pair(head_dim)
    even = total * pair / found.processors
    alone = longest * pair / heads
    moved = _least_bytes(frame.n, frame.n_k, head_dim, found) / found.bytes_per_second
    copies = _copy_bytes(frame.n, frame.n_k, head_dim, found) if order is not None else 0
    copy = copies / found.bytes_per_second
    call = found.call_ns * 1e-9 / heads
    limits = {"tiles": even, "longest row": alone, "memory": moved}
    partial = sum(x.partial for x in works)
    return Estimate(
        seconds=together(even, alone, moved) + copy + call,
        full=sum(x.full for x in works),
        partial=partial,
        masked=partial * block[0] * block[1],
        bytes=sum(_table_bytes(x, frame.n, frame.n_k, block) for x in works),
        dense_seconds=dense_seconds(zone_sets, target=target, heads=heads, head_dim=head_dim),
        split_seconds=together(even, moved) + copy + call,
        copy_seconds=copy,
        bound=max(limits, key=lambda k: limits[k]),
        exact=all(x.exact for x in works),
        block=block,
        target=found.target,
        heads=heads,
        head_dim=head_dim,
        order=order.name if order is not None else "token",
    )


def estimate_tiles(
    full: int,
    partial: int,
    block: tuple[int, int],
    *,
    rows: int = 0,
    runs: int | None = None,
    target: str = "sm_90",
    head_dim: int = 64,
) -> float:
    """Seconds of one head from counts of tiles alone: no longest row, no memory, no copies.

    runs: of tiles; without it every partial tile and every row's full tiles are a run.

    >>> estimate_tiles(100, 10, (128, 128)) < estimate_tiles(100, 20, (128, 128))
    True
    """
    found = device(target)
    runs = partial + min(full, rows or full) if runs is None else runs
    whole = Work(full, partial, partial, runs, rows, 0, True)
    return _pairs(whole, block, found) * found.pair(head_dim) / found.processors


def dense_seconds(
    zone_sets: Sequence[ZoneSet], *, target: str = "sm_90", heads: int = HEADS, head_dim: int = 64
) -> float:
    """Dense attention of one head over the frame; its causal half where no edge looks ahead."""
    found, frame = device(target), zone_sets[0].frame
    pairs = frame.n * frame.n_k
    if all(not len(z.table) or int(z.table[:, 5].max()) <= 1 for z in zone_sets):
        pairs = _causal_pairs(frame.n, frame.n_k, frame.q_offset - frame.k_offset)
    even = pairs * found.pair(head_dim, dense=True) / found.processors
    moved = _least_bytes(frame.n, frame.n_k, head_dim, found) / found.bytes_per_second
    return together(even, moved) + found.call_ns * 1e-9 / heads


def _causal_pairs(n: int, n_k: int, ahead: int) -> int:
    """Pairs (i, j) with j <= i + ahead: query i reads min(n_k, i + ahead + 1), at least none."""

    def below(x: int) -> int:  # 1 + 2 + .. + x
        return max(x, 0) * (max(x, 0) + 1) // 2

    past = below(n + ahead) - below(ahead)
    return past - (below(n + ahead - n_k) - below(ahead - n_k))


def together(*limits: float) -> float:
    """The time that several limits leave: the largest, a little more where others are near it.

    >>> together(1.0, 0.1), round(together(1.0, 1.0), 3)
    (1.0000249990625547, 1.189)
    """
    total: float = sum(x**4 for x in limits) ** 0.25
    return total


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    given = list(weights) if weights is not None else [1.0] * count
    total = sum(given)
    return [w / total for w in given]


def _pairs(x: Work, block: tuple[int, int], found: Device) -> float:
    """One head's work in pairs of a full tile."""
    area = block[0] * block[1]
    masked = x.partial * area * found.mask_share[_mask_class(x)]
    return (
        x.tiles * (area + found.tile_pairs)
        + masked
        + x.runs * found.run_pairs
        + x.rows * found.row_pairs
    )


def _row(x: Work, block: tuple[int, int], found: Device) -> float:
    """The longest row's work in pairs."""
    return x.longest * (block[0] * block[1] + found.tile_pairs) + found.row_pairs


def _mask_class(x: Work) -> str:
    """The class of the mean partial tile, from the zones that touch one."""
    mean = x.records / x.partial if x.partial else 1.0
    return "zones1" if mean <= 1 else "zones2" if mean <= 2 else "zones4" if mean <= 4 else "bits"


def _least_bytes(n: int, n_k: int, head_dim: int, found: Device) -> int:
    """Queries, outputs, keys and values, each moved once."""
    return 2 * (n + n_k) * head_dim * found.bytes_per_value


def _copy_bytes(n: int, n_k: int, head_dim: int, found: Device) -> int:
    """Queries, keys, values gathered and the output put back: read and written."""
    return 2 * _least_bytes(n, n_k, head_dim, found)


def _table_bytes(x: Work, n: int, n_k: int, block: tuple[int, int]) -> int:
    """Pointers and runs, both directions; masks are shared and mostly few."""
    lines, columns = -(-n // block[0]), -(-n_k // block[1])
    return 4 * (lines + columns + 2) + 2 * 12 * x.runs
