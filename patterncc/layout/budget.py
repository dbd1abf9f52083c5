"""What building a layout will take, said before it is taken."""

from __future__ import annotations

from dataclasses import dataclass

from patterncc.errors import SizeError
from patterncc.layout.limits import HOPELESS, MAX_BYTES, MAX_TILES

STRIP = 64
"""Bytes of a zone in a tile row, with what is at hand while strips are made."""

RECORD = 56
"""Bytes of a zone in a tile that it fills partly: key and mask, sorted, and its place."""

STROKE = 40
"""Bytes of a run of keys in a tile: one integer, sorted, and what is looked up at once."""

RUN = 24
"""Bytes of a tile that is a run of its own, in both directions."""


@dataclass(frozen=True)
class Budget:
    """How much one layout may take; every step asks before it allocates.

    n, n_k, block: queries, keys and sides of the tiles, for what is said.
    max_bytes: bytes at the highest point, the layout included.
    max_tiles: tiles that zones fill partly, each zone's counted for itself.
    """

    n: int
    n_k: int
    block: tuple[int, int]
    max_bytes: int = MAX_BYTES
    max_tiles: int = MAX_TILES

    @property
    def mask_bytes(self) -> int:
        """Bytes of one tile as bits."""
        return self.block[0] * -(-self.block[1] // 32) * 4

    def cut(self, strips: int, height: int) -> None:
        """Before zones are cut into strips: how many, each of which leads to a tile or more."""
        self._allow(
            strips * (STRIP + 3 * RECORD), f"zones that meet {strips} tile rows of {height} queries"
        )

    def list(self, strips: int, records: int, strokes: int) -> None:
        """Before partial tiles are listed: how many, and what their lists take."""
        if records + strokes > self.max_tiles:
            raise SizeError(
                f"the pattern leaves {records + strokes} tiles of {self._tile} partly filled, more "
                f"than {self.max_tiles}; use larger blocks, fewer tokens or a pattern aligned to "
                "blocks"
            )
        self._allow(
            strips * STRIP + records * RECORD + strokes * STROKE,
            f"{strips} zones in tile rows and {records + strokes} in tiles",
        )

    def scatter(self, tiles: int, edges: int) -> None:
        """After a graph was sorted by tile: how many tiles it touches, and its edges.

        A graph whose tiles hold about one edge each is refused where there are very many of them;
        a `max_tiles` above the default says that it is meant.
        """
        if tiles > HOPELESS and edges < 2 * tiles and self.max_tiles <= MAX_TILES:
            raise SizeError(self._hopeless(tiles, edges))

    def draw(self, masks: int, tiles: int = 0, strokes: int = 0) -> None:
        """Before masks are drawn as bits: how many, the tiles listed and the strokes at hand."""
        self._allow(
            masks * self.mask_bytes + tiles * RUN + strokes * STROKE,
            f"{masks} tiles of {self._tile} as bit masks",
        )

    def _hopeless(self, tiles: int, edges: int) -> str:
        height, width = self.block
        every = -(-self.n // height) * -(-self.n_k // width)
        pairs = tiles * height * width // max(1, edges)
        layout, bits = _gigabytes(tiles * RUN), _gigabytes(self.n * self.n_k // 8)
        return (
            f"the graph is too scattered for tiles: {edges} edges touch {tiles} of the {every} "
            f"tiles of {self._tile}, {edges / tiles:.1f} edges a tile. The layout would take "
            f"{layout} (a dense mask of bits {bits}), and a kernel would compute {pairs} pairs for "
            f"every edge, {tiles / every:.0%} of dense attention. Draw whole blocks instead "
            "(random_blocks(per_row, block=...)), give fewer edges or a shorter sequence, or "
            "number the tokens so that those who read each other stand near (order=...). "
            f"pc.analyze needs no tiles. To build it all the same, pass max_tiles above {MAX_TILES}"
        )

    def _allow(self, size: int, what: str) -> None:
        if size > self.max_bytes:
            raise SizeError(
                f"{what} would take {_gigabytes(size)}, more than max_bytes = {self.max_bytes} "
                f"({_gigabytes(self.max_bytes)}); use larger blocks where lists are long and "
                "smaller ones where bit masks are many, a part of the queries (n, q_offset), a "
                "pattern of fewer scattered edges, or pass a larger max_bytes"
            )

    @property
    def _tile(self) -> str:
        return f"{self.block[0]} x {self.block[1]}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
