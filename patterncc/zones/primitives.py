"""Lowering of the primitives with structure: windows, strides, stripes, chunks, global tokens.

Each function takes the primitive and the `Site` and gives rows of six integers that are exact
inside the site's region; `lower` clips and tightens them.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import numpy as np

from patterncc.primitives import (
    Causal,
    Chunked,
    Convolution,
    Dilated,
    Full,
    GlobalTokens,
    LogSparse,
    Prefix,
    Recurrent,
    Sink,
    Strided,
    Summary,
    Window,
)
from patterncc.zones.site import FAR, Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


def full(_: Full, at: Site) -> I64:
    """The region itself."""
    return at.rows()


def causal(_: Causal | Recurrent, at: Site) -> I64:
    """j - i < 1; a recurrent layer carries as far."""
    return at.rows(d1=1)


def convolution(p: Convolution, at: Site) -> I64:
    """The window of the taps."""
    return at.rows(d0=1 - p.width, d1=1)


def window(p: Window, at: Site) -> I64:
    """One band; with blocks, one box a block row."""
    left = FAR if p.left < 0 else p.left
    right = FAR if p.right < 0 else p.right
    if p.block > 1:
        return _block_rows(p, at, p.block, left, right)
    return at.rows(d0=-left, d1=min(FAR, right + 1))


def chunked(p: Chunked, at: Site) -> I64:
    """One box a chunk: a block window that sees its own block only."""
    return _block_rows(p, at, p.size, 0, 0)


def sink(p: Sink, at: Site) -> I64:
    """One column stripe."""
    return at.rows(j0=0, j1=p.count)


def prefix(p: Prefix, at: Site) -> I64:
    """One box."""
    return at.rows(i0=0, i1=p.count, j0=0, j1=p.count)


def dilated(p: Dilated, at: Site) -> I64:
    """One diagonal for each multiple of the step."""
    if p.step == 1:
        return at.rows(d0=-p.left, d1=p.right + 1)
    return _diagonals(p, at, p.step, max(at.region.d0, -p.left), min(at.region.d1, p.right + 1))


def strided(p: Strided, at: Site) -> I64:
    """One diagonal for each multiple of the stride."""
    if p.stride == 1:
        return at.rows()
    return _diagonals(p, at, p.stride, at.region.d0, at.region.d1)


def summary(p: Summary, at: Site) -> I64:
    """One column stripe a segment."""
    if p.width == p.stride:
        return at.rows()
    first, last = at.region.j0 // p.stride, (at.region.j1 - 1) // p.stride
    at.allow(last - first + 1, p)
    ends = (np.arange(first, last + 1, dtype=np.int64) + 1) * p.stride
    return at.rows(j0=ends - p.width, j1=ends)


def global_tokens(p: GlobalTokens, at: Site) -> I64:
    """A row stripe and a column stripe for each run of tokens."""
    r = at.region
    queries, keys = _between(p.tokens, r.i0, r.i1), _between(p.tokens, r.j0, r.j1)
    at.allow(_most_runs(queries) + _most_runs(keys), p)
    q0, q1 = _runs(queries)
    k0, k1 = _runs(keys)
    return np.concatenate([at.rows(i0=q0, i1=q1), at.rows(j0=k0, j1=k1)])


def logsparse(_: LogSparse, at: Site) -> I64:
    """The band of 0, 1 and 2 steps back, then one diagonal a power of two."""
    powers = [2**k for k in range(2, 43) if at.region.d0 <= -(2**k) < at.region.d1]
    starts = np.array([-2, *(-x for x in powers)], dtype=np.int64)
    ends = np.array([1, *(1 - x for x in powers)], dtype=np.int64)
    return at.rows(d0=starts, d1=ends)


def _diagonals(p: object, at: Site, step: int, d0: int, d1: int) -> I64:
    """The diagonals j - i = multiple of `step` within [d0, d1)."""
    first, last = -(-d0 // step), (d1 - 1) // step
    at.allow(max(0, last - first + 1), p)
    d = np.arange(first, last + 1, dtype=np.int64) * step
    return at.rows(d0=d, d1=d + 1)


def _block_rows(p: object, at: Site, block: int, left: int, right: int) -> I64:
    """Block row b reads key blocks b - left .. b + right: a box each; rows that see all share one.

    A staircase needs a zone a step: its outer corners lie on one diagonal, and a zone that held two
    of them would hold what is between them as well.
    """
    r = at.region
    low_key, high_key = r.j0 // block, (r.j1 - 1) // block
    first = max(r.i0 // block, low_key - right)
    last = min((r.i1 - 1) // block, high_key + left)
    wide_first, wide_last = max(first, high_key - right), min(last, low_key + left)
    if wide_first > wide_last:
        wide_first, wide_last = last + 1, last
    wide = wide_last >= wide_first
    at.allow(max(0, last - first + 1) - (wide_last - wide_first if wide else 0), p)
    ahead = np.arange(first, wide_first, dtype=np.int64)
    behind = np.arange(wide_last + 1, last + 1, dtype=np.int64)
    starts = np.concatenate([ahead, np.arange(wide_first, wide_first + wide), behind])
    ends = np.concatenate([ahead + 1, np.arange(wide_last + 1, wide_last + 1 + wide), behind + 1])
    far = 2 * (FAR // block)
    low = np.maximum(starts - min(left, far), -far)
    high = np.minimum(starts + min(right, far) + 1, far)
    if wide:
        low[len(ahead)], high[len(ahead)] = low_key, high_key + 1
    return at.rows(starts * block, ends * block, low * block, high * block)


def _between(tokens: Sequence[int], low: int, high: int) -> Sequence[int]:
    """The tokens in [low, high), still a range if they were one."""
    return tokens[bisect_left(tokens, low) : bisect_left(tokens, high)]


def _most_runs(tokens: Sequence[int]) -> int:
    """At most how many runs of consecutive tokens there are."""
    return min(1, len(tokens)) if isinstance(tokens, range) and tokens.step == 1 else len(tokens)


def _runs(tokens: Sequence[int]) -> tuple[I64, I64]:
    """Runs of consecutive ascending tokens: their starts and ends."""
    if isinstance(tokens, range) and tokens.step == 1:
        ends = [[tokens.start], [tokens.stop]] if len(tokens) else [[], []]
        return np.array(ends[0], dtype=np.int64), np.array(ends[1], dtype=np.int64)
    array = np.array(tokens, dtype=np.int64)
    breaks = np.flatnonzero(np.diff(array) != 1)
    starts = array[np.concatenate([[0], breaks + 1])] if len(array) else array
    ends_at = array[np.concatenate([breaks, [len(array) - 1]])] + 1 if len(array) else array
    return starts, ends_at
