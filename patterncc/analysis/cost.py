"""What a layer costs: edges, density, FLOPs and KV bytes against full attention, in closed form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.cost_choice import Chooses, Chosen, chooses
from patterncc.analysis.engines import offsets
from patterncc.analysis.parts import attention_part
from patterncc.analysis.spread import size
from patterncc.analysis.topology import Kind, Pairs, Topology
from patterncc.pattern import Pattern
from patterncc.stack import Stack, patterns_of
from patterncc.zones import ZoneSet, algebra
from patterncc.zones.lower import keyed, lower

if TYPE_CHECKING:
    from patterncc.analysis.spread import I64

HEAD_DIM = 128
BYTES = 2  # of one number of K or V, as fp16 and bf16 are stored


@dataclass(frozen=True)
class LevelCost:
    """One layer: exact edges of all its heads, and figures of the mean head.

    flops are 4 * D * edges (two products, a multiply and an add each); full_flops the same over
    every allowed pair.  kv_bytes are the keys and values that the last query reads (a decode
    step), full_kv_bytes those of every position.  Both are for one head.

    Only attention is counted.  A recurrence or a convolution (`kind`) has no edges and no keys: its
    state has one size whatever the length, and is left out; a hybrid layer counts its attention.
    A layer that reads another's keys and values (`kv_shared`) adds none to the cache: kv_held_bytes
    are those of kv_bytes that the cache holds on this layer's account, what the layers that share
    them read of them included.
    """

    layer: int
    kind: Kind
    heads: int
    edges: tuple[int, ...]
    edges_least: tuple[int, ...]
    how: str
    density: float
    flops: float
    full_flops: int
    flops_share: float
    kv_shared: bool
    kv_bytes: float
    kv_held_bytes: float
    full_kv_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        listed = {"edges": list(self.edges), "edges_least": list(self.edges_least)}
        return {**asdict(self), **listed}


@dataclass(frozen=True)
class TotalCost:
    """All layers together, against full attention in every one of them.

    kv_share is what a decode step reads, kv_held_share what the cache holds for it.
    """

    flops: float
    full_flops: int
    flops_share: float
    kv_bytes: float
    kv_held_bytes: float
    full_kv_bytes: int
    kv_share: float
    kv_held_share: float

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def total(costs: tuple[LevelCost, ...]) -> TotalCost:
    """The sums over layers, and their shares of full attention's.

    >>> from patterncc import Stack, analyze, causal, recurrent
    >>> found = total(analyze(Stack([recurrent()] * 3 + [causal()]), 64).costs)
    >>> found.flops_share, found.kv_share
    (0.25, 0.25)
    """
    flops, full_flops = sum(c.flops for c in costs), sum(c.full_flops for c in costs)
    read, held = sum(c.kv_bytes for c in costs), sum(c.kv_held_bytes for c in costs)
    full_kv = sum(c.full_kv_bytes for c in costs)
    return TotalCost(
        flops=flops,
        full_flops=full_flops,
        flops_share=flops / full_flops if full_flops else 0.0,
        kv_bytes=read,
        kv_held_bytes=held,
        full_kv_bytes=full_kv,
        kv_share=read / full_kv if full_kv else 0.0,
        kv_held_share=held / full_kv if full_kv else 0.0,
    )


def costs(
    t: Topology,
    pairs: Pairs,
    depth: int,
    head_dim: int = HEAD_DIM,
    asked: Stack | None = None,
) -> tuple[LevelCost, ...]:
    """The cost of layers 0 .. depth - 1; equal layers are measured once.

    `asked` is the stack as it was written, where `t` holds the possible edges of layers that choose
    by content.
    """
    stack = t.stack if asked is None else asked
    known: dict[tuple[int, int], _Measured] = {}
    readers: dict[int, dict[tuple[int, int], _Measured]] = {}  # of each layer's keys and values
    for index in range(depth):
        # layers that choose differently can have the same possible edges
        key = id(t.level(index)), id(stack.layer(index))
        if key not in known:
            known[key] = _measured(t, index, stack)
        readers.setdefault(t.source(index), {})[key] = known[key]
    held: dict[tuple[tuple[int, int], ...], float] = {}
    result = []
    for index in range(depth):
        found, sharing = known[id(t.level(index)), id(stack.layer(index))], readers.get(index, {})
        keys = tuple(sharing)
        if keys not in held:
            held[keys] = _mean_held(list(sharing.values()))
        result.append(_cost(t, pairs, index, found, held[keys], head_dim))
    return tuple(result)


def head_edges(t: Topology, index: int, asked: Stack) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Edges of attention in each head of a layer, at least and at most; `asked` as in `costs`."""
    found = _measured(t, index, asked)
    return found.least, found.edges


@dataclass(frozen=True, eq=False)
class _Measured:
    """Of each head of a level: edges at most and at least, how many keys the last query reads, and
    as intervals which keys the cache holds for it."""

    edges: tuple[int, ...]
    least: tuple[int, ...]
    read: tuple[int, ...]
    held: tuple[I64, ...]
    how: str


def _measured(t: Topology, index: int, asked: Stack) -> _Measured:
    level, place = t.level(index), index % len(t.levels)
    patterns = asked.heads(index)
    if any(map(chooses, patterns)):
        return _measured_choice(t, place, patterns)
    zones, heads = _attention(t, index), level.head_index
    counts = [offsets.count(z) for z in zones]
    keys = [_last_row(t, z.table) for z in zones]
    edges, held = tuple(counts[k] for k in heads), tuple(keys[k] for k in heads)
    return _Measured(edges, edges, tuple(map(size, held)), held, "")


def _measured_choice(t: Topology, place: int, patterns: tuple[Pattern, ...]) -> _Measured:
    known: dict[object, Chosen] = {}
    heads = []
    for head, p in enumerate(patterns):
        key = (p, head if keyed(p, t.bindings)[1] else None)
        if key not in known:
            known[key] = Chooses(t, place, head).measure(attention_part(p))
        heads.append(known[key])
    words = dict.fromkeys(word for x in heads for word in x.how)
    return _Measured(
        edges=tuple(x.most for x in heads),
        least=tuple(x.least for x in heads),
        read=tuple(x.last for x in heads),
        held=tuple(_last_row(t, x.possible.table) for x in heads),
        how="at most: " + "; ".join(words) if words else "",
    )


def _attention(t: Topology, index: int) -> list[ZoneSet]:
    """The edges of attention of each distinct head."""
    level, patterns = t.level(index), patterns_of(t.stack.layer(index))
    if level.kind not in ("recurrent", "convolution", "hybrid"):
        # of a single one the union is the same set in fewer zones
        return [level.zones] if len(level.head_zones) == 1 else list(level.head_zones)
    parts = []
    for k in range(len(level.head_zones)):
        head = level.head_index.index(k)
        part = attention_part(patterns[head])
        parts.append(ZoneSet.make(t.frame, []) if part is None else _lowered(t, part, index, head))
    return parts


def _lowered(t: Topology, p: Pattern, index: int, head: int) -> ZoneSet:
    place = index % len(t.levels)
    found = lower(p, t.n, t.frame.n, t.memory, layer=place, head=head, **t.bindings)
    return ZoneSet(t.frame, found.table)


def _mean_held(layers: list[_Measured]) -> float:
    """Keys that the cache holds for some of the layers, mean over heads; of layers with different
    numbers of heads, for any head."""
    if not layers:
        return 0.0
    heads = [m.held for m in layers]
    if len({len(keys) for keys in heads}) > 1:
        heads = [(np.concatenate(keys),) for keys in heads]
    united = [algebra.merge_intervals(np.concatenate(each)) for each in zip(*heads, strict=True)]
    return sum(map(size, united)) / len(united)


def _cost(
    t: Topology, pairs: Pairs, index: int, found: _Measured, held: float, head_dim: int
) -> LevelCost:
    edges, heads = sum(found.edges), len(found.edges)
    area = t.n * t.frame.n * heads
    unit = 2 * head_dim * BYTES
    return LevelCost(
        layer=index,
        kind="sparse" if found.how and t.level(index).kind == "dense" else t.level(index).kind,
        heads=heads,
        edges=found.edges,
        edges_least=found.least,
        how=found.how,
        density=edges / area if area else 0.0,
        flops=4 * head_dim * edges / heads,
        full_flops=4 * head_dim * pairs.count,
        flops_share=edges / (pairs.count * heads) if pairs.count else 0.0,
        kv_shared=t.source(index) != index,
        kv_bytes=unit * sum(found.read) / heads,
        kv_held_bytes=unit * held,
        full_kv_bytes=unit * t.frame.n,
    )


def _last_row(t: Topology, table: I64) -> I64:
    """The keys that the last query reads."""
    last = t.frame.n - 1
    rows = algebra.tighten(algebra.clip(table, (last, last + 1, 0, t.frame.n)))
    return algebra.merge_intervals(rows[:, 2:4])
