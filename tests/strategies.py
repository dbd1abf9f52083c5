"""Generators of zones, frames and patterns for the property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from patterncc import primitives as pr
from patterncc.pattern import Pattern
from patterncc.zones import Frame
from patterncc.zones.lower import leaves


@st.composite
def frames(draw: st.DrawFn, most: int = 24, square: bool = False) -> Frame:
    """A frame of at most `most` queries and keys, offsets included."""
    n = draw(st.integers(0, most))
    if square:
        return Frame.of(n)
    return Frame(
        n,
        draw(st.integers(0, most)),
        draw(st.integers(0, most)),
        draw(st.integers(0, most // 2)),
    )


@st.composite
def zone_rows(
    draw: st.DrawFn, most: int = 8, low: int = -4, high: int = 40
) -> list[tuple[int, ...]]:
    """Rows of six integers, loose or empty ones included."""
    interval = st.tuples(st.integers(low, high), st.integers(0, high)).map(
        lambda t: (t[0], t[0] + t[1])
    )
    band = st.tuples(st.integers(-high, high), st.integers(0, high)).map(
        lambda t: (t[0], t[0] + t[1])
    )
    row = st.tuples(interval, interval, band).map(lambda t: (*t[0], *t[1], *t[2]))
    return draw(st.lists(row, max_size=most))


small, size = st.integers(0, 40), st.integers(1, 12)
shape = st.lists(st.integers(1, 5), min_size=1, max_size=3)
parents = st.lists(st.integers(0, 60), max_size=45).map(
    lambda picks: [
        min(i, pick % (i + 3)) - 1 if pick % 7 else i - 1 for i, pick in enumerate(picks)
    ]
)


@st.composite
def grids(draw: st.DrawFn) -> Pattern:
    sizes = draw(shape)
    steps = [draw(st.integers(0, 4)) for _ in sizes]
    return pr.grid(sizes, steps, draw(st.sampled_from(["cut", "shift"])))


tokens = st.one_of(
    st.lists(small, max_size=6),
    st.builds(range, small, small, st.integers(1, 5)),
)
labels = st.lists(st.integers(-1, 3), min_size=64, max_size=64)
bounds = st.one_of(
    st.integers(0, 9),
    st.lists(st.integers(-3, 40), min_size=64, max_size=64),
    st.tuples(st.lists(st.integers(0, 1), min_size=64, max_size=64), st.integers(-4, 9)).map(
        lambda t: [t[1] + sum(t[0][: k + 1]) for k in range(64)]  # stands still or moves by one
    ),
)

structured = st.one_of(
    st.just(pr.full()),
    st.just(pr.causal()),
    st.just(pr.logsparse()),
    st.just(pr.recurrent()),
    st.builds(pr.convolution, size),
    st.builds(pr.window, st.integers(-1, 40), st.integers(-1, 40)),
    st.builds(pr.window, st.integers(-1, 6), st.integers(-1, 6), st.integers(1, 7)),
    st.builds(pr.dilated, small, small, st.integers(1, 7)),
    st.builds(pr.strided, size),
    st.tuples(size, size).map(lambda t: pr.summary(max(t), min(t))),
    st.builds(pr.chunked, size),
    st.builds(pr.global_tokens, tokens),
    st.builds(pr.sink, small),
    st.builds(pr.prefix, small),
    st.builds(pr.butterfly, st.integers(1, 5), st.one_of(st.none(), st.integers(0, 5))),
    grids(),
    st.builds(pr.axial, shape),
    st.builds(pr.tree, parents),
    st.builds(pr.documents, st.lists(st.integers(0, 9), max_size=8)),
    st.builds(pr.clusters, labels, st.one_of(st.none(), labels)),
    st.builds(pr.spans, bounds, st.one_of(st.none(), bounds)),
    st.lists(st.lists(st.integers(-9, 40), min_size=6, max_size=6), max_size=4).map(
        lambda rows: pr.boxes([x for row in rows for x in row])
    ),
)

composed = st.recursive(
    structured,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a - b, inner, inner),
        st.builds(lambda a: ~a, inner),
        st.builds(lambda a: a.T, inner),
    ),
    max_leaves=6,
)


def patterns() -> st.SearchStrategy[Pattern]:
    """Composed patterns of attention alone: what a layout can be compiled from."""
    return composed.filter(
        lambda p: not any(isinstance(x, pr.Recurrent | pr.Convolution) for x in leaves(p))
    )
