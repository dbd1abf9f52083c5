"""robustness: what reach loses when one relay token is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from patterncc.analysis.curve import Depth, Figure
from patterncc.analysis.engines.choose import MAX_DEPTH, Name, Question, follow
from patterncc.analysis.topology import (
    Pairs,
    Topology,
    allowed_pairs,
    check_position,
    checked,
    topology,
)
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import GlobalTokens
from patterncc.stack import Heads, Layer, Stack, check_stack
from patterncc.zones import ZoneSet


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
        """The part of the pairs that were reached at `depth` and no longer are; with bounds the
        least, with estimates the least at their 95%."""
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
    engine: Name = "auto",
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
    t = checked("robustness", stack, n, bindings, robustness)
    depth = len(t.levels) if depth is None else depth
    return robustness_of(t, token, check_int("robustness", "depth", depth, 0, MAX_DEPTH), engine)


def robustness_of(t: Topology, token: int, depth: int, engine: Name = "auto") -> Robustness:
    """`robustness` on a stack that is lowered already."""
    token = check_position(t, "token", token, 0)
    whole = allowed_pairs(t, None, t.bindings)
    others = _without(t, whole, token)
    rest = topology(without(t.stack, token), t.n, **t.bindings)
    self_loop = int(token >= t.memory)
    lost = follow(Question(rest, _with_self(t, others, token), depth), engine)
    # reach of the whole stack crosses the lost token, so it leaves these pairs
    crossed = replace(_with_self(t, others, token), closed=False)
    kept = follow(Question(t, crossed, depth), engine)
    return Robustness(
        token=token,
        depth=depth,
        pairs=others.count,
        before=_less(kept.figures[depth], self_loop, others.count),
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
    return replace(stack, layers=tuple(layers))


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
    """A figure without so many pairs that are known to be reached; an estimate stays one."""
    lo, hi = f.lo - pairs, f.hi - pairs
    if f.certain:
        return Figure.of(lo, hi, total, f.engine)
    share = (f.share * (total + pairs) - pairs) / total
    return replace(f, lo=lo, hi=hi, share=min(max(share, lo / total), hi / total))


def _figure(f: Figure) -> dict[str, Any]:
    return {"lo": f.lo, "hi": f.hi, "share": f.share, "badge": f.badge, "engine": f.engine}


def _depth(d: Depth) -> dict[str, Any]:
    value = d.lo if d.decided and not d.never else None
    return {"value": value, "never": d.never, "at_least": d.lo, "at_most": d.hi}
