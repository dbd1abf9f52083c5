"""robustness: what reach loses when one relay token is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from patterncc.analysis.curve import Curve, Depth, Figure
from patterncc.analysis.reach import MAX_DEPTH, Engine, follow
from patterncc.analysis.spread import read_by, readers, single, size, union
from patterncc.analysis.topology import Pairs, Topology, allowed_pairs, check_position, topology
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import GlobalTokens
from patterncc.stack import Heads, Layer, Stack, check_stack
from patterncc.zones import ZoneSet

if TYPE_CHECKING:
    from patterncc.analysis.spread import I64

SEARCH = 1024  # layers up to which the depth to full of the other tokens is told from the curve


@dataclass(frozen=True)
class Robustness:
    """Reach among the other tokens with the relay `token`, and without it.

    The pairs are T without the token's own row and column.  before and after are the pairs of them
    reached at `depth`, full_before and full_after the depths to full.
    """

    token: int
    depth: int
    pairs: int
    before: Figure
    after: Figure
    full_before: Depth
    full_after: Depth

    @property
    def lost(self) -> float:
        """The part of the pairs that were reached at `depth` and no longer are; with bounds, the
        least."""
        return max(0, self.before.lo - self.after.hi) / self.pairs if self.pairs else 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "token": self.token,
            "depth": self.depth,
            "pairs": self.pairs,
            "lost": self.lost,
            **{name: _figure(getattr(self, name)) for name in ("before", "after")},
            **{name: _depth(getattr(self, name)) for name in ("full_before", "full_after")},
        }

    def __str__(self) -> str:
        return (
            f"without token {self.token}: {self.before.share:.4g} -> {self.after.share:.4g} of the "
            f"other tokens' pairs at depth {self.depth}, "
            f"full at {self.full_before} -> {self.full_after}"
        )


def robustness(
    stack: Stack | Pattern | Heads,
    n: int,
    token: int,
    depth: int | None = None,
    *,
    engine: Engine = "auto",
    **bindings: Any,
) -> Robustness:
    """Reach and depth to full when `token` keeps only its self-loop: it reads none, none reads it.

    Every layer's pattern becomes `pattern - global_tokens([token])`; the residual stream keeps the
    self-loop.  Only pairs of other tokens are compared, so that the lost token's own are no loss.

    >>> from patterncc import global_tokens, window
    >>> print(robustness(window(4, 4) | global_tokens([0]), 65, token=0, depth=2))
    without token 0: 1 -> 0.248 of the other tokens' pairs at depth 2, full at 2 -> 16

    Raises PatternError for a token outside the frame.
    """
    check_stack("robustness", stack)
    stack = stack if isinstance(stack, Stack) else Stack(stack)
    t = topology(stack, n, **bindings)
    token = check_position(t, "token", token, 0)
    layers = len(t.levels)
    depth = layers if depth is None else check_int("robustness", "depth", depth, 0, MAX_DEPTH)
    whole = allowed_pairs(t, None, bindings)
    others = _without(t, whole, token)
    rest = topology(without(stack, token), n, **bindings)
    self_loop = int(token >= t.memory)
    lost = follow(rest, _with_self(t, others, token), depth, engine)
    kept = _among_others(t, whole, others, token, depth, engine)
    return Robustness(
        token=token,
        depth=depth,
        pairs=others.count,
        before=kept.figures[depth],
        after=_less(lost.figures[depth], self_loop, others.count),
        full_before=kept.full,
        full_after=lost.full,
    )


def without(stack: Stack, token: int) -> Stack:
    """The stack with every edge of one token taken out.

    >>> from patterncc import causal
    >>> print(without(Stack(causal()), 3))
    Stack of 1 layers
      0: causal() - global_tokens([3])
    """
    dropped = GlobalTokens((token,))
    layers: list[Layer] = [
        Heads(tuple(p - dropped for p in layer.patterns))
        if isinstance(layer, Heads)
        else layer - dropped
        for layer in stack.layers
    ]
    return Stack(layers, memory=stack.memory)


def _without(t: Topology, pairs: Pairs, token: int) -> Pairs:
    """T without the token's row and column."""
    n = t.frame.n
    cross = [(token, token + 1, 0, n, -n, n), (0, n, token, token + 1, -n, n)]
    zones = (pairs.zones - ZoneSet.make(t.frame, cross)).simplify()
    name = f"{pairs.name}, without token {token}"
    return Pairs(name, pairs.how, zones, zones.count(), pairs.closed)


def _with_self(t: Topology, pairs: Pairs, token: int) -> Pairs:
    """The pairs and the token's self-loop: the engines count every query's own pair."""
    if token < t.memory:
        return pairs
    own = ZoneSet.make(t.frame, [(token, token + 1, token, token + 1, 0, 1)])
    return replace(pairs, zones=pairs.zones | own, count=pairs.count + 1)


def _less(f: Figure, pairs: int, total: int) -> Figure:
    """A figure without so many pairs that are known to be reached."""
    return Figure.of(f.lo - pairs, f.hi - pairs, total, f.engine)


def _among_others(
    t: Topology, whole: Pairs, others: Pairs, token: int, depth: int, engine: Engine
) -> Curve:
    """Reach of the whole stack, counted over the other tokens' pairs.

    Followed over all of T, which no layer leaves; the pairs of the token itself are subtracted.
    """
    curve = follow(t, whole, depth, engine)
    longest = max(depth, min(SEARCH, curve.full.hi if curve.full.hi is not None else depth))
    if curve.full.never:
        longest = max(depth, SEARCH)  # the curve stands still long before: that costs nothing
    if longest > depth:
        curve = follow(t, whole, longest, engine)
    own = _own_pairs(t, token, longest)
    figures = tuple(_less(f, x, others.count) for f, x in zip(curve.figures, own, strict=True))
    low = next((l for l, f in enumerate(figures) if f.hi == others.count), None)
    high = next((l for l, f in enumerate(figures) if f.lo == others.count), curve.full.hi)
    tail = {f.lo for f in figures[-t.period - 1 :]}
    still = len(tail) == 1 and len(figures) > t.period
    never = curve.full.never and high is None and still
    return Curve(
        figures,
        Depth(longest + 1 if low is None else low, high, never, longest),
        None,
        curve.notes,
    )


def _own_pairs(t: Topology, token: int, depth: int) -> list[int]:
    """How many pairs of R_0 .. R_depth have the token as query or key (memory rows left out)."""
    columns = _sizes(t, token, [t.level(l).zones for l in range(depth)], readers)
    if token < t.memory:
        return [size - 1 for size in columns]
    rows = [0] * (depth + 1)
    for top in range(min(t.period, depth + 1)):  # downward, layers of equal place walk alike
        below = [t.level(top - 1 - k).zones for k in range(depth)]
        rows[top :: t.period] = _sizes(t, token, below, read_by)[top :: t.period]
    return [row + column - 1 for row, column in zip(rows, columns, strict=True)]


def _sizes(
    t: Topology, token: int, layers: list[ZoneSet], carry: Callable[[ZoneSet, I64], I64]
) -> list[int]:
    """How many positions the token's set holds after 0, 1, ... of the layers."""
    at, sizes = single(token), [1]
    for layer in layers:
        moving = len(sizes) <= t.period or sizes[-1] > sizes[-1 - t.period]
        at = union(at, carry(layer, at)) if moving else at
        sizes.append(size(at))
    return sizes


def _figure(f: Figure) -> dict[str, Any]:
    return {"lo": f.lo, "hi": f.hi, "share": f.share, "badge": f.badge, "engine": f.engine}


def _depth(d: Depth) -> dict[str, Any]:
    value = d.lo if d.decided and not d.never else None
    return {"value": value, "never": d.never, "at_least": d.lo, "at_most": d.hi}
