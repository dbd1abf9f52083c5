"""Layouts, held to the dense mask tile by tile, in both directions."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.layout import Layout
from patterncc.layout.build import build
from patterncc.layout.checks import check
from patterncc.layout.cost.choose import choose_block
from patterncc.layout.decode import dense
from patterncc.layout.layers import shortened
from patterncc.zones import Frame, ZoneSet
from patterncc.zones.lower import names_in
from tests.strategies import frames, zone_rows

PATTERN_FILES = Path(__file__).parents[1] / "patterns"

SIDES = st.sampled_from([16, 32, 64, 128, 256])
BLOCKS = st.tuples(SIDES, SIDES)

count = st.integers(0, 90)
LEAVES = st.one_of(
    st.just(pc.causal()),
    st.just(pc.full()),
    st.builds(pc.window, count, count),
    st.builds(pc.window, st.integers(0, 2), st.integers(0, 2), st.sampled_from([8, 16, 32])),
    st.builds(pc.dilated, count, count, st.integers(1, 5)),
    st.builds(pc.strided, st.integers(1, 40)),
    st.builds(pc.chunked, st.integers(1, 70)),
    st.builds(pc.summary, st.integers(9, 40), st.integers(1, 9)),
    st.builds(pc.global_tokens, st.lists(st.integers(0, 120), max_size=5)),
    st.builds(pc.sink, st.integers(0, 40)),
    st.builds(pc.documents, st.lists(st.integers(0, 60), max_size=6)),
    st.builds(pc.random_blocks, st.integers(0, 3), st.sampled_from([4, 16]), st.integers(0, 9)),
    st.builds(pc.random_edges, st.integers(0, 3), st.integers(0, 9)),
)
PATTERNS = st.recursive(
    LEAVES,
    lambda p: st.one_of(
        st.builds(lambda a, b: a | b, p, p),
        st.builds(lambda a, b: a & b, p, p),
        st.builds(lambda a, b: a - b, p, p),
        st.builds(lambda a: ~a, p),
        st.builds(lambda a: a.T, p),
    ),
    max_leaves=4,
)


def tiles(layout: Layout, columns: bool = False) -> dict[tuple[int, int, int], int]:
    """(pattern, tile row, tile column) -> mask word, read from one direction run by run."""
    runs, lines = (layout.cols, layout.columns) if columns else (layout.rows, layout.lines)
    found: dict[tuple[int, int, int], int] = {}
    for line in range(len(runs.ptr) - 1):
        for first, length, word in runs.run[runs.ptr[line] : runs.ptr[line + 1]].tolist():
            for at in range(first, first + length):
                pattern, here = divmod(line, lines)
                place = (pattern, at, here) if columns else (pattern, here, at)
                assert place not in found
                found[place] = word
    return found


def mask_of(layout: Layout, word: int) -> np.ndarray:
    """One mask word as a bool tile, pair by pair."""
    height, width = layout.block
    i, j = np.arange(height)[:, None], np.arange(width)[None, :]
    if word == 0:
        return np.ones((height, width), dtype=bool)
    if word > len(layout.zones):
        bits = layout.bits[word - 1 - len(layout.zones)]
        return ((bits[i, j // 32] >> (j % 32).astype(np.uint32)) & 1).astype(bool)
    tile = np.zeros((height, width), dtype=bool)
    for i0, i1, j0, j1, d0, d1 in layout.zones[word - 1].tolist():
        tile |= (i0 <= i) & (i < i1) & (j0 <= j) & (j < j1) & (d0 <= j - i) & (j - i < d1)
    return tile


def hold(layout: Layout, masks: list[np.ndarray]) -> None:
    """The layout holds exactly these masks, one a pattern: every tile classed as it is, both
    ways.
    """
    height, width = layout.block
    found = tiles(layout)
    assert tiles(layout, columns=True) == found
    for u, mask in enumerate(masks):
        for r in range(layout.lines):
            for c in range(layout.columns):
                tile = mask[r * height : (r + 1) * height, c * width : (c + 1) * width]
                assert ((u, r, c) in found) == bool(tile.any())
                if tile.any():
                    word = found[u, r, c]
                    assert (word == 0) == (bool(tile.all()) and tile.shape[1] == width)
                    whole = mask_of(layout, word)
                    assert (whole[: tile.shape[0], : tile.shape[1]] == tile).all()
                    assert not whole[:, tile.shape[1] :].any()  # keys that do not exist
        assert layout.edges[u] == mask.sum()
    check(layout)


@settings(max_examples=150)
@given(frames(130), zone_rows(8, -4, 200), BLOCKS)
def test_zones_become_their_tiles(
    frame: Frame, rows: list[tuple[int, ...]], block: tuple[int, int]
) -> None:
    z = ZoneSet.make(frame, rows)
    hold(build([z], [0], block), [z.dense()])


@settings(max_examples=150)
@given(PATTERNS, frames(130), BLOCKS)
def test_composed_patterns_become_their_tiles(
    p: pc.Pattern, f: Frame, block: tuple[int, int]
) -> None:
    layout = pc.compile(p, f.n, f.n_k, f.q_offset, f.k_offset, block)
    mask = pc.lower(p, f.n, f.n_k, f.q_offset, f.k_offset).dense()
    hold(layout, [mask])
    assert (layout.dense() == mask).all()
    assert (dense(layout, columns=True) == mask).all()
    assert 0 <= layout.density <= layout.tile_density * 256 * 256
    assert 0 <= layout.tile_density <= 1


@settings(max_examples=60)
@given(st.lists(zone_rows(5, 0, 70), min_size=2, max_size=4), frames(70), st.data())
def test_heads_of_one_layout(
    heads: list[list[tuple[int, ...]]], frame: Frame, data: st.DataObject
) -> None:
    sets = [ZoneSet.make(frame, rows) for rows in heads]
    order = data.draw(st.lists(st.integers(0, len(sets) - 1), min_size=2, max_size=6))
    layout = build(sets, order, (16, 32))
    hold(layout, [z.dense() for z in sets])
    assert (layout.dense() == np.stack([sets[u].dense() for u in order])).all()


@settings(max_examples=60)
@given(st.integers(1, 63), st.integers(1, 63), st.integers(-63, 63), st.integers(1, 96))
def test_zones_that_only_together_fill_a_tile(i: int, j: int, d: int, n: int) -> None:
    """A box cut into pieces, at a row, a key and a diagonal, is one full tile again."""
    frame = Frame.of(n, 96)
    pieces = [
        (a, b, c, e, lo, hi)
        for a, b in ((0, i), (i, n))
        for c, e in ((0, j), (j, 96))
        for lo, hi in ((-999, d), (d, 999))
    ]
    z = ZoneSet.make(frame, pieces)
    layout = build([z], [0], (32, 32))
    hold(layout, [np.ones((n, 96), dtype=bool)])
    assert layout.partial_tiles == 0
    assert len(layout.zones) == len(layout.bits) == 0


def test_each_class_of_mask() -> None:
    n = 64
    few = pc.compile(pc.sink(3) | pc.window(1), n, block=16)
    many = pc.compile(pc.dilated(64, 64, step=3), n, block=16)
    assert (len(few.bits), len(many.zones)) == (0, 0)
    assert len(many.bits) == 3  # a tile's phase is 16 (r - c) mod 3
    assert few.zones[:, 1].any()


def test_duplicate_and_contained_zones_are_one_mask() -> None:
    z = ZoneSet.make(Frame.of(32), [(0, 9, 0, 9, -9, 10), (0, 9, 0, 9, -9, 10), (2, 5, 1, 8, 0, 3)])
    layout = build([z], [0], (32, 32))
    assert layout.zones.tolist() == [[[0, 9, 0, 9, -8, 9], *[[0] * 6] * 3]]


def test_adjoining_zones_are_one() -> None:
    pieces = [(0, 32, 0, 8, -99, 99), (0, 32, 8, 20, -99, 99), (5, 9, 2, 11, -99, 99)]
    z = ZoneSet.make(Frame.of(64), pieces)
    layout = build([z], [0], (32, 32))
    assert layout.zones.tolist() == [[[0, 32, 0, 20, -31, 20], *[[0] * 6] * 3]]


BINDINGS: dict[str, object] = {
    "docs": [100, 150, 50],
    "chunk": [k // 16 % 64 for k in range(1324)],
    "routing": [k * 7 % 4 for k in range(300)],
}


@pytest.mark.parametrize("path", sorted(PATTERN_FILES.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_gallery_compiles(path: Path) -> None:
    stack = pc.load(path).stack
    data = {name: BINDINGS[name] for name in names_in(stack.patterns)}
    for index, layout in enumerate(pc.compile(stack, 300, block=32, **data)[:6]):
        mask = layout.dense()
        for head, p in enumerate(stack.heads(index)):
            z = pc.lower(p, 300, q_offset=stack.memory, layer=index, head=head, **data)
            assert ((mask if layout.heads is None else mask[head]) == z.dense()).all()
        check(layout)


@settings(max_examples=60)
@given(frames(90), zone_rows(12, 0, 90), st.randoms(use_true_random=False))
def test_the_order_of_zones_does_not_matter(
    frame: Frame, rows: list[tuple[int, ...]], shuffled: Random
) -> None:
    z = ZoneSet.make(frame, rows)
    order = list(range(len(z)))
    shuffled.shuffle(order)
    turned = ZoneSet(frame, z.table[order + order[:2]])
    assert build([z], [0], (16, 32)).hash == build([turned], [0], (16, 32)).hash


def test_positions_past_32_bits() -> None:
    """A slice of queries far out, and a frame whose sums need int64, are the small one moved."""
    p = pc.causal() & (pc.window(100) | pc.strided(64))
    small = pc.compile(p & pc.window(999), 300, block=32)
    far = pc.compile(p & pc.window(999), 300, 300, 2**38, 2**38, block=32)
    assert (far.rows.run == small.rows.run).all()
    assert (far.zones == small.zones).all()
    wide = pc.compile(p & pc.window(999), 2**30, 3000, 0, 2**29, block=256)
    z = pc.lower(p & pc.window(999), 4096, 3000, 2**29, 2**29)
    narrow = build([z], [0], (256, 256))
    assert wide.edges == narrow.edges
    assert (wide.rows.run == narrow.rows.run).all()


def test_sizes_at_a_million_tokens() -> None:
    """Runs, not tiles: 33.5 million full tiles are 8,191 runs."""
    n = 2**20
    causal = pc.compile(pc.causal(), n, block=128)
    assert causal.full_tiles == 8192 * 8191 // 2
    assert causal.partial_tiles == 8192
    assert len(causal.rows.run) == len(causal.cols.run) == 2 * 8192 - 1
    assert causal.edges == (n * (n + 1) // 2,)
    assert len(causal.zones) == 1
    p = pc.causal() & (pc.window(511) | pc.global_tokens(range(64)))
    window = pc.compile(p, n, block=128)
    assert len(window.zones) == 4
    assert window.nbytes < 2**20
    assert window.edges == (pc.lower(p, n).count(),)


def peak(make: Callable[[], object]) -> int:
    """The most bytes that were allocated at one time."""
    tracemalloc.start()
    try:
        make()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_at_a_million_tokens() -> None:
    n = 2**20
    p = pc.causal() & (pc.window(511) | pc.global_tokens(range(64)))
    assert peak(lambda: pc.compile(p, n, block=128)) < 10_000_000
    bird = pc.window(1, 1, block=64) | pc.global_tokens(range(64)) | pc.random_blocks(3, block=64)
    assert peak(lambda: pc.compile(bird, n, block=64)) < 50_000_000


def test_a_length_is_refused_before_numpy_loads() -> None:
    code = """
import sys, patterncc as pc
try:
    pc.compile(pc.causal(), 10**12)
except pc.SizeError:
    print("numpy" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_a_hub_row_is_one_run() -> None:
    n = 2**20
    layout = pc.compile(pc.global_tokens([n // 2]), n, block=128)
    row = n // 2 // 128
    runs = layout.rows.run[layout.rows.ptr[row] : layout.rows.ptr[row + 1]].tolist()
    assert [run[1] for run in runs] == [row, 1, 8191 - row]
    column = layout.cols.run[layout.cols.ptr[row] : layout.cols.ptr[row + 1]].tolist()
    assert [run[1] for run in column] == [row, 1, 8191 - row]


def test_too_large_is_refused_before_anything_is_made() -> None:
    for n, n_k in ((10**12, None), (2**31, None), (16, 2**31)):
        with pytest.raises(SizeError, match="longest layout"):
            pc.compile(pc.causal(), n, n_k)
    with pytest.raises(SizeError, match="tile rows of 128 queries"):
        pc.compile(pc.summary(128, 8), 2**20, block=128, order="token")
    with pytest.raises(SizeError, match="partly filled, more than 5; use"):
        pc.compile(pc.causal(), 1000, block=16, max_tiles=5)
    longest = pc.compile(pc.full() - pc.prefix(2**31 - 3), 2**31 - 1, 1, block=256)
    assert longest.edges == (2,)


@pytest.mark.parametrize("block", [8, 512, 48, (16, 16, 16), (64, 0), "64", 64.0, True, (16, None)])
def test_blocks_that_cannot_be(block: object) -> None:
    with pytest.raises(PatternValueError, match="block"):
        pc.compile(pc.causal(), 64, block=block)  # type: ignore[call-overload]


def test_bad_layers_are_named() -> None:
    for p, name in ((pc.recurrent(), "recurrent"), (pc.convolution(4) | pc.sink(1), "convolution")):
        with pytest.raises(PatternError, match=rf"{name}\(.* not attention"):
            pc.compile(p, 64)
    with pytest.raises(PatternError, match="not a pattern"):
        pc.compile("causal()", 64)  # type: ignore[call-overload]
    with pytest.raises(PatternValueError, match="n must be at least 0"):
        pc.compile(pc.causal(), -1)


@pytest.mark.parametrize(("n", "n_k"), [(0, 0), (0, 9), (9, 0), (1, 1)])
def test_empty_sizes(n: int, n_k: int, tmp_path: Path) -> None:
    layout = pc.compile(pc.full(), n, n_k, block=16)
    assert layout.dense().shape == (n, n_k)
    assert layout.edges == (n * n_k,)
    assert layout.density == (1.0 if n * n_k else 0.0)
    layout.save(tmp_path / "x")
    assert Layout.load(tmp_path / "x").hash == layout.hash
    assert "Layout of full()" in str(layout)


def test_heads_share_equal_patterns() -> None:
    a, b = pc.causal() & pc.window(30), pc.causal()
    layout = pc.compile(pc.heads([a, b, a, pc.causal() & pc.window(30, 5)]), 100, block=16)
    assert layout.head_pattern.tolist() == [0, 1, 0, 0]
    assert layout.heads == 4
    wanted = [pc.lower(p, 100).dense() for p in (a, b, a, a)]
    assert (layout.dense() == np.stack(wanted)).all()
    assert layout.density == pytest.approx(np.stack(wanted).mean())


def test_heads_that_draw_differ() -> None:
    draws = pc.random_blocks(1, block=16)
    layout = pc.compile(pc.heads([draws] * 3), 256, block=16)
    assert layout.patterns == 3
    for head in range(3):
        assert (layout.dense()[head] == pc.lower(draws, 256, head=head).dense()).all()
    assert pc.compile(draws, 256, block=16).heads is None


def test_layers_of_a_stack() -> None:
    local, draws = pc.causal() & pc.window(9), pc.random_blocks(1, block=16)
    layouts = pc.compile(pc.Stack([local, draws, local, draws]), 256, block=16)
    assert layouts[0] is layouts[2]
    assert layouts[1].hash != layouts[3].hash
    assert (layouts[3].dense() == pc.lower(draws, 256, layer=3).dense()).all()
    alone = pc.compile(draws, 256, block=16, layer=3)
    assert alone.hash == layouts[3].hash


def test_a_stacks_memory_comes_first() -> None:
    (layout,) = pc.compile(pc.Stack(pc.causal(), memory=40), 64, block=32)
    assert (layout.q_offset, layout.n_k) == (40, 104)
    assert (layout.dense() == pc.lower(pc.causal(), 64, q_offset=40).dense()).all()


def test_bindings_reach_the_pattern() -> None:
    layout = pc.compile(pc.documents("docs"), 64, block=16, docs=[20, 44])
    assert layout.edges == (20 * 20 + 44 * 44,)


def test_the_block_that_costs_least() -> None:
    assert choose_block([pc.lower(pc.causal(), 8192)]) == (128, 128)
    assert choose_block([pc.lower(pc.random_blocks(3, block=64), 8192)]) == (64, 64)
    assert pc.compile(pc.causal(), 8192).block == (128, 128)


def test_very_long_texts_are_shortened() -> None:
    long = pc.clusters([k // 700 for k in range(5000)])
    layout = pc.compile(long, 5000, block=64)
    assert len(layout.pattern) <= 4096
    assert "sha256" in layout.pattern
    assert shortened("causal()") == "causal()"


def test_the_text_of_a_layout_is_stable() -> None:
    p = pc.causal() & (pc.window(20) | pc.sink(4))
    text = str(pc.compile(p, 96, block=32))
    assert text == str(pc.compile(p, 96, block=32))
    assert text.splitlines()[0] == "Layout of causal() & (window(20) | sink(4))"
    assert [line for line in text.splitlines() if "row 2" in line] == [
        "  row 2: 0 mask 2, 1 mask 1, 2 mask 3"
    ]


def test_to_marks_a_device_and_keeps_the_hash() -> None:
    layout = pc.compile(pc.causal(), 64, block=16)
    there = layout.to("cuda:1")
    assert (there.device, layout.device) == ("cuda:1", None)
    assert there.hash == layout.hash
    assert there.rows.run is layout.rows.run


def test_dense_refuses_what_does_not_fit() -> None:
    with pytest.raises(SizeError, match="passes"):
        pc.compile(pc.causal(), 2**17, block=128).dense()
