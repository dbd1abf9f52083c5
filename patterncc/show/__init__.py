"""Drawing masks: exact shares of edges on a grid of cells, as text, PNG or SVG.

A small mask is drawn pair by pair.  A large one is cut into cells, and the share of each cell's
pairs that are edges is counted from the zones, exactly; no matrix of the mask's size is ever made.
"""

from patterncc.show.cells import Panel, cell_counts, panel
from patterncc.show.figure import PICTURE_CELLS, check_picture, picture
from patterncc.show.selection import Mask, masks, natural_size
from patterncc.show.terminal import text

__all__ = [
    "Mask",
    "masks",
    "natural_size",
    "Panel",
    "panel",
    "cell_counts",
    "text",
    "picture",
    "check_picture",
    "PICTURE_CELLS",
]
