"""A number and how sure it is: exact, certified bounds, or an estimate with its confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]

Kind = Literal["exact", "bounds", "estimate"]

CONFIDENCE = 0.95
_STEPS = 40  # halvings when an end of an interval is sought


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


def mean_of(sample: F64, low: float, high: float, risk: float) -> Value:
    """The mean of numbers in [low, high], from independent draws; wrong with probability <= risk.

    Each end is the mean at which a gambler who bets against it, with stakes that depend on the
    earlier draws alone, would have multiplied the stake by 2 / risk: by Ville's inequality that
    is rarer than risk / 2 if the mean is true.  No normal approximation: it holds for any
    numbers in the range, and is narrow where they vary little.

    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
    2024 (Theorem 3, the stakes of its equation 26).

    >>> v = mean_of(np.full(256, 0.25), 0, 1, 0.05)
    >>> round(v.lo, 3), v.value, round(v.hi, 3)
    (0.245, 0.25, 0.262)
    """
    width = high - low
    if width <= 0:
        return Value.exactly(low)
    x = (np.asarray(sample, dtype=np.float64) - low) / width
    mean = float(x.mean())
    top, bottom = _upper(x, risk / 2), 1 - _upper(1 - x, risk / 2)
    lo, hi = min(bottom, mean), max(top, mean)
    return Value(low + width * mean, low + width * lo, low + width * hi, "estimate")


def _upper(x: F64, risk: float) -> float:
    """The least mean that is refuted from above, for numbers in [0, 1]."""
    count = np.arange(1, len(x) + 1)
    means = (0.5 + np.cumsum(x)) / (count + 1)
    variance = (0.25 + np.cumsum((x - means) ** 2)) / (count + 1)
    before = np.append(0.25, variance[:-1])
    stakes = np.sqrt(2 * math.log(1 / risk) / (len(x) * before))
    low, high = float(x.mean()), 1.0
    for _ in range(_STEPS):
        tried = (low + high) / 2
        stake = np.minimum(stakes, 0.9 / (1 - tried)) if tried < 1 else stakes
        refuted = float(np.log1p(stake * (tried - x)).sum()) >= math.log(1 / risk)
        low, high = (low, tried) if refuted else (tried, high)
    return high
