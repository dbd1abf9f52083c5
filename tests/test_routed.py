"""Clusters that a router found: layouts held to the definition, attention to dense float64."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

import patterncc as pc
from patterncc.kernels import fits_tables
from patterncc.kernels.cpu import cache
from patterncc.kernels.native import backward_run, run
from patterncc.kernels.routed import RoutedLayout, prepared, routed_clusters
from patterncc.kernels.routed_static import intervals_of
from tests.oracles_routed import check_attention, cluster_mask, members_of
from tests.strategies import patterns

STATIC = [
    None,
    pc.causal() & (pc.window(20) | pc.sink(3)),
    pc.window(40, 40) | pc.global_tokens([7]),
    pc.random_edges(4),
    pc.full(),
    pc.prefix(0),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compiled(p: pc.Pattern | None, n: int, block: int = 32) -> pc.Layout | None:
    return None if p is None else pc.compile(p, n, block=block, order="token")


@st.composite
def clusters(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Members of up to 4 clusters a head, some of them empty, and how many tokens there are."""
    n = draw(st.integers(1, 90))
    sequences, heads, count = (draw(st.integers(1, 2)) for _ in range(3))
    count += draw(st.integers(0, 2))
    width = draw(st.integers(1, n + 3))
    sizes = st.one_of(st.just(width), st.integers(0, width), st.just(0))
    many = sequences * heads * count
    each = draw(st.lists(sizes, min_size=many, max_size=many))
    return members_of(sequences, heads, n, count, width, each, draw(st.integers(0, 99))), n


@settings(max_examples=80)
@given(clusters(), st.booleans(), st.sampled_from(STATIC), st.sampled_from([None, (16, 32)]))
def test_pairs_are_those_of_the_definition(
    drawn: tuple[torch.Tensor, int],
    causal: bool,
    pattern: pc.Pattern | None,
    block: tuple[int, int] | None,
) -> None:
    members, n = drawn
    static = compiled(pattern, n)
    made = routed_clusters(members, n=n, static=static, causal=causal, block=block)
    mask = cluster_mask(members, n, causal, static)
    assert torch.equal(made.dense(), mask)
    assert list(made.edges) == mask.sum((2, 3)).flatten().tolist()


@settings(max_examples=60)
@given(patterns(), st.integers(1, 60), st.sampled_from([16, (32, 64)]))
def test_a_layout_row_by_row_is_its_mask(p: pc.Pattern, n: int, block: Any) -> None:
    layout = pc.compile(p, n, block=block, order="token")
    for by_key in (False, True):
        found = intervals_of(layout, by_key=by_key)
        mask = np.zeros((n, n + 1), dtype=np.int8)
        for low, high in zip(found.low[:, 0], found.high[:, 0], strict=True):
            real = np.flatnonzero(low < high)
            np.add.at(mask, (real, low[real]), 1)
            np.add.at(mask, (real, high[real]), -1)
        rows = np.cumsum(mask, axis=1)[:, :n]
        assert np.array_equal(rows, layout.dense().T if by_key else layout.dense())


CASES = [
    # sequences, heads, key heads, tokens, clusters, width, all slots filled
    (1, 1, 1, 7, 2, 3, True),
    (2, 4, 2, 50, 3, 17, False),
    (2, 2, 1, 130, 2, 65, True),
    (1, 2, 2, 100, 9, 20, False),
    (1, 1, 1, 40, 0, 5, True),
    (2, 2, 2, 150, 1, 150, True),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_attention_is_dense_attention_under_the_mask(
    case: tuple[Any, ...], causal: bool, dtype: torch.dtype
) -> None:
    sequences, heads, key_heads, n, count, width, filled = case
    rng = np.random.default_rng(n)
    for pattern in STATIC[:4]:
        sizes = rng.integers(width if filled else 0, width + 1, sequences * heads * count)
        members = members_of(sequences, heads, n, count, width, sizes.tolist(), n)
        static = compiled(pattern, n)
        made = routed_clusters(members, n=n, static=static, causal=causal)
        check_attention(made, cluster_mask(members, n, causal, static), key_heads, dtype)


def test_heads_and_sequences_of_the_static_layout() -> None:
    members = members_of(2, 2, 60, 2, 20, [20] * 8, 3)
    heads = pc.compile(pc.heads([pc.causal() & pc.window(9), pc.window(2, 2)]), 60, block=16)
    batch = pc.compile(pc.causal() & pc.window(9), 60, doc_ids=[[0] * 60, [0] * 30 + [1] * 30])
    for static in (heads, batch):
        made = routed_clusters(members, n=60, static=static)
        mask = cluster_mask(members, 60, static=static)
        assert torch.equal(made.dense(), mask)
        check_attention(made, mask, 1, torch.float32)


def test_masks_of_keys_and_sinks() -> None:
    members = members_of(2, 4, 60, 3, 20, [20, 5, 0] * 8, 3)
    static = compiled(pc.causal() & pc.window(9), 60)
    keys = torch.rand(2, 60, generator=torch.Generator().manual_seed(0)) < 0.6
    for other in (None, static):
        made = routed_clusters(members, n=60, static=other, causal=True)
        mask = cluster_mask(members, 60, True, other)
        check_attention(made, mask, 2, torch.float32, key_mask=keys)
        check_attention(made, mask, 2, torch.float64, sinks=torch.randn(4).double(), key_mask=keys)


def test_backends_agree() -> None:
    members = members_of(1, 2, 60, 3, 20, [20, 5, 11] * 2, 3)
    made = routed_clusters(members, n=60, static=compiled(pc.window(4), 60), causal=True)
    q, k, v = torch.randn(3, 1, 2, 60, 16).unbind()
    out = pc.attention(q, k, v, made)
    expected = pc.attention(q, k, v, made, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_what_nobody_reads_may_be_nan() -> None:
    members = members_of(1, 1, 50, 2, 20, [20, 3], 3)
    made = routed_clusters(members, n=50)
    read = made.dense()[0, 0].any(0)
    q, k, v = (torch.randn(1, 1, 50, 16) for _ in range(3))
    clean = pc.attention(q, k, v, made)
    k[:, :, ~read] = v[:, :, ~read] = torch.nan
    assert torch.equal(pc.attention(q, k, v, made), clean)
    assert not clean[0, 0, ~read].any()  # each token that is read reads itself


def sizes_kept() -> list[int]:
    return [
        len(fits_tables._sound),
        len(fits_tables._named),
        len(cache._SCHEDULES.values),
        len(run._LINES),
        len(backward_run._kept),
    ]


def test_steps_of_training_fill_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's layout is another: what is kept by names stays within its bounds."""
    monkeypatch.setattr(fits_tables, "LIMIT", 20)
    fits_tables._sound.clear()
    fits_tables._named.clear()
    static = compiled(pc.causal() & pc.window(4), 32)
    for dtype in (torch.float32, torch.float64):
        for step in range(80):
            members = members_of(1, 1, 32, 2, 16, [16, 16], step)
            made = routed_clusters(members, n=32, static=static, causal=True)
            q, k, v = torch.randn(3, 1, 1, 32, 8, dtype=dtype).unbind()
            pc.attention(q.requires_grad_(), k, v, made).sum().backward()
    assert all(x <= most for x, most in zip(sizes_kept(), [20, 20, 64, 64, 64], strict=True))


def test_plans_of_a_size_are_one() -> None:
    """So that op, kernels and traced graphs are those of the step before."""
    static = compiled(pc.causal() & pc.window(4), 48)
    texts = set()
    for step in range(4):
        members = members_of(1, 2, 48, 2, 24, [24, 6 * step] * 2, step)
        made = routed_clusters(members, n=48, static=static, causal=True)
        texts.add(prepared(made, torch.device("cpu"), "auto")[1])
    assert len(texts) == 1


def largest_piece(made: Any) -> float:
    """Bytes of the largest piece of memory that torch takes, and of all that numpy does."""
    tracemalloc.start()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        made()
    _, numpy_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    events = seen.profiler.kineto_results.events()
    return max(numpy_bytes, *(e.nbytes() for e in events if e.name() == "[memory]"))


def test_nothing_is_as_large_as_queries_times_keys() -> None:
    """At 32,768 tokens a mask of bits alone would take 128 MiB."""
    n = 32768
    static = pc.compile(pc.causal() & (pc.window(64) | pc.sink(4)), n, block=64)
    members = torch.randperm(n).view(1, 1, 256, 128).sort(-1).values

    def step() -> None:
        made = routed_clusters(members, n=n, static=static, causal=True)
        q, k, v = (torch.randn(1, 1, n, 16, requires_grad=True) for _ in range(3))
        pc.attention(q, k, v, made).sum().backward()

    assert largest_piece(step) < 40 * 2**20


MEMBERS = members_of(1, 2, 40, 2, 10, [10, 7] * 2, 0)
THREE = pc.heads([pc.causal(), pc.full(), pc.full()])


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        (MEMBERS.int(), {}, "torch.int32 of shape"),
        ([[0]], {}, "members are list"),
        (MEMBERS[0], {}, "torch.int64 of shape"),
        (MEMBERS + 1, {}, "do not ascend, or follow an empty slot|name tokens"),
        (MEMBERS + 40, {}, "name tokens"),
        (MEMBERS.flip(-1), {}, "do not ascend, or follow an empty slot"),
        (MEMBERS[:, :, :1].expand(-1, -1, 2, -1), {}, "stands in two clusters of head 0"),
        (MEMBERS[..., :0], {}, "width of clusters are at least 1"),
        (MEMBERS, {"static": pc.causal()}, "static is a"),
        (MEMBERS, {"static": pc.compile(pc.causal(), 41)}, "compile it with n=40"),
        (MEMBERS, {"static": pc.compile(THREE, 40)}, "for 3 heads"),
        (
            MEMBERS,
            {"static": pc.compile(pc.strided(4), 40, block=16, order="residue")},
            'order="token"',
        ),
    ],
    ids=lambda x: str(x)[:30],
)
def test_what_does_not_fit_is_refused(members: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(pc.PatternValueError, match=message):
        routed_clusters(members, n=40, **options)


def test_calls_that_it_is_not_for() -> None:
    made = routed_clusters(MEMBERS, n=40)
    q, k, v = torch.randn(3, 2, 2, 40, 16).unbind()
    with pytest.raises(pc.TensorError, match="each of 1 sequences"):
        pc.attention(q, k, v, made)
    with pytest.raises(pc.TensorError, match="40 queries and 40 keys"):
        pc.attention(q[:1, :, :9], k[:1], v[:1], made)
    with pytest.raises(pc.TensorError, match="a decode step"):
        pc.attention(q[:1, :, :1], k[:1], v[:1], made, position=3)
    with pytest.raises(pc.TensorError, match="alibi_slopes and relative_bias do not go with"):
        pc.attention(q[:1], k[:1], v[:1], made, alibi_slopes=torch.ones(2))
    with pytest.raises(pc.BackendError, match="routed on cpu"):
        prepared(made, torch.device("meta"), "auto")
    assert isinstance(made, RoutedLayout) and made.nbytes < 5000
    assert repr(made) == (
        "<RoutedLayout routed(2 clusters of 10): 1 x 2 heads, 40 tokens, block 64 x 32, on cpu>"
    )
