"""Reading a layout back: the dense mask that it stands for, and its text."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from patterncc.errors import LayoutError, SizeError
from patterncc.layout import masks
from patterncc.layout.limits import DENSE_LIMIT
from patterncc.layout.runs import spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout, Runs

_LINES = 24  # lines of runs and of masks that a text shows of a term
_TERMS = 4  # terms that a text shows
_FEW = 32  # numbers of a list that a text shows


def dense(layout: Layout, *, columns: bool = False) -> NDArray[np.bool_]:
    """The mask by original positions that the rows hold, or the columns (the same one, laid out for
    backward), of all terms.

    bool [n, n_k]; [heads, n, n_k] where heads differ; [sequences, heads or 1, n, n_k] where
    sequences do.

    Raises SizeError past 2**30 entries, LayoutError where two terms hold the same pair.
    """
    entries = layout.n * layout.n_k * len(layout.head_pattern)
    if entries > DENSE_LIMIT:
        raise SizeError(
            f"dense() of {len(layout.head_pattern)} x {layout.n} x {layout.n_k} passes "
            f"{DENSE_LIMIT} entries; read layout.rows.run instead"
        )
    each = _united([_placed(term, columns)[term.head_pattern] for term in layout.terms])
    if layout.sequences > 1:
        return each.reshape(layout.sequences, layout.heads or 1, layout.n, layout.n_k)
    return each[0] if layout.heads is None else each


def _united(terms: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """The union of masks [heads, n, n_k] that share no pair."""
    whole = terms[0]
    for number, term in enumerate(terms[1:], start=1):
        if (both := whole & term).any():
            head, i, j = (int(x[0]) for x in np.nonzero(both))
            raise LayoutError(
                f"term {number} holds query {i}, key {j} of head {head}, and so does one before "
                "it; terms share no pair, or it would count twice: compile the pattern again"
            )
        whole = whole | term
    return whole


def _placed(term: Layout, columns: bool) -> NDArray[np.bool_]:
    """The mask of each pattern of one term, bool [patterns, n, n_k], by original positions."""
    slots = _by_slots(term, columns)
    if term.order is None:
        return slots
    return slots[:, term.order.query_slots][:, :, term.order.key_slots]


def _by_slots(layout: Layout, columns: bool) -> NDArray[np.bool_]:
    """The mask of each pattern of one term, bool [patterns, n, n_k], as its tiles stand."""
    height, width = layout.block
    lines, across = layout.lines, layout.columns
    tiles = np.zeros((layout.patterns, lines, across, height, width), dtype=bool)
    for line, position, word in _spread_parts(layout.cols if columns else layout.rows):
        if columns:
            pattern, column = np.divmod(line, max(1, across))
            row = position
        else:
            pattern, row = np.divmod(line, max(1, lines))
            column = position
        tiles[pattern, row, column] = _masks_of(layout, word)
    whole = tiles.transpose(0, 1, 3, 2, 4).reshape(layout.patterns, lines * height, across * width)
    return whole[:, : layout.n, : layout.n_k]


def _spread_parts(
    runs: Runs, step: int = 4096
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]]:
    line, position, word = spread(runs)
    for first in range(0, len(line), step):
        part = slice(first, first + step)
        yield line[part], position[part], word[part]


def _masks_of(layout: Layout, word: NDArray[np.int32]) -> NDArray[np.bool_]:
    """The masks of words, bool [m, block[0], block[1]]."""
    height, width = layout.block
    out = np.ones((len(word), height, width), dtype=bool)
    zones = np.flatnonzero((word > 0) & (word <= len(layout.zones)))
    drawn = np.flatnonzero(word > len(layout.zones))
    bits = [
        masks.raster(layout.zones[word[zones] - 1], layout.block),
        layout.bits[word[drawn] - 1 - len(layout.zones)],
    ]
    for where, packed in zip((zones, drawn), bits, strict=True):
        little = np.ascontiguousarray(packed.astype("<u4")).view(np.uint8)
        out[where] = np.unpackbits(little, axis=-1, bitorder="little")[..., :width].astype(bool)
    return out


def text(layout: Layout) -> str:
    """A stable text of a layout: sizes, counts, and the first runs and masks of its first terms."""
    terms, several = layout.terms, bool(layout.rest)
    stands = f"{len(terms)} terms" if several else _tiles(layout)
    frame = f"{layout.n} queries at {layout.q_offset}, {layout.n_k} keys at {layout.k_offset}"
    edges = sum(t.head_edges for t in terms) if several else _some(layout.edges, ", ")
    lines = [
        f"Layout of {layout.pattern or 'zones'}",
        f"  {frame}, {stands}",
        f"  edges {edges}, density {layout.density:.4g}, tile density {layout.tile_density:.4g}: "
        f"{layout.full_tiles} full tiles, {layout.partial_tiles} partial",
    ]
    if layout.sequences > 1:
        lines.append(f"  {layout.sequences} sequences")
    for number, term in enumerate(terms[:_TERMS]):
        if several:
            lines.append(f"  term {number}: {_tiles(term)}, edges {_some(term.edges, ', ')}")
        lines += _term_lines(term)
    return "\n".join([*lines, *_more(len(terms) - _TERMS, "terms")])


def _tiles(term: Layout) -> str:
    return f"tiles of {term.block[0]} x {term.block[1]}"


def _some(values: Iterable[int], comma: str) -> str:
    """The first of many numbers."""
    shown = [str(int(x)) for x in islice(values, _FEW + 1)]
    return comma.join([*shown[:_FEW], "..."] if len(shown) > _FEW else shown)


def _term_lines(term: Layout) -> Iterator[str]:
    """One term: its order, masks, heads and first runs."""
    if term.order is not None:
        queries, keys = term.order.queries, term.order.keys
        alike = "the same" if np.array_equal(queries, keys) else _some(keys, " ")
        yield f"  order {term.order.name!r}: queries {_some(queries, ' ')}, keys {alike}"
    yield f"  masks {len(term.zones)} of zones, {len(term.bits)} of bits"
    if len(term.head_pattern) > 1:
        yield f"  heads {_some(term.head_pattern, ' ')}"
    yield from _shown(list(_run_lines(term)), term.lines * term.patterns, "rows")
    yield from _shown(list(_mask_lines(term)), len(term.zones), "masks of zones")


def _more(count: int, what: str) -> list[str]:
    return [f"  ... {count} more {what}"] if count > 0 else []


def _shown(shown: list[str], total: int, what: str) -> list[str]:
    return [*(f"  {line}" for line in shown), *_more(total - len(shown), what)]


def _run_lines(layout: Layout) -> Iterator[str]:
    for line in range(min(_LINES, layout.lines * layout.patterns)):
        pattern, row = divmod(line, layout.lines)
        runs = layout.rows.run[layout.rows.ptr[line] : layout.rows.ptr[line + 1]].tolist()
        name = f"pattern {pattern} row {row}" if layout.patterns > 1 else f"row {row}"
        parts = [_run_text(layout, *run) for run in runs[:8]]
        parts += [f"... {len(runs) - 8} more runs"] if len(runs) > 8 else []
        yield f"{name}: {', '.join(parts) or 'nothing'}"


def _run_text(layout: Layout, first: int, count: int, word: int) -> str:
    place = f"{first}" if count == 1 else f"{first}..{first + count - 1}"
    if word == 0:
        return f"{place} full"
    if word <= len(layout.zones):
        return f"{place} mask {word}"
    return f"{place} bits {word}"


def _mask_lines(layout: Layout) -> Iterator[str]:
    for number, zones in enumerate(layout.zones[:_LINES].tolist(), start=1):
        parts = [
            f"i [{i0}, {i1}) j [{j0}, {j1}) j-i [{d0}, {d1})"
            for i0, i1, j0, j1, d0, d1 in zones
            if i1
        ]
        yield f"mask {number}: {' | '.join(parts)}"
