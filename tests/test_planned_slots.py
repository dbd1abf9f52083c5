"""Slots hold what the plan says is alive, after every key and every chunk of keys."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import patterncc as pc
from patterncc.cache import LayerCache
from patterncc.errors import TensorError
from patterncc.integrations.held import Slots

PATTERNS = [
    pc.causal(),
    pc.causal() & (pc.window(5) | pc.sink(2)),
    pc.causal() & pc.chunked(7),
    pc.causal() & (pc.window(2) | pc.strided(6)),
    pc.causal() & pc.random_edges(3, past=True),
    pc.causal() & pc.window(4) & ~pc.window(1),
]
ANY_LENGTH = PATTERNS[:3]


def keys(intervals: Any) -> set[int]:
    return {j for a, b in intervals.tolist() for j in range(a, b)}


def held(slots: Slots) -> set[int]:
    return set(slots.key[slots.key >= 0].tolist())


def slots_of(pattern: pc.Pattern, n: int) -> tuple[LayerCache, Slots]:
    cache = pc.cache_plan(pattern, n).layers[0]
    return cache, Slots(cache.spans[0], cache.curves[0].peak[0])


def written(cache: LayerCache, slots: Slots, first: int, count: int) -> None:
    """Write keys as a cache does and hold the slots to the definition."""
    stop = first + count
    slots.write(first, count, first if count == 1 else stop)
    expected = keys(cache.alive(first) if count == 1 else cache.kept(stop - 1))
    assert held(slots) == expected and slots.held == len(expected)


@given(st.sampled_from(PATTERNS), st.lists(st.sampled_from([1, 1, 1, 2, 5]), min_size=1))
def test_alive_keys_and_no_others(pattern: pc.Pattern, counts: list[int]) -> None:
    n = sum(counts)
    cache, slots = slots_of(pattern, n)
    first = 0
    for count in counts:
        written(cache, slots, first, count)
        first += count


@given(
    st.sampled_from(ANY_LENGTH),
    st.lists(st.sampled_from([1, 1, 3]), min_size=1, max_size=20),
    st.lists(st.sampled_from([1, 1, 3]), min_size=1, max_size=20),
)
def test_a_longer_plan_takes_over(pattern: pc.Pattern, counts: list[int], more: list[int]) -> None:
    """What was written under a plan of n positions stays where it stands under one of 2 n."""
    n = sum(counts) + 1  # the plan's last step would let all keys go
    cache, slots = slots_of(pattern, n)
    first = 0
    for count in counts:
        written(cache, slots, first, count)
        first += count
    longer, wider = slots_of(pattern, n + sum(more))
    wider.take_over(slots)
    places = {int(k): s for s, k in enumerate(slots.key) if k >= 0}
    assert all(wider.key[s] == k for k, s in places.items())
    for count in more:
        written(longer, wider, first, count)
        first += count


def test_keys_that_are_not_held() -> None:
    _, slots = slots_of(PATTERNS[1], 20)
    for t in range(12):
        slots.write(t, 1, t)
    assert slots.find(np.array([[0, 2], [6, 12]])).tolist() == [
        int(np.flatnonzero(slots.key == k)[0]) for k in (0, 1, 6, 7, 8, 9, 10, 11)
    ]
    with pytest.raises(TensorError, match="key 4 is not held"):
        slots.find(np.array([[4, 12]]))


def test_every_slot_is_a_slice_and_some_are_a_list() -> None:
    _, slots = slots_of(PATTERNS[1], 20)
    for t in range(12):
        slots.write(t, 1, t)
        everything = np.array([[0, 2], [max(2, t - 5), t + 1]]) if t > 1 else np.array([[0, t + 1]])
        assert slots.of_row("all", partial(np.asarray, everything)) == slice(0, slots.held)
    some = slots.of_row("some", lambda: np.array([[8, 10]]))
    assert not isinstance(some, slice) and slots.key[some.numpy()].tolist() == [8, 9]
