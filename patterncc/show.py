"""Drawing masks: exact shares of edges on a grid of cells, as text, PNG or SVG.

A small mask is drawn pair by pair.  A large one is cut into cells, and the share of each cell's
pairs that are edges is counted from the zones, exactly; no matrix of the mask's size is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.zones import algebra, sweep
from patterncc.zones.lower import lower

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from patterncc.pattern import Pattern
    from patterncc.stack import Stack
    from patterncc.zones.zoneset import Frame, ZoneSet

    F64 = NDArray[np.float64]

PICTURE_CELLS = 512  # across a picture, above which a mask is drawn in cells
MOST_PANELS = 12  # in one picture
MOST_PIECES = 2**25  # (zone, cell) pairs that one drawing may look at
_CHUNK = 2**19
_SHADES = " ·░▒▓█"
_HALVES = " ▀▄█"


@dataclass(frozen=True)
class Panel:
    """One drawing; `share`, float64 [rows, columns], is each cell's edges over its pairs."""

    title: str
    frame: Frame
    edges: int
    share: F64

    @property
    def pairwise(self) -> bool:
        """Whether each cell is a single (query, key) pair."""
        return self.share.shape == (self.frame.n, self.frame.n_k)

    @property
    def density(self) -> float:
        """Edges over all pairs of the frame."""
        return self.edges / (self.frame.n * self.frame.n_k)

    @property
    def caption(self) -> str:
        """Edges and density in words."""
        return f"{self.edges:,} edges, density {self.density:.3g}"


def masks(
    stack: Stack,
    n: int,
    layer: int | None = None,
    head: int | None = None,
    bindings: Mapping[str, Any] | None = None,
) -> list[tuple[str, ZoneSet]]:
    """Each different mask of a stack once, titled with the layers and heads that it stands for.

    >>> from patterncc import Stack, causal, window
    >>> near = causal() & window(3)
    >>> [title for title, _ in masks(Stack([near, near, causal()]), 8)]
    ['layers 0-1', 'layer 2']

    Raises PatternValueError for a layer or a head that the stack does not have.
    """
    layers = len(stack)
    if layer is not None and not 0 <= layer < layers:
        raise PatternValueError(f"show: no layer {layer}; the stack has layers 0 to {layers - 1}")
    places: dict[Pattern, dict[int, list[int]]] = {}
    for l in range(layers) if layer is None else [layer]:
        slots = stack.heads(l)
        if head is not None and len(slots) > 1 and not 0 <= head < len(slots):
            raise PatternValueError(f"show: no head {head}; layer {l} has 0 to {len(slots) - 1}")
        for h, pattern in enumerate(slots):
            if len(slots) == 1:
                places.setdefault(pattern, {})[l] = []
            elif head is None or h == head:
                places.setdefault(pattern, {}).setdefault(l, []).append(h)
    found = []
    for pattern, where in places.items():
        l, hs = next(iter(where.items()))
        at = {"n_k": n + stack.memory, "q_offset": stack.memory, "layer": l}
        drawn = lower(pattern, n, **at, head=hs[0] if hs else head or 0, **(bindings or {}))
        found.append((_title(where, layers), drawn))
    return found


def _title(where: Mapping[int, Sequence[int]], layers: int) -> str:
    """Which layers and heads: 'layers 0-4, heads 2-3'."""
    shown = "all layers" if len(where) == layers > 1 else _ranges("layer", list(where))
    heads = list(dict.fromkeys(tuple(hs) for hs in where.values()))
    if len(heads) > 1 or not heads[0]:
        return shown
    return f"{shown}, {_ranges('head', heads[0])}"


def _ranges(word: str, numbers: Sequence[int]) -> str:
    """Integers in words, runs joined.

    >>> _ranges("layer", [0, 1, 2, 7])
    'layers 0-2, 7'
    """
    runs: list[list[int]] = []
    for x in numbers:
        if runs and x == runs[-1][1] + 1:
            runs[-1][1] = x
        else:
            runs.append([x, x])
    parts = [f"{a}-{b}" if a < b else str(a) for a, b in runs]
    more = f", ... {len(parts) - 4} more" if len(parts) > 4 else ""
    return f"{word}{'s' if len(numbers) > 1 else ''} {', '.join(parts[:4])}{more}"


def natural_size(stack: Stack, bindings: Mapping[str, Any], known: Sequence[int]) -> int:
    """A length at which the shape shows: the first power of two, from 64 on, at which some mask is
    at most a quarter full; else the shortest length that lowers at all.

    `known` are lengths that the pattern's author names, tried where powers of two do not fit.
    """
    fits: list[int] = []
    first: PatternError | None = None
    for n in map(int, 2 ** np.arange(6, 19)):
        try:
            drawn = masks(stack, n, bindings=bindings)
            fits.append(n)
            counts = [(z.count(), z.frame.n * z.frame.n_k) for _, z in drawn]
            if all(edges for edges, _ in counts) and any(4 * e <= pairs for e, pairs in counts):
                return n
        except SizeError:
            break
        except PatternError as error:
            first = first or error
    for n in known if not fits else ():
        try:
            masks(stack, n, bindings=bindings)
            return n
        except PatternError as error:
            first = first or error
    if not fits and first:
        raise first
    return fits[0]


def panel(title: str, zones: ZoneSet, most: int) -> Panel:
    """A drawing of `zones` on at most `most` cells each way."""
    frame = zones.frame
    if not frame.n or not frame.n_k:
        raise PatternValueError(f"show: nothing to draw, {frame.n} queries and {frame.n_k} keys")
    rows, columns = _grid(frame.n, frame.n_k, most)
    counts = cell_counts(zones, rows, columns)
    i0, i1, j0, j1 = frame.box
    heights, widths = np.diff(_cuts(i0, i1, rows)), np.diff(_cuts(j0, j1, columns))
    share = counts / (heights[:, None].astype(np.float64) * widths)
    return Panel(title, frame, int(counts.sum()), share)


def _grid(n: int, n_k: int, most: int) -> tuple[int, int]:
    """Rows and columns: a cell a pair if they fit, else square cells, of equal size if some are.

    >>> _grid(8, 8, 64), _grid(2048, 2048, 45), _grid(1000, 2000, 45)
    ((8, 8), (32, 32), (20, 40))
    """
    longest = max(n, n_k)
    if longest <= most:
        return n, n_k
    even = [c for c in range(most, most // 2, -1) if longest % c == 0]
    cells = even[0] if even else most
    return max(1, round(cells * n / longest)), max(1, round(cells * n_k / longest))


def cell_counts(zones: ZoneSet, rows: int, columns: int) -> NDArray[np.int64]:
    """Edges in each cell of a grid over the frame, exactly: int64 [rows, columns].

    Row r holds the queries from ``n * r // rows`` up to the next row's; columns likewise.

    >>> from patterncc import lower, causal
    >>> cell_counts(lower(causal(), 8), 2, 2).tolist()
    [[10, 0], [16, 10]]
    """
    i0, i1, j0, j1 = zones.frame.box
    if (i1 - i0) * (j1 - j0) >= 2**62:
        raise SizeError(f"show: {i1 - i0:,} x {j1 - j0:,} pairs; draw at most 2**31 tokens")
    across, down = _cuts(j0, j1, columns), _cuts(i0, i1, rows)
    table = sweep.disjoint(zones.table)
    total = np.zeros(rows * columns, dtype=np.int64)
    pieces = 0
    for start in range(0, len(table), _CHUNK):
        bands, row = _split(table[start : start + _CHUNK], 0, down)
        for part in range(0, len(bands), _CHUNK):
            some = bands[part : part + _CHUNK]
            cells, column, owner = _split_columns(some, across)
            pieces += len(cells)
            if pieces > MOST_PIECES:
                raise SizeError(
                    f"show: more than {MOST_PIECES:,} pieces to count; draw fewer cells (--cells)"
                )
            flat = row[part : part + _CHUNK][owner] * columns + column
            np.add.at(total, flat, algebra.areas(cells).astype(np.int64))
    return total.reshape(rows, columns)


def _cuts(first: int, last: int, parts: int) -> NDArray[np.int64]:
    """Where the cells begin: `parts` + 1 bounds from first to last."""
    return np.array([first + (last - first) * k // parts for k in range(parts + 1)], dtype=np.int64)


def _split(
    table: NDArray[np.int64], axis: int, cuts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Tight zones cut along queries (axis 0) or keys (axis 2), and the cell of each piece."""
    owner, cell = algebra.expand(
        np.searchsorted(cuts, table[:, axis], side="right") - 1,
        np.searchsorted(cuts, table[:, axis + 1], side="left"),
    )
    pieces = algebra.take(table, owner).copy(order="F")
    pieces[:, axis] = np.maximum(pieces[:, axis], cuts[cell])
    pieces[:, axis + 1] = np.minimum(pieces[:, axis + 1], cuts[cell + 1])
    # a tight zone has an edge in each of its queries and keys, so no piece is empty
    return algebra.tighten(pieces), cell


def _split_columns(
    table: NDArray[np.int64], cuts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.intp], NDArray[np.intp]]:
    """As `_split` along keys, with the index of the zone that each piece comes from."""
    pieces, column = _split(table, 2, cuts)
    counts = np.searchsorted(cuts, table[:, 3], side="left") - (
        np.searchsorted(cuts, table[:, 2], side="right") - 1
    )
    return pieces, column, np.repeat(np.arange(len(table)), counts)


def text(drawn: Panel) -> str:
    """The drawing in characters: half blocks for single pairs, shades of one character for cells.

    >>> from patterncc import lower, causal, window
    >>> print(text(panel("near", lower(causal() & window(2), 8), 64)))
    near: n 8, 21 edges, density 0.328
      key 0 .. 7
    0 █▄
      ▀▀█▄
        ▀▀█▄
    7     ▀▀█▄
    """
    frame = drawn.frame
    lines = _half_blocks(drawn.share > 0) if drawn.pairwise else _shaded(drawn.share)
    last = frame.q_offset + frame.n - 1
    labels = [str(frame.q_offset), *[""] * (len(lines) - 2), str(last)][: len(lines)]
    width = max(map(len, labels))
    size = f"n {frame.n:,}" + (f" x {frame.n_k:,} keys" if frame.n_k != frame.n else "")
    head = f"{drawn.title}: {size}, {drawn.caption}"
    keys = f"{'':>{width}} key {frame.k_offset} .. {frame.k_offset + frame.n_k - 1}"
    if not drawn.pairwise:
        keys += f"; {_SHADES[1]} up to a quarter of a cell, {_SHADES[-1]} all of it"
    body = [f"{label:>{width}} {line}".rstrip() for label, line in zip(labels, lines, strict=True)]
    return "\n".join([head, keys, *body])


def _half_blocks(mask: NDArray[np.bool_]) -> list[str]:
    """Two rows of pairs in one line of characters."""
    if len(mask) % 2:
        mask = np.concatenate([mask, np.zeros_like(mask[:1])])
    codes = mask[0::2].astype(int) + 2 * mask[1::2]
    return ["".join(_HALVES[c] for c in line) for line in codes.tolist()]


def _shaded(share: F64) -> list[str]:
    """Cells as shades, two characters wide so that they come out square; any edge shows."""
    levels = np.where(share >= 1, len(_SHADES) - 1, np.ceil(share * (len(_SHADES) - 2)))
    return ["".join(2 * _SHADES[c] for c in line) for line in levels.astype(int).tolist()]


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before any work is done for it.

    Raises PatternValueError for another ending than .png and .svg, PatternError without matplotlib.
    """
    if path.suffix not in (".png", ".svg"):
        raise PatternValueError(f"show: {str(path)!r} is neither .png nor .svg")
    if not path.parent.is_dir():
        raise PatternValueError(f"show: the folder {str(path.parent)!r} does not exist; make it")
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError:
        raise PatternError(
            "show: pictures need matplotlib; pip install 'patterncc[plot]', "
            "or leave out -o to draw in the terminal"
        ) from None


def picture(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw masks side by side into a .png or .svg file, which appears whole or not at all."""
    check_picture(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = panels[:MOST_PANELS]
    left_out = len(panels) - len(shown)
    wide = min(len(shown), 4 if len(shown) > 6 else 3)
    high = -(-len(shown) // wide)
    # the salt and the missing date keep the SVG of a mask the same from run to run
    with rc_context({"svg.hashsalt": "patterncc", "font.size": 9}):
        figure = Figure(figsize=(4.0 * wide + 0.6, 4.2 * high + 0.5), layout="constrained", dpi=150)
        grid = figure.subplots(high, wide, squeeze=False).ravel()
        for axes, drawn in zip(grid, shown, strict=False):
            _draw(axes, drawn)
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        more = f" ({left_out} more masks not drawn)" if left_out else ""
        figure.suptitle(title + more, fontsize=12, fontweight="bold")
        if any(not p.pairwise for p in shown):
            bar = figure.colorbar(_scale(), ax=grid.tolist(), shrink=0.75, aspect=30, pad=0.015)
            bar.set_label("share of a cell's pairs that are edges")
            bar.set_ticks(
                [0, 0.01, 0.1, 0.25, 0.5, 1], labels=["0", "1%", "10%", "25%", "50%", "100%"]
            )
        _save(figure, path)


def _draw(axes: Any, drawn: Panel) -> None:
    """One mask with its axes in token positions."""
    i0, i1, j0, j1 = drawn.frame.box
    scale = _scale()
    axes.imshow(
        drawn.share,
        cmap=scale.cmap,
        norm=scale.norm,
        extent=(j0 - 0.5, j1 - 0.5, i1 - 0.5, i0 - 0.5),
        interpolation="nearest",
        aspect="equal",
    )
    if max(drawn.share.shape) <= 64 and drawn.pairwise:
        for across, first, last in ((axes.axvline, j0, j1), (axes.axhline, i0, i1)):
            for x in range(first + 1, last):
                across(x - 0.5, color="white", linewidth=0.4)
    axes.set_title(f"{drawn.title}\n{drawn.caption}", fontsize=9)
    axes.set_xlabel("key j")
    axes.set_ylabel("query i")
    axes.xaxis.set_major_formatter(_position)
    axes.yaxis.set_major_formatter(_position)
    axes.tick_params(length=2, colors="#444444")
    for side in axes.spines.values():
        side.set_color("#b8c0cc")


def _scale() -> Any:
    """Share to colour: paper for none, then one hue from light to dark, so that it prints in grey
    and reads the same to every eye; the square root keeps thin lines visible."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    ramp = [
        (0.0, "#f3f5f8"),
        (1e-6, "#c6dbef"),
        (0.3, "#6baed6"),
        (0.65, "#2171b5"),
        (1.0, "#08306b"),
    ]
    colours = LinearSegmentedColormap.from_list("edges", ramp, N=1024)
    return ScalarMappable(PowerNorm(0.5, vmin=0.0, vmax=1.0), colours)


def _position(x: float, _: object) -> str:
    """A token position on an axis: 512, 16k, 1M (of 1024)."""
    at = round(x)
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if at >= 8 * unit or (at >= unit and at % unit == 0):
            return f"{at / unit:g}{name}"
    return str(at)


def _save(figure: Any, path: Path) -> None:
    """Write beside the target, then move."""
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        figure.savefig(part, metadata={"Date": None} if path.suffix == ".svg" else None)
        part.replace(path)
    except OSError as error:
        raise PatternError(f"show: cannot write {str(path)!r}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
