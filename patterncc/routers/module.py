"""`RoutedAttention`: projections around `attention`, over edges that are chosen while it runs."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from patterncc.attend.call import attention
from patterncc.attend.checks import Options, check_key_mask, shape
from patterncc.attend.over import split_heads
from patterncc.errors import PatternError, PatternValueError, TensorError
from patterncc.layout import compile as compile_layout
from patterncc.layout.layout import Layout
from patterncc.pattern import Pattern, check_int
from patterncc.routers.centroids import Seen, moved, moved_at_end, seen
from patterncc.routers.choose import choose, normal
from patterncc.routers.chosen import Chosen, layout_of, of_last_heads
from patterncc.routers.kinds import Router, SphericalKMeans
from patterncc.routers.steps import (
    RoutedCache,
    check_options,
    check_steps,
    new_cache,
    place_of,
    step,
    written,
)
from patterncc.stack import Heads, patterns_of
from patterncc.zones.lower import lower

Recorder = Callable[["RoutedAttention", Chosen, int], None]


class RoutedAttention(nn.Module):
    """Self-attention over edges that a router chooses by content, and those of a fixed pattern.

    x [B, L, dim] -> [B, L, dim].  A pair that is both chosen and in `static` counts once.  The
    layout is built on x's device at each call; the choice has no gradient, what is read has.

    router: SphericalKMeans, NearestKeys or TopBlocks.  static: a Pattern, pc.heads([...]), or None.
    causal: keys up to the query's own position only.  routed: so many heads, the last ones, choose;
    the others read `static` alone; default all.  kv_heads: default `heads`.  head_dim: default
    dim / heads.  layer: of `static`, where its edges differ by layer.

    The state dict has q.weight, k.weight, v.weight and out.weight; with k-means also `centroids`
    [heads, clusters, head_dim] fp32, and no k.weight where keys are the queries.  Centroids move in
    training mode, once each time the gradient comes through; see docs/routing.md.

    >>> from patterncc import TopBlocks, causal, window
    >>> m = RoutedAttention(64, 4, 2, TopBlocks(2, block=16), static=causal() & window(15))
    >>> m(torch.randn(2, 100, 64)).shape
    torch.Size([2, 100, 64])

    Raises PatternError for what is no router or pattern, PatternValueError for sizes that do not
    divide and for a static pattern that reads later keys in a causal layer.
    """

    centroids: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        router: Router | None = None,
        *,
        static: Pattern | Heads | None = None,
        causal: bool = True,
        routed: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        layer: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(router, Router):
            raise PatternError(
                f"RoutedAttention: {router!r} is not a router; give pc.SphericalKMeans(...), "
                "pc.NearestKeys(...) or pc.TopBlocks(...)"
            )
        if static is not None and not isinstance(static, Pattern | Heads):
            raise PatternError(f"RoutedAttention: {static!r} is not a pattern or pc.heads([...])")
        check = partial(check_int, "RoutedAttention", least=1)
        self.dim, self.heads = check("dim", dim), check("heads", heads)
        self.kv_heads = self.heads if kv_heads is None else check("kv_heads", kv_heads)
        for name, whole, part in (("dim", dim, heads), ("heads", heads, self.kv_heads)):
            if whole % part and (head_dim is None or name == "heads"):
                raise PatternValueError(
                    f"RoutedAttention: {name} {whole} is not a multiple of {part}"
                )
        if isinstance(static, Heads) and len(static.patterns) != heads:
            raise PatternValueError(
                f"RoutedAttention: {heads} heads, but a pattern for {len(static.patterns)}"
            )
        self.routed = self.heads if routed is None else check("routed", routed, most=self.heads)
        if self.routed < self.heads and static is None:
            raise PatternValueError(
                f"RoutedAttention: {self.heads - self.routed} of {heads} heads choose nothing "
                f"(routed={routed}) and read nothing; give a static pattern"
            )
        self.head_dim = dim // heads if head_dim is None else check("head_dim", head_dim)
        self.router, self.static, self.causal = router, static, causal
        self.layer, self.backend = layer, backend
        self.recorders: list[Recorder] = []
        means = isinstance(router, SphericalKMeans)
        self.tied = isinstance(router, SphericalKMeans) and _tied(router, causal)
        self.q = nn.Linear(dim, self.heads * self.head_dim, bias=bias)
        if not self.tied:
            self.k = nn.Linear(dim, self.kv_heads * self.head_dim, bias=bias)
        self.v = nn.Linear(dim, self.kv_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=bias)
        self.register_buffer("centroids", self._drawn(router) if means else None)

    def _drawn(self, router: Router) -> Tensor:
        """Unit vectors to start from, drawn as parameters are."""
        assert isinstance(router, SphericalKMeans)
        drawn = torch.randn(self.heads, router.clusters, self.head_dim)
        return functional.normalize(normal(drawn), dim=-1)

    def forward(
        self,
        x: Tensor,
        *,
        cache: RoutedCache | None = None,
        position: int | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """All of x attends to itself; or, with a cache, x stands at `position` after what it holds.

        cache, position: from `new_cache`, for causal layers without gradient: first a whole prompt
        at position 0, then one token a call.
        options: scale, softcap, alibi_slopes, relative_bias, sinks, key_mask of `attention`; keys
        that key_mask leaves out are in no cluster and no mean.  Steps with a cache take scale only.

        Raises TensorError for x of another shape, or a cache that x does not fit in.
        """
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise TensorError(
                f"RoutedAttention: x has shape {shape(x)}; it must be (batch, length, {self.dim})"
            )
        if (cache is None) != (position is None):
            raise TensorError("RoutedAttention: cache and position go together; see new_cache")
        q, k, v = self._project(x)
        if cache is not None:
            check_options(options)
            position = place_of(position, q, v)
        if cache is None or position == 0:
            o = self._whole(q, k, v, options)
            if cache is not None:
                written(cache, self.router, q, k, v, self.centroids)
        else:
            assert position is not None
            o = step(self, cache, q, k, v, position, options)
        joined: Tensor = self.out(o.transpose(1, 2).flatten(2))
        return joined

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, L, D]; for k-means normalised, and one if tied."""
        q, v = split_heads(self.q(x), self.head_dim), split_heads(self.v(x), self.head_dim)
        if self.tied:
            q = normal(q)
            return q, q, v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        k = split_heads(self.k(x), self.head_dim)
        return (normal(q), normal(k), v) if self.centroids is not None else (q, k, v)

    @torch.compiler.disable(reason="the edges of a routed layer are known only while it runs")  # type: ignore[no-untyped-call, untyped-decorator]
    def _whole(self, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
        if not q.numel():
            return q * k.sum() * v.sum()  # nothing to choose; gradients are 0, not absent
        if torch.compiler.is_exporting():
            raise TensorError(
                "RoutedAttention: torch.export needs all edges before anything runs, and a routed "
                "layer's are known only while it runs; export a model of SparseAttention"
            )
        n, valid = operator.index(q.shape[2]), options.get("key_mask")
        if valid is not None:
            check_key_mask(valid, q, k)
        chosen = choose(
            self.router, q, k, causal=self.causal, valid=valid, centroids=self.centroids
        )
        chosen = of_last_heads(chosen, self.routed)
        for record in self.recorders:
            record(self, chosen, n)
        self._follow(q, k, v, valid)
        static = None if self.static is None else _compiled(self.static, n, self.layer, self.causal)
        layout = layout_of(chosen, n, static, self.causal)
        o: Tensor = attention(q, k, v, layout, enable_gqa=True, backend=self.backend, **options)
        return o

    def _follow(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> None:
        """Let the centroids move if the gradient comes back, once the backward pass has ended.

        A forward pass that is recomputed within it must choose what it chose before, also where
        the layer stands several times in the model.
        """
        if self.centroids is None or not self.training or not torch.is_grad_enabled():
            return
        assert isinstance(self.router, SphericalKMeans)
        news = seen(q, k, self.centroids, valid, sync=self.router.sync)
        reached = next((t for t in (q, k, v) if t.requires_grad), None)
        if reached is not None:
            moved_at_end(reached, partial(self._move, news))

    def _move(self, news: Seen) -> None:
        assert isinstance(self.router, SphericalKMeans) and self.centroids is not None
        self.centroids.copy_(moved(self.centroids, news, self.router.decay))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.to(...)` of a module; centroids keep fp32, in which a step of their average is seen."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.centroids is not None and self.centroids.dtype in (torch.float16, torch.bfloat16):
            self.centroids = self.centroids.float()
        return self

    def new_cache(self, batch: int, capacity: int) -> RoutedCache:
        """Zeroed buffers for `capacity` tokens of `batch` sequences, and what the router keeps.

        Raises PatternValueError for a layer whose steps would not read what its whole pass reads.
        """
        check_steps(self.router, self.static, self.causal)
        return new_cache(self, batch, capacity)

    def extra_repr(self) -> str:
        """What `print(model)` shows beside the projections."""
        return (
            f"{self.dim}, heads={self.heads}, kv_heads={self.kv_heads}, router={self.router}, "
            f"routed={self.routed}, "
            f"static={self.static}, causal={self.causal}"
        )


def _tied(router: SphericalKMeans, causal: bool) -> bool:
    return causal if router.tied is None else router.tied


@lru_cache(maxsize=64)
def _compiled(pattern: Pattern | Heads, n: int, layer: int, causal: bool) -> Layout:
    """The static layout for n tokens; in a causal layer, of a pattern that reads no later key."""
    if causal:
        for head, p in enumerate(patterns_of(pattern)):
            table = lower(p, n, layer=layer, head=head).table
            if len(table) and int(table[:, 5].max()) > 1:
                raise PatternValueError(
                    f"RoutedAttention: {p} reads later positions in a causal layer; intersect it "
                    "with causal(), or pass causal=False"
                )
    return compile_layout(pattern, n, layer=layer, order="token")
