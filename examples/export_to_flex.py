"""A pattern as a FlexAttention BlockMask, and both run: python examples/export_to_flex.py

For a model whose attention is FlexAttention already.  What is exported is exact token by token.

    causal() & (window(383) | sink(4)) & documents([700, 300])
    241,672 pairs of 1,000,000 in 25 of 64 tiles of 128 x 128
    flex_attention with the mask, pc.attention with the layout: 4.8e-07 apart
    mask_mod is the pattern: True
"""

import warnings

import torch
from torch.nn.attention.flex_attention import flex_attention

import patterncc as pc

N, HEADS, DIM = 1000, 4, 32  # any length: no multiple of a block


def main() -> float:
    """Print what the BlockMask holds and how far both are apart; returns the largest difference."""
    pattern = pc.causal() & (pc.window(383) | pc.sink(4)) & pc.documents([700, 300])
    layout = pc.compile(pattern, N, block=128)
    mask = pc.to_flex(layout)
    tiles = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    whole = -(-N // 128)
    print(f"{pattern}")
    print(
        f"{layout.edges[0]:,} pairs of {N * N:,} in {tiles} of {whole * whole} tiles of 128 x 128"
    )

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, HEADS, N, DIM).unbind()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises torch.compile, which needs a C++ compiler
        theirs = flex_attention(q, k, v, block_mask=mask)
    ours = pc.attention(q, k, v, layout)
    gap = float((ours - theirs).abs().max())
    print(f"flex_attention with the mask, pc.attention with the layout: {gap:.1e} apart")

    i = torch.arange(N)
    told = mask.mask_mod(0, 0, i[:, None], i)
    print(f"mask_mod is the pattern: {torch.equal(told, torch.from_numpy(layout.dense()))}")
    return gap


if __name__ == "__main__":
    main()
