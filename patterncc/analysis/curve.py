"""What an engine finds: counts with their badges, layer by layer, and the depth to full."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A count of pairs that is at least `lo` and at most `hi`; equal when it is exact.

    `share` is lo over all allowed pairs, so that it never claims more than is proved.
    """

    lo: int
    hi: int
    share: float
    badge: str
    engine: str

    @staticmethod
    def of(lo: int, hi: int, total: int, engine: str) -> Figure:
        """A figure with its share and badge.

        >>> Figure.of(3, 3, 4, "zones").badge, Figure.of(1, 3, 4, "tiles").badge
        ('exact', 'bounds [0.25, 0.75]')
        """
        share, most = fraction(lo, total), fraction(hi, total)
        badge = "exact" if lo == hi else f"bounds [{share:.4g}, {most:.4g}]"
        return Figure(lo, hi, share, badge, engine)

    @property
    def exact(self) -> bool:
        """Both bounds agree."""
        return self.lo == self.hi


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
