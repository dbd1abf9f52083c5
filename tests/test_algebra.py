"""The zone algebra against brute force, on generated unions of zones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc.errors import PatternError, SizeError
from patterncc.zones import Frame, ZoneSet, algebra, sweep
from tests.oracles import is_tight, zone_mask
from tests.strategies import frames, zone_rows


@given(frames(), zone_rows())
def test_make_dense_count_and_tightness(frame: Frame, rows: list[tuple[int, ...]]) -> None:
    z, mask = ZoneSet.make(frame, rows), zone_mask(rows, frame)
    assert (z.dense() == mask).all()
    assert z.count() == int(mask.sum())
    assert is_tight(z)


@given(frames(), zone_rows(), st.integers(0, 9))
def test_many_single_edges_stay_edges(frame: Frame, rows: list[tuple[int, ...]], seed: int) -> None:
    i0, i1, j0, j1 = frame.box
    rng = np.random.default_rng(seed)
    pairs = zip(rng.integers(i0, i1 + 1, 40).tolist(), rng.integers(j0, j1 + 1, 40).tolist())
    singles = [(i, i + 1, j, j + 1, j - i, j - i + 1) for i, j in pairs]
    z = ZoneSet.make(frame, [*rows, *singles])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algebra, "_MANY_SINGLES", 4)
        patch.setattr(sweep, "_MANY", 4)
        patch.setattr(sweep, "_PIECE", 7)
        simple = z.simplify()
        assert z.count() == int(z.dense().sum())
        order = np.lexsort((z.table[:, 2], z.table[:, 0]))
        assert ZoneSet(frame, algebra.take(z.table, order)).count() == z.count()
    assert (simple.dense() == z.dense()).all() and len(simple) <= len(z)
    assert is_tight(simple)


@given(frames(), zone_rows(), zone_rows())
def test_set_operations(frame: Frame, a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> None:
    za, zb = ZoneSet.make(frame, a), ZoneSet.make(frame, b)
    ma, mb = zone_mask(a, frame), zone_mask(b, frame)
    for result, truth in (
        (za | zb, ma | mb),
        (za & zb, ma & mb),
        (za - zb, ma & ~mb),
        (~za, ~ma),
    ):
        assert (result.dense() == truth).all()
        assert is_tight(result)
    assert za.equals(zb) == bool((ma == mb).all())
    assert za.contains(zb) == bool((ma | ~mb).all())


@given(frames(), zone_rows(most=14))
def test_disjoint_and_simplify_keep_the_edges(frame: Frame, rows: list[tuple[int, ...]]) -> None:
    z, mask = ZoneSet.make(frame, rows), zone_mask(rows, frame)
    apart = z.disjoint()
    assert (apart.dense() == mask).all()
    assert int(algebra.areas(apart.table).sum()) == int(mask.sum())
    assert is_tight(apart)
    simple = z.simplify()
    assert (simple.dense() == mask).all()
    assert is_tight(simple)
    assert len(simple) <= len(z)


@given(frames(), zone_rows(), zone_rows(), st.integers(0, 24))
def test_composition(
    frame: Frame, a: list[tuple[int, ...]], b: list[tuple[int, ...]], n_k: int
) -> None:
    second = Frame(frame.n_k, n_k, frame.k_offset, 3)
    truth = zone_mask(a, frame).astype(int) @ zone_mask(b, second).astype(int) > 0
    z = ZoneSet.make(frame, a) @ ZoneSet.make(second, b)
    assert (z.dense() == truth).all()
    assert is_tight(z)


@given(frames(), zone_rows(), st.data())
def test_transpose_slice_and_projection(
    frame: Frame, rows: list[tuple[int, ...]], data: st.DataObject
) -> None:
    z, mask = ZoneSet.make(frame, rows), zone_mask(rows, frame)
    assert (z.T.dense() == mask.T).all()
    a = data.draw(st.integers(0, frame.n))
    b = data.draw(st.integers(a, frame.n))
    part = z.slice(frame.q_offset + a, frame.q_offset + b)
    assert (part.dense() == mask[a:b]).all()
    for intervals, axis, start in ((z.keys(), 0, frame.k_offset), (z.queries(), 1, frame.q_offset)):
        marked = np.zeros(mask.shape[1 - axis], dtype=bool)
        for lo, hi in intervals.tolist():
            marked[lo - start : hi - start] = True
        assert (marked == mask.any(axis=axis)).all()


@given(st.integers(0, 2**32 - 1), st.integers(60, 200))
def test_long_tables_take_the_sorted_ways(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    frame = Frame.of(96)
    start = rng.integers(0, 90, (count, 2))
    size = rng.integers(1, 12, (count, 2))
    band = rng.integers(-90, 60, count)
    rows = np.stack(
        [
            start[:, 0],
            start[:, 0] + size[:, 0],
            start[:, 1],
            start[:, 1] + size[:, 1],
            band,
            band + 60,
        ]
    ).T
    z, mask = ZoneSet.make(frame, rows), zone_mask([tuple(r) for r in rows.tolist()], frame)
    half = ZoneSet.make(frame, rows[::2])
    assert (z.simplify().dense() == mask).all()
    assert (z & half).simplify().equals(half)
    assert (z - half).count() == z.count() - half.count()
    assert ((z @ half).dense() == (mask.astype(int) @ half.dense().astype(int) > 0)).all()


@given(st.integers(0, 2**32 - 1))
def test_many_columns_are_swept_from_the_keys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = Frame.of(40, 4000)
    start = rng.permutation(4000)[:1200]
    columns = [(0, 40, c, c + 2, -5000, 5000) for c in start.tolist()]
    rows = [*columns, (3, 9, 0, 4000, -5000, 5000), (0, 40, 0, 4000, 0, 25)]
    z, mask = ZoneSet.make(frame, rows), zone_mask(rows, frame)
    assert z.count() == int(mask.sum())
    assert (z.disjoint().dense() == mask).all()
    assert ((~z).dense() == ~mask).all()
    assert is_tight(z.disjoint())


def test_merging_finds_the_one_zone_of_many_pieces() -> None:
    frame = Frame.of(4096)
    blocks = [(64 * b, 64 * b + 64, 0, 4096, -31, 1) for b in range(64)]
    assert len(ZoneSet.make(frame, blocks).simplify()) == 1
    tiles = [
        (64 * b, 64 * b + 64, 64 * c, 64 * c + 64, -(2**13), 2**13)
        for b in range(9)
        for c in range(7)
    ]
    assert ZoneSet.make(frame, tiles).simplify().table[:, :4].tolist() == [[0, 576, 0, 448]]


def test_counts_are_exact_past_int64() -> None:
    n = 2**40
    z = ZoneSet.make(Frame.of(n), [(0, n, 0, n, -n, 1), (0, n, 0, 4, -n, n)])
    assert z.count() == n * (n + 1) // 2 + 3 + 2 + 1


def test_refusals_name_the_size_and_come_before_the_work() -> None:
    z = ZoneSet.make(Frame.of(2**20), [(0, 2**20, 0, 2**20, -5, 1)])
    with pytest.raises(SizeError, match=r"1048576 x 1048576"):
        z.dense()
    n = 8192
    step = np.arange(n)
    columns = algebra.pack((0, n, step, step + 1, -n, n))
    with pytest.raises(SizeError, match=r"67,108,864 pairs"):
        algebra.compose(columns, algebra.pack((0, n, step, step + 1, -n, n)))
    with pytest.raises(PatternError, match="no truth value"):
        bool(z)
    with pytest.raises(PatternError, match="different frames"):
        z | ZoneSet.make(Frame.of(4), [])
