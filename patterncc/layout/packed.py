"""Layouts of packed sequences, each with a pattern and positions of its own.

    a a a . . . .       every sequence is lowered at its own length, with positions that count from
    a a a . . . .       its own start, and its zones are moved to where it lies; sequences share no
    . . . b . . .       row and no key, so the union of their zones is disjoint.
    . . . b b . .
    . . . . b b .
    . . . . . b b

Equal lengths are lowered once.  What a kernel is generated from (tile sides, mask classes, which
heads share a pattern) follows from the patterns alone, so that another batch compiles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from patterncc.errors import PatternError, PatternValueError
from patterncc.layout import staircase
from patterncc.layout.batch import block_of, build_varying
from patterncc.layout.budget import Budget
from patterncc.layout.compiler import Block, device_room, on_device, sides_of
from patterncc.layout.cost.choose import CANDIDATES
from patterncc.layout.layers import each_once, shortened
from patterncc.layout.layout import Layout
from patterncc.layout.limits import MAX_BYTES, MAX_LENGTH, MAX_TILES
from patterncc.layout.packed_zones import Drawn, Lowering, pieces_of, positional, single
from patterncc.layout.packing import Packing
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import Full
from patterncc.stack import Heads, Layer, Stack, patterns_of
from patterncc.zones.lower import attention_only, check_bindings, keyed, lower
from patterncc.zones.zoneset import Frame, ZoneSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

SHORTEST, LONGEST = 2**8, 2**13
"""Between these the tile is chosen for the packed length, rounded up to a power of two."""


@overload
def compile_packed(
    p: Layer | Sequence[Layer],
    cu_seqlens: object,
    cu_seqlens_k: object = ...,
    q_offset: object = ...,
    k_offset: object = ...,
    block: Block = ...,
    *,
    total: int | None = ...,
    total_k: int | None = ...,
    layer: int = ...,
    max_tiles: int = ...,
    max_bytes: int = ...,
    target: str = ...,
    **bindings: object,
) -> Layout: ...
@overload
def compile_packed(
    p: Stack,
    cu_seqlens: object,
    cu_seqlens_k: object = ...,
    q_offset: object = ...,
    k_offset: object = ...,
    block: Block = ...,
    *,
    total: int | None = ...,
    total_k: int | None = ...,
    layer: int = ...,
    max_tiles: int = ...,
    max_bytes: int = ...,
    target: str = ...,
    **bindings: object,
) -> tuple[Layout, ...]: ...
def compile_packed(
    p: Layer | Sequence[Layer] | Stack,
    cu_seqlens: object,
    cu_seqlens_k: object = None,
    q_offset: object = None,
    k_offset: object = 0,
    block: Block = None,
    *,
    total: int | None = None,
    total_k: int | None = None,
    layer: int = 0,
    max_tiles: int = MAX_TILES,
    max_bytes: int = MAX_BYTES,
    target: str = "sm_90",
    **bindings: object,
) -> Layout | tuple[Layout, ...]:
    """The layout of sequences packed behind each other, as variable-length kernels take them.

    p: one pattern (or pc.heads([...])) for all sequences, or a list with one for each; for a Stack
    a tuple of layouts, one a layer.  Each is lowered at the sequence's own length, and its
    positions count from the sequence's own start: sink(4) is the first four tokens of each.
    cu_seqlens: integers [B + 1], ascending from 0: sequence b is rows cu_seqlens[b] up to
    cu_seqlens[b + 1].  cu_seqlens_k: the same of the keys, where there are other numbers of them.
    q_offset: the position of each sequence's first query, one number or [B]; by default its last
    query stands where its last key does (bottom right, as in FlashAttention).
    k_offset: the position of each sequence's first key.
    total, total_k: rows of q, and of k and v, where padding follows the last sequence; it reads
    nothing and nobody reads it.
    block, layer, max_tiles, max_bytes, target, bindings: as in `compile`.

    Lists, numpy arrays and torch tensors alike.  Where cu_seqlens is a tensor on a GPU, a
    `DynamicLayout` is built there without waiting for it (a band for all sequences; needs total).

    >>> from patterncc import causal, sink, window
    >>> made = compile_packed(causal() & (window(1) | sink(1)), [0, 4, 5, 8], block=16)
    >>> for row in made.dense():
    ...     print("".join(".x"[k] for k in row.astype(int)))
    x.......
    xx......
    xxx.....
    x.xx....
    ....x...
    .....x..
    .....xx.
    .....xxx

    Raises PatternValueError for lengths, offsets and patterns that do not fit each other, SizeError
    for a layout that would be too large.
    """
    sides = sides_of(block)
    check_int("compile_packed", "layer", layer, 0)
    check_int("compile_packed", "max_tiles", max_tiles, 0)
    check_int("compile_packed", "max_bytes", max_bytes, 0)
    listed = _listed(p)
    patterns = p.patterns if isinstance(p, Stack) else Stack(listed or (Full(),)).patterns
    check_bindings("compile_packed", patterns, bindings, compile_packed)
    if any(on_device(x) for x in (cu_seqlens, cu_seqlens_k, q_offset, k_offset)):
        same = cu_seqlens_k is None or cu_seqlens_k is cu_seqlens
        plain = same and q_offset is None and isinstance(k_offset, int) and not k_offset
        return _dynamic(p, cu_seqlens, total, plain, sides, bindings, target)
    packing = Packing.of(cu_seqlens, cu_seqlens_k, q_offset, k_offset, total, total_k)
    job = PackedJob(packing, sides, max_tiles, bindings, max_bytes, target)
    if isinstance(p, Stack):
        if layer:
            raise PatternValueError(
                "compile_packed: a Stack counts its own layers; leave out layer"
            )
        return job.layers(p)
    if isinstance(p, Pattern | Heads):
        return job.layout(p, layer)
    if len(listed) != packing.sequences:
        raise PatternValueError(
            f"compile_packed: {len(listed)} patterns for the {packing.sequences} sequences of "
            "cu_seqlens; list one for each, or give one pattern for all"
        )
    places: dict[Layer, int] = {}
    which = [places.setdefault(each, len(places)) for each in listed]
    return job.mixed(tuple(places) or (Full(),), np.array(which, dtype=np.int64), layer)


def _listed(p: object) -> tuple[Layer, ...]:
    """The layers that were given: one, or one for each sequence."""
    if isinstance(p, Stack):
        return p.layers
    if isinstance(p, Pattern | Heads):
        return (p,)
    if not isinstance(p, list | tuple):
        hint = "; pass its .stack" if hasattr(p, "stack") else ""
        raise PatternError(
            f"compile_packed: a {type(p).__name__} is not a pattern, pc.heads([...]), a list of "
            f"them or a Stack{hint}"
        )
    for b, each in enumerate(p):
        if not isinstance(each, Pattern | Heads):
            raise PatternError(
                f"compile_packed: entry {b} of the list is a {type(each).__name__}; give each "
                "sequence a pattern or pc.heads([...])"
            )
    return tuple(p)


def _dynamic(
    p: object,
    cu_seqlens: object,
    total: int | None,
    plain: bool,
    sides: tuple[int, int] | None,
    bindings: dict[str, Any],
    target: str,
) -> Layout:
    """Built on the device that holds cu_seqlens, without looking at it."""
    remedy = "give CPU tensors, arrays or lists"
    if total is None:
        raise PatternValueError(
            "compile_packed: cu_seqlens is on a device, and reading it would wait for that; give "
            "total= (q.shape[0]), or give CPU tensors, arrays or lists"
        )
    if not plain:
        raise PatternValueError(
            f"compile_packed: cu_seqlens_k or offsets with lengths on a device; {remedy}"
        )
    if not isinstance(p, Pattern | Heads) or not all(map(positional, patterns_of(p))):
        raise PatternValueError(
            "compile_packed: lengths on a device take one band for all sequences (full, causal, a "
            f"window); for other patterns {remedy}"
        )
    total = check_int("compile_packed", "total", total, 0, MAX_LENGTH)
    room = device_room()
    ids = room.documents_of(cu_seqlens, total)
    made: Layout = room.compile_dynamic(
        p, Frame.of(total), sides, ids, bindings=bindings, target=target
    )
    return made


@dataclass(frozen=True)
class PackedJob:
    """What all layers of one call share."""

    packing: Packing
    block: tuple[int, int] | None
    max_tiles: int
    bindings: dict[str, Any]
    max_bytes: int
    target: str

    def layers(self, stack: Stack) -> tuple[Layout, ...]:
        """Every layer; equal ones that draw nothing from their index are one object."""
        return each_once(stack, self.bindings, self.layout)

    def layout(self, each: Layer, layer: int) -> Layout:
        """One layer, the same for all sequences."""
        return self.mixed((each,), np.zeros(self.packing.sequences, dtype=np.int64), layer)

    def mixed(self, given: tuple[Layer, ...], which: I64, layer: int) -> Layout:
        """One layer in which sequence b has ``given[which[b]]``."""
        frame = self.packing.frame
        drawn, columns, head_pattern = _heads(given, which, self.bindings)
        lowering = Lowering(self.packing, layer, self.bindings)
        block = self.block or self._block(drawn, layer)
        names = list(dict.fromkeys(map(str, given)))
        text = shortened(" or ".join(names) + f", packed: {self.packing.sequences} sequences")
        found = [lowering.zones(drawn, column) for column in columns]
        budget = Budget(frame.n, frame.n_k, block, self.max_bytes, self.max_tiles)
        if frame.n and frame.n_k and all(single(owner) for _, owner in found):
            pieces = [pieces_of(t, frame, block, u) for u, (t, _) in enumerate(found)]
            parts = staircase.assemble(pieces, frame, block, budget)
            return Layout(
                n=frame.n,
                n_k=frame.n_k,
                q_offset=0,
                k_offset=0,
                block=block,
                head_pattern=head_pattern,
                pattern=text,
                varies=True,
                positions=self.packing.positions,
                **vars(parts),
            )
        sets = [ZoneSet(frame, table) for table, _ in found]
        made = build_varying(sets, head_pattern.tolist(), block, budget, text)
        return replace(made, positions=self.packing.positions)

    def _block(self, drawn: Sequence[Drawn], layer: int) -> tuple[int, int]:
        """The tile that the cost model chooses for the patterns alone, at about the packed length:
        lengths of sequences do not change it."""
        most = max(self.packing.total, self.packing.total_k)
        n = 1 << (min(max(most, SHORTEST), LONGEST) - 1).bit_length()
        few = tuple(drawn[:4])
        if not self.bindings:
            return _usual_block(few, n, layer, self.target)
        return _block_at(few, n, layer, self.target, self.bindings)


def _block_at(
    drawn: Sequence[Drawn], n: int, layer: int, target: str, bindings: dict[str, Any]
) -> tuple[int, int]:
    """The tile for patterns of n tokens."""
    try:
        bases = [lower(d.pattern, n, layer=layer, head=d.head, **bindings) for d in drawn]
    except PatternError:  # labels and graphs are of one length
        return CANDIDATES[0]
    return block_of(bases, target)


@lru_cache(maxsize=256)
def _usual_block(drawn: tuple[Drawn, ...], n: int, layer: int, target: str) -> tuple[int, int]:
    """The same without data: chosen once, since packed lengths come with every batch."""
    return _block_at(drawn, n, layer, target, {})


def _heads(
    given: Sequence[Layer], which: I64, bindings: dict[str, Any]
) -> tuple[list[Drawn], list[I64], NDArray[np.int32]]:
    """What there is to lower; for each distinct head of the layer, which of it each sequence has;
    and which of these heads each head is."""
    counts = {len(x.patterns) for x in given if isinstance(x, Heads)}
    if len(counts) > 1:
        few, many = min(counts), max(counts)
        raise PatternValueError(
            f"compile_packed: the layer of one sequence has {few} heads, that of another {many}; "
            "list as many for each, or one pattern for all heads"
        )
    places: dict[Drawn, int] = {}
    rows = []
    for each in given:
        listed = patterns_of(each)
        row = []
        for h, p in enumerate(listed if len(listed) > 1 else listed * max(counts, default=1)):
            drawn = Drawn(attention_only(p), h if keyed(p, bindings)[1] else 0)
            row.append(places.setdefault(drawn, len(places)))
        rows.append(tuple(row))
    heads: dict[tuple[int, ...], int] = {}
    head_pattern = [heads.setdefault(column, len(heads)) for column in zip(*rows)]
    columns = [np.array(column, dtype=np.int64)[which] for column in heads]
    return list(places), columns, np.array(head_pattern, dtype=np.int32)
