"""Tiny models of two or three parts, and their oracle: eager attention with dense masks."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import patterncc as pc
from patterncc.stack import Heads

NAME = "eager_with_dense_masks"
MASKS = "_dense_mask_of_the_oracle"
Results = tuple[Tensor, dict[str, Tensor]]


def _attend(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    eager = sys.modules[type(module).__module__].eager_attention_forward
    layer = getattr(module, MASKS, None)
    if layer is not None:
        patterns = layer.patterns if isinstance(layer, Heads) else (layer,)
        n, n_k = q.shape[2], k.shape[2]
        dense = torch.stack([torch.from_numpy(pc.lower(p, n, n_k).dense()) for p in patterns])
        least = torch.finfo(q.dtype).min
        out = torch.zeros(dense.shape, dtype=q.dtype).masked_fill(~dense, least)
        mask = out[None] if mask is None else (mask + out).clamp_min(least)
    answer: tuple[Tensor, Tensor | None] = eager(module, q, k, v, mask, **kwargs)
    return answer


@contextmanager
def dense(model: Any, layers: Mapping[str, Any]) -> Iterator[None]:
    """The model in eager attention, modules whose names match an expression masked densely.

    Whole sequences only: queries and keys stand from 0.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    for name, module in model.named_modules():
        for expression, layer in layers.items():
            if re.fullmatch(expression, name):
                setattr(module, MASKS, layer)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        for module in model.modules():
            vars(module).pop(MASKS, None)


def results(model: Any, **inputs: Any) -> Results:
    """The first output of a forward pass, and the gradients of its mean square by parameter."""
    model.zero_grad()
    answer = model(**inputs)
    out = answer.logits if hasattr(answer, "logits") else answer.last_hidden_state
    out.square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out.detach(), grads


def assert_same(one: Results, other: Results, tol: float = 1e-9) -> None:
    """Outputs and gradients, each to `tol` of its largest value."""
    torch.testing.assert_close(one[0], other[0], rtol=tol, atol=tol * float(other[0].abs().max()))
    assert one[1].keys() == other[1].keys()
    for name, grad in other[1].items():
        worst = float((one[1][name] - grad).abs().max())
        assert worst <= tol * max(1e-3, float(grad.abs().max())), (name, worst)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation made."""

    most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(made):
            if isinstance(x, Tensor):
                self.most = max(self.most, x.numel())
        return made


def widened(model: Any, std: float = 0.3) -> Any:
    """In float64 and evaluation, with weights so large that attention matters."""
    torch.manual_seed(0)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=std)
    return model.double().eval()
