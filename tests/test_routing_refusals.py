"""Routed layers that cannot be, and calls of them that cannot be: what the errors say."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

import patterncc as pc
from patterncc.errors import PatternError, PatternValueError, TensorError
from patterncc.routers import NearestKeys, RoutedAttention, SphericalKMeans, TopBlocks

NEAR = pc.causal() & pc.window(5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (partial(RoutedAttention, 32, 4), PatternError, "None is not a router; give pc.Spher"),
        (partial(RoutedAttention, 30, 4, router=TopBlocks(2)), PatternValueError, "dim 30 is not"),
        (partial(RoutedAttention, 32, 4, 3, TopBlocks(2)), PatternValueError, "heads 4 is not"),
        (
            partial(RoutedAttention, 32, 4, router=TopBlocks(2), static="causal"),
            PatternError,
            "'causal' is not a pattern",
        ),
        (
            partial(RoutedAttention, 32, 4, router=TopBlocks(2), static=pc.heads([NEAR])),
            PatternValueError,
            "4 heads, but a pattern for 1",
        ),
        (
            partial(RoutedAttention, 32, 4, router=TopBlocks(2), routed=1),
            PatternValueError,
            r"3 of 4 heads choose nothing \(routed=1\) and read nothing; give a static pattern",
        ),
        (
            partial(RoutedAttention, 32, 4, router=TopBlocks(2), routed=5),
            PatternValueError,
            "routed must be at most 4, not 5",
        ),
    ],
)
def test_layers_that_cannot_be(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_calls_that_cannot_be() -> None:
    x = torch.randn(1, 8, 32)
    m = RoutedAttention(32, 2, router=TopBlocks(2, block=4), static=pc.window(2, 2))
    with pytest.raises(
        PatternValueError, match=r"window\(2, 2\) reads later positions in a causal"
    ):
        m(x)
    m = RoutedAttention(32, 2, router=TopBlocks(2, block=4))
    with pytest.raises(
        TensorError, match=r"x has shape \(1, 8, 16\); it must be \(batch, length, 32\)"
    ):
        m(x[..., :16])
    with pytest.raises(TensorError, match="cache and position go together"):
        m(x, position=3)
    cache = m.new_cache(1, 9)
    with torch.no_grad():
        with pytest.raises(TensorError, match="2 tokens at position 3; after the prompt"):
            m(x[:, :2], cache=cache, position=3)
        with pytest.raises(
            TensorError, match=r"at position 9 do not fit a cache of shape \(1, 2, 9, 16\)"
        ):
            m(x[:, :1], cache=cache, position=9)
    with pytest.raises(TensorError, match="with a cache there is scale alone, not softcap"):
        m(x, cache=cache, position=0, softcap=2.0)
    for keys, message in (
        (torch.ones(1, 8), "key_mask is torch.float32"),
        (torch.ones(1, 7, dtype=torch.bool), r"key_mask has shape \(1, 7\), k \(1, 2, 8, 16\)"),
    ):
        with pytest.raises(TensorError, match=message):
            m(x, key_mask=keys)


@pytest.mark.parametrize(
    "router", [SphericalKMeans(4, width=6), NearestKeys(5), TopBlocks(3, block=8)], ids=str
)
def test_steps_that_cannot_be(router: Any) -> None:
    """A gap, a step back that the router would count twice, and a gradient that would be lost."""
    m, x = RoutedAttention(32, 4, 2, router), torch.randn(1, 8, 32)
    cache = m.new_cache(1, 9)
    with pytest.raises(TensorError, match="a step with a cache has no gradient; run it under"):
        m(x[:, :1], cache=cache, position=5)
    with torch.no_grad():
        m(x[:, :5], cache=cache, position=0)
        with pytest.raises(TensorError, match="position 6, the cache holds 5 tokens; the next one"):
            m(x[:, :1], cache=cache, position=6)
        with pytest.raises(TensorError, match=r"position is \(2\); give an int, the same place"):
            m(x[:, :1], cache=cache, position=torch.tensor([5, 5]))
        m(x[:, 5:6], cache=cache, position=torch.tensor(5))
        if not isinstance(router, NearestKeys):  # which keeps keys and values alone
            with pytest.raises(TensorError, match="position 5, the cache holds 6 tokens"):
                m(x[:, 5:6], cache=cache, position=5)


@pytest.mark.parametrize(
    ("router", "options", "message"),
    [
        (SphericalKMeans(4), {}, "balanced clusters are known once the sequence is whole; give"),
        (TopBlocks(2, block=8, grain=4), {}, "4 queries choose together .* take grain=1"),
        (NearestKeys(2), {"causal": False}, "it reads later positions"),
        (
            NearestKeys(2),
            {"static": pc.causal() & pc.random_blocks(1, block=16)},
            r"the edges of random_blocks\(1, .* depend on the length; use past=True",
        ),
    ],
)
def test_layers_without_decode_steps(router: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PatternValueError, match=message):
        RoutedAttention(32, 2, router=router, **options).new_cache(1, 8)


def test_export_is_refused_by_name() -> None:
    m = RoutedAttention(32, 4, router=TopBlocks(2, block=8))
    with pytest.raises(TensorError, match=r"torch.export needs all edges.*SparseAttention"):
        torch.export.export(m, (torch.randn(1, 24, 32),))
