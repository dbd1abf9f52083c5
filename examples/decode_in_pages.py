"""Fill a cache in pages, then decode step by step: python examples/decode_in_pages.py"""

import torch

import patterncc as pc

HEADS, KEY_HEADS, DIM, PAGE = 8, 2, 64, 16


def main() -> float:
    """Two prompts of unequal length, a window with sinks, soft-capped scores, one learned sink a
    head; returns the gap between the decode steps and the whole pass."""
    capacity, prompts, steps = 512, (300, 170), 5
    layout = pc.compile(pc.causal() & (pc.window(127) | pc.sink(4)), capacity)
    torch.manual_seed(0)
    q = torch.randn(2, HEADS, capacity, DIM)
    k, v = torch.randn(2, 2, KEY_HEADS, capacity, DIM).unbind()
    score = {"softcap": 30.0, "sinks": torch.randn(HEADS)}
    whole = pc.attention(q, k, v, layout, enable_gqa=True, **score)

    pages = capacity // PAGE
    cache = torch.full((2, 3 * pages, PAGE, KEY_HEADS, DIM), torch.nan)  # more than two need
    table = torch.randperm(3 * pages)[: 2 * pages].view(2, pages).to(torch.int32)

    def keep(sequence: int, first: int, last: int) -> None:
        """Write keys and values of one sequence to its pages."""
        for at in range(first, last):
            page, slot = int(table[sequence, at // PAGE]), at % PAGE
            cache[0, page, slot], cache[1, page, slot] = k[sequence, :, at], v[sequence, :, at]

    for sequence, length in enumerate(prompts):
        keep(sequence, 0, length)
    gap = 0.0
    for step in range(steps):
        position = torch.tensor(prompts, dtype=torch.int32) + step
        rows = position.tolist()
        for sequence, row in enumerate(rows):
            keep(sequence, row, row + 1)
        out = pc.attention(
            torch.stack([q[s, :, row : row + 1] for s, row in enumerate(rows)]),
            *cache.transpose(2, 3).unbind(),
            layout,
            enable_gqa=True,
            position=position,
            block_table=table,
            **score,
        )
        expected = torch.stack([whole[s, :, row : row + 1] for s, row in enumerate(rows)])
        gap = max(gap, float((out - expected).abs().max()))
    print(f"{steps} steps at positions {prompts} ..: largest difference {gap:.1e} from one pass")
    return gap


if __name__ == "__main__":
    main()
