"""Mask functions as FlexAttention's users write them, in our own words: (function, n, n_k, text).

The text is the pattern that is read, or "" where it is a table of boxes.  The first part stands for
what attention-gym 0.0.17 has in attn_gym.masks, under its names there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import and_masks, noop_mask, or_masks

Mask = Callable[..., Any]
Case = tuple[Mask, int, int, str]

OFFSETS = torch.tensor([0, 3, 7, 12], dtype=torch.int32)
DOCUMENT = torch.repeat_interleave(torch.arange(3, dtype=torch.int32), OFFSETS.diff())


def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q >= k


def inside(size: int, mask: Mask) -> Mask:
    """A mask within groups of `size` tokens, positions counted in the group."""
    return lambda b, h, q, k: (q // size == k // size) & mask(b, h, q % size, k % size)


def packed(mask: Mask) -> Mask:
    """A mask within documents, positions counted in the document."""

    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        own, other = DOCUMENT[q], DOCUMENT[k]
        return (own == other) & mask(b, h, q - OFFSETS[own], k - OFFSETS[other])

    return fn


def diffusion(length: int, block: int) -> Mask:
    """Noised tokens before clean ones: noised blocks read themselves and the clean ones before."""

    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        noisy_q, noisy_k = q < length, k < length
        mine, theirs = q % length // block, k % length // block
        own = (mine == theirs) & (noisy_q == noisy_k)
        earlier = (mine > theirs) & noisy_q & ~noisy_k
        clean = (mine >= theirs) & ~(noisy_q | noisy_k)
        return own | earlier | clean

    return fn


def pictures(b: Any, h: Any, q: Any, k: Any) -> Any:
    """Keys are the tokens of two images of 4; a text token reads the image whose span it is in."""
    spans = torch.tensor([[0, 7], [7, 12]])
    first, last = spans[torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])[k]].unbind(-1)
    return (first <= q) & (q < last)


def hubs(window: int) -> Mask:
    """A window both ways, and tokens that all read and that read all."""
    chosen = torch.tensor([k in (0, 5, 10) for k in range(12)])
    near: Mask = lambda b, h, q, k: (q - k).abs() <= window  # noqa: E731
    return or_masks(near, lambda b, h, q, k: chosen[q] | chosen[k])


def draft_tree(prefix: int) -> Mask:
    """Tree nodes read the prefix and their ancestors."""
    above = torch.eye(5, dtype=torch.bool)
    for node, parent in ((1, 0), (2, 0), (3, 1), (4, 2)):
        above[node] |= above[parent]

    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        node = torch.clamp(k - prefix, 0, 4)
        return (k < prefix) | ((k >= prefix) & (k < prefix + 5) & above[q, node])

    return fn


def draft_blocks(prefix: int, block: int) -> Mask:
    """Sampled blocks read the prefix and, causally, themselves."""

    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        at = k - prefix
        own = (q // block == at // block) & (at % block <= q % block)
        return (k < prefix) | ((k >= prefix) & own)

    return fn


def canvas(place: Callable[[Any], tuple[Any, Any]], side: int, reach: int) -> Mask:
    """NATTEN on a square: a window of 2 reach + 1 cells, moved inside at the borders."""

    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        seen = torch.ones((), dtype=torch.bool)
        for x, y in zip(place(q), place(k)):
            centre = x.clamp(reach, side - 1 - reach)
            seen = seen & (centre - reach <= y) & (y <= centre + reach)
        return seen

    return fn


def rows(width: int) -> Callable[[Any], tuple[Any, Any]]:
    return lambda i: (i // width, i % width)


def tiles(width: int, tile: int) -> Callable[[Any], tuple[Any, Any]]:
    def place(i: Any) -> tuple[Any, Any]:
        t, o = i // tile**2, i % tile**2
        return t % (width // tile) * tile + o % tile, t // (width // tile) * tile + o // tile

    return place


def morton(i: Any) -> tuple[Any, Any]:
    """Every second bit of a place on a Morton curve, and the others."""
    x = sum(((i >> (2 * bit)) & 1) << bit for bit in range(4))
    y = sum(((i >> (2 * bit + 1)) & 1) << bit for bit in range(4))
    return x, y


def tiled_window(shape: tuple[int, ...], cell: int, kernel: int, text: int) -> Mask:
    """Sliding tiles of a video, each read whole, and text that reads and is read by all."""

    def digits(i: Any) -> list[Any]:
        found, rest = [], i // cell
        for size in reversed(shape):
            found.insert(0, rest % size if len(found) + 1 < len(shape) else rest)
            rest = rest // size
        return found

    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        whole = cell * int(torch.tensor(shape).prod())
        seen = (q < whole) & (k < whole)
        left, right = kernel // 2, kernel // 2 + kernel % 2 - 1
        for size, x, y in zip(shape, digits(q), digits(k)):
            centre = x.clamp(left, size - 1 - right)
            seen = seen & (y >= centre - left) & (y <= centre + right)
        written = (k >= whole) & (k < whole + text)
        return seen | ((q < whole) & written) | ((q >= whole) & (k < whole + text))

    return fn


def frames(prompt: int, tokens: int, width: int) -> Mask:
    """The same place in every frame of a video, and a prompt before them."""

    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        near = torch.abs((q - prompt) % tokens - (k - prompt) % tokens) < width
        return (k < prompt) | (q < prompt) | near

    return fn


def chosen_tiles(tile: int) -> Mask:
    """Key tiles chosen for each query tile, the padding of the last left out."""
    top = torch.tensor([[[[0, 1], [1, 2], [0, 2]]]])
    real = torch.tensor([4, 3, 2])

    def fn(b: Any, h: Any, q: Any, k: Any) -> Any:
        picked = (top[b, h, q // tile] == (k // tile).unsqueeze(-1)).any(dim=-1)
        return picked & (k % tile < real[k // tile])

    return fn


GYM: dict[str, Case] = {
    "causal_mask": (causal, 20, 20, "causal()"),
    "noop_mask": (noop_mask, 9, 9, "full()"),
    "batchify_mask_mod": (inside(4, causal), 18, 18, "chunked(4) & causal()"),
    "generate_block_diffusion_mask": (diffusion(8, 4), 16, 16, ""),
    "generate_dilated_sliding_window": (
        lambda b, h, q, k: ((q - k).abs() <= 4) & (abs(q - k) % 2 == 0),
        20,
        20,
        "window(4, 4) & strided(2)",
    ),
    "generate_doc_mask_mod": (packed(causal), 12, 12, "causal() & documents([3, 4, 5])"),
    "generate_packed_causal_doc_mask_mod": (
        lambda b, h, q, k: (k >= OFFSETS[DOCUMENT[q]]) & causal(b, h, q, k),
        12,
        12,
        "causal() & documents([3, 4, 5])",
    ),
    "generate_vision_cross_attention_mask_mod": (
        pictures,
        12,
        8,
        "spans([0, 0, 0, 0, 7, 7, 7, 7], [7, 7, 7, 7, 12, 12, 12, 12]).T",
    ),
    "generate_global_sliding_window": (hubs(2), 12, 12, "global_tokens([0, 5, 10]) | window(2, 2)"),
    "generate_jetspec_tree_causal_mask_mod": (draft_tree(3), 5, 8, ""),
    "generate_jetspec_training_mask_mod": (draft_blocks(3, 4), 8, 11, ""),
    "generate_natten": (canvas(rows(6), 6, 1), 36, 36, 'grid([6, 6], [1, 1], "shift")'),
    "generate_tiled_natten": (canvas(tiles(8, 4), 8, 1), 64, 64, ""),
    "generate_morton_natten": (canvas(morton, 8, 1), 64, 64, ""),
    "generate_prefix_lm_mask": (
        or_masks(lambda b, h, q, k: k < 4, causal),
        20,
        20,
        "sink(4) | causal()",
    ),
    "generate_shared_prefix_mask_mod": (
        lambda b, h, q, k: (
            ((k >= OFFSETS[DOCUMENT[q]]) & (q >= k)) | ((DOCUMENT[q] != 0) & (k < OFFSETS[1]))
        ),
        12,
        12,
        "",
    ),
    "generate_sliding_window": (
        and_masks(lambda b, h, q, k: q - k <= 3, causal),
        20,
        20,
        "window(3)",
    ),
    "generate_sta_mask_mod_2d": (tiled_window((4, 4), 4, 2, 3), 67, 67, ""),
    "generate_sta_mask_mod_3d": (tiled_window((2, 3, 3), 2, 3, 0), 36, 36, ""),
    "generate_spatial_head_mask_mod": (
        lambda b, h, q, k: (k < 7) | (q < 2) | ((q - k).abs() < 8),
        22,
        22,
        "sink(7) | sink(2).T | window(7, 7)",
    ),
    "generate_temporal_head_mask_mod": (frames(2, 5, 2), 22, 22, ""),
    "generate_vsa_mask_mod": (chosen_tiles(4), 12, 12, ""),
}

PAGES = torch.tensor([[2, -1, 0, 1]])


def paged(b: Any, h: Any, q: Any, k: Any) -> Any:
    """Keys in pages of 4 in any order; page 1 is free."""
    page = PAGES[b, k // 4]
    return torch.where(page >= 0, q >= page * 4 + k % 4, False)


IDS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]])
PLACES = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]])
IMAGES = torch.tensor([[-1, -1, 0, 0, 0, -1, -1, 1, 1, -1, 2, 2, 2, -1]])
ENDS = torch.tensor([4] * 4 + [8] * 4 + [14] * 6)
SUBTREE = torch.tensor([14, 7, 4, 4, 5, 7, 7, 14, 10, 10, 13, 12, 13, 14])
TURNS = torch.tensor([[-2, -2, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]])


def packed_places(b: Any, h: Any, q: Any, k: Any) -> Any:
    """Packed documents by ids and by positions that start again, as transformers has them."""
    x, y = PLACES[b, q], PLACES[b, k]
    return (IDS[b, q] == IDS[b, k]) & (y <= x) & (y > x - 3)


def segments(b: Any, h: Any, q: Any, k: Any) -> Any:
    """Both in one of several segments, by comparing with all of them."""
    first, last = torch.tensor([2, 6, 9]), torch.tensor([4, 8, 14])
    own = (q >= first) & (q < last)
    return (q >= k) & ((q >= 9) | (own & (k >= first) & (k < last)).any())


def turns(b: Any, h: Any, q: Any, k: Any) -> Any:
    """The last turns of a conversation and its beginning; padding never."""
    turn = TURNS[b, k]
    return (q >= k) & (turn != -2) & ((turn == -1) | (turn == 0) | (turn > TURNS[b, q] - 2))


LENGTHS = torch.tensor([5, 9])
VALID = torch.tensor([[True] * 9, [False] * 2 + [True] * 7])

OTHERS: dict[str, Case] = {
    "packed places": (packed_places, 14, 14, ""),
    "images among text": (
        lambda b, h, q, k: (q >= k) | ((IMAGES[b, q] == IMAGES[b, k]) & (IMAGES[b, q] >= 0)),
        14,
        14,
        "",
    ),
    "chunks after padding": (
        lambda b, h, q, k: (q >= k) & ((k - 3) // 4 == (q - 3) // 4),
        14,
        14,
        "causal() & clusters([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3])",
    ),
    "frames of a video": (lambda b, h, q, k: (k < ENDS[q]) | (q == k), 14, 14, ""),
    "subtrees": (lambda b, h, q, k: (k <= q) & (q < SUBTREE[k]), 14, 14, ""),
    "segments": (segments, 14, 14, ""),
    "turns": (turns, 14, 14, ""),
    "memory slots": (
        lambda b, h, q, k: (((q - (k - 2)).abs() <= 3) & (q >= k - 2)) | (k <= 1),
        14,
        14,
        "window(1, 2) | sink(2)",
    ),
    "paged attention": (paged, 12, 16, ""),
    "key lengths": (lambda b, h, q, k: k < LENGTHS[b], 9, 9, "sink(5)"),
    "padding as in transformers": (
        and_masks(causal, lambda b, h, q, k: VALID[b, k]),
        9,
        9,
        "causal() & boxes([0, 9, 0, 9, -8, 9], 9, 9)",
    ),
    "chunked attention": (
        and_masks(causal, lambda b, h, q, k: k // 4 == q // 4),
        14,
        14,
        "causal() & chunked(4)",
    ),
    "a decode step": (lambda b, h, q, k: q + 7 >= k, 3, 12, "window(-1, 7)"),
    "sinks and a window": (
        lambda b, h, q, k: (q >= k) & ((k < 4) | (q - k < 8)),
        20,
        20,
        "causal() & (sink(4) | window(7, -1))",
    ),
    "transfusion": (  # images of tokens 3..6 and 9..11 read themselves both ways
        lambda b, h, q, k: (
            (q >= k)
            | ((q >= 3) & (q < 7) & (k >= 3) & (k < 7))
            | ((q >= 9) & (q < 12) & (k >= 9) & (k < 12))
        ),
        14,
        14,
        "",
    ),
    "butterfly": (
        lambda b, h, q, k: ((q // 2) ^ (k // 2)) & ((q // 2 ^ k // 2) - 1) == 0,
        16,
        16,
        "",
    ),
    "powers of two": (lambda b, h, q, k: (q >= k) & ((q - k) & (q - k - 1) == 0), 20, 20, ""),
    "every eighth": (lambda b, h, q, k: k % 8 == 3, 20, 20, "summary(8, 5) - summary(8, 4)"),
    "a grid": (
        lambda b, h, q, k: ((q // 6 - k // 6).abs() <= 1) & ((q % 6 - k % 6).abs() <= 2),
        30,
        30,
        "grid([5, 6], [1, 2])",
    ),
    "floats": (lambda b, h, q, k: torch.floor(q / 4) == torch.floor(k / 4), 14, 14, ""),
    "ratio": (lambda b, h, q, k: k * 1.5 <= q, 14, 14, ""),
    "a reach for each query": (
        lambda b, h, q, k: (q - k).abs() <= torch.tensor([1, 0, 3, 2, 5, 1, 1, 2])[q],
        8,
        8,
        "spans([0, 1, 0, 1, 0, 4, 5, 5], [2, 2, 6, 6, 10, 7, 8, 10])",
    ),
    "bits of a block table": (
        lambda b, h, q, k: torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1]]).bool()[q // 4, k // 4],
        11,
        12,
        "",
    ),
    "membership": (
        lambda b, h, q, k: torch.isin(k, torch.tensor([2, 3, 9])) | (q == k),
        12,
        12,
        "",
    ),
    "buckets": (
        lambda b, h, q, k: (
            torch.bucketize(q, torch.tensor([2, 5, 9]))
            == torch.bucketize(k, torch.tensor([2, 5, 9]))
        ),
        12,
        12,
        "",
    ),
}
