"""What the compiler weighs: token orders and tile sizes side by side, the one it takes, and why.

each layer  -->  its orders as terms  -->  x tile sizes  -->  predicted seconds  -->  a table
                                                              beside dense attention
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternError, PatternValueError, SizeError, joined
from patterncc.layout.build import build
from patterncc.layout.cost.choose import choose_block
from patterncc.layout.cost.model import HEADS, dense_price, in_terms, looks_ahead, price
from patterncc.layout.cost.tables import MASKS, Device, device
from patterncc.layout.cost.work import part
from patterncc.layout.limits import MAX_LENGTH, SIDES
from patterncc.layout.reorder import NAMES, Part, Setting, arranged, takes
from patterncc.pattern import check_int
from patterncc.stack import Layer, Stack, patterns_of
from patterncc.zones.lower import check_bindings, keyed
from patterncc.zones.zoneset import Frame

if TYPE_CHECKING:
    from patterncc.layout.cost.model import Estimate
    from patterncc.layout.layout import Layout

Sides = tuple[int, int]

BLOCKS: tuple[Sides, ...] = tuple((h, w) for h in (128, 64, 256) for w in (128, 64, 256))
"""Tile sizes that are shown."""

LISTED = 100_000
"""Partial tiles up to which a candidate is built, to count its masks by class."""

SEARCHED = 2**20
"""Zones up to which orders that search a graph are tried here unasked."""


@dataclass(frozen=True)
class Row:
    """One candidate.

    order: of each term, joined by " + ".  blocks: of each term.
    full, partial: tiles; counts: how sure they are, as in `Estimate`, and exact where the candidate
    was built.  classes: partial tiles by mask class, or None where it was not.
    zones_a_tile: of the mean partial tile.
    seconds: predicted, one forward pass of one head; split_seconds: with heavy rows split.
    bytes: of the layout's tables, about.  bound: what the slowest term is bound by.
    """

    order: str
    blocks: tuple[Sides, ...]
    full: int
    partial: int
    counts: str
    classes: Mapping[str, int] | None
    zones_a_tile: float
    seconds: float
    split_seconds: float
    bytes: int
    bound: str

    @property
    def pairs(self) -> int:
        """Pairs in the touched tiles, where all terms have one block."""
        return (self.full + self.partial) * self.blocks[0][0] * self.blocks[0][1]


@dataclass(frozen=True)
class LayerChoice:
    """The candidates of the layers that have one pattern.

    drawn: the layers differ in their random edges; the first stands for all.
    rows: by order as tried, then by tile size.  chosen: what `compile` takes.
    refused: orders that could not be tried, and why.
    """

    layers: tuple[int, ...]
    pattern: str
    drawn: bool
    rows: tuple[Row, ...]
    chosen: Row
    refused: Mapping[str, str]
    dense_seconds: float
    causal: bool

    @property
    def dense_is_faster(self) -> bool:
        """Whether dense attention over all pairs is predicted to take less time."""
        return self.dense_seconds < self.chosen.seconds

    @property
    def split_gain(self) -> float:
        """The share of the time that splitting heavy rows over processors would save."""
        return 1 - self.chosen.split_seconds / self.chosen.seconds


@dataclass(frozen=True)
class Choices:
    """What `compile` weighs for a pattern or a stack at one length, on one device.

    asked: the target as given; device: the table that stands for it.
    """

    n: int
    n_k: int
    asked: str
    device: Device
    head_dim: int
    heads: int
    layers: tuple[LayerChoice, ...]

    def text(self) -> str:
        """Tables and plain sentences."""
        from patterncc.layout.cost.text import text

        return text(self)

    def to_json(self) -> dict[str, Any]:
        """The same as one JSON object."""
        from patterncc.layout.cost.text import to_json

        return to_json(self)

    def __str__(self) -> str:
        return self.text()


def choices(
    p: Layer | Stack,
    n: int,
    n_k: int | None = None,
    q_offset: int | None = None,
    k_offset: int = 0,
    block: int | Sides | None = None,
    *,
    layer: int = 0,
    order: object = None,
    target: str | Device = "sm_90",
    head_dim: int = 64,
    heads: int = HEADS,
    **bindings: object,
) -> Choices:
    """The candidates that `compile` weighs with the same arguments, and the one that it takes.

    target: "cpu", "sm_80", "sm_90", "sm_100", or the path of a table from `patterncc bench cost`.
    heads: batch x heads that run at once.

    >>> from patterncc import causal, window
    >>> found = choices(causal() & window(255), 65536).layers[0]
    >>> found.chosen.order, found.chosen.blocks, found.dense_is_faster
    ('token', ((128, 128),), False)

    Raises what `compile` raises; PatternValueError for a target that names no device.
    """
    table = device(target)
    stack = p if isinstance(p, Stack) else Stack(p)
    check_bindings("compile", stack.patterns, bindings, choices)
    start = q_offset if q_offset is not None else stack.memory if stack is p else 0
    frame = Frame.of(check_int("compile", "n", n, 0), n_k, start, k_offset)
    if max(frame.n, frame.n_k) > MAX_LENGTH:
        raise SizeError(
            f"compile: {max(frame.n, frame.n_k)} tokens are past {MAX_LENGTH}, the most"
        )
    asking = _Asking(frame, _sides(block), order, table, head_dim, heads, bindings)
    groups: dict[Layer, list[int]] = {}
    for index, each in enumerate(stack):
        groups.setdefault(each, []).append(index)
    layers = tuple(
        asking.layer(each, where[0] if stack is p else layer, tuple(where))
        for each, where in groups.items()
    )
    asked = table.target if isinstance(target, Device) else target
    return Choices(frame.n, frame.n_k, asked, table, head_dim, heads, layers)


@dataclass(frozen=True)
class _Asking:
    """What all layers of one question share."""

    frame: Frame
    block: Sides | None
    order: object
    device: Device
    head_dim: int
    heads: int
    bindings: dict[str, Any]

    def layer(self, each: Layer, number: int, where: tuple[int, ...]) -> LayerChoice:
        """One layer: every order that it can take, at every tile size."""
        drawn = any(keyed(x, self.bindings)[0] for x in patterns_of(each))
        index = number if drawn else 0
        setting = Setting(self.frame, self.block, index, self.bindings, {}, self.device)
        taken = arranged(each, self.order, setting)
        tried, refused = self._orders(each, setting)
        if not any(_orders_of(x) == _orders_of(taken) for x in tried):
            tried.append(taken)
        blocks = (self.block,) if self.block else BLOCKS
        rows = []
        for parts in tried:
            ready = [_Ready(x, [part(z) for z in x.zone_sets]) for x in parts]
            own = [self._choose(x) for x in parts]
            sizes = [(b,) * len(parts) for b in blocks]
            sizes += [tuple(own)] if tuple(own) not in sizes else []
            rows += [self._row(ready, size) for size in sizes]
        key = (_orders_of(taken), tuple(self._choose(x) for x in taken))
        chosen = next(r for r in rows if (r.order, r.blocks) == key)
        plain = next((x for x in tried if _orders_of(x) == "token"), None)
        sets = [z for x in plain for z in x.zone_sets] if plain else []
        causal = bool(sets) and not looks_ahead(sets)
        dense = dense_price(self.frame, self.device, self.heads, self.head_dim, not causal)
        return LayerChoice(where, str(each), drawn, tuple(rows), chosen, refused, dense, causal)

    def _orders(self, each: Layer, setting: Setting) -> tuple[list[list[Part]], dict[str, str]]:
        """The terms under each order by name, and the orders that were not tried."""
        tried: list[list[Part]] = []
        refused: dict[str, str] = {}
        for name in NAMES:
            if not takes(each, name):
                continue
            zones = sum(len(z.table) for x in tried[:1] for y in x for z in y.zone_sets)
            if name in ("rcm", "metis", "morton") and zones > SEARCHED:
                refused[name] = f"not tried: {zones:,} zones; ask for it with order={name!r}"
                continue
            try:
                found = arranged(each, name, setting)
            except PatternError as error:
                refused[name] = str(error)
                continue
            if not any(_orders_of(x) == _orders_of(found) for x in tried):
                tried.append(found)
        return tried, refused

    def _choose(self, x: Part) -> Sides:
        return self.block or choose_block(x.zone_sets, target=self.device, weights=x.weights)

    def _row(self, terms: Sequence[_Ready], blocks: tuple[Sides, ...]) -> Row:
        """One candidate, priced."""
        found = [self._price(x, b) for x, b in zip(terms, blocks)]
        splits = [replace(e, seconds=e.split_seconds) for e in found]
        full, partial = sum(e.full for e in found), sum(e.partial for e in found)
        counts: str = max((e.counts for e in found), key=("exact", "bound", "sample").index)
        records = sum(e.records for e in found)
        zones_a_tile = records / partial if partial else 0.0
        classes = _classes(terms, blocks) if records <= LISTED else None
        if classes is not None:
            full, partial, counts = classes.pop("full"), sum(classes.values()), "exact"
        order_bytes = sum(4 * (self.frame.n + self.frame.n_k) for x in terms if x.term.order)
        return Row(
            order=_orders_of([x.term for x in terms]),
            blocks=blocks,
            full=full,
            partial=partial,
            counts=counts,
            classes=classes,
            zones_a_tile=zones_a_tile,
            seconds=in_terms(found),
            split_seconds=in_terms(splits),
            bytes=sum(e.bytes for e in found) + order_bytes,
            bound=max(found, key=lambda e: e.seconds).bound,
        )

    def _price(self, x: _Ready, block: Sides) -> Estimate:
        return price(
            x.parts,
            block,
            self.device,
            order=x.term.order,
            heads=self.heads,
            head_dim=self.head_dim,
            weights=x.term.weights,
        )


@dataclass(frozen=True)
class _Ready:
    """A term, and its zones made ready for counting."""

    term: Part
    parts: list[Any]


def _sides(block: int | Sides | None) -> Sides | None:
    """The two sides of a tile, checked."""
    if block is None:
        return None
    height, width = (block, block) if isinstance(block, int) else block
    for side in (height, width):
        if check_int("compile", "block", side, SIDES[0], SIDES[-1]) not in SIDES:
            raise PatternValueError(f"compile: block {side} is not one of {joined(SIDES)}")
    return height, width


def _orders_of(parts: Sequence[Part]) -> str:
    """The orders of all terms by name."""
    return " + ".join(x.order.name if x.order is not None else "token" for x in parts)


def _classes(terms: Sequence[_Ready], blocks: Sequence[Sides]) -> dict[str, int] | None:
    """Full tiles, and partial ones by mask class, from the layouts themselves."""
    total = dict.fromkeys(("full", *MASKS), 0)
    for x, block in zip(terms, blocks):
        try:
            layout = build(x.term.zone_sets, x.term.head_pattern, block)
        except PatternError:
            return None
        for name, count in mask_classes(layout).items():
            total[name] += count
    return total


def mask_classes(layout: Layout) -> dict[str, int]:
    """How many tiles of one term are full, or have masks of one, two, up to four zones, or bits.

    >>> from patterncc import causal, compile
    >>> mask_classes(compile(causal(), 96, block=32))
    {'full': 3, 'zones1': 3, 'zones2': 0, 'zones4': 0, 'bits': 0}
    """
    slots = layout.zones.any(axis=2).sum(axis=1)
    kinds = np.full(1 + len(layout.zones) + len(layout.bits), 4)
    kinds[0] = 0
    kinds[1 : 1 + len(slots)] = np.select([slots <= 1, slots == 2], [1, 2], 3)
    run = layout.rows.run
    count = np.bincount(kinds[run[:, 2]], weights=run[:, 1], minlength=5)
    return {name: int(x) for name, x in zip(("full", *MASKS), count)}
