"""What an engine finds: counts with their badges, layer by layer, and the depth to full."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A count of pairs that is at least `lo` and at most `hi`; equal when it is exact.

    `share` is lo over all allowed pairs, so that it never claims more than is proved.  Where the
    count is an estimate (not `certain`), lo and hi are the ends of its 95% interval and share is
    the estimate itself.
    """

    lo: int
    hi: int
    share: float
    badge: str
    engine: str
    certain: bool = True

    @staticmethod
    def of(lo: int, hi: int, total: int, engine: str) -> Figure:
        """A figure with its share and badge.

        >>> Figure.of(3, 3, 4, "zones").badge, Figure.of(1, 3, 4, "tiles").badge
        ('exact', 'bounds [0.25, 0.75]')
        """
        share, most = fraction(lo, total), fraction(hi, total)
        badge = "exact" if lo == hi else f"bounds [{share:.4g}, {most:.4g}]"
        return Figure(lo, hi, share, badge, engine)

    @staticmethod
    def estimate(share: float, eps: float, lo: int, hi: int, total: int, engine: str) -> Figure:
        """A share estimated to +- eps at 95%, its interval cut to what is certain, [lo, hi] pairs.

        >>> f = Figure.estimate(0.5, 0.125, 3, 20, 32, "rows")
        >>> f.lo, f.hi, f.badge, f.certain
        (12, 20, 'estimate +- 0.125 (95%)', False)
        """
        if lo == hi:
            return Figure.of(lo, hi, total, engine)
        low, high = max(lo, math.floor((share - eps) * total)), math.ceil((share + eps) * total)
        share = min(max(share, fraction(lo, total)), fraction(hi, total))
        badge = f"estimate +- {eps:.3g} (95%)"
        return Figure(low, max(low, min(hi, high)), share, badge, engine, certain=False)

    @property
    def exact(self) -> bool:
        """Both bounds agree."""
        return self.certain and self.lo == self.hi


@dataclass(frozen=True)
class Depth:
    """The least number of layers at which every allowed pair is reached.

    It is at least `lo`; at most `hi`, where None means that no depth up to `searched` is shown to
    be full; `never` says that it is proved that no depth is.
    """

    lo: int
    hi: int | None
    never: bool
    searched: int

    @property
    def decided(self) -> bool:
        """One depth, or never: nothing is left open."""
        return self.never or self.lo == self.hi

    def to_json(self) -> dict[str, int | bool | None]:
        """What is known of the depth as JSON values."""
        return {
            "value": self.lo if self.decided and not self.never else None,
            "never": self.never,
            "decided": self.decided,
            "at_least": self.lo,
            "at_most": None if self.never else self.hi,
            "searched": self.searched,
        }

    def __str__(self) -> str:
        if self.never:
            return "never"
        if self.lo == self.hi:
            return str(self.lo)
        return f"between {self.lo} and {self.hi}" if self.hi is not None else f"at least {self.lo}"


@dataclass(frozen=True, eq=False)
class Curve:
    """Reach over depth as the engines found it."""

    figures: tuple[Figure, ...]
    full: Depth
    witness: tuple[int, int] | None
    notes: tuple[str, ...]


def fraction(part: int, whole: int) -> float:
    """part / whole for integers of any size; 1.0 for nothing out of nothing."""
    return part / whole if whole else 1.0
