"""What the analysis calls unreachable, training cannot learn: python examples/reach_decides.py

The first token of a sequence names a class, the others are blank; the last has to say which.  Two
layers of a window of 16 cannot carry it across 64 tokens, whatever the training; with one global
token they can.
"""

import torch
from torch import nn

import patterncc as pc

N, CLASSES, WIDTH, LAYERS = 64, 4, 32, 2


class Tiny(nn.Module):
    """Two residual attention layers and a classifier that reads the last position."""

    def __init__(self, pattern: pc.Pattern) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES + 1, WIDTH)
        self.place = nn.Parameter(torch.randn(N, WIDTH) * 0.1)
        self.layers = nn.ModuleList(
            pc.SparseAttention(WIDTH, heads=2, kv_heads=2, pattern=pattern) for _ in range(LAYERS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.place
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x[:, -1])


def accuracy(pattern: pc.Pattern, steps: int = 60) -> float:
    """Train for a few seconds, then measure on fresh sequences."""
    torch.manual_seed(0)
    model = Tiny(pattern)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

    def sequences(count: int) -> torch.Tensor:
        ids = torch.full((count, N), CLASSES)
        ids[:, 0] = torch.randint(0, CLASSES, (count,))
        return ids

    for _ in range(steps):
        ids = sequences(16)
        loss = nn.functional.cross_entropy(model(ids), ids[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        ids = sequences(200)
        return float((model(ids).argmax(-1) == ids[:, 0]).float().mean())


def main() -> dict[str, tuple[bool, float]]:
    """For each pattern: whether the last token can hear of the first, and what training reached."""
    found = {}
    for name, pattern in (
        ("window 16", pc.window(15, 15)),
        ("window 16 and one global token", pc.window(15, 15) | pc.global_tokens([32])),
    ):
        path = pc.explain(pc.Stack([pattern] * LAYERS), N, N - 1, 0)
        reachable = path.layers is not None and path.layers <= LAYERS
        found[name] = (reachable, accuracy(pattern))
        print(f"{name}: reachable {found[name][0]}, accuracy {found[name][1]:.1%}")
    print(f"chance is {1 / CLASSES:.0%}")
    return found


if __name__ == "__main__":
    main()
