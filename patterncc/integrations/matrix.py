"""Patterns and layouts as sparse matrices of scipy: edges one by one, tiles, blocks.

A matrix is [queries, keys]: entry (i, j) says that query i reads key j, counted from the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.integrations.tiles import (
    allow,
    blocks,
    in_token_order,
    pattern_of,
    tile_counts,
    tiles_of,
)
from patterncc.layout import masks
from patterncc.layout.layout import Layout
from patterncc.pattern import Pattern, check_int
from patterncc.stack import Heads, Stack, check_stack
from patterncc.zones import algebra
from patterncc.zones.lower import attention_only, lower

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import bsr_array, coo_array, csr_array

    from patterncc.zones import ZoneSet

    I64 = NDArray[np.int64]

MAX_EDGES = 2**25  # an edge takes about 60 bytes while it is made
MAX_BYTES = 2**30


def to_csr(
    source: Layout | Stack | Pattern | Heads,
    n: int | None = None,
    *,
    head: int | None = None,
    sequence: int | None = None,
    layer: int = 0,
    tiles: bool = False,
    max_edges: int = MAX_EDGES,
    **bindings: Any,
) -> csr_array:
    """The edges of a layout, or of a pattern at length n, as a scipy csr_array of True.

    head, sequence: which, where they differ.  layer: which layer of a stack; of one pattern it keys
    random edges.  bindings: as in `lower`, n_k and q_offset too.
    tiles: of a layout, a matrix of tiles instead: how many edges each touched tile holds.
    max_edges: entries above which nothing is built.

    `pc.from_scipy` is the way back.

    >>> from patterncc import causal, window
    >>> to_csr(causal() & window(1), 3).toarray().astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]

    Raises SizeError, before anything is built, for more than max_edges entries; PatternValueError
    where heads differ and none is chosen, LayoutError for tiles in another order than of tokens.
    """
    import scipy.sparse

    row, column, data, shape = _entries(
        "to_csr", source, n, head, sequence, layer, tiles, max_edges, bindings
    )
    indptr = np.zeros(shape[0] + 1, dtype=column.dtype)
    np.cumsum(np.bincount(row, minlength=shape[0]), out=indptr[1:])
    return scipy.sparse.csr_array((data, column, indptr), shape=shape)


def to_coo(
    source: Layout | Stack | Pattern | Heads,
    n: int | None = None,
    *,
    head: int | None = None,
    sequence: int | None = None,
    layer: int = 0,
    tiles: bool = False,
    max_edges: int = MAX_EDGES,
    **bindings: Any,
) -> coo_array:
    """The edges of a layout, or of a pattern at length n, as a scipy coo_array; see `to_csr`.

    Entries stand row by row, keys ascending.

    >>> from patterncc import causal, window
    >>> a = to_coo(causal() & window(1), 3)
    >>> a.row.tolist(), a.col.tolist()
    ([0, 1, 1, 2, 2], [0, 0, 1, 1, 2])
    """
    import scipy.sparse

    row, column, data, shape = _entries(
        "to_coo", source, n, head, sequence, layer, tiles, max_edges, bindings
    )
    return scipy.sparse.coo_array((data, (row, column)), shape=shape)


def to_bsr(
    layout: Layout,
    *,
    head: int | None = None,
    sequence: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> bsr_array:
    """The touched tiles of a layout as a scipy bsr_array of bool blocks.

    Its shape is the layout's, rounded up to whole tiles; what is past the last query or key is
    False.  Full tiles are written out: max_bytes bounds a byte a pair of every touched tile.

    >>> from patterncc import causal, compile, window
    >>> a = to_bsr(compile(causal() & window(20), 90, block=32))
    >>> a.shape, a.blocksize, int(a.sum())
    ((96, 96), (32, 32), 1680)
    """
    import scipy.sparse

    layout = in_token_order("to_bsr", layout)
    pattern = pattern_of("to_bsr", layout, head, sequence)
    count, (height, width) = int(tile_counts(layout)[pattern]), layout.block
    what = f"{count} tiles of {height} x {width}"
    allow("to_bsr", what, count * height * width, max_bytes, "raise max_bytes, or use to_csr")
    found = tiles_of(layout, pattern)
    indptr = np.zeros(layout.lines + 1, dtype=np.int64)
    np.cumsum(np.bincount(found.row, minlength=layout.lines), out=indptr[1:])
    data = blocks(layout, found.row, found.word)
    shape = (layout.lines * height, layout.columns * width)
    return scipy.sparse.bsr_array((data, found.column, indptr), shape=shape)


Entries = tuple["NDArray[Any]", "NDArray[Any]", "NDArray[Any]", tuple[int, int]]


def _entries(
    owner: str,
    source: Any,
    n: int | None,
    head: int | None,
    sequence: int | None,
    layer: int,
    as_tiles: bool,
    max_edges: int,
    bindings: dict[str, Any],
) -> Entries:
    """Rows, columns, data and shape of a matrix, row by row, columns ascending."""
    most = check_int(owner, "max_edges", max_edges, 0, 2**40)
    if not isinstance(source, Layout):
        if as_tiles:
            raise PatternError(
                f"{owner}: a {type(source).__name__} has no tiles; give pc.compile(p, n, block=...)"
            )
        zones = _lowered(owner, source, n, head, layer, bindings)
        return _of_zones(owner, zones, most)
    if n is not None or layer or bindings:
        raise PatternError(f"{owner}: a layout has its length and bindings; give them to compile")
    if as_tiles:
        return _of_tiles(owner, source, head, sequence, most)
    return _of_layout(owner, source, head, sequence, most)


def _lowered(
    owner: str, source: Any, n: int | None, head: int | None, layer: int, bindings: dict[str, Any]
) -> ZoneSet:
    check_stack(owner, source)
    if n is None:
        raise PatternError(f"{owner}: a pattern has no length; give n")
    layer = check_int(owner, "layer", layer, 0)
    if isinstance(source, Stack):
        bindings = {"q_offset": source.memory, **bindings}
        source = source.layer(layer)
    if isinstance(source, Heads):
        count = len(source.patterns)
        if head is None and len(set(source.patterns)) > 1:
            raise PatternValueError(f"{owner}: {count} heads that differ; choose one with head=")
        head = check_int(owner, "head", head or 0, 0, count - 1)
        source = source.patterns[head]
    head = check_int(owner, "head", head or 0, 0)
    return lower(attention_only(source), n, layer=layer, head=head, **bindings)


def _of_zones(owner: str, zones: ZoneSet, most: int) -> Entries:
    _allow(owner, zones.count(), "edges", most)
    frame = zones.frame
    i0, i1, j0, j1, d0, d1 = zones.disjoint().table.T
    zone, i = algebra.expand(i0, i1)
    row, j = algebra.expand(np.maximum(j0[zone], i + d0[zone]), np.minimum(j1[zone], i + d1[zone]))
    return _sorted(i[row] - frame.q_offset, j - frame.k_offset, (frame.n, frame.n_k))


def _of_layout(
    owner: str, layout: Layout, head: int | None, sequence: int | None, most: int
) -> Entries:
    """The edges of all terms, each put back into the order of tokens."""
    patterns = [pattern_of(owner, t, head, sequence) for t in layout.terms]
    held = sum(t.edges[u] for t, u in zip(layout.terms, patterns, strict=True))
    _allow(owner, held, "edges", most)
    rows, columns = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for term, pattern in zip(layout.terms, patterns, strict=True):
        found = tiles_of(term, pattern)
        step = max(1, 2**24 // (term.block[0] * term.block[1]))
        for first in range(0, len(found.row), step):
            at = slice(first, first + step)
            tile, i, j = np.nonzero(blocks(term, found.row[at], found.word[at]))
            i += found.row[at][tile] * term.block[0]
            j += found.column[at][tile] * term.block[1]
            order = term.order
            rows.append(i if order is None else order.queries[i].astype(np.int64))
            columns.append(j if order is None else order.keys[j].astype(np.int64))
    return _sorted(np.concatenate(rows), np.concatenate(columns), (layout.n, layout.n_k))


def _of_tiles(
    owner: str, layout: Layout, head: int | None, sequence: int | None, most: int
) -> Entries:
    """How many edges each touched tile holds."""
    layout = in_token_order(owner, layout)
    pattern = pattern_of(owner, layout, head, sequence)
    _allow(owner, int(tile_counts(layout)[pattern]), "tiles", most)
    found = tiles_of(layout, pattern)
    whole = layout.block[0] * layout.block[1]
    sizes = np.concatenate([[whole], masks.sizes(layout.zones, layout.bits)])
    held = sizes[found.word]
    last = np.flatnonzero(found.row == layout.lines - 1)  # its masks may hold queries past the last
    for first in range(0, len(last), 1024):
        at = last[first : first + 1024]
        held[at] = blocks(layout, found.row[at], found.word[at]).sum(axis=(1, 2))
    return found.row, found.column, held, (layout.lines, layout.columns)


def _sorted(row: I64, column: I64, shape: tuple[int, int]) -> Entries:
    code = row * max(1, shape[1]) + column
    code.sort()
    row, column = np.divmod(code, max(1, shape[1]))
    small = np.int32 if max(*shape, len(code)) < 2**31 else np.int64
    return row.astype(small), column.astype(small), np.ones(len(code), dtype=bool), shape


def _allow(owner: str, count: int, what: str, most: int) -> None:
    if count > most:
        raise SizeError(
            f"{owner}: {count:,} {what}, more than max_edges={most:,}; take a shorter n, raise "
            "max_edges, or keep the layout, which holds runs of tiles"
        )
