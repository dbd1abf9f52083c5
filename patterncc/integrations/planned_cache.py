"""PlannedCache: a KV cache with room for the keys that can still be read, and no others.

    plan = pc.cache_plan(stack, 4096, kv_heads=2, head_dim=64, dtype=torch.float32)
    cache = pc.PlannedCache(plan, batch=1)
    for t in range(4096):
        for l in range(layers):
            cache.append(l, k, v)          # [batch, key heads, 1, head dim]
            out = cache.attend(l, q)       # [batch, query heads, 1, head dim]

Attention gathers the keys of the query's row in the order of positions, so its sums are those of a
cache that keeps everything.  `held` says how keys find their slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patterncc.cache import CachePlan, LayerCache
from patterncc.errors import TensorError
from patterncc.integrations.held import Group, Slots, groups_of
from patterncc.pattern import check_int

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


_DTYPES = {
    **dict.fromkeys(("float32", "fp32"), torch.float32),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float16", "fp16"), torch.float16),
    "float64": torch.float64,
}


class PlannedCache:
    """The keys and values of a stack, evicted as planned; decoding only, without gradients.

    head_dim, value_dim: by default the plan's, and head_dim's.  dtype: the plan's unless given, a
    floating type of torch or its name; keys and values must be of it.
    poison: write NaN over what is evicted, to show that nothing reads it.

    Raises TensorError for tensors of another shape, and for reads of keys that are not held.
    """

    def __init__(
        self,
        plan: CachePlan,
        batch: int = 1,
        *,
        head_dim: int | None = None,
        value_dim: int | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        poison: bool = False,
    ) -> None:
        if not isinstance(plan, CachePlan):
            raise TensorError(
                f"PlannedCache: the first argument is a {type(plan).__name__}, not a plan; pass "
                "cache_plan(stack, n)"
            )
        self.plan, self.poison = plan, poison
        self.dtype = _dtype(plan.dtype if dtype is None else dtype)
        self.batch = check_int("PlannedCache", "batch", batch, 1)
        dim = plan.head_dim if head_dim is None else head_dim
        dims = (dim, dim if value_dim is None else value_dim)
        self._groups: dict[int, list[Group]] = {}
        self._written = {c.layer: 0 for c in plan.caches}
        for cache in plan.caches:
            slots = [
                Slots(spans, curve.peak[0])
                for spans, curve in zip(cache.spans, cache.curves, strict=True)
            ]
            like = self.dtype, device
            self._groups[cache.layer] = groups_of(slots, cache.each, batch, dims, like)

    def __repr__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"PlannedCache({len(self.plan.layers)} layers, {kind}, {self.nbytes:,} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        groups = (g for each in self._groups.values() for g in each)
        return sum(g.nbytes for g in groups)

    def position(self, layer: int) -> int:
        """The position that the next key of a layer stands at."""
        return self._written[self._cache(layer).layer]

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write the keys and values [batch, key heads, 1, dim] of the layer's next position.

        The first call holds all positions before the plan's first step, if there are any.
        """
        cache = self._cache(layer)
        if cache.layer != layer:
            raise TensorError(
                f"PlannedCache: layer {layer} reads the keys of layer {cache.layer} and writes "
                f"none; leave out its append"
            )
        first = self._written[layer]
        count = max(1, cache.start) if first == 0 else 1
        self._check(cache, k, v, first, count)
        for group in self._groups[layer]:
            written = group.slots.write(first, count, max(first, cache.start))
            group.store(k, v, written, poison=self.poison)
        self._written[layer] = first + count

    def attend(self, layer: int, q: Tensor, *, scale: float | None = None) -> Tensor:
        """Attention of the query at the last written position, [batch, heads, 1, dim].

        A row that reads nothing gives zeros.  Products and softmax are in float32.
        """
        cache, reads = self._cache(layer), self.plan.reads[layer]
        if not reads.certain:
            raise TensorError(
                f"PlannedCache: layer {layer} chooses its keys by content; take what it chose with "
                "gather(layer, keys)"
            )
        t = self._written[cache.layer] - 1
        self._check_query(cache, layer, q, t)
        size = q.shape[1] // cache.heads
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        each = reads.head_zones
        patterns = each * q.shape[1] if len(each) == 1 else each
        parts: list[tuple[list[int], Tensor]] = []
        for group in self._groups[cache.layer]:
            for pattern in sorted(set(patterns)):
                mine = [
                    (h, group.heads.index(h // size))
                    for h in range(q.shape[1])
                    if patterns[h] == pattern and h // size in group.heads
                ]
                if mine:
                    heads, local = map(list, zip(*mine))
                    slots = group.slots.find(reads.row(t, pattern))
                    k, v = _picked(group, local, slots)
                    parts.append((heads, _softmax_product(q[:, heads], k, v, scale)))
        out = parts[0][1].new_empty(*q.shape[:3], parts[0][1].shape[-1])
        for heads, part in parts:
            out[:, heads] = part
        return out

    def gather(self, layer: int, keys: object, head: int = 0) -> tuple[Tensor, Tensor]:
        """K and V [batch, keys, dim] of one key/value head at some positions, ascending."""
        cache = self._cache(layer)
        wanted = np.unique(np.asarray(keys, dtype=np.int64))
        for group in self._groups[cache.layer]:
            if head in group.heads:
                slots = group.slots.find(np.stack([wanted, wanted + 1], axis=1))
                k, v = _picked(group, [group.heads.index(head)], slots)
                return k[:, 0], v[:, 0]
        raise TensorError(
            f"PlannedCache: layer {layer} has {cache.heads} key/value heads, no head {head}"
        )

    def _cache(self, layer: int) -> LayerCache:
        if not 0 <= layer < len(self.plan.layers):
            raise TensorError(
                f"PlannedCache: layer {layer} of a plan of {len(self.plan.layers)} layers"
            )
        return self.plan.layers[layer]

    def _check(self, cache: LayerCache, k: Tensor, v: Tensor, first: int, count: int) -> None:
        if first + count > max(cache.stop, 1):
            raise TensorError(
                f"PlannedCache: position {first} is past the {cache.stop} that are planned; make "
                "the plan for more tokens"
            )
        group = self._groups[cache.layer][0]
        for name, x, buffer in (("k", k, group.k), ("v", v, group.v)):
            shape = (self.batch, cache.heads, count, buffer.shape[-1])
            if tuple(x.shape) != shape:
                raise TensorError(
                    f"PlannedCache: {name} of layer {cache.layer} at position {first} has shape "
                    f"{tuple(x.shape)}; it must be {shape}"
                )
            if x.dtype != self.dtype:
                raise TensorError(
                    f"PlannedCache: {name} of layer {cache.layer} is {x.dtype}, and the cache "
                    f"holds {self.dtype}; make the cache with dtype={x.dtype}, or convert {name}"
                )

    def _check_query(self, cache: LayerCache, layer: int, q: Tensor, t: int) -> None:
        if t < cache.start:
            raise TensorError(
                f"PlannedCache: layer {layer} has no key at step {max(t, cache.start)} yet; append "
                "comes before attend, and the positions before the first step all at once"
            )
        heads = len(self.plan.reads[layer].head_zones)
        wrong = q.dim() != 4 or q.shape[0] != self.batch or q.shape[2] != 1
        if wrong or q.shape[1] % cache.heads or heads not in (1, q.shape[1]):
            raise TensorError(
                f"PlannedCache: q of layer {layer} has shape {tuple(q.shape)}; it must be "
                f"({self.batch}, heads, 1, dim), the heads a multiple of {cache.heads}"
                + (f" and {heads}" if heads > 1 else "")
            )


def _dtype(given: object) -> torch.dtype:
    """A type in which keys are held: torch's, or its name as in a plan."""
    name = str(given).removeprefix("torch.")
    if name not in _DTYPES:
        raise TensorError(
            f"PlannedCache: dtype is {name}, in which attention cannot be computed; pass "
            "dtype= one of float32, float64, bfloat16 and float16"
        )
    return _DTYPES[name]


def _picked(group: Group, local: list[int], slots: I64) -> tuple[Tensor, Tensor]:
    """K and V [batch, len(local), keys, dim] of some heads of a group."""
    k, v = group.take(slots)
    return k[:, local], v[:, local]


def _softmax_product(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale) v in float32, in q's dtype; zeros where there is no key."""
    if not k.shape[2]:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    scores = q.float() @ k.float().transpose(2, 3) * scale
    return (scores.softmax(-1) @ v.float()).to(q.dtype)
