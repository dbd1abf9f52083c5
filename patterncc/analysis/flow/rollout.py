"""Attention rollout: P_L ... P_1 applied from the left, one sweep over the layers.

    P_l = alpha I + (1 - alpha) * mean over heads of D^-1 A

(Abnar and Zuidema 2020).  D^-1 A gives each query's keys equal weight; a query without keys, memory
positions among them, keeps what it has: an identity row.  A layer that reads the keys and values of
an earlier layer mixes its own state s_l with the states s_k that went into that one:

    s_(l+1) = alpha s_l + (1 - alpha) * mean over heads of D^-1 A s_k
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.content import refuse_unbound
from patterncc.analysis.flow.sweep_vectors import FEW, Mixing, mixing
from patterncc.analysis.spread import cone_of, size
from patterncc.analysis.topology import Level, Topology, checked
from patterncc.errors import PatternValueError, SizeError
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import Convolution, Recurrent
from patterncc.stack import Heads, Stack, check_stack, patterns_of
from patterncc.zones.algebra import refuse_above
from patterncc.zones.lower import leaves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]

ALPHA = 0.5
MOST_POSITIONS = 2**27  # of one sweep: it holds a few numbers a position
MOST_KEPT = 2**25  # numbers of prepared layers that one rollout keeps
MOST_WAITING = 2**29  # numbers of all the vectors that one sweep holds
FEW_INTERVALS = 16  # of a query's cone, up to which a sweep visits only these


@dataclass(frozen=True, eq=False)
class Rollout:
    """A stack at one length and one alpha, its layers prepared once for any number of sweeps."""

    topology: Topology
    alpha: float
    depth: int
    _known: dict[int, Mixing] = field(default_factory=dict, repr=False)

    def mixing(self, index: int) -> Mixing:
        """P of the layer at `index`, counted cyclically."""
        level = self.topology.level(index)
        found = self._known.get(id(level))
        if found is None:
            found = _prepare(level, self.topology.frame.n, self.alpha)
            kept = sum(m.entries for m in self._known.values())
            if kept + found.entries > MOST_KEPT:
                self._known.clear()
            self._known[id(level)] = found
        return found

    def from_query(self, query: int) -> Iterator[F64]:
        """What the query draws from the states after l = L, ..., 0 layers: the row of
        P_L ... P_(l+1).  Each is overwritten two steps later."""
        n = self.topology.frame.n
        v, out, sums = np.zeros(n), np.zeros(n), np.empty(n + 1)
        v[query] = 1
        if self.topology.shared:
            yield from self._sharing(v)
            return
        few = all(len(level.zones) <= FEW for level in self.topology.levels)
        cone = cone_of(self.topology, query, self.depth).layers if few else ()
        yield v
        for index in reversed(range(self.depth)):
            p, now = self.mixing(index), cone[index + 1] if few else None
            if now is None or not p.few or len(now) > FEW_INTERVALS or size(now) > n // 2:
                p.pull(v, out, sums)
            else:
                p.pull_within(v, out, sums, now)  # `out` is two layers old: its cone was smaller
            v, out = out, v
            yield v

    def from_all(self) -> Iterator[F64]:
        """The column sums 1^T P_L ... P_(l+1) for l = L, ..., 0; overwritten likewise."""
        n = self.topology.frame.n
        v, out, sums = np.ones(n), np.empty(n), np.empty(n + 1)
        if self.topology.shared:
            yield from self._sharing(v)
            return
        yield v
        for index in reversed(range(self.depth)):
            self.mixing(index).pull(v, out, sums)
            v, out = out, v
            yield v

    def _sharing(self, v: F64) -> Iterator[F64]:
        """A sweep in which what a layer reads waits for the layer whose keys and values it reads:
        the states between the two carry only what stays."""
        t, n = self.topology, len(v)
        refuse_above(n * (_most_waiting(t, self.depth) + 3), "numbers of one sweep", MOST_WAITING)
        waiting: dict[int, F64] = {}
        out, sums = np.empty(n), np.empty(n + 1)
        yield v
        for index in reversed(range(self.depth)):
            p, source = self.mixing(index), t.source(index)
            np.multiply(v, p.kept, out=out)
            if source != index and source not in waiting:
                waiting[source] = np.zeros(n)
            p.read(v, out if source == index else waiting[source], sums)
            if index in waiting:
                out += waiting.pop(index)
            v, out = out, v
            yield v


def _most_waiting(t: Topology, depth: int) -> int:
    """The most layers whose keys and values later layers have read while they are yet to come."""
    waiting: set[int] = set()
    most = 0
    for index in reversed(range(depth)):
        waiting |= {t.source(index)} - {index}
        most = max(most, len(waiting))
        waiting.discard(index)
    return most


def rollout(
    stack: Stack | Pattern | Heads,
    n: int,
    alpha: float = ALPHA,
    depth: int | None = None,
    **bindings: Any,
) -> Rollout:
    """Lower a stack of attention layers for rollout.

    Raises PatternValueError for a layer that is no attention, one that chooses its keys by content
    and is not bound, or an alpha outside [0, 1]; SizeError for a length whose vectors would not
    fit.
    """
    check_stack("influence", stack)
    asked = stack if isinstance(stack, Stack) else Stack(stack)
    check_attention(asked)
    refuse_unbound("influence", asked, bindings)
    n = check_int("influence", "n", n, 1)
    if n > MOST_POSITIONS:
        raise SizeError(
            f"influence: a sweep holds several numbers for each of n={n} positions, more than "
            f"{MOST_POSITIONS}; ask at a shorter n, or use analyze(), whose cost does not grow so"
        )
    return rollout_of(checked("influence", stack, n, bindings, rollout), alpha, depth)


def rollout_of(t: Topology, alpha: float = ALPHA, depth: int | None = None) -> Rollout:
    """`rollout` on a stack that is lowered already."""
    check_attention(t.stack)
    alpha = check_alpha(alpha)
    depth = len(t.levels) if depth is None else check_int("influence", "depth", depth, 0, 100_000)
    return Rollout(t, alpha, depth)


def check_alpha(alpha: float) -> float:
    """`alpha` as a float within [0, 1], or a PatternValueError."""
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise PatternValueError(
            f"influence: alpha is the weight of the residual stream, within [0, 1], not {alpha!r}"
        )
    return float(alpha)


def check_attention(stack: Stack) -> None:
    """Refuse a stack in which some layer is no attention: rollout has no rows for it."""
    for index, layer in enumerate(stack.layers):
        for pattern in patterns_of(layer):
            for part in leaves(pattern):
                if isinstance(part, Recurrent | Convolution):
                    raise PatternValueError(
                        f"influence: layer {index} is {part}, not attention, and rollout cannot "
                        "say how it mixes; leave that layer out of the stack, write causal() or "
                        "window(...) in its place, or ask for reach, which knows such layers"
                    )


def _prepare(level: Level, size: int, alpha: float) -> Mixing:
    """P of a level; heads with equal zones are one part."""
    heads = len(level.head_index)
    if len(level.head_zones) == 1:
        return mixing([level.zones.table], [1.0], size, alpha)
    shares = [level.head_index.count(k) / heads for k in range(len(level.head_zones))]
    return mixing([z.table for z in level.head_zones], shares, size, alpha)
