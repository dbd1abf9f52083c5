"""The CPU backend: forward, backward and decode.

Native kernels run where the machine has a C++ compiler and they take the call; else torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from patterncc.kernels.cpu import run
from patterncc.kernels.cpu.decode import decode
from patterncc.kernels.cpu.run import backward
from patterncc.kernels.native import run as native
from patterncc.kernels.score import Score

if TYPE_CHECKING:
    from patterncc.kernels.spec import Spec

__all__ = ["backward", "decode", "forward"]


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Spec, score: Score
) -> tuple[Tensor, Tensor]:
    """Attention over a layout's edges: what `cpu.run.forward` says."""
    found = native.forward(q, k, v, tensors, spec, score)
    return run.forward(q, k, v, tensors, spec, score) if found is None else found
