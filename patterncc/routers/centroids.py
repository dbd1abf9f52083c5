"""The moving average of k-means' centroids: what a step saw, and when it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional

from patterncc.routers.choose import nearness, normal, wide


@dataclass(frozen=True, eq=False)
class Seen:
    """Of the vectors nearest to each centroid: their sum [H, clusters, D], their count."""

    total: Tensor
    count: Tensor


@torch.no_grad()
def seen(
    q: Tensor, k: Tensor, centroids: Tensor, valid: Tensor | None = None, *, sync: bool = False
) -> Seen:
    """What the centroids are to follow: unit vectors of the queries, and of the keys unless tied.

    Each counts for the centroid that it is nearest to, balanced clusters or not, as in the paper.
    sync: added up over torch.distributed's default group.
    """
    with torch.autocast(q.device.type, enabled=False):
        of_keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        parts = [_seen(wide(x), centroids, valid) for x in ((q,) if k is q else (q, of_keys))]
    total = sum((part.total for part in parts[1:]), parts[0].total)
    count = sum((part.count for part in parts[1:]), parts[0].count)
    if sync and distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        distributed.all_reduce(count)
    return Seen(total, count)


def _seen(x: Tensor, centroids: Tensor, valid: Tensor | None) -> Seen:
    clusters = centroids.shape[1]
    nearest = nearness(x, centroids).nan_to_num(nan=-torch.inf).argmax(-1)
    one = functional.one_hot(nearest, clusters).to(x.dtype)
    if valid is not None:
        one = one * valid[:, None, :, None]
        x = x.masked_fill(~valid[:, None, :, None], 0.0)
    unit = functional.normalize(normal(x), dim=-1)
    return Seen(torch.einsum("bhnc,bhnd->hcd", one, unit), one.sum((0, 2)))


@torch.no_grad()
def moved(centroids: Tensor, news: Seen, decay: float) -> Tensor:
    """decay * centroid + (1 - decay) * mean of what it saw, at unit length; unseen ones stay.

    >>> news = Seen(torch.tensor([[[0.0, 3.0], [0.0, 0.0]]]), torch.tensor([[3.0, 0.0]]))
    >>> moved(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), news, 0.5)[0].tolist()
    [[0.7071067690849304, 0.7071067690849304], [1.0, 0.0]]
    """
    some = news.count[..., None] > 0
    mean = (news.total / news.count[..., None].clamp(min=1)).to(centroids.dtype)
    new = functional.normalize(decay * centroids + (1 - decay) * mean, dim=-1)
    return torch.where(some & new.isfinite().all(-1, keepdim=True), new, centroids)


def moved_at_end(reached: Tensor, move: Callable[[], None]) -> None:
    """Call `move` when a backward pass that has given `reached` its gradient comes to its end.

    A reentrant checkpoint runs a backward pass of its own inside the one that calls it; where that
    one is already going on, its end counts.
    """
    engine = torch.autograd.Variable._execution_engine
    if torch._C._current_graph_task_id() == -1:
        reached.register_hook(lambda _: engine.queue_callback(move))  # type: ignore[no-untyped-call]
        return
    came: list[bool] = []
    reached.register_hook(lambda _: came.append(True))  # type: ignore[no-untyped-call]

    def at_end() -> None:
        for _ in came:
            move()

    engine.queue_callback(at_end)
