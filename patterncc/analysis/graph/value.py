"""A number and how sure it is: exact, certified bounds, or an estimate with its confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from patterncc.analysis.engines.sample import interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]

Kind = Literal["exact", "bounds", "estimate"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Value:
    """A real number between `lo` and `hi`; `value` is the number itself or the best guess at it.

    kind "exact": lo == value == hi, but for rounding; "bounds": the truth is surely in [lo, hi];
    "estimate": it is with 95% confidence, whatever the graph.
    """

    value: float
    lo: float
    hi: float
    kind: Kind

    @staticmethod
    def exactly(value: float) -> Value:
        """A number that is known.

        >>> str(Value.exactly(0.5))
        '0.5 (exact)'
        """
        return Value(value, value, value, "exact")

    @staticmethod
    def between(lo: float, hi: float, guess: float | None = None) -> Value:
        """Certified bounds; exact where they meet.

        >>> Value.between(1, 3).badge, Value.between(2, 2).badge
        ('bounds [1, 3]', 'exact')
        """
        if lo == hi:
            return Value.exactly(lo)
        return Value((lo + hi) / 2 if guess is None else guess, lo, hi, "bounds")

    @property
    def badge(self) -> str:
        """exact, bounds [lo, hi] or estimate +- eps (95%), eps being the longer side.

        >>> Value(2.0, 1.9, 2.2, "estimate").badge
        'estimate +- 0.2 (95%)'
        """
        match self.kind:
            case "exact":
                return "exact"
            case "bounds":
                return f"bounds [{self.lo:.4g}, {self.hi:.4g}]"
            case "estimate":
                eps = max(self.value - self.lo, self.hi - self.value)
                return f"estimate +- {eps:.2g} ({CONFIDENCE:.0%})"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"value": self.value, "lo": self.lo, "hi": self.hi, "badge": self.badge}

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.badge})"


def combine(kinds: tuple[Kind, ...]) -> Kind:
    """How sure a number made from others is: as sure as the least sure of them."""
    order: tuple[Kind, ...] = ("exact", "bounds", "estimate")
    return max(kinds, key=order.index)


def mean_of(drawn: F64, low: float, high: float, risk: float) -> Value:
    """The mean of numbers in [low, high] from independent draws, wrong with probability <= risk.

    The interval is that of `sample.interval`: no normal approximation, it holds for any numbers in
    the range and is narrow where they vary little.

    >>> v = mean_of(np.full(256, 0.25), 0, 1, 0.05)
    >>> v.lo < v.value == 0.25 < v.hi < 0.27
    True
    """
    width = high - low
    if width <= 0:
        return Value.exactly(low)
    x = (np.asarray(drawn, dtype=np.float64) - low) / width
    mean = float(x.mean())
    lo, hi = interval(x, None, risk)
    return Value(
        low + width * mean, low + width * min(lo, mean), low + width * max(hi, mean), "estimate"
    )
