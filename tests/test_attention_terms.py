"""Attention in several terms, each in an order of its own, against float64 dense attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import patterncc as pc
from patterncc.kernels import op, reference, terms, upload
from patterncc.kernels.spec import Spec
from patterncc.layout import Layout
from patterncc.layout.build import build
from patterncc.layout.decode import dense
from patterncc.zones import Frame, ZoneSet
from patterncc.zones.merge import zones_of_edges
from patterncc.zones.orders.order import Order
from tests.test_layout import PATTERNS

Masks = NDArray[np.bool_]
Orders = list[Order | None]


def in_terms(
    masks: Masks,
    owner: NDArray[np.int64],
    orders: Orders,
    block: tuple[int, int] = (16, 16),
    frame: Frame | None = None,
    sequences: int = 1,
) -> Layout:
    """The layout of masks [patterns, n, n_k] whose pair (i, j) belongs to term owner[i, j]."""
    frame = frame or Frame(*masks.shape[1:])
    made = []
    for number, order in enumerate(orders):
        zones = []
        for mask in masks:
            i, j = np.nonzero(mask & (owner == number))
            if order is not None:
                i, j = order.query_slots[i].astype(np.int64), order.key_slots[j].astype(np.int64)
            zones.append(
                ZoneSet.make(frame, zones_of_edges(i + frame.q_offset, j + frame.k_offset))
            )
        layout = build(zones, range(len(masks)), block, pattern=f"term {number}")
        made.append(replace(layout, order=order, sequences=sequences))
    return replace(made[0], rest=tuple(made[1:]))


def random_order(rng: np.random.Generator, n: int, n_k: int) -> Order:
    """Queries and keys shuffled, together or each for itself, or one of them alone."""
    queries, keys = rng.permutation(n), rng.permutation(n_k)
    kind = int(rng.integers(4))
    if kind == 0 and n == n_k:
        return Order.of("together", queries)
    if kind == 1:
        queries = np.arange(n)
    if kind == 2:
        keys = np.arange(n_k)
    return Order.of("shuffled", queries, keys)


@st.composite
def split(draw: st.DrawFn) -> tuple[Layout, Masks]:
    """A generated pattern for each of up to two heads, cut into 1 - 3 terms at random."""
    n = draw(st.integers(1, 50))
    heads = draw(st.integers(1, 2))
    sides = st.sampled_from([(16, 16), (32, 16), (16, 64)])
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = np.array([pc.lower(draw(PATTERNS), n, head=h).dense() for h in range(heads)])
    count = draw(st.integers(1, 3))
    orders = [random_order(rng, n, n) if rng.random() < 0.8 else None for _ in range(count)]
    owner = rng.integers(0, count, (n, n))
    return in_terms(masks, owner, orders, draw(sides)), masks


def tensors(
    n: int, n_k: int, dtype: torch.dtype = torch.float32, heads: int = 4, dim: int = 16
) -> list[Tensor]:
    draw = torch.Generator().manual_seed(n)
    shapes = [(2, heads, n, dim), (2, 2, n_k, dim), (2, 2, n_k, dim)]
    return [torch.randn(s, generator=draw, dtype=dtype).requires_grad_() for s in shapes]


def check(layout: Layout, mask: Tensor, backend: str = "cpu", heads: int = 4) -> None:
    """Output, LSE and gradients against dense attention in float64."""
    q, k, v = tensors(layout.n, layout.n_k, heads=heads)
    out, lse = pc.attention(q, k, v, layout, enable_gqa=True, return_lse=True, backend=backend)
    exact, exact_lse = reference.attention(q, k, v, mask)
    torch.testing.assert_close(out, exact.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, exact_lse.float(), rtol=1e-4, atol=1e-5)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(out, (q, k, v), grad)
    expected = torch.autograd.grad(exact, (q, k, v), grad.double())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@settings(max_examples=60)
@given(split())
def test_dense_is_by_original_positions(made: tuple[Layout, Masks]) -> None:
    layout, masks = made
    whole = masks[0] if len(masks) == 1 else masks
    assert np.array_equal(layout.dense(), whole)
    assert np.array_equal(dense(layout, columns=True), whole)
    assert sum(t.head_edges for t in layout.terms) == masks.sum()  # no pair in two terms


@settings(max_examples=25)
@given(split(), st.sampled_from(["cpu", "reference"]))
def test_output_and_gradients(made: tuple[Layout, Masks], backend: str) -> None:
    layout, masks = made
    per_head = torch.from_numpy(masks)
    heads = 4 if len(masks) == 1 else 2
    check(layout, per_head[0] if len(masks) == 1 else per_head, backend, heads)


@settings(max_examples=15)
@given(split(), st.data())
@torch.no_grad()
def test_decode(made: tuple[Layout, Masks], data: st.DataObject) -> None:
    """Rows at one position, and at another one in each sequence."""
    layout, masks = made
    heads = 4 if len(masks) == 1 else 2
    q, k, v = tensors(layout.n, layout.n_k, heads=heads)
    mask = torch.from_numpy(masks)
    whole, lse = reference.attention(q, k, v, mask[0] if len(masks) == 1 else mask)
    rows = data.draw(st.integers(1, min(3, layout.n)))
    starts = st.integers(0, layout.n - rows)
    for at in (data.draw(starts), torch.tensor([data.draw(starts), data.draw(starts)])):
        first = at.tolist() if isinstance(at, Tensor) else [at, at]
        some = torch.stack([q[b, :, f : f + rows] for b, f in enumerate(first)])
        for backend in ("cpu", "reference"):
            step, step_lse = pc.attention(
                some, k, v, layout, enable_gqa=True, position=at, return_lse=True, backend=backend
            )
            for b, f in enumerate(first):
                expected = whole[b, :, f : f + rows].float(), lse[b, :, f : f + rows].float()
                torch.testing.assert_close(step[b], expected[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(step_lse[b], expected[1], rtol=1e-4, atol=1e-5)


def example(
    frame: Frame | None = None, heads: int = 1, density: float = 0.2, count: int = 3
) -> tuple[Layout, Tensor]:
    """Random edges in three terms, the second in token order; rows 0 .. 3 read nothing."""
    frame = frame or Frame(70, 70)
    rng = np.random.default_rng(heads)
    masks = rng.random((heads, frame.n, frame.n_k)) < density
    masks[:, :4] = False
    orders: Orders = [random_order(rng, frame.n, frame.n_k) for _ in range(count)]
    orders[1:2] = [None] * len(orders[1:2])
    owner = rng.integers(0, count, (frame.n, frame.n_k))
    mask = torch.from_numpy(masks)
    layout = in_terms(masks, owner, orders, frame=frame)
    layout = replace(layout, head_pattern=np.arange(heads, dtype=np.int32))
    return layout, mask[0] if heads == 1 else mask


LAYOUT, MASK = example()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_that_differ_and_share_keys(backend: str, kv_heads: int) -> None:
    layout, mask = example(Frame(40, 60, 20, 0), heads=4)
    q, k, v = tensors(40, 60)
    k, v = k[:, :1].repeat(1, kv_heads, 1, 1), v[:, :1].repeat(1, kv_heads, 1, 1)
    out = pc.attention(q, k, v, layout, enable_gqa=True, backend=backend)
    exact, _ = reference.attention(q, k, v, mask)
    torch.testing.assert_close(out, exact.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2])
def test_sequences_with_masks_of_their_own(heads: int) -> None:
    made, mask = example(heads=2 * heads)
    layout = replace(
        made, sequences=2, rest=tuple(replace(t, sequences=2) for t in made.rest), pattern="two"
    )
    masks = mask.reshape(2, heads, 70, 70)
    assert np.array_equal(layout.dense(), masks.numpy())
    assert "2 sequences" in str(layout)
    for backend in ("cpu", "reference"):
        check(layout, masks, backend, heads=2)
    q, k, v = (x.detach() for x in tensors(70, 70, heads=2))
    whole, _ = reference.attention(q, k, v, masks)
    at = torch.tensor([40, 7])
    rows = torch.stack([q[0, :, 40:42], q[1, :, 7:9]])
    expected = torch.stack([whole[0, :, 40:42], whole[1, :, 7:9]]).float()
    for backend in ("cpu", "reference"):
        step = pc.attention(rows, k, v, layout, enable_gqa=True, position=at, backend=backend)
        torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-5)


def test_frames_with_offsets() -> None:
    layout, mask = example(Frame(40, 60, 20, 0))
    check(layout, mask)
    q, k, v = (x.detach() for x in tensors(40, 60))
    whole = pc.attention(q, k, v, layout, enable_gqa=True)
    step = pc.attention(q[:, :, 10:12], k, v, layout, enable_gqa=True, position=30)
    torch.testing.assert_close(step, whole[:, :, 10:12], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_that_read_nothing(backend: str) -> None:
    q, k, v = tensors(70, 70)
    out, lse = pc.attention(q, k, v, LAYOUT, enable_gqa=True, return_lse=True, backend=backend)
    assert (out[:, :, :4] == 0).all() and (lse[:, :, :4] == -torch.inf).all()
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert (grads[0][:, :, :4] == 0).all()
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_layouts_without_keys_have_gradients(backend: str) -> None:
    q, k, v = (torch.randn(2, 2, m, 16, requires_grad=True) for m in (20, 0, 0))
    layout = pc.compile(pc.full(), 20, 0, block=16)
    out = pc.attention(q, k, v, layout, backend=backend)
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert not out.any() and not grads[0].any()
    assert [g.shape for g in grads[1:]] == [k.shape, v.shape]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_keys_that_nobody_reads_may_hold_any_number(backend: str) -> None:
    """Their logits pass those that are read by more than exp can hold."""
    q, k, v = (torch.randn(1, 1, 40, 16, dtype=torch.float64) for _ in range(3))
    k[:, :, 20:] = 1e4 * q[:, :, :20]
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    layout = pc.compile(pc.causal() & pc.sink(20), 40, block=16)
    grads = torch.autograd.grad(pc.attention(q, k, v, layout, backend=backend).sum(), (q, k, v))
    mask = torch.from_numpy(layout.dense())
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    for found, wanted in zip(grads, torch.autograd.grad(dense.sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_terms_without_edges() -> None:
    layout, mask = example(density=0.0)
    check(layout, mask)
    some, mask = example(heads=2)
    none = np.zeros((2, 70, 70), dtype=bool)
    owner = np.zeros((70, 70), dtype=np.int64)
    empty = in_terms(none, owner, [random_order(np.random.default_rng(0), 70, 70)])
    check(replace(empty, rest=some.terms), mask, heads=2)
    text = upload.prepared(replace(empty, rest=some.terms), torch.device("cpu"), "cpu")[1]
    assert text == upload.prepared(some, torch.device("cpu"), "cpu")[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype: torch.dtype) -> None:
    """Twice the error of dense attention in the same precision, plus one rounding."""
    q, k, v = tensors(70, 70, dtype, heads=2, dim=64)
    exact, _ = reference.attention(q, k, v, MASK)
    grad = torch.randn(exact.shape, dtype=torch.float64)
    dense_out = torch.nn.functional.scaled_dot_product_attention(q[:, :, 4:], k, v, MASK[4:])
    out = pc.attention(q, k, v, LAYOUT)
    pairs = [(out[:, :, 4:], dense_out, exact[:, :, 4:])]
    ours = torch.autograd.grad(out, (q, k, v), grad.to(dtype))
    plain = torch.autograd.grad(dense_out, (q, k, v), grad[:, :, 4:].to(dtype))
    whole = torch.autograd.grad(exact, (q, k, v), grad)
    for a, b, c in [*pairs, *zip(ours, plain, whole, strict=True)]:
        error = (a.double() - c).abs().max()
        rounding = torch.finfo(dtype).eps * c.double().abs().max()
        least = 1e-6 if dtype == torch.float64 else 0  # the LSE is kept in fp32
        assert error <= 2 * (b.double() - c).abs().max() + rounding + least


@pytest.mark.parametrize("heads", [1, 2])
@torch.no_grad()
def test_a_step_copies_only_the_keys_of_its_tile_rows(heads: int) -> None:
    """All else in the copy is NaN here, as torch fills what nobody has written."""
    n, rng = 600, np.random.default_rng(heads)
    masks = np.array([pc.lower(pc.window(9, 9), n).dense() & (rng.random((n, n)) < 0.7)] * heads)
    order = Order.of("by residue", np.argsort(np.arange(n) % 3, kind="stable"))
    keys = Order.of("keys alone", np.arange(n), order.queries)
    several: list[Orders] = [[order, None], [order, order], [None, order], [keys, None]]
    for orders in several:
        owner = rng.integers(0, 2, (n, n))
        layout = in_terms(masks, owner, orders)
        q, k, v = tensors(n, n, heads=2)
        exact, _ = reference.attention(q, k, v, torch.from_numpy(masks))
        at = torch.tensor([0, 597])
        rows = torch.stack([q[b, :, f : f + 3] for b, f in enumerate(at.tolist())])
        prepared, plan, _ = upload.prepared(layout, q.device, "cpu")
        spec = terms.parsed(plan)
        assert isinstance(spec, terms.Terms)
        partly = [p.cached(k, v).partly for p in terms._parts(spec, prepared)]
        assert partly == [o is not None for o in orders]
        torch.use_deterministic_algorithms(True)
        try:
            step = pc.attention(rows, k, v, layout, position=at, enable_gqa=True)
        finally:
            torch.use_deterministic_algorithms(False)
        for b, f in enumerate(at.tolist()):
            whole = exact[b, :, f : f + 3].float()
            torch.testing.assert_close(step[b], whole, rtol=1e-4, atol=1e-5)


def test_gradients_by_differences() -> None:
    layout, _ = example(Frame(5, 6), density=0.6)
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, 2, 5, 3), (1, 1, 6, 3), (1, 1, 6, 2)]
    inputs = [torch.randn(s, generator=draw, dtype=torch.float64).requires_grad_() for s in shapes]
    torch.autograd.gradcheck(lambda q, k, v: pc.attention(q, k, v, layout, enable_gqa=True), inputs)


def test_rows_outside_the_layout() -> None:
    q, k, v = (x.detach()[:, :, :70] for x in tensors(70, 70))
    for at in (torch.tensor([3, 69]), torch.tensor([-1, 3])):
        with pytest.raises(pc.TensorError, match=r"queries stand at \[0, 70\)"):
            pc.attention(q[:, :, :2], k, v, LAYOUT, enable_gqa=True, position=at)
    rows = torch.tensor([[0, 69, 70, -1]])
    spec = Spec.of(LAYOUT, "triton")
    slots = torch.arange(70, dtype=torch.int32).flip(0)
    assert terms._positions(rows, slots, spec).tolist() == [[69], [0], [70], [70]]


def test_opcheck() -> None:
    assert op.attention is not None  # its import registers the ops
    q, k, v = tensors(70, 70)
    prepared, plan, _ = upload.prepared(LAYOUT, q.device, "auto")
    torch.library.opcheck(torch.ops.patterncc.attention.default, (q, k, v, prepared, plan, 0.2))
    out, lse = torch.ops.patterncc.attention(q, k, v, prepared, plan, 0.2)
    args = [x.detach() for x in (torch.ones_like(out), q, k, v, out, lse)]
    torch.library.opcheck(
        torch.ops.patterncc.attention_backward.default, (*args, prepared, plan, 0.2)
    )
    step = [x.detach() for x in (q[:, :, :2], k, v)]
    position = torch.tensor([3, 5], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.patterncc.decode.default, (*step, prepared, plan, 0.2, position)
    )


def test_compiles_as_one_graph() -> None:
    q, k, v = tensors(70, 70)

    def layers(q: Tensor, k: Tensor, v: Tensor, layout: pc.Layout) -> Tensor:
        return pc.attention(q * 2, k, v, layout, enable_gqa=True).sin()

    traced = torch.compile(layers, fullgraph=True, backend="aot_eager")
    for layout in (LAYOUT, LAYOUT.terms[0]):
        a, b = traced(q, k, v, layout), layers(q, k, v, layout)
        torch.testing.assert_close(a, b)
        grads = [torch.autograd.grad(x.sum(), (q, k, v)) for x in (a, b)]
        torch.testing.assert_close(*grads)


def test_exports_as_one_node() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return pc.attention(q, k, v, LAYOUT, enable_gqa=True)

    inputs = tuple(x.detach() for x in tensors(70, 70))
    program = torch.export.export(Model(), inputs)
    calls = [
        n for n in program.graph.nodes if n.op == "call_function" and "patterncc" in str(n.target)
    ]
    assert len(calls) == 1
    torch.testing.assert_close(program.module()(*inputs), Model()(*inputs))


def test_what_the_op_carries() -> None:
    """Token order costs nothing; a side in token order is not gathered; equal sides are one."""
    cpu = torch.device("cpu")
    plain = LAYOUT.terms[1]
    tensors, text, _ = upload.prepared(plain, cpu, "cpu")
    assert text == Spec.of(plain, "cpu").text() and len(tensors) == 8
    up, down = np.arange(70), np.arange(70)[::-1]
    tensors, text, _ = upload.prepared(replace(plain, order=Order.of("x", up)), cpu, "cpu")
    assert isinstance(terms.parsed(text), Spec) and len(tensors) == 8
    kinds = [(down, up, (0, None), 2), (up, down, (None, 0), 3)]
    kinds += [(down, down, (0, 0), 3), (down, np.roll(up, 1), (0, 2), 5)]
    for queries, keys, places, extra in kinds:
        layout = replace(plain, order=Order.of("x", queries, keys))
        tensors, text, _ = upload.prepared(layout, cpu, "cpu")
        spec = terms.parsed(text)
        assert isinstance(spec, terms.Terms) and len(tensors) == 8 + extra
        assert (spec.terms[0].queries, spec.terms[0].keys) == places
    both = terms.parsed(upload.prepared(LAYOUT, cpu, "cpu")[1])
    assert isinstance(both, terms.Terms)
    assert len({t.spec.layout_hash for t in both.terms}) == 3  # the key of what a backend keeps


def test_text_shows_orders_and_terms() -> None:
    text = str(LAYOUT)
    assert "70 queries at 0, 70 keys at 0, 3 terms" in text
    assert "term 1: tiles of 16 x 16, edges" in text
    assert f"order '{LAYOUT.order.name}': queries " in text  # type: ignore[union-attr]
    assert len(text.splitlines()) < 4 * 60
    assert "... 6 more terms" in str(replace(LAYOUT, rest=LAYOUT.rest * 4 + LAYOUT.rest[:1]))
