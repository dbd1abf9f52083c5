"""Key blocks that a router chose: layouts held to the definition, attention to dense float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc.kernels import routed_blocks as module
from patterncc.kernels.routed import routed_blocks
from tests.oracles_routed import block_mask, check_attention
from tests.test_routed import STATIC, largest_piece


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn_blocks(
    shape: tuple[int, int], n: int, block: int, grain: int, count: int, seed: int
) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-1, -(-n // block), (*shape, -(-n // grain), count), generator=g)


@settings(max_examples=120)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.integers(1, 200),
    st.one_of(st.integers(1, 70), st.sampled_from([16, 64, 128])),
    st.one_of(st.integers(1, 70), st.sampled_from([1, 64, 128])),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from(STATIC),
    st.sampled_from([16, 32, (16, 128), 64]),
    st.integers(0, 99),
)
def test_pairs_are_those_of_the_definition(
    shape: tuple[int, int],
    n: int,
    block: int,
    grain: int,
    count: int,
    causal: bool,
    pattern: pc.Pattern | None,
    sides: Any,
    seed: int,
) -> None:
    static = None if pattern is None else pc.compile(pattern, n, block=sides, order="token")
    chosen = drawn_blocks(shape, n, block, grain, count, seed)
    made = routed_blocks(chosen, n=n, block=block, grain=grain, static=static, causal=causal)
    mask = block_mask(chosen, n, block, grain, causal, static)
    assert torch.equal(made.dense(), mask)
    by_columns = torch.from_numpy(pc.layout.decode.dense(made.tiles, columns=True))
    assert torch.equal(by_columns.view(mask.shape), mask)
    assert list(made.edges) == mask.sum((2, 3)).flatten().tolist()


CASES = [
    # sequences, heads, key heads, tokens, block, grain, count
    (1, 1, 1, 30, 8, 8, 2),
    (2, 2, 1, 70, 16, 1, 2),
    (1, 2, 2, 130, 64, 64, 1),
    (2, 4, 2, 100, 12, 20, 3),
    (1, 1, 1, 60, 7, 5, 0),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_attention_is_dense_attention_under_the_mask(
    case: tuple[int, ...], causal: bool, dtype: torch.dtype
) -> None:
    sequences, heads, key_heads, n, block, grain, count = case
    for pattern in STATIC[:4]:
        static = None if pattern is None else pc.compile(pattern, n, block=(16, 64))
        chosen = drawn_blocks((sequences, heads), n, block, grain, count, n)
        made = routed_blocks(chosen, n=n, block=block, grain=grain, static=static, causal=causal)
        mask = block_mask(chosen, n, block, grain, causal, static)
        check_attention(made, mask, key_heads, dtype)


def test_options_of_scores_go_with_blocks() -> None:
    chosen = drawn_blocks((2, 2), 60, 16, 16, 2, 0)
    made = routed_blocks(chosen, n=60, block=16, causal=True)
    q, k, v = torch.randn(3, 2, 2, 60, 16).unbind()
    options: dict[str, Any] = {"alibi_slopes": torch.tensor([0.1, 0.5]), "sinks": torch.zeros(2)}
    options["key_mask"] = torch.rand(2, 60) < 0.7
    out = pc.attention(q, k, v, made, **options)
    expected = pc.attention(q, k, v, made, backend="reference", **options)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_a_stretch_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = drawn_blocks((1, 2), 300, 16, 4, 2, 0)
    static = pc.compile(pc.causal() & pc.window(30), 300, block=64)
    whole = routed_blocks(chosen, n=300, block=16, grain=4, static=static)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    parts = routed_blocks(chosen, n=300, block=16, grain=4, static=static)
    assert whole.tiles.hash == parts.tiles.hash
    monkeypatch.setattr(module, "MAX_BITS", 1)
    with pytest.raises(pc.SizeError, match="use a grain of whole tiles"):
        routed_blocks(chosen, n=300, block=16, grain=4)


def test_whole_blocks_need_no_bits_but_on_the_diagonal() -> None:
    chosen = torch.arange(8).view(1, 1, 8, 1) // 2
    made = routed_blocks(chosen, n=512, block=64, causal=True)
    assert made.block == (64, 64)
    assert (made.tiles.full_tiles, made.tiles.partial_tiles) == (7, 1)


def test_nothing_is_as_large_as_queries_times_keys() -> None:
    """At 32,768 tokens a mask of bits alone would take 128 MiB."""
    n = 32768
    static = pc.compile(pc.causal() & (pc.window(64) | pc.sink(4)), n, block=64)
    chosen = drawn_blocks((1, 1), n, 64, 64, 4, 0)

    def step() -> None:
        made = routed_blocks(chosen, n=n, block=64, static=static, causal=True)
        q, k, v = (torch.randn(1, 1, n, 16, requires_grad=True) for _ in range(3))
        pc.attention(q, k, v, made).sum().backward()

    assert largest_piece(step) < 40 * 2**20


CHOSEN = drawn_blocks((1, 2), 40, 8, 8, 2, 0)


@pytest.mark.parametrize(
    ("chosen", "options", "message"),
    [
        (CHOSEN.int(), {}, "chosen is torch.int32 of shape"),
        (None, {}, "chosen is NoneType"),
        (CHOSEN[:, :, :3], {}, "40 queries in groups of 8 are 5 groups"),
        (CHOSEN, {"grain": 4}, "in groups of 4 are 10 groups"),
        (CHOSEN + 5, {}, "blocks 0 to 4, and -1 is none"),
        (CHOSEN - 1, {}, "blocks 0 to 4, and -1 is none"),
        (CHOSEN, {"static": pc.compile(pc.causal(), 41)}, "compile it with n=40"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_what_does_not_fit_is_refused(chosen: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(pc.PatternValueError, match=message):
        routed_blocks(chosen, n=40, block=8, **options)
