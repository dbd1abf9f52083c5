"""What a KV cache must hold, held to dense masks key by key, and to decoding without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc.cache import LayerCache, Spans, cache_plan
from patterncc.errors import PatternError, PatternValueError, TensorError
from patterncc.pattern import Pattern
from patterncc.stack import Layer
from patterncc.zones import Frame, ZoneSet
from tests.strategies import patterns as attending
from tests.strategies import zone_rows

Interval = np.ndarray


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    plan = cache_plan(stack, n, prefill=min(prefill, n), head_dim=4, dtype="float32")
    kv_heads = {c.heads for c in plan.caches}
    if len(kv_heads) > 1:  # a layer of one pattern serves any number of heads
        most = max(kv_heads)
        plan = cache_plan(
            stack, n, prefill=min(prefill, n), head_dim=4, kv_heads=most, dtype="float32"
        )
    heads = max(kv_heads)
    got = decoded(stack, pc.PlannedCache(plan, poison=True), plan.stop, plan.start, heads)
    wanted = decoded(stack, Everything(stack, n), plan.stop, plan.start, heads)
    everything = Spans(np.array([[0, plan.stop, 0, plan.stop - 1]]))
    whole = tuple(replace(c, spans=(everything,) * len(c.spans)) for c in plan.layers)
    kept = replace(plan, layers=whole)
    assert torch.equal(got, decoded(stack, pc.PlannedCache(kept), plan.stop, plan.start, heads))
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


WINDOW = pc.causal() & pc.window(511)
SINKS = pc.causal() & (pc.window(511) | pc.sink(4))


@pytest.mark.parametrize(
    ("p", "peak", "kept"),
    [
        (WINDOW, 512, 511),
        (SINKS, 516, 515),
        (pc.causal() & pc.chunked(256), 256, 0),
        (pc.causal(), 2**20, 0),
        (pc.causal() & pc.strided(1024), 2**20 - 1023, 0),
        (pc.causal() & pc.summary(128, 8), 2**16, 0),
        (pc.causal() & pc.documents([1000, 3000, 200]), 3000, 0),
        (pc.causal() & pc.window(0), 1, 0),
        (pc.sink(0), 0, 0),
        (pc.recurrent(), 0, 0),
        (pc.recurrent() | WINDOW, 512, 511),
    ],
    ids=str,
)
def test_known_peaks_at_a_million_tokens(p: Pattern, peak: int, kept: int) -> None:
    """A window keeps itself and the new key, sinks stay, a chunk is given back when it is full."""
    (cache,) = cache_plan(p, 2**20).layers
    assert cache.peak == peak
    last = 2**20 - 1 if not kept else 2**19
    assert sum(b - a for a, b in cache.kept(last).tolist()) == kept


def test_a_billion_tokens_in_a_few_pieces() -> None:
    plan = cache_plan(pc.Stack([SINKS] * 5 + [pc.causal()]), 2**30, head_dim=128, kv_heads=8)
    assert [len(c.spans[0].table) for c in plan.caches] == [3] * 5 + [1]
    assert plan.layers[0].alive(10**9).tolist() == [[0, 4], [10**9 - 511, 10**9 + 1]]
    key = 2 * 128 * 2 * 8
    assert plan.capacity_bytes == plan.peak_bytes == key * (5 * 516 + 2**30)
    assert plan.full_bytes == key * 6 * 2**30


def test_a_full_cache_and_one_that_never_peaks_at_once() -> None:
    """Documents that end at different steps in two layers: the parts peak apart."""
    stack = pc.Stack([pc.causal() & pc.documents(d) for d in ([60, 40], [10, 90])])
    plan = cache_plan(stack, 100, head_dim=1, dtype="fp8")
    assert [c.peak for c in plan.caches] == [60, 90]
    assert plan.capacity_bytes == 2 * 150
    assert plan.peak_bytes == 2 * (40 + 90)


def test_models_from_their_configs() -> None:
    mistral = pc.Stack.from_hf(
        {
            "model_type": "mistral",
            "num_hidden_layers": 32,
            "sliding_window": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        }
    )
    plan = cache_plan(mistral, 131072)
    assert {c.peak for c in plan.caches} == {4096}
    assert plan.capacity_bytes == 32 * 8 * 4096 * 2 * 128 * 2
    gemma = pc.Stack.from_hf(
        {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 512}
    )
    assert [c.peak for c in cache_plan(gemma, 32768).caches] == [512] * 5 + [32768]


def test_layers_that_share_keys_keep_what_each_other_reads() -> None:
    stack = pc.Stack([WINDOW, SINKS, pc.causal() & pc.chunked(100)], kv_from=[0, 0, 2])
    plan = cache_plan(stack, 4096)
    assert plan.layers[0] is plan.layers[1]
    assert plan.layers[0].readers == (0, 1)
    assert [c.peak for c in plan.caches] == [516, 100]
    assert "1 layers read another's" in str(plan)


def test_key_heads_keep_what_any_of_their_query_heads_reads() -> None:
    layer = pc.heads([pc.causal() & pc.window(w) for w in (7, 31, 3, 63)])
    cache = cache_plan(pc.Stack(layer, kv_heads=2), 1000).layers[0]
    assert [c.peak[0] for c in cache.curves] == [32, 64]
    assert (cache.peak, cache.slots) == (64, 96)
    assert cache.alive(500, 0).tolist() == [[469, 501]]
    assert cache.alive(500, 1).tolist() == [[437, 501]]
    assert cache_plan(layer, 1000).layers[0].heads == 4
    assert cache_plan(layer, 1000, kv_heads=1).layers[0].slots == 64


def test_what_is_chosen_by_content_stays() -> None:
    near = pc.causal() & pc.window(9)
    stack = pc.Stack([near, pc.causal() & pc.topk(4), near & pc.topk(2), near - pc.routing(3)])
    plan = cache_plan(stack, 500)
    assert [c.peak for c in plan.caches] == [10, 500, 10, 10]
    assert [r.certain for r in plan.reads] == [True, False, False, False]
    assert "layers 1, 2, 3: keys are chosen by content" in str(plan)
    bound = cache_plan(pc.causal() & pc.topk(1), 4, topk=[[0], [0], [1], [3]])
    assert bound.layers[0].alive(3).tolist() == [[3, 4]]
    assert bound.reads[0].certain


def test_draws_are_those_of_the_length() -> None:
    p = pc.causal() & pc.random_edges(3)
    for n in (50, 60):
        cache = cache_plan(pc.Stack([pc.causal(), p]), n).layers[1]
        mask = pc.lower(p, n, layer=1).dense()
        alive = [j for j in range(31) if mask[30:, j].any()]
        assert keys(cache.alive(30)) == set(alive)


def test_many_scattered_edges_stay_near_linear() -> None:
    p = pc.causal() & (pc.window(10) | pc.random_edges(2, past=True))
    cache = cache_plan(p, 2**17).layers[0]
    zones = pc.lower(p, 2**17).table
    assert len(cache.spans[0].table) <= 2**17
    single = zones[zones[:, 1] - zones[:, 0] == 1]
    last = np.full(2**17, -1)
    for key in (single[:, 2], single[:, 3] - 1):  # one query reads both ends of a run
        np.maximum.at(last, key, single[:, 0])
    for j in single[:2000, 2].tolist():
        assert cache.spans[0].last(j) == max(last[j], min(2**17 - 1, j + 10))


LATER = pc.causal() | pc.prefix(70)


@pytest.mark.parametrize(
    ("stack", "more", "message"),
    [
        (pc.window(3, 3), {}, r"layer 0 reads later positions: under window\(3, 3\) query 0 reads"),
        (pc.Stack([pc.causal(), LATER]), {}, "layer 1 .* query 0 reads key 69, .* pass prefill="),
        (LATER, {"prefill": 69}, "query 0 reads key 69"),
        (pc.causal(), {"prefill": 101}, "prefill must be"),
        (pc.causal(), {"dtype": "bf17"}, "dtype is 'bf17'; did you mean 'bf16'"),
        (pc.causal(), {"head_dim": 0}, "head_dim must be at least 1"),
        (pc.causal(), {"docs": [3]}, "'docs' is no argument"),
        (pc.causal() & pc.documents("docs"), {}, "'docs' is not bound"),
        (pc.Stack(pc.causal(), kv_heads=2), {"kv_heads": 4}, "kv_heads is 4, and the stack has 2"),
        (pc.heads([pc.causal()] * 3), {"kv_heads": 2}, "3 query heads, which its 2"),
        ("causal()", {}, "not a str"),
    ],
)
def test_what_cannot_be_planned(stack: object, more: dict[str, object], message: str) -> None:
    with pytest.raises(PatternError, match=message):
        cache_plan(stack, 100, **more)  # type: ignore[arg-type]


def test_a_prefill_may_read_both_ways() -> None:
    cache = cache_plan(LATER, 100, prefill=70).layers[0]
    assert (cache.start, cache.stop) == (70, 100)
    local = cache_plan(pc.causal() & pc.window(9) | pc.prefix(70), 100, prefill=70)
    assert local.layers[0].kept(69).tolist() == [[61, 70]]
    assert local.layers[0].peak == 10
    with pytest.raises(PatternValueError, match="step 69 is outside the planned steps"):
        cache.alive(69)
    with pytest.raises(PatternValueError, match="head 1 of layer 0, which has 1"):
        cache.alive(70, 1)


def test_no_steps() -> None:
    for plan in (cache_plan(pc.causal(), 0), cache_plan(pc.causal(), 9, prefill=9)):
        assert (plan.peak_bytes, plan.layers[0].peak) == (0, 0)
        assert "0 steps" in str(plan)
        assert json.loads(json.dumps(plan.to_json()))["peak_keys"] == 0


def test_the_text_is_stable() -> None:
    plan = cache_plan(pc.Stack([WINDOW, WINDOW, SINKS, pc.causal()], kv_heads=2), 2048)
    assert str(plan).splitlines() == [
        "KV cache of 2,048 steps, 128 numbers of bfloat16 a key and head",
        "  layers  heads   peak  of full    bytes  what stays",
        "  0..1        2    512      25%    1 MiB  the last 512",
        "  2           2    516    25.2%  516 KiB  the first 4 and the last 512",
        "  3           2  2,048     100%    2 MiB  every key",
        "at most 3.5 MiB alive at one time (step 2,047), 3.5 MiB in buffers of each head's peak: "
        "43.8% of 8 MiB",
    ]


def small_cache(**more: object) -> pc.PlannedCache:
    stack = pc.Stack([pc.causal() & pc.window(2), pc.causal()], kv_from=[0, 0], kv_heads=1)
    return pc.PlannedCache(cache_plan(stack, 6, head_dim=4, dtype="fp32"), **more)  # type: ignore[arg-type]


def test_a_cache_says_what_it_does_not_take() -> None:
    cache, one = small_cache(), torch.ones(1, 1, 1, 4)
    with pytest.raises(TensorError, match="layer 1 reads the keys of layer 0 and writes none"):
        cache.append(1, one, one)
    with pytest.raises(TensorError, match="append comes before attend"):
        cache.attend(0, one)
    with pytest.raises(TensorError, match=r"k of layer 0 at position 0 has shape \(1, 1, 2, 4\)"):
        cache.append(0, torch.ones(1, 1, 2, 4), one)
    for _ in range(6):
        cache.append(0, one, one)
    with pytest.raises(TensorError, match="position 6 is past the 6 that are planned"):
        cache.append(0, one, one)
    with pytest.raises(TensorError, match=r"q of layer 0 has shape \(2, 1, 1, 4\)"):
        cache.attend(0, torch.ones(2, 1, 1, 4))
    with pytest.raises(TensorError, match="layer 2 of a plan of 2 layers"):
        cache.attend(2, one)
    assert cache.attend(1, one).shape == (1, 1, 1, 4)


def test_a_cache_holds_its_peak_and_no_more() -> None:
    plan = cache_plan(pc.Stack([SINKS] * 2, kv_heads=2), 2**20, head_dim=64)
    cache = pc.PlannedCache(plan, batch=3)
    assert cache.nbytes == 3 * plan.capacity_bytes == 3 * 2 * 2 * 516 * 2 * 64 * 2


def test_keys_chosen_by_content_are_gathered() -> None:
    plan = cache_plan(pc.causal() & pc.topk(2) & pc.window(3), 8, head_dim=4, dtype="fp32")
    cache, q = pc.PlannedCache(plan), torch.ones(1, 1, 1, 4)
    for t in range(6):
        cache.append(0, torch.full((1, 1, 1, 4), float(t)), torch.full((1, 1, 1, 4), -float(t)))
    k, v = cache.gather(0, [5, 3])
    assert k[0, :, 0].tolist() == [3.0, 5.0]
    assert v[0, :, 0].tolist() == [-3.0, -5.0]
    with pytest.raises(TensorError, match="key 1 is not held; the plan evicted it"):
        cache.gather(0, [1, 4])
    with pytest.raises(TensorError, match=r"by content; take what it chose with gather"):
        cache.attend(0, q)


def test_eviction_agrees_with_a_whole_pass() -> None:
    """Three modules of a model, one pass over the sequence against decoding with eviction."""
    torch.manual_seed(0)
    n, local = 200, pc.causal() & (pc.window(30) | pc.sink(2))
    stack = pc.Stack([local, pc.causal() & pc.chunked(64), local], kv_heads=2)
    layers = [pc.SparseAttention(32, 4, 2, p) for p in stack]
    x = torch.randn(2, n, 32)
    with torch.no_grad():
        whole = x
        for m in layers:
            whole = whole + m(whole)
        plan = cache_plan(stack, n, head_dim=8, dtype=torch.float32)
        cache, rows = pc.PlannedCache(plan, batch=2, poison=True), []
        for t in range(n):
            y = x[:, t : t + 1]
            for l, m in enumerate(layers):
                q, k, v = (f(y).reshape(2, 1, -1, 8).transpose(1, 2) for f in (m.q, m.k, m.v))
                cache.append(l, k, v)
                y = y + m.out(cache.attend(l, q).transpose(1, 2).flatten(2))
            rows.append(y)
    torch.testing.assert_close(torch.cat(rows, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert cache.nbytes < 2 * 0.3 * n * 2 * 2 * 8 * 4 * 3


def test_recurrences_and_convolutions_have_no_cache_to_fill() -> None:
    """Shares are of the attention layers' caches; a layer that is both counts as attention."""
    mixed = pc.recurrent() | WINDOW
    plan = cache_plan(pc.Stack([pc.recurrent(), pc.convolution(4), mixed, pc.causal()]), 4096)
    assert plan.full_bytes == 2 * 4096 * plan.key_bytes
    assert [c.full_slots for c in plan.caches] == [0, 0, 4096, 4096]
    assert [c.share for c in plan.caches] == [0, 0, 1 / 8, 1]
    assert plan.share == 9 / 16
    shared = cache_plan(pc.Stack([pc.recurrent(), pc.causal()], kv_from=[0, 0]), 64)
    assert shared.share == 1


def test_a_guess_of_key_heads_says_what_to_pass() -> None:
    assert "pass --kv-heads 8 (kv_heads=8 in Python)" in str(cache_plan(pc.causal(), 9))
    assert "--kv-heads" not in str(cache_plan(pc.causal(), 9, kv_heads=1))


@pytest.mark.parametrize("dtype", ["bfloat16", "fp16", "float32", torch.float16])
def test_a_cache_is_of_its_plans_dtype(dtype: object) -> None:
    plan = cache_plan(pc.causal(), 4, head_dim=4, dtype=dtype)
    cache = pc.PlannedCache(plan)
    assert cache.nbytes == plan.capacity_bytes
    assert f"{cache.dtype}".removeprefix("torch.") in repr(cache)
    other = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    with pytest.raises(TensorError, match=r"is torch.float64, and the cache holds"):
        cache.append(0, other, other)
    cache = pc.PlannedCache(plan, dtype="float64")
    cache.append(0, other, other)
    assert cache.attend(0, other).dtype == torch.float64


def test_what_is_no_plan_and_no_dtype() -> None:
    with pytest.raises(TensorError, match=r"is a Stack, not a plan; pass cache_plan\(stack, n\)"):
        pc.PlannedCache(pc.Stack(pc.causal()))  # type: ignore[arg-type]
    with pytest.raises(TensorError, match="dtype is int8, in which attention cannot"):
        small_cache(dtype=torch.int8)
    with pytest.raises(TensorError, match=r"dtype is fp8, .* pass dtype= one of float32"):
        pc.PlannedCache(cache_plan(pc.causal(), 4, dtype="fp8"))
    with pytest.raises(PatternValueError, match=r"dtype is torch.int64"):
        cache_plan(pc.causal(), 4, dtype=torch.int64)
