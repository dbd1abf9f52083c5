"""Graphs for `patterncc bench compile`: neighbours in the plane, and edges drawn anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I32 = NDArray[np.int32]

_BITS = 16  # of each coordinate on the curve
_PART = 2**16  # points whose neighbours are looked up at once


def neighbours(n: int, degree: int = 10, *, seed: int = 0) -> I32:
    """Edges [n * degree, 2] from each of n random points in the plane to its nearest others.

    Points are numbered along a Hilbert curve, so near points mostly have near numbers; the edges
    are shuffled.

    >>> graph = neighbours(500, 3)
    >>> graph.shape, bool((graph[:, 0] != graph[:, 1]).all())
    ((1500, 2), True)
    """
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    points = rng.random((n, 2))
    points = points[np.argsort(hilbert((points * 2**_BITS).astype(np.int64)), kind="stable")]
    tree = cKDTree(points)
    graph = np.empty((n, degree, 2), dtype=np.int32)
    for first in range(0, n, _PART):
        part = slice(first, first + _PART)
        near = np.asarray(tree.query(points[part], degree + 1)[1])
        graph[part, :, 0] = np.arange(first, first + len(near))[:, None]
        graph[part, :, 1] = near[:, 1:]  # the nearest of all is the point itself
    pairs = graph.reshape(-1, 2).view(np.int64)
    rng.shuffle(pairs[:, 0])
    return graph.reshape(-1, 2)


def anywhere(n: int, count: int, *, seed: int = 0) -> I32:
    """Edges [count, 2] between any two of n tokens, each as likely as the next.

    >>> anywhere(100, 7).shape
    (7, 2)
    """
    return np.random.default_rng(seed).integers(0, n, (count, 2), dtype=np.int32)


def hilbert(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each point [m, 2] of a 2**16 x 2**16 grid along a Hilbert curve.

    >>> hilbert(np.array([[0, 0], [1, 0], [1, 1], [0, 1]])).tolist()
    [0, 1, 2, 3]

    Source: Hilbert, "Ueber die stetige Abbildung einer Linie auf ein Flaechenstueck", 1891; Warren,
    "Hacker's Delight", 2nd edition, chapter 16 (the quadrant at a time).
    """
    x, y = points[:, 0].copy(), points[:, 1].copy()
    place = np.zeros(len(points), dtype=np.int64)
    for bit in range(_BITS - 1, -1, -1):
        side = 1 << bit
        right, upper = (x >> bit) & 1, (y >> bit) & 1
        place += (3 * right ^ upper) << (2 * bit)
        x, y = x & (side - 1), y & (side - 1)
        flip = (upper == 0) & (right == 1)
        x, y = np.where(flip, side - 1 - x, x), np.where(flip, side - 1 - y, y)
        turn = upper == 0
        x, y = np.where(turn, y, x), np.where(turn, x, y)
    return place
