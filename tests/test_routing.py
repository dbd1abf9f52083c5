"""`RoutedAttention` beside dense attention over the edges that its trace names."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import patterncc as pc
from patterncc.errors import PatternError, PatternValueError
from patterncc.kernels import reference
from patterncc.routers import NearestKeys, RoutedAttention, SphericalKMeans, TopBlocks, trace
from patterncc.routers.tracing import Trace
from patterncc.stack import patterns_of

N = 41
NEAR = pc.causal() & pc.window(5)
ROUTERS = [
    SphericalKMeans(4, decay=0.9),
    SphericalKMeans(4, width=6, decay=0.9),
    SphericalKMeans(4, tied=False),
    NearestKeys(5),
    TopBlocks(3, block=8),
    TopBlocks(3, block=8, shared=True),
    TopBlocks(2, block=8, grain=4),
]
KMEANS, STEPPING = ROUTERS[:3], [ROUTERS[1], ROUTERS[3], ROUTERS[4], ROUTERS[5]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def layer(router: Any, *, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    return RoutedAttention(32, 4, 2, router, **options).to(dtype)


def mask_of(seen: Trace, n: int, batch: int) -> Tensor:
    """Bool [batch, heads, n, n] of the first layer, by lowering what was bound."""
    found = []
    for b in range(batch):
        bound = seen.bindings(b)
        rows = [pc.lower(p, n, head=h, **bound).dense() for h, p in enumerate(seen.stack.heads(0))]
        found.append(torch.stack([torch.from_numpy(row) for row in rows]))
    return torch.stack(found)


def dense(m: Any, x: Tensor, mask: Tensor) -> Tensor:
    out, _ = reference.attention(*m._project(x), mask)
    found: Tensor = m.out(out.transpose(1, 2).flatten(2))
    return found


HEADS = pc.heads([NEAR, pc.sink(2) & pc.causal()] * 2)


@pytest.mark.parametrize(
    ("causal", "options"),
    [
        (True, {}),
        (True, {"static": HEADS}),
        (True, {"static": NEAR, "routed": 2}),
        (False, {}),
        (False, {"static": HEADS, "routed": 3}),
    ],
    ids=["causal-alone", "causal-heads", "causal-half", "both-alone", "both-heads"],
)
@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_outputs_and_gradients_are_those_of_dense_attention(
    router: Any, causal: bool, options: dict[str, Any]
) -> None:
    m, static = layer(router, causal=causal, **options), options.get("static")
    x = torch.randn(2, N, 32, dtype=torch.float64, requires_grad=True)
    with trace(m) as seen:
        y = m(x)
    mask = mask_of(seen, N, 2)
    if static is not None:
        for h, p in enumerate(patterns_of(static) * (4 // len(patterns_of(static)))):
            own = torch.from_numpy(pc.lower(p, N).dense())
            assert mask[:, h][:, own].all()
    if options.get("routed"):
        fixed = 4 - options["routed"]  # these heads of both sequences read the static edges alone
        assert (mask[:, :fixed] == mask[:1, :1]).all() and (mask[:, fixed:] & ~mask[:, :1]).any()
    assert not causal or not mask.triu(1).any()
    expected, w = dense(m, x, mask), torch.randn(2, N, 32, dtype=torch.float64)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    wanted = [x, *m.parameters()]
    found = torch.autograd.grad((y * w).sum(), wanted)
    for a, b in zip(found, torch.autograd.grad((expected * w).sum(), wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("router", [ROUTERS[0], ROUTERS[1], ROUTERS[3], ROUTERS[4]], ids=str)
def test_padding_is_chosen_by_none_and_changes_nothing(router: Any) -> None:
    m = layer(router, static=NEAR, causal=not isinstance(router, SphericalKMeans))
    x = torch.randn(2, N, 32, dtype=torch.float64)
    keys = torch.ones(2, N, dtype=torch.bool)
    keys[1, 30:] = False
    whole = m(x, key_mask=keys)
    x[1, 30:] = 7.0
    torch.testing.assert_close(m(x, key_mask=keys)[keys], whole[keys])
    torch.testing.assert_close(whole[1:, :30], m(x[1:, :30]))  # balanced by the tokens there are


@pytest.mark.parametrize("router", STEPPING, ids=str)
def test_later_tokens_change_no_earlier_output(router: Any) -> None:
    m = layer(router, static=NEAR).eval()
    x = torch.randn(2, N, 32, dtype=torch.float64)
    whole = m(x)
    for first in (1, 8, 19, 40):
        other = x.clone()
        other[:, first:] = torch.randn(2, N - first, 32, dtype=torch.float64)
        torch.testing.assert_close(m(other)[:, :first], whole[:, :first])
        torch.testing.assert_close(m(x[:, :first]), whole[:, :first])


def test_balanced_clusters_do_look_at_later_tokens() -> None:
    """As the page says: who has room in a cluster depends on the whole sequence."""
    m = layer(SphericalKMeans(4)).eval()
    x = torch.randn(1, N, 32, dtype=torch.float64)
    whole, other = m(x), x.clone()
    other[:, 20:] = torch.randn(1, N - 20, 32, dtype=torch.float64)
    assert not torch.allclose(m(other)[:, :20], whole[:, :20])


@pytest.mark.parametrize("router", STEPPING, ids=str)
def test_steps_with_a_cache_are_the_rows_of_the_whole_pass(router: Any) -> None:
    m = layer(router, static=pc.heads([NEAR, pc.causal() & pc.sink(2)] * 2), routed=3).eval()
    x = torch.randn(2, N, 32, dtype=torch.float64)
    with torch.no_grad():
        whole = m(x)
        for prompt in (0, 1, 17):
            cache = m.new_cache(2, 64)
            rows = [m(x[:, :prompt], cache=cache, position=0)] if prompt else []
            rows += [m(x[:, i : i + 1], cache=cache, position=i) for i in range(prompt, N)]
            torch.testing.assert_close(torch.cat(rows, 1), whole)


# --- centroids


def stepped(m: nn.Module, x: Tensor) -> list[Tensor]:
    m.zero_grad()
    m(x).square().sum().backward()
    return [p.grad.clone() for p in m.parameters() if p.grad is not None]


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return found


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("router", KMEANS, ids=str)
def test_recomputing_moves_centroids_once_and_chooses_the_same(
    router: Any, reentrant: bool
) -> None:
    shared = layer(replace(router, decay=0.3), static=NEAR)  # in two places, and it moves far
    plain = nn.Sequential(shared, layer(router), shared)
    other = copy.deepcopy(plain)
    again = nn.Sequential(*(Checkpointed(m, reentrant) for m in other))
    x = torch.randn(2, N, 32, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        before = [m.centroids.clone() for m in plain]
        for a, b in zip(stepped(plain, x), stepped(again, x), strict=True):
            torch.testing.assert_close(a, b)
        for m, o, old in zip(plain, other, before, strict=True):
            assert (m.centroids != old).any()
            torch.testing.assert_close(m.centroids, o.centroids)


@pytest.mark.parametrize("router", KMEANS, ids=str)
def test_centroids_rest_in_evaluation_and_without_gradient_and_are_saved(router: Any) -> None:
    m = layer(router)
    x = torch.randn(2, N, 32, dtype=torch.float64)
    start = m.centroids.clone()
    with torch.no_grad():
        m(x)
    m(x)  # no gradient comes back
    m.eval()
    stepped(m, x)
    assert (m.centroids == start).all()
    m.train()
    stepped(m, x)
    assert (m.centroids != start).any()
    torch.testing.assert_close(m.centroids.norm(dim=-1), torch.ones(4, 4, dtype=torch.float64))
    other = layer(router)
    other.load_state_dict(m.state_dict())
    assert (other(x) == m(x)).all()
    names = {"q.weight", "v.weight", "out.weight", "centroids"}
    assert set(m.state_dict()) == (names if m.tied else names | {"k.weight"})


def test_names_of_weights_are_those_of_sparse_attention() -> None:
    m = RoutedAttention(32, 4, 2, TopBlocks(2), bias=True)
    assert set(m.state_dict()) == set(pc.SparseAttention(32, 4, 2, NEAR, bias=True).state_dict())


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(3)
        m = layer(ROUTERS[0], dtype=torch.float32, static=NEAR)
        x = torch.randn(2, N, 32)
        return [*stepped(m, x), m.centroids, m(x)]

    for a, b in zip(run(), run(), strict=True):
        assert (a == b).all()


def test_half_precision() -> None:
    m = layer(SphericalKMeans(4, decay=0.999), dtype=torch.float32, static=NEAR)
    x = torch.randn(2, N, 32)
    whole = m(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = m(x)
        half.float().sum().backward()
    assert half.dtype == torch.bfloat16 and (half - whole).abs().mean() < 0.1
    narrow = copy.deepcopy(m).to(torch.bfloat16)
    assert narrow.centroids.dtype == torch.float32 and narrow.q.weight.dtype == torch.bfloat16
    before = narrow.centroids.clone()
    narrow(x.bfloat16()).float().sum().backward()
    assert (narrow.centroids != before).any()
    moved = copy.deepcopy(m).half().centroids
    assert moved.dtype == torch.float32


def test_ranks_share_what_they_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with half of a batch each move their centroids as one with all of it does."""
    whole = layer(ROUTERS[0])
    ranks, x = [copy.deepcopy(whole) for _ in range(2)], torch.randn(4, N, 32, dtype=torch.float64)
    stepped(whole, x)
    given: list[list[Tensor]] = [[], []]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (0, 1):  # what each would hand over
        monkeypatch.setattr(torch.distributed, "all_reduce", given[rank].append)
        copy.deepcopy(ranks[rank])(x[rank::2])
    for rank in (0, 1):
        others = iter(given[1 - rank])
        add = partial(lambda left, t: t.add_(next(left)), others)
        monkeypatch.setattr(torch.distributed, "all_reduce", add)
        stepped(ranks[rank], x[rank::2])
        torch.testing.assert_close(ranks[rank].centroids, whole.centroids)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _: pytest.fail("sync=False"))
    layer(SphericalKMeans(4, sync=False))(x)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch, where it breaks any graph
@pytest.mark.parametrize("router", [ROUTERS[0], ROUTERS[4]], ids=str)
def test_compiled_models_break_their_graph_at_the_choice(router: Any) -> None:
    m = nn.Sequential(nn.Linear(32, 32), layer(router, dtype=torch.float32, static=NEAR)).float()
    other = copy.deepcopy(m)
    compiled: Any = torch.compile(other, backend="eager")
    for n in (N, 20):
        x = torch.randn(2, n, 32)
        torch.testing.assert_close(compiled(x), m(x))
        for a, b in zip(stepped(compiled, x), stepped(m, x), strict=True):
            torch.testing.assert_close(a, b)
    if m[1].centroids is not None:
        torch.testing.assert_close(other[1].centroids, m[1].centroids)


# --- traces


@pytest.mark.parametrize("router", [ROUTERS[0], ROUTERS[1], ROUTERS[3], ROUTERS[6]], ids=str)
def test_a_trace_is_what_analyze_takes(router: Any) -> None:
    model = nn.Sequential(
        pc.SparseAttention(32, 4, pattern=NEAR),
        RoutedAttention(32, 4, 2, router, static=NEAR),
        RoutedAttention(32, 4, 2, router),
    )
    x = torch.randn(2, N, 32)
    with trace(model) as seen:
        model(x)
    model(x)
    assert len(seen.stack) == len(seen.calls) == 3 and seen.n == N
    for sequence in (0, 1):
        report = pc.analyze(seen.stack, N, **seen.bindings(sequence))
        content = report.content
        assert content is not None and content.traced is not None
        for low, at, high in zip(
            content.guaranteed.figures,
            content.traced.figures,
            content.possible.figures,
            strict=True,
        ):
            assert low.lo <= at.lo <= at.hi <= high.hi
        assert content.guaranteed.figures[-1].lo < content.traced.figures[-1].lo
    with pytest.raises(PatternValueError, match="sequence 2 of a batch of 2"):
        seen.bindings(2)
    with trace(model) as nothing, pytest.raises(PatternError, match="no routed or sparse layer"):
        nothing.stack  # noqa: B018


# --- sizes


@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_no_tokens_and_no_sequences(router: Any) -> None:
    m = layer(router, static=NEAR)
    for sizes in ((2, 0, 32), (0, 5, 32)):
        x = torch.randn(sizes, dtype=torch.float64, requires_grad=True)
        y = m(x)
        assert y.shape == sizes
        for grad in torch.autograd.grad(y.sum(), [x, *m.parameters()]):
            assert not grad.any()


def test_one_token_and_fewer_tokens_than_clusters() -> None:
    for router in ROUTERS:
        for n in (1, 3):
            m = layer(router)
            y = m(torch.randn(1, n, 32, dtype=torch.float64))
            assert y.shape == (1, n, 32) and y.isfinite().all()


def test_a_layer_prints_what_it_is() -> None:
    text = str(RoutedAttention(32, 4, 2, TopBlocks(2), static=NEAR))
    assert "32, heads=4, kv_heads=2, router=TopBlocks(count=2, block=64" in text


def test_the_example_runs() -> None:
    path = Path(__file__).parent.parent / "examples" / "route_by_content.py"
    found = runpy.run_path(str(path))["main"](steps=2)
    assert found["window"].reached < 0.3 < found["window and routing"].reached
