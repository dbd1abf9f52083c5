"""The CPU backend: forward, backward and decode.

Native kernels run where the machine has a C++ compiler and they take the call; else torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from patterncc.kernels.cpu import run
from patterncc.kernels.cpu.decode import decode
from patterncc.kernels.native import backward_run as native_backward
from patterncc.kernels.native import run as native
from patterncc.kernels.score import Grads, Score

if TYPE_CHECKING:
    from patterncc.kernels.spec import Spec

__all__ = ["backward", "decode", "forward"]


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec, score: Score
) -> tuple[Tensor, Tensor]:
    """Attention over a layout's edges: what `cpu.run.forward` says."""
    found = native.forward(q, k, v, tensors, spec, score)
    return run.forward(q, k, v, tensors, spec, score) if found is None else found


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
    repeatable: bool = True,
) -> Grads:
    """The gradients of q, k, v and of the options, from the output and LSE of `forward`.

    They are the same from run to run either way.
    """
    given = grad_out, q, k, v, out, lse, tensors, spec, score
    found = native_backward.backward(*given)
    return run.backward(*given, repeatable) if found is None else found
