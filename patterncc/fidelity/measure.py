"""One pass over a batch and how far two passes are apart, sequence by sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from patterncc.errors import BackendError
from patterncc.fidelity.model import Pretrained

MOST_NUMBERS = 2**26  # of one batch's logits or states that are held at once


def batch_size(model: Pretrained, length: int) -> int:
    """Sequences of one pass, so that what is compared stays within 256 MiB."""
    wide = model.vocabulary if model.kind == "causal" else 4 * model.model.config.hidden_size
    return max(1, MOST_NUMBERS // (length * wide))


def run(model: Pretrained, ids: Tensor) -> Tensor:
    """Logits [batch, length, vocabulary] of a causal model, embeddings [batch, width] else.

    No sequence is padded, so the mean over a sequence's states is the masked mean.

    Raises BackendError where the model's answer holds NaN, which would compare as nothing.
    """
    found = _forward(model, ids)
    if found.isnan().any():
        raise BackendError(
            f"{model.name}: its answer holds NaN; check its weights, and the text, with the model "
            "alone"
        )
    return found


def _forward(model: Pretrained, ids: Tensor) -> Tensor:
    whole = torch.ones_like(ids)  # said, as a first token may be the padding token too
    with torch.no_grad():
        if model.kind == "causal":
            logits: Tensor = model.model(ids, attention_mask=whole, use_cache=False).logits
            return logits
        states: Tensor = model.model(ids, attention_mask=whole).last_hidden_state
        return states[:, 0] if model.pooling == "first" else states.mean(1)


def apart(model: Pretrained, ids: Tensor, dense: Tensor, sparse: Tensor) -> dict[str, list[float]]:
    """The figures of each sequence: kl, top1, loss and dense_loss, or cosine.

    KL(dense || pattern) is the mean over positions in nats, top1 the share of positions whose most
    likely next token stays, the losses those of the true next token.
    """
    if model.kind == "encoder":
        cosine = torch.nn.functional.cosine_similarity(dense.double(), sparse.double())
        return {"cosine": cosine.tolist()}
    found: dict[str, list[float]] = {"kl": [], "top1": [], "loss": [], "dense_loss": []}
    for tokens, a, b in zip(ids, dense, sparse, strict=True):  # one at a time: float64 is large
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        found["kl"].append(float(_kl(p, q).mean()))
        found["top1"].append(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
        found["loss"].append(_loss(q, tokens))
        found["dense_loss"].append(_loss(p, tokens))
    return found


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) over the last axis, of logarithms; what p never says adds nothing."""
    return (p.exp() * (p - q)).masked_fill(p == -torch.inf, 0.0).sum(-1)


def _loss(log_p: Tensor, tokens: Tensor) -> float:
    return float(-log_p[:-1].gather(-1, tokens[1:, None]).mean())
