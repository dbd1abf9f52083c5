"""Lanczos's iteration for the largest eigenvalue of a symmetric operator, and what it may miss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.flow.sweep_vectors import dot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]
    Map = Callable[[F64], F64]

CLOSED = 1e-12  # length of a new direction, as a part of the eigenvalue, below which there is none


@dataclass(frozen=True)
class Top:
    """`value` is a Rayleigh quotient, so at most the largest eigenvalue; `closed` says that the
    vectors seen span all that the start leads to, and that it is that eigenvalue."""

    value: float
    steps: int
    closed: bool


def largest(apply: Map, start: F64, steps: int, enough: Callable[[float, int], bool]) -> Top:
    """At most `steps` products, fewer when `enough(value, steps so far)` says so.

    Vectors are not kept: the small matrix may show an eigenvalue twice, but never one too large.

    >>> values = np.array([3.0, 2.0, -1.0])
    >>> top = largest(lambda v: values * v, np.ones(3), 9, lambda value, steps: False)
    >>> round(top.value, 12), top.steps, top.closed
    (3.0, 3, True)
    """
    v, before = start / norm(start), np.zeros(len(start))
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        w = apply(v)
        diagonal.append(dot(w, v))
        w -= diagonal[-1] * v
        w -= (beside[-1] if beside else 0.0) * before
        length, value, count = norm(w), _tridiagonal(diagonal, beside), len(diagonal)
        closed = length <= CLOSED * max(abs(value), abs(diagonal[0]), CLOSED)
        if closed or count >= min(steps, len(v)) or enough(value, count):
            return Top(value, count, closed)
        beside.append(length)
        before, v = v, w / length


def missed(size: int, steps: int, risk: float) -> float:
    """The part of a positive operator's largest eigenvalue that may lie above what `steps` products
    found, with probability 1 - risk over a start drawn evenly from the sphere; 1 for all of it.

    Source: Kuczynski and Wozniakowski, "Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start", 1992 (Theorem 4.2).
    """
    root = math.log(1.648 * math.sqrt(size) / risk) / (2 * steps - 1)
    return min(1.0, root * root)


def norm(v: F64) -> float:
    """The Euclidean length."""
    return math.sqrt(dot(v, v))


def _tridiagonal(diagonal: list[float], beside: list[float]) -> float:
    """The largest eigenvalue of a tridiagonal matrix."""
    from scipy.linalg import eigh_tridiagonal

    last = len(diagonal) - 1
    found = eigh_tridiagonal(
        diagonal, beside, eigvals_only=True, select="i", select_range=(last, last)
    )
    return float(found[0])
