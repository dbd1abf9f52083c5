"""Exporters, each held to the layout's dense mask: by its format's own rules, or by running it."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import BlockMask, create_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import patterncc as pc
from patterncc.errors import (
    LayoutError,
    PatternError,
    PatternValueError,
    PatternWarning,
    SizeError,
)
from patterncc.integrations.tiles import check_layout
from tests.test_layout import BLOCKS, PATTERNS


@st.composite
def layouts(draw: st.DrawFn, most: int = 3, sides: Any = BLOCKS, empty: bool = True) -> pc.Layout:
    """Composed patterns, several heads, several sequences, ragged and sliced, in token order."""
    heads, sequences = draw(st.integers(1, most)), draw(st.integers(1, 2))
    patterns = draw(st.lists(PATTERNS, min_size=heads * sequences, max_size=heads * sequences))
    n, start = draw(st.integers(0 if empty else 1, 150)), draw(st.integers(0, 90))
    n_k = draw(st.sampled_from([None, 1, 96, 130]))
    layer = pc.heads(patterns) if heads * sequences > 1 else patterns[0]
    made = pc.compile(layer, n, n_k, start, block=draw(sides), order="token")
    return replace(made, sequences=sequences)


def dense(layout: pc.Layout) -> NDArray[np.bool_]:
    """bool [sequences, heads, n, n_k]."""
    return layout.dense().reshape(layout.sequences, layout.heads or 1, layout.n, layout.n_k)


def tile_sums(mask: NDArray[np.bool_], block: tuple[int, int]) -> NDArray[np.int64]:
    """How many pairs each tile holds, [..., rows, columns]; what is missing is not held."""
    *lead, n, n_k = mask.shape
    down, across = -(-n // block[0]), -(-n_k // block[1])
    whole = np.zeros((*lead, down * block[0], across * block[1]), dtype=np.int64)
    whole[..., :n, :n_k] = mask
    return whole.reshape(*lead, down, block[0], across, block[1]).sum(axis=(-3, -1))


def listed(count: Any, index: Any) -> list[list[int]]:
    """The entries that lists [..., lines, width] hold, line by line."""
    width = index.shape[-1]
    pairs = zip(count.reshape(-1).tolist(), index.reshape(-1, width).tolist(), strict=True)
    return [line[:many] for many, line in pairs]


def entries(chosen: NDArray[np.bool_]) -> list[list[int]]:
    """Which are True, line by line."""
    return [np.flatnonzero(line).tolist() for line in chosen.reshape(-1, chosen.shape[-1])]


# ---- FlexAttention


@settings(max_examples=40)
@given(layouts(empty=False), st.booleans())
def test_block_masks_are_the_layout(layout: pc.Layout, compact: bool) -> None:
    mask = pc.to_flex(layout, compact=compact)
    b, h = np.ix_(*map(range, layout.head_pattern.reshape(layout.sequences, -1).shape))
    i, j = torch.arange(layout.n)[:, None], torch.arange(layout.n_k)
    said = mask.mask_mod(*(torch.tensor(x)[..., None, None] for x in (b, h)), i, j)
    assert (np.broadcast_to(said.numpy(), dense(layout).shape) == dense(layout)).all()
    assert_lists_are_those_of_a_padded_mask(mask, layout)


def assert_lists_are_those_of_a_padded_mask(mask: BlockMask, layout: pc.Layout) -> None:
    """As create_block_mask makes them, the transposed ones too."""
    sums = tile_sums(dense(layout), layout.block)
    full = sums == layout.block[0] * layout.block[1]
    for kind, chosen in (("", (sums > 0) & ~full), ("full_", full)):
        for side, way in (("kv", chosen), ("q", chosen.swapaxes(-1, -2))):
            count, index = (
                getattr(mask, f"{kind}{side}_{what}") for what in ("num_blocks", "indices")
            )
            if count is None:
                assert not chosen.any()
                continue
            assert count.dtype == index.dtype == torch.int32
            assert count.shape == way.shape[:-1] and index.shape == way.shape
            assert listed(count, index) == entries(way)


def test_a_mask_function_takes_the_indices_that_torch_gives_it() -> None:
    layout = pc.compile(pc.heads([pc.causal(), pc.window(3, 9)]), 70, block=32)
    found = create_mask(pc.to_flex(layout).mask_mod, 2, 2, 70, 70, "cpu")
    assert (found.numpy() == layout.dense()).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # its compiler, of itself
def test_flex_attention_gives_what_attention_gives() -> None:
    """Compiled and not; two sequences, two heads, a ragged end, rows that read nothing."""
    quiet = pc.window(40) - pc.window(0)
    near = pc.causal() & (pc.window(70) | pc.random_blocks(1, block=16, seed=3))
    layer = pc.heads([near, quiet, pc.causal(), near | pc.global_tokens([3, 50])])
    layout = replace(pc.compile(layer, 300, block=64, order="token"), sequences=2)
    q, k, v = torch.randn(3, 2, 2, 300, 32, generator=torch.manual_seed(0)).unbind()
    wanted = pc.attention(q, k, v, layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that uncompiled it is slow
        plain = flex_attention(q, k, v, block_mask=pc.to_flex(layout, backward=False))
    torch.testing.assert_close(plain, wanted, rtol=0, atol=2e-6)
    compiled = torch.compile(flex_attention)
    mask = pc.to_flex(layout, backward=False, compact=True)
    torch.testing.assert_close(compiled(q, k, v, block_mask=mask), wanted, rtol=0, atol=2e-6)


def test_new_masks_of_one_shape_do_not_recompile() -> None:
    made = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        made.append(graph)
        return graph.forward

    compiled = torch.compile(flex_attention, backend=backend)
    q, k, v = torch.randn(3, 1, 1, 256, 16).unbind()
    for left in (140, 90, 70, 120, 99):
        layout = pc.compile(pc.causal() & pc.window(left), 256, block=32)
        out = compiled(q, k, v, block_mask=pc.to_flex(layout))
        torch.testing.assert_close(out, pc.attention(q, k, v, layout), rtol=0, atol=2e-6)
    assert len(made) <= 2  # the first, and one for sizes that change


def test_block_masks_of_a_million_tokens() -> None:
    """Refused by size before anything is made; compact rows take as much as they hold."""
    layout = pc.compile(pc.causal() & (pc.window(1023) | pc.sink(4)), 2**20, block=128)
    tracemalloc.start()
    with pytest.raises(SizeError, match=r"8192 x 8192 blocks .* use compact=True"):
        pc.to_flex(layout)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    mask = pc.to_flex(layout, compact=True, backward=False)
    assert mask.kv_indices.shape == (1, 1, 8192, 8192) and mask.q_indices is None
    assert mask.kv_indices.untyped_storage().nbytes() < 2**18
    rows = torch.arange(0, 2**20, 4099)
    reach = mask.mask_mod(torch.tensor(0), torch.tensor(0), rows[:, None], rows - 1023)
    assert torch.equal(reach.diagonal(), rows >= 1023)


def test_block_masks_without_tokens_are_named() -> None:
    with pytest.raises(PatternValueError, match="0 and 4"):
        pc.to_flex(pc.compile(pc.full(), 0, 4, block=16))


# ---- FlashInfer


def flashinfer_mask(blocks: Any) -> NDArray[np.bool_]:
    """What the wrapper computes: each block row is one request over the pages of its blocks, its
    mask a run of bits, queries by keys."""
    mask = np.zeros((blocks.M, blocks.N), dtype=bool)
    flat, at = blocks.flat_mask, 0
    for r in range(len(blocks.indptr) - 1):
        pages = blocks.indices[blocks.indptr[r] : blocks.indptr[r + 1]]
        keys = (pages[:, None] * blocks.C + np.arange(blocks.C)).reshape(-1)
        queries = np.arange(r * blocks.R, min((r + 1) * blocks.R, blocks.M))
        size = len(queries) * len(keys)
        bits = np.ones(size, dtype=bool) if flat is None else flat[at : at + size]
        at += size
        mask[np.ix_(queries, keys)] = bits.reshape(len(queries), len(keys))
    return mask


@settings(max_examples=40)
@given(layouts())
def test_flashinfer_blocks_are_the_layout(layout: pc.Layout) -> None:
    for b, h in np.ndindex(dense(layout).shape[:2]):
        mask = dense(layout)[b, h]
        if not mask.any():
            with pytest.raises(PatternValueError, match="no edge"):
                pc.to_flashinfer(layout, head=h, sequence=b)
            continue
        blocks = pc.to_flashinfer(layout, head=h, sequence=b)
        assert blocks.N % blocks.C == 0 and blocks.N - blocks.padding == layout.n_k
        assert (blocks.indices < blocks.N // blocks.C).all()
        if blocks.mask is not None:
            assert blocks.mask.shape == (len(blocks.indices), *layout.block)
        found = flashinfer_mask(blocks)
        assert (found[:, : layout.n_k] == mask).all() and not found[:, layout.n_k :].any()


def test_flashinfer_plans_take_tensors_and_whole_blocks_no_mask() -> None:
    whole = pc.to_flashinfer(pc.compile(pc.chunked(32), 96, block=32))
    assert whole.mask is None and whole.flat_mask is None
    plan = whole.plan("cpu")
    assert plan["mask"] is None and plan["indptr"].dtype == plan["indices"].dtype == torch.int32
    assert {name: plan[name] for name in "MNRC"} == {"M": 96, "N": 96, "R": 32, "C": 32}
    masked = pc.to_flashinfer(pc.compile(pc.causal(), 96, block=32)).plan("cpu")
    assert masked["mask"].dtype == torch.bool


def test_flashinfer_wants_one_mask_of_a_bearable_size() -> None:
    layout = pc.compile(pc.heads([pc.causal(), pc.full()]), 64, block=32)
    with pytest.raises(PatternValueError, match=r"2 different masks .* head= and sequence="):
        pc.to_flashinfer(layout)
    with pytest.raises(PatternValueError, match=r"head 2 of a layout for 2: 0 \.\. 1"):
        pc.to_flashinfer(layout, head=2)
    with pytest.raises(SizeError, match="3 blocks of 32 x 32 would take 3,072 bytes"):
        pc.to_flashinfer(layout, head=0, max_bytes=3071)
    assert pc.to_flashinfer(pc.compile(pc.causal(), 64, block=32), head=7).M == 64


# ---- FlashAttention 4


@settings(max_examples=40)
@given(layouts(sides=st.tuples(*[st.sampled_from([64, 128, 256])] * 2), empty=False))
def test_fa4_tensors_and_tables_are_the_layout(layout: pc.Layout) -> None:
    made, masks = pc.to_fa4(layout), dense(layout)
    b, h = np.ix_(*map(range, masks.shape[:2]))
    i, j = np.arange(layout.n)[:, None], np.arange(layout.n_k)
    said = made.mask(b[..., None, None], h[..., None, None], i, j)
    assert (np.broadcast_to(said, masks.shape) == masks).all()
    sums = tile_sums(masks, layout.block)
    whole = sums == layout.block[0] * layout.block[1]
    for columns, way in enumerate((made.forward, made.backward)):
        assert way.block_size == layout.block
        for name, chosen in (("mask", (sums > 0) & ~whole), ("full", whole)):
            chosen = chosen.swapaxes(-1, -2) if columns else chosen
            count, index = (getattr(way, f"{name}_block_{what}") for what in ("cnt", "idx"))
            if count is None:
                assert index is None and not chosen.any()
                continue
            assert count.dtype == index.dtype == np.int32
            assert count.shape == chosen.shape[:3] == index.shape[:3]
            assert index.shape[3] <= max(1, chosen.shape[3])
            assert listed(count, index) == entries(chosen)


def test_fa4_names_blocks_and_sizes_that_it_cannot_have() -> None:
    with pytest.raises(PatternValueError, match=r"block=\(256, 128\)"):
        pc.to_fa4(pc.compile(pc.causal(), 64, block=32))
    with pytest.raises(SizeError, match="more than max_bytes=1,000"):
        pc.to_fa4(pc.compile(pc.causal(), 256, block=64), max_bytes=1000)
    tensors = pc.to_fa4(pc.compile(pc.causal(), 256, block=128)).forward.tensors("cpu")
    assert tensors["block_size"] == (128, 128)
    assert tensors["mask_block_idx"].tolist() == [[[[0], [1]]]]


# ---- SDPA


@settings(max_examples=25)
@given(layouts())
def test_sdpa_masks_are_the_layout(layout: pc.Layout) -> None:
    mask, bias = pc.to_sdpa(layout), pc.to_sdpa(layout, kind="bias", dtype=torch.float16)
    assert mask.dtype == torch.bool and bias.dtype == torch.float16
    assert (mask.numpy() == dense(layout)).all()
    assert torch.equal(bias == 0, mask) and torch.equal(bias == -torch.inf, ~mask)


@pytest.mark.parametrize("kind", ["bool", "bias"])
def test_sdpa_gives_what_attention_gives(kind: Any) -> None:
    """Rows that read nothing too, and their gradients."""
    layer = pc.heads([pc.causal() & pc.window(9), pc.window(9) - pc.window(0)])
    layout = pc.compile(layer, 50, block=16)
    x = torch.randn(3, 2, 2, 50, 8, generator=torch.manual_seed(0))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = pc.attention(*ours.unbind(), layout)
    found = scaled_dot_product_attention(*theirs.unbind(), pc.to_sdpa(layout, kind=kind))
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
    wanted.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(theirs.grad, ours.grad, rtol=0, atol=2e-5)


def test_dense_masks_are_measured_before_they_are_made() -> None:
    layout = pc.compile(pc.causal(), 2**16, block=128)
    with pytest.raises(SizeError, match=r"1 x 1 x 65536 x 65536 of torch.bool .* 4,294,967,296"):
        pc.to_sdpa(layout)
    with pytest.raises(SizeError, match=r"torch.float32"):
        pc.to_sdpa(pc.compile(pc.causal(), 2**15, block=128), kind="bias")
    with pytest.warns(PatternWarning, match="takes 272,250,000 bytes, its layout"):
        pc.to_sdpa(pc.compile(pc.window(9), 16_500, block=128))


def test_kinds_and_dtypes_of_dense_masks_are_checked() -> None:
    layout = pc.compile(pc.causal(), 8, block=16)
    with pytest.raises(PatternValueError, match="did you mean 'bias'"):
        pc.to_sdpa(layout, kind="biases")  # type: ignore[arg-type]
    with pytest.raises(PatternValueError, match='give kind="bias"'):
        pc.to_sdpa(layout, dtype=torch.float32)
    with pytest.raises(PatternValueError, match=r"torch.int32 cannot hold"):
        pc.to_sdpa(layout, kind="bias", dtype=torch.int32)


# ---- scipy


@settings(max_examples=40)
@given(layouts())
def test_sparse_matrices_are_the_layout(layout: pc.Layout) -> None:
    for b, h in np.ndindex(dense(layout).shape[:2]):
        mask = dense(layout)[b, h]
        at = {"head": h, "sequence": b}
        csr, coo = pc.to_csr(layout, **at), pc.to_coo(layout, **at)
        assert csr.has_canonical_format and csr.nnz == coo.nnz == mask.sum()
        assert (csr.toarray() == mask).all() and (coo.toarray() == mask).all()
        blocks = pc.to_bsr(layout, **at)
        assert blocks.sum() == mask.sum()
        assert (blocks.toarray()[: layout.n, : layout.n_k] == mask).all()
        counts = pc.to_csr(layout, **at, tiles=True)
        assert (counts.toarray() == tile_sums(mask, layout.block)).all()
        assert counts.nnz == (tile_sums(mask, layout.block) > 0).sum()


@settings(max_examples=40)
@given(PATTERNS, st.integers(0, 90), st.integers(0, 60))
def test_sparse_matrices_of_patterns_come_back(p: pc.Pattern, n: int, start: int) -> None:
    zones = pc.lower(p, n, None, start)
    matrix = pc.to_csr(p, n, q_offset=start)
    assert (matrix.toarray() == zones.dense()).all() and matrix.shape == zones.dense().shape
    if n and not start:
        assert pc.lower(pc.from_scipy(matrix), n).equals(zones)


def test_sparse_matrices_of_stacks_and_heads() -> None:
    stack = pc.Stack([pc.causal(), pc.heads([pc.window(1), pc.window(3)])], memory=4)
    first = pc.to_csr(stack, 6)
    assert first.shape == (6, 10) and first.nnz == 5 + 6 + 7 + 8 + 9 + 10
    with pytest.raises(PatternValueError, match="2 heads that differ; choose one"):
        pc.to_csr(stack, 6, layer=1)
    assert pc.to_coo(stack, 6, layer=1, head=1).nnz == 24
    drawn = pc.heads([pc.random_edges(2)] * 2)
    masks = pc.compile(drawn, 40, block=16, order="token").dense()
    for head in (0, 1):
        assert (pc.to_csr(drawn, 40, head=head).toarray() == masks[head]).all()
    labels = pc.to_csr(pc.clusters("who"), 4, who=[0, 1, 0, 1])
    assert labels.nnz == 8


def test_layouts_of_several_orders_are_put_back() -> None:
    """Two terms, one of them reordered: edges and dense masks are by position."""
    rng = np.random.default_rng(5)
    near = pc.causal() & pc.window(7)
    far = (pc.causal() & pc.strided(10)) - near
    order = rng.permutation(90)
    first = pc.compile(near, 90, block=32, order="token")
    both = replace(first, rest=(pc.compile(far, 90, block=16, order=order),))
    wanted = pc.lower(near | far, 90).dense()
    assert (pc.to_csr(both).toarray() == wanted).all()
    assert (pc.to_coo(both).toarray() == wanted).all()
    assert (pc.to_sdpa(both)[0, 0].numpy() == wanted).all()


def test_sparse_matrices_are_bounded_before_they_are_made() -> None:
    with pytest.raises(SizeError, match="549,756,338,176 edges"):
        pc.to_csr(pc.causal(), 2**20)
    layout = pc.compile(pc.causal(), 2**20, block=128)
    with pytest.raises(SizeError, match="549,756,338,176 edges"):
        pc.to_coo(layout)
    with pytest.raises(SizeError, match="33,558,528 tiles, more than max_edges"):
        pc.to_csr(layout, tiles=True)
    with pytest.raises(SizeError, match="33558528 tiles of 128 x 128"):
        pc.to_bsr(layout)


def test_what_has_no_tiles_or_no_length_is_named() -> None:
    layout = pc.compile(pc.causal(), 8, block=16)
    with pytest.raises(PatternError, match="has no length; give n"):
        pc.to_csr(pc.causal())
    with pytest.raises(PatternError, match=r"pc.compile\(p, n, block=...\)"):
        pc.to_csr(pc.causal(), 8, tiles=True)
    with pytest.raises(PatternError, match="a layout has its length"):
        pc.to_csr(layout, 8)
    with pytest.raises(PatternError, match="Stack, a Pattern or"):
        pc.to_csr(scipy.sparse.eye_array(3))


# ---- all of them


@pytest.mark.parametrize(
    "export", [pc.to_flex, pc.to_flashinfer, pc.to_fa4, pc.to_deepspeed, pc.to_bsr]
)
def test_orders_that_tiles_cannot_tell_are_refused_with_the_remedy(export: Any) -> None:
    plain = pc.compile(pc.causal(), 128, block=64, order="token")
    turned = pc.compile(pc.causal(), 128, block=64, order=np.arange(128)[::-1])
    assert turned.order is not None
    with pytest.raises(LayoutError, match=r'its tokens in the order .*order="token"'):
        export(turned)
    empty = replace(pc.compile(pc.full() - pc.full(), 128, block=64), order=None)
    with pytest.raises(LayoutError, match=r'2 terms; .*order="token"'):
        export(replace(plain, rest=(empty,)))
    with pytest.raises(PatternError, match=r"give what pc.compile returns"):
        export((plain, plain))


def test_what_is_no_layout_is_named() -> None:
    with pytest.raises(PatternError, match=r"to_sdpa: .* not a Window"):
        pc.to_sdpa(pc.window(3))  # type: ignore[arg-type]
    layout = pc.compile(pc.causal(), 8, block=16)
    assert check_layout("here", layout) is layout


def test_exporters_of_arrays_do_without_torch() -> None:
    code = """
import sys
import patterncc as pc
layout = pc.compile(pc.causal(), 256, block=128)
pc.to_flashinfer(layout), pc.to_fa4(layout), pc.to_csr(layout), pc.to_bsr(layout)
pc.to_deepspeed(layout, partial="cover"), pc.from_deepspeed({"mode": "bigbird"})
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
