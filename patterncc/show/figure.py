"""Masks as PNG and SVG files, several side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternError, PatternValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.show.cells import F64, Panel

PICTURE_CELLS = 512  # across a picture, above which a mask is drawn in cells
MOST_PANELS = 12  # in one picture
PAPER = "#f3f5f8"
# Okabe and Ito's colours, told apart by every eye, the strongest first
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


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
        above = 1 + 0.2 / figure.get_figheight()  # 0.2 inches of air, whatever the height
        figure.suptitle(title + more, fontsize=12, fontweight="bold", y=above)
        if any(not p.pairwise and not p.parts for p in shown):
            bar = figure.colorbar(_scale(), ax=grid.tolist(), shrink=0.75, aspect=30, pad=0.015)
            bar.set_label("share of a cell's pairs that are edges")
            bar.set_ticks(
                [0, 0.01, 0.1, 0.25, 0.5, 1], labels=["0", "1%", "10%", "25%", "50%", "100%"]
            )
        _save(figure, path)


def _draw(axes: Any, drawn: Panel) -> None:
    """One mask with its axes in token positions."""
    i0, i1, j0, j1 = drawn.frame.box
    from matplotlib.ticker import MultipleLocator

    scale = _scale()
    axes.imshow(
        _coloured(drawn) if drawn.parts else drawn.share,
        cmap=scale.cmap,
        norm=scale.norm,
        extent=(j0 - 0.5, j1 - 0.5, i1 - 0.5, i0 - 0.5),
        interpolation="antialiased",
        aspect="equal",
    )
    if max(drawn.share.shape) <= 64 and drawn.pairwise:
        for across, first, last in ((axes.axvline, j0, j1), (axes.axhline, i0, i1)):
            for x in range(first + 1, last):
                across(x - 0.5, color="white", linewidth=0.4)
    if drawn.parts:
        _legend(axes, drawn)
    axes.set_title(f"{drawn.title}\n{drawn.caption}", fontsize=9)
    axes.set_xlabel("key j")
    axes.set_ylabel("query i")
    step = 2 ** max(0, int(math.log2(max(i1 - i0, j1 - j0) / 4)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(step))
        axis.set_major_formatter(_position)
    axes.tick_params(length=2, colors="#444444")
    for side in axes.spines.values():
        side.set_color("#b8c0cc")


def _coloured(drawn: Panel) -> F64:
    """Each cell in the colour of the part with most of its edges, paler where edges are few."""
    from matplotlib.colors import to_rgb

    paper = np.array(to_rgb(PAPER))
    hues = np.array([to_rgb(colour) for colour in COLOURS[: len(drawn.parts)]])
    leading = np.argmax([share for _, share in drawn.parts], axis=0)  # ties: the part named first
    depth = np.where(drawn.share > 0, 0.25 + 0.75 * np.sqrt(drawn.share), 0.0)[..., None]
    mixed: F64 = paper * (1 - depth) + hues[leading] * depth
    return mixed


def _legend(axes: Any, drawn: Panel) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(color=colour, label=label)
        for colour, (label, _) in zip(COLOURS, drawn.parts, strict=False)
    ]
    note = None if drawn.pairwise else "paler: fewer of a cell's pairs"
    axes.legend(
        handles=patches,
        title=note,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=2 if len(patches) > 3 else 1,
        fontsize=8,
        title_fontsize=8,
        frameon=False,
    )


def _scale() -> Any:
    """Share to colour: paper for none, then one hue from light to dark, so that it prints in grey
    and reads the same to every eye; the square root keeps thin lines visible."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    ramp = [
        (0.0, PAPER),
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
        # legends stand below the axes, outside what the layout has room for
        options = {"bbox_inches": "tight", "pad_inches": 0.15}
        dated = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(part, metadata=dated, **options)
        part.replace(path)
    except OSError as error:
        raise PatternError(f"show: cannot write {str(path)!r}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
