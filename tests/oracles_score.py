"""Scores with options: random ones for a layout, and what dense float64 attention makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import patterncc as pc
from patterncc.kernels import reference
from patterncc.kernels.native import build
from patterncc.kernels.score import Score
from patterncc.layout import Layout

OPTIONS = ("softcap", "alibi_slopes", "relative_bias", "sinks", "key_mask")


@dataclass
class Sample:
    """Random tensors and options for a layout, and the mask that they are judged by."""

    layout: Layout
    mask: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32

        def random(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

        n, n_k = self.layout.n, self.layout.n_k
        self.q = random(self.batch, self.heads, n, self.dim).requires_grad_()
        self.k = random(self.batch, self.kv_heads, n_k, self.dim).requires_grad_()
        self.v = random(self.batch, self.kv_heads, n_k, self.dim).requires_grad_()
        self.grad = random(self.batch, self.heads, n, self.dim)
        made = {
            "softcap": 1.5,
            "alibi_slopes": random(self.heads, dtype=wide).abs_().requires_grad_(),
            "relative_bias": random(self.heads, 15, dtype=wide).requires_grad_(),
            "sinks": random(self.heads, dtype=wide).requires_grad_(),
            "key_mask": torch.rand(self.batch, n_k, generator=draw) < 0.8,
        }
        self.options = {name: made[name] for name in self.options or OPTIONS}

    @property
    def leaves(self) -> list[Tensor]:
        """What has a gradient."""
        given = (self.options.get(name) for name in ("alibi_slopes", "relative_bias", "sinks"))
        return [self.q, self.k, self.v, *(x for x in given if x is not None)]

    def score(self) -> Score:
        """The options as kernels take them."""
        get = self.options.get
        return Score(
            1 / math.sqrt(self.dim),
            get("softcap") or 0.0,
            get("alibi_slopes"),
            get("relative_bias"),
            get("sinks"),
            get("key_mask"),
        )

    def exact(self) -> tuple[Tensor, Tensor]:
        """Output and LSE in float64, differentiable."""
        n, n_k, skew = self.layout.n, self.layout.n_k, self.layout.k_offset - self.layout.q_offset
        distance = torch.arange(n_k) + skew - torch.arange(n)[:, None]
        given = (x.double() for x in (self.q, self.k, self.v))
        return reference.attention(*given, self.mask, score=self.score(), distance=distance)

    def dense(self) -> Tensor:
        """The output of dense attention in the inputs' own precision, differentiable."""
        layout = self.layout
        distance = torch.arange(layout.n_k) + layout.k_offset - layout.q_offset
        distance = distance - torch.arange(layout.n)[:, None]
        q, k, v = self.q, self.k, self.v
        score = self.score()
        mask = self.mask if score.keys is None else self.mask & score.keys[:, None, None]
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        s = reference._scores(q.float(), k.float(), score, distance)[0]
        s = s.masked_fill(~mask, -torch.inf)
        if score.sinks is not None:
            sink = score.sinks[None, :, None, None].expand(*s.shape[:3], 1)
            s = torch.cat([s, sink], -1)
        p = torch.softmax(s, -1).nan_to_num(0.0)[..., : k.shape[2]]
        return p.to(q.dtype) @ v

    def run(
        self, backend: str = "cpu", carried: bool = False, **more: Any
    ) -> tuple[Tensor, Tensor]:
        """Output and LSE of `attention`, maybe with the layout carried."""
        layout = pc.carry(self.layout, backend=backend) if carried else self.layout
        out, lse = pc.attention(
            *(self.q, self.k, self.v, layout),
            enable_gqa=True,
            return_lse=True,
            backend=backend,
            **(self.options | more),
        )
        return out, lse

    def check(
        self, backend: str = "cpu", rtol: float = 1e-4, atol: float = 2e-5, **more: Any
    ) -> None:
        """Output, LSE and every gradient against float64."""
        out, lse = self.run(backend, **more)
        exact, exact_lse = self.exact()
        torch.testing.assert_close(out.double(), exact, rtol=rtol, atol=atol)
        lse_atol = max(atol, 1e-5)  # attention gives it in fp32
        torch.testing.assert_close(lse, exact_lse.detach().float(), rtol=1e-5, atol=lse_atol)
        got = torch.autograd.grad(out, self.leaves, self.grad)
        expected = torch.autograd.grad(exact, self.leaves, self.grad.double())
        for a, b in zip(got, expected, strict=True):
            largest = max(1.0, float(b.abs().max())) if b.numel() else 1.0
            assert a.dtype == b.dtype and a.isfinite().all()
            torch.testing.assert_close(a / largest, b / largest, rtol=rtol, atol=2 * atol)


def sample_of(layout: Layout, *names: str, **more: Any) -> Sample:
    """A sample judged by the layout's own mask, with the named options (none named: all)."""
    return Sample(layout, torch.from_numpy(layout.dense()), dict.fromkeys(names), **more)


def plain(sample: Sample) -> Sample:
    """The same without options."""
    bare = replace(sample)
    bare.options = {}
    return bare


def poisoned(sample: Sample, hidden: Tensor) -> Sample:
    """NaN, Inf and -Inf in turn in keys and values, where `hidden` [B, Hkv, n_k]."""
    bad = replace(sample)
    bad.options = sample.options
    poison = torch.tensor([math.nan, math.inf, -math.inf])
    places = torch.arange(hidden.shape[-1])
    for shift, name in enumerate("kv"):
        clean = getattr(sample, name).detach()
        planted = poison[(places + shift) % 3, None].to(clean.dtype).expand_as(clean)
        setattr(bad, name, torch.where(hidden[..., None], planted, clean).requires_grad_())
    return bad


def hidden_keys(sample: Sample) -> Tensor:
    """Bool [B, Hkv, n_k]: keys that no query may read, by the mask and the key mask."""
    n, n_k = sample.layout.n, sample.layout.n_k
    mask = sample.mask.reshape(-1, len(sample.mask.reshape(-1, n, n_k)), n, n_k)
    if sample.mask.dim() == 4:
        mask = sample.mask
    read = mask.any(2).expand(sample.batch, sample.heads, n_k)
    hidden = ~read.reshape(sample.batch, sample.kv_heads, -1, n_k).any(2)
    if "key_mask" in sample.options:
        hidden = hidden | ~sample.options["key_mask"][:, None]
    return hidden


@contextmanager
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without a compiler: torch's own kernels run, both ways."""
    with monkeypatch.context() as patched:
        patched.setattr(build, "native_compiler", lambda: None)
        build.kernel.cache_clear()
        yield
    build.kernel.cache_clear()  # libraries stay on disk: the next plan loads its own
