"""Masks that change from batch to batch: documents, padding and prefixes of each sequence.

    query i of sequence b reads key j  <=>
        (the pattern has (i, j), or i < prefix[b] and j < prefix[b])
        and ids[b, i] == ids[b, j] >= 0
        and j - k_offset < keys[b]

Ids count from position 0, prefixes too, key lengths from the layout's key 0.  Equal sequences share
one pattern.  What a kernel is generated from (tile sides, mask classes, which heads share a
pattern) follows from the pattern and the sizes alone, so that another batch compiles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import SizeError
from patterncc.layout import masks, staircase
from patterncc.layout.budget import Budget
from patterncc.layout.build import build
from patterncc.layout.cost.choose import choose_block
from patterncc.layout.layers import Job, each_once, shortened
from patterncc.layout.layout import Layout, Runs
from patterncc.layout.limits import MAX_BYTES
from patterncc.layout.reorder import MAX_PAIRS
from patterncc.layout.sequences import Batch
from patterncc.layout.staircase import Stairs
from patterncc.primitives import Clusters
from patterncc.stack import Heads, Layer, Stack, patterns_of
from patterncc.zones import algebra
from patterncc.zones.lower import attention_only, keyed, lower
from patterncc.zones.site import FAR
from patterncc.zones.zoneset import Frame, ZoneSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


@dataclass(frozen=True)
class BatchJob:
    """What all layers of one call share; `Job` for masks that a batch brings."""

    frame: Frame
    block: tuple[int, int] | None
    batch: Batch
    max_tiles: int
    bindings: dict[str, Any]
    max_bytes: int = MAX_BYTES
    target: str = "sm_90"
    order: object = None

    def layers(self, stack: Stack) -> tuple[Layout, ...]:
        """Every layer; equal ones that draw nothing from their index are one object."""
        return each_once(stack, self.bindings, self.layout)

    def layout(self, each: Layer, layer: int) -> Layout:
        """One layer.  Heads share a pattern where they are listed alike, whatever the batch makes
        of them."""
        frame, batch = self.frame, self.batch
        if self.order is None and _scattered(batch, frame):
            return self._ordered(each, layer)
        bases, head = bases_of(each, frame, layer, self.bindings)
        block = self.block or block_of(bases, self.target)
        head_pattern = (batch.which[:, None] * len(bases) + head).reshape(-1).astype(np.int32)
        text = shortened(f"{each}, {_described(batch)}")
        stairs = [_stairs(z, batch, b) for b in range(len(batch)) for z in bases]
        simple = [s for s in stairs if s is not None]
        budget = Budget(frame.n, frame.n_k, block, self.max_bytes, self.max_tiles)
        if frame.n and frame.n_k and len(simple) == len(stairs):
            parts = staircase.build(simple, frame, block, budget)
            return Layout(
                n=frame.n,
                n_k=frame.n_k,
                q_offset=frame.q_offset,
                k_offset=frame.k_offset,
                block=block,
                head_pattern=head_pattern,
                pattern=text,
                sequences=batch.sequences,
                varies=True,
                **vars(parts),
            )
        zone_sets = [_cut(z, batch, b) for b in range(len(batch)) for z in bases]
        made = build_varying(zone_sets, head_pattern.tolist(), block, budget, text)
        return replace(made, sequences=batch.sequences)

    def _ordered(self, each: Layer, layer: int) -> Layout:
        """One layer whose ids are clusters: the order that the cost model chooses, in terms whose
        kernels are those of any further batch in the same orders."""
        (labels,) = self.batch.labels
        assert labels is not None
        same = Clusters("labels_of_batch")
        met: Layer = (
            Heads(tuple(p & same for p in each.patterns))
            if isinstance(each, Heads)
            else each & same
        )
        block = self.block or block_of(
            bases_of(each, self.frame, layer, self.bindings)[0], self.target
        )
        bindings = self.bindings | {"labels_of_batch": labels.ids()}
        job = Job(self.frame, block, None, self.max_tiles, bindings, self.max_bytes, self.target)
        made = job.layout(met, layer)
        head, *rest = (
            replace(
                _one_zone_a_mask(replace(t, rest=(), recipe=None), self._budget(t.block)),
                pattern=shortened(f"{each}, {_described(self.batch)}"),
                varies=True,
            )
            for t in made.terms
        )
        return replace(head, rest=tuple(rest), recipe=made.recipe)

    def _budget(self, block: tuple[int, int]) -> Budget:
        return Budget(self.frame.n, self.frame.n_k, block, self.max_bytes, self.max_tiles)


def _scattered(batch: Batch, frame: Frame) -> bool:
    """One packed sequence of ids alone that are too many boxes in token order."""
    (labels, *others) = batch.labels
    if others or labels is None or batch.sequences > 1:
        return False
    plain = batch.keys[0] == frame.n_k and not batch.prefix[0]
    return plain and labels.spans() is None and labels.pairs(frame) > MAX_PAIRS


def bases_of(
    each: Layer, f: Frame, layer: int, bindings: dict[str, Any]
) -> tuple[list[ZoneSet], NDArray[np.int32]]:
    """The distinct heads lowered, before the batch, and which of them each head is."""
    places: dict[object, int] = {}
    bases: list[ZoneSet] = []
    head: list[int] = []
    for h, p in enumerate(patterns_of(each)):
        drawn = h if keyed(p, bindings)[1] else 0
        if (p, drawn) not in places:
            places[p, drawn] = len(bases)
            sizes = (f.n, f.n_k, f.q_offset, f.k_offset)
            attention_only(p)
            bases.append(lower(p, *sizes, layer=layer, head=drawn, **bindings))
        head.append(places[p, drawn])
    return bases, np.array(head, dtype=np.int32)


def block_of(bases: Sequence[ZoneSet], target: str) -> tuple[int, int]:
    """The tile that the cost model chooses for the layer alone: the same for every batch."""
    if sum(map(len, bases)) > 64:
        return choose_block(bases, target=target)
    return _block_of_few(bases[0].frame, tuple(z.table.tobytes("F") for z in bases), target)


@lru_cache(maxsize=256)
def _block_of_few(frame: Frame, tables: tuple[bytes, ...], target: str) -> tuple[int, int]:
    """Bands and their like come with every batch: chosen once."""
    flat = (np.frombuffer(t, dtype=np.int64).reshape(6, -1).T for t in tables)
    return choose_block([ZoneSet(frame, t) for t in flat], target=target)


def _described(batch: Batch) -> str:
    """What a batch adds to the pattern's text: kinds and counts, not the data."""
    kinds = [
        *(["documents"] if batch.labels[0] is not None else []),
        *(["key lengths"] if len(set(batch.keys)) > 1 else []),
        *(["prefixes"] if any(batch.prefix) else []),
    ]
    many = f" of {batch.sequences} sequences" if batch.sequences > 1 else ""
    return f"{' and '.join(kinds) or 'lengths'}{many}"


# --- one interval of keys a row: built from its steps


def _stairs(base: ZoneSet, batch: Batch, b: int) -> Stairs | None:
    """Sequence b as a staircase, or None where a row may read more than one interval."""
    frame, table = base.frame, base.table - _shift(base.frame)
    if len(table) != 1:
        return None
    zone: tuple[int, ...] = tuple(table[0].tolist())
    labels, prefix, spans = batch.labels[b], batch.prefix[b], None
    if prefix:
        band = band_of(base)
        if band is None:
            return None
        d0, d1 = (far if d is None else d for d, far in zip(band, (-FAR, FAR)))
        zone = (0, frame.n, 0, frame.n_k, d0, d1)
    if labels is not None:
        spans = labels.spans()
        if spans is None:
            return None
    return Stairs(zone, spans, batch.keys[b], prefix)


def band_of(base: ZoneSet) -> tuple[int | None, int | None] | None:
    """(low, high) of key minus query, local, where a zone set is a band of its whole frame with
    each token's own place in it; None for a bound that cuts nothing off.

    >>> from patterncc import causal, window
    >>> band_of(lower(causal() & window(4), 9)), band_of(lower(window(3, 0, block=4), 9))
    ((-4, 1), None)
    """
    frame, table = base.frame, base.table - _shift(base.frame)
    if len(table) != 1:
        return None
    d0, d1 = table[0, 4:].tolist()
    low = None if d0 <= 1 - frame.n else d0
    high = None if d1 >= frame.n_k else d1
    skew = frame.k_offset - frame.q_offset
    band = np.array([[0, frame.n, 0, frame.n_k, d0, d1]])
    near = (low is None or low + skew <= 0) and (high is None or high + skew >= 1)
    return (low, high) if near and np.array_equal(algebra.tighten(band), table) else None


def _shift(frame: Frame) -> I64:
    skew = frame.k_offset - frame.q_offset
    return np.array([*[frame.q_offset] * 2, *[frame.k_offset] * 2, skew, skew], dtype=np.int64)


# --- anything else: zones met with the batch's


def _cut(base: ZoneSet, batch: Batch, b: int) -> ZoneSet:
    """The zones of sequence b: the base and its prefix, met with its documents and its keys."""
    frame, table = base.frame, base.table
    labels, prefix = batch.labels[b], batch.prefix[b]
    if prefix:
        box = ZoneSet.make(frame, [(0, prefix, 0, prefix, -prefix, prefix)])
        table = np.concatenate([table, box.table])
    i0, i1, j0, _ = frame.box
    table = algebra.tighten(algebra.clip(table, (i0, i1, j0, j0 + batch.keys[b])))
    if labels is not None:
        pairs = labels.pairs(frame)
        if pairs > algebra.MAX_ZONES:
            one = f" of sequence {int(np.argmax(batch.which == b))}" if batch.sequences > 1 else ""
            raise SizeError(
                f"compile: doc_ids{one}: {pairs} pairs of runs share an id, more than "
                f"{algebra.MAX_ZONES} in token order; put the tokens of one document together, or "
                "compile each sequence by itself, with ids [positions] and without lengths and "
                "order: its tokens are put in an order of their own"
            )
        sizes = (frame.n, frame.n_k, frame.q_offset, frame.k_offset)
        same = lower(Clusters("labels_of_batch"), *sizes, labels_of_batch=labels.ids())
        table = algebra.intersect(table, same.table)
    return ZoneSet(frame, table)


def build_varying(
    zone_sets: Sequence[ZoneSet],
    head_pattern: Sequence[int],
    block: tuple[int, int],
    budget: Budget,
    text: str,
) -> Layout:
    """The layout of zones that come with a batch, its mask classes those of every batch."""
    limits = {"max_tiles": budget.max_tiles, "max_bytes": budget.max_bytes}
    made = build(zone_sets, head_pattern, block, pattern=text, **limits)
    return replace(_one_zone_a_mask(made, budget), varies=True)


def _one_zone_a_mask(layout: Layout, budget: Budget) -> Layout:
    """Masks of several zones as bits, so that the mask classes do not depend on the batch."""
    several = layout.zones[:, 1].any(axis=1)
    if not several.any():
        return layout
    count = len(layout.zones)
    single = int((~several).sum())
    word = np.empty(count + len(layout.bits) + 1, dtype=np.int32)
    word[0] = 0
    word[1 : count + 1][~several] = np.arange(single) + 1
    word[1 : count + 1][several] = np.arange(count - single) + single + 1
    word[count + 1 :] = np.arange(len(layout.bits)) + count + 1
    budget.draw(count - single + len(layout.bits))
    drawn = masks.raster(layout.zones[several], layout.block)
    return replace(
        layout,
        rows=_renamed(layout.rows, word),
        cols=_renamed(layout.cols, word),
        zones=layout.zones[~several],
        bits=np.concatenate([drawn, layout.bits]),
    )


def _renamed(runs: Runs, word: NDArray[np.int32]) -> Runs:
    run = runs.run.copy()
    run[:, 2] = word[run[:, 2]]
    return replace(runs, run=run)
