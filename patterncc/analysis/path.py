"""explain: which rules make an edge, or the shortest path between two tokens over the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from patterncc.analysis import spread
from patterncc.analysis.rules import Rules
from patterncc.analysis.topology import Topology, check_position, checked
from patterncc.pattern import Pattern, check_int
from patterncc.stack import Heads, Stack

if TYPE_CHECKING:
    from patterncc.analysis.spread import I64

SEARCH = 4096  # layers that are tried before the search gives up
FEWEST_HOPS = 64  # up to this many layers, paths with the fewest hops are told apart


@dataclass(frozen=True)
class Direct:
    """A layer in which the query reads the key itself, and the rules that make the edge.

    `source` is the layer whose keys and values it reads: `layer` itself unless it shares another's.
    """

    layer: int
    rules: tuple[str, ...]
    source: int


@dataclass(frozen=True)
class Step:
    """In `layer`, position `query` reads position `key` by `rules`; information moves from key to
    query.

    What is read is the state of `key` that went into layer `source`: `layer` itself unless it
    shares the keys and values of an earlier one.
    """

    layer: int
    query: int
    key: int
    rules: tuple[str, ...]
    source: int


@dataclass(frozen=True)
class Explanation:
    """How a query comes to see a key.

    `layers` is the least number of layers that carry it (0 for a token itself), None where there
    is no way; `path` its hops from the key up to the query, with every layer between two hops
    crossed by the residual stream; `never` says that it is proved that no number of layers does.
    """

    query: int
    key: int
    n: int
    depth: int
    direct: tuple[Direct, ...]
    layers: int | None
    path: tuple[Step, ...]
    never: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"query {self.query}, key {self.key}, n={self.n}"]
        lines += [
            f"  layer {d.layer}: read directly{_shared(d)} by {' | '.join(d.rules)}"
            for d in self.direct
        ]
        lines.append(f"  {self.reason}")
        lines += [
            f"    layer {s.layer}: {s.query} reads {s.key}{_shared(s)} by {' | '.join(s.rules)}"
            for s in self.path
        ]
        return "\n".join(lines)


def explain(
    stack: Stack | Pattern | Heads,
    n: int,
    query: int,
    key: int,
    depth: int | None = None,
    *,
    names: Mapping[str, Pattern] | None = None,
    **bindings: Any,
) -> Explanation:
    """The rules by which `query` reads `key`, and the shortest path between them over the layers.

    Shortest means the fewest layers, and of those ways (up to 64 layers) the fewest hops.
    Positions are absolute: with memory, queries start past it.  `names` are named edge sets (a
    pattern file's `edges`) to call rules by.  Past its end the stack repeats cyclically.

    >>> from patterncc import causal, sink, window
    >>> print(explain(causal() & (window(3) | sink(1)), 64, query=9, key=4))
    query 9, key 4, n=64
      reached after 2 layers; the stack has 1, repeated
        layer 0: 6 reads 4 by window(3)
        layer 1: 9 reads 6 by window(3)

    Raises PatternError for positions outside the frame.
    """
    t = checked("explain", stack, n, bindings, explain)
    query = check_position(t, "query", query, t.memory)
    key = check_position(t, "key", key, 0)
    depth = len(t.levels) if depth is None else check_int("explain", "depth", depth, 0, 100_000)
    rules = Rules(t, names, bindings)
    direct = tuple(
        Direct(layer, found, t.source(layer))
        for layer in range(min(depth, len(t.levels)))
        if _reads(t, layer, query, key) and (found := rules.of(layer, query, key))
    )
    fronts, never = _fronts(t, query, key, max(depth, SEARCH))
    if not spread.has(fronts[-1], query):
        reason = _why_not(t, fronts, key, never)
        return Explanation(query, key, t.n, depth, direct, None, (), never, reason)
    hops = _trace(t, fronts, query, key)
    path = tuple(Step(l, i, k, rules.of(l, i, k), t.source(l)) for l, i, k in hops)
    layers = len(fronts) - 1
    return Explanation(query, key, t.n, depth, direct, layers, path, False, _how(layers, depth))


def _reads(t: Topology, layer: int, query: int, key: int) -> bool:
    seen = spread.read_by(t.level(layer).zones, spread.single(query))
    return spread.has(seen, key)


def _fronts(t: Topology, query: int, key: int, limit: int) -> tuple[list[I64], bool]:
    """fronts[l]: positions that depend on the key after l layers, up to the layer that has the
    query; and whether they stand still without it."""
    fronts: list[I64] = []
    for now in spread.upward(t, key):
        fronts.append(now)
        if spread.has(now, query) or len(fronts) > limit:
            return fronts, False
        if len(fronts) > t.settled and now is fronts[-1 - t.settled]:
            return fronts[: len(fronts) - t.settled], True
    raise AssertionError("upward has no end")


def _trace(t: Topology, fronts: list[I64], query: int, key: int) -> list[tuple[int, int, int]]:
    """Hops (layer, query, key) of a shortest way, from the key up."""
    layers = len(fronts) - 1
    if t.period > 1 and layers <= FEWEST_HOPS:
        return _trace_by_hops(t, layers, query, key)
    hops, at, state = [], query, layers
    while state:
        if spread.has(fronts[state - 1], at):
            state -= 1
            continue
        read = t.source(state - 1)
        hops.append((state - 1, at, _step_down(t, state - 1, at, fronts[read])))
        at, state = hops[-1][2], read
    assert at == key
    return hops[::-1]


def _trace_by_hops(t: Topology, layers: int, query: int, key: int) -> list[tuple[int, int, int]]:
    """The same with the fewest hops: reached[h][l] are the positions within h hops and l layers."""
    reached = [[spread.single(key)] * (layers + 1)]
    while not spread.has(reached[-1][layers], query):
        row = [reached[0][0]]
        for l in range(layers):
            now = spread.readers(t.level(l).zones, reached[-1][t.source(l)])
            row.append(spread.union(row[l], now))
        reached.append(row)
    hops, at, state = [], query, layers
    for h in reversed(range(1, len(reached))):
        while spread.has(reached[h][state - 1], at):
            state -= 1
        read = t.source(state - 1)
        hops.append((state - 1, at, _step_down(t, state - 1, at, reached[h - 1][read])))
        at, state = hops[-1][2], read
    assert at == key
    return hops[::-1]


def _step_down(t: Topology, layer: int, at: int, below: I64) -> int:
    """A key that `at` reads in a layer, out of the positions reached below it."""
    found = spread.common(spread.read_by(t.level(layer).zones, spread.single(at)), below)
    assert found is not None
    return found


def _shared(found: Direct | Step) -> str:
    """Whose keys and values are read, where they are another layer's."""
    return "" if found.source == found.layer else f" as it went into layer {found.source}"


def _how(layers: int, depth: int) -> str:
    if layers == 0:
        return "the token itself: the residual stream carries it"
    word = "layer" if layers == 1 else "layers"
    more = ", repeated" if layers > depth else ""
    return f"reached after {layers} {word}; the stack has {depth}{more}"


def _why_not(t: Topology, fronts: list[I64], key: int, never: bool) -> str:
    last = fronts[-1]
    spans = ", ".join(f"[{a}, {b})" for a, b in last[:4].tolist())
    more = f" and {len(last) - 4} more stretches" if len(last) > 4 else ""
    if never:
        return (
            f"no path, however many layers: key {key} reaches {spread.size(last)} of {t.frame.n} "
            f"positions, {spans}{more}, and stops there after {len(fronts) - 1} layers"
        )
    return (
        f"no path within {len(fronts) - 1} layers: by then key {key} has reached "
        f"{spread.size(last)} of {t.frame.n} positions, {spans}{more}"
    )
