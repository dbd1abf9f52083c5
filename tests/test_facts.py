"""What is known of attention topologies, row by row: closed forms, papers, and what models do.

Windows are written with the token itself counted, as the papers do.
"""

from __future__ import annotations

from math import ceil, log2, pi
from typing import Any

import networkx
import numpy as np
import pytest

import patterncc as pc
from patterncc import gallery
from patterncc.analysis.graph.spectrum import spectrum
from patterncc.config import read
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Stack


def full_at(stack: Stack | Pattern | Heads, n: int) -> int | None:
    return pc.analyze(stack, n).depth_to_full


def window_of(width: int) -> Pattern:
    """A causal window of `width` keys."""
    return pc.window(width - 1)


def within(n: int, back: int) -> int:
    """Causal pairs at most `back` apart."""
    return sum(min(i, back) + 1 for i in range(n))


@pytest.mark.parametrize(("n", "width"), [(256, 16), (1024, 64)])
def test_a_causal_window_reaches_depth_times_width_less_one(n: int, width: int) -> None:
    r = pc.analyze(window_of(width), n, depth=18)
    assert r.depth_to_full == 17 == ceil((n - 1) / (width - 1))
    assert [f.lo for f in r.reach] == [within(n, l * (width - 1)) for l in range(19)]
    assert all(f.exact for f in r.reach)


@pytest.mark.parametrize(("n", "half"), [(1024, 32), (1000, 7), (4096, 4095)])
def test_a_bidirectional_window_is_full_where_the_ends_meet(n: int, half: int) -> None:
    assert full_at(pc.window(half, half), n) == ceil((n - 1) / half)


def test_mistral_reaches_131040_back() -> None:
    """The paper says 131,072."""
    shipped = {"model_type": "mistral", "num_hidden_layers": 32, "sliding_window": 4096}
    stacks = [pc.load(gallery.path("mistral-7b")).stack, Stack.from_hf(shipped)]
    assert stacks[0].layers == stacks[1].layers
    assert pc.analyze(stacks[0], 200_000).reach[32].lo == within(200_000, 131_040)
    assert full_at(stacks[0], 131_041) == 32
    assert full_at(stacks[0], 131_042) == 33


@pytest.mark.parametrize("n", [9, 64, 4096, 2**20, 2**40])
def test_one_two_way_global_token_makes_two_layers_of_any_length(n: int) -> None:
    assert full_at(pc.global_tokens([7]), n) == 2


def test_causal_sinks_relay_nothing_forward() -> None:
    assert full_at(window_of(16), 256) == 17
    assert full_at(pc.causal() & (window_of(16) | pc.sink(4)), 256) == 17
    both_ways = pc.window(15, 15) | pc.global_tokens(range(4))
    assert full_at(both_ways, 256) == 2


def test_chunks_alone_are_never_full() -> None:
    r = pc.analyze(pc.causal() & pc.chunked(64), 512, depth=4)
    assert r.depth_to_full is None and r.full.never
    assert r.pairs_name == "causal"
    assert [round(100 * f.share, 1) for f in r.reach[1:]] == [12.7] * 4
    assert r.witness == (64, 0)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_one_full_layer_in_k_is_full_at_layer_k(k: int) -> None:
    assert full_at(Stack([window_of(512)] * (k - 1) + [pc.causal()]), 32_768) == k


@pytest.mark.parametrize(
    ("config", "depth"),
    [
        ({"model_type": "gemma3_text", "num_hidden_layers": 26, "sliding_window": 512}, 6),
        ({"model_type": "gemma2", "num_hidden_layers": 26, "sliding_window": 4096}, 2),
        ({"model_type": "gpt_oss", "num_hidden_layers": 24, "sliding_window": 128}, 2),
    ],
)
def test_gemma_and_gpt_oss_are_full_at_their_first_full_layer(
    config: dict[str, Any], depth: int
) -> None:
    assert full_at(Stack.from_hf(config), 32_768) == depth


@pytest.mark.parametrize("name", ["gemma-3", "gpt-oss"])
def test_the_gallery_says_the_same(name: str) -> None:
    assert full_at(pc.load(gallery.path(name)).stack, 32_768) == {"gemma-3": 6, "gpt-oss": 2}[name]


def test_sparse_transformer_strided_is_full_at_two_in_any_order() -> None:
    local, far = window_of(17), pc.causal() & pc.strided(16)
    assert full_at(pc.heads([local, far]), 256) == 2
    assert full_at(Stack([local, far]), 256) == 2
    assert full_at(Stack([far, local]), 256) == 2


@pytest.mark.parametrize("n", [2, 3, 64, 100, 256, 4095, 65_536])
def test_logsparse_is_full_at_the_floor_of_log2(n: int) -> None:
    assert full_at(pc.logsparse(), n) == int(log2(n))


def test_a_hypercube_of_256_blocks_has_diameter_8() -> None:
    assert full_at(pc.butterfly(block=16), 256 * 16) == 8
    blocks = pc.to_networkx(pc.butterfly(block=1), 256).to_undirected()
    assert networkx.diameter(blocks) == 8


@pytest.mark.parametrize("step", [2, 3, 4, 8])
def test_pure_dilation_is_never_full_and_covers_one_residue(step: int) -> None:
    r = pc.analyze(pc.dilated(8 * step, step=step), 2048, depth=300)
    assert r.depth_to_full is None
    assert r.reach[-1].share == pytest.approx(1 / step, abs=1e-3)
    assert r.reach[-1].lo == r.reach[-2].lo


@pytest.mark.parametrize(
    ("segments", "rates", "n"),
    [([16, 64, 256], [1, 4, 16], 256), ([64, 256], [1, 4], 1024), ([8, 16, 32], [1, 2, 4], 128)],
)
def test_causal_longnet_is_never_full(segments: list[int], rates: list[int], n: int) -> None:
    assert full_at(pc.causal() & pc.longnet(segments, rates), n) is None


@pytest.mark.parametrize("n", [64, 256, 1024, 4096])
def test_bidirectional_longnet_takes_a_logarithm(n: int) -> None:
    """Segments and rates that double up to the whole length."""
    sizes = range(int(log2(n)) - 3)
    p = pc.longnet([16 * 2**k for k in sizes], [2**k for k in sizes])
    depth = full_at(p, n)
    assert depth is not None and depth <= 2 * log2(n)


@pytest.mark.parametrize("degree", [3, 4, 8])
@pytest.mark.parametrize("n", [1000, 20_000])
def test_a_random_regular_graph_has_its_second_eigenvalue_near_the_bound(
    n: int, degree: int
) -> None:
    """Alon and Boppana: 2 sqrt(d - 1). The measure counts the self-loops, which are taken off."""
    second = spectrum(pc.expander(degree, block=1, seed=1), n).second * (degree + 1) - 1
    assert second == pytest.approx(2 * (degree - 1) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("n", "w"), [(512, 4), (1024, 8), (20_000, 8)])
def test_the_gap_of_a_window_on_a_ring_and_on_a_path(n: int, w: int) -> None:
    ring = pc.from_networkx(networkx.circulant_graph(n, list(range(1, w + 1))))
    closed = 2 * pi**2 / 3 * w * (w + 1) / n**2
    for pattern, expected in ((ring, closed), (pc.window(w, w), closed / 4)):
        gap = spectrum(pattern, n).gap
        assert gap.value == pytest.approx(expected, rel=0.02)
        assert gap.lo <= 1.02 * expected and gap.hi >= 0.98 * expected


def test_the_heuristic_range_stands_beside_the_exact_sweep() -> None:
    r = pc.analyze(Stack([window_of(64)] * 12), 4096, alpha=0.95)
    assert r.heuristic_range == 1.5 * 64
    assert r.influence is not None and r.influence.alpha == 0.95
    assert 0 <= r.influence.q50 < r.influence.q99 <= 12 * 63
    assert r.to_json()["heuristic_range"] == 96
    assert pc.analyze(pc.causal(), 64).heuristic_range is None


def big_bird_draws(n: int, training: bool) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The blocks that transformers' BigBird base draws at n tokens, by its own functions."""
    big_bird = pytest.importorskip("transformers.models.big_bird.modeling_big_bird")
    config = pytest.importorskip("transformers").BigBirdConfig(
        hidden_size=64, num_attention_heads=2
    )
    layer = big_bird.BigBirdBlockSparseAttention(config).train(training)
    np.random.seed(0)
    if n in (1024, 3072, 4096):
        return np.asarray(layer._bigbird_block_rand_mask(4096, 4096, 64, 64, 3, last_idx=1024))
    ends, counts = layer._get_rand_attn_plan(n, 64, 3)
    return np.asarray(layer._bigbird_block_rand_mask_with_head(n, n, 64, 64, 2, ends, counts))


@pytest.mark.parametrize(
    ("n", "first", "last_block"),
    [(2048, 704, 9), (3584, 704, 9), (1024, 1024, 15), (3072, 1024, 15), (4096, 1024, 15)],
)
def test_big_bird_as_shipped(n: int, first: int, last_block: int) -> None:
    """Random keys of the first 704 tokens alone (of them the last block is left out too), or of
    the first 1024; in evaluation none."""
    drawn = big_bird_draws(n, training=True)
    assert drawn.min() == 1 and drawn.max() == last_block < first // 64
    assert not big_bird_draws(n, training=False).any()
    told = " ".join(read({"model_type": "big_bird"}, length=n).notes)
    assert (
        f"draws 3 random blocks a row and head, seeded by the layer, from the first {first}" in told
    )
    assert "in evaluation the random blocks of the shipped code are all block 0" in told
