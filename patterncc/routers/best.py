"""The best of many candidates for each query, exact, in pieces that stay small."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 2**22  # scores that stand in memory at once


def pieces(rows: int, across: int) -> Iterator[slice]:
    """Slices of `rows` of which each has at most PIECE scores, `across` of them in a row.

    >>> list(pieces(5, PIECE // 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, PIECE // max(1, across))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def best(scores: Tensor, count: int) -> Tensor:
    """Where the `count` largest scores of each row stand, ascending, -1 behind them.

    scores: [..., m] to int64 [..., min(count, m)].  -inf and NaN are never chosen; of equal scores
    the first ones are.

    >>> best(torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, -torch.inf, 0.0, 0.0]]), 2).tolist()
    [[1, 3], [0, 2]]
    """
    m = scores.shape[-1]
    count = min(count, m)
    if not count:
        return scores.new_empty((*scores.shape[:-1], 0), dtype=torch.int64)
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    top = scores.topk(min(count + 1, m), dim=-1)
    least = top.values[..., count - 1 : count]
    if scores.device.type == "cpu" and not _tied(top.values, count):
        found = torch.where(top.values[..., :count] > -torch.inf, top.indices[..., :count], m)
        found = found.sort(dim=-1).values
        return torch.where(found < m, found, -1)
    over, equal = scores > least, (scores == least) & (least > -torch.inf)
    needed = count - over.sum(-1, keepdim=True)
    chosen = over | (equal & (equal.cumsum(-1) <= needed))
    place = torch.arange(m, 0, -1, device=scores.device)
    found = torch.where(chosen, place, 0).topk(count, dim=-1).values  # falling, so ascending
    return torch.where(found > 0, m - found, -1)


def _tied(values: Tensor, count: int) -> bool:
    """Whether the last that is chosen equals the first that is not: topk takes any of them."""
    if values.shape[-1] == count:
        return False
    last = values[..., count - 1]
    return bool(((last == values[..., count]) & (last > -torch.inf)).any())
