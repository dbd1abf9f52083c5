"""`compile`: from a pattern, a layer of heads or a stack to layouts; sizes are checked first."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from patterncc import primitives as leaf
from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.layout.build import MAX_TILES, build
from patterncc.layout.checks import MAX_LENGTH
from patterncc.layout.choose import choose_block
from patterncc.pattern import (
    Complement,
    Difference,
    Intersection,
    Pattern,
    Transpose,
    Union,
    check_int,
    name_of,
)
from patterncc.stack import Heads, Layer, Stack
from patterncc.zones.lower import lower
from patterncc.zones.zoneset import Frame, ZoneSet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.layout.layout import Layout

MAX_TEXT = 4096  # characters of a pattern's text that a layout keeps

Block = int | tuple[int, int] | None

_BY_HEAD = (leaf.RandomBlocks, leaf.RandomEdges, leaf.Expander, leaf.LongNet)
_BY_LAYER = (leaf.RandomBlocks, leaf.RandomEdges, leaf.Expander)


@overload
def compile(
    p: Layer,
    n: int,
    n_k: int | None = ...,
    q_offset: int = ...,
    k_offset: int = ...,
    block: Block = ...,
    *,
    layer: int = ...,
    max_tiles: int = ...,
    **bindings: object,
) -> Layout: ...
@overload
def compile(
    p: Stack,
    n: int,
    n_k: int | None = ...,
    q_offset: int | None = ...,
    k_offset: int = ...,
    block: Block = ...,
    *,
    layer: int = ...,
    max_tiles: int = ...,
    **bindings: object,
) -> tuple[Layout, ...]: ...
def compile(
    p: Layer | Stack,
    n: int,
    n_k: int | None = None,
    q_offset: int | None = None,
    k_offset: int = 0,
    block: Block = None,
    *,
    layer: int = 0,
    max_tiles: int = MAX_TILES,
    **bindings: object,
) -> Layout | tuple[Layout, ...]:
    """The layout of a pattern for n queries and n_k keys; for a Stack a tuple, one a layer.

    block: the tile's queries and keys, one number or two, powers of two from 16 to 256; None lets
    a cost model choose.
    q_offset: where query 0 stands; by default 0, in a stack behind its memory.
    layer: keys random edges; a stack counts its own layers.
    bindings: names in the pattern, as in `lower`.

    Equal layers of a stack are one object, equal heads of a layer share their runs.  Heads draw
    different random edges, and LongNet shifts by head, where they are listed: pc.heads([p] * 8).

    >>> from patterncc import causal, window
    >>> print(compile(causal() & window(100), 512, block=128))
    Layout of causal() & window(100)
      512 queries at 0, 512 keys at 0, tiles of 128 x 128
      edges 46662, density 0.178, tile density 0.4375: 0 full tiles, 7 partial
      masks 2 of zones, 0 of bits
      row 0: 0 mask 2
      row 1: 0 mask 1, 1 mask 2
      row 2: 1 mask 1, 2 mask 2
      row 3: 2 mask 1, 3 mask 2
      mask 1: i [0, 100) j [28, 128) j-i [28, 128)
      mask 2: i [0, 128) j [0, 128) j-i [-100, 1)

    Raises PatternValueError for sizes and blocks that cannot be, SizeError for a layout that would
    be too large, PatternError for layers that are not attention.
    """
    n = _length("n", n)
    if n_k is not None:
        n_k = _length("n_k", n_k)
    sides = _sides(block)
    if isinstance(p, Stack):
        start = p.memory if q_offset is None else q_offset
    elif isinstance(p, Pattern | Heads):
        start = q_offset or 0
    else:
        raise PatternError(f"compile: {p!r} is not a pattern, pc.heads([...]) or a Stack")
    frame = Frame.of(n, n_k, start, k_offset)
    _length("n_k", frame.n_k)
    job = _Job(frame, sides, max_tiles, bindings)
    if isinstance(p, Stack):
        if layer:
            raise PatternValueError("compile: a Stack counts its own layers; leave out layer")
        return job.layers(p)
    return job.layout(p, check_int("compile", "layer", layer, 0))


@dataclass(frozen=True)
class _Job:
    """What all layers of one call share."""

    frame: Frame
    block: tuple[int, int] | None
    max_tiles: int
    bindings: dict[str, Any]

    def layers(self, stack: Stack) -> tuple[Layout, ...]:
        """Every layer; equal ones that draw nothing from their index are one object."""
        made: dict[object, Layout] = {}
        layouts = []
        for index, each in enumerate(stack):
            layer = index if _depends(each, _BY_LAYER) else 0
            key = (_same(each), layer)
            if key not in made:
                made[key] = self.layout(each, layer)
            layouts.append(made[key])
        return tuple(layouts)

    def layout(self, each: Layer, layer: int) -> Layout:
        """One layer: its distinct heads lowered, equal ones shared, and built together."""
        patterns = each.patterns if isinstance(each, Heads) else (each,)
        lowered: dict[object, int] = {}
        tables: dict[bytes, int] = {}
        zone_sets: list[ZoneSet] = []
        head_pattern = []
        for head, p in enumerate(patterns):
            drawn = head if _depends(p, _BY_HEAD) else 0
            key = (_same(p), drawn)
            if key not in lowered:
                _attention_only(p)
                zones = self._lower(p, layer, drawn)
                content = (
                    hashlib.sha256(zones.table.tobytes()).digest() if len(patterns) > 1 else b""
                )
                lowered[key] = tables.setdefault(content, len(zone_sets))
                if lowered[key] == len(zone_sets):
                    zone_sets.append(zones)
            head_pattern.append(lowered[key])
        block = self.block or choose_block(zone_sets)
        return build(
            zone_sets, head_pattern, block, pattern=shortened(str(each)), max_tiles=self.max_tiles
        )

    def _lower(self, p: Pattern, layer: int, head: int) -> ZoneSet:
        f = self.frame
        return lower(p, f.n, f.n_k, f.q_offset, f.k_offset, layer=layer, head=head, **self.bindings)


def shortened(text: str) -> str:
    """The text of a pattern; of a very long one (labels of all tokens) the start and a digest."""
    if len(text) <= MAX_TEXT:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: MAX_TEXT - 64]}... ({len(text)} characters, sha256 {digest})"


def _length(name: str, value: int) -> int:
    value = check_int("compile", name, value, 0)
    if value > MAX_LENGTH:
        raise SizeError(
            f"compile: {name} = {value} is past {MAX_LENGTH}, the longest layout; "
            "pc.analyze answers up to 2**40 tokens, and slices of the queries compile one by one"
        )
    return value


def _sides(block: Block) -> tuple[int, int] | None:
    """The two sides of a tile, checked."""
    if block is None:
        return None
    sides = tuple(block) if isinstance(block, tuple | list) else (block, block)
    if len(sides) != 2:
        raise PatternValueError(
            f"compile: block is one number or two (queries, keys), not {block!r}"
        )
    for side in sides:
        check_int("compile", "block", side, 16, 256)
        if int(side) & (int(side) - 1):
            raise PatternValueError(
                f"compile: block {side} is not a power of two; use 16, 32, 64, 128 or 256"
            )
    return int(sides[0]), int(sides[1])


def _leaves(p: Pattern) -> Iterator[Pattern]:
    """Every primitive of the tree."""
    match p:
        case Union(parts) | Intersection(parts):
            inner = parts
        case Difference(left, right):
            inner = (left, right)
        case Complement(of) | Transpose(of):
            inner = (of,)
        case _:
            inner = ()
            yield p
    for part in inner:
        yield from _leaves(part)


def _same(each: Layer) -> object:
    """What equal layers have in common; graphs given as objects are equal only to themselves."""
    patterns = each.patterns if isinstance(each, Heads) else (each,)
    given = any(
        isinstance(x, leaf.Edges) and not isinstance(x.source, str)
        for p in patterns
        for x in _leaves(p)
    )
    return id(each) if given else each


def _depends(each: Layer, kinds: tuple[type[Pattern], ...]) -> bool:
    patterns = each.patterns if isinstance(each, Heads) else (each,)
    return any(isinstance(x, kinds) for p in patterns for x in _leaves(p))


def _attention_only(p: Pattern) -> None:
    for x in _leaves(p):
        if isinstance(x, leaf.Recurrent | leaf.Convolution):
            raise PatternError(
                f"compile: {name_of(type(x))} is a layer that is not attention and has no layout; "
                "leave such layers out of what is compiled (pc.analyze counts them)"
            )
