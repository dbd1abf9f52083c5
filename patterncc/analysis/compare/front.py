"""The Pareto front of candidates whose figures may be brackets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bracket:
    """A figure of which less is better, known to lie within [best, worst].

    >>> Bracket(3, 3).exact, Bracket(3, float("inf")).exact
    (True, False)
    """

    best: float
    worst: float

    @property
    def exact(self) -> bool:
        """One value."""
        return self.best == self.worst


Point = Sequence[Bracket]


def dominates(a: Point, b: Point) -> bool:
    """Whether a beats b whatever the true values are: nowhere worse, and somewhere better.

    a's worst is held against b's best, so that a bracket wins only what is proved.

    >>> dominates([Bracket(1, 1), Bracket(2, 4)], [Bracket(1, 1), Bracket(5, 9)])
    True
    >>> dominates([Bracket(1, 1), Bracket(2, 6)], [Bracket(1, 1), Bracket(5, 9)])
    False
    """
    pairs = list(zip(a, b, strict=True))
    return all(x.worst <= y.best for x, y in pairs) and any(x.worst < y.best for x, y in pairs)


def dominators(points: Sequence[Point]) -> tuple[tuple[int, ...], ...]:
    """For each point the indices of those that beat it; the front are those that none beats.

    >>> one = [Bracket(1, 1), Bracket(3, 3)]
    >>> two = [Bracket(2, 2), Bracket(3, 3)]
    >>> dominators([one, two, one])
    ((), (0, 2), ())
    """
    return tuple(
        tuple(k for k, other in enumerate(points) if dominates(other, point)) for point in points
    )
