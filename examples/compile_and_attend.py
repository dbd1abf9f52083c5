"""Compile a pattern and run attention with it: python examples/compile_and_attend.py"""

import torch

import patterncc as pc


def main() -> float:
    """Grouped-query attention with a window and global tokens; returns the gap to masked dense."""
    n = 1000
    pattern = pc.window(64, 64) | pc.global_tokens([0, 500])
    layout = pc.compile(pattern, n)
    print(f"{n} tokens: {layout.density:.1%} of the pairs, {layout.tile_density:.1%} of the tiles")

    torch.manual_seed(0)
    q = torch.randn(2, 8, n, 64, requires_grad=True)
    k, v = (torch.randn(2, 2, n, 64, requires_grad=True) for _ in range(2))
    out = pc.attention(q, k, v, layout, enable_gqa=True)
    out.square().mean().backward()

    mask = torch.from_numpy(pc.lower(pattern, n).dense())
    dense = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=True
    )
    gap = float((out - dense).detach().abs().max())
    print(f"largest difference from dense attention under the same mask: {gap:.1e}")
    return gap


if __name__ == "__main__":
    main()
