"""hub_load: how much of the whole model's reading rests on each position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.analysis.flow.rollout import ALPHA, Rollout, rollout
from patterncc.analysis.flow.sweep_vectors import dot
from patterncc.errors import PatternValueError
from patterncc.pattern import Pattern, check_int
from patterncc.stack import Heads, Stack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]

BUSIEST = 16


@dataclass(frozen=True, eq=False)
class HubLoad:
    """What all positions together draw from each: 1^T P_L ... P_(l+1), for states after l layers.

    load, float64 [positions], is that of `layer` (0: the inputs); it sums to `positions`, so 1 is
    an even share.  top_share is the part of it that the busiest 1% of the positions carry (at least
    one); busiest are (position, load), the heaviest first.  n_eff[l] = N^2 / sum of squares at
    every layer l = 0 .. L: N when all carry the same, 1 when one carries all; n_eff[L] is N.  Where
    layers read the keys and values of an earlier one, the states between carry less than N in all;
    N in n_eff is then what they carry, and 0 stands where nothing rests on them.
    """

    alpha: float
    depth: int
    layer: int
    load: F64
    top_share: float
    busiest: tuple[tuple[int, float], ...]
    n_eff: tuple[float, ...]

    @property
    def positions(self) -> int:
        """N, memory included."""
        return len(self.load)

    def share_of(self, count: int) -> float:
        """The part of the load that the `count` busiest positions carry."""
        count = check_int("hub_load", "count", count, 0, self.positions)
        if not count:
            return 0.0
        return float(np.sort(self.load)[-count:].sum()) / self.positions

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values; not the load of every position."""
        return {
            "alpha": self.alpha,
            "depth": self.depth,
            "layer": self.layer,
            "positions": self.positions,
            "top_share": self.top_share,
            "busiest": [{"position": p, "load": load} for p, load in self.busiest],
            "n_eff": list(self.n_eff),
        }


def hub_load(
    stack: Stack | Pattern | Heads,
    n: int,
    alpha: float = ALPHA,
    *,
    depth: int | None = None,
    layer: int = 0,
    **bindings: Any,
) -> HubLoad:
    """The column sums of the rollout from the last layer down to the states after `layer` layers.

    Exact but for rounding, in one backward sweep.

    >>> from patterncc import full, sink
    >>> hub_load(full(), 8).n_eff
    (8.0, 8.0)
    >>> hub_load(sink(1), 8, alpha=0).busiest[0]
    (0, 8.0)

    Raises PatternValueError for a layer that is no attention, an alpha outside [0, 1] or a layer
    outside the depth, SizeError past 2**27 positions.
    """
    return hub_load_of(rollout(stack, n, alpha, depth, **bindings), layer)


def hub_load_of(r: Rollout, layer: int = 0) -> HubLoad:
    """`hub_load` on a rollout that is prepared already."""
    layer = check_int("hub_load", "layer", layer, 0)
    if layer > r.depth:
        raise PatternValueError(
            f"hub_load: layer {layer} is past the depth {r.depth}; 0 is the inputs and {r.depth} "
            "the states after the last layer"
        )
    n_eff, chosen = [], np.empty(0)
    for k, v in enumerate(r.from_all()):
        square = dot(v, v)
        n_eff.append(float(v.sum()) ** 2 / square if square else 0.0)
        if r.depth - k == layer:
            chosen = v.copy()
    size = len(chosen)
    heavy = _heaviest(chosen, min(BUSIEST, size))
    found = HubLoad(
        alpha=r.alpha,
        depth=r.depth,
        layer=layer,
        load=chosen,
        top_share=0.0,
        busiest=tuple(zip(heavy.tolist(), chosen[heavy].tolist(), strict=True)),
        n_eff=tuple(n_eff[::-1]),
    )
    return replace(found, top_share=found.share_of(-(-size // 100)))


def _heaviest(load: F64, count: int) -> NDArray[np.intp]:
    """The `count` heaviest positions, ties in order of position.

    By a sort: numpy's partition takes far longer where most numbers are equal, as here.
    """
    least = np.sort(load)[-count]
    above = np.flatnonzero(load > least)
    tied = np.flatnonzero(load == least)[: count - len(above)]
    return np.concatenate([above[np.lexsort((above, -load[above]))], tied])
