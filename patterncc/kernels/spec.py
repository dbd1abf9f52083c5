"""What the op must know of a layout beside its tensors, as one line of text.

Lengths, tile sizes and mask classes; the cost of one is the layout's size, once.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout

Backend = Literal["triton", "cpu", "reference"]


@dataclass(frozen=True)
class Spec:
    """What the op must know of a layout beside its tensors; carried as one line of JSON.

    n, n_k, q_offset, k_offset: the layout's frame (queries, keys, positions of the first of each).
    block: queries x keys of a tile.  patterns: distinct patterns (1: every head reads the same), an
    upper bound where sequences differ.
    full, zones, bits: the mask classes in use; zones is the largest number of zones of one mask:
    0, 1, 2 or 4.  layout_hash: hexadecimal digits over everything that the layout holds; empty for
    one that varies from batch to batch.
    share: aligned groups of this many heads have one pattern (0: all heads have).
    sequences: 1 where all sequences of a batch have one mask, else how many the layout is for.
    reach: tiles of the longest tile row; 0 where that varies from batch to batch.

    >>> s = Spec(100, 100, 0, 0, (64, 64), 1, True, 1, False, "0" * 16, "cpu")
    >>> s.q_lines, Spec.parse(s.text()) == s
    (2, True)
    """

    n: int
    n_k: int
    q_offset: int
    k_offset: int
    block: tuple[int, int]
    patterns: int
    full: bool
    zones: int
    bits: bool
    layout_hash: str
    backend: Backend
    share: int = 0
    sequences: int = 1
    reach: int = 0

    @property
    def q_lines(self) -> int:
        """Tile rows of one pattern: ceil(n / block[0])."""
        return -(-self.n // self.block[0])

    @property
    def k_lines(self) -> int:
        """Tile columns of one pattern: ceil(n_k / block[1])."""
        return -(-self.n_k // self.block[1])

    def text(self) -> str:
        """One line of JSON with sorted keys; equal specs have equal texts."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(text: str) -> Spec:
        """The spec that `text` was made from."""
        values = json.loads(text)
        values["block"] = tuple(values["block"])
        return Spec(**values)

    @staticmethod
    def of(layout: Layout, backend: Backend) -> Spec:
        """Read a layout's mask classes and hash (linear in its size; cache the result)."""
        words = layout.rows.run[:, 2]
        zone_count = len(layout.zones)
        used = [slot for slot in range(4) if layout.zones[:, slot].any()]
        slots = used[-1] + 1 if used else 0
        masked = bool(((words > 0) & (words <= zone_count)).any())
        varies = layout.varies  # the next batch may have the classes that this one lacks
        return Spec(
            n=layout.n,
            n_k=layout.n_k,
            q_offset=layout.q_offset,
            k_offset=layout.k_offset,
            block=(int(layout.block[0]), int(layout.block[1])),
            patterns=_patterns(layout),
            full=varies or bool((words == 0).any()),
            zones=(0, 1, 2, 4, 4)[slots] or int(masked or varies),
            bits=varies or bool((words > zone_count).any()),
            layout_hash="" if varies else layout.hash,
            backend=backend,
            share=_share(layout.head_pattern.reshape(layout.sequences, -1)),
            sequences=layout.sequences,
            reach=0 if varies else _reach(layout),
        )


def _reach(layout: Layout) -> int:
    """Tiles of the longest tile row."""
    before = np.zeros(len(layout.rows.run) + 1, dtype=np.int64)
    np.cumsum(layout.rows.run[:, 1], out=before[1:])
    return int(np.diff(before[layout.rows.ptr]).max(initial=0))


def _patterns(layout: Layout) -> int:
    """Distinct patterns; where sequences differ what there may be, so that batches are alike."""
    listed = len(layout.head_pattern)
    return listed if listed == 1 or layout.sequences > 1 else int(layout.head_pattern.max()) + 1


def _share(head_pattern: NDArray[np.int32]) -> int:
    """The largest g such that aligned groups of g heads share a pattern; 0 when all heads do.

    head_pattern: [sequences, heads].

    >>> import numpy as np
    >>> _share(np.array([[0, 0, 0, 0, 1, 1]])), _share(np.array([[0], [1]]))
    (4, 0)
    """
    changes = (head_pattern[:, 1:] != head_pattern[:, :-1]).any(axis=0).nonzero()[0] + 1
    return math.gcd(*changes.tolist())
