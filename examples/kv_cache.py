"""Decode with a KV cache that holds only what can still be read: python examples/kv_cache.py"""

import torch
from torch import Tensor

import patterncc as pc

N, HEADS, KV_HEADS, DIM = 512, 4, 2, 16
local = pc.causal() & (pc.window(59) | pc.sink(4))
STACK = pc.Stack([local, local, pc.causal() & pc.chunked(128)], kv_heads=KV_HEADS)


def split(x: Tensor) -> Tensor:
    """[batch, length, heads * DIM] -> [batch, heads, length, DIM]."""
    return x.reshape(*x.shape[:2], -1, DIM).transpose(1, 2)


def main() -> float:
    """Print the plan and decode as it says; returns the gap to one pass over the sequence."""
    plan = pc.cache_plan(STACK, N, head_dim=DIM, dtype="float32")
    print(plan)

    torch.manual_seed(0)
    layers = [pc.SparseAttention(HEADS * DIM, HEADS, KV_HEADS, p) for p in STACK]
    tokens = torch.randn(1, N, HEADS * DIM)
    with torch.no_grad():
        whole = tokens
        for layer in layers:
            whole = whole + layer(whole)

        # NaN is written over every key that is evicted, so that any later read of it would show
        cache, rows = pc.PlannedCache(plan, poison=True), []
        for t in range(N):
            x = tokens[:, t : t + 1]
            for l, layer in enumerate(layers):
                cache.append(l, split(layer.k(x)), split(layer.v(x)))
                read = cache.attend(l, split(layer.q(x)))
                x = x + layer.out(read.transpose(1, 2).flatten(2))
            rows.append(x)
    gap = float((torch.cat(rows, dim=1) - whole).abs().max())
    print(f"{cache.nbytes:,} bytes held of {plan.full_bytes:,}; largest difference {gap:.1e}")
    return gap


if __name__ == "__main__":
    main()
