"""What `patterncc bench check` checks: masks, shapes, options and caches, each against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from patterncc.attend import attention
from patterncc.attend.varlen import attention_varlen
from patterncc.bench import exact
from patterncc.errors import BackendError
from patterncc.kernels import reference
from patterncc.kernels.score import Score
from patterncc.layout import compile
from patterncc.layout.packed import compile_packed
from patterncc.pattern import Pattern
from patterncc.primitives import (
    causal,
    documents,
    full,
    global_tokens,
    random_blocks,
    random_edges,
    strided,
    window,
)
from patterncc.stack import Layer, heads, patterns_of
from patterncc.zones.lower import lower

GRADS = ("grad_q", "grad_k", "grad_v")
OPTIONS = ("softcap", "alibi_slopes", "relative_bias", "sinks", "key_mask")


@dataclass(frozen=True)
class Place:
    """Where checks run; size: tokens of a usual one."""

    name: str
    where: torch.device
    backend: str
    size: int


@dataclass(frozen=True)
class Check:
    """One thing that has to hold; `run` raises where it does not."""

    name: str
    run: Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """Tensors of one call."""

    heads: tuple[int, int] = (2, 2)
    dim: int = 64
    batch: int = 1
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        """As it is told."""
        return f"{str(self.dtype)[6:]}, dim {self.dim}, heads {self.heads[0]}:{self.heads[1]}"


@dataclass(frozen=True, eq=False)
class Sample:
    """Random tensors and the mask that they are judged by, [H or 1, n, n_k]."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    seen: Tensor
    options: dict[str, Any] = field(default_factory=dict)


def checks(place: Place) -> Iterator[Check]:
    """All of them."""
    n = place.size
    half, single = (torch.float16, torch.bfloat16), torch.float32
    usual = Shape()
    for name, layer in masks(n).items():
        yield _whole(f"mask: {name}", place, layer, n, usual)
    for dtype, dim, group in product((*half, single), (64, 128), ((2, 2), (8, 1))):
        shape = Shape(group, dim, 1, dtype)
        yield _whole(f"shape: {shape.name}", place, causal() & window(n // 3), n - 3, shape)
    for dim in (16, 80, 256):
        yield _whole(f"shape: dim {dim}", place, causal(), n // 2 + 1, Shape(dim=dim))
    yield _whole("batch of 3", place, causal() & window(99), n // 2, Shape(batch=3))
    hubs = window(8, 8) | global_tokens(range(4))
    for block in (64, 128):
        yield _whole(f"split rows, blocks of {block}", place, hubs, 4 * n, usual, block=block)
    one = Shape((1, 1), 64)
    yield _whole("split rows of one head", place, causal(), 4 * n, one, block=64)
    for option in OPTIONS:
        yield _whole(f"option: {option}", place, causal(), n // 2, usual, options=(option,))
    near = causal() & window(n // 4)
    yield _whole("all options, GQA", place, near, n // 2, Shape((4, 2)), options=OPTIONS)
    yield Check("repeatable: the same bits twice", partial(_repeatable, place))
    yield Check("junk in keys that nobody reads", partial(_junk, place))
    yield Check("no query reads anything", partial(_nothing, place))
    for group, paged, lengths in product(((4, 4), (8, 1), (6, 2)), (False, True), (False, True)):
        name = f"decode: heads {group[0]}:{group[1]}" + ", pages" * paged + ", lengths" * lengths
        yield Check(name, partial(_decode, place, group, paged, lengths))
    yield Check("decode: rows beyond one tile", partial(_decode, place, (4, 2), False, False, 5))
    yield Check("packed sequences", partial(_packed, place))
    yield Check("documents told by ids on the device", partial(_ids, place))
    if place.where.type == "cuda":
        yield Check("a CUDA graph replays a decode step", partial(_graph, place))
        yield Check("torch.compile, one graph", partial(_compiled, place))


def masks(n: int) -> dict[str, Layer]:
    """Every mask class: full tiles, one to four zones, bits, nothing; orders, and heads that
    differ."""
    lengths = [n // 5, n // 3, n - n // 5 - n // 3]
    return {
        "full": full(),
        "causal": causal(),
        "window": causal() & window(n // 5),
        "two zones": window(9, 5) | global_tokens([1, n // 2]),
        "documents": causal() & documents(lengths),
        "blocks": random_blocks(2, block=64 if n >= 256 else 16),
        "bits": causal() & random_edges(9, seed=1),
        "rows that read nothing": causal() & ~global_tokens(range(3, n, 7)),
        "another order": causal() & (strided(max(8, n // 16)) | window(5)),
        "heads that differ": heads([causal() & window(n // 9), full()]),
    }


def _whole(
    name: str,
    place: Place,
    layer: Layer,
    n: int,
    shape: Shape,
    *,
    block: int | None = None,
    options: Sequence[str] = (),
) -> Check:
    """Output, LSE and gradients of a layout, both ways of the backward pass."""

    def run() -> None:
        layout = compile(layer, n, block=block)
        sample = drawn(place, layer, n, shape, options)
        rough, true = (judged(sample, t) for t in (shape.dtype, torch.float64))
        for deterministic in (True, False):
            found = ours(place, sample, layout, deterministic)
            exact.demand(exact.errors(found, rough, true))

    return Check(name, run)


def drawn(
    place: Place, layer: Layer, n: int, shape: Shape, options: Sequence[str] = (), seed: int = 0
) -> Sample:
    """Random tensors for a layer."""
    make = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=make).to(place.where, shape.dtype)

    query, key = shape.heads
    seen = torch.stack([torch.from_numpy(lower(p, n).dense()) for p in patterns_of(layer)])
    every = {
        "softcap": 5.0,
        "alibi_slopes": torch.rand(query, generator=make).to(place.where),
        "relative_bias": torch.randn(query, 2 * 6 + 1, generator=make).to(place.where),
        "sinks": torch.randn(query, generator=make).to(place.where),
        "key_mask": (torch.rand(shape.batch, n, generator=make) < 0.9).to(place.where),
    }
    return Sample(
        normal(shape.batch, query, n, shape.dim),
        normal(shape.batch, key, n, shape.dim),
        normal(shape.batch, key, n, shape.dim),
        normal(shape.batch, query, n, shape.dim),
        seen.to(place.where),
        {name: every[name] for name in options},
    )


def ours(place: Place, s: Sample, layout: Any, deterministic: bool) -> dict[str, Tensor]:
    """Output, LSE and gradients of `attention`."""
    leaves = [x.detach().requires_grad_() for x in (s.q, s.k, s.v)]
    q, k, v = leaves
    out, lse = attention(
        q,
        k,
        v,
        layout,
        enable_gqa=True,
        return_lse=True,
        backend=place.backend,
        deterministic=deterministic,
        **s.options,
    )
    grads = torch.autograd.grad(out, leaves, s.grad)
    return {"out": out.detach(), "lse": lse, **dict(zip(GRADS, grads))}


def judged(s: Sample, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same by dense attention in a precision of its own."""
    q, k, v = leaves = [x.detach().to(dtype).requires_grad_() for x in (s.q, s.k, s.v)]
    if not s.options:
        return exact.dense(q, k, v, lambda first, last: s.seen[:, first:last], s.grad.to(dtype))
    score = Score(
        s.q.shape[-1] ** -0.5,
        s.options.get("softcap", 0.0),
        slopes=s.options.get("alibi_slopes"),
        bias=s.options.get("relative_bias"),
        sinks=s.options.get("sinks"),
        keys=s.options.get("key_mask"),
    )
    out, lse = reference.attention(q, k, v, s.seen, dtype=dtype, score=score)
    grads = torch.autograd.grad(out, leaves, s.grad.to(dtype))
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(GRADS, grads))}


def _demand(wrong: bool, what: str) -> None:
    if wrong:
        raise BackendError(what)


def _repeatable(place: Place) -> None:
    """The default backward pass gives the same bits, heavy rows and columns included."""
    n = place.size
    layer = window(9, 9) | global_tokens(range(4))
    layout, sample = compile(layer, n, block=64), drawn(place, layer, n, Shape())
    first, second = (ours(place, sample, layout, True) for _ in range(2))
    for name, x in first.items():
        _demand(not torch.equal(x, second[name]), f"{name} differs between two runs")


def _junk(place: Place) -> None:
    """NaN and infinities in keys and values that no query reads reach nothing."""
    n = place.size
    layer: Pattern = causal() & ~global_tokens([3, n // 2]) | window(0, 0) & ~global_tokens([3])
    unread = ~torch.from_numpy(lower(layer, n).dense().any(0)).to(place.where)
    _demand(not bool(unread.any()), "the mask of this check reads every key")
    sample = drawn(place, layer, n, Shape())
    clean = ours(place, sample, compile(layer, n), True)
    for x in (sample.k, sample.v):
        x[:, :, unread] = torch.nan
    sample.v[:, :, unread] = torch.inf
    dirty = ours(place, sample, compile(layer, n), True)
    for name in ("out", "lse", "grad_q"):
        _demand(not torch.equal(clean[name], dirty[name]), f"{name} changed")


def _nothing(place: Place) -> None:
    n = place.size
    layer = causal() & window(3) & ~full()
    found = ours(place, drawn(place, layer, n, Shape()), compile(layer, n), True)
    for name, x in found.items():
        true = torch.full_like(x, -torch.inf if name == "lse" else 0)
        _demand(not torch.equal(x, true), f"{name} is not {true.flatten()[0].item()}")


def _decode(
    place: Place, group: tuple[int, int], paged: bool, lengths: bool, rows: int = 1
) -> None:
    """Steps of three sequences at positions of their own, junk in slots that no row reads."""
    n, batch, side = place.size, 3, 16
    layer = causal() & (window(n // 3) | global_tokens(range(2)))
    sample = drawn(place, layer, n, Shape(group, 64, batch))
    where = place.where
    at = torch.tensor([n // 4, n // 2, n - rows], dtype=torch.int32, device=where)
    held = torch.tensor([n, n // 2 - 5, n - 7], dtype=torch.int32, device=where)
    row = at[:, None].long() + torch.arange(rows, device=where)
    q = sample.q.gather(2, row[:, None, :, None].expand(-1, group[0], -1, 64))
    seen = sample.seen[0][row][:, None]
    if lengths:
        seen = seen & (torch.arange(n, device=where) < held[:, None])[:, None, None]
    rough, true = (
        dict(zip(("out", "lse"), reference.attention(q, sample.k, sample.v, seen, dtype=t)))
        for t in (q.dtype, torch.float64)
    )
    unread = ~seen.any(2)[..., None]
    k, v = (x.masked_fill(unread, torch.nan) for x in (sample.k, sample.v))
    more: dict[str, Any] = {"key_lengths": held} if lengths else {}
    if paged:
        k, v, more["block_table"] = in_pages(k, v, side)
    with torch.no_grad():
        out, lse = attention(
            q, k, v, compile(layer, n), enable_gqa=True, return_lse=True, position=at,
            backend=place.backend, **more,
        )  # fmt: skip
    exact.demand(exact.errors({"out": out, "lse": lse}, rough, true))


def in_pages(k: Tensor, v: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Caches [B, H, n, D] as pages in an order drawn at random, and the table of each sequence."""
    batch, _, n, _ = k.shape
    count = -(-n // side)
    order = torch.randperm(batch * count, generator=torch.Generator().manual_seed(1)).to(k.device)
    pages = []
    for x in (k, v):
        whole = torch.nn.functional.pad(x, (0, 0, 0, count * side - n), value=torch.nan)
        cut = whole.reshape(batch, -1, count, side, x.shape[3]).transpose(1, 2).flatten(0, 1)
        held = torch.empty_like(cut)
        held[order] = cut
        pages.append(held)
    return pages[0], pages[1], order.view(batch, count).to(torch.int32)


def _packed(place: Place) -> None:
    """Sequences behind each other, as FlashAttention's varlen takes them."""
    n = place.size
    ends = [0, n // 5, n // 5, n // 2, n]
    sample = drawn(place, full(), n, Shape((4, 2)))
    ids = torch.bucketize(torch.arange(n), torch.tensor(ends[1:]), right=True)
    seen = (ids[:, None] == ids) & (torch.arange(n)[:, None] >= torch.arange(n))
    q, k, v = (x[0].transpose(0, 1) for x in (sample.q, sample.k, sample.v))
    layout = compile_packed(causal(), ends)
    out = attention_varlen(q, k, v, layout, enable_gqa=True, backend=place.backend)
    _compare(sample, seen.to(place.where), out.transpose(0, 1)[None])


def _ids(place: Place) -> None:
    """A layout that is built on the device from the ids of a batch."""
    n = place.size
    ids = (torch.arange(n) // (n // 3)).repeat(2, 1).to(torch.int32)
    ids[1] = torch.arange(n) // (n // 5)
    seen = (ids[:, :, None] == ids[:, None]) & torch.ones(n, n, dtype=torch.bool).tril()
    sample = drawn(place, full(), n, Shape((2, 2), 64, 2))
    layout = compile(causal(), n, doc_ids=ids.to(place.where))
    out = attention(sample.q, sample.k, sample.v, layout, backend=place.backend)
    _compare(sample, seen[:, None].to(place.where), out)


def _compare(s: Sample, seen: Tensor, out: Tensor) -> None:
    rough, true = (
        {"out": reference.attention(s.q, s.k, s.v, seen, dtype=t)[0]}
        for t in (s.q.dtype, torch.float64)
    )
    exact.demand(exact.errors({"out": out}, rough, true))


def _graph(place: Place) -> None:
    """Captured once, replayed with another position and another query."""
    n = place.size
    layer = causal() & window(n // 3)
    layout, sample = compile(layer, n), drawn(place, layer, n, Shape((8, 1), 64, 2))
    at = torch.full((2,), n // 2, dtype=torch.int32, device=place.where)
    q = sample.q[:, :, :1].clone()

    def step() -> Tensor:
        with torch.no_grad():
            return attention(q, sample.k, sample.v, layout, enable_gqa=True, position=at)

    cuda: Any = torch.cuda  # whose streams have no types
    beside = cuda.Stream()
    beside.wait_stream(cuda.current_stream())
    with cuda.stream(beside):
        for _ in range(3):
            step()
    cuda.current_stream().wait_stream(beside)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        out = step()
    for position in (n // 2, n - 1, 0):
        at.fill_(position)
        q.copy_(sample.q[:, :, position : position + 1])
        graph.replay()
        torch.cuda.synchronize()
        _demand(not torch.equal(out, step()), f"a replay at {position} differs from a call")


def _compiled(place: Place) -> None:
    """One graph, the same bits, no second trace for another length."""
    call = torch.compile(attention, fullgraph=True)
    layer = causal() & window(50)
    for n in (place.size, place.size // 2):
        sample = drawn(place, layer, n, Shape())
        layout = compile(layer, n)
        found = call(sample.q, sample.k, sample.v, layout)
        plain = attention(sample.q, sample.k, sample.v, layout)
        _demand(not torch.equal(found, plain), f"compiled attention differs at {n} tokens")
