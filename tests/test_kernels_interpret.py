"""Generated kernels in Triton's interpreter, held to float64 attention written from the pattern.

This process has TRITON_INTERPRET=1 (see conftest).  The budget: at most twice the error of torch's
dense attention in the same precision, plus one rounding in fp16 and four in fp32, whose gradients
subtract sums that are themselves rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_layout import layout_of_mask
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import patterncc as pc
from patterncc.kernels import launch, reference, runtime, upload
from patterncc.kernels.plan import Target
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec
from patterncc.kernels.tables import kernel_tables
from patterncc.layout import Layout

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

ROUNDING = {torch.float32: 4 * 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@pytest.fixture(autouse=True)
def _sources(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path_factory.getbasetemp() / "sources"))


WAYS: dict[str, tuple[torch.dtype, Target]] = {
    "fp32 by pointers": (torch.float32, "sm_80"),
    "fp16 by descriptors": (torch.float16, "sm_90"),
}


def use(way: str, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Let the interpreter run the very sources of a real target."""
    dtype, target = WAYS[way]
    monkeypatch.setattr(runtime, "target_of", lambda device: target)
    return dtype


@dataclass(frozen=True)
class Sample:
    """Random tensors for a layout, and the mask that they are judged by."""

    layout: Layout
    mask: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor

    @staticmethod
    def of(
        layout: Layout,
        mask: np.ndarray,
        dtype: torch.dtype,
        heads: tuple[int, int] = (2, 2),
        dims: tuple[int, int] = (16, 16),
        batch: int = 1,
        seed: int = 0,
    ) -> Sample:
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw).to(dtype)

        n, n_k = layout.n, layout.n_k
        return Sample(
            layout,
            torch.from_numpy(mask),
            normal(batch, heads[0], n, dims[0]),
            normal(batch, heads[1], n_k, dims[0]),
            normal(batch, heads[1], n_k, dims[1]),
            normal(batch, heads[0], n, dims[1]),
        )

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.q.shape[-1])

    def exact(self) -> list[Tensor]:
        """out, grad_q, grad_k, grad_v in float64."""
        leaves = [x.double().requires_grad_() for x in (self.q, self.k, self.v)]
        out, _ = reference.attention(*leaves, self.mask)
        return [out.detach(), *torch.autograd.grad(out, leaves, self.grad.double())]

    def dense(self) -> list[Tensor]:
        """The same from torch's dense attention in the tensors' own precision."""
        empty = ~self.mask.any(-1, keepdim=True)
        some = self.mask | empty  # it cannot read nothing; those rows are cleared below
        leaves = [x.clone().requires_grad_() for x in (self.q, self.k, self.v)]
        out = scaled_dot_product_attention(*leaves, some, enable_gqa=True)
        grads = torch.autograd.grad(out, leaves, self.grad.masked_fill(empty, 0.0))
        return [out.detach().masked_fill(empty, 0.0), *grads]

    def kernels(self) -> list[Tensor]:
        """The same from the generated kernels."""
        spec, tensors = self.prepared()
        out, lse = launch.forward(self.q, self.k, self.v, tensors, spec, Score(self.scale))
        inputs = self.grad, self.q, self.k, self.v, out, lse
        return [out, *launch.backward(*inputs, tensors, spec, Score(self.scale))[:3]]

    def lse(self) -> Tensor:
        spec, tensors = self.prepared()
        return launch.forward(self.q, self.k, self.v, tensors, spec, Score(self.scale))[1]

    def prepared(self) -> tuple[Spec, list[Tensor]]:
        spec = Spec.of(self.layout, "triton")
        return spec, kernel_tables(self.layout, spec, self.q.device)


def check(sample: Sample) -> None:
    """Every output within the budget."""
    rounding = ROUNDING[sample.q.dtype]
    names = ("out", "grad_q", "grad_k", "grad_v")
    results = zip(names, sample.kernels(), sample.exact(), sample.dense(), strict=True)
    for name, got, exact, dense in results:
        assert got.shape == exact.shape and got.dtype == sample.q.dtype
        if not exact.numel():
            continue
        error, usual = ((x.double() - exact).abs().max().item() for x in (got, dense))
        limit = 2 * usual + rounding * max(1.0, exact.abs().max().item())
        assert error <= limit, f"{name}: {error:.3g} passes {limit:.3g}"


def compiled(pattern: pc.Pattern, n: int, **sizes: object) -> tuple[Layout, np.ndarray]:
    """A layout, and the mask of the pattern alone."""
    frame = {key: value for key, value in sizes.items() if key != "block"}
    layout = pc.compile(pattern, n, **sizes)  # type: ignore[call-overload]
    return layout, pc.lower(pattern, n, **frame).dense()  # type: ignore[arg-type]


CAUSAL_WINDOW = pc.causal() & pc.window(21)
PATTERNS = {
    "full, ragged keys": (pc.full(), {"n": 45, "n_k": 53, "block": 16}),
    "full, whole tiles": (pc.full(), {"n": 45, "n_k": 64, "block": 32}),
    "causal window": (CAUSAL_WINDOW, {"n": 75, "block": 32}),
    "steps within a tile": (CAUSAL_WINDOW, {"n": 150, "block": 128}),
    "tiles of 16 x 64": (CAUSAL_WINDOW, {"n": 75, "block": (16, 64)}),
    "tiles of 64 x 16": (CAUSAL_WINDOW, {"n": 75, "block": (64, 16)}),
    "two and four zones": (
        pc.global_tokens([3, 40]) | pc.window(5),
        {"n": 70, "block": 32},
    ),
    "bits": (pc.random_edges(3, seed=1) | pc.window(2), {"n": 60, "block": 32}),
    "a slice of queries": (CAUSAL_WINDOW, {"n": 20, "q_offset": 37, "block": 16}),
    "rows and columns with nothing": (
        pc.window(3) & ~(pc.prefix(40) | pc.global_tokens(range(50, 54))),
        {"n": 70, "block": 16},
    ),
    "no keys": (pc.full(), {"n": 20, "n_k": 0, "block": 16}),
    "no queries": (pc.full(), {"n": 0, "n_k": 20, "block": 16}),
    "nothing at all": (pc.window(2) & ~pc.window(3), {"n": 20, "block": 16}),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("way", WAYS)
def test_patterns(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, sizes = PATTERNS[name]
    check(Sample.of(*compiled(pattern, **sizes), use(way, monkeypatch)))  # type: ignore[arg-type]


def test_classes_in_use() -> None:
    """The patterns above reach every mask class."""
    specs = [Spec.of(compiled(p, **sizes)[0], "triton") for p, sizes in PATTERNS.values()]  # type: ignore[arg-type]
    assert {s.zones for s in specs} == {0, 1, 2, 4}
    assert {s.bits for s in specs} == {s.full for s in specs} == {False, True}


@pytest.mark.parametrize("heads", [(4, 2), (4, 1), (2, 2)], ids=["4:2", "4:1", "2:2"])
@pytest.mark.parametrize("way", WAYS)
def test_grouped_heads(heads: tuple[int, int], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = use(way, monkeypatch)
    check(Sample.of(*compiled(CAUSAL_WINDOW, 40, block=32), dtype, heads, batch=2))


@pytest.mark.parametrize("dims", [(16, 32), (20, 12 + 8), (48, 24), (80, 80), (256, 16)])
@pytest.mark.parametrize("way", WAYS)
def test_head_dims(dims: tuple[int, int], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = use(way, monkeypatch)
    check(Sample.of(*compiled(pc.causal(), 37, block=16), dtype, dims=dims))


def test_heads_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [pc.causal(), pc.window(4), pc.window(4), pc.random_edges(2, seed=3)]
    layout = pc.compile(pc.heads(parts), 40, block=32)
    mask = np.stack([pc.lower(p, 40, head=h).dense() for h, p in enumerate(parts)])
    for way in WAYS:
        check(Sample.of(layout, mask, use(way, monkeypatch), heads=(4, 2)))


def test_bf16_is_upcast_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "target_of", lambda device: "sm_90")
    check(Sample.of(*compiled(CAUSAL_WINDOW, 50, block=32), torch.bfloat16))


def test_rows_that_read_nothing() -> None:
    pattern = pc.window(3) & ~pc.prefix(30)
    sample = Sample.of(*compiled(pattern, 60, block=16), torch.float32)
    out, grad_q, grad_k, grad_v = sample.kernels()
    lse = sample.lse()
    empty = ~sample.mask.any(-1)
    assert empty.sum() > 10
    assert (out[:, :, empty] == 0).all() and (grad_q[:, :, empty] == 0).all()
    assert (lse[:, :, empty] == -torch.inf).all() and lse[:, :, ~empty].isfinite().all()
    unread = ~sample.mask.any(-2)
    assert (grad_k[:, :, unread] == 0).all() and (grad_v[:, :, unread] == 0).all()


def test_lse_is_natural() -> None:
    sample = Sample.of(*compiled(CAUSAL_WINDOW, 50, block=32), torch.float32)
    _, exact = reference.attention(sample.q, sample.k, sample.v, sample.mask)
    torch.testing.assert_close(sample.lse(), exact.float(), rtol=1e-5, atol=1e-6)


def test_views_as_models_make_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """[B, L, H, D] transposed, and one key head expanded: the same bits as contiguous tensors."""
    layout, mask = compiled(CAUSAL_WINDOW, 30, block=16)
    for way in WAYS:
        dtype = use(way, monkeypatch)
        sample = Sample.of(layout, mask, dtype, heads=(4, 4))
        q, grad = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (sample.q, sample.grad))
        k, v = (x[:, :1].expand(-1, 4, -1, -1) for x in (sample.k, sample.v))
        views = Sample(layout, sample.mask, q, k, v, grad)
        plain = Sample(layout, sample.mask, sample.q, k.contiguous(), v.contiguous(), sample.grad)
        for a, b in zip(views.kernels(), plain.kernels(), strict=True):
            assert torch.equal(a, b)


def test_backward_repeats_to_the_bit() -> None:
    sample = Sample.of(*compiled(CAUSAL_WINDOW, 40, block=32), torch.float32)
    for a, b in zip(sample.kernels(), sample.kernels(), strict=True):
        assert torch.equal(a, b)


DECODES = {
    "packed group": (pc.causal() & (pc.window(9) | pc.sink(2)), (4, 2)),
    "single heads": (pc.causal(), (2, 2)),
    "shared within groups": (pc.heads([pc.causal()] * 2 + [pc.window(5)] * 2), (4, 2)),
    "differ within groups": (pc.heads([pc.causal(), pc.window(5)] * 2), (4, 2)),
    "bits": (pc.random_edges(3, seed=5), (4, 1)),
}


@pytest.mark.parametrize("name", DECODES)
def test_decode(name: str) -> None:
    """Rows at a position of each sequence's own; the last sequence stands outside the layout."""
    pattern, heads = DECODES[name]
    layout = pc.compile(pattern, 50, q_offset=7, block=16)
    parts = pattern.patterns if isinstance(pattern, pc.stack.Heads) else [pattern] * heads[0]
    mask = np.stack([pc.lower(p, 50, q_offset=7, head=0).dense() for p in parts])
    sample = Sample.of(layout, mask, torch.float32, heads, batch=4)
    spec, tensors = sample.prepared()
    position = torch.tensor([7, 30, 54, 999], dtype=torch.int32)
    out, lse = launch.decode(
        sample.q[:, :, :3], sample.k, sample.v, tensors, spec, Score(sample.scale), position
    )
    for b, first in enumerate([0, 23, 47]):
        q = sample.q.clone()[b : b + 1]
        q[:, :, first : first + 3] = sample.q[b : b + 1, :, :3]
        exact = reference.attention(q, sample.k[b : b + 1], sample.v[b : b + 1], sample.mask)
        for got, whole in zip((out, lse), exact, strict=True):
            rows = whole[0, :, first : first + 3].float()
            torch.testing.assert_close(got[b], rows, rtol=1e-5, atol=1e-5)
    assert (out[3] == 0).all() and (lse[3] == -torch.inf).all()


@settings(max_examples=10)
@given(st.data())
def test_any_mask(data: st.DataObject) -> None:
    """Random masks as bits and full tiles, built by hand, ragged on every side."""
    n, n_k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    block = data.draw(st.tuples(st.sampled_from([16, 32]), st.sampled_from([16, 32])))
    density = data.draw(st.sampled_from([0.02, 0.5, 1.0]))
    seed = data.draw(st.integers(0, 99))
    mask = np.random.default_rng(seed).random((1, n, n_k)) < density
    mask[:, : n // 2, : n_k // 2] |= data.draw(st.booleans())
    check(Sample.of(layout_of_mask(mask, block), mask[0], torch.float32, seed=seed))


def simple_patterns() -> st.SearchStrategy[pc.Pattern]:
    small = st.integers(0, 12)
    leaves = st.one_of(
        st.builds(pc.window, small, small),
        st.builds(pc.sink, small),
        st.builds(pc.prefix, small),
        st.builds(pc.chunked, st.integers(1, 12)),
        st.builds(pc.dilated, small, small, step=st.integers(2, 4)),
        st.builds(lambda t: pc.global_tokens(sorted(t)), st.sets(small, min_size=1, max_size=3)),
        st.just(pc.causal()),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(lambda a, b: a | b, inner, inner),
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a - b, inner, inner),
            st.builds(lambda a: a.T, inner),
        ),
        max_leaves=4,
    )


@settings(max_examples=10)
@given(simple_patterns(), st.integers(1, 40), st.integers(0, 10), st.sampled_from([16, 32]))
def test_any_pattern(pattern: pc.Pattern, n: int, q_offset: int, block: int) -> None:
    layout, mask = compiled(pattern, n, q_offset=q_offset, block=block)
    check(Sample.of(layout, mask, torch.float32))


def test_the_op_on_this_backend() -> None:
    layout, mask = compiled(CAUSAL_WINDOW, 40, block=32)
    sample = Sample.of(layout, mask, torch.float32, heads=(2, 1))
    leaves = [x.clone().requires_grad_() for x in (sample.q, sample.k, sample.v)]
    out = pc.attention(*leaves, layout, enable_gqa=True, backend="triton")
    grads = torch.autograd.grad(out, leaves, sample.grad)
    for got, expected in zip((out, *grads), sample.kernels(), strict=True):
        assert torch.equal(got, expected)
    tensors, plan, runs_on = upload.prepared(layout, sample.q.device, "triton")
    assert runs_on == "triton"
    args = (*leaves, tensors, plan, 0.25)
    torch.library.opcheck(torch.ops.patterncc.attention.default, args)
    with pytest.raises(pc.TensorError, match="head dim 8; the triton backend takes 16 to 256"):
        pc.attention(*(x[..., :8] for x in leaves), layout, enable_gqa=True, backend="triton")
