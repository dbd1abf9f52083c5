"""The CPU backend against float64 dense attention, whose mask comes from the pattern alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import patterncc as pc
from patterncc.bench import cpu as bench
from patterncc.kernels.cpu import cache as cpu_cache
from patterncc.kernels.cpu import run as cpu
from patterncc.kernels.cpu import segments as cpu_segments
from patterncc.kernels.cpu.mask import Masks
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small calls gain nothing from threads, and wait long for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Case:
    """Sizes of one call; `layer` is a pattern, or one a head."""

    layer: tuple[pc.Pattern, ...]
    n: int
    n_k: int
    q_offset: int
    block: tuple[int, int]
    B: int
    Hkv: int
    G: int
    D: int
    Dv: int

    @property
    def H(self) -> int:
        return self.Hkv * self.G

    def layout(self):
        layer = self.layer[0] if len(self.layer) == 1 else pc.heads(list(self.layer))
        return pc.compile(layer, self.n, self.n_k, self.q_offset, block=self.block)

    def mask(self) -> Tensor:
        """[H or 1, n, n_k]"""
        sets = [
            pc.lower(p, self.n, self.n_k, self.q_offset, head=h) for h, p in enumerate(self.layer)
        ]
        return torch.from_numpy(np.stack([z.dense() for z in sets]))


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Masked attention in the tensors' own precision, rows without keys 0 and -inf."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    score = (q @ k.mT * scale).masked_fill(~mask, -torch.inf)
    lse = score.logsumexp(-1)
    weight = (score - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
    return weight @ v, lse


def with_grads(inputs: list[Tensor], grad: Tensor, mask: Tensor, scale: float) -> list[Tensor]:
    """Output, LSE and the three gradients, by autograd, in the inputs' precision."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out, lse = dense(*leaves, mask, scale)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, grad)]


def arguments(layout) -> tuple[list[Tensor], Spec]:
    arrays = (
        *(layout.head_pattern, layout.rows.ptr, layout.rows.run),
        *(layout.cols.ptr, layout.cols.run, layout.zones, layout.bits.view(np.int32)),
    )
    return [torch.from_numpy(np.array(a)) for a in arrays], Spec.of(layout, "cpu")


def check(case: Case, dtype: torch.dtype, seed: int = 0) -> None:
    """Errors at most twice those of dense attention in the same precision, plus one rounding."""
    make = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(dtype)

    q = random(case.B, case.n, case.H, case.D).transpose(1, 2)
    k = random(case.B, case.Hkv, case.n_k, case.D)
    v = random(case.B, case.n_k, case.Hkv, case.Dv).transpose(1, 2)
    grad = random(case.B, case.H, case.n, case.Dv)
    tensors, spec = arguments(case.layout())
    out, lse = cpu.forward(q, k, v, tensors, spec, Score(0.3))
    ours = [out, lse, *cpu.backward(grad, q, k, v, out, lse, tensors, spec, Score(0.3))[:3]]
    mask = case.mask()
    exact = with_grads([x.double() for x in (q, k, v)], grad.double(), mask, 0.3)
    near = with_grads([q, k, v], grad, mask, 0.3)
    assert (ours[0].dtype, ours[1].dtype) == (dtype, torch.float32)
    assert torch.equal(ours[1] == -torch.inf, exact[1] == -torch.inf)
    # One rounding: of the result, or of what it is made from.  dQ and dK are differences of terms
    # of size `terms`; a probability is exp(score - LSE), and both are kept in fp32.
    finite_lse = exact[1][exact[1] != -torch.inf]
    spent = finite_lse.abs().max() if len(finite_lse) else 0.0
    step = torch.finfo(dtype).eps + 2 * spent * torch.finfo(torch.float32).eps
    terms = 0.3 * (grad.double() @ v.double().repeat_interleave(case.G, 1).mT).abs().max()
    sizes = (0, 0, terms * k.abs().max(), terms * q.abs().max(), 0)
    for mine, peer, true, size in zip(ours, near, exact, sizes, strict=True):
        finite = true != -torch.inf
        mine, peer, true = (x.double()[finite] for x in (mine, peer, true))
        if len(true):
            rounding = step * max(true.abs().max(), size)
            assert (mine - true).abs().max() <= 2 * (peer - true).abs().max() + rounding


BLOCKED = pc.window(1, 1, block=16) | pc.global_tokens(range(16)) | pc.random_blocks(2, block=16)
LEAVES = st.one_of(
    st.builds(pc.window, st.integers(0, 60), st.integers(0, 60)),
    st.builds(pc.dilated, st.integers(0, 60), st.integers(0, 20), st.integers(1, 5)),
    st.builds(pc.chunked, st.integers(1, 70)),
    st.builds(pc.global_tokens, st.lists(st.integers(0, 150), min_size=1, max_size=3)),
    st.builds(pc.sink, st.integers(0, 20)),
    st.builds(
        lambda r, s: pc.random_blocks(r, block=16, seed=s), st.integers(0, 4), st.integers(0, 9)
    ),
    st.builds(lambda r, s: pc.random_edges(r, seed=s), st.integers(0, 4), st.integers(0, 9)),
    st.sampled_from([pc.full(), pc.causal(), pc.strided(7), pc.summary(16, 2), BLOCKED]),
)
PATTERNS = st.recursive(
    LEAVES,
    lambda p: st.one_of(
        st.builds(lambda a, b: a | b, p, p),
        st.builds(lambda a, b: a & b, p, p),
        st.builds(lambda a, b: a - b, p, p),
        st.builds(lambda a: a.T, p),
    ),
    max_leaves=4,
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block = draw(st.sampled_from([(16, 16), (16, 16), (32, 32), (16, 64), (64, 16)]))
    Hkv, G = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    n = draw(st.integers(1, 200))
    offset = draw(st.sampled_from([0, 0, 37]))
    n_k = n + offset if draw(st.booleans()) else draw(st.integers(1, 200))
    heads = draw(st.sampled_from([1, Hkv * G]))
    layer = tuple(draw(PATTERNS) for _ in range(heads))
    D, Dv = draw(st.sampled_from([(16, 16), (16, 16), (24, 16), (16, 32)]))
    return Case(layer, n, n_k, offset, block, draw(st.integers(1, 2)), Hkv, G, D, Dv)


def plain(*layer: pc.Pattern, n: int = 700, block: int = 16, Hkv: int = 2, G: int = 1) -> Case:
    return Case(layer, n, n, 0, (block, block), 1, Hkv, G, 16, 16)


@settings(max_examples=60)
@given(cases(), st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
@example(plain(pc.window(40, 40) | pc.global_tokens([0, 300])), torch.float32)
@example(plain(BLOCKED, Hkv=1, G=2), torch.bfloat16)
@example(plain(pc.causal(), n=333), torch.float32)
@example(plain(pc.window(0) | pc.global_tokens([0]), n=49), torch.float32)
@example(plain(BLOCKED, pc.window(9), Hkv=2, G=1), torch.float32)
def test_exact_within_rounding(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@settings(max_examples=30)
@given(cases(), st.integers(1, 20), st.data())
def test_decode_gives_the_rows_of_forward(case: Case, rows: int, data: st.DataObject) -> None:
    rows = min(rows, case.n)
    places = [data.draw(st.integers(0, case.n - rows)) for _ in range(case.B)]
    make = torch.Generator().manual_seed(1)
    q = torch.randn(case.B, case.H, case.n, case.D, generator=make)
    k = torch.randn(case.B, case.Hkv, case.n_k, case.D, generator=make)
    v = torch.randn(case.B, case.Hkv, case.n_k, case.Dv, generator=make)
    tensors, spec = arguments(case.layout())
    out, lse = cpu.forward(q, k, v, tensors, spec, Score(0.3))
    picked = torch.stack([q[b, :, i : i + rows] for b, i in enumerate(places)])
    position = torch.tensor(places, dtype=torch.int32) + case.q_offset
    some, some_lse = cpu.decode(picked, k, v, tensors, spec, Score(0.3), position)
    for b, i in enumerate(places):
        torch.testing.assert_close(some[b], out[b, :, i : i + rows], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(some_lse[b], lse[b, :, i : i + rows], atol=1e-5, rtol=1e-5)


def test_decode_refuses_a_position_outside_the_layout() -> None:
    tensors, spec = arguments(pc.compile(pc.window(3), 20, q_offset=5, block=16))
    q, k = torch.zeros(1, 1, 2, 16), torch.zeros(1, 1, 25, 16)
    cpu.decode(q, k, k, tensors, spec, Score(1.0), 23)
    with pytest.raises(pc.TensorError, match=r"position 24 leave the layout.*\[5, 25\)"):
        cpu.decode(q, k, k, tensors, spec, Score(1.0), 24)


def test_gradients_by_differences_in_float64() -> None:
    tensors, spec = arguments(pc.compile(BLOCKED & pc.causal(), 50, block=16))
    make = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, h, 50, 16, generator=make, dtype=torch.float64).requires_grad_()
        for h in (2, 1, 1)
    )

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            out, lse = cpu.forward(q, k, v, tensors, spec, Score(0.3))
            ctx.save_for_backward(q, k, v, out, lse)
            return out

        @staticmethod
        def backward(ctx, grad):
            return cpu.backward(grad, *ctx.saved_tensors, tensors, spec, Score(0.3))

    assert torch.autograd.gradcheck(Attention.apply, (q, k, v), fast_mode=True)


class Largest(TorchDispatchMode):
    """The most elements that any one result had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and not x._is_view():
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize(
    "pattern",
    [
        pc.window(60, 60) | pc.global_tokens([0, 2000]),
        pc.window(1, 1, block=64) | pc.random_blocks(2, block=64),
        pc.causal(),
        pc.random_edges(3),
    ],
    ids=["window+global", "blocks", "causal", "edges"],
)
def test_nothing_is_as_large_as_queries_times_keys(pattern: pc.Pattern) -> None:
    n = 2048
    tensors, spec = arguments(pc.compile(pattern, n, block=64))
    q, k, v = (torch.randn(1, 1, n, 16) for _ in range(3))
    with Largest() as largest:
        out, lse = cpu.forward(q, k, v, tensors, spec, Score(0.25))
        cpu.backward(out, q, k, v, out, lse, tensors, spec, Score(0.25))
    assert largest.elements <= max(2 * q.numel(), cpu_segments.BIAS_KEYS * 512) < n * n / 3


def test_schedules_are_few_calls() -> None:
    """A band, a column of keys and rows of globals, whatever the length."""
    counts = []
    for n in (4096, 16384):
        layout = pc.compile(pc.window(300, 300) | pc.global_tokens(range(64)), n, block=64)
        tensors, spec = arguments(layout)
        counts.append(len(cpu_cache.prepared(tensors, spec, 0).forward.calls))
    assert max(counts) < 24 and counts[1] - counts[0] <= 6


def test_caches_are_bounded() -> None:
    cpu_cache.clear()
    kept = cpu_cache._Bounded[int](10)
    assert [kept.get(i, lambda i=i: (i, 4)) for i in (0, 1, 0, 2, 0)] == [0, 1, 0, 2, 0]
    assert sorted(kept.values) == [0, 2] and kept.size == 8
    assert kept.get(9, lambda: (9, 11)) == 9 and 9 not in kept.values


@given(st.integers(0, 3), st.data())
def test_masks_are_what_their_words_say(seed: int, data: st.DataObject) -> None:
    pattern = data.draw(
        st.sampled_from([pc.window(7, 5), pc.random_edges(4, seed=seed), pc.full()])
    )
    layout = pc.compile(pattern, 60, block=(16, 32))
    masks = Masks(layout.block, layout.zones, layout.bits)
    words = np.full((4, 2), -1, np.int32)
    for r in range(4):
        for first, count, word in layout.rows.run[layout.rows.ptr[r] : layout.rows.ptr[r + 1]]:
            words[r, first : first + count] = word
    allowed = masks.allowed(words)
    assert np.array_equal(allowed[:60, :60], layout.dense())
    i0, i1, j0, j1 = masks.bounds(words)
    assert allowed[i0:i1, j0:j1].sum() == allowed.sum()


@pytest.mark.parametrize("sizes", [(0, 1, 8, 8), (1, 0, 0, 8), (1, 0, 8, 0), (2, 1, 1, 1)])
def test_sizes_of_zero_and_one(sizes: tuple[int, int, int, int]) -> None:
    B, reach, n, n_k = sizes
    tensors, spec = arguments(pc.compile(pc.window(reach), n, n_k, block=16))
    q, k = torch.ones(B, 2, n, 16), torch.ones(B, 1, n_k, 16)
    out, lse = cpu.forward(q, k, k, tensors, spec, Score(1.0))
    grads = cpu.backward(out, q, k, k, out, lse, tensors, spec, Score(1.0))
    assert [x.shape for x in (out, lse, *grads[:3])] == [
        q.shape,
        q.shape[:3],
        q.shape,
        k.shape,
        k.shape,
    ]
    expected = 0.0 if n_k == 0 else 1.0
    assert torch.equal(out, torch.full_like(out, expected))


def test_other_dtypes_are_refused() -> None:
    tensors, spec = arguments(pc.compile(pc.window(3), 20, block=16))
    q = torch.zeros(1, 1, 20, 16, dtype=torch.int32)
    with pytest.raises(pc.TensorError, match=r"takes CPU tensors of float16.*q is torch.int32"):
        cpu.forward(q, q, q, tensors, spec, Score(1.0))


def test_the_bench_measures_every_case() -> None:
    result = bench.run(n=1024, repeats=1, flex=False)
    assert len(result["cases"]) == 2 * len(bench.cases(1024))
    for row in result["cases"]:
        assert set(row["seconds"]) == {"ours", "dense"} and row["ratio"]["dense"] > 0
        peer = row["largest_difference"]["masked dense"]
        assert row["largest_difference"]["ours"] <= 4 * peer + 1e-5
    assert "largest difference" in bench.text(result)


def test_what_a_decode_step_reads_is_kept_for_the_next_layer() -> None:
    """Within its limit, by layout, place and length; a key mask has a say of its own."""
    cpu_cache.clear()
    layout = pc.compile(pc.causal() & (pc.window(300) | pc.sink(4)), 900)
    q, k, v = torch.randn(2, 2, 1, 16), torch.randn(2, 2, 900, 16), torch.randn(2, 2, 900, 16)
    first, again = (pc.attention(q, k, v, layout, position=700) for _ in range(2))
    assert torch.equal(first, again) and len(cpu_cache._PIECES.values) == 1
    lengths = torch.tensor([650, 701], dtype=torch.int32)
    cut = pc.attention(q, k, v, layout, position=700, key_lengths=lengths)
    assert len(cpu_cache._PIECES.values) == 3
    assert not torch.equal(cut[0], first[0])
    torch.testing.assert_close(cut[1], first[1])
    mask = torch.ones(2, 900, dtype=torch.bool)
    masked = pc.attention(q, k, v, layout, position=700, key_mask=mask)
    assert len(cpu_cache._PIECES.values) == 3
    torch.testing.assert_close(masked, first)
