"""The native backward pass against float64 autograd, whose mask comes from the pattern alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_native import HALVES, SCATTERED, Case, arguments, cases, options
from torch import Tensor

import patterncc as pc
from patterncc.kernels import cpu, reference
from patterncc.kernels.native import backward_run as native
from patterncc.kernels.native import build, emit, run
from patterncc.kernels.native.parts import SPARE, Columns, parts
from patterncc.kernels.native.plan import NativePlan
from patterncc.kernels.score import Grads, Score

UNREAD = Case((pc.window(0),), 17, 54, 37, (16, 16))  # columns of no work before heavy ones
HUBS = pc.window(30, 9) | pc.global_tokens([2, 70])


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the kernel is given holds NaN: what it does not write shows."""
    empty, empty_like = torch.empty, torch.empty_like

    def full_of_nan(*shape: int, **options: object) -> Tensor:
        return empty(*shape, **options).fill_(torch.nan)

    monkeypatch.setattr(native.torch, "empty", full_of_nan)
    monkeypatch.setattr(native.torch, "empty_like", lambda x: empty_like(x).fill_(torch.nan))


def gradients(case: Case, inputs: list[Tensor], score: Score) -> Grads:
    """By the native kernel, from the output and LSE of the CPU backend."""
    tables = arguments(case.layout())
    out, lse = cpu.forward(*inputs, *tables, score)
    found = native.backward(upstream(case), *inputs, out, lse, *tables, score)
    assert found is not None
    assert [x.dtype for x in found[:3]] == [case.dtype] * 3
    return found


def upstream(case: Case) -> Tensor:
    """The gradient of the output, not contiguous."""
    make = torch.Generator().manual_seed(1)
    shape = (case.B, case.n, case.Hkv * case.G, case.Dv)
    return torch.randn(*shape, generator=make).to(case.dtype).transpose(1, 2)


def dense(case: Case, inputs: list[Tensor], score: Score, dtype: torch.dtype) -> list[Tensor]:
    """LSE and the gradients of q, k, v, slopes and bias, by autograd in `dtype`."""
    far = torch.arange(case.n_k) - torch.arange(case.n)[:, None] - case.q_offset
    if score.query_at is not None and score.key_at is not None:
        far = score.key_at.long() - score.query_at.long()[:, None] - case.q_offset
    named = {"slopes": score.slopes, "bias": score.bias}
    given = {name: x.to(dtype).requires_grad_() for name, x in named.items() if x is not None}
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    score = replace(score, **given)
    out, lse = reference.attention(*leaves, case.mask(), dtype=dtype, score=score, distance=far)
    every = [*leaves, *given.values()]
    return [lse.detach(), *torch.autograd.grad(out, every, upstream(case).to(dtype))]


def check(case: Case, score: Score | None = None, mean: bool = False) -> None:
    """Errors at most twice those of dense attention in the same precision, plus one rounding.

    mean: the mean error is held within 1.1 of dense attention's too.
    """
    score = replace(score or Score(case.scale), slopes_grad=True, bias_grad=True)
    inputs = case.inputs()
    ours = [x for x in gradients(case, inputs, score)[:5] if x is not None]
    exact, near = (dense(case, inputs, score, dtype) for dtype in (torch.float64, case.dtype))
    # One rounding: of the result, or of what it is made from.  dQ and dK are differences of terms
    # of size `terms`; a probability is exp(score - LSE), and both are kept in fp32.
    lse = exact[0][exact[0] != -torch.inf]
    spent = lse.abs().max() if len(lse) else 0.0
    step = torch.finfo(case.dtype).eps + 2 * spent * torch.finfo(torch.float32).eps
    q, k, v = (x.double().abs().max() for x in inputs)
    terms = (upstream(case).double().abs().max() * v * case.Dv**0.5) * abs(score.scale)
    sizes = (terms * k, terms * q, 0, terms * case.n, terms * case.n)
    for mine, peer, true, size in zip(ours, near[1:], exact[1:], sizes, strict=False):
        off, peer_off = (mine.double() - true).abs(), (peer.double() - true).abs()
        rounding = step * max(true.abs().max(), size)
        assert off.max() <= 2 * peer_off.max() + rounding  # so none is NaN
        assert not mean or off.mean() <= 1.1 * peer_off.mean()


@settings(max_examples=40)
@given(cases())
@example(UNREAD)
def test_composed_patterns(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("layer", [HUBS, SCATTERED])
def test_head_dims(layer: pc.Pattern, dtype: torch.dtype) -> None:
    check(Case((layer,), G=2, D=33, Dv=17, dtype=dtype))
    if dtype == torch.float32:
        check(Case((layer,), block=(256, 256), n=300, n_k=300, D=40, Dv=80))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_mean_error(dtype: torch.dtype) -> None:
    for layer in (pc.window(100, 100) | pc.global_tokens(range(8)), pc.random_edges(20)):
        case = Case((layer,), n=1024, n_k=1024, block=(128, 128), dtype=dtype, scale=0.25)
        check(case, mean=True)


@pytest.mark.parametrize("lanes", [4, 8])
def test_narrower_vectors(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "lanes", lambda: min(lanes, build.lanes()))
    for layer in (HUBS, SCATTERED):
        check(Case((layer,), block=(32, 64), D=17, Dv=19))


@pytest.mark.parametrize("name", ["softcap", "keys", "all"])
def test_options_of_a_score(name: str) -> None:
    score = options()[name]
    for layer in (pc.full(), pc.window(30, 9) & ~pc.prefix(20), SCATTERED):
        check(Case((layer,), B=2, G=2), score)
        if score.query_at is not None:
            check(Case((layer,), B=2, G=2), replace(score, query_at=None, key_at=None))


@pytest.mark.parametrize("size", [30.0, 1e5])
def test_scores_of_any_size(size: float) -> None:
    """Where one key takes all, dV is exact, and dQ and dK the rounding of what is nothing."""
    case = Case((pc.causal(),), 40, 40, block=(16, 16))
    q, k, v = case.inputs()
    inputs, score = [q * size, k * size, v], Score(1.0)
    found = gradients(case, inputs, score)
    exact = dense(case, inputs, score, torch.float64)
    torch.testing.assert_close(found.v.double(), exact[3], atol=1e-4, rtol=1e-3)
    for mine, true in zip(found[:2], exact[1:3], strict=True):
        assert (mine - true).abs().max() <= 1e-3 * size


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_stay_finite_where_lse_is_coarse(dtype: torch.dtype) -> None:
    case = Case((pc.causal(),), 40, 40, block=(16, 16), dtype=dtype)
    q, k, v = case.inputs()
    for size, low in ((100.0, 0.0), (1.0, -1e12), (1.0, torch.finfo(torch.float32).min)):
        score = Score(1.0, bias=torch.full((2, 7), low), bias_grad=True)
        found = gradients(case, [q * size, k * size, v], score)
        assert all(x.isfinite().all() for x in found if x is not None)


@pytest.mark.parametrize("dtype", HALVES)
def test_slopes_of_few_far_keys_lose_nothing_to_a_rounded_output(dtype: torch.dtype) -> None:
    """Each row's dS adds up to 0; were it not so, distances would multiply what is left."""
    case = Case((pc.window(3) | pc.global_tokens([0, 200]),), 400, 400, dtype=dtype)
    score = Score(0.3, slopes=torch.tensor([0.01, 0.002]), bias=torch.zeros(2, 33))
    found = gradients(case, case.inputs(), replace(score, slopes_grad=True, bias_grad=True))
    exact, near = (dense(case, case.inputs(), score, x)[4:] for x in (torch.float64, dtype))
    for mine, peer, true in zip(found[3:5], near, exact, strict=True):
        assert mine is not None
        assert (mine - true).abs().max() <= 0.01 * (peer - true).abs().max()


def test_gradients_of_options_only_where_asked() -> None:
    case, score = Case((HUBS,), B=2, G=2), options()["all"]
    found = gradients(case, case.inputs(), score)
    assert (found.slopes, found.bias) == (None, None)
    found = gradients(case, case.inputs(), replace(score, slopes_grad=True, bias_grad=True))
    assert found.slopes is not None and found.slopes.shape == (4,)
    assert found.bias is not None and found.bias.shape == (4, 19)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_bit_by_bit_for_any_number_of_threads(dtype: torch.dtype) -> None:
    score = replace(options()["all"], slopes_grad=True, bias_grad=True, keys=None)
    score = replace(score, query_at=None, key_at=None)
    case = Case((HUBS,), n=700, n_k=700, block=(16, 16), B=2, G=2, dtype=dtype)
    assert len(native._parts(*arguments(case.layout()), *case.inputs()[:2]).units) >= 8
    inputs, threads = case.inputs(), torch.get_num_threads()
    found = []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        found.append(gradients(case, inputs, score)[:5])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_nan_in_keys_that_no_query_reads() -> None:
    score = Score(0.3, keys=torch.arange(150).lt(140).repeat(2, 1))
    case = Case((pc.window(30, 0) - pc.sink(4),), B=2, G=2)
    inputs = case.inputs()
    expected = gradients(case, inputs, score)
    for x in inputs[1:]:
        x[:, :, :4] = torch.nan
        x[:, :, 140:] = torch.inf
    tables = arguments(case.layout())
    clean = [case.inputs()[0], *(x.nan_to_num(0, 0, 0) for x in inputs[1:])]
    out, lse = cpu.forward(*clean, *tables, score)
    found = native.backward(upstream(case), *inputs, out, lse, *tables, score)
    assert found is not None
    assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3]))


def test_rows_that_read_nothing_have_no_gradient() -> None:
    case = Case((pc.causal() & pc.window(9) & ~pc.prefix(20),), B=2)
    dq, dk, dv = gradients(case, case.inputs(), Score(0.3))[:3]
    reads = case.mask()[0].any(1)
    assert not dq[:, :, ~reads].any() and dq[:, :, reads].any(-1).all()
    assert not torch.stack([dk, dv])[:, :, :, ~case.mask()[0].any(0)].any()


def test_sequences_with_patterns_of_their_own() -> None:
    documents = [[70, 30, 50], [20, 90, 40]]
    ids = np.stack([np.repeat(np.arange(3), lengths) for lengths in documents])
    layout = pc.compile(pc.causal(), 150, block=32, doc_ids=ids)
    case = Case((pc.causal(),), B=2, G=2)
    q, k, v = case.inputs()
    tensors, spec = arguments(layout)
    tables = [*tensors, torch.tensor(list(bytes.fromhex(layout.hash)))], spec
    grad = upstream(case)
    out, lse = cpu.forward(q, k, v, *tables, Score(0.3))
    both = native.backward(grad, q, k, v, out, lse, *tables, Score(0.3))
    assert both is not None
    for b, lengths in enumerate(documents):
        alone = replace(case, layer=(pc.causal() & pc.documents(lengths),), B=1)
        one = [x[b : b + 1] for x in (grad, q, k, v, out, lse)]
        single = native.backward(*one, *arguments(alone.layout()), Score(0.3))
        assert single is not None
        for mine, other in zip(both[:3], single[:3]):
            assert torch.allclose(mine[b], other[0], rtol=1e-5, atol=1e-6)


# --- how a layout is cut


def columns_of(layout: pc.Layout) -> Columns:
    return Columns(layout.cols.ptr, layout.cols.run, layout.columns, layout.lines)


@settings(max_examples=60)
@given(cases(), st.sampled_from([1, 2, 5, 64]))
@example(UNREAD, 5)
def test_units_hold_each_tile_once(case: Case, wanted: int) -> None:
    layout = case.layout()
    columns = columns_of(layout)
    cut = parts(columns, np.bincount(layout.head_pattern, minlength=layout.patterns), wanted)
    seen = np.zeros((layout.columns, layout.lines), dtype=int)
    for first, last, top, bottom, _ in cut.units.tolist():
        seen[first:last, top:bottom] += 1
    assert (seen == 1).all()
    slots = sorted(s for s in cut.units[:, 4].tolist() if s >= 0)
    assert (
        slots
        == list(range(cut.slots))
        == [s for _, first, count in cut.cut.tolist() for s in range(first, first + count)]
    )
    tiles = tiles_of(layout)
    for p in range(layout.patterns):
        lists: list[list[int]] = []
        for u, (first, last, top, bottom, _) in enumerate(cut.units.tolist()):
            ptr = cut.touched_ptr[p * len(cut.units) + u :]
            lists.append(cut.touched[ptr[0] : ptr[1]].tolist())
            read = tiles[p, first:last, top:bottom].any(0).nonzero()[0] + top
            assert lists[-1] == read.tolist()
        flat = [r for rows in lists for r in rows]
        assert len(flat) == cut.rows_of(p)
        for r in range(layout.lines):
            ptr = cut.adders_ptr[p * layout.lines + r :]
            places = cut.adders[ptr[0] : ptr[1]].tolist()
            assert places == [x for x, row in enumerate(flat) if row == r]


def tiles_of(layout: pc.Layout) -> np.ndarray:
    """Touched tiles, bool [patterns, columns, rows]."""
    tiles = np.zeros((layout.patterns * layout.columns, layout.lines), dtype=bool)
    for line in range(len(tiles)):
        for first, count, _ in layout.cols.run[layout.cols.ptr[line] : layout.cols.ptr[line + 1]]:
            tiles[line, first : first + count] = True
    return tiles.reshape(layout.patterns, layout.columns, layout.lines)


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        (pc.window(500, 500) | pc.global_tokens(range(16)), 2.6),
        (pc.causal(), SPARE),
        (pc.full(), SPARE),
        (pc.random_blocks(3, block=64), SPARE),
    ],
)
def test_partial_sums_stay_of_the_size_of_dq(pattern: pc.Pattern, most: float) -> None:
    for n, limit in ((4096, SPARE), (2**17, most)):
        layout = pc.compile(pattern, n, block=64)
        cut = parts(columns_of(layout), np.array([1]), 64)
        assert cut.rows_of(0) <= limit * layout.lines and len(cut.units) >= 4


def test_heavy_columns_are_shared() -> None:
    layout = pc.compile(pc.window(64, 64) | pc.global_tokens([0]), 2**16, block=64)
    cut = parts(columns_of(layout), np.array([1]), 64)
    tiles = tiles_of(layout)[0]
    work = [tiles[a:b, top:bottom].sum() for a, b, top, bottom, _ in cut.units.tolist()]
    assert max(work) <= 2.5 * sum(work) / len(work) and cut.slots > 1


# --- sources

PLANS: dict[str, Callable[[], NativePlan]] = {
    "plain": lambda: NativePlan("backward", "float32", 64, 64, 16),
    "placed": lambda: NativePlan(
        *("backward", "bfloat16", 80, 48, 8),
        **dict.fromkeys(("softcap", "slopes", "bias", "sinks", "keys", "placed"), True),
    ),
}


def test_absent_options_leave_no_trace() -> None:
    plain, placed = (emit.emit(PLANS[name]()) for name in ("plain", "placed"))
    for word in ("softened", "slope", "dbias[", "clamped", "shown[j"):
        assert word not in plain.split("struct alignas(64) Scratch")[1]
        assert word in placed
