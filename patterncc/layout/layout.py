"""Layout: which tiles of a mask are touched, as runs, and the masks of the partial ones.

A tile is `block[0]` queries x `block[1]` keys; tile row r starts at query ``r * block[0]`` counted
from query 0 of the layout, tile column c at key ``c * block[1]`` counted from its key 0.  Touched
tiles stand in *runs*: consecutive tiles of a row with one mask word each.

    mask word 0            full: every pair of the tile is an edge (and all its keys exist)
    1 .. len(zones)        `zones[word - 1]`: the union of up to 4 tile-local zones
    above                  `bits[word - 1 - len(zones)]`: one bit a pair, row-major

A tile that reaches past the last key is never "full": its mask leaves the missing keys out.
Missing queries (rows past n) may be set or not; nobody reads them.

A layout may stand in another order than that of tokens: its tiles then count *slots*, and `order`
says which query and which key a slot holds.  A mask whose parts want different orders is several
such layouts, the *terms*: their edges are disjoint, so their results are merged by LSE.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from patterncc.layout.limits import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from patterncc.stack import Layer
    from patterncc.zones.orders.order import Order


@dataclass(frozen=True, eq=False)
class Runs:
    """One direction of a layout, CSR: line l = u * lines + r has ``run[ptr[l] : ptr[l + 1]]``.

    `ptr` is int32 [patterns * lines + 1], `run` int32 [runs, 3]: first tile, tile count, mask word.
    Tiles ascend within a line and runs do not overlap.
    """

    lines: int
    ptr: NDArray[np.int32]
    run: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a layout was compiled from, kept in memory only: enough to compile another length.

    order: None where the cost model chose, "token", a name, or permutations as they were given.
    """

    source: Layer
    block: tuple[int, int] | None
    layer: int
    order: object
    max_tiles: int
    bindings: Mapping[str, object]
    max_bytes: int = MAX_BYTES
    target: str = "sm_90"


@dataclass(frozen=True, eq=False)
class Layout:
    """A compiled mask for n queries and n_k keys; heads with equal patterns share their runs.

    rows: runs over key tiles for each query tile row (the forward pass and dQ).
    cols: runs over query tiles for each key tile column (dK and dV), same tiles, same mask words.
    head_pattern: int32 [sequences * heads], the pattern of head h of sequence b at b * heads + h;
    one head serves any number of heads.
    sequences: 1 where all sequences of a batch have the same mask, else how many there are.
    zones: int32 [count, 4, 6], tile-local i0 i1 j0 j1 d0 d1 (d = j - i, both tile-local),
    half-open and tight; unused slots are all zero, which no pair satisfies, and come last.
    bits: uint32 [count, block[0], ceil(block[1] / 32)], bit b of word w is key column 32 * w + b.
    edges: the exact count of edges of each pattern.
    order: which query and key each slot holds; None where tiles stand in token order.
    rest: further terms, of the same frame and heads, each without a rest of its own.
    recipe: how it was compiled; None for a layout from a file.
    varies: other batches bring others of its kind, so its kernels hold every mask class they need.
    positions: of queries and of keys, int32 [n] and [n_k], where they do not follow from rows and
    offsets: packed sequences with keys of their own.  Scores that know positions read them.
    """

    n: int
    n_k: int
    q_offset: int
    k_offset: int
    block: tuple[int, int]
    head_pattern: NDArray[np.int32]
    rows: Runs
    cols: Runs
    zones: NDArray[np.int32]
    bits: NDArray[np.uint32]
    edges: tuple[int, ...]
    pattern: str = ""
    device: str | None = None
    sequences: int = 1
    order: Order | None = None
    rest: tuple[Layout, ...] = ()
    recipe: Recipe | None = None
    varies: bool = False
    positions: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None

    @cached_property
    def terms(self) -> tuple[Layout, ...]:
        """This layout without its rest, then the rest; their edges are disjoint."""
        return (replace(self, rest=()) if self.rest else self, *self.rest)

    @property
    def lines(self) -> int:
        """Tile rows of one pattern."""
        return self.rows.lines

    @property
    def columns(self) -> int:
        """Tile columns of one pattern."""
        return self.cols.lines

    @property
    def patterns(self) -> int:
        """Different patterns among the heads."""
        return len(self.edges)

    @property
    def heads(self) -> int | None:
        """How many heads the layout is for; None when it serves any number."""
        heads = len(self.head_pattern) // self.sequences
        return None if heads == 1 else heads

    @property
    def density(self) -> float:
        """Edges among all pairs, the mean over heads; 0 where there are no pairs."""
        pairs = self.n * self.n_k * len(self.head_pattern)
        return sum(t.head_edges for t in self.terms) / pairs if pairs else 0.0

    @property
    def head_edges(self) -> int:
        """Edges of this term, summed over heads."""
        return sum(self.edges[u] for u in self.head_pattern.tolist())

    @property
    def tile_density(self) -> float:
        """Touched tiles among all tiles, the mean over heads, the terms added up; 0 where there are
        no tiles."""
        shares = [t.tile_share for t in self.terms]
        return sum(touched / tiles if tiles else 0.0 for touched, tiles in shares)

    @property
    def tile_share(self) -> tuple[int, int]:
        """(touched tiles, all tiles) of this term, summed over heads."""
        touched = [sum(pair) for pair in self._tile_counts]
        tiles = self.lines * self.columns * len(self.head_pattern)
        return sum(touched[u] for u in self.head_pattern.tolist()), tiles

    @property
    def full_tiles(self) -> int:
        """Tiles without a mask, over all patterns and terms."""
        return sum(full for t in self.terms for full, _ in t._tile_counts)

    @property
    def partial_tiles(self) -> int:
        """Tiles with a mask, over all patterns and terms."""
        return sum(partial for t in self.terms for _, partial in t._tile_counts)

    @cached_property
    def _tile_counts(self) -> tuple[tuple[int, int], ...]:
        """(full, partial) tiles of each pattern."""
        counts = []
        for u in range(self.patterns):
            first, last = self.rows.ptr[u * self.lines], self.rows.ptr[(u + 1) * self.lines]
            run = self.rows.run[first:last]
            tiles = int(run[:, 1].sum(dtype=np.int64))
            full = int(run[run[:, 2] == 0, 1].sum(dtype=np.int64))
            counts.append((full, tiles - full))
        return tuple(counts)

    @cached_property
    def hash(self) -> str:
        """sha256 of all but the device and the recipe: sizes, pattern text, arrays, the rest."""
        numbers = [self.n, self.n_k, self.q_offset, self.k_offset, *self.block, self.sequences]
        texts = [self.pattern, self.order.name if self.order else "", *(t.hash for t in self.rest)]
        digest = hashlib.sha256(json.dumps([numbers, self.edges, texts]).encode())
        for array in (*self.arrays.values(), *(self.positions or ())):
            digest.update(repr((array.shape, array.dtype.str)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def arrays(self) -> dict[str, NDArray[np.int32]]:
        """The arrays of this term by name, all int32 (`bits` is a view), as they are hashed and
        saved."""
        placed = {}
        if self.order is not None:
            queries, keys = self.order.queries, self.order.keys
            placed = {"order_queries": queries}
            if keys is not queries and not np.array_equal(keys, queries):
                placed["order_keys"] = keys
        return {
            "head_pattern": self.head_pattern,
            "row_ptr": self.rows.ptr,
            "row_run": self.rows.run,
            "col_ptr": self.cols.ptr,
            "col_run": self.cols.run,
            "zones": self.zones,
            "bits": self.bits.view(np.int32),
            **placed,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays of all terms."""
        return sum(a.nbytes for t in self.terms for a in t.arrays.values())

    def dense(self) -> NDArray[np.bool_]:
        """The mask [n, n_k] by original positions, from runs and masks alone.

        [heads, n, n_k] where heads differ, [sequences, heads or 1, n, n_k] where sequences do.

        Raises SizeError for more than 2**30 entries.
        """
        from patterncc.layout.decode import dense

        return dense(self)

    def at(self, n: int, n_k: int | None = None) -> Layout:
        """The layout of the same graph for the first n queries, shorter or longer.

        n_k: by default the keys up to the last query, where this layout's end there, else its own.
        Shorter is a cut of the arrays, for layouts from files too, and of any pattern: a slice of
        this very graph.  Longer compiles the pattern again; it is refused where another length
        would be another graph (random edges without past=True).

        >>> from patterncc import causal, compile, window
        >>> longest = compile(causal() & window(100), 4096, block=64)
        >>> longest.at(1000).hash == compile(causal() & window(100), 1000, block=64).hash
        True

        Raises LayoutError for growth of a layout from a file, which holds no pattern.
        """
        from patterncc.layout.slice import at

        return at(self, n, n_k)

    def to(self, device: object) -> Layout:
        """The same layout marked for a device; it is uploaded when it is first used there."""
        return replace(self, device=str(device))

    def save(self, path: str | Path) -> None:
        """Write the layout as safetensors, whole or not at all."""
        from patterncc.layout.store import save

        save(self, path)

    @staticmethod
    def load(path: str | Path) -> Layout:
        """Read a layout file and check all of it; LayoutError names what is wrong."""
        from patterncc.layout.store import load

        return load(path)

    def __str__(self) -> str:
        from patterncc.layout.decode import text

        return text(self)

    def __repr__(self) -> str:
        return (
            f"<Layout {self.pattern[:100] or 'of zones'}: {self.n} x {self.n_k}, block "
            f"{self.block[0]} x {self.block[1]}, {self.full_tiles} full and "
            f"{self.partial_tiles} partial tiles>"
        )
