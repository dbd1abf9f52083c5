"""Tokens to clusters: balanced over the whole sequence, or by what stands before each token.

Everything here is a fixed number of tensor operations for all sequences, heads and tokens at once:
no value is read on the host of a GPU, and equal scores are decided by position.
"""

from __future__ import annotations

import torch
from torch import Tensor


def balanced(scores: Tensor, valid: Tensor | None = None, rounds: int = 8) -> Tensor:
    """Every token to one cluster of at most ceil(tokens / clusters): labels int64 [..., n].

    scores: [..., n, clusters], more is nearer.  valid: bool [..., n], False for padding, which gets
    label -1 and is not counted.

    In each round every token that is left asks for the cluster that it is nearest to among those
    with room, and a cluster takes those who are nearest to it, earlier tokens first among equals.
    A round fills a cluster or leaves nobody, so `clusters` rounds place everyone; what is left
    after `rounds` takes the free places in the order of positions.

    >>> near = torch.tensor([[0.9, 0.1], [0.8, 0.3], [0.7, 0.6], [0.2, 0.1]])
    >>> balanced(near).tolist()
    [0, 0, 1, 1]
    """
    lead, (n, clusters) = scores.shape[:-2], scores.shape[-2:]
    flat = scores.reshape(-1, n, clusters).nan_to_num(nan=-torch.inf)
    if valid is None:
        left = torch.ones(len(flat), n, dtype=torch.bool, device=flat.device)
    else:
        left = valid.expand(*lead, n).reshape(-1, n).clone()
    room = (-(-left.sum(-1) // clusters))[:, None].repeat(1, clusters)
    labels = torch.full_like(left, -1, dtype=torch.int64)
    for _ in range(min(rounds, clusters)):
        best, wish = (flat + torch.where(room == 0, -torch.inf, 0.0)[:, None]).max(-1)
        wish = torch.where(left, wish, clusters)  # who has a place asks for none
        rank = rank_within(wish, clusters + 1, best)
        taken = left & (rank < torch.nn.functional.pad(room, (0, 1)).gather(1, wish))
        labels = torch.where(taken, wish, labels)
        room = room - count(torch.where(taken, wish, clusters), clusters + 1)[:, :clusters]
        left = left & ~taken
        if left.device.type == "cpu" and not left.any():  # further rounds would change nothing
            break
    place = torch.searchsorted(room.cumsum(-1), left.cumsum(-1) - 1, right=True)
    return torch.where(left, place, labels).reshape(*lead, n)


def arriving(
    scores: Tensor, width: int, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Every token to its nearest cluster, which opens a new group after each `width` tokens.

    scores: [..., n, clusters].  Gives (groups, nearest, rank), each int64 [..., n]: the group that
    a token is in, below `groups_of(n, clusters, width)`, its cluster, and how many tokens of that
    cluster stand before it; group and cluster of padding are -1.

    Who shares a group with a token depends on tokens up to the later of the two alone: nothing
    that comes after can change it, but for the group's number.

    >>> near = torch.tensor([[0.9, 0.1], [0.8, 0.3], [0.3, 0.6], [0.2, 0.1]])
    >>> [x.tolist() for x in arriving(near, 2)]
    [[0, 0, 2, 1], [0, 0, 1, 0], [0, 1, 0, 2]]
    """
    lead, (n, clusters) = scores.shape[:-2], scores.shape[-2:]
    nearest = scores.nan_to_num(nan=-torch.inf).argmax(-1).reshape(-1, n)
    if valid is not None:
        nearest = torch.where(valid.expand(*lead, n).reshape(-1, n), nearest, clusters)
    rank = rank_within(nearest, clusters + 1)
    pages = -(-count(nearest, clusters + 1) // width)
    group = (pages.cumsum(-1) - pages).gather(1, nearest) + rank // width
    real = nearest < clusters
    found = torch.where(real, group, -1), torch.where(real, nearest, -1), rank
    first, second, third = (x.reshape(*lead, n) for x in found)
    return first, second, third


def groups_of(n: int, clusters: int, width: int) -> int:
    """How many groups `arriving` may open: every cluster one that is not full.

    >>> groups_of(4, 2, 2)
    4
    """
    return clusters + n // width


def members_of(labels: Tensor, groups: int, width: int) -> Tensor:
    """The tokens of each label, ascending, -1 behind them: int64 [..., groups, width].

    labels: int64 [..., n], -1 for none, at most `width` tokens with one label.

    >>> members_of(torch.tensor([1, 0, -1, 1]), 2, 2).tolist()
    [[1, -1], [0, 3]]
    """
    lead, n = labels.shape[:-1], labels.shape[-1]
    flat = labels.reshape(-1, n)
    flat = torch.where(flat < 0, groups, flat)
    slot = flat * width + rank_within(flat, groups + 1)
    slot = torch.where(flat < groups, slot, groups * width)  # padding all to one place behind
    out = torch.full((len(flat), groups * width + 1), -1, dtype=torch.int64, device=flat.device)
    token = torch.arange(n, device=flat.device).expand_as(flat)
    return out.scatter_(1, slot, token)[:, :-1].reshape(*lead, groups, width)


def rank_within(labels: Tensor, groups: int, score: Tensor | None = None) -> Tensor:
    """How many tokens of a token's label stand before it, by score falling and then by position.

    labels: int64 [rows, n] below `groups`; score: [rows, n].

    >>> rank_within(torch.tensor([[0, 1, 0]]), 2, torch.tensor([[0.1, 0.5, 0.9]])).tolist()
    [[1, 0, 0]]
    """
    if score is None:
        order = labels.argsort(dim=-1, stable=True)
    else:
        order = score.argsort(dim=-1, descending=True, stable=True)
        order = order.gather(1, labels.gather(1, order).argsort(dim=-1, stable=True))
    sizes = count(labels, groups)
    start = (sizes.cumsum(-1) - sizes).gather(1, labels.gather(1, order))
    within = torch.arange(labels.shape[1], device=labels.device) - start
    return torch.empty_like(within).scatter_(1, order, within)


def count(labels: Tensor, groups: int) -> Tensor:
    """How many tokens have each label: int64 [rows, groups] of [rows, n]."""
    zero = torch.zeros(len(labels), groups, dtype=torch.int64, device=labels.device)
    return zero.scatter_add_(1, labels, torch.ones_like(labels))
