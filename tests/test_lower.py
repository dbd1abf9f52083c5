"""Lowering held to slow predicates (i, j) -> bool written from the meaning of each primitive."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc import primitives as pr
from patterncc.errors import PatternValueError, SizeError
from patterncc.pattern import Complement, Difference, Intersection, Pattern, Transpose, Union
from patterncc.zones import Frame
from patterncc.zones.lower import lower
from tests.oracles import is_tight
from tests.strategies import frames

Edge = Callable[[Any, int, int], bool]

MEANING: dict[type[Pattern], Edge] = {
    pr.Full: lambda p, i, j: True,
    pr.Causal: lambda p, i, j: j <= i,
    pr.Window: lambda p, i, j: (
        (p.left < 0 or i // p.block - p.left <= j // p.block)
        and (p.right < 0 or j // p.block <= i // p.block + p.right)
    ),
    pr.Dilated: lambda p, i, j: i - p.left <= j <= i + p.right and (j - i) % p.step == 0,
    pr.Strided: lambda p, i, j: (i - j) % p.stride == 0,
    pr.Summary: lambda p, i, j: j % p.stride >= p.stride - p.width,
    pr.Chunked: lambda p, i, j: i // p.size == j // p.size,
    pr.GlobalTokens: lambda p, i, j: i in p.tokens or j in p.tokens,
    pr.Sink: lambda p, i, j: j < p.count,
    pr.Prefix: lambda p, i, j: i < p.count and j < p.count,
    pr.LogSparse: lambda p, i, j: i - j in {0, *(2**k for k in range(12))},
    pr.Recurrent: lambda p, i, j: j <= i,
    pr.Convolution: lambda p, i, j: i - p.width < j <= i,
    pr.Butterfly: lambda p, i, j: (
        i // p.block == j // p.block
        or i // p.block ^ j // p.block
        in ([2**k for k in range(12)] if p.level is None else [2**p.level])
    ),
    pr.Grid: lambda p, i, j: near(p, i, j),
    pr.Axial: lambda p, i, j: (
        max(i, j) < math.prod(p.shape)
        and sum(a != b for a, b in zip(place(p.shape, i), place(p.shape, j))) <= 1
    ),
    pr.Tree: lambda p, i, j: max(i, j) < len(p.parents) and j in path(p.parents, i),
    pr.Documents: lambda p, i, j: -1 != document(p.lengths, i) == document(p.lengths, j),
    pr.Clusters: lambda p, i, j: -1 != p.labels[i] == p.labels[j],
}


def document(lengths: tuple[int, ...], i: int) -> int:
    for d in range(len(lengths)):
        if sum(lengths[:d]) <= i < sum(lengths[: d + 1]):
            return d
    return -1


def place(shape: tuple[int, ...], i: int) -> list[int]:
    where: list[int] = []
    for size in reversed(shape):
        where.insert(0, i % size)
        i //= size
    return where


def near(p: pr.Grid, i: int, j: int) -> bool:
    if max(i, j) >= math.prod(p.shape):
        return False
    for x, y, size, reach in zip(place(p.shape, i), place(p.shape, j), p.shape, p.window):
        if p.edges == "shift":  # the nearest centre whose whole window fits
            x = size // 2 if 2 * reach + 1 >= size else min(max(x, reach), size - 1 - reach)
            reach = size if 2 * reach + 1 >= size else reach
        if abs(x - y) > reach:
            return False
    return True


def path(parents: tuple[int, ...], i: int) -> list[int]:
    return [i] if parents[i] < 0 else [i, *path(parents, parents[i])]


def edge(p: Pattern, i: int, j: int) -> bool:
    match p:
        case Union(parts):
            return any(edge(x, i, j) for x in parts)
        case Intersection(parts):
            return all(edge(x, i, j) for x in parts)
        case Difference(left, right):
            return edge(left, i, j) and not edge(right, i, j)
        case Complement(of):
            return not edge(of, i, j)
        case Transpose(of):
            return edge(of, j, i)
        case _:
            return MEANING[type(p)](p, i, j)


def oracle(p: Pattern, f: Frame) -> list[list[bool]]:
    i0, i1, j0, j1 = f.box
    return [[edge(p, i, j) for j in range(j0, j1)] for i in range(i0, i1)]


def at(p: Pattern, f: Frame, **more: Any) -> Any:
    return lower(p, f.n, f.n_k, f.q_offset, f.k_offset, **more)


def check(p: Pattern, f: Frame, **more: Any) -> None:
    z = at(p, f, **more)
    assert z.dense().tolist() == oracle(p, f)
    assert is_tight(z)


small, size = st.integers(0, 40), st.integers(1, 12)
shape = st.lists(st.integers(1, 5), min_size=1, max_size=3)
parents = st.lists(st.integers(0, 60), max_size=45).map(
    lambda picks: [min(i, pick % (i + 3)) - 1 if pick % 7 else i - 1 for i, pick in enumerate(picks)]
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
    st.builds(pr.clusters, st.lists(st.integers(-1, 3), min_size=48, max_size=48)),
)


@settings(max_examples=300)
@given(structured, frames(28))
def test_structured_primitives(p: Pattern, f: Frame) -> None:
    check(p, f)


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


@given(composed, frames(16))
def test_composed_patterns(p: Pattern, f: Frame) -> None:
    check(p, f)


@given(st.integers(0, 6), st.integers(1, 4), st.booleans(), frames())
def test_random_blocks_draw_distinct_whole_blocks(
    per_row: int, block: int, past: bool, f: Frame
) -> None:
    whole = Frame(f.q_offset + f.n, f.k_offset + f.n_k)
    p = pr.random_blocks(per_row, block=block, seed=3, past=past)
    mask = at(p, whole).dense()
    for i in range(whole.n):
        blocks = sorted({int(j) // block for j in np.flatnonzero(mask[i])})
        drawn = [j for b in blocks for j in range(b * block, min((b + 1) * block, whole.n_k))]
        assert np.flatnonzero(mask[i]).tolist() == drawn
        assert mask[i].tolist() == mask[i // block * block].tolist()
        if not past:
            assert len(blocks) == min(per_row, -(-whole.n_k // block))
        elif whole.n_k >= whole.n:
            assert len(blocks) == min(per_row, i // block + 1)
            assert all(b <= i // block for b in blocks)
    part = at(p, f).dense()
    assert part.tolist() == mask[f.q_offset :, f.k_offset :].tolist()


def test_sizes_are_predicted() -> None:
    with pytest.raises(SizeError, match="max_zones"):
        lower(pr.chunked(1), 2**40)
    with pytest.raises(SizeError, match="10 zones"):
        lower(pr.chunked(1), 10, max_zones=9)
    assert len(lower(pr.window(2**40) & pr.strided(2**30), 2**40)) == 1024


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(0, 5),
    frames(),
)
def test_longnet(pairs: list[tuple[int, int]], head: int, f: Frame) -> None:
    i0, i1, j0, j1 = f.box

    def reads(i: int, j: int) -> bool:
        return any(
            i // w == j // w and i % w % r == j % w % r == head % r for w, r in pairs
        )

    z = at(pr.longnet([w for w, _ in pairs], [r for _, r in pairs]), f, head=head)
    assert z.dense().tolist() == [[reads(i, j) for j in range(j0, j1)] for i in range(i0, i1)]
    assert is_tight(z)


@given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 3), st.integers(0, 2))
def test_expander_is_regular_and_both_ways(
    blocks: int, degree: int, block: int, seed: int
) -> None:
    p = pr.expander(degree, block=block, seed=seed)
    n = blocks * block
    if degree >= blocks or degree * blocks % 2:
        with pytest.raises(PatternValueError, match="degree"):
            lower(p, n)
        return
    mask = lower(p, n).dense()
    cells = mask[::block, ::block]
    assert mask.tolist() == np.kron(cells, np.ones((block, block), dtype=bool)).tolist()
    assert (cells == cells.T).all() and cells.diagonal().all()
    assert set(cells.sum(axis=1)) == {degree + 1}
    part = lower(p, n - n // 2, n, n // 2, 0).dense()
    assert part.tolist() == mask[n // 2 :].tolist()
