"""Decode steps that differ in position and keys alone: checked once, then handed to the op."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from patterncc.attend.checks import check_backend, check_layout, check_tensors, score_of
from patterncc.kernels import op, upload
from patterncc.layout.layout import Layout


@dataclass(frozen=True, eq=False, slots=True)
class Ready:
    """Steps of one row, without gradient, for tensors of given shapes, dtypes and devices.

    tensors, plan: of the layout on the device.  rows, keys: how many it
    has, the first of both at position 0.
    """

    tensors: list[Tensor]
    plan: str
    scale: float
    softcap: float
    rows: int
    keys: int

    @staticmethod
    def of(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        *,
        backend: str,
        scale: float | None,
        softcap: float | None,
    ) -> Ready:
        """The checks of `attention`, of what stays the same from one step to the next.

        Raises what `attention` raises.
        """
        check_tensors(q, k, v, enable_gqa=True)
        check_layout(q, k, layout, 0)
        score = score_of(q, k, scale, softcap)
        tensors, plan, runs_on = upload.prepared(layout, q.device, backend)
        check_backend(q, v, runs_on)
        return Ready(tensors, plan, score.scale, score.softcap, layout.n, layout.n_k)

    def run(self, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        """The output [B, H, 1, Dv] of q [B, H, 1, D] at `position`, int32 [B], below `rows`.

        k and v: the first keys of the layout, those that no row reads with any
        values.  The op looks at all of them once more.
        """
        out: Tensor = op.decode(
            *(q, k, v, self.tensors, self.plan, self.scale, position, None, None, self.softcap)
        )[0]
        return out


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation runs, which ask for more
    than `Ready` looks at."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
