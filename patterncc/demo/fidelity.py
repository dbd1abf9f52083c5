"""How close a model with a pattern stays to the same model with dense attention, on real text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from patterncc.integrations.hf import apply
from patterncc.stack import Stack


@dataclass(frozen=True)
class Fidelity:
    """Mean KL(dense || pattern) over positions in nats, and the share of equal top-1 tokens."""

    kl: float
    top1: float


def dense_log_probs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """log p(next token) of the unchanged model, [batch, length, vocabulary]."""
    with torch.no_grad():
        logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits.log_softmax(-1)


def compare(model: Any, ids: torch.Tensor, stack: Stack, dense: torch.Tensor) -> Fidelity:
    """Run the model with `stack` in place of its attention and hold it to the dense answer."""
    with torch.no_grad(), apply(model, stack):
        sparse = model(ids, use_cache=False).logits.log_softmax(-1)
    kl = (dense.exp() * (dense - sparse)).sum(-1).mean()
    agree = (dense.argmax(-1) == sparse.argmax(-1)).float().mean()
    return Fidelity(float(kl), float(agree))
