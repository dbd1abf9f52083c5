"""Generators of zones, frames and patterns for the property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from patterncc.zones import Frame


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
