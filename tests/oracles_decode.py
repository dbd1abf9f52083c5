"""Decode steps by hand: rows of dense attention, and caches with junk in every other slot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import patterncc as pc
from patterncc.layout import Layout

JUNK = (torch.nan, torch.inf, -torch.inf, 1e30)


@dataclass(frozen=True, eq=False)
class Step:
    """A few rows of a layout, at a place of each sequence's own.

    mask: bool [B or 1, H or 1, n, n_k], from the patterns alone.  q [B, H, L, D]; k and v hold all
    n_k keys.  lengths: keys that count.  options: of the score, as `attention` names them.
    """

    layout: Layout
    mask: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    position: Tensor
    lengths: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    junk: float = torch.nan

    def edges(self) -> Tensor:
        """Bool [B, H or 1, L, n_k]: what each row reads."""
        rows = self.position[:, None] - self.layout.q_offset + torch.arange(self.q.shape[2])
        inside = (rows >= 0) & (rows < self.layout.n)
        mask = self.mask.expand(len(self.q), -1, -1, -1)
        picked = torch.stack([m[:, r] for m, r in zip(mask, rows.clamp(0, self.layout.n - 1))])
        counts = torch.arange(self.layout.n_k) < self.lengths[:, None]
        if "key_mask" in self.options:
            counts = counts & self.options["key_mask"]
        return picked & inside[:, None, :, None] & counts[:, None, None]

    def exact(self) -> tuple[Tensor, Tensor]:
        """out and lse in float64."""
        group = self.q.shape[1] // self.k.shape[1]
        k, v = (x.double().repeat_interleave(group, 1) for x in (self.k, self.v))
        scores = self.scored(self.q.double() @ k.transpose(-1, -2) * self.q.shape[-1] ** -0.5)
        scores = scores.masked_fill(~self.edges(), -torch.inf)
        lse = torch.logsumexp(scores, -1)
        if "sinks" in self.options:
            lse = torch.logaddexp(lse, self.options["sinks"].double()[:, None])
        return torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]) @ v, lse

    def scored(self, s: Tensor) -> Tensor:
        """Scaled products with the options applied, in their order."""
        given, place = self.options, self.position[:, None] + torch.arange(self.q.shape[2])
        apart = self.layout.k_offset + torch.arange(self.layout.n_k) - place[:, None, :, None]
        if "softcap" in given:
            s = given["softcap"] * torch.tanh(s / given["softcap"])
        if "alibi_slopes" in given:
            s = s - given["alibi_slopes"].double()[:, None, None] * apart.abs()
        if "relative_bias" in given:
            table = given["relative_bias"].double()
            reach = table.shape[1] // 2
            of_head = torch.arange(len(table))[:, None, None]
            s = s + table[of_head, apart.clamp(-reach, reach) + reach]
        return s

    def read(self) -> Tensor:
        """Bool [B, n_k]: some row reads the key."""
        return self.edges().any(1).any(1)

    def poisoned(self) -> tuple[Tensor, Tensor]:
        """k and v with junk in the slots that no row reads."""
        unread = ~self.read()[:, None, :, None]
        return self.k.masked_fill(unread, self.junk), self.v.masked_fill(unread, self.junk)

    def paged(self, page: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """k and v in shuffled pages, and the table, which names no page where nothing is read."""
        draw = torch.Generator().manual_seed(seed)
        B, pages = len(self.q), -(-self.layout.n_k // page)
        table = torch.randperm(B * pages + 3, generator=draw)[: B * pages].view(B, pages)
        caches = []
        for x in self.poisoned():
            room = torch.full((B, x.shape[1], pages * page, x.shape[3]), self.junk, dtype=x.dtype)
            room[:, :, : x.shape[2]] = x
            cache = torch.full((B * pages + 3, *room.shape[1:2], page, x.shape[3]), self.junk)
            cut = room.unflatten(2, (pages, page)).transpose(1, 2).flatten(0, 1)
            caches.append(cache.to(x.dtype).index_copy(0, table.flatten(), cut))
        read = torch.zeros(B, pages * page, dtype=torch.bool)
        read[:, : self.layout.n_k] = self.read()
        nowhere = torch.tensor([-1, 2**31 - 1, len(caches[0]), -(2**31)]).repeat(pages)[:pages]
        table = torch.where(read.view(B, pages, page).any(2), table, nowhere)
        return *caches, table.to(torch.int32)


def step_of(
    pattern: Any,
    n: int,
    rows: int,
    heads: tuple[int, int],
    position: list[int],
    lengths: list[int] | None = None,
    *,
    options: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    dims: tuple[int, int] = (16, 24),
    seed: int = 0,
    **sizes: Any,
) -> Step:
    """A step of a pattern, or of pc.heads of patterns, with drawn tensors and options."""
    draw = torch.Generator().manual_seed(seed)
    layout = pc.compile(pattern, n, **sizes)
    frame = {name: sizes[name] for name in ("n_k", "q_offset", "k_offset") if name in sizes}
    parts = pattern.patterns if isinstance(pattern, pc.stack.Heads) else [pattern]
    masks = [pc.lower(p, n, head=h, **frame).dense() for h, p in enumerate(parts)]
    B, (H, key_heads), n_k = len(position), heads, layout.n_k

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    known = {
        "softcap": 2.0,
        "alibi_slopes": normal(H).abs() / 4,
        "relative_bias": normal(H, 9),
        "sinks": normal(H),
        "key_mask": torch.rand(B, n_k, generator=draw) < 0.8,
    }
    return Step(
        layout,
        torch.from_numpy(np.stack(masks))[None],
        normal(B, H, rows, dims[0]).to(dtype),
        normal(B, key_heads, n_k, dims[0]).to(dtype),
        normal(B, key_heads, n_k, dims[1]).to(dtype),
        torch.tensor(position, dtype=torch.int32),
        torch.tensor([n_k] * B if lengths is None else lengths, dtype=torch.int32),
        {name: known[name] for name in options},
        JUNK[seed % len(JUNK)],
    )
