"""What a KV cache must hold, held to dense masks key by key, and to decoding without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc.cache import LayerCache, Spans, cache_plan
from patterncc.stack import Layer
from patterncc.zones import Frame, ZoneSet
from tests.strategies import patterns as attending
from tests.strategies import zone_rows

Interval = np.ndarray


@st.composite
def stacks(draw: st.DrawFn, most: int = 4) -> pc.Stack:
    """Causal stacks: heads, key/value heads, layers that share their keys, a memory."""
    kv_heads = draw(st.sampled_from([None, 1, 2]))
    size = 2 * draw(st.integers(1, 2))
    patterns = attending().map(lambda p: pc.causal() & p)
    heads = st.lists(patterns, min_size=size, max_size=size).map(pc.heads)
    layers: list[Layer] = draw(st.lists(st.one_of(patterns, heads), min_size=1, max_size=most))
    kv_from: list[int] = []
    for l in range(len(layers)):
        own = [k for k in range(l) if kv_from[k] == k]
        kv_from.append(draw(st.sampled_from([*own, l, l])))
    return pc.Stack(layers, draw(st.integers(0, 6)), kv_from=kv_from, kv_heads=kv_heads)


def masks(stack: pc.Stack, n: int, layer: int) -> list[np.ndarray]:
    """The mask of every query head of a layer, [memory + n, memory + n]."""
    stop = stack.memory + n
    found = []
    for head, p in enumerate(stack.heads(layer)):
        part = pc.lower(p, n, stop, stack.memory, layer=layer, head=head)
        found.append(np.pad(part.dense(), ((stack.memory, 0), (0, 0))))
    return found


def readers_of(stack: pc.Stack, n: int, cache: LayerCache, head: int) -> np.ndarray:
    """The union of the masks of all query heads that read one key/value head."""
    stop = stack.memory + n
    union = np.zeros((stop, stop), dtype=bool)
    for layer in cache.readers:
        each = masks(stack, n, layer)
        group = max(1, len(each) // cache.heads)
        for h, mask in enumerate(each):
            if len(each) == 1 or h // group == head:
                union |= mask
    return union


def keys(intervals: Interval) -> set[int]:
    flat = intervals.ravel().tolist()
    assert flat == sorted(set(flat))
    return {j for first, last in intervals.tolist() for j in range(first, last)}


@settings(max_examples=100, deadline=None)
@given(stacks(), st.integers(0, 24), st.data())
def test_alive_keys_are_those_that_a_later_query_reads(
    stack: pc.Stack, n: int, data: st.DataObject
) -> None:
    prefill = data.draw(st.integers(0, n))
    plan = cache_plan(stack, n, prefill=prefill)
    start, stop = stack.memory + prefill, stack.memory + n
    total = np.zeros(max(0, stop - start), dtype=int)
    for cache in plan.caches:
        peaks = []
        for head in range(cache.heads):
            read = readers_of(stack, n, cache, head)
            counts = []
            for t in range(start, stop):
                alive = {j for j in range(t + 1) if read[t:, j].any()}
                kept = {j for j in alive if read[t + 1 :, j].any()}
                assert keys(cache.alive(t, head)) == alive
                assert keys(cache.kept(t, head)) == kept
                assert keys(cache.evicted(t, head)) == alive - kept
                counts.append(len(alive))
            left = {j for j in range(start) if read[start:, j].any()}
            assert keys(cache.kept(start - 1, head)) == left
            unread = {j for j in range(start, stop) if not read[j + 1 :, j].any()}
            assert keys(cache.unread(head)) == unread
            curve = cache.curves[cache.each[head]]
            assert [curve.at(t) for t in range(start, stop)] == counts
            peaks.append(max(counts, default=0))
            assert curve.peak[0] == peaks[-1]
            if counts:
                assert curve.peak[1] == start + counts.index(peaks[-1])
            total += np.array(counts, dtype=int)
        assert (cache.peak, cache.slots) == (max(peaks), sum(peaks))
    assert plan.curve.peak[0] == total.max(initial=0)
    assert plan.peak_bytes <= plan.capacity_bytes <= plan.full_bytes


@settings(max_examples=150, deadline=None)
@given(zone_rows(12))
def test_the_last_reader_of_every_key(rows: list[tuple[int, ...]]) -> None:
    causal = ZoneSet.make(Frame.of(40), [(0, 40, 0, 40, -40, 1)])
    zones = ZoneSet.make(Frame.of(40), rows) & causal
    spans, mask = Spans.of(zones.table), zones.dense()
    for j in range(40):
        read = np.flatnonzero(mask[:, j])
        assert spans.last(j) == (int(read[-1]) if len(read) else None)
    assert keys(spans.keys) == set(np.flatnonzero(mask.any(axis=0)).tolist())


class Everything:
    """A cache that keeps every key, and attends over the row of a dense mask."""

    def __init__(self, stack: pc.Stack, n: int) -> None:
        self.masks = [np.stack(masks(stack, n, l)) for l in range(len(stack))]
        self.kv_from = stack.kv_from
        self.k: dict[int, torch.Tensor] = {}
        self.v: dict[int, torch.Tensor] = {}

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        for kept, new in ((self.k, k), (self.v, v)):
            kept[layer] = torch.cat([kept[layer], new], dim=2) if layer in kept else new

    def attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        k, v = self.k[self.kv_from[layer]], self.v[self.kv_from[layer]]
        t, out = k.shape[2] - 1, torch.zeros(*q.shape[:3], v.shape[3])
        for h in range(q.shape[1]):
            mask = self.masks[layer]
            (row,) = np.nonzero(mask[h if len(mask) > 1 else 0, t])
            if len(row):
                group = h * k.shape[1] // q.shape[1]
                keys, values = k[:, group, row], v[:, group, row]
                scores = q[:, h] @ keys.transpose(1, 2) * q.shape[3] ** -0.5
                out[:, h] = scores.softmax(-1) @ values
        return out


def decoded(stack: pc.Stack, cache: object, n: int, start: int, kv_heads: int) -> torch.Tensor:
    """The outputs of a random model that decodes position by position through a cache."""
    make = torch.Generator().manual_seed(0)
    heads = max(len(stack.heads(l)) for l in range(len(stack)))
    heads = max(heads, kv_heads)
    size = heads * 4

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=make)

    weights = [(draw(size, size), draw(size, 2 * kv_heads * 4)) for _ in stack]
    states, out = draw(n, size), []
    for first, last in [(0, start)] * (start > 0) + [(t, t + 1) for t in range(start, n)]:
        x = states[None, first:last]
        for l, (wq, wkv) in enumerate(weights):
            if stack.kv_from[l] == l:
                kv = (x @ wkv).reshape(1, last - first, 2 * kv_heads, 4).transpose(1, 2)
                cache.append(l, kv[:, :kv_heads], kv[:, kv_heads:])  # type: ignore[attr-defined]
            if first >= start:
                q = (x @ wq).reshape(1, 1, heads, 4).transpose(1, 2)
                seen = cache.attend(l, q)  # type: ignore[attr-defined]
                x = torch.tanh(x + seen.transpose(1, 2).reshape(1, 1, size))
        if first >= start:
            out.append(x)
    return torch.cat(out, dim=1) if out else torch.zeros(1, 0, size)


@settings(max_examples=40, deadline=None)
@given(stacks(3), st.integers(1, 20), st.integers(0, 8))
def test_eviction_changes_nothing(stack: pc.Stack, n: int, prefill: int) -> None:
    """Decoding with what is evicted overwritten by NaN, against a cache that keeps everything."""
    plan = cache_plan(stack, n, prefill=min(prefill, n), head_dim=4)
    kv_heads = {c.heads for c in plan.caches}
    if len(kv_heads) > 1:  # a layer of one pattern serves any number of heads
        plan = cache_plan(stack, n, prefill=min(prefill, n), head_dim=4, kv_heads=max(kv_heads))
    heads = max(kv_heads)
    got = decoded(stack, pc.PlannedCache(plan, poison=True), plan.stop, plan.start, heads)
    wanted = decoded(stack, Everything(stack, n), plan.stop, plan.start, heads)
    everything = Spans(np.array([[0, plan.stop, 0, plan.stop - 1]]))
    whole = tuple(replace(c, spans=(everything,) * len(c.spans)) for c in plan.layers)
    kept = replace(plan, layers=whole)
    assert torch.equal(got, decoded(stack, pc.PlannedCache(kept), plan.stop, plan.start, heads))
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
