"""The generated backward kernels in Triton's interpreter, held to float64 attention.

The samples and the budget are those of test_kernels_interpret.  New tensors are full of NaN here,
so whatever a kernel leaves unwritten is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import numpy as np
import pytest
import torch
from test_kernels_interpret import ROUNDING, Sample, compiled, use
from torch import Tensor

import patterncc as pc
from patterncc.kernels import launch, runtime
from patterncc.kernels.score import Score
from patterncc.kernels.work import LEVELS
from patterncc.layout import Runs

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

launches = import_module("patterncc.kernels.launch.backward")  # the package has its function
WAYS = ("fp32 by pointers", "fp16 by descriptors")
CAUSAL_WINDOW = pc.causal() & pc.window(21)


@pytest.fixture(autouse=True)
def _sources(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path_factory.getbasetemp() / "sources"))


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """torch fills what `empty` gives with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gradients(
    sample: Sample, tensors: list[Tensor] | None = None, repeatable: bool = True
) -> list[Tensor]:
    """Those of q, k and v from the kernels, maybe with other tables."""
    spec, own = sample.prepared()
    score = Score(sample.scale)
    out, lse = launch.forward(sample.q, sample.k, sample.v, own, spec, score)
    inputs = sample.grad, sample.q, sample.k, sample.v, out, lse
    return list(launch.backward(*inputs, tensors or own, spec, score, repeatable)[:3])


def check(sample: Sample, got: list[Tensor]) -> None:
    """Every gradient within twice the error of dense attention and one rounding.

    In 16 bits a rounding is that of the gradient.  In fp32 it is that of the terms which the
    gradient adds: where they cancel (a row that reads one key has no gradient by its score) their
    roundings are all there is, and dense attention, which subtracts others, may have none.  A
    probability is rounded as its exponent is, and so as the LSE, which is kept in fp32.
    """
    rounding = 2.0**-23 if sample.q.dtype == torch.float32 else ROUNDING[sample.q.dtype]
    sizes = terms(sample) if sample.q.dtype == torch.float32 else sample.exact()[1:]
    names, exact, dense = ("q", "k", "v"), sample.exact()[1:], sample.dense()[1:]
    for name, grad, true, usual, size in zip(names, got, exact, dense, sizes, strict=True):
        assert grad.shape == true.shape and grad.dtype == sample.q.dtype
        error, of_dense = ((x.double() - true).abs().max().item() for x in (grad, usual))
        limit = 2 * of_dense + rounding * max(1.0, size.abs().max().item())
        assert error <= limit, f"{name}: {error:.3g} passes {limit:.3g}"


def terms(sample: Sample) -> list[Tensor]:
    """The sums of absolute values that the gradients of q, k and v are made of."""
    group = sample.q.shape[1] // sample.k.shape[1]
    q, grad = sample.q.double(), sample.grad.double()
    k, v = (x.double().repeat_interleave(group, 1) for x in (sample.k, sample.v))
    scores = (q @ k.mT * sample.scale).masked_fill(~sample.mask, -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True).masked_fill(~sample.mask.any(-1, keepdim=True), 0.0)
    p = torch.exp(scores - lse)
    dp = grad @ v.mT
    ds = p * (dp.abs() + (p * dp).sum(-1, keepdim=True).abs()) * sample.scale
    of_k, of_v = ds.mT @ q.abs(), (p * lse.abs().clamp(min=1.0)).mT @ grad.abs()
    return [ds @ k.abs(), *(x.unflatten(1, (-1, group)).sum(2) for x in (of_k, of_v))]


def cut(runs: Runs, head_pattern: np.ndarray, most: int) -> list[Tensor]:
    """Items of at most `most` tiles and their parts, tile by tile; the shortest items first."""
    items: list[list[int]] = []
    parts: list[list[int]] = []
    for owner, pattern in enumerate(head_pattern.tolist()):
        for row in range(runs.lines):
            line = pattern * runs.lines + row
            places = range(runs.ptr[line], runs.ptr[line + 1])
            tiles = [(r, skip) for r in places for skip in range(runs.run[r, 1])]
            cuts = [tiles[at : at + most] for at in range(0, len(tiles), most)]
            if len(cuts) < 2:
                items.append([row, owner, runs.ptr[line], 0, len(tiles), -1, 0, 0])
                continue
            for k, cut in enumerate(cuts):
                items.append([row, owner, *cut[0], len(cut), len(parts), 0, 0])
                parts.append([row, owner, len(cuts) if k == 0 else 0, 0])
    made = np.array(items)[::-1].copy(), np.array(parts).reshape(-1, 4)
    made[0][0, 6] = len(items) // 3  # so many run for all heads first
    return [torch.from_numpy(x).to(torch.int32) for x in made]


def with_cuts(sample: Sample, most: int) -> list[Tensor]:
    """The layout's tables with lines cut by hand."""
    layout = sample.layout
    _, tensors = sample.prepared()
    levels = len(LEVELS)
    listed = layout.head_pattern if sample.prepared()[0].patterns > 1 else np.zeros(1, np.int32)
    lists = [cut(x, listed, most) for x in (layout.rows, layout.cols)]
    return [*tensors[: -4 * levels], *lists[0] * levels, *lists[1] * levels]


PATTERNS = {
    "full": (pc.full(), {"n": 37, "n_k": 45, "block": 16}),
    "window": (CAUSAL_WINDOW, {"n": 60, "block": 16}),
    "steps within a tile": (CAUSAL_WINDOW, {"n": 130, "block": 128}),
    "hubs": (pc.global_tokens([3, 30]) | pc.window(5), {"n": 40, "block": 16}),
    "bits": (pc.random_edges(3, seed=1) | pc.window(2), {"n": 60, "block": 32}),
    "offset": (CAUSAL_WINDOW, {"n": 20, "q_offset": 37, "block": 16}),
    "nothing": (
        pc.window(3) & ~(pc.prefix(40) | pc.global_tokens(range(50, 54))),
        {"n": 70, "block": 16},
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("repeatable", [True, False], ids=["two kernels", "single"])
def test_cut_lines(name: str, repeatable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of two tiles or more is cut, in the middle of runs too."""
    pattern, sizes = PATTERNS[name]
    layout, mask = compiled(pattern, **sizes)
    turn = (list(PATTERNS).index(name) + repeatable) % 2
    sample = Sample.of(layout, mask, use(WAYS[turn], monkeypatch), heads=(2, 2))
    check(sample, gradients(sample, with_cuts(sample, 1), repeatable))


GROUPS = [((4, 1), 1, True), ((4, 1), 4, False), ((3, 1), 999, True), ((6, 2), 5, True)]


@pytest.mark.parametrize(("heads", "processors", "repeatable"), GROUPS, ids=str)
def test_groups(
    heads: tuple[int, int], processors: int, repeatable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All heads of a group in one program, some, or one; cut lines beside whole ones."""
    monkeypatch.setattr(launches, "processors_of", lambda device: processors)
    monkeypatch.setattr(launches, "section", lambda units, *read: max(1, units // 2))
    layout, mask = compiled(CAUSAL_WINDOW, 30, block=16)
    dtype = use(WAYS[heads == (4, 1)], monkeypatch)
    sample = Sample.of(layout, mask, dtype, heads, dims=(24, 16), batch=2)
    check(sample, gradients(sample, with_cuts(sample, 1), repeatable))


def test_how_many_heads_a_program_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs: fewer heads each, until the device is filled; by shapes alone."""
    layout, mask = compiled(pc.full(), 64, block=16)  # 4 columns
    sample = Sample.of(layout, mask, torch.float32, heads=(12, 1))
    spec, tensors = sample.prepared()
    call = launches.Call(sample.q, sample.k, sample.v, sample.grad, tensors, spec, Score(1.0), {})
    for processors, members in ((4, 12), (5, 6), (9, 4), (13, 3), (17, 2), (25, 1), (999, 1)):
        monkeypatch.setattr(launches, "processors_of", lambda device, p=processors: p)
        assert launches._members(call, 1)[1] == members


HEADS = {
    "differ within groups": [pc.causal(), pc.window(4), pc.window(4), pc.random_edges(2, seed=3)],
    "shared within groups": [pc.causal(), pc.causal(), pc.window(9), pc.window(9)],
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("repeatable", [True, False], ids=["two kernels", "single"])
def test_heads_that_differ(name: str, repeatable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "processors_of", lambda device: 1)
    parts = HEADS[name]
    layout = pc.compile(pc.heads(parts), 30, block=16)
    mask = np.stack([pc.lower(p, 30, head=h).dense() for h, p in enumerate(parts)])
    dtype = use(WAYS[repeatable], monkeypatch)
    sample = Sample.of(layout, mask, dtype, heads=(4, 2), batch=1 + repeatable)
    check(sample, gradients(sample, with_cuts(sample, 1), repeatable))


@pytest.mark.parametrize("repeatable", [True, False], ids=["two kernels", "single"])
def test_a_pattern_for_each_sequence(repeatable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all its heads, or one for each."""
    layer = pc.heads([pc.causal(), pc.window(5)] * 2) if repeatable else pc.causal()
    monkeypatch.setattr(launches, "processors_of", lambda device: 1)
    ids = np.array([[0] * 10 + [1] * 20, [2] * 30])
    layout = pc.compile(layer, 30, doc_ids=ids, block=16)
    parts = layer.patterns if isinstance(layer, pc.stack.Heads) else [layer]
    same = ids[:, None, :, None] == ids[:, None, None, :]
    mask = np.stack([pc.lower(p, 30).dense() for p in parts]) & same
    sample = Sample.of(layout, mask, torch.float32, heads=(4, 2), batch=2)
    assert sample.prepared()[0].sequences == 2
    check(sample, gradients(sample, with_cuts(sample, 1), repeatable))


def test_rows_and_columns_that_read_nothing() -> None:
    pattern, sizes = PATTERNS["nothing"]
    sample = Sample.of(*compiled(pattern, **sizes), torch.float32)
    for repeatable in (True, False):
        grad_q, grad_k, grad_v = gradients(sample, repeatable=repeatable)
        assert (grad_q[:, :, ~sample.mask.any(-1)] == 0).all()
        unread = ~sample.mask.any(-2)
        assert unread.any() and (grad_k[:, :, unread] == 0).all()
        assert (grad_v[:, :, unread] == 0).all()


def test_default_repeats_to_the_bit_and_the_other_is_near() -> None:
    """Whatever the order of the items."""
    sample = Sample.of(*compiled(CAUSAL_WINDOW, 40, block=16), torch.float32, heads=(2, 1))
    tensors = with_cuts(sample, 1)
    turned = [x.flip(0) if x.dim() == 2 and x.shape[1] == 8 else x for x in tensors]
    first = gradients(sample, tensors)
    assert all(map(torch.equal, first, gradients(sample, turned)))
    for a, b in zip(first, gradients(sample, tensors, repeatable=False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_mean_error_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1.1 of dense attention's."""
    layout, mask = compiled(CAUSAL_WINDOW, 64, block=32)
    sample = Sample.of(layout, mask, use(WAYS[1], monkeypatch), heads=(4, 4), dims=(32, 32))
    for repeatable in (True, False):
        got = gradients(sample, repeatable=repeatable)
        for grad, exact, dense in zip(got, sample.exact()[1:], sample.dense()[1:], strict=True):
            mean, usual = ((x.double() - exact).abs().mean().item() for x in (grad, dense))
            assert mean <= 1.1 * usual


def test_bf16_is_upcast_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "target_of", lambda device: "sm_90")
    sample = Sample.of(*compiled(CAUSAL_WINDOW, 40, block=32), torch.bfloat16)
    check(sample, gradients(sample))
    check(sample, gradients(sample, repeatable=False))
