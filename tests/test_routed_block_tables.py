"""Tables of chosen blocks that torch makes where the choice lives, held to the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

import patterncc as pc
from patterncc.kernels.routed import RoutedLayout, pattern_of_heads, prepared, routed_blocks
from patterncc.kernels.routed_block_tables import BlockTables, block_tables
from patterncc.kernels.routed_blocks import Choice, sides_for
from tests.oracles_routed import block_mask
from tests.test_dynamic import Recorded, tiles_of
from tests.test_routed import STATIC
from tests.test_routed_blocks import drawn_blocks


def on_device(
    chosen: torch.Tensor,
    n: int,
    block: int,
    grain: int,
    static: pc.Layout | None,
    causal: bool,
    tile: tuple[int, int] | None = None,
) -> RoutedLayout:
    """What `routed_blocks` makes on a device, where the choice is."""
    sequences, heads = chosen.shape[:2]
    tile = static.block if static is not None else tile or sides_for(block, grain)
    which, none = pattern_of_heads(static, sequences, heads), np.zeros((0, 0, 0), dtype=np.int64)
    choice = Choice(none, n, block, grain, causal, tile, static, which)
    tables = block_tables(chosen.flatten(0, 1), choice, sequences)
    return RoutedLayout(n, heads, sequences, tile, chosen.device, "", tables)


def held(made: RoutedLayout, *, by_key: bool) -> torch.Tensor:
    """The mask [B, H, n, n] as a kernel sees it tile by tile, and the tables' form."""
    x = made.tiles
    assert isinstance(x, BlockTables)
    _, row_ptr, row_run, col_ptr, col_run, zone, bits, bits_by_key = x.tables[:8]
    (bm, bn), zones = made.block, zone[:, :, :6].numpy()
    drawn = tiles_of(bits_by_key, bm).transpose(0, 2, 1) if by_key else tiles_of(bits, bn)
    sides = x.spec.q_lines, x.spec.k_lines
    ptr, run = (t.tolist() for t in ((col_ptr, col_run) if by_key else (row_ptr, row_run)))
    i, j = np.arange(bm)[:, None], np.arange(bn)[None, :]

    def of(word: int) -> NDArray[np.bool_]:
        if not word:
            return np.ones((bm, bn), dtype=bool)
        if word > len(zones):
            return drawn[word - 1 - len(zones)]
        tile = np.zeros((bm, bn), dtype=bool)
        for i0, i1, j0, j1, d0, d1 in zones[word - 1]:
            tile |= (i0 <= i) & (i < i1) & (j0 <= j) & (j < j1) & (d0 <= j - i) & (j - i < d1)
        return tile

    count = made.sequences * made.heads
    out = np.zeros((count, sides[0] * bm, sides[1] * bn), dtype=np.int8)
    tiles = 0
    for line in range(len(ptr) - 1):
        head, own = divmod(line, sides[by_key])
        behind = 0
        for first, many, word, before in run[ptr[line] : ptr[line + 1]]:
            assert (many, before) == (1, tiles) and first >= behind
            behind, tiles = first + 1, tiles + 1
            r, c = (first, own) if by_key else (own, first)
            assert word or (c + 1) * bn <= made.n
            out[head, r * bm : (r + 1) * bm, c * bn : (c + 1) * bn] += of(word)
    assert run[ptr[-1]] == run[ptr[-1] + 1] == [0, 0, 0, tiles]
    assert out.max(initial=0) <= 1 and not out[:, : made.n, made.n :].any()
    mask = torch.from_numpy(out[:, : made.n, : made.n].astype(bool))
    return mask.view(made.sequences, made.heads, made.n, made.n)


@settings(max_examples=80)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.integers(1, 200),
    st.one_of(st.integers(1, 70), st.sampled_from([16, 64, 128])),
    st.one_of(st.integers(1, 70), st.sampled_from([1, 64, 128])),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from(STATIC),
    st.sampled_from([16, 32, (16, 128), (128, 32)]),
    st.integers(0, 99),
)
def test_tables_hold_the_mask(
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
    made = on_device(chosen, n, block, grain, static, causal)
    mask = block_mask(chosen, n, block, grain, causal, static)
    for by_key in (False, True):
        assert torch.equal(held(made, by_key=by_key), mask)
    assert torch.equal(made.dense(), mask)
    assert list(made.edges) == mask.sum((2, 3)).flatten().tolist()
    assert isinstance(made.tiles, BlockTables)
    assert torch.equal(made.tiles.unread.expand(*shape, -1), ~mask.any(2))


def test_heads_of_the_static_layout() -> None:
    static = pc.compile(pc.heads([pc.causal() & pc.window(9), pc.window(2, 2)]), 60, block=16)
    chosen = drawn_blocks((2, 2), 60, 16, 16, 2, 0)
    made = on_device(chosen, 60, 16, 16, static, True)
    mask = block_mask(chosen, 60, 16, 16, True, static)
    assert torch.equal(held(made, by_key=False), mask)
    assert torch.equal(held(made, by_key=True), mask)


@pytest.mark.parametrize(("block", "grain"), [(64, 64), (16, 1)])
@pytest.mark.parametrize("pattern", STATIC[:4], ids=str)
def test_nothing_waits_for_the_device(pattern: pc.Pattern | None, block: int, grain: int) -> None:
    """Meta tensors have no values, and fake ones refuse to give theirs."""
    static = None if pattern is None else pc.compile(pattern, 300, block=64, order="token")
    shapes = set()
    reads = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal"}
    sizes = (2, 2, -(-300 // grain), 3)
    for device in ("meta", "cpu"):
        chosen = torch.zeros(sizes, dtype=torch.int64, device=device)
        on_device(chosen, 300, block, grain, static, True)  # tables that stay are made once
        with Recorded() as seen:
            made = on_device(chosen, 300, block, grain, static, True)
        assert isinstance(made.tiles, BlockTables)
        assert not seen.names & (reads | {"_copy_from", "lift_fresh"})
        assert all(t.device.type == device and t.dtype == torch.int32 for t in made.tiles.tables)
        shapes.add(tuple(t.shape for t in made.tiles.tables))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.zeros(sizes, dtype=torch.int64)
        tables = on_device(fake, 300, block, grain, static, True).tiles
        assert isinstance(tables, BlockTables)
        shapes.add(tuple(t.shape for t in tables.tables))
    assert len(shapes) == 1


def test_it_goes_there_for_a_choice_on_a_device() -> None:
    chosen = torch.zeros(2, 2, 5, 3, dtype=torch.int64, device="meta")
    made = routed_blocks(chosen, n=300, block=64, causal=True)
    assert isinstance(made.tiles, BlockTables) and made.device.type == "meta"
    with pytest.raises(pc.BackendError, match="tensors on cpu, a layout routed on meta"):
        prepared(made, torch.device("cpu"), "auto")


def test_sizes_of_long_sequences() -> None:
    """Eight heads of 32,768 tokens: a map of tiles both ways; refused where bits would be many."""
    chosen = torch.zeros(1, 8, 256, 8, dtype=torch.int64, device="meta")
    made = routed_blocks(chosen, n=32768, block=128, causal=True)
    assert made.nbytes < 50 * 2**20
    each = torch.zeros(1, 8, 32768, 8, dtype=torch.int64, device="meta")
    with pytest.raises(pc.SizeError, match="use a grain and blocks of whole tiles"):
        routed_blocks(each, n=32768, block=64, grain=1, causal=True)
