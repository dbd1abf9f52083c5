"""A layout at another length, held to the pattern at that length and to the slice of its mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc.errors import LayoutError, PatternValueError
from patterncc.kernels.choose import choose
from patterncc.kernels.spec import Spec
from patterncc.layout import Layout
from patterncc.layout.checks import check
from patterncc.layout.decode import dense
from patterncc.pattern import Pattern
from tests.strategies import patterns

SIDES = st.sampled_from([16, 32, 64])
STRUCTURED = [
    pc.causal(),
    pc.full(),
    pc.causal() & (pc.window(100) | pc.sink(4)),
    pc.causal() & pc.chunked(48),
    pc.causal() & (pc.window(31) | pc.summary(40, 3)),
    pc.window(30, 70) | pc.global_tokens([3, 150]),
    pc.causal() & pc.documents([100, 60, 200]),
    pc.causal() | pc.prefix(70),
    pc.causal() & pc.random_blocks(2, block=16, past=True),
    pc.full() - pc.window(20, 20),
]


def held(layout: Layout) -> np.ndarray:
    """Both directions of a sound layout."""
    check(layout)
    mask = layout.dense()
    assert (dense(layout, columns=True) == mask).all()
    return mask


@settings(max_examples=150, deadline=None)
@given(patterns(), st.tuples(SIDES, SIDES), st.integers(0, 64), st.integers(0, 64), st.data())
def test_a_cut_is_a_slice_of_the_mask(
    p: Pattern, block: tuple[int, int], n: int, n_k: int, data: st.DataObject
) -> None:
    whole = pc.compile(p, n, n_k, block=block, order="token")
    short, keys = data.draw(st.integers(0, n)), data.draw(st.integers(0, n_k))
    part = whole.at(short, keys)
    assert (part.n, part.n_k) == (short, keys)
    assert (held(part) == whole.dense()[:short, :keys]).all()
    again = data.draw(st.integers(0, short))
    assert (held(part.at(again, keys)) == whole.dense()[:again, :keys]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(patterns(), min_size=1, max_size=3), st.integers(1, 64), st.data())
def test_heads_and_offsets_are_cut_alike(heads: list[Pattern], n: int, data: st.DataObject) -> None:
    q, k = data.draw(st.integers(0, 8)), data.draw(st.integers(0, 8))
    whole = pc.compile(pc.heads(heads), n, None, q, k, block=16, order="token")
    part = whole.at(data.draw(st.integers(0, n)))
    assert part.n_k == max(0, q + part.n - k)
    assert (held(part) == whole.dense()[..., : part.n, : part.n_k]).all()


@pytest.mark.parametrize("p", STRUCTURED, ids=str)
@pytest.mark.parametrize("block", [16, (64, 32), (32, 128)])
def test_a_cut_is_what_a_compilation_gives(p: Pattern, block: int | tuple[int, int]) -> None:
    """Not only the same mask: the same arrays, hash and all."""
    whole = pc.compile(p, 330, block=block, order="token")
    for n in (0, 1, 15, 16, 64, 100, 128, 200, 329):
        assert whole.at(n).hash == pc.compile(p, n, block=block, order="token").hash, n


def test_a_cut_of_equal_masks_at_a_million_tokens() -> None:
    p = pc.causal() & (pc.window(511) | pc.global_tokens(range(64)))
    whole = pc.compile(p, 2**20, block=128, order="token")
    for n in (2**20 - 1, 700_001, 5000):
        assert whole.at(n).hash == pc.compile(p, n, block=128, order="token").hash


def test_the_same_length_is_the_same_layout() -> None:
    layout = pc.compile(pc.causal(), 100, block=16)
    assert layout.at(100) is layout


def test_keys_of_their_own_number_stay() -> None:
    """Queries of a decoder read every key of the encoder, however many there are of them."""
    cross = pc.compile(pc.full() - pc.window(3, 3), 90, 50, block=16, order="token")
    assert (held(cross.at(20)) == cross.dense()[:20]).all()
    assert cross.at(20, 33).n_k == 33
    assert (cross.at(120).n, cross.at(120).n_k) == (120, 50)


@pytest.mark.parametrize("p", STRUCTURED, ids=str)
def test_growth_is_a_compilation(p: Pattern) -> None:
    short = pc.compile(p, 100, block=32)
    grown = short.at(360)
    assert grown.hash == pc.compile(p, 360, block=32).hash
    assert grown.at(100).hash == short.hash
    assert grown.at(50).at(300).hash == pc.compile(p, 300, block=32).hash


def test_growth_keeps_the_block_that_was_chosen() -> None:
    short = pc.compile(pc.causal() & pc.window(8), 8192)
    assert short.at(2**16).block == short.block


def test_growth_of_heads_layers_offsets_and_bindings() -> None:
    layer = pc.heads([pc.causal() & pc.random_blocks(2, block=16, past=True), pc.causal()])
    short = pc.compile(layer, 64, q_offset=32, block=16, layer=3)
    assert (short.at(128).dense() == pc.compile(layer, 128, q_offset=32, layer=3).dense()).all()
    labels = pc.compile(pc.clusters("kind"), 60, block=16, kind=[0, 1] * 40)
    assert (labels.at(80).dense() == pc.lower(pc.clusters([0, 1] * 40), 80).dense()).all()
    with pytest.raises(PatternValueError, match="kind has 80 labels for 81 positions"):
        labels.at(81)


@pytest.mark.parametrize(
    "p",
    [
        pc.causal() & pc.random_blocks(2, block=16),
        pc.window(5) | pc.random_edges(3),
        ~pc.expander(4, block=16).T,
    ],
    ids=str,
)
def test_draws_for_one_length_are_cut_and_never_grown(p: Pattern) -> None:
    whole = pc.compile(p, 256, block=16, order="token")
    assert (held(whole.at(130)) == whole.dense()[:130, :130]).all()
    with pytest.raises(PatternValueError, match=r"cannot grow: the edges of .* another graph"):
        whole.at(257)
    with pytest.raises(PatternValueError, match="compile once at the longest length"):
        whole.at(130).at(256)


def test_a_layout_from_a_file_is_cut_and_never_grown(tmp_path: Path) -> None:
    p = pc.causal() & (pc.window(60) | pc.sink(3))
    pc.compile(p, 300, block=32).save(tmp_path / "layout")
    loaded = Layout.load(tmp_path / "layout")
    assert loaded.at(99).hash == pc.compile(p, 99, block=32).hash
    with pytest.raises(LayoutError, match="holds no pattern, as layouts from files"):
        loaded.at(301)


STRIDES = pc.causal() & pc.strided(16)


@pytest.mark.parametrize(
    ("p", "order"),
    [
        (STRIDES, "residue"),
        (STRIDES | pc.causal() & pc.window(20), "residue"),
        (pc.clusters([i * 7 % 5 for i in range(400)]), "clusters"),
        (pc.causal() & pc.window(40), np.arange(300)[::-1]),
        (pc.full() - pc.window(3, 3), (np.arange(300)[::-1], np.roll(np.arange(300), 7))),
    ],
    ids=["residue", "two terms", "clusters", "reversed", "a pair"],
)
def test_orders_are_cut(p: Pattern, order: object) -> None:
    whole = pc.compile(p, 300, block=16, order=order)
    assert any(t.order is not None for t in whole.terms)
    for n in (299, 130, 16, 0):
        assert (whole.at(n).dense() == whole.dense()[:n, :n]).all()
    assert (whole.at(90, 130).dense() == whole.dense()[:90, :130]).all()
    if isinstance(order, str):
        assert (whole.at(400).dense() == pc.lower(p, 400).dense()).all()
    else:
        with pytest.raises(PatternValueError, match="its order is a permutation that was given"):
            whole.at(301)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(patterns(), min_size=1, max_size=2),
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from([16, (32, 16), (16, 64)]),
    st.data(),
)
def test_a_cut_of_any_order(
    heads: list[Pattern], n: int, n_k: int, block: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(n))), data.draw(st.permutations(range(n_k)))
    whole = pc.compile(pc.heads(heads), n, n_k, block=block, order=order)
    short, keys = data.draw(st.integers(0, n)), data.draw(st.integers(0, n_k))
    part = whole.at(short, keys)
    assert (held(part) == whole.dense()[..., :short, :keys]).all()


def test_orders_from_a_file_are_cut(tmp_path: Path) -> None:
    whole = pc.compile(STRIDES | pc.causal() & pc.window(20), 300, block=16, order="residue")
    whole.save(tmp_path / "layout")
    loaded = Layout.load(tmp_path / "layout")
    for n in (299, 100, 0):
        assert (held(loaded.at(n)) == whole.dense()[:n, :n]).all()
    with pytest.raises(LayoutError, match="holds no pattern"):
        loaded.at(301)


def test_a_cut_of_an_order_keeps_its_tiles_dense() -> None:
    """Classes of a stride lose their ends: the tiles that are left are near those of a
    compilation."""
    p = pc.causal() & pc.strided(64)
    whole = pc.compile(p, 2**15, block=64, order="residue")
    part, wanted = whole.at(20_000), pc.compile(p, 20_000, block=64, order="residue")
    assert part.edges == wanted.edges
    assert part.full_tiles == wanted.full_tiles
    assert part.partial_tiles == wanted.partial_tiles
    assert not len(part.bits)


def test_terms_in_token_order_are_cut_one_by_one() -> None:
    first = pc.compile(pc.causal() & pc.window(30), 200, block=16, order="token")
    second = pc.compile(pc.causal() - pc.window(99), 200, block=(32, 64), order="token")
    both = replace(first, rest=(second,))
    assert (both.at(150).dense() == both.dense()[:150, :150]).all()
    assert len(both.at(150).terms) == 2
    assert not both.at(90).rest  # nothing of the second is left


def test_sequences_of_a_batch_are_cut_alike() -> None:
    layout = pc.compile(pc.heads([pc.causal(), pc.window(5, 5)]), 100, block=16, order="token")
    batch = replace(layout, sequences=2, head_pattern=np.array([0, 1, 1, 1], dtype=np.int32))
    assert (batch.at(37).dense() == batch.dense()[..., :37, :37]).all()


def test_batches_are_cut_and_never_grown() -> None:
    ids = np.repeat([0, 1, 2], [30, 50, 20])
    layout = pc.compile(pc.causal() & pc.window(20), 100, block=16, doc_ids=[ids, ids[::-1]])
    assert layout.sequences == 2
    part = layout.at(61)
    assert (part.dense() == layout.dense()[..., :61, :61]).all()
    assert (part.varies, part.sequences) == (layout.varies, 2)
    assert digest(part) == digest(layout)
    with pytest.raises(LayoutError, match="as layouts from files and of batches"):
        layout.at(101)


def test_lengths_that_cannot_be() -> None:
    layout = pc.compile(pc.causal(), 100, block=16)
    for n in (-1, 2**31):
        with pytest.raises(PatternValueError, match=r"layout\.at: n must be"):
            layout.at(n)
    with pytest.raises(PatternValueError, match=r"layout\.at"):
        layout.at(1.5)  # type: ignore[arg-type]


def digest(layout: Layout) -> str:
    spec = Spec.of(layout, "triton")
    return choose("forward", spec, "sm_90", "bfloat16", 128, 128).digest


@pytest.mark.parametrize("p", STRUCTURED, ids=str)
def test_lengths_share_their_kernel(p: Pattern) -> None:
    """Wherever the mask classes agree the plan is the same, so no kernel is generated again."""
    whole = pc.compile(p, 640, block=64, order="token")

    def classes(layout: Layout) -> tuple[int, bool]:
        spec = Spec.of(layout, "triton")
        return spec.zones, spec.bits

    same = [n for n in range(64, 640, 37) if classes(whole.at(n)) == classes(whole)]
    assert same
    assert {digest(whole.at(n)) for n in same} == {digest(whole)}
