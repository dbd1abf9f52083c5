"""Tables of clusters that torch makes where their members live, read back and held to the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

import patterncc as pc
from patterncc.kernels import routed
from patterncc.kernels.choose import choose
from patterncc.kernels.emit import emit
from patterncc.kernels.offline import compile_offline
from patterncc.kernels.plan import Kind
from patterncc.kernels.routed import RoutedLayout, prepared, routed_blocks, routed_clusters
from patterncc.kernels.routed_block_tables import BlockTables
from patterncc.kernels.routed_device import SlotTables, slot_tables
from tests.oracles_routed import cluster_mask, members_of
from tests.test_dynamic import Recorded, tiles_of
from tests.test_routed import STATIC, clusters, compiled


def on_device(
    members: torch.Tensor,
    n: int,
    static: pc.Layout | None,
    causal: bool,
    block: tuple[int, int],
) -> RoutedLayout:
    """What `routed_clusters` makes on a device, where the members are."""
    sequences, heads, count, width = members.shape
    rows, keys = (
        routed._slots(members, n, causal, static, by_key=by_key) for by_key in (False, True)
    )
    tables = slot_tables(rows, keys, sequences * heads * count, width, block, causal)
    return RoutedLayout(n, heads, sequences, block, members.device, "", tables, rows, static)


def held(made: RoutedLayout, *, by_key: bool) -> NDArray[np.bool_]:
    """Which slots read which, tile by tile as a kernel sees them, and the tables' form."""
    assert isinstance(made.tiles, SlotTables)
    spec = made.tiles.spec
    _, row_ptr, row_run, col_ptr, col_run, zone, bits, bits_by_key = made.tiles.tables[:8]
    (bm, bn), size = spec.block, spec.n
    drawn = tiles_of(bits_by_key, bm).transpose(0, 2, 1) if by_key else tiles_of(bits, bn)
    ptr, run = (t.tolist() for t in ((col_ptr, col_run) if by_key else (row_ptr, row_run)))
    sides = spec.q_lines, spec.k_lines
    assert not len(zone) and len(ptr) == 1 + sides[by_key]
    out = np.zeros((sides[0] * bm, sides[1] * bn), dtype=np.int8)
    tiles = 0
    for line in range(len(ptr) - 1):
        behind = 0
        for first, count, word, before in run[ptr[line] : ptr[line + 1]]:
            assert (count, before) == (1, tiles) and first >= behind
            behind, tiles = first + 1, tiles + 1
            r, c = (first, line) if by_key else (line, first)
            tile = drawn[word - 1] if word else np.ones((bm, bn), dtype=bool)
            assert word or (c + 1) * bn <= size
            out[r * bm : (r + 1) * bm, c * bn : (c + 1) * bn] += tile
    assert run[tiles] == [0, 0, 0, tiles] and len(run) == tiles + 2
    assert out.max(initial=0) <= 1
    return out[:size, :size].astype(bool)


def by_tokens(made: RoutedLayout, slots: NDArray[np.bool_]) -> torch.Tensor:
    """Pairs of slots, and the static ones, as a mask [B, H, n, n]."""
    assert made.slots is not None
    order = made.slots.order.numpy()
    rows = np.zeros((made.sequences * made.heads * made.n, made.n), dtype=np.int8)
    query, key = np.nonzero(slots)
    assert (order[query] // made.n == order[key] // made.n).all()
    np.add.at(rows, (order[query], order[key] % made.n), 1)
    mask = torch.from_numpy(rows).view(made.sequences, made.heads, made.n, made.n)
    if made.static is not None:
        mask = mask + torch.from_numpy(made.static.dense()).to(torch.int8)
    assert int(mask.max()) <= 1
    return mask.bool()


@settings(max_examples=100)
@given(
    clusters(),
    st.booleans(),
    st.sampled_from(STATIC),
    st.sampled_from([(16, 16), (32, 64), (128, 32)]),
)
def test_tables_hold_the_mask(
    drawn: tuple[torch.Tensor, int],
    causal: bool,
    pattern: pc.Pattern | None,
    block: tuple[int, int],
) -> None:
    members, n = drawn
    static = compiled(pattern, n)
    made = on_device(members, n, static, causal, block)
    mask = cluster_mask(members, n, causal, static)
    for by_key in (False, True):
        assert torch.equal(by_tokens(made, held(made, by_key=by_key)), mask)
    assert torch.equal(made.dense(), mask)
    assert list(made.edges) == mask.sum((2, 3)).flatten().tolist()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", STATIC[:4], ids=str)
def test_nothing_waits_for_the_device(pattern: pc.Pattern | None, causal: bool) -> None:
    """Meta tensors have no values, and fake ones refuse to give theirs."""
    static = compiled(pattern, 300)
    shapes = set()
    reads = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal"}
    for device in ("meta", "cpu"):
        members = torch.zeros(2, 2, 3, 100, dtype=torch.int64, device=device)
        on_device(members, 300, static, causal, (128, 64))  # tables that stay are made once
        with Recorded() as seen:
            made = on_device(members, 300, static, causal, (128, 64))
        assert isinstance(made.tiles, SlotTables)
        assert not seen.names & (reads | {"_copy_from", "lift_fresh"})
        assert all(t.device.type == device and t.dtype == torch.int32 for t in made.tiles.tables)
        shapes.add(tuple(t.shape for t in made.tiles.tables))
    assert len(shapes) == 1
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.zeros(2, 2, 3, 100, dtype=torch.int64)
        tables = on_device(fake, 300, static, causal, (128, 64)).tiles
        assert isinstance(tables, SlotTables)
        shapes.add(tuple(t.shape for t in tables.tables))
    assert len(shapes) == 1


def test_it_goes_there_for_members_on_a_device() -> None:
    members = torch.zeros(2, 2, 3, 100, dtype=torch.int64, device="meta")
    static = compiled(pc.causal() & pc.window(9), 300)
    made = routed_clusters(members, n=300, static=static, causal=True)
    assert isinstance(made.tiles, SlotTables) and made.device.type == "meta"
    assert "2 x 2 heads, 300 tokens, block 64 x 64, on meta" in repr(made)
    with pytest.raises(pc.BackendError, match="tensors on cpu, a layout routed on meta"):
        prepared(made, torch.device("cpu"), "auto")


def test_the_tables_of_a_long_batch_are_small() -> None:
    """Eight heads of 32,768 tokens in 256 clusters: bits of both sides, and a few lists."""
    members = torch.zeros(1, 8, 256, 128, dtype=torch.int64, device="meta")
    made = routed_clusters(members, n=32768, causal=True)
    assert made.nbytes < 20 * 2**20


def test_backends_on_a_device() -> None:
    members = members_of(1, 2, 60, 3, 20, [20, 5, 11] * 2, 3)
    made = on_device(members, 60, compiled(pc.window(4), 60), True, (32, 32))
    q, k, v = torch.randn(3, 1, 2, 60, 16).unbind()
    out = pc.attention(q, k, v, made, backend="reference")
    same = routed_clusters(members, n=60, static=made.static, causal=True)
    torch.testing.assert_close(out, pc.attention(q, k, v, same), rtol=1e-4, atol=1e-5)
    with pytest.raises(pc.BackendError, match="runs on the Triton kernels"):
        pc.attention(q, k, v, made)


def test_kernels_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What clusters and blocks ask for, compiled for a GPU that is not here."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    members = torch.zeros(1, 2, 8, 128, dtype=torch.int64, device="meta")
    chosen = torch.zeros(1, 2, 8, 2, dtype=torch.int64, device="meta")
    static = pc.compile(pc.causal() & (pc.window(200) | pc.sink(4)), 1024, block=128)
    clusters = routed_clusters(members, n=1024, static=static, causal=True)
    blocks = routed_blocks(chosen, n=1024, block=128, static=static, causal=True)
    kinds: tuple[Kind, ...] = ("dkdv", "forward")
    for kind, made in zip(kinds, (clusters, blocks), strict=True):
        assert isinstance(made.tiles, SlotTables | BlockTables)
        plan = choose(kind, made.tiles.spec, "sm_90", "bfloat16", 64, 64)
        used = compile_offline(emit(plan), plan)
        assert used.fits and used.stack == 0
        assert used.tensor_cores.keys() == {"wgmma.mma_async"}
