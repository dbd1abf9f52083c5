"""Masks that a batch brings, held to dense masks written from their definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import patterncc as pc
from patterncc.kernels import reference
from patterncc.kernels.carried import CarriedLayout, carry
from patterncc.kernels.choose import choose
from patterncc.kernels.launch import packed_rows
from patterncc.kernels.plan import Kind, Plan
from patterncc.kernels.spec import Spec
from patterncc.layout import Layout, check, decode
from patterncc.zones import Frame
from tests import strategies

KINDS: tuple[Kind, ...] = ("forward", "delta", "dq", "dkdv", "decode")
BANDS = [
    pc.full(),
    pc.causal(),
    pc.causal() & pc.window(7),
    pc.window(5, 3),
    pc.window(70, 70),
    pc.sink(4),
    pc.causal().T,
    pc.window(0, 0),
]


@dataclass(frozen=True)
class Given:
    """What is passed to compile beside the pattern."""

    doc_ids: NDArray[np.int64] | None = None
    key_lengths: NDArray[np.int64] | None = None
    prefix_lengths: NDArray[np.int64] | None = None

    @property
    def some(self) -> bool:
        return any(x is not None for x in vars(self).values())

    @property
    def sequences(self) -> int:
        rows = (self.doc_ids is not None and self.doc_ids.ndim == 2 and len(self.doc_ids)) or 1
        lengths = [x for x in (self.key_lengths, self.prefix_lengths) if x is not None and x.ndim]
        return max([rows, *map(len, lengths)])


def oracle(base: NDArray[np.bool_], frame: Frame, batch: Given) -> NDArray[np.bool_]:
    """[sequences, n, n_k] by the definition, pair by pair."""
    i = frame.q_offset + np.arange(frame.n)[:, None]
    j = frame.k_offset + np.arange(frame.n_k)[None, :]
    masks = []
    for b in range(batch.sequences):
        mask = base.copy()
        if batch.prefix_lengths is not None:
            count = np.atleast_1d(batch.prefix_lengths)[b % batch.prefix_lengths.size]
            mask |= (i < count) & (j < count)
        if batch.key_lengths is not None:
            mask &= (
                j - frame.k_offset < np.atleast_1d(batch.key_lengths)[b % batch.key_lengths.size]
            )
        if batch.doc_ids is not None:
            ids = np.atleast_2d(batch.doc_ids)[b % len(np.atleast_2d(batch.doc_ids))]
            mask &= (ids[i] == ids[j]) & (ids[i] >= 0)
        masks.append(mask)
    return np.stack(masks)


def runs(lengths: list[int], labels: list[int], size: int) -> NDArray[np.int64]:
    """Ids of documents of these lengths, the last one up to `size`."""
    ids = np.full(size, labels[-1], dtype=np.int64)
    start = 0
    for length, label in zip(lengths, labels):
        ids[start : start + length] = label
        start += length
    return ids


@st.composite
def documents(draw: st.DrawFn, size: int) -> NDArray[np.int64]:
    """Contiguous documents, some of them padding; or labels at random."""
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, 30), max_size=8))
        labels = draw(st.permutations(range(-1, len(lengths))))
        return runs(lengths, labels, size)
    seed = draw(st.integers(0, 99))
    return np.random.default_rng(seed).integers(-1, 4, size)


@st.composite
def batches(draw: st.DrawFn, frame: Frame) -> Given:
    size = max(frame.q_offset + frame.n, frame.k_offset + frame.n_k)
    count = draw(st.integers(1, 3))

    def lengths(most: int) -> NDArray[np.int64] | None:
        shape = draw(st.sampled_from([None, (), (count,)]))
        if shape is None:
            return None
        values = draw(st.lists(st.integers(0, most), min_size=count, max_size=count))
        return np.array(values[0] if shape == () else values, dtype=np.int64)

    rank = draw(st.integers(0, 2))
    ids = np.stack([draw(documents(size)) for _ in range(count)]) if rank else None
    return Given(
        ids[0] if ids is not None and rank == 1 else ids, lengths(frame.n_k), lengths(size)
    )


def compiled(p: Any, frame: Frame, batch: Given, **more: Any) -> Layout:
    sizes = (frame.n, frame.n_k, frame.q_offset, frame.k_offset)
    return pc.compile(p, *sizes, **vars(batch), **more)


def held(layout: Layout, *, columns: bool = False) -> NDArray[np.bool_]:
    """The dense mask with an axis of sequences, heads alike."""
    mask = decode.dense(layout, columns=columns)
    return mask[:, 0] if layout.sequences > 1 else mask[None]


@settings(max_examples=80)
@given(st.data())
def test_masks_are_those_of_the_definition(data: st.DataObject) -> None:
    banded = data.draw(st.booleans())
    frame = data.draw(strategies.frames(most=70 if banded else 32))
    pattern = data.draw(st.sampled_from(BANDS) if banded else strategies.patterns())
    batch = data.draw(batches(frame).filter(lambda g: g.some))
    block = data.draw(st.tuples(st.sampled_from([16, 32]), st.sampled_from([16, 32, 64])))
    layout = compiled(pattern, frame, batch, block=block)
    base = pc.lower(pattern, frame.n, frame.n_k, frame.q_offset, frame.k_offset).dense()
    expected = oracle(base, frame, batch)
    assert layout.sequences == batch.sequences
    assert (held(layout) == expected).all()
    assert (held(layout, columns=True) == expected).all()
    assert [layout.edges[u] for u in layout.head_pattern] == expected.sum((1, 2)).tolist()
    check(layout)


def test_heads_that_differ() -> None:
    layer = pc.heads([pc.causal(), pc.window(3, 3), pc.causal(), pc.strided(3)])
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 4, (2, 50)), axis=1)
    layout = pc.compile(layer, 50, doc_ids=ids, block=16)
    assert layout.dense().shape == (2, 4, 50, 50) and layout.heads == 4
    for h, p in enumerate(layer.patterns):
        expected = oracle(pc.lower(p, 50).dense(), Frame.of(50), Given(ids))
        assert (layout.dense()[:, h] == expected).all()
    assert layout.head_pattern[0] == layout.head_pattern[2]
    packed = pc.compile(layer, 50, doc_ids=ids[0], block=16)
    assert (packed.dense() == layout.dense()[0]).all() and packed.sequences == 1


def test_equal_sequences_share_their_pattern() -> None:
    ids = np.repeat([[0, 1], [2, 5], [0, 1]], 40, axis=1)
    layout = pc.compile(pc.causal(), 80, doc_ids=ids, block=32)
    assert layout.head_pattern.tolist() == [0, 1, 0] and layout.patterns == 2
    layout = pc.compile(pc.causal(), 80, doc_ids=ids, key_lengths=[80, 80, 79], block=32)
    assert layout.patterns == 3
    alike = pc.compile(pc.causal(), 80, key_lengths=[80] * 4, block=32)
    assert (alike.sequences, alike.patterns) == (4, 1)


def test_lists_arrays_and_tensors_say_the_same() -> None:
    ids = [0, 0, 0, 3, 3, -1, 1, 1]
    forms = [
        ids,
        np.array(ids, dtype=np.int32),
        torch.tensor(ids),
        torch.tensor(ids).to(torch.int8),
    ]
    hashes = {pc.compile(pc.causal(), 8, doc_ids=x, block=16).hash for x in forms}
    assert len(hashes) == 1
    assert pc.compile(pc.full(), 8, key_lengths=torch.tensor(5)).edges == (8 * 5,)


def test_documents_as_ids_are_documents_as_lengths() -> None:
    lengths = [100, 3, 250, 1, 1, 145]
    ids = np.repeat(np.arange(6), lengths)
    for p in (pc.full(), pc.causal(), pc.causal() & pc.window(60)):
        one = pc.compile(p & pc.documents("docs"), 500, block=64, docs=lengths)
        other = pc.compile(p, 500, block=64, doc_ids=ids)
        assert (one.dense() == other.dense()).all() and one.edges == other.edges
        assert (one.full_tiles, one.partial_tiles) == (other.full_tiles, other.partial_tiles)


def test_a_stack_gets_the_same_batch() -> None:
    ids = np.repeat([0, 1], 50)
    layouts = pc.compile(pc.Stack([pc.causal(), pc.full(), pc.causal()]), 100, doc_ids=ids)
    assert layouts[0] is layouts[2] and len(layouts) == 3
    assert layouts[1].edges == (2 * 50 * 50,)


def test_random_edges_are_those_of_the_layer() -> None:
    p, ids = pc.random_edges(3, seed=1), np.repeat([0, 1], 30)
    layers = pc.compile(pc.Stack([p, p]), 60, doc_ids=ids)
    for index, layout in enumerate(layers):
        expected = oracle(pc.lower(p, 60, layer=index).dense(), Frame.of(60), Given(ids))
        assert (held(layout) == expected).all()
    with pytest.raises(pc.PatternValueError, match="a Stack counts its own layers"):
        pc.compile(pc.Stack([p]), 60, layer=2, doc_ids=ids)


# --- what another batch compiles: nothing


def random_batch(rng: np.random.Generator, n: int) -> Given:
    """Documents from one token to all, padding at the end, prefixes."""
    count = int(rng.integers(1, 1 + rng.choice([2, 8, 300])))
    cuts = np.sort(rng.integers(0, n, (4, count)), axis=1)
    ids = (np.arange(n)[None, None] >= cuts[:, :, None]).sum(axis=1)
    real = rng.integers(0, n + 1, 4) if rng.random() < 0.5 else np.full(4, n)
    ids[np.arange(n) >= real[:, None]] = -1
    keys, prefix = (rng.integers(0, n + 1, 4) for _ in range(2))
    return Given(
        ids,
        keys if rng.random() < 0.5 else None,
        prefix if rng.random() < 0.3 else None,
    )


def plans(layout: Layout) -> set[Plan]:
    """All kernels of a layout at head dim 64."""
    spec = Spec.of(layout, "triton")
    made = [choose(kind, spec, "sm_90", "bfloat16", 64, 64) for kind in KINDS[:4]]
    packed = packed_rows(4) if spec.share % 4 == 0 else 1
    return {*made, choose("decode", spec, "sm_90", "bfloat16", 64, 64, heads=packed)}


@pytest.mark.parametrize(
    "layer",
    [
        pc.full(),
        pc.causal(),
        pc.causal() & pc.window(40),
        pc.causal() & (pc.window(40) | pc.sink(4)),
        pc.window(9, 9) | pc.global_tokens([0, 70]) | pc.random_edges(2),
        pc.heads([pc.causal()] * 4 + [pc.window(5)] * 4),
    ],
    ids=str,
)
def test_twenty_batches_and_one_set_of_kernels(layer: Any) -> None:
    n, rng = 300, np.random.default_rng(7)
    first = plans(compiled(layer, Frame.of(n), random_batch(rng, n)))
    assert len(first) == 5
    for _ in range(20):
        assert plans(compiled(layer, Frame.of(n), random_batch(rng, n))) == first
    packed = [random_batch(rng, n).doc_ids[0] for _ in range(20)]  # type: ignore[index]
    assert len({frozenset(plans(pc.compile(layer, n, doc_ids=ids))) for ids in packed}) == 1


def test_a_mask_of_a_batch_holds_one_zone_or_bits() -> None:
    rng = np.random.default_rng(3)
    for p in (pc.causal(), pc.causal() & (pc.window(20) | pc.sink(3)), pc.strided(7)):
        layout = compiled(p, Frame.of(200), random_batch(rng, 200), block=32)
        assert layout.varies and not layout.zones[:, 1:].any()


def test_ten_thousand_documents_stay_small() -> None:
    n = 2**20
    ids = np.repeat(np.arange(10_000), np.diff(np.linspace(0, n, 10_001).astype(int)))
    layout = pc.compile(pc.causal(), n, doc_ids=ids, block=128)
    assert layout.partial_tiles < 3 * n / 128 and layout.nbytes < 3 * n / 128 * 2100
    assert layout.edges == (int(((x := np.bincount(ids)) * (x + 1) // 2).sum()),)


# --- attention


def reference_of(layout: Layout, mask: NDArray[np.bool_], *tensors: torch.Tensor) -> Any:
    q, k, v, grad = (x.double() for x in tensors)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = reference.attention(*leaves, torch.from_numpy(mask))
    return out, lse, torch.autograd.grad(out, leaves, grad)


@settings(max_examples=10)
@given(st.data())
def test_attention_on_the_cpu(data: st.DataObject) -> None:
    frame = Frame.of(data.draw(st.integers(1, 90)), q_offset=data.draw(st.sampled_from([0, 11])))
    batch = data.draw(batches(frame).filter(lambda g: g.some))
    heads = data.draw(st.sampled_from([(1, 1), (4, 2), (4, 4)]))
    parts = data.draw(st.lists(st.sampled_from(BANDS), min_size=heads[0], max_size=heads[0]))
    layer = pc.heads(parts) if data.draw(st.booleans()) else parts[0]
    layout = compiled(layer, frame, batch, block=32)
    per_head = parts if isinstance(layer, pc.stack.Heads) else parts[:1]
    bases = [pc.lower(p, frame.n, frame.n_k, frame.q_offset).dense() for p in per_head]
    mask = np.stack([oracle(base, frame, batch) for base in bases], axis=1)
    size = batch.sequences if batch.sequences > 1 else 2
    draw = torch.Generator().manual_seed(0)
    q, grad = (torch.randn(size, heads[0], frame.n, 16, generator=draw) for _ in range(2))
    k, v = (torch.randn(size, heads[1], frame.n_k, 16, generator=draw) for _ in range(2))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = pc.attention(*leaves, layout, enable_gqa=True, return_lse=True)
    grads = torch.autograd.grad(out, leaves, grad)
    exact, exact_lse, exact_grads = reference_of(layout, mask, q, k, v, grad)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-4, atol=1e-5)
    for got, expected in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=2e-5)


def test_decode_steps_on_the_cpu() -> None:
    ids = np.repeat([[0, 1, 2], [0, 0, 1], [0, 1, 2]], 20, axis=1)
    layer = pc.heads([pc.causal(), pc.causal() & pc.window(5)])
    layout = pc.compile(layer, 60, doc_ids=ids, key_lengths=[60, 50, 60], block=16)
    q, k, v = (torch.randn(3, 2, 60, 16) for _ in range(3))
    whole = pc.attention(q, k, v, layout)
    for position in ([30, 30, 30], [5, 45, 59]):
        at = torch.tensor(position, dtype=torch.int32)
        rows = torch.stack([q[b, :, p : p + 1] for b, p in enumerate(position)])
        got = pc.attention(rows, k, v, layout, position=at)
        expected = torch.stack([whole[b, :, p : p + 1] for b, p in enumerate(position)])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_of_another_size_is_refused() -> None:
    layout = pc.compile(pc.causal(), 40, key_lengths=[40, 30, 20])
    q = torch.randn(2, 1, 40, 16)
    with pytest.raises(pc.TensorError, match=r"batch of 2 .*a mask for each of 3 sequences"):
        pc.attention(q, q, q, layout)


# --- refusals


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"doc_ids": [0, 0, 1]}, "doc_ids has 3 ids a sequence for 8 positions"),
        ({"doc_ids": [[0, 1]]}, "doc_ids has 2 ids a sequence for 8 positions"),
        ({"doc_ids": [0] * 7 + [-2]}, r"doc_ids\[7\] is -2; an id is 0 or more, or -1 for padding"),
        ({"doc_ids": [[0] * 8, [0] * 5 + [-9] * 3]}, r"doc_ids\[1, 5\] is -9"),
        ({"doc_ids": [0.5] * 8}, "doc_ids is float64 of shape"),
        ({"doc_ids": np.zeros((1, 2, 8), dtype=int)}, r"shape \[1, 2, 8\]; it must be integers"),
        (
            {"doc_ids": [[0] * 8, [0] * 7]},
            r"doc_ids cannot be read as integers: its rows have from 7 to 8 entries",
        ),
        ({"key_lengths": [3, [4, 5]]}, "its rows have from 1 to 2 entries"),
        ({"prefix_lengths": 9}, "prefix_lengths is 9; it counts positions, .* at most 8"),
        ({"doc_ids": [0] * 8, "order": np.arange(8)}, "a given order with doc_ids"),
        ({"doc_ids": np.zeros((0, 8), dtype=int)}, "a batch of no sequence"),
        ({"key_lengths": 9}, "key_lengths is 9; it counts the keys, at least 0 and at most 8"),
        ({"key_lengths": [3, -1]}, r"key_lengths\[1\] is -1"),
        ({"key_lengths": []}, "a batch of no sequence"),
        ({"prefix_lengths": [[3]]}, "it must be integers, one number or a list"),
        ({"prefix_lengths": -1}, "prefix_lengths is -1; it counts positions"),
        (
            {"doc_ids": [[0] * 8] * 2, "key_lengths": [8, 8, 8]},
            "different numbers of sequences: doc_ids 2, key_lengths 3",
        ),
        ({"key_lengths": 3, "order": "rcm"}, "order='rcm' with doc_ids"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(batch: dict[str, Any], message: str) -> None:
    with pytest.raises(pc.PatternValueError, match=message) as refused:
        pc.compile(pc.causal(), 8, **batch)
    assert "inhomogeneous" not in str(refused.value)


def scattered(n: int, count: int, seed: int) -> NDArray[np.int64]:
    """Ids of which hardly two in a row are alike, some of them padding."""
    return np.random.default_rng(seed).integers(-1, count, n)


@pytest.mark.parametrize(
    "layer",
    [
        pc.causal(),
        pc.window(90, 40) | pc.sink(3),
        pc.heads([pc.causal(), pc.full(), pc.causal()]),
        pc.Stack([pc.causal(), pc.full()]),
    ],
    ids=str,
)
def test_scattered_ids_of_one_sequence_get_an_order(layer: Any) -> None:
    n, ids = 700, scattered(700, 3, 0)  # a pair of runs is 1 of 3 x 5.3 pairs of tokens
    with pytest.MonkeyPatch.context() as patch:
        for room in ("batch", "reorder"):
            patch.setattr(f"patterncc.layout.{room}.MAX_PAIRS", 2**10)
        made = pc.compile(layer, n, doc_ids=ids)
        plain = pc.compile(layer, n, doc_ids=ids, order="token")
    pairs = zip(made, plain) if isinstance(layer, pc.Stack) else [(made, plain)]
    for layout, token in pairs:
        assert "clusters" in [t.order.name for t in layout.terms if t.order]
        assert token.order is None and not token.rest
        assert all(t.varies and not t.zones[:, 1:].any() for t in layout.terms)
        assert (layout.dense() == token.dense()).all()
        for term in layout.terms:
            check(term)


def test_scattered_ids_are_few_tiles_and_one_set_of_kernels() -> None:
    n, sets = 2**15, set()
    for seed in range(3):
        ids = scattered(n, 64, seed)
        layout = pc.compile(pc.causal(), n, doc_ids=ids)
        size = np.bincount(ids[ids >= 0])
        assert layout.edges == (int((size * (size + 1) // 2).sum()),)
        assert layout.full_tiles + layout.partial_tiles < 1000  # of 32,896 in token order
        assert layout.sequences == 1 and not layout.rest
        sets.add(frozenset(plans(layout)))
    assert len(sets) == 1


def test_attention_over_scattered_ids() -> None:
    n, ids = 600, scattered(600, 2, 1)
    with pytest.MonkeyPatch.context() as patch:
        for room in ("batch", "reorder"):
            patch.setattr(f"patterncc.layout.{room}.MAX_PAIRS", 2**10)
        layout = pc.compile(pc.causal(), n, doc_ids=ids)
    assert layout.order is not None
    q, k, v = torch.randn(3, 2, 2, n, 16).unbind()
    mask = torch.from_numpy(oracle(pc.lower(pc.causal(), n).dense(), Frame.of(n), Given(ids))[0])
    expected, _ = reference.attention(q.double(), k.double(), v.double(), mask)
    got = pc.attention(q, k, v, layout)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_scattered_ids_of_several_sequences_are_refused_in_their_own_words() -> None:
    ids = np.stack([np.zeros(2**14, dtype=int), np.tile([0, 1], 2**13)])
    with pytest.raises(pc.SizeError, match=r"doc_ids of sequence 1: 134217728 pairs") as refused:
        pc.compile(pc.causal(), 2**14, doc_ids=ids)
    assert "clusters" not in str(refused.value) and "max_zones" not in str(refused.value)
    with pytest.raises(pc.SizeError, match=r"doc_ids: 134217728 pairs of runs"):
        pc.compile(pc.causal(), 2**14, doc_ids=ids[1], order="token")


def test_too_many_partial_tiles_are_refused_before_they_are_listed() -> None:
    ids = np.repeat(np.arange(64), 64)
    with pytest.raises(pc.SizeError, match=r"leaves \d+ tiles of 16 x 16 partly filled"):
        pc.compile(pc.causal(), 4096, doc_ids=ids, block=16, max_tiles=100)
    for p in (pc.causal(), pc.causal() & (pc.window(20) | pc.sink(3))):
        with pytest.raises(pc.SizeError, match="more than max_bytes = 9000"):
            pc.compile(p, 4096, doc_ids=ids // 7, block=32, max_bytes=9000)


# --- layouts that are inputs of a traced graph


def test_a_traced_graph_takes_further_batches() -> None:
    graphs = []

    def counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def step(q: torch.Tensor, layout: CarriedLayout) -> torch.Tensor:
        return pc.attention(q, q, q, layout) * 2

    traced = torch.compile(step, backend=counted, fullgraph=True)
    rng, q = np.random.default_rng(0), torch.randn(2, 2, 40, 16)
    seen = []
    for count in (3, 5, 1, 2, 4, 9, 1, 7, 6, 3):
        ids = np.sort(rng.integers(0, count, (2, 40)), axis=1)
        layout = pc.compile(pc.causal(), 40, doc_ids=ids, block=16)
        out = traced(q, carry(layout))
        torch.testing.assert_close(out, 2 * pc.attention(q, q, q, layout))
        seen.append(len(graphs))
    assert seen[-4] == seen[-1] <= 5  # a table of no row, of one, and of more are told apart


def test_a_carried_layout_stays_where_it_was_carried() -> None:
    q = torch.randn(1, 1, 20, 16)
    layout = carry(pc.compile(pc.causal(), 20, key_lengths=12))
    assert pc.attention(q, q, q, layout, backend="cpu").shape == q.shape
    with pytest.raises(pc.BackendError, match='backend="reference", a layout carried for "cpu"'):
        pc.attention(q, q, q, layout, backend="reference")
    with pytest.raises(pc.BackendError, match="tensors on meta, a layout carried to cpu"):
        pc.attention(*[q.to("meta")] * 3, layout)


def test_what_a_graph_is_told_does_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(1)
    for layer in (pc.causal(), pc.heads([pc.causal(), pc.window(3), pc.strided(4)])):
        made = [compiled(layer, Frame.of(90), random_batch(rng, 90)) for _ in range(10)]
        for backend in ("triton", "cpu"):
            assert len({Spec.of(x, backend).text() for x in made}) == 1  # type: ignore[arg-type]


def test_batches_of_no_tokens() -> None:
    for ids, shape in (([], (0, 0)), ([[], []], (2, 1, 0, 0))):
        assert pc.compile(pc.causal(), 0, doc_ids=ids).dense().shape == shape
