"""Tables of kernel sizes: for a kind, precision, head dim, tile and mask class, what a step holds.

A shipped table stands in ``tables/<target>.json``, one a target; `patterncc tune` measures
others.  A file is read with all of it checked, since what it says becomes source text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from patterncc.errors import BackendError
from patterncc.kernels.plan import BLOCKS, VERSION, DType, Kind, Target

Products = Literal["forward", "dq", "dkdv", "single", "decode"]
Width = Literal["half", "float32"]
Masks = Literal["zone", "zones", "bits"]

SCHEMA = 1
KINDS: tuple[Products, ...] = ("forward", "dq", "dkdv", "single", "decode")
"""The kinds whose time is in products; the others stream once over what they read."""
WIDTHS: tuple[Width, ...] = ("half", "float32")
HEAD_DIMS = (64, 128, 256)
"""Padded head dims of a table; a smaller one has the row of the next."""
TILES = ((128, 128), (128, 64), (64, 128), (64, 64))
"""Tiles of a layout (queries, keys) with rows of their own; others have the first's, cut down."""
MASKS: tuple[Masks, ...] = ("zone", "zones", "bits")
"""Masks of one zone, of two, or bits or more zones as well: each takes more registers."""
MAX_BYTES = 2**20  # of a file


class Size(NamedTuple):
    """Queries and keys of a step, warps of a program, stages of its pipeline."""

    bm: int
    bn: int
    warps: int
    stages: int


class Key(NamedTuple):
    """What a size is chosen for."""

    kind: Products
    width: Width
    head_dim: int
    tile: tuple[int, int]
    masks: Masks


@dataclass(frozen=True, eq=False)
class Table:
    """Sizes by key.

    target: whose kernels they are.  basis: where they come from, in words.  device, triton: what
    they were measured on and with, empty for a shipped table.  sources: the version of the emitted
    sources that it was made with.
    """

    target: Target
    basis: str
    rows: Mapping[Key, Size]
    device: str = ""
    triton: str = ""
    sources: int = VERSION

    def size(
        self, kind: Products, dtype: DType, dim: int, tile: tuple[int, int], masks: Masks
    ) -> Size | None:
        """The size for a padded head dim and a layout's tile, or None where no row says it.

        >>> shipped("sm_90").size("forward", "bfloat16", 128, (128, 128), "zone")
        Size(bm=128, bn=128, warps=8, stages=2)
        """
        width = width_of(dtype)
        near = next((d for d in HEAD_DIMS if d >= dim), HEAD_DIMS[-1])  # plans refuse larger ones
        sides = min(tile[0], TILES[0][0]), min(tile[1], TILES[0][1])
        exact = self.rows.get(Key(kind, width, near, sides, masks))
        return exact or self.rows.get(Key(kind, width, near, TILES[0], masks))


def width_of(dtype: DType) -> Width:
    """Both 16-bit types run at the same sizes."""
    return "float32" if dtype == "float32" else "half"


@cache
def shipped(target: Target) -> Table:
    """The table that comes along; the interpreter's kernels have the sizes of sm_90."""
    name: Target = "sm_90" if target == "interpreter" else target
    return read(Path(__file__).parent / "tables" / f"{name}.json", name)


def read(path: Path, target: Target | None = None) -> Table:
    """A table from its file, checked.

    Raises BackendError, with the file's name and what is wrong, for one that is no such table.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than {MAX_BYTES}")
        return parse(json.loads(path.read_text(encoding="utf-8")), target)
    except OSError as error:
        raise BackendError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BackendError(
            f"{path}: is no table of kernel sizes: {error}; patterncc tune makes one"
        ) from None


def parse(data: Any, target: Target | None = None) -> Table:
    """A table from its JSON.

    Raises ValueError with what is wrong.
    """
    top = _fields(data, "the file", "schema", "sources", "target", "basis", "rows")
    if top["schema"] != SCHEMA:
        raise ValueError(f"it is of schema {top['schema']!r}, this patterncc reads {SCHEMA}")
    if type(top["sources"]) is not int:
        raise ValueError(f"sources is {top['sources']!r}, not a number")
    found = top["target"]
    if found not in ("sm_80", "sm_90", "sm_100") or target not in (None, found):
        raise ValueError(f"it is for {found!r}, not for {target or 'sm_80, sm_90 or sm_100'}")
    texts = [top["basis"], data.get("device", ""), data.get("triton", "")]
    if not all(isinstance(x, str) and len(x) < 1000 for x in texts):
        raise ValueError("basis, device and triton must be short texts")
    if not isinstance(top["rows"], list):
        raise ValueError(f"rows is a {type(top['rows']).__name__}, not a list")
    rows: dict[Key, Size] = {}
    for place, row in enumerate(top["rows"]):
        key, size = _row(row, f"row {place}")
        if key in rows:
            raise ValueError(f"row {place} says again what another one says: {key}")
        rows[key] = size
    return Table(cast(Target, found), texts[0], rows, texts[1], texts[2], top["sources"])


def _row(row: Any, where: str) -> tuple[Key, Size]:
    names = ("kind", "width", "head_dim", "tile", "masks", "size")
    kind, width, dim, tile, masks, size = _fields(row, where, *names).values()
    known = ((kind, KINDS), (width, WIDTHS), (dim, HEAD_DIMS), (masks, MASKS))
    for name, (value, values) in zip(("kind", "width", "head_dim", "masks"), known):
        if not any(value == x and type(value) is type(x) for x in values):
            raise ValueError(f"{where}: {name} is {value!r}, not one of {values}")
    if not isinstance(tile, list) or tuple(tile) not in TILES:
        raise ValueError(f"{where}: tile is {tile!r}, not one of {TILES}")
    whole = isinstance(size, list) and len(size) == 4 and all(type(x) is int for x in size)
    if not whole:
        raise ValueError(f"{where}: size is {size!r}, not [queries, keys, warps, stages]")
    made = Size(*size)
    if made.bm not in BLOCKS or made.bn not in BLOCKS or made.bm > tile[0] or made.bn > tile[1]:
        raise ValueError(f"{where}: steps of {made.bm} x {made.bn} do not divide a tile of {tile}")
    if made.warps not in (1, 2, 4, 8) or not 1 <= made.stages <= 5:
        raise ValueError(f"{where}: {made.warps} warps and {made.stages} stages; 1 to 8 and 1 to 5")
    return Key(kind, width, dim, tuple(tile), masks), made


def _fields(data: Any, where: str, *names: str) -> dict[str, Any]:
    """The named entries of an object, all there."""
    missing = [x for x in names if not isinstance(data, dict) or x not in data]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}")
    return {x: data[x] for x in names}


def text(table: Table, notes: Mapping[Key, Mapping[str, Any]] | None = None) -> str:
    """The file of a table, one row a line; notes: what else is known of a row, kept beside it."""
    head: dict[str, Any] = {"schema": SCHEMA, "sources": table.sources, "target": table.target}
    head |= {"basis": table.basis}
    head |= {k: v for k, v in (("device", table.device), ("triton", table.triton)) if v}
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}," for k, v in head.items()]
    rows = []
    for key in sorted(table.rows, key=_place):
        said = key._asdict() | {"size": list(table.rows[key]), **(notes or {}).get(key, {})}
        rows.append(f"    {json.dumps(said)}")
    return "\n".join(["{", *lines, '  "rows": [', ",\n".join(rows), "  ]", "}", ""])


def _place(key: Key) -> tuple[int, ...]:
    """Rows stand in the order of the names above."""
    places = (KINDS.index(key.kind), WIDTHS.index(key.width), key.head_dim)
    return *places, TILES.index(key.tile), MASKS.index(key.masks)


def kind_of(kind: Kind) -> Products | None:
    """A kind that tables hold, or None."""
    return next((x for x in KINDS if x == kind), None)
