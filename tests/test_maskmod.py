"""Mask functions of FlexAttention read into patterns, held to torch's own evaluation of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask, noop_mask

import patterncc as pc
from patterncc.integrations.maskmod import seek
from patterncc.integrations.maskmod.join import joined
from patterncc.integrations.maskmod.tables import Frame
from tests.maskmods import GYM, LENGTHS, OTHERS

Mask = Callable[..., Any]
N = 13


def evaluated(fn: Mask, n: int, n_k: int | None = None, heads: int = 1, b: int = 0) -> Any:
    """The mask as FlexAttention computes it, pair by pair; bool [heads, n, n_k]."""
    return create_mask(fn, b + 1, heads, n, n if n_k is None else n_k, device="cpu")[b].numpy()


def check(fn: Mask, queries: int, keys: int | None = None, **more: Any) -> pc.Pattern:
    """What is read, after it was compared with what torch computes."""
    (p,) = pc.Stack([pc.from_mask_mod(fn, **more)]).patterns
    wanted = evaluated(fn, queries, keys)[0]
    assert np.array_equal(pc.lower(p, queries, keys).dense(), wanted), str(p)
    return p


def check_at(fn: Mask, queries: int, keys: int) -> pc.Pattern:
    """The same, told the lengths, and that there is one sequence and one head."""
    return check(fn, queries, keys, n=queries, n_k=keys, batch=0, heads=1)


# --- generated mask functions -------------------------------------------------------------------

TABLE = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 0, 2, 2, 4, 4])
SORTED = torch.sort(TABLE).values.to(torch.int32)
STARTS = torch.tensor([0, 2, 5, 6, 9])
FLAGS = torch.tensor([k % 5 == 2 or k == 7 for k in range(N)])
PAIRS = torch.tensor([[(a * 7 + b * 3) % 4 < 2 for b in range(5)] for a in range(5)])

Term = Callable[[Any, Any], Any]
small = st.integers(-3, 9)
positive = st.integers(1, 6)

numbers = st.recursive(
    st.one_of(
        st.just(lambda q, k: q),
        st.just(lambda q, k: k),
        st.just(lambda q, k: q - k),
        st.just(lambda q, k: TABLE[q]),
        st.just(lambda q, k: TABLE[k]),
        st.just(lambda q, k: SORTED[q]),
        st.just(lambda q, k: SORTED[k]),
        st.just(lambda q, k: q - STARTS[SORTED[q]]),
        st.just(lambda q, k: k - STARTS[SORTED[k]]),
    ),
    lambda inner: st.one_of(
        st.builds(lambda a, b: lambda q, k: a(q, k) + b(q, k), inner, inner),
        st.builds(lambda a, b: lambda q, k: a(q, k) - b(q, k), inner, inner),
        st.builds(lambda a, c: lambda q, k: a(q, k) + c, inner, small),
        st.builds(lambda a, c: lambda q, k: c - a(q, k), inner, small),
        st.builds(lambda a, c: lambda q, k: a(q, k) * c, inner, small),
        st.builds(lambda a, c: lambda q, k: a(q, k) // c, inner, positive),
        st.builds(lambda a, c: lambda q, k: a(q, k) % c, inner, positive),
        st.builds(lambda a: lambda q, k: torch.abs(a(q, k)), inner),
        st.builds(lambda a: lambda q, k: -a(q, k), inner),
        st.builds(lambda a, b: lambda q, k: torch.minimum(a(q, k), b(q, k)), inner, inner),
        st.builds(lambda a, c: lambda q, k: a(q, k).clamp(min=c, max=c + 4), inner, small),
        st.builds(lambda a, b: lambda q, k: torch.where(q < k, a(q, k), b(q, k)), inner, inner),
        st.builds(lambda a: lambda q, k: STARTS[a(q, k) % 5], inner),
        st.builds(lambda a: lambda q, k: (a(q, k) >> 1) ^ 3, inner),
    ),
    max_leaves=4,
)

comparisons = st.sampled_from(
    [torch.le, torch.lt, torch.ge, torch.gt, torch.eq, torch.ne, lambda a, b: a <= b]
)
atoms = st.one_of(
    st.builds(lambda f, a, b: lambda q, k: f(a(q, k), b(q, k)), comparisons, numbers, numbers),
    st.builds(lambda f, a, c: lambda q, k: f(a(q, k), c), comparisons, numbers, small),
    st.just(lambda q, k: q >= k),
    st.just(lambda q, k: SORTED[q] == SORTED[k]),
    st.just(lambda q, k: TABLE[q] == TABLE[k]),
    st.just(lambda q, k: FLAGS[q] | FLAGS[k]),
    st.just(lambda q, k: PAIRS[SORTED[q], TABLE[k]]),
    st.builds(lambda c: lambda q, k: q // c == k // c, positive),
    st.builds(lambda a: lambda q, k: a(q, k) / 3 < 1.5, numbers),
)
conditions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.builds(lambda a, b: lambda q, k: a(q, k) & b(q, k), inner, inner),
        st.builds(lambda a, b: lambda q, k: a(q, k) | b(q, k), inner, inner),
        st.builds(lambda a, b: lambda q, k: a(q, k) ^ b(q, k), inner, inner),
        st.builds(lambda a: lambda q, k: ~a(q, k), inner),
        st.builds(lambda a, b: lambda q, k: torch.where(q < k, a(q, k), b(q, k)), inner, inner),
    ),
    max_leaves=5,
)


def broadcast(condition: Term, n: int, n_k: int) -> Any:
    """The same by broadcasting, for conditions made of elementwise operations."""
    mask = condition(torch.arange(n)[:, None], torch.arange(n_k)[None, :])
    return torch.broadcast_to(mask, (n, n_k)).numpy()


@settings(max_examples=120)
@given(conditions, st.integers(0, N), st.integers(0, N))
def test_whatever_is_read_is_exact(condition: Term, n: int, n_k: int) -> None:
    def fn(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return condition(q_idx, kv_idx)

    wanted = broadcast(condition, n, n_k)
    p = pc.from_mask_mod(fn, n=n, n_k=n_k)
    assert isinstance(p, pc.Pattern)
    assert np.array_equal(pc.lower(p, n, n_k).dense(), wanted), str(p)


@settings(max_examples=60)
@given(conditions, st.integers(1, N))
def test_without_a_length_a_mask_is_exact_or_refused(condition: Term, n: int) -> None:
    def fn(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return condition(q_idx, kv_idx)

    try:
        p = pc.from_mask_mod(fn)
    except pc.PatternError as error:
        assert "`" in str(error)
        return
    assert isinstance(p, pc.Pattern)
    assert np.array_equal(pc.lower(p, n).dense(), broadcast(condition, n, n)), str(p)


# --- masks that people write --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's vmap of isin
@pytest.mark.parametrize("name", [*GYM, *OTHERS])
def test_a_mask_that_people_write(name: str) -> None:
    fn, n, n_k, wanted = (GYM | OTHERS)[name]
    p = check_at(fn, n, n_k)
    if wanted:
        assert str(p) == wanted


def gym_masks() -> dict[str, tuple[Mask, int, int]]:
    """The masks of attention-gym itself."""
    from attn_gym import masks as gym

    offsets = torch.tensor([0, 3, 7, 12], dtype=torch.int32)
    chosen = torch.tensor([[[[0, 1], [1, 2], [0, 2]]]])
    tree = gym.build_tree_ancestor_matrix([-1, 0, 0, 1, 2], "cpu")
    make: dict[str, tuple[tuple[Any, ...], int, int]] = {
        "batchify_mask_mod": ((gym.causal_mask, 4), 18, 18),
        "generate_block_diffusion_mask": ((8, 4), 16, 16),
        "generate_dilated_sliding_window": ((4, 2), 20, 20),
        "generate_doc_mask_mod": ((gym.causal_mask, offsets), 12, 12),
        "generate_packed_causal_doc_mask_mod": ((offsets,), 12, 12),
        "generate_vision_cross_attention_mask_mod": ((torch.tensor([[0, 7], [7, 12]]), 4), 12, 8),
        "generate_global_sliding_window": ((2, torch.arange(12) % 5 == 0), 12, 12),
        "generate_jetspec_tree_causal_mask_mod": ((3, tree), 5, 8),
        "generate_jetspec_training_mask_mod": ((3, 4), 8, 11),
        "generate_natten": ((6, 6, 3, 3), 36, 36),
        "generate_tiled_natten": ((8, 8, 3, 3, 4, 4), 64, 64),
        "generate_morton_natten": ((8, 8, 3, 3), 64, 64),
        "generate_prefix_lm_mask": ((4,), 20, 20),
        "generate_shared_prefix_mask_mod": ((offsets, torch.tensor([0, 0, 0])), 12, 12),
        "generate_sliding_window": ((3,), 20, 20),
        "generate_sta_mask_mod_2d": (((8, 8), (4, 4), (2, 2), 3), 67, 67),
        "generate_sta_mask_mod_3d": (((4, 4, 4), (2, 2, 2), (2, 2, 2)), 64, 64),
        "generate_spatial_head_mask_mod": ((2, 4, 5, 2, True, 4), 22, 22),
        "generate_temporal_head_mask_mod": ((2, 4, 5, 2), 22, 22),
        "generate_vsa_mask_mod": ((chosen, 4, torch.tensor([4, 3, 2])), 12, 12),
    }
    there = {name: (getattr(gym, name)(*args), n, n_k) for name, (args, n, n_k) in make.items()}
    return {"causal_mask": (gym.causal_mask, 20, 20), **there}


def test_the_masks_of_attention_gym_itself() -> None:
    for fn, n, n_k in gym_masks().values():
        check_at(fn, n, n_k)


# --- heads, sequences, lengths ------------------------------------------------------------------


def test_a_mask_that_depends_on_the_head_gives_a_pattern_a_head() -> None:
    widths = torch.tensor([1, 4])

    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k <= widths[h // 2]) | (h == 3) & (k < 2)

    layer = pc.from_mask_mod(fn, heads=4)
    assert str(layer).startswith("heads([2 x window(1), 1 x window(4), 1 x ")
    wanted = evaluated(fn, 12, heads=4)
    for h, p in enumerate(pc.Stack([layer]).heads(0)):
        assert np.array_equal(pc.lower(p, 12).dense(), wanted[h])


def test_one_sequence_of_a_batch() -> None:
    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (k < LENGTHS[b])

    for b, count in enumerate(LENGTHS.tolist()):
        p = pc.from_mask_mod(fn, batch=b)
        assert str(p) == f"causal() & sink({count})"
        assert np.array_equal(pc.lower(p, 12).dense(), evaluated(fn, 12, b=b)[0])


def test_lengths_are_those_of_the_tensors_that_are_looked_up() -> None:
    ids = torch.tensor([0, 0, 1, 1, 1])
    assert str(check(lambda b, h, q, k: ids[q] == ids[k], 5)) == "documents([2, 3])"
    check(lambda b, h, q, k: (q // 2 == ids[k]) | (k == 0), 9, 5, n=9)
    again = torch.tensor([0, 0, 1, 0, 2])
    p = check(lambda b, h, q, k: again[q] == again[k], 5)
    assert str(p) == "clusters([0, 0, 1, 0, 2])"


@pytest.mark.parametrize("name", ["generate_tiled_natten", "powers of two", "membership"])
def test_a_table_is_not_lowered_past_the_length_it_was_made_for(name: str) -> None:
    fn, n, n_k, _ = (GYM | OTHERS)[name]
    p = pc.from_mask_mod(fn, n=n, n_k=n_k)
    assert isinstance(p, pc.Pattern)
    with pytest.raises(pc.PatternValueError, match=f"made for n={n}"):
        pc.lower(p, n + 1, n_k)
    with pytest.raises(pc.PatternValueError, match=f"made for n_k={n_k}"):
        pc.lower(p, n, n_k + 1)


def test_what_is_read_runs_as_attention() -> None:
    p = pc.from_mask_mod(GYM["generate_doc_mask_mod"][0])
    assert isinstance(p, pc.Pattern)
    layout = pc.compile(p, 12)
    q, k, v = torch.randn(3, 1, 2, 12, 8).unbind()
    mask = torch.from_numpy(evaluated(GYM["generate_doc_mask_mod"][0], 12)[0])
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(pc.attention(q, k, v, layout), wanted)


def test_callable_objects_partials_and_defaults() -> None:
    class SameDocument:
        def __init__(self) -> None:
            self.ids = TABLE

        def __call__(self, b: Any, h: Any, q: Any, k: Any) -> Any:
            return self.ids[q] == self.ids[k]

    def shifted(start: int, b: Any, h: Any, q: Any, k: Any, *, end: int = 5) -> Any:
        return (q + start >= k) & (k < end)

    check(SameDocument(), N)
    assert str(check(partial(shifted, 2), N)) == "window(-1, 2) & sink(5)"


# --- refusals -----------------------------------------------------------------------------------

NARROW = torch.tensor([3, 1, 2, 0], dtype=torch.uint8)


def asks_if(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q >= k if q > 3 else k < 3


REFUSED: dict[str, tuple[Mask, dict[str, int], str]] = {
    "if": (asks_if, {}, "`q_idx > 3` is true.* write & for `and`"),
    "and": (lambda b, h, q, k: q >= k and k < 3, {}, "`q_idx >= kv_idx` is true"),
    "chain": (lambda b, h, q, k: 0 <= q - k < 5, {}, r"`\(q_idx - kv_idx\) >= 0` is true"),
    "in": (lambda b, h, q, k: k in [1, 2], {}, "torch.isin"),
    "max": (lambda b, h, q, k: max(q, k) < 3, {}, r"torch.maximum for max\(\)"),
    "range": (lambda b, h, q, k: len(range(q)) > k, {}, "number in `q_idx`"),
    "item": (lambda b, h, q, k: q.item() >= k, {}, "number in `q_idx`"),
    "float": (lambda b, h, q, k: math.floor(q / 2) == k, {}, "number in `q_idx / 2`"),
    "score": (lambda b, h, q, k: q - k, {}, "gives `q_idx - kv_idx`"),
    "tensor": (lambda b, h, q, k: PAIRS[q % 5] & (k > 2), {}, r"shape \[5\]"),
    "none": (lambda b, h, q, k: None, {}, "NoneType"),
    "in place": (lambda b, h, q, k: (q >= k).logical_and_(k < 3), {}, r"write x = x\.logical_and"),
    "held": (lambda b, h, q, k: FLAGS.logical_and_(q > k), {}, "in place"),
    "unread": (lambda b, h, q, k: torch.cumsum(q, 0) >= k, {}, r"`cumsum\(q_idx, 0\)`"),
    "random": (lambda b, h, q, k: torch.rand(()) < q, {}, "random"),
    "head": (lambda b, h, q, k: k < LENGTHS[h], {}, r"`LENGTHS\[h\]` depends on h; pass heads="),
    "batch": (lambda b, h, q, k: k < LENGTHS[b], {}, r"`LENGTHS\[b\]` depends on b.*key_lengths"),
    "few": (lambda b, h, q, k: k < LENGTHS[h], {"heads": 3}, "LENGTHS has 2 elements"),
    "past": (lambda b, h, q, k: TABLE[k + 1] > q, {"n": N}, r"kv_idx \+ 1 = 13, and TABLE has 13"),
    "wraps": (lambda b, h, q, k: NARROW[q % 4] * 200 > k, {}, "uint8 and could reach 600"),
    "below 0": (lambda b, h, q, k: NARROW[q % 4] - 1 > k, {}, "could reach -1"),
    "length": (lambda b, h, q, k: q % 5 <= k % 3, {}, r"`\(q_idx % 5\) <= \(kv_idx % 3\)`.* n="),
    "product": (
        lambda b, h, q, k: q * k % 7 < 3,
        {"n": 65536},
        r"`\(\(q_idx \* kv_idx\) % 7\) < 3`",
    ),
    "arguments": (lambda q, k: q >= k, {}, "raises TypeError.*2 positional"),
    "negative": (noop_mask, {"n": -1}, "n must be at least 0"),
    "huge": (noop_mask, {"n": 2**40}, "n must be at most"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_its_name(name: str) -> None:
    fn, given_lengths, message = REFUSED[name]
    with pytest.raises(pc.PatternError, match=message):
        pc.from_mask_mod(fn, **given_lengths)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(pc.PatternError, match="give a mask function, not 5"):
        pc.from_mask_mod(5)  # type: ignore[arg-type]


def test_a_symbol_is_of_no_use_outside() -> None:
    kept: list[Any] = []

    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        kept.append(q)
        return q >= k

    pc.from_mask_mod(fn)
    with pytest.raises(pc.PatternError, match="outside the mask function"):
        kept[0] + 1


def test_large_tables_stay_linear() -> None:
    """A quarter of a million tokens: a few columns are allocated, never pairs."""
    n = 2**18
    ids = torch.arange(n) // 700
    p = pc.from_mask_mod(lambda b, h, q, k: (ids[q] == ids[k]) & (q >= k))
    assert isinstance(p, pc.Pattern)
    assert len(pc.lower(p, n)) == -(-n // 700)
    side: Mask = lambda b, h, q, k: (  # noqa: E731
        ((q // 512 - k // 512).abs() <= 3) & ((q % 512 - k % 512).abs() <= 3)
    )
    assert str(pc.from_mask_mod(side, n=n)) == "grid([512, 512], [3, 3])"


# --- keys between bounds ------------------------------------------------------------------------


@st.composite
def bounded(draw: st.DrawFn) -> tuple[int, int, list[tuple[list[int], list[int], list[int]]]]:
    """Queries, keys, and functions of the key with bounds for every query."""
    n, n_k = draw(st.integers(1, 12)), draw(st.integers(1, 16))
    value = st.one_of(
        st.lists(st.integers(0, 5), min_size=n_k, max_size=n_k),
        st.integers(1, 6).map(lambda c: [k % c for k in range(n_k)]),
        st.integers(1, 6).map(lambda c: [k // c for k in range(n_k)]),
        st.integers(1, 6).map(lambda c: [-(k // c) for k in range(n_k)]),
    )
    bound = st.lists(st.integers(-2, 7), min_size=n, max_size=n)
    return n, n_k, draw(st.lists(st.tuples(value, bound, bound), min_size=1, max_size=3))


@given(bounded(), st.integers(0, 3), st.integers(0, 3))
def test_keys_between_bounds_whichever_way_they_are_sought(
    case: tuple[int, int, list[tuple[list[int], list[int], list[int]]]], after: int, before: int
) -> None:
    n, n_k, listed = case
    wanted = np.array(
        [
            [
                after <= j < n_k - before
                and all(low[i] <= v[j] <= high[i] for v, low, high in listed)
                for j in range(n_k)
            ]
            for i in range(n)
        ]
    )
    rows = [
        seek.Coordinate.of(np.array(v), np.array(low), np.array(high), n) for v, low, high in listed
    ]
    first, last = np.full(n, after), np.full(n, max(after, n_k - before))
    for way in (seek.Pieces(rows, first, last), seek.Index(rows, first, last)):
        found = np.zeros((n, n_k), dtype=int)
        for part in ([slice(0, n)], [slice(k, k + 1) for k in range(n)]):
            found[:] = 0
            for some in part:
                for row, start, end in zip(*way.runs(some)):
                    found[row, start:end] += 1
            assert found.tolist() == wanted.astype(int).tolist()
    if not (after or before):
        parts = joined(Frame(n, n_k), rows, "a test")
        met = np.logical_and.reduce([pc.lower(p, n, n_k).dense() for p in parts])
        assert met.tolist() == wanted.tolist()


# --- the primitives that tables become ----------------------------------------------------------


def test_many_integers_are_equal_and_hashed_by_content() -> None:
    long, same = pc.spans(range(500)), pc.spans(np.arange(500).tolist())
    assert long == same and hash(long) == hash(same) and len({long, same, pc.spans([0])}) == 2
    assert re.fullmatch(r"spans\(<500 integers, \w{8}>\)", str(long))
    assert str(pc.boxes([0, 2, 0, 2, -1, 1], 2)) == "boxes([0, 2, 0, 2, -1, 1], 2)"
    assert list(pc.spans([3, 4]).first[1:]) == [4]


def test_bounds_are_bound_by_name() -> None:
    p = pc.causal() & pc.spans("first_key", "last_key") & pc.clusters("row_ids", "key_ids")
    given = {"first_key": [0, 0, 1], "last_key": [1, 2, 3], "row_ids": [0, 0, 1]}
    layout = pc.compile(p, 3, **given, key_ids=[0, 1, 1])
    assert layout.dense().tolist() == [[True, False, False]] * 2 + [[False, True, True]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.spans([1], [2, 3]), "1 first keys and 2 last ones"),
        (lambda: pc.spans([0.5]), "list of integers below"),
        (lambda: pc.spans([2**50]), "past 2..43"),
        (lambda: pc.spans(-1), "first must be at least 0"),
        (lambda: pc.spans("n"), "cannot be bound"),
        (lambda: pc.boxes([1, 2, 3]), "give six a box"),
        (lambda: pc.boxes("name"), "list of integers"),
        (lambda: pc.boxes([], n=-1), "n must be at least 0"),
        (lambda: pc.lower(pc.spans([0, 0]), 3), "2 entries for 3 query positions"),
        (lambda: pc.lower(pc.clusters([0, 0, 1], [0]), 3), "keys has 1 labels for 3"),
        (lambda: pc.lower(pc.spans("a_key"), 3), "'a_key' is not bound"),
        (lambda: pc.lower(pc.boxes([0, 9, 0, 9, -9, 9] * 9), 3, max_zones=8), "9 zones"),
    ],
)
def test_bad_bounds_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(pc.PatternValueError, match=message):
        make()


def asks_about_the_head(b: Any, h: Any, q: Any, k: Any) -> Any:
    if h < 2:
        return (q >= k) & (q - k <= 3)
    return q - k == int(h)


def asks_about_the_sequence(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (q >= k) & (k < h + 2) if b == 1 else q >= k


def test_python_may_ask_about_the_head() -> None:
    layer = pc.from_mask_mod(asks_about_the_head, heads=4)
    d = np.subtract.outer(np.arange(12), np.arange(12))
    for h, p in enumerate(pc.Stack([layer]).heads(0)):
        wanted = (d >= 0) & (d <= 3) if h < 2 else d == h
        assert np.array_equal(pc.lower(p, 12).dense(), wanted)
    with pytest.raises(pc.PatternError, match=r"`h < 2` depends on h; pass heads="):
        pc.from_mask_mod(asks_about_the_head)


def test_python_may_ask_about_the_sequence() -> None:
    assert str(pc.from_mask_mod(asks_about_the_sequence, batch=0)) == "causal()"
    layer = pc.from_mask_mod(asks_about_the_sequence, batch=1, heads=2)
    assert str(layer) == "heads([1 x causal() & sink(2), 1 x causal() & sink(3)])"
    with pytest.raises(pc.PatternError, match=r"`b == 1` depends on b; pass batch=0"):
        pc.from_mask_mod(asks_about_the_sequence, heads=2)
