"""The cost model: the time of one forward pass, from counts of tiles and a device's table.

tiles of a row      full ones cost their pairs, masked ones a share more
+ tiles, runs, rows what each costs beyond its pairs
-> over the device's processors; no sooner than the longest row, and than memory allows
+ copies            gathers of an order, merges of terms
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterncc.layout.cost.tables import MASKS, Device, device
from patterncc.layout.cost.work import Counts, Part, Work, part, work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.zones.orders.order import Order
    from patterncc.zones.zoneset import Frame, ZoneSet

HEADS = 32
"""Heads (batch x heads) that are thought to run at once when nothing else is said."""


@dataclass(frozen=True)
class Estimate:
    """What a layout would cost, predicted.

    seconds: one forward pass of one head, among `heads` that run together, at `head_dim`.
    full, partial: tiles, summed over patterns.  counts: "exact" where these are the layout's own;
    "bound" where `full` is a lower and `full + partial` an upper bound, as where tiles that several
    zones fill together count as partial; "sample" where some rows stood for all.
    records: partial tiles, each as often as zones touch it without filling it.
    masked: pairs of query and key in partial tiles.  bytes: of the layout's tables, about.
    dense_seconds: dense attention over the same queries and keys, its causal half where no edge
    looks ahead; slots of an order say nothing of that.
    split_seconds: the same as seconds, were heavy rows split over processors.
    copy_seconds: of that, gathering by an order.  merge_seconds: what it costs to merge this with
    another term.
    bound: what the time is bound by: "tiles", "longest row" or "memory".
    """

    seconds: float
    full: int
    partial: int
    records: int
    masked: int
    bytes: int
    dense_seconds: float
    split_seconds: float
    copy_seconds: float
    merge_seconds: float
    bound: str
    counts: Counts
    block: tuple[int, int]
    target: str
    heads: int
    head_dim: int
    order: str


def estimate(
    zone_sets: Sequence[ZoneSet],
    block: tuple[int, int],
    *,
    target: str | Device = "sm_90",
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
    return price(
        [part(z) for z in zone_sets],
        block,
        device(target),
        order=order,
        heads=heads,
        head_dim=head_dim,
        weights=weights,
        ahead=looks_ahead(zone_sets),
    )


def price(
    parts: Sequence[Part],
    block: tuple[int, int],
    found: Device,
    *,
    order: Order | None = None,
    heads: int = HEADS,
    head_dim: int = 64,
    weights: Sequence[float] | None = None,
    ahead: bool = True,
) -> Estimate:
    """`estimate` of patterns that were made ready for counting, as one does for several blocks."""
    frame = parts[0].frame
    works = [work(p, block) for p in parts]
    total = sum(w * _pairs(x, block, found) for w, x in zip(_shares(len(works), weights), works))
    pair = found.pair(head_dim)
    limits = {
        "tiles": total * pair / found.processors,
        "longest row": max(_row(x, block, found) for x in works) * pair / heads,
        "memory": _least_bytes(frame, head_dim, found) / found.bytes_per_second,
    }
    # queries, keys and values gathered, the output put back: read and written
    copy = 2 * limits["memory"] if order is not None else 0.0
    more = copy + found.call_ns * 1e-9 / heads
    partial = sum(x.partial for x in works)
    return Estimate(
        seconds=together(*limits.values()) + more,
        full=sum(x.full for x in works),
        partial=partial,
        records=sum(x.records for x in works),
        masked=partial * block[0] * block[1],
        bytes=sum(_table_bytes(x, frame, block) for x in works),
        dense_seconds=dense_price(frame, found, heads, head_dim, ahead),
        split_seconds=together(limits["tiles"], limits["memory"]) + more,
        copy_seconds=copy,
        merge_seconds=_merge_bytes(frame, head_dim, found) / found.bytes_per_second,
        bound=max(limits, key=lambda k: limits[k]),
        counts=_worst(works),
        block=block,
        target=found.target,
        heads=heads,
        head_dim=head_dim,
        order=order.name if order is not None else "token",
    )


def in_terms(parts: Sequence[Estimate]) -> float:
    """Seconds of several terms that run one after another and are merged by LSE.

    >>> from patterncc import causal, lower
    >>> e = estimate([lower(causal(), 4096)], (128, 128))
    >>> in_terms([e]) == e.seconds, in_terms([e, e]) > 2 * e.seconds
    (True, True)
    """
    return sum(e.seconds for e in parts) + sum(e.merge_seconds for e in parts[1:])


def estimate_tiles(
    full: int,
    partial: int,
    block: tuple[int, int],
    *,
    rows: int = 0,
    runs: int | None = None,
    target: str | Device = "sm_90",
    head_dim: int = 64,
) -> float:
    """Seconds of one head from counts of tiles alone: no longest row, no memory, no copies.

    runs: of tiles; without it every partial tile and every row's full tiles are a run.

    >>> estimate_tiles(100, 10, (128, 128)) < estimate_tiles(100, 20, (128, 128))
    True
    """
    found = device(target)
    runs = partial + min(full, rows or full) if runs is None else runs
    whole = Work(full, partial, partial, runs, rows, 0, "exact")
    return _pairs(whole, block, found) * found.pair(head_dim) / found.processors


def dense_seconds(
    zone_sets: Sequence[ZoneSet],
    *,
    target: str | Device = "sm_90",
    heads: int = HEADS,
    head_dim: int = 64,
) -> float:
    """Dense attention of one head over the frame; its causal half where no edge looks ahead."""
    found, frame = device(target), zone_sets[0].frame
    return dense_price(frame, found, heads, head_dim, looks_ahead(zone_sets))


def looks_ahead(zone_sets: Sequence[ZoneSet]) -> bool:
    """Whether some query reads a later position."""
    return any(len(z.table) and int(z.table[:, 5].max()) > 1 for z in zone_sets)


def dense_price(frame: Frame, found: Device, heads: int, head_dim: int, ahead: bool) -> float:
    """Seconds of dense attention of one head; ahead: some query reads a later position."""
    pairs = frame.n * frame.n_k
    if not ahead:
        pairs = _causal_pairs(frame.n, frame.n_k, frame.q_offset - frame.k_offset)
    even = pairs * found.pair(head_dim, dense=True) / found.processors
    moved = _least_bytes(frame, head_dim, found) / found.bytes_per_second
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
    """One head's work in pairs of a full tile; a kernel takes tall and wide tiles in steps."""
    area = block[0] * block[1]
    down = max(1, block[0] // found.step[0])
    across = max(1, block[1] // found.step[1])
    return (
        (x.tiles + x.partial * _mask_share(x, found)) * area
        + x.tiles * down * across * found.tile_pairs
        + x.runs * down * found.run_pairs
        + x.rows * down * found.row_pairs
    )


def _row(x: Work, block: tuple[int, int], found: Device) -> float:
    """The longest row's work in pairs."""
    return x.longest * (block[0] * block[1] + found.tile_pairs) + found.row_pairs


def _mask_share(x: Work, found: Device) -> float:
    """What the mean partial tile's mask adds, from the zones that touch one."""
    mean = x.records / x.partial if x.partial else 1.0
    places, shares = (1, 2, 4, 6), [found.mask_share[name] for name in MASKS]
    for a, b, low, high in zip(places, places[1:], shares, shares[1:]):
        if mean <= b:
            return low + (high - low) * (max(mean, a) - a) / (b - a)
    return shares[-1]


def _worst(works: Sequence[Work]) -> Counts:
    """How sure the counts of all patterns are."""
    order: tuple[Counts, ...] = ("exact", "bound", "sample")
    return max((x.counts for x in works), key=order.index)


def _least_bytes(frame: Frame, head_dim: int, found: Device) -> int:
    """Queries, outputs, keys and values, each moved once."""
    return 2 * (frame.n + frame.n_k) * head_dim * found.bytes_per_value


def _merge_bytes(frame: Frame, head_dim: int, found: Device) -> int:
    """Two outputs and two LSEs read, one of each written."""
    return 3 * frame.n * (head_dim * found.bytes_per_value + 4)


def _table_bytes(x: Work, frame: Frame, block: tuple[int, int]) -> int:
    """Pointers and runs, both directions; masks are shared and mostly few."""
    lines, columns = -(-frame.n // block[0]), -(-frame.n_k // block[1])
    return 4 * (lines + columns + 2) + 2 * 12 * x.runs
