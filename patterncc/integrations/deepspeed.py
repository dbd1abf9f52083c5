"""DeepSpeed sparse attention: layouts out, the "sparse_attention" section of a config in.

What is read is what DeepSpeed's own code makes, oddities included; `from_deepspeed` lists them.

Source: deepspeed/ops/sparse_attention/sparsity_config.py and deepspeed/runtime/config.py, 0.16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Literal

import numpy as np

from patterncc.errors import PatternValueError, SizeError, suggest
from patterncc.integrations.deepspeed_config import MAX_BLOCKS, Config, Section
from patterncc.integrations.tiles import allow, head_patterns, in_token_order, tiles_of
from patterncc.layout.layout import Layout
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import (
    causal,
    chunked,
    documents,
    full,
    random_blocks,
    sink,
    summary,
    window,
)
from patterncc.stack import Heads
from patterncc.stack import heads as heads_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 2**30
MAX_HEADS = 2**16
_MOST_WINDOWS = 2**20  # windows of other sizes than the first, one by one

Partial = Literal["refuse", "cover"]


def to_deepspeed(
    layout: Layout,
    *,
    heads: int | None = None,
    partial: Partial = "refuse",
    max_bytes: int = MAX_BYTES,
) -> NDArray[np.int64]:
    """The layout as DeepSpeed's block layout: int64 [heads, blocks, blocks], 1 where a block is.

    heads: how many, for a layout that serves any number; 1 by default.
    partial: the format has whole blocks only.  "refuse" a layout with masks inside tiles, or
    "cover" them: 1 for every touched tile.  A cover lets queries read more than they may (the
    future, on the diagonal of a causal mask): give SparseSelfAttention the rest as its attn_mask,
    `pc.to_sdpa(layout)[0, 0]`.
    max_bytes: what the array may take, 8 bytes a block.

    >>> from patterncc import compile, window
    >>> to_deepspeed(compile(window(1, 0, block=16), 64, block=16))[0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]

    Raises LayoutError for a layout in another order, PatternValueError for tiles that are not
    square, a length that is no multiple of them, sequences that differ or tiles that are not full,
    SizeError for an array of more than max_bytes.
    """
    layout = in_token_order("to_deepspeed", layout)
    count = _check_layout(layout, heads)
    if partial not in ("refuse", "cover"):
        raise PatternValueError(
            f"to_deepspeed: partial={partial!r}; {suggest(str(partial), ['refuse', 'cover'])}"
        )
    if partial == "refuse" and layout.partial_tiles:
        raise PatternValueError(
            f"to_deepspeed: {layout.partial_tiles} tiles have masks inside, and DeepSpeed's blocks "
            'are whole; use a pattern of whole blocks, or partial="cover" and the mask itself as '
            "attn_mask"
        )
    size = 8 * count * layout.lines * layout.columns
    what = f"{count} x {layout.lines} x {layout.columns} blocks"
    allow("to_deepspeed", what, size, max_bytes, "compile with a larger block")
    each = np.zeros((layout.patterns, layout.lines, layout.columns), dtype=np.int64)
    for pattern in range(layout.patterns):
        found = tiles_of(layout, pattern)
        each[pattern, found.row, found.column] = 1
    table = head_patterns(layout)[0]
    out: NDArray[np.int64] = each[np.resize(table, count)]
    return out


def _check_layout(layout: Layout, heads: int | None) -> int:
    """How many heads the array is for; what the format cannot hold is refused."""
    height, width = layout.block
    if height != width or layout.n != layout.n_k or layout.n % height:
        raise PatternValueError(
            f"to_deepspeed: {layout.n} queries, {layout.n_k} keys in tiles of {height} x {width}; "
            "DeepSpeed has as many queries as keys, square blocks and whole ones: compile with "
            "block=16, 32 or 64 at a multiple of it"
        )
    if layout.sequences > 1:
        raise PatternValueError(
            f"to_deepspeed: {layout.sequences} sequences that differ; DeepSpeed has one layout for "
            "all of a batch"
        )
    if heads is None:
        return layout.heads or 1
    count = check_int("to_deepspeed", "heads", heads, 1, MAX_HEADS)
    if layout.heads not in (None, count):
        raise PatternValueError(f"to_deepspeed: heads={count}, the layout is for {layout.heads}")
    return count


def from_deepspeed(
    config: Config, *, heads: int | None = None, max_seq_length: int = 2048, seed: int = 0
) -> Pattern | Heads:
    """The pattern of a DeepSpeed config's "sparse_attention" section: a Pattern, or pc.heads([...])
    where heads differ.

    config: a path, the config as a dict, or its section.  heads: the number of attention heads,
    needed with "different_layout_per_head" where they do differ.
    max_seq_length: the length that DeepSpeed draws up its layout for, its default here too; it
    cuts shorter ones out of that one, and so the pattern is exact at any n up to it.
    seed: of random blocks.

    Modes: dense, fixed (the default), variable, bigbird, bslongformer, and local_sliding_window,
    which is a class of DeepSpeed's that its reader of configs does not know.  Edges are whole
    blocks: "unidirectional" leaves the diagonal blocks whole, and DeepSpeed wants an attn_mask for
    the rest.  ``pc.causal() & pattern`` is what a decoder means.

    As DeepSpeed has it:

    - Sliding windows are symmetric, num_sliding_window_blocks // 2 to each side: 4 is as wide as 5.
    - The last window of "fixed", if cut short, keeps its global blocks: they move to its end.
    - "fixed", unidirectional, with several global blocks in a row: they read one another, even
      those that follow.
    - "variable", unidirectional: random blocks may lie in the future.
    - Its reader of configs passes no "attention" to bigbird and bslongformer, whose classes take
      it.  Here it counts.
    - num_random_blocks is 0 unless given, as in the reader; BigBird's class has 1.
    - Random blocks differ from rank to rank, unless they are broadcast, and cannot be had again.
      Here they are drawn by a hash of seed, layer, head and row, the same everywhere: as many, and
      among the same blocks, but not the very ones.

    >>> from patterncc import lower
    >>> p = from_deepspeed({"mode": "fixed", "block": 16, "attention": "unidirectional"})
    >>> lower(p, 256).dense()[::16, ::16].astype(int)[7].tolist()
    [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]

    Raises PatternError for what cannot be read, PatternValueError for keys, modes and values that
    DeepSpeed does not have, near names suggested.
    """
    section = Section.of(config)
    length = check_int("from_deepspeed", "max_seq_length", max_seq_length, 1)
    if length % section.block or length // section.block > MAX_BLOCKS:
        raise section.wrong(
            f"max_seq_length {length} with block {section.block}",
            f"DeepSpeed has whole blocks only, here at most {MAX_BLOCKS}",
        )
    mode = section.text("mode", "fixed", MODES)
    seed = check_int("from_deepspeed", "seed", seed, 0, 2**31 - 1)
    kinds = MODES[mode](_Plan(section, length // section.block, seed))
    drawn = section.flag("different_layout_per_head") and mode in ("variable", "bigbird")
    if len(kinds) == 1 and not (drawn and section.number("num_random_blocks", 0, 0)):
        return kinds[0]
    if heads is None:
        raise section.wrong("its heads differ", "give heads=, how many there are")
    count = check_int("from_deepspeed", "heads", heads, 1, MAX_HEADS)
    return heads_of([kinds[h % len(kinds)] for h in range(count)])


@dataclass(frozen=True)
class _Plan:
    """A section, the blocks of its longest sequence, the seed of random blocks."""

    section: Section
    blocks: int
    seed: int

    @property
    def block(self) -> int:
        return self.section.block

    def keys(self, first: int, last: int) -> Pattern:
        """Everyone reads the key blocks first .. last - 1."""
        upto = sink(last * self.block)
        return upto if first <= 0 else upto - sink(first * self.block)

    def before(self, blocks: int = 1) -> Pattern:
        """Reading up to one's own group of so many blocks: few zones, however it is intersected."""
        return causal() | chunked(blocks * self.block)

    def sliding(self) -> int:
        """Blocks to each side of a sliding window."""
        return self.section.number("num_sliding_window_blocks", 3, 1) // 2

    def drawn(self, past: bool) -> list[Pattern]:
        """Random blocks, if there are any."""
        many = self.section.number("num_random_blocks", 0, 0)
        return [random_blocks(many, block=self.block, seed=self.seed, past=past)] if many else []


def _dense(_: _Plan) -> list[Pattern]:
    """Everything."""
    return [full()]


def _fixed(p: _Plan) -> list[Pattern]:
    """Local windows side by side, and in each the same few blocks that all read; one pattern for
    each different global pattern."""
    s = p.section
    local, wide = s.number("num_local_blocks", 4, 1), s.number("num_global_blocks", 1, 1)
    kinds = s.number("num_different_global_patterns", 1, 1)
    forward_only = s.forward_only()
    horizontal = s.horizontal(forward_only)
    if local % wide:
        raise s.wrong(
            f"num_local_blocks {local} is no multiple of num_global_blocks {wide}",
            "the global blocks divide a local window",
        )
    if kinds > local // wide or (kinds > 1 and not s.flag("different_layout_per_head")):
        raise s.wrong(
            f"num_different_global_patterns is {kinds}",
            f"at most num_local_blocks / num_global_blocks = {local // wide}, and more than 1 "
            'needs "different_layout_per_head": true',
        )
    near: Pattern = chunked(local * p.block)
    near = near & p.before() if forward_only else near
    made = []
    for kind in range(kinds):
        columns = _columns(p, local, wide, local - (1 + kind) * wide, forward_only)
        made.append(near | columns | columns.T if horizontal else near | columns)
    return made


def _columns(p: _Plan, local: int, wide: int, first: int, forward_only: bool) -> Pattern:
    """The key blocks first .. first + wide - 1 of each local window; of a last window that is too
    short for them, its last `wide` blocks."""
    stripes: Pattern = summary(local * p.block, (local - first) * p.block)
    if local - first > wide:
        stripes = stripes - summary(local * p.block, (local - first - wide) * p.block)
    if forward_only:
        stripes = stripes & p.before(wide)  # groups of global blocks start at multiples of `wide`
    end = p.blocks - p.blocks % local
    if end + first + wide <= p.blocks or end == p.blocks:
        return stripes
    start = p.blocks - wide
    start = start if start >= 0 else max(0, start + p.blocks)  # Python counts it from the end
    last = p.keys(start, p.blocks)
    if forward_only and start:
        last = last - sink(start * p.block).T
    return stripes & sink(end * p.block) | last if end else last


def _variable(p: _Plan) -> list[Pattern]:
    """Random blocks, local windows of given sizes, global blocks."""
    forward_only = p.section.forward_only()
    horizontal = p.section.horizontal(forward_only)
    near = _windows(p)
    parts = [near & p.before() if forward_only else near, *p.drawn(past=False)]
    hubs = p.section.hubs()
    for first, last in hubs if forward_only else _merged(hubs):
        columns = p.keys(first, last)
        parts.append(columns - sink(first * p.block).T if forward_only and first else columns)
        parts += [columns.T] if horizontal else []
    return [_union(parts)]


def _windows(p: _Plan) -> Pattern:
    """Windows side by side, the last size again and again."""
    sizes = p.section.listed("local_window_blocks", [4], 1)
    if not sizes:
        raise p.section.wrong("local_window_blocks is empty", "give at least one window")
    if len(set(sizes)) == 1:
        return chunked(sizes[0] * p.block)
    more = max(0, -(-(p.blocks - sum(sizes)) // sizes[-1]))
    if more > _MOST_WINDOWS:
        raise SizeError(
            f"from_deepspeed: {more:,} local windows up to max_seq_length, more than "
            f"{_MOST_WINDOWS:,}; give a smaller max_seq_length"
        )
    return documents([x * p.block for x in sizes] + [sizes[-1] * p.block] * more)


def _bigbird(p: _Plan) -> list[Pattern]:
    """Random blocks, a window, the first blocks read and read by all."""
    forward_only = p.section.forward_only()
    side, first = p.sliding(), p.section.number("num_global_blocks", 1, 0)
    hubs = [p.keys(0, first), p.keys(0, first).T] if first else []
    parts = [window(side, side, block=p.block), *hubs, *p.drawn(past=forward_only)]
    return [_union(parts) & p.before() if forward_only else _union(parts)]


def _bslongformer(p: _Plan) -> list[Pattern]:
    """A window, and blocks that read and are read by all."""
    side = p.sliding()
    parts: list[Pattern] = [window(side, side, block=p.block)]
    for first, last in _merged(p.section.hubs()):
        parts += [p.keys(first, last), p.keys(first, last).T]
    return [_union(parts) & p.before() if p.section.forward_only() else _union(parts)]


def _local(p: _Plan) -> list[Pattern]:
    """A window; its class is unidirectional unless told otherwise."""
    side = p.sliding()
    right = 0 if p.section.forward_only("unidirectional") else side
    return [window(side, right, block=p.block)]


MODES: dict[str, Callable[[_Plan], list[Pattern]]] = {
    "dense": _dense,
    "fixed": _fixed,
    "variable": _variable,
    "bigbird": _bigbird,
    "bslongformer": _bslongformer,
    "local_sliding_window": _local,
}


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of blocks, sorted, those that touch joined."""
    made: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if made and first <= made[-1][1]:
            made[-1] = made[-1][0], max(last, made[-1][1])
        else:
            made.append((first, last))
    return made


def _union(parts: list[Pattern]) -> Pattern:
    """The union as a balanced tree: a list of thousands must not be a tower of thousands."""
    if len(parts) <= 2:
        return reduce(lambda a, b: a | b, parts)
    half = len(parts) // 2
    return _union(parts[:half]) | _union(parts[half:])
