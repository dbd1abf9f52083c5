"""`compile`: from a pattern, a layer of heads or a stack to layouts; sizes are checked first."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, overload

from patterncc.errors import PatternError, PatternValueError, SizeError, joined
from patterncc.layout.limits import MAX_BYTES, MAX_LENGTH, MAX_TILES, SIDES
from patterncc.pattern import Pattern, check_int
from patterncc.stack import Heads, Layer, Stack

if TYPE_CHECKING:
    from patterncc.layout.batch import BatchJob
    from patterncc.layout.layout import Layout

Block = int | tuple[int, int] | None


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
    order: object = ...,
    max_tiles: int = ...,
    max_bytes: int = ...,
    target: str = ...,
    doc_ids: object = ...,
    key_lengths: object = ...,
    prefix_lengths: object = ...,
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
    order: object = ...,
    max_tiles: int = ...,
    max_bytes: int = ...,
    target: str = ...,
    doc_ids: object = ...,
    key_lengths: object = ...,
    prefix_lengths: object = ...,
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
    order: object = None,
    max_tiles: int = MAX_TILES,
    max_bytes: int = MAX_BYTES,
    target: str = "sm_90",
    doc_ids: object = None,
    key_lengths: object = None,
    prefix_lengths: object = None,
    **bindings: object,
) -> Layout | tuple[Layout, ...]:
    """The layout of a pattern for n queries and n_k keys; for a Stack a tuple, one a layer.

    block: the tile's queries and keys, one number or two, powers of two from 16 to 256; None lets
    a cost model choose.
    q_offset: where query 0 stands; by default 0, in a stack behind its memory.
    layer: keys random edges; a stack counts its own layers.
    order: None lets the cost model reorder tokens where that pays; "token" keeps their order.
    max_tiles, max_bytes: what building may list and take; refused before it is allocated.
    target: the device whose cost model chooses: "cpu", "sm_80", "sm_90" or "sm_100".
    bindings: names in the pattern, as in `lower`.

    What changes from batch to batch (docs/batches.md); lists, numpy arrays or torch tensors:
    doc_ids: integers [positions], or [sequences, positions] for a mask a sequence: only tokens of
    one id read each other; -1 is padding.  Counted from position 0 up to the last query and key.
    key_lengths: a number, or one a sequence: keys from there on are not read.
    prefix_lengths: a number, or one a sequence: the first so many positions of the sequence read
    each other both ways, beside the pattern's edges; documents cut this too.
    Where they are tensors on a GPU, a `DynamicLayout` is built there without waiting for it.

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
    sides = sides_of(block)
    if isinstance(p, Stack):
        start = p.memory if q_offset is None else q_offset
    elif isinstance(p, Pattern | Heads):
        start = q_offset or 0
    else:
        raise PatternError(
            f"compile: a {type(p).__name__} is not a pattern, pc.heads([...]) or a Stack"
            + ("; pass its .stack" if hasattr(p, "stack") else "")
        )
    layer = check_int("compile", "layer", layer, 0)
    # numpy, the lowering and the rest load only now: a length that is refused costs nothing
    from patterncc.layout.layers import Job
    from patterncc.zones.lower import check_bindings
    from patterncc.zones.zoneset import Frame

    stack = p if isinstance(p, Stack) else Stack(p)
    if "cu_seqlens" in bindings:
        raise PatternValueError(
            "compile: cu_seqlens are for pc.compile_packed(pattern, cu_seqlens), which lowers each "
            "sequence at its own length; pc.documents_of makes doc_ids of them"
        )
    check_bindings("compile", stack.patterns, bindings, compile)
    frame = Frame.of(n, n_k, start, k_offset)
    _length("n_k", frame.n_k)
    check_int("compile", "max_tiles", max_tiles, 0)
    check_int("compile", "max_bytes", max_bytes, 0)
    job: Job | BatchJob = Job(frame, sides, order, max_tiles, bindings, max_bytes, target)
    if not (doc_ids is None and key_lengths is None and prefix_lengths is None):
        from patterncc.layout.batch import BatchJob
        from patterncc.layout.sequences import Batch

        if order is not None and not (isinstance(order, str) and order == "token"):
            given = f"order={order!r}" if isinstance(order, str) else "a given order"
            raise PatternValueError(
                f"compile: {given} with doc_ids, key_lengths or prefix_lengths; masks that change "
                'with the batch take no order of the caller\'s: leave out order, or write "token"'
            )
        if any(on_device(x) for x in (doc_ids, key_lengths, prefix_lengths)):
            if isinstance(p, Stack):
                raise PatternValueError(
                    "compile: a Stack with ids on a device; compile its layers one by one, or give "
                    "the ids as a list, an array or a CPU tensor"
                )
            made: Layout = device_room().compile_dynamic(
                p, frame, sides, doc_ids, key_lengths, prefix_lengths, bindings, target
            )
            return made
        batch = Batch.of(frame, doc_ids, key_lengths, prefix_lengths)
        job = BatchJob(frame, sides, batch, max_tiles, bindings, max_bytes, target, order)
    if isinstance(p, Stack):
        if layer:
            raise PatternValueError("compile: a Stack counts its own layers; leave out layer")
        return job.layers(p)
    return job.layout(p, layer)


def device_room() -> Any:
    """`kernels.dynamic`: the kernels' room comes after this one and is loaded by its name, with
    torch, where lengths or ids are on a device."""
    return import_module("patterncc.kernels.dynamic")


def on_device(given: object) -> bool:
    """A tensor whose values are not in the host's memory (arrays say "cpu" in a word)."""
    device = getattr(given, "device", None)
    return getattr(device, "type", "cpu") != "cpu"


def _length(name: str, value: int) -> int:
    value = check_int("compile", name, value, 0)
    if value > MAX_LENGTH:
        raise SizeError(
            f"compile: {name} = {value} is past {MAX_LENGTH}, the longest layout; "
            "pc.analyze answers up to 2**40 tokens, and slices of the queries compile one by one"
        )
    return value


def sides_of(block: Block) -> tuple[int, int] | None:
    """The two sides of a tile, checked."""
    if block is None:
        return None
    sides = tuple(block) if isinstance(block, tuple | list) else (block, block)
    if len(sides) != 2:
        raise PatternValueError(
            f"compile: block is one number or two (queries, keys), not {block!r}"
        )
    for side in sides:
        if check_int("compile", "block", side, SIDES[0], SIDES[-1]) not in SIDES:
            raise PatternValueError(f"compile: block {side} is not one of {joined(SIDES)}")
    return int(sides[0]), int(sides[1])
