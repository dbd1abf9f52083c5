"""`cache_plan`: for every layer, which keys a later query can still read, and what that takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.content import possible, unbound
from patterncc.analysis.parts import attention_part
from patterncc.cache.curve import Curve
from patterncc.cache.reads import Lowering, Reads
from patterncc.cache.spans import Spans
from patterncc.errors import PatternValueError, suggest
from patterncc.pattern import Pattern, check_int
from patterncc.stack import Heads, Stack, check_stack
from patterncc.zones import ZoneSet, algebra
from patterncc.zones.lower import check_bindings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

MOST_POSITIONS = 2**40
BYTES = {
    **dict.fromkeys(("float32", "fp32"), 4),
    **dict.fromkeys(("bfloat16", "bf16", "float16", "fp16"), 2),
    **dict.fromkeys(("float8", "fp8", "int8"), 1),
}
"""Bytes of one number of K or V, by the names that its type goes by."""


@dataclass(frozen=True, eq=False)
class LayerCache:
    """The keys and values of one layer: how long each must be kept.

    layer: whose keys they are; readers: the layers that read them, itself first.
    heads: key/value heads; `spans[head_spans[h]]` are those of head h, one entry serves all.
    start, stop: the steps that are planned, start <= t < stop; positions below `start` (a stack's
    memory, a prefill) are written before the first of them.
    attends: False where all readers are recurrences or convolutions, which make no keys.
    """

    layer: int
    readers: tuple[int, ...]
    heads: int
    spans: tuple[Spans, ...]
    head_spans: tuple[int, ...]
    start: int
    stop: int
    attends: bool = True

    def alive(self, t: int, head: int = 0) -> I64:
        """Keys that must be there while query t is answered: int64 [m, 2], sorted and apart.

        Those up to its own position that it or a later query reads: j <= t <= last(j).
        """
        return self._spans(head).read_at_or_after(self._step(t), t + 1)

    def kept(self, t: int, head: int = 0) -> I64:
        """Keys that must outlive step t, those of `alive` that a later query reads:
        j <= t < last(j).  ``kept(start - 1)`` is what the first step must find."""
        return self._spans(head).read_at_or_after(self._step(t, -1) + 1, t + 1)

    def evicted(self, t: int, head: int = 0) -> I64:
        """Keys that query t is the last to read: evict them once it is answered."""
        return self._spans(head).read_last_at(self._step(t))

    def unread(self, head: int = 0) -> I64:
        """Keys that no later query reads, from `start` on: they are never kept, int64 [m, 2]."""
        table = self._spans(head).table
        kept = table[~((table[:, 2] == 1) & (table[:, 3] == 0))].copy()
        own = (kept[:, 2] == 0) & (kept[:, 3] == kept[:, 1] - 1)  # the last one reads itself
        kept[own, 1] -= 1
        held = algebra.merge_intervals(kept[kept[:, 0] < kept[:, 1], :2])
        ends = np.concatenate([[self.start], held.ravel(), [self.stop]]).reshape(-1, 2)
        ends = np.maximum(ends, self.start)
        unread: I64 = ends[ends[:, 0] < ends[:, 1]]
        return unread

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Keys alive at each step, a curve for each of `spans`."""
        return tuple(Curve.of([(s, 1)], self.start, self.stop) for s in self.spans)

    @property
    def peak(self) -> int:
        """The most keys that one head must hold at a time, the one being answered included."""
        return max((c.peak[0] for c in self.curves), default=0)

    @property
    def peak_step(self) -> int:
        """The first step at which a head holds that many."""
        return max((c.peak for c in self.curves), key=lambda p: (p[0], -p[1]), default=(0, 0))[1]

    @property
    def slots(self) -> int:
        """Key slots over all heads, each with room for its own peak."""
        return sum(self.curves[k].peak[0] for k in self.each)

    @property
    def each(self) -> tuple[int, ...]:
        """The spans of every head."""
        return self.head_spans * self.heads if len(self.head_spans) == 1 else self.head_spans

    @property
    def share(self) -> float:
        """Slots among those of a cache that keeps every key; 0 where there are none."""
        return self.slots / self.full_slots if self.full_slots else 0.0

    @property
    def full_slots(self) -> int:
        """Key slots, over all heads, of a cache that keeps every key that the layer makes."""
        return self.heads * self.stop if self.attends else 0

    def _spans(self, head: int) -> Spans:
        if not 0 <= head < self.heads:
            raise PatternValueError(
                f"cache: head {head} of layer {self.layer}, which has {self.heads} key/value heads"
            )
        return self.spans[self.each[head]]

    def _step(self, t: int, before: int = 0) -> int:
        if not self.start + before <= t < self.stop:
            raise PatternValueError(
                f"cache: step {t} is outside the planned steps [{self.start}, {self.stop})"
            )
        return t


@dataclass(frozen=True, eq=False)
class CachePlan:
    """What the KV cache of a stack must hold while it decodes position by position.

    layers: `layers[l]` is the cache that layer l reads, its own or the one that it shares.
    reads: the edges of each layer.  start, stop: as in `LayerCache`.
    head_dim, dtype: of K and of V, for bytes.
    """

    stack: Stack
    layers: tuple[LayerCache, ...]
    reads: tuple[Reads, ...]
    start: int
    stop: int
    head_dim: int
    dtype: str
    notes: tuple[str, ...] = ()

    @property
    def caches(self) -> tuple[LayerCache, ...]:
        """Every cache once, in the order of layers."""
        return tuple(c for l, c in enumerate(self.layers) if c.layer == l)

    @property
    def key_bytes(self) -> int:
        """Bytes of one key and its value in one head."""
        return 2 * self.head_dim * BYTES[self.dtype]

    @cached_property
    def curve(self) -> Curve:
        """Key slots in use at each step, over all layers and heads."""
        parts = [(c.spans[k], c.each.count(k)) for c in self.caches for k in set(c.each)]
        return Curve.of(parts, self.start, self.stop)

    @property
    def peak_bytes(self) -> int:
        """The most bytes that are alive at one time, over all layers: exact."""
        return self.curve.peak[0] * self.key_bytes

    @property
    def capacity_bytes(self) -> int:
        """Bytes of buffers in which every head of every layer has room for its own peak."""
        return sum(c.slots for c in self.caches) * self.key_bytes

    @property
    def full_bytes(self) -> int:
        """Bytes of a cache that keeps every key of every attention layer that makes its own."""
        return sum(c.full_slots for c in self.caches) * self.key_bytes

    @property
    def share(self) -> float:
        """capacity_bytes among full_bytes; 0 where there is nothing to cache."""
        return self.capacity_bytes / self.full_bytes if self.full_bytes else 0.0

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        from patterncc.cache.text import to_json

        return to_json(self)

    def __str__(self) -> str:
        from patterncc.cache.text import text

        return text(self)

    __repr__ = __str__


def cache_plan(
    stack: Stack | Pattern | Heads,
    n: int,
    *,
    prefill: int = 0,
    head_dim: int = 128,
    kv_heads: int | None = None,
    dtype: object = "bfloat16",
    **bindings: object,
) -> CachePlan:
    """Which keys each layer's cache must hold while a stack decodes n tokens, exactly.

    Step t writes key t and answers query t.  Key j is alive from step j until the last query that
    reads it, in any layer and query head that reads this cache; then it may be evicted without
    changing any output by any bit.

    prefill: so many tokens are answered at once before step by step decoding begins, and may read
    each other both ways; a stack's memory is there before them.
    kv_heads: where the stack does not say; default one for each head of the layer, else 1.
    head_dim, dtype: of K and of V, for bytes; dtype is a name ("bf16", "float32") or torch's.
    bindings: names in the patterns, as in `lower`.  A layer that chooses its keys by content, with
    no binding that says how, keeps all that it may choose.

    >>> from patterncc import Stack, causal, sink, window
    >>> local = causal() & (window(511) | sink(4))
    >>> plan = cache_plan(Stack([local, causal()]), 2**20)
    >>> [layer.peak for layer in plan.layers]
    [516, 1048576]
    >>> plan.layers[0].alive(100_000).tolist()
    [[0, 4], [99489, 100001]]

    Raises PatternValueError for layers that read later positions: decoding writes them later.
    """
    check_stack("cache_plan", stack)
    stack = stack if isinstance(stack, Stack) else Stack(stack)
    n = check_int("cache_plan", "n", n, 0, MOST_POSITIONS)
    prefill = check_int("cache_plan", "prefill", prefill, 0, n)
    head_dim = check_int("cache_plan", "head_dim", head_dim, 1, 2**20)
    name = str(dtype).removeprefix("torch.")
    if name not in BYTES:
        raise PatternValueError(f"cache_plan: dtype is {dtype!r}; {suggest(name, BYTES)}")
    check_bindings("cache_plan", stack.patterns, bindings, cache_plan)
    chosen = {c.layer for c in unbound(stack, bindings)}
    lowering = Lowering(possible(stack, bindings), n, stack.memory + prefill, bindings)
    reads = lowering.reads(frozenset(chosen))
    start, stop = stack.memory + prefill, stack.memory + n
    caches: dict[int, LayerCache] = {}
    for layer, owner in enumerate(stack.kv_from):
        if layer == owner:
            readers = [l for l, k in enumerate(stack.kv_from) if k == owner]
            count = _kv_heads(stack, readers, kv_heads)
            attends = any(attention_part(p) is not None for l in readers for p in stack.heads(l))
            cache = _cache(readers, reads, count, start, stop)
            caches[owner] = cache if attends else replace(cache, attends=False)
    return CachePlan(
        stack=stack,
        layers=tuple(caches[k] for k in stack.kv_from),
        reads=reads,
        start=start,
        stop=stop,
        head_dim=head_dim,
        dtype=name,
        notes=_notes(sorted(chosen), not kv_heads and not stack.kv_heads),
    )


def _kv_heads(stack: Stack, readers: list[int], given: int | None) -> int:
    """Key/value heads of the cache that these layers read."""
    if given is not None:
        given = check_int("cache_plan", "kv_heads", given, 1, 2**16)
        if stack.kv_heads not in (None, given):
            raise PatternValueError(
                f"cache_plan: kv_heads is {given}, and the stack has {stack.kv_heads}; leave it out"
            )
    own = {len(stack.heads(l)) for l in readers if isinstance(stack.layer(l), Heads)}
    count = given or stack.kv_heads or max(own, default=1)
    for heads in own:
        if heads % count:
            raise PatternValueError(
                f"cache_plan: layer {readers[0]} is read by {heads} query heads, which its {count} "
                "key/value heads do not divide; pass kv_heads=, or say it in the stack"
            )
    return count


def _cache(
    readers: list[int], reads: tuple[Reads, ...], heads: int, start: int, stop: int
) -> LayerCache:
    """Each key/value head with the zones of every query head that reads it; equal ones once."""
    groups = [
        frozenset(z for l in readers for z in _of_head(reads[l], h, heads)) for h in range(heads)
    ]
    places = {group: k for k, group in enumerate(dict.fromkeys(groups))}
    spans = []
    for group in places:
        tables = [z.table for z in group]
        spans.append(Spans.of(np.concatenate(tables) if len(tables) > 1 else tables[0]))
    index = (0,) if len(places) == 1 else tuple(places[g] for g in groups)
    return LayerCache(readers[0], tuple(readers), heads, tuple(spans), index, start, stop)


def _of_head(reads: Reads, head: int, heads: int) -> list[ZoneSet]:
    """The zone sets of the query heads that read one of `heads` key/value heads."""
    each = reads.head_zones
    if len(each) == 1:
        return [reads.zones[each[0]]]
    size = len(each) // heads
    return [reads.zones[k] for k in each[head * size : (head + 1) * size]]


def _notes(chosen: list[int], guessed: bool) -> tuple[str, ...]:
    """What a reader must know of the figures."""
    notes = []
    if guessed:
        notes.append(
            "key/value heads: one for each head that a layer lists, else 1, which counts a model's "
            "cache too small; pass --kv-heads 8 (kv_heads=8 in Python) or kv_heads: in the file"
        )
    if chosen:
        named = ", ".join(map(str, chosen[:8])) + (", ..." if len(chosen) > 8 else "")
        layers = f"layers {named}" if len(chosen) > 1 else f"layer {named}"
        notes.append(
            f"{layers}: keys are chosen by content while the model runs, and every key that may "
            "be chosen is kept"
        )
    return tuple(notes)
