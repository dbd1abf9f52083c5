"""`SparseAttention` over a context, a memory and caches, held to dense attention in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import patterncc as pc

WINDOW = pc.causal() & (pc.window(9) | pc.sink(2))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dense(
    m: pc.SparseAttention, x: Tensor, source: Tensor, mask: Tensor, keep: Tensor | None = None
) -> Tensor:
    """The module with dense attention under a mask [n, n_k]; rows that read nothing give 0."""
    q, k, v = (
        y.unflatten(-1, (-1, m.head_dim)).transpose(1, 2)
        for y in (m.q(x), m.k(source), m.v(source))
    )
    k, v = (y.repeat_interleave(m.heads // m.kv_heads, 1) for y in (k, v))
    allowed = mask.expand(x.shape[0], 1, *mask.shape)
    if keep is not None:
        allowed = allowed & keep[:, None, None, :]
    scores = (q @ k.mT * m.head_dim**-0.5).masked_fill(~allowed, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return m.out((weights @ v).transpose(1, 2).flatten(2))


def same(m: torch.nn.Module, ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Outputs agree, and gradients of inputs and weights, in float64."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    given, grad = [*inputs, *m.parameters()], torch.randn_like(ours)
    one, other = (torch.autograd.grad(y, given, grad, allow_unused=True) for y in (ours, theirs))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("n,n_k", [(20, 33), (33, 20), (1, 40)])
def test_cross_attention_is_dense_attention_under_the_mask(n: int, n_k: int) -> None:
    pattern = pc.window(4, 6) | pc.sink(1)
    m = pc.SparseAttention(24, 4, 2, pattern, context_dim=10, bias=True).double()
    x = torch.randn(2, n, 24, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, n_k, 10, dtype=torch.float64, requires_grad=True)
    mask = torch.from_numpy(pc.lower(pattern, n, n_k).dense())
    same(m, m(x, context=context), dense(m, x, context, mask), x, context)
    keep = torch.arange(n_k) < torch.tensor([n_k, 3])[:, None]
    ours = m(x, context=context, key_mask=keep)
    same(m, ours, dense(m, x, context, mask, keep), x, context)


def test_a_memory_stands_in_front() -> None:
    m = pc.SparseAttention(24, 4, 2, WINDOW).double()
    x = torch.randn(2, 17, 24, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 6, 24, dtype=torch.float64, requires_grad=True)
    mask = torch.from_numpy(pc.lower(WINDOW, 17, q_offset=6).dense())
    assert mask.shape == (17, 23)
    ours = m(x, memory=memory)
    same(m, ours, dense(m, x, torch.cat((memory, x), 1), mask), x, memory)
    m(x, memory=memory.detach()).sum().backward()
    assert memory.grad is None and x.grad is not None
    whole = m(torch.cat((memory, x), 1))  # in one layer a memory is what stood before
    torch.testing.assert_close(m(x, memory=memory), whole[:, 6:])
    assert m.layout(17, memory=6) is m.layout(17, 23, 6)


def test_each_sequence_decodes_at_its_own_place_after_a_prefill_in_chunks() -> None:
    m = pc.SparseAttention(24, 4, 2, WINDOW)
    x = torch.randn(3, 30, 24)
    with torch.no_grad():
        whole, cache = m(x), m.new_cache(3, 40)
        cache[0].fill_(torch.nan), cache[1].fill_(torch.nan)
        chunks = [m(x[:, a : a + 8], cache=cache, position=a) for a in (0, 8, 16)]
        torch.testing.assert_close(torch.cat(chunks, 1), whole[:, :24], rtol=1e-4, atol=1e-5)
        at = torch.tensor([24, 11, 3])
        for _ in range(4):
            step = torch.stack([x[b, int(i) : int(i) + 1] for b, i in enumerate(at)])
            out = m(step, cache=cache, position=at, key_lengths=at + 1)
            expected = torch.stack([whole[b, int(i)] for b, i in enumerate(at)])
            torch.testing.assert_close(out[:, 0], expected, rtol=1e-4, atol=1e-5)
            at += 1
        m(x[:, :27], cache=cache, position=0)
        keep = torch.ones(3, 40, dtype=torch.bool)
        keep[:, 20:24] = False
        out = m(x[:, 27:28], cache=cache, position=27, key_mask=keep)
        mask = torch.from_numpy(pc.lower(WINDOW, 30).dense())[27:28]
        expected = dense(m, x[:, 27:28], x, mask, keep[:, :30])
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made_inside", [True, False])
def test_a_cache_under_autocast(made_inside: bool) -> None:
    m = pc.SparseAttention(32, 4, 2, WINDOW)
    x = torch.randn(2, 20, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = m(x)
        cache = m.new_cache(2, 24) if made_inside else m.new_cache(2, 24, torch.float32)
        steps = [m(x[:, :12], cache=cache, position=0)]
        steps += [m(x[:, i : i + 1], cache=cache, position=i) for i in range(12, 20)]
    assert cache[0].dtype == (torch.bfloat16 if made_inside else torch.float32)
    assert whole.dtype == steps[0].dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=2e-2, atol=2e-2)
    with torch.no_grad():  # a narrow cache beside wide weights
        outside = m(x[:, 19:20], cache=m_filled(m, x), position=19)
    assert outside.dtype == torch.float32
    torch.testing.assert_close(outside, m(x)[:, 19:20], rtol=2e-2, atol=2e-2)


def m_filled(m: pc.SparseAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """A bfloat16 cache that holds x but for its last token."""
    cache = m.new_cache(2, 24, torch.bfloat16)
    m(x[:, :19], cache=cache, position=0)
    return cache


def test_a_step_of_cross_attention_takes_the_layout_of_all_its_queries() -> None:
    pattern = pc.window(5, 5)
    m = pc.SparseAttention(24, 4, pattern=pattern)
    x, context = torch.randn(2, 12, 24), torch.randn(2, 20, 24)
    layout = m.layout(12, 20)
    with torch.no_grad():
        whole = m(x, context=context)
        made = m.keys_values(context)
        for given in (context, made):
            one = m(x[:, 7:8], context=given, layout=layout, position=7)
            torch.testing.assert_close(one, whole[:, 7:8])
    torch.testing.assert_close(m(x, context=made), whole)


def test_what_does_not_go_together_is_refused() -> None:
    m = pc.SparseAttention(24, 4, pattern=WINDOW)
    x, y, cache = torch.randn(2, 8, 24), torch.randn(2, 5, 24), m.new_cache(2, 16)
    at = torch.zeros(2, dtype=torch.int32)
    wrong: list[tuple[str, dict[str, object]]] = [
        ("context and memory; keys come from one", {"context": y, "memory": y}),
        ("a cache beside context or memory", {"cache": cache, "position": 0, "memory": y}),
        (r"memory has shape \(1, 5, 24\), x \(2, 8, 24\); the batch", {"memory": y[:1]}),
        (r"context has shape \(2, 24\); it must be \(batch, length, 24\)", {"context": y[:, 0]}),
        (
            "a memory of 5 tokens, the layout's queries begin at 0",
            {"memory": y, "layout": pc.compile(WINDOW, 8, 13)},
        ),
        ("position needs a cache", {"context": y, "position": 0}),
        ("key_lengths needs position", {"key_lengths": at}),
        (r"position is torch.float32 of shape \(2\)", {"cache": cache, "position": at.float()}),
        (r"at position \[3, 9\] do not fit", {"cache": cache, "position": torch.tensor([3, 9])}),
        (
            r"key_lengths is torch.int32 of shape \(1\)",
            {"cache": cache, "position": 0, "key_lengths": at[:1]},
        ),
    ]
    for message, given in wrong:
        with torch.no_grad(), pytest.raises(pc.TensorError, match=message):
            m(x, **given)
    narrow = pc.SparseAttention(24, 4, pattern=WINDOW, context_dim=10)
    with pytest.raises(pc.TensorError, match=r"keys are made of 10 features.*give context="):
        narrow(x)
    with pytest.raises(pc.PatternError, match=r"Stack.* is not a pattern"):
        pc.SparseAttention(24, 4, pattern=pc.Stack([WINDOW]))


@pytest.mark.parametrize("sizes", [(0, 5, 24), (2, 0, 24)])
def test_no_sequences_and_no_tokens(sizes: tuple[int, ...]) -> None:
    m, x = pc.SparseAttention(24, 4, 2, WINDOW), torch.randn(sizes, requires_grad=True)
    out = m(x)
    assert out.shape == sizes
    for grad in torch.autograd.grad(out.sum(), [x, *m.parameters()]):
        assert not grad.any()


def test_no_tensor_of_all_pairs_is_made() -> None:
    m, x = pc.SparseAttention(16, 2, pattern=WINDOW), torch.randn(1, 3000, 16, requires_grad=True)
    m(x).sum().backward()  # compiled and prepared
    with torch.profiler.profile(profile_memory=True) as seen:
        m(x).sum().backward()
    largest = max(e.self_cpu_memory_usage for e in seen.events())
    assert 0 < largest < 3000 * 3000, largest
