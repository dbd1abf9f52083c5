"""The leaves of the pattern language: windows, global tokens, documents, random blocks, graphs.

A primitive's dataclass fields are its arguments, in files and in Python alike; the lower-case names
at the end of this module are what people write.  Every class states its edges: "i reads j".
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from patterncc.errors import PatternValueError
from patterncc.pattern import Integers, Primitive, check_binding, check_int, name_of

_SMALL = 2**31 - 1  # what is counted in degrees, steps and seeds


@dataclass(frozen=True, repr=False)
class Full(Primitive):
    """Every pair."""


@dataclass(frozen=True, repr=False)
class Causal(Primitive):
    """j <= i."""


@dataclass(frozen=True, repr=False)
class Window(Primitive):
    """i - left <= j <= i + right; with block > 1 the same on i // block and j // block.

    Sizes count keys on each side, the token itself not counted; -1 is unlimited.  Hugging Face's
    ``sliding_window = W`` (the token itself counted) is ``window(W - 1)``.
    """

    left: int
    right: int = 0
    block: int = 1

    def __post_init__(self) -> None:
        _ints(self, left=-1, right=-1, block=1)


@dataclass(frozen=True, repr=False)
class Dilated(Primitive):
    """A window whose keys lie a multiple of `step` away: (j - i) % step == 0."""

    left: int
    right: int = 0
    step: int = 1

    def __post_init__(self) -> None:
        _ints(self, left=0, right=0, step=1)


@dataclass(frozen=True, repr=False)
class Strided(Primitive):
    """(i - j) % stride == 0: one residue class a token."""

    stride: int

    def __post_init__(self) -> None:
        _ints(self, stride=1)


@dataclass(frozen=True, repr=False)
class Summary(Primitive):
    """j % stride >= stride - width: the last `width` tokens of every segment are read by all.

    The "fixed" pattern of the Sparse Transformer.
    """

    stride: int
    width: int = 1

    def __post_init__(self) -> None:
        _ints(self, stride=1, width=1)
        if self.width > self.stride:
            raise PatternValueError(
                f"summary: width {self.width} is larger than stride {self.stride}; use full()"
            )


@dataclass(frozen=True, repr=False)
class Chunked(Primitive):
    """i // size == j // size: attention inside chunks."""

    size: int

    def __post_init__(self) -> None:
        _ints(self, size=1)


@dataclass(frozen=True, repr=False)
class GlobalTokens(Primitive):
    """i in tokens or j in tokens: tokens that read everything and are read by everything."""

    tokens: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _tokens("global_tokens", self.tokens))


@dataclass(frozen=True, repr=False)
class Sink(Primitive):
    """j < count: the first tokens, read by everyone (StreamingLLM)."""

    count: int

    def __post_init__(self) -> None:
        _ints(self, count=0)


@dataclass(frozen=True, repr=False)
class Prefix(Primitive):
    """i < count and j < count; `causal() | prefix(count)` is a prefix language model."""

    count: int

    def __post_init__(self) -> None:
        _ints(self, count=0)


@dataclass(frozen=True, repr=False)
class RandomBlocks(Primitive):
    """Each block row of `block` queries reads `per_row` distinct key blocks, drawn by a keyed hash.

    With ``past=True`` a row draws from the key blocks up to its own, whatever the length; a row
    with fewer candidates than `per_row` reads them all.
    """

    per_row: int
    block: int = 64
    seed: int = 0
    past: bool = False

    def __post_init__(self) -> None:
        _ints(self, per_row=0, block=1, seed=0)
        _flag(self, "past")


@dataclass(frozen=True, repr=False)
class RandomEdges(Primitive):
    """Each query reads `per_row` distinct keys, drawn by a hash; `past` as in random_blocks."""

    per_row: int
    seed: int = 0
    past: bool = False

    def __post_init__(self) -> None:
        _ints(self, per_row=0, seed=0)
        _flag(self, "past")


@dataclass(frozen=True, repr=False)
class Documents(Primitive):
    """i and j lie in the same document.

    `lengths` in order from position 0, or a name bound at lowering; positions past the last
    document belong to none.
    """

    lengths: Sequence[int] | str

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", _listed("documents", "lengths", self.lengths, 0))


@dataclass(frozen=True, repr=False)
class Clusters(Primitive):
    """labels[i] == labels[j], and the label is not -1; with `keys`, labels[i] == keys[j].

    A label for every position, or a name bound at lowering.
    """

    labels: Sequence[int] | str
    keys: Sequence[int] | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _listed("clusters", "labels", self.labels, -1))
        if self.keys is not None:
            object.__setattr__(self, "keys", _listed("clusters", "keys", self.keys, -1))


@dataclass(frozen=True, repr=False)
class Spans(Primitive):
    """first[i] <= j < last[i]: each query reads one run of keys, or none where last <= first.

    Each is a bound for every query position, one integer for all, or a name bound at lowering;
    without `last` a query reads all keys from `first` on.  In `.T` each key is read by one run of
    queries.
    """

    first: Sequence[int] | str | int
    last: Sequence[int] | str | int | None = None

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            value = getattr(self, name)
            if isinstance(value, int):
                object.__setattr__(self, name, check_int("spans", name, value, 0))
            elif value is not None:
                object.__setattr__(self, name, _many("spans", name, value))
        first, last = self.first, self.last
        if isinstance(first, Integers) and isinstance(last, Integers) and len(first) != len(last):
            raise PatternValueError(
                f"spans: {len(first)} first keys and {len(last)} last ones; "
                "give both for every query"
            )


@dataclass(frozen=True, repr=False)
class Boxes(Primitive):
    """Any of the boxes i0 <= i < i1, j0 <= j < j1, each cut by a band d0 <= j - i < d1.

    `table` lists six integers a box: i0, i1, j0, j1, d0, d1.  With `n` and `n_k` the list is said
    to hold all edges of n queries and n_k keys, and lowering past them is refused.
    """

    table: Sequence[int]
    n: int | None = None
    n_k: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _many("boxes", "table", self.table))
        if len(self.table) % 6:
            raise PatternValueError(
                f"boxes: table has {len(self.table)} integers; give six a box: "
                "i0, i1, j0, j1, d0, d1"
            )
        for name in ("n", "n_k"):
            if getattr(self, name) is not None:
                value = check_int("boxes", name, getattr(self, name), 0)
                object.__setattr__(self, name, value)


@dataclass(frozen=True, repr=False)
class Routing(Primitive):
    """Same cluster, labels found while the model runs; lowering binds them: ``routing=labels``."""

    clusters: int

    def __post_init__(self) -> None:
        _ints(self, clusters=1)


@dataclass(frozen=True, repr=False)
class Topk(Primitive):
    """The keys, or key blocks of `block`, that a query chooses by content: at most `count`.

    They are known once the model runs; lowering binds them: ``topk=indices``, an int array
    [queries, at most count], -1 for none.  DeepSeek's sparse attention is
    ``causal() & topk(2048)``.
    """

    count: int
    block: int = 1

    def __post_init__(self) -> None:
        _ints(self, count=0, block=1)


@dataclass(frozen=True, repr=False)
class Butterfly(Primitive):
    """The key block is the query's own or differs from it in one bit of its index.

    Given `level`, in that bit only.
    """

    block: int = 64
    level: int | None = None

    def __post_init__(self) -> None:
        _ints(self, block=1)
        if self.level is not None:
            object.__setattr__(self, "level", check_int("butterfly", "level", self.level, 0, 40))


@dataclass(frozen=True, repr=False)
class LogSparse(Primitive):
    """i - j in {0, 1, 2, 4, 8, ...}."""


@dataclass(frozen=True, repr=False)
class LongNet(Primitive):
    """Dilated segments, shifted by head.

    For each (segment, rate): i and j in one segment, both in its residue class ``head % rate``.
    """

    segments: Sequence[int]
    rates: Sequence[int]

    def __post_init__(self) -> None:
        for name in ("segments", "rates"):
            object.__setattr__(self, name, _listed("longnet", name, getattr(self, name), 1))
        if len(self.segments) != len(self.rates) or not self.segments:
            raise PatternValueError(
                f"longnet: {len(self.segments)} segments and {len(self.rates)} rates; "
                "give one rate for each segment"
            )


@dataclass(frozen=True, repr=False)
class Expander(Primitive):
    """A random regular graph of `degree` on blocks, both ways, and each block itself."""

    degree: int
    block: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        _ints(self, degree=1, block=1, seed=0)


@dataclass(frozen=True, repr=False)
class Grid(Primitive):
    """N-D neighbourhood of a grid flattened in row-major order: `window[a]` steps on every axis a.

    ``edges="cut"`` leaves out neighbours past a border; ``"shift"`` moves the window inside, as
    neighborhood attention (NATTEN) does.
    """

    shape: Sequence[int]
    window: Sequence[int] | int
    edges: str = "cut"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _listed("grid", "shape", self.shape, 1))
        if isinstance(self.window, int):
            object.__setattr__(self, "window", (self.window,) * len(self.shape))
        window = _listed("grid", "window", self.window, 0)
        object.__setattr__(self, "window", window)
        if len(self.shape) != len(window) or not self.shape:
            raise PatternValueError(
                f"grid: shape has {len(self.shape)} axes and window {len(window)}; "
                "give one window size for each axis"
            )
        if self.edges not in ("cut", "shift"):
            raise PatternValueError(f'grid: edges is "cut" or "shift", not {self.edges!r}')


@dataclass(frozen=True, repr=False)
class Axial(Primitive):
    """Same line of a grid along any axis: coordinates differ in at most one axis."""

    shape: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _listed("axial", "shape", self.shape, 1))
        if not self.shape:
            raise PatternValueError("axial: shape is empty; give at least one axis")


@dataclass(frozen=True, repr=False)
class Tree(Primitive):
    """Ancestors and the node itself: parents[i] < i, and -1 for a root (speculative decoding)."""

    parents: Sequence[int]

    def __post_init__(self) -> None:
        parents = _listed("tree", "parents", self.parents, -1)
        object.__setattr__(self, "parents", parents)
        for i, parent in enumerate(parents):
            assert isinstance(parent, int)
            if parent >= i:
                raise PatternValueError(
                    f"tree: parents[{i}] is {parent}; a parent stands before its child "
                    "(-1 is a root)"
                )


@dataclass(frozen=True, repr=False)
class Edges(Primitive):
    """An explicit graph.

    A file (.npz, GraphML, edge list), or in Python a networkx graph, a scipy.sparse matrix, a bool
    [n, n] array or an int [E, 2] array of (query, key) pairs.  Edges given more than once are kept
    once, with a PatternWarning; self edges are edges as any other.

    weights: what weights mean.  "nonzero": an edge wherever its weight is not 0; "ignore": an edge
    wherever one is listed.  Not given, entries of sparse matrices are edges where they are not 0,
    and other weights (a third column, a "weight" other than 1 in a graph) are refused.
    """

    source: Any = field(hash=False)
    weights: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, os.PathLike):
            object.__setattr__(self, "source", os.fspath(self.source))
        if self.weights not in (None, "nonzero", "ignore"):
            raise PatternValueError(
                f"edges: weights is 'nonzero' (an edge where the weight is not 0) or 'ignore' (an "
                f"edge wherever one is listed), not {self.weights!r}"
            )

    def __eq__(self, other: object) -> bool:
        """Equal file names, or the very same object: graphs are not compared edge by edge."""
        if not isinstance(other, Edges):
            return NotImplemented
        named = isinstance(self.source, str) and isinstance(other.source, str)
        same = self.source is other.source or (named and self.source == other.source)
        return same and self.weights == other.weights

    def __str__(self) -> str:
        name = isinstance(self.source, str)
        source = f'"{self.source}"' if name else f"<{type(self.source).__name__}>"
        return f'edges({source}, weights="{self.weights}")' if self.weights else f"edges({source})"

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Recurrent(Primitive):
    """A recurrent layer (Mamba, RG-LRU): every earlier token can reach; for analysis only."""


@dataclass(frozen=True, repr=False)
class Convolution(Primitive):
    """A causal convolution of `width` taps, the token itself counted; for analysis only."""

    width: int

    def __post_init__(self) -> None:
        _ints(self, width=1)


full = Full
causal = Causal
window = Window
dilated = Dilated
strided = Strided
summary = Summary
chunked = Chunked
global_tokens = GlobalTokens
sink = Sink
prefix = Prefix
random_blocks = RandomBlocks
random_edges = RandomEdges
documents = Documents
clusters = Clusters
spans = Spans
boxes = Boxes
routing = Routing
topk = Topk
butterfly = Butterfly
logsparse = LogSparse
longnet = LongNet
expander = Expander
grid = Grid
axial = Axial
tree = Tree
edges = Edges
recurrent = Recurrent
convolution = Convolution

PRIMITIVES: dict[str, type[Primitive]] = {
    name_of(kind): kind
    for kind in (
        *(Full, Causal, Window, Dilated, Strided, Summary, Chunked, GlobalTokens, Sink, Prefix),
        *(RandomBlocks, RandomEdges, Documents, Clusters, Routing, Topk, Butterfly, LogSparse),
        *(LongNet, Expander, Grid, Axial, Tree, Edges, Spans, Boxes, Recurrent, Convolution),
    )
}


def _ints(node: Primitive, **least: int) -> None:
    """Check the named fields of a frozen node as integers; -1 as a bound allows "unlimited"."""
    for name, low in least.items():
        most = _SMALL if name in ("per_row", "degree", "seed") else 2**40
        value = check_int(name_of(type(node)), name, getattr(node, name), low, most)
        object.__setattr__(node, name, value)


def _flag(node: Primitive, name: str) -> None:
    if not isinstance(getattr(node, name), bool):
        raise PatternValueError(
            f"{name_of(type(node))}: {name} must be True or False, not {getattr(node, name)!r}"
        )


def _tokens(owner: str, value: object) -> tuple[int, ...] | range:
    """Positions as a range (kept: a billion cost nothing) or a sorted tuple without repeats."""
    if isinstance(value, range):
        ordered = value if value.step > 0 else value[::-1]
        if len(ordered):
            check_int(owner, "tokens", ordered[0], 0)
            check_int(owner, "tokens", ordered[-1], 0)
        return ordered
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise PatternValueError(
            f"{owner}: tokens is a list of positions, not {value!r}; "
            f"write {owner}([{value}]) for one token or {owner}(range({value})) for the first ones"
        )
    return tuple(sorted({check_int(owner, "tokens", v, 0) for v in value}))


def _many(owner: str, name: str, value: object) -> Integers | str:
    """Integers within 2**43, or a binding's name left as it is."""
    if isinstance(value, str) and owner == "spans":
        return check_binding(owner, value)
    try:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError
        kept = value if isinstance(value, Integers) else Integers(value)
    except (TypeError, OverflowError):
        raise PatternValueError(
            f"{owner}: {name} is a list of integers below 2**43, not {_brief(value)}"
        ) from None
    view = memoryview(kept.data).cast("q")
    for extreme in (min(view, default=0), max(view, default=0)):
        if abs(extreme) > 2**43:
            raise PatternValueError(f"{owner}: {name} holds {extreme}, past 2**43")
    return kept


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _listed(owner: str, name: str, value: object, least: int) -> Any:
    """A tuple of ints, or a binding's name left as it is."""
    if isinstance(value, str) and owner in ("documents", "clusters"):
        return check_binding(owner, value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise PatternValueError(f"{owner}: {name} is a list of integers, not {value!r}")
    numbers = tuple(check_int(owner, name, v, least) for v in value)
    positions: dict[str, Callable[[tuple[int, ...]], int]] = {"lengths": sum, "shape": math.prod}
    if name in positions and positions[name](numbers) > 2**40:
        raise PatternValueError(f"{owner}: {name} makes more than 2**40 positions")
    return numbers
