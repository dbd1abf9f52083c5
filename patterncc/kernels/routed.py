"""Layouts of what a router chose: clusters of tokens or key blocks, each head's own.

They are made anew at each step, on the device that holds the choice, and united exactly with the
edges of a static layout: a pair that both hold counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import BackendError, PatternValueError, SizeError, TensorError
from patterncc.kernels import runtime, upload
from patterncc.kernels.reference import LIMIT
from patterncc.kernels.routed_block_tables import BlockTables, block_tables
from patterncc.kernels.routed_blocks import Choice, check_chosen, layout_of_blocks, sides_for
from patterncc.kernels.routed_device import SlotTables, slot_tables
from patterncc.kernels.routed_slots import Slots, check_members, check_once, cuts_of, slots_of
from patterncc.kernels.routed_static import intervals_of
from patterncc.kernels.routed_tiles import grid_of, layout_of
from patterncc.kernels.spec import Spec
from patterncc.kernels.tables import kernel_tables
from patterncc.kernels.terms import Term, Terms, parsed
from patterncc.layout.layout import Layout
from patterncc.pattern import check_int

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


F = TypeVar("F", bound=Callable[..., object])


def _apart(make: F) -> F:
    """`make` breaks a graph that torch traces: what is chosen is known only while it runs."""
    disabled = torch.compiler.disable(make)  # type: ignore[no-untyped-call]
    return cast(F, disabled)


@dataclass(frozen=True, eq=False)
class RoutedLayout:
    """A mask for `attention` of its own for each head of each sequence, as a router chose it.

    tiles: of clusters those of slots, of all heads one behind the other, as a layout on the CPU and
    as a kernel's tables elsewhere; of blocks those of tokens, a pattern for each head of each
    sequence, the static edges among them.
    slots: of clusters what each slot holds and reads.
    static: what clusters are united with; its edges are not in `tiles`.
    """

    n: int
    heads: int
    sequences: int
    block: tuple[int, int]
    device: torch.device
    pattern: str
    tiles: Layout | SlotTables | BlockTables
    slots: Slots | None = None
    static: Layout | None = None
    q_offset: int = 0
    k_offset: int = 0

    @property
    def n_k(self) -> int:
        """Keys are the same tokens as queries."""
        return self.n

    @property
    def nbytes(self) -> int:
        """Bytes of what this step made."""
        return self.tiles.nbytes + (0 if self.slots is None else self.slots.nbytes)

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """How many pairs each head of each sequence reads, B * H numbers; static ones count.

        Waits for the device that holds it.
        """
        if self.slots is None:
            return self._of_tokens().edges
        own = self.slots.counts.view(self.sequences * self.heads, -1).sum(1).cpu().numpy()
        if self.static is not None:
            which = pattern_of_heads(self.static, self.sequences, self.heads)
            own = own + np.array(self.static.edges)[which]
        return tuple(own.tolist())

    def dense(self) -> Tensor:
        """The mask, bool [B, H, n, n], on its device.

        Raises SizeError for more than `reference.LIMIT` entries.
        """
        sides = (self.sequences, self.heads, self.n, self.n)
        if math.prod(sides) > LIMIT:
            raise SizeError(f"dense() of {' x '.join(map(str, sides))} passes {LIMIT} entries")
        if self.slots is None:
            return torch.from_numpy(self._of_tokens().dense()).view(sides).to(self.device)
        mask = np.zeros(sides, dtype=bool)
        if self.static is not None:
            mask |= self.static.dense()
        rows, order = mask.reshape(-1, self.n), self.slots.order.cpu().numpy()
        for slot, read in self._pairs():
            keys = order[read] % self.n
            assert not rows[order[slot], keys].any()  # else a pair would count twice
            rows[order[slot], keys] = True
        return torch.from_numpy(mask).to(self.device)

    def _of_tokens(self) -> Layout:
        """The tiles of blocks on the CPU."""
        assert isinstance(self.tiles, Layout | BlockTables)
        return self.tiles if isinstance(self.tiles, Layout) else self.tiles.on_host()

    def _pairs(self) -> Iterator[tuple[int, slice | NDArray[np.int64]]]:
        """Each slot and the slots that it reads: by the tiles, on a GPU by what they show."""
        assert self.slots is not None
        if isinstance(self.tiles, Layout):
            found = intervals_of(self.tiles)
            for low, high in zip(found.low[:, 0], found.high[:, 0], strict=True):
                for slot in np.flatnonzero(low < high).tolist():
                    yield slot, slice(low[slot], high[slot])
            return
        start, end = (x.tolist() for x in (self.slots.start, self.slots.end))
        cuts = [(low.tolist(), high.tolist()) for low, high in self.slots.cuts]
        for slot, (first, past) in enumerate(zip(start, end, strict=True)):
            read = np.arange(first, past)
            for low, high in cuts:
                read = read[(read < low[slot]) | (read >= high[slot])]
            yield slot, read

    def __repr__(self) -> str:
        return (
            f"<RoutedLayout {self.pattern[:100]}: {self.sequences} x {self.heads} heads, {self.n} "
            f"tokens, block {self.block[0]} x {self.block[1]}, on {self.device}>"
        )


@_apart
def routed_clusters(
    members: Tensor,
    *,
    n: int,
    static: Layout | None = None,
    causal: bool = False,
    block: tuple[int, int] | None = None,
) -> RoutedLayout:
    """Tokens of one cluster read each other, of later ones only earlier if causal; or static edges.

    members: int64 [B, H, clusters, width], the tokens of each cluster, ascending, then -1 in empty
    slots; a token stands in at most one cluster of its head.  On a GPU their values are not looked
    at.  static: a layout of n tokens, in token order.  block: sides of a tile; powers of two.

    >>> members = torch.tensor([[[[0, 3, 4], [1, 5, -1]]]])
    >>> routed_clusters(members, n=6, causal=True).dense()[0, 0].int()
    tensor([[1, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [1, 0, 0, 1, 0, 0],
            [1, 0, 0, 1, 1, 0],
            [0, 1, 0, 0, 0, 1]], dtype=torch.int32)

    Raises PatternValueError for members and a static layout that do not fit, SizeError.
    """
    n = check_int("routed_clusters", "n", n, 1)
    members = check_members(members, n)
    sequences, heads, clusters, width = members.shape
    _check_static("routed_clusters", static, n, sequences, heads)
    slots = _slots(members, n, causal, static, by_key=False)
    check_once(slots, members)
    text = f"routed({clusters} clusters of {width})" + _beside(static, causal)
    sizes = sequences * heads * clusters, width, block or _sides(width), causal
    tiles: Layout | SlotTables
    if members.device.type == "cpu":
        tiles = replace(layout_of(slots, grid_of(*sizes)), pattern=text)
    else:
        tiles = slot_tables(slots, _slots(members, n, causal, static, by_key=True), *sizes)
    where = sizes[2], members.device
    return RoutedLayout(n, heads, sequences, *where, text, tiles, slots, static)


def _slots(members: Tensor, n: int, causal: bool, static: Layout | None, *, by_key: bool) -> Slots:
    """What each slot reads, or who reads it, without what the static layout holds."""
    cuts = None
    if static is not None:
        cuts = cuts_of(static, (len(members), members.shape[1]), members.device, by_key=by_key)
    return slots_of(members, n, causal, cuts, by_key=by_key)


@_apart
def routed_blocks(
    chosen: Tensor,
    *,
    n: int,
    block: int,
    grain: int | None = None,
    static: Layout | None = None,
    causal: bool = False,
) -> RoutedLayout:
    """Queries read the keys of the blocks that they chose, causally if so asked; or static edges.

    chosen: int64 [B, H, groups, count], blocks of `block` keys for each `grain` queries in turn (by
    default as many), -1 for none; a block named twice counts once.  grain 1: each query by itself.
    Tiles are those of the static layout where there is one.

    >>> chosen = torch.tensor([[[[0, -1], [0, 1], [2, 0]]]])
    >>> routed_blocks(chosen, n=6, block=2, causal=True).dense()[0, 0].int()
    tensor([[1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],
            [1, 1, 0, 0, 1, 1]], dtype=torch.int32)

    Raises PatternValueError for blocks and a static layout that do not fit, SizeError.
    """
    n = check_int("routed_blocks", "n", n, 1)
    block = check_int("routed_blocks", "block", block, 1)
    grain = block if grain is None else check_int("routed_blocks", "grain", grain, 1)
    chosen = check_chosen(chosen, n, block, grain)
    sequences, heads, groups, count = chosen.shape
    _check_static("routed_blocks", static, n, sequences, heads)
    which = pattern_of_heads(static, sequences, heads)
    tile = sides_for(block, grain) if static is None else static.block
    text = f"routed({count} blocks of {block} for {grain} queries)" + _beside(static, causal)
    rows = chosen.reshape(sequences * heads, groups, count)
    known = rows.numpy() if chosen.device.type == "cpu" else np.zeros((0, 0, 0), dtype=np.int64)
    choice = Choice(known, n, block, grain, causal, tile, static, which)
    tiles: Layout | BlockTables
    if chosen.device.type == "cpu":
        tiles = replace(layout_of_blocks(choice, sequences), pattern=text)
    else:
        tiles = block_tables(rows, choice, sequences)
    return RoutedLayout(n, heads, sequences, tile, chosen.device, text, tiles)


def _sides(width: int) -> tuple[int, int]:
    """Tiles for clusters of one width: not much wider than these."""
    side = min(128, max(32, 1 << width.bit_length() - 1))
    return max(64, side), side


def _beside(static: Layout | None, causal: bool) -> str:
    text = " & causal()" if causal else ""
    return text if static is None else f"{text} | {static.pattern}"


def pattern_of_heads(static: Layout | None, sequences: int, heads: int) -> NDArray[np.int32]:
    """Which pattern of a static layout each head of each sequence has, [B * H]."""
    listed = np.zeros((1, 1), dtype=np.int32)
    if static is not None:
        listed = static.head_pattern.reshape(static.sequences, -1)
    return np.broadcast_to(listed, (sequences, heads)).reshape(-1)


def _check_static(name: str, static: Layout | None, n: int, sequences: int, heads: int) -> None:
    """Refuse a static layout that does not fit.

    Raises PatternValueError.
    """
    if static is None:
        return
    if not isinstance(static, Layout):
        raise PatternValueError(
            f"{name}: static is a {type(static).__name__}; give what pc.compile(pattern, n={n}) "
            "returns, one layer, or None"
        )
    if (static.n, static.n_k) != (n, n) or static.q_offset != static.k_offset:
        raise PatternValueError(
            f"{name}: the static layout is for {static.n} queries at {static.q_offset} and "
            f"{static.n_k} keys at {static.k_offset}, the router's tokens are {n}; compile it "
            f"with n={n}"
        )
    if static.order is not None or static.rest:
        raise PatternValueError(
            f"{name}: the static layout stands in an order of its own; compile it with "
            'order="token"'
        )
    if static.heads not in (None, heads) or static.sequences not in (1, sequences):
        raise PatternValueError(
            f"{name}: the static layout is for {static.heads} heads and {static.sequences} "
            f"sequences, the router chose for {heads} heads and {sequences} sequences"
        )


_prepared: WeakKeyDictionary[RoutedLayout, dict[str, upload.Prepared]] = WeakKeyDictionary()


@_apart
def prepared(
    layout: RoutedLayout, device: torch.device, requested: str, *, step: bool = False
) -> upload.Prepared:
    """What the op takes of it, kept as long as it lives.

    Raises BackendError for another device, TensorError for a decode step.
    """
    if step:
        raise TensorError(
            "attention: a routed layout is for whole sequences, a decode step (position=) has "
            "none; run the whole sequence, or route with the keys so far"
        )
    if device != layout.device:
        raise BackendError(
            f"attention: tensors on {device}, a layout routed on {layout.device}; route where "
            "they are"
        )
    kept = _prepared.setdefault(layout, {})
    if requested not in kept:
        kept[requested] = _made(layout, device, requested)
    return kept[requested]


def _made(layout: RoutedLayout, device: torch.device, requested: str) -> upload.Prepared:
    if requested == "reference":
        return _dense(layout)
    slots, static = layout.slots, layout.static
    if isinstance(layout.tiles, Layout) and slots is None:
        return upload.prepared(layout.tiles, device, requested)
    spec, tables = _tables(layout.tiles, device, requested)
    if isinstance(layout.tiles, BlockTables):
        return [*tables, layout.tiles.unread], spec.text(), spec.backend
    assert slots is not None
    own = Term(spec, len(tables), tokens=layout.n)
    unread = slots.place.view(layout.sequences, layout.heads, layout.n) == spec.n - 1
    tensors = [*tables, slots.order, slots.place]
    if static is None:
        return [*tensors, unread], Terms((own,)).text(), spec.backend
    (*others, unread_there), text, _ = upload.prepared(static, device, requested)
    made = parsed(text)
    terms = (Term(made, len(others)),) if isinstance(made, Spec) else made.terms
    unread = unread & unread_there if unread_there.numel() else unread_there
    return [*others, *tensors, unread], Terms((*terms, own)).text(), spec.backend


def _tables(
    tiles: Layout | SlotTables | BlockTables, device: torch.device, requested: str
) -> tuple[Spec, list[Tensor]]:
    """What the backend that is picked takes of tiles.

    Raises BackendError where they are on a device and the backend is another.
    """
    backend = runtime.pick_backend(requested, device).backend
    if not isinstance(tiles, Layout):
        if backend != "triton":
            raise BackendError(
                f'attention: backend="{requested}", a layout routed on {device}, which runs on the '
                "Triton kernels; route on the CPU for others"
            )
        return tiles.spec, list(tiles.tables)
    spec = Spec.of(tiles, backend)
    if backend == "triton":
        return spec, kernel_tables(tiles, spec, device)
    arrays = [torch.from_numpy(x) for x in tiles.arrays.values()]
    return spec, [*arrays, torch.tensor(list(bytes.fromhex(tiles.hash)))]


def _dense(layout: RoutedLayout) -> upload.Prepared:
    mask = layout.dense()
    spec = Spec(
        n=layout.n,
        n_k=layout.n,
        q_offset=0,
        k_offset=0,
        block=layout.block,
        patterns=layout.sequences * layout.heads,
        full=True,
        zones=1,
        bits=True,
        layout_hash="",
        backend="reference",
        share=1,
        sequences=layout.sequences,
    )
    return [mask, ~mask.any(2)], spec.text(), "reference"
