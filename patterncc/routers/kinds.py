"""The routers: what each query may read, said before anything runs; `choose` carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from patterncc.errors import PatternValueError
from patterncc.pattern import check_int


@dataclass(frozen=True)
class SphericalKMeans:
    """A query reads the tokens of its own cluster; the clusters follow the data while it trains.

    Queries and keys are normalised (layer norm without scale) and compared with `clusters` unit
    vectors a head by their angle; a token is as near as its query and its key are together.

    width None: clusters are balanced over the whole sequence, of ceil(n / clusters) tokens at
    most, and every token is in one.  width W: a token goes to its nearest cluster whatever the
    size, and reads those that share its group of W, which fill in the order of positions; no
    choice depends on a later token.

    decay: the centroids' moving average.  tied: keys are the queries, one projection for both; None
    means where the layer is causal, as in the paper.  sync: torch.distributed's default group
    adds up what its ranks saw.

    >>> SphericalKMeans(16, decay=0.99)
    SphericalKMeans(clusters=16, width=None, decay=0.99, tied=None, sync=True)

    Raises PatternValueError for sizes below 1 and a decay outside [0, 1].
    Source: Roy et al., Efficient Content-Based Sparse Attention with Routing Transformers (2021).
    """

    clusters: int
    width: int | None = None
    decay: float = 0.999
    tied: bool | None = None
    sync: bool = True

    def __post_init__(self) -> None:
        check_int("SphericalKMeans", "clusters", self.clusters, 1)
        if self.width is not None:
            check_int("SphericalKMeans", "width", self.width, 1)
        if not isinstance(self.decay, int | float) or not 0 <= self.decay <= 1:
            raise PatternValueError(
                f"SphericalKMeans: decay must be from 0 to 1, not {self.decay!r}"
            )


@dataclass(frozen=True)
class NearestKeys:
    """A query reads the `count` keys with which it has the largest products, exactly those.

    In a causal layer they are among the keys up to its own position.  All products are formed, a
    piece at a time: n * n * head_dim multiplications, but never n * n numbers at once.

    >>> NearestKeys(32)
    NearestKeys(count=32)

    Raises PatternValueError for a count below 1.
    """

    count: int

    def __post_init__(self) -> None:
        check_int("NearestKeys", "count", self.count, 1)


@dataclass(frozen=True)
class TopBlocks:
    """A query reads `count` blocks of `block` keys: its own and those whose mean suits it best.

    A block's score is the product of the query with the mean of the block's keys.  In a causal
    layer only blocks before its own compete, and its own is read up to itself.

    grain: so many neighbouring queries choose together, by their mean; it divides block.
    shared: the query heads that share keys (GQA) choose together, by the sum of their scores.

    >>> TopBlocks(4, block=32)
    TopBlocks(count=4, block=32, grain=1, shared=False)

    Raises PatternValueError for sizes below 1 and a grain that does not divide the block.
    Sources: MoBA (Lu et al. 2025); the selection branch of NSA (Yuan et al. 2025).
    """

    count: int
    block: int = 64
    grain: int = 1
    shared: bool = False

    def __post_init__(self) -> None:
        for name in ("count", "block", "grain"):
            check_int("TopBlocks", name, getattr(self, name), 1)
        if self.block % self.grain:
            raise PatternValueError(
                f"TopBlocks: block {self.block} is not a multiple of grain {self.grain}; queries "
                "that choose together must stand in one block"
            )


Router = SphericalKMeans | NearestKeys | TopBlocks
