"""Mask functions of FlexAttention read into patterns, held to torch's own evaluation of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

import patterncc as pc
from tests.maskmods import GYM, OTHERS

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


@settings(max_examples=400)
@given(conditions, st.integers(0, N), st.integers(0, N))
def test_whatever_is_read_is_exact(condition: Term, n: int, n_k: int) -> None:
    def fn(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return condition(q_idx, kv_idx)

    wanted = broadcast(condition, n, n_k)
    p = pc.from_mask_mod(fn, n=n, n_k=n_k)
    assert isinstance(p, pc.Pattern)
    assert np.array_equal(pc.lower(p, n, n_k).dense(), wanted), str(p)


@settings(max_examples=200)
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
    """The masks of attention-gym itself, where it is installed."""
    if importlib.util.find_spec("attn_gym") is None:
        return {}
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
