"""What a layer costs: edges, density, FLOPs and KV bytes against full attention, in closed form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from patterncc.analysis import offsets
from patterncc.analysis.topology import Level, Pairs, Topology
from patterncc.zones import algebra

HEAD_DIM = 128
BYTES = 2  # of one number of K or V, as fp16 and bf16 are stored


@dataclass(frozen=True)
class LevelCost:
    """One layer: exact edges of all its heads, and figures of the mean head.

    flops are 4 * D * edges (two products, a multiply and an add each); full_flops the same over
    every allowed pair.  kv_bytes are the keys and values that the last query reads (a decode
    step), full_kv_bytes those of every position.  Both are for one head.
    """

    layer: int
    heads: int
    edges: tuple[int, ...]
    density: float
    flops: float
    full_flops: int
    flops_share: float
    kv_bytes: float
    full_kv_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "edges": list(self.edges)}


def costs(t: Topology, pairs: Pairs, depth: int, head_dim: int = HEAD_DIM) -> tuple[LevelCost, ...]:
    """The cost of layers 0 .. depth - 1; equal layers are measured once."""
    known: dict[int, LevelCost] = {}
    result = []
    for index in range(depth):
        level = t.level(index)
        if id(level) not in known:
            known[id(level)] = _cost(t, pairs, level, head_dim)
        found = known[id(level)]
        result.append(LevelCost(index, *(getattr(found, f) for f in _FIELDS)))
    return tuple(result)


_FIELDS = tuple(LevelCost.__dataclass_fields__)[1:]


def _cost(t: Topology, pairs: Pairs, level: Level, head_dim: int) -> LevelCost:
    one = len(level.head_zones) == 1  # then the union is the same set in fewer zones
    counts = [offsets.count(zones) for zones in ([level.zones] if one else level.head_zones)]
    keys = [_last_row_keys(t, zones.table) for zones in level.head_zones]
    edges = tuple(counts[k] for k in level.head_index)
    heads = len(edges)
    total = t.n * t.frame.n
    unit = 2 * head_dim * BYTES
    return LevelCost(
        layer=0,
        heads=heads,
        edges=edges,
        density=sum(edges) / (total * heads) if total else 0.0,
        flops=4 * head_dim * sum(edges) / heads,
        full_flops=4 * head_dim * pairs.count,
        flops_share=sum(edges) / (pairs.count * heads) if pairs.count else 0.0,
        kv_bytes=unit * sum(keys[k] for k in level.head_index) / heads,
        full_kv_bytes=unit * t.frame.n,
    )


def _last_row_keys(t: Topology, table: algebra.I64) -> int:
    """How many keys the last query reads."""
    last = t.frame.n - 1
    rows = algebra.tighten(algebra.clip(table, (last, last + 1, 0, t.frame.n)))
    intervals = algebra.merge_intervals(rows[:, 2:4])
    return int((intervals[:, 1] - intervals[:, 0]).sum())
