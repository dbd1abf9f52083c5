"""What a router chose: as a layout for `attention`, and as bindings for the analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import torch
from torch import Tensor

from patterncc.kernels.routed import RoutedLayout, routed_blocks, routed_clusters
from patterncc.primitives import Routing, Topk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout


@dataclass(frozen=True, eq=False)
class Clusters:
    """Tokens read the tokens of their cluster.

    labels: int64 [B, H, n], -1 for none; members: int64 [B, H, clusters, width], the tokens of
    each, ascending, -1 behind them.
    """

    labels: Tensor
    members: Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """Each group of `grain` queries reads blocks of `block` keys: int64 [B, H, groups, count]."""

    chosen: Tensor
    block: int
    grain: int


Chosen = Clusters | Blocks


def of_last_heads(chosen: Chosen, count: int) -> Chosen:
    """The same for the last `count` heads; the others choose nothing.

    >>> import torch
    >>> two = Blocks(torch.tensor([[[[0]], [[1]]]]), block=4, grain=1)
    >>> of_last_heads(two, 1).chosen.flatten().tolist()
    [-1, 1]
    """

    def kept(x: Tensor) -> Tensor:
        head = torch.arange(x.shape[1], device=x.device).view(1, -1, *[1] * (x.dim() - 2))
        return torch.where(head >= x.shape[1] - count, x, -1)

    match chosen:
        case Clusters(labels=labels, members=members):
            if count == labels.shape[1]:
                return chosen
            return Clusters(kept(labels), kept(members))
        case Blocks(chosen=indices, block=block, grain=grain):
            if count == indices.shape[1]:
                return chosen
            return Blocks(kept(indices), block, grain)
        case _:
            assert_never(chosen)


def layout_of(chosen: Chosen, n: int, static: Layout | None, causal: bool) -> RoutedLayout:
    """The layout of the chosen edges and those of `static`, each pair once."""
    match chosen:
        case Clusters():
            return routed_clusters(chosen.members, n=n, static=static, causal=causal)
        case Blocks():
            return routed_blocks(
                chosen.chosen,
                n=n,
                block=chosen.block,
                grain=chosen.grain,
                static=static,
                causal=causal,
            )
        case _:
            assert_never(chosen)


def leaf_of(chosen: Chosen) -> Routing | Topk:
    """The primitive that stands for the choice in a pattern.

    >>> import torch
    >>> leaf_of(Blocks(torch.zeros(1, 2, 8, 3, dtype=torch.int64), block=16, grain=1))
    topk(3, 16)
    """
    match chosen:
        case Clusters(members=members):
            return Routing(members.shape[2])
        case Blocks(chosen=indices, block=block):
            return Topk(indices.shape[3], block)
        case _:
            assert_never(chosen)


def bound(chosen: Chosen, n: int, sequence: int, head: int) -> NDArray[np.int64]:
    """What `leaf_of` needs bound for a head of a sequence: labels [n], or indices [n, count]."""
    match chosen:
        case Clusters(labels=labels):
            found = labels[sequence, head]
        case Blocks(chosen=indices, grain=grain):
            found = indices[sequence, head].repeat_interleave(grain, 0)[:n]
        case _:
            assert_never(chosen)
    array: NDArray[np.int64] = found.cpu().numpy()
    return array
