"""The CPU backend against float64 dense attention, whose mask comes from the pattern alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import patterncc as pc
from patterncc.kernels import cpu, cpu_cache, cpu_schedule
from patterncc.kernels.cpu_mask import Masks
from patterncc.kernels.plan import Spec


@dataclass(frozen=True)
class Case:
    """Sizes of one call; `layer` is a pattern, or one a head."""

    layer: tuple[pc.Pattern, ...]
    n: int
    n_k: int
    q_offset: int
    block: tuple[int, int]
    B: int
    Hkv: int
    G: int
    D: int
    Dv: int

    @property
    def H(self) -> int:
        return self.Hkv * self.G

    def layout(self):
        layer = self.layer[0] if len(self.layer) == 1 else pc.heads(list(self.layer))
        return pc.compile(layer, self.n, self.n_k, self.q_offset, block=self.block)

    def mask(self) -> Tensor:
        """[H or 1, n, n_k]"""
        sets = [
            pc.lower(p, self.n, self.n_k, self.q_offset, head=h) for h, p in enumerate(self.layer)
        ]
        return torch.from_numpy(np.stack([z.dense() for z in sets]))


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Masked attention in the tensors' own precision, rows without keys 0 and -inf."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    score = (q @ k.mT * scale).masked_fill(~mask, -torch.inf)
    lse = score.logsumexp(-1)
    weight = (score - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
    return weight @ v, lse


def with_grads(inputs: list[Tensor], grad: Tensor, mask: Tensor, scale: float) -> list[Tensor]:
    """Output, LSE and the three gradients, by autograd, in the inputs' precision."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out, lse = dense(*leaves, mask, scale)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, grad)]


def arguments(layout) -> tuple[list[Tensor], Spec]:
    arrays = (
        *(layout.head_pattern, layout.rows.ptr, layout.rows.run),
        *(layout.cols.ptr, layout.cols.run, layout.zones, layout.bits.view(np.int32)),
    )
    return [torch.from_numpy(np.array(a)) for a in arrays], Spec.of(layout, "cpu")


def check(case: Case, dtype: torch.dtype, seed: int = 0) -> None:
    """Errors at most twice those of dense attention in the same precision, plus one rounding."""
    make = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(dtype)

    q = random(case.B, case.n, case.H, case.D).transpose(1, 2)
    k = random(case.B, case.Hkv, case.n_k, case.D)
    v = random(case.B, case.n_k, case.Hkv, case.Dv).transpose(1, 2)
    grad = random(case.B, case.H, case.n, case.Dv)
    tensors, spec = arguments(case.layout())
    out, lse = cpu.forward(q, k, v, tensors, spec, 0.3)
    ours = [out, lse, *cpu.backward(grad, q, k, v, out, lse, tensors, spec, 0.3)]
    mask = case.mask()
    exact = with_grads([x.double() for x in (q, k, v)], grad.double(), mask, 0.3)
    near = with_grads([q, k, v], grad, mask, 0.3)
    assert (ours[0].dtype, ours[1].dtype) == (dtype, torch.float32)
    assert torch.equal(ours[1] == -torch.inf, exact[1] == -torch.inf)
    # One rounding: of the result, or of what it is made from.  dQ and dK are differences of terms of
    # this size, and a probability is exp(score - LSE), whose LSE is kept in fp32.
    spent = exact[1][exact[1] != -torch.inf].abs().max() if (exact[1] != -torch.inf).any() else 0.0
    step = torch.finfo(dtype).eps + spent * torch.finfo(torch.float32).eps
    terms = 0.3 * (grad.double() @ v.double().repeat_interleave(case.G, 1).mT).abs().max()
    sizes = (0, 0, terms * k.abs().max(), terms * q.abs().max(), 0)
    for mine, peer, true, size in zip(ours, near, exact, sizes, strict=True):
        finite = true != -torch.inf
        mine, peer, true = (x.double()[finite] for x in (mine, peer, true))
        if len(true):
            rounding = step * max(true.abs().max(), size)
            assert (mine - true).abs().max() <= 2 * (peer - true).abs().max() + rounding


BLOCKED = pc.window(1, 1, block=16) | pc.global_tokens(range(16)) | pc.random_blocks(2, block=16)
LEAVES = st.one_of(
    st.builds(pc.window, st.integers(0, 60), st.integers(0, 60)),
    st.builds(pc.dilated, st.integers(0, 60), st.integers(0, 20), st.integers(1, 5)),
    st.builds(pc.chunked, st.integers(1, 70)),
    st.builds(pc.global_tokens, st.lists(st.integers(0, 150), min_size=1, max_size=3)),
    st.builds(pc.sink, st.integers(0, 20)),
    st.builds(lambda r, s: pc.random_blocks(r, block=16, seed=s), st.integers(0, 4), st.integers(0, 9)),
    st.builds(lambda r, s: pc.random_edges(r, seed=s), st.integers(0, 4), st.integers(0, 9)),
    st.sampled_from([pc.full(), pc.causal(), pc.strided(7), pc.summary(16, 2), BLOCKED]),
)
PATTERNS = st.recursive(
    LEAVES,
    lambda p: st.one_of(
        st.builds(lambda a, b: a | b, p, p),
        st.builds(lambda a, b: a & b, p, p),
        st.builds(lambda a, b: a - b, p, p),
        st.builds(lambda a: a.T, p),
    ),
    max_leaves=4,
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block = draw(st.sampled_from([(16, 16), (16, 16), (32, 32), (16, 64), (64, 16)]))
    Hkv, G = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    n = draw(st.integers(1, 200))
    offset = draw(st.sampled_from([0, 0, 37]))
    n_k = n + offset if draw(st.booleans()) else draw(st.integers(1, 200))
    heads = draw(st.sampled_from([1, Hkv * G]))
    layer = tuple(draw(PATTERNS) for _ in range(heads))
    D, Dv = draw(st.sampled_from([(16, 16), (16, 16), (24, 16), (16, 32)]))
    return Case(layer, n, n_k, offset, block, draw(st.integers(1, 2)), Hkv, G, D, Dv)


def plain(*layer: pc.Pattern, n: int = 700, block: int = 16, Hkv: int = 2, G: int = 1) -> Case:
    return Case(layer, n, n, 0, (block, block), 1, Hkv, G, 16, 16)


@settings(max_examples=60)
@given(cases(), st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
@example(plain(pc.window(40, 40) | pc.global_tokens([0, 300])), torch.float32)
@example(plain(BLOCKED, Hkv=1, G=2), torch.bfloat16)
@example(plain(pc.causal(), n=333), torch.float32)
@example(plain(BLOCKED, pc.window(9), Hkv=2, G=1), torch.float32)
def test_exact_within_rounding(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)
