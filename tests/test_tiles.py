"""Coarsening of zones to tiles, held to a look at every tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc.errors import SizeError
from patterncc.zones import Frame, ZoneSet
from patterncc.zones.tiles import Strips, local, strips
from tests.strategies import frames, zone_rows

BLOCKS = st.tuples(st.sampled_from([1, 2, 3, 4, 8, 16]), st.sampled_from([1, 2, 3, 4, 8, 16]))


def tiles_of(mask: np.ndarray, block: tuple[int, int]) -> dict[tuple[int, int], bool]:
    """Every touched tile of a mask, and whether all its existing pairs are set."""
    height, width = block
    found = {}
    for r in range(-(-mask.shape[0] // height)):
        for c in range(-(-mask.shape[1] // width)):
            tile = mask[r * height : (r + 1) * height, c * width : (c + 1) * width]
            if tile.any():
                found[r, c] = bool(tile.all())
    return found


def listed(s: Strips, zone: int) -> dict[tuple[int, int], bool]:
    """The tiles of one zone's strips, and whether they are filled."""
    found = {}
    for k in np.flatnonzero(s.zone == zone).tolist():
        for c in range(int(s.first[k]), int(s.last[k])):
            found[int(s.row[k]), c] = bool(s.full_first[k] <= c < s.full_last[k])
    return found


@given(frames(), zone_rows(), BLOCKS)
def test_strips_are_the_touched_and_filled_tiles_of_each_zone(
    frame: Frame, rows: list[tuple[int, ...]], block: tuple[int, int]
) -> None:
    z = ZoneSet.make(frame, rows)
    s = strips(local(z), frame.n, frame.n_k, block)
    for zone in range(len(z)):
        alone = ZoneSet(frame, z.table[zone : zone + 1])
        assert listed(s, zone) == tiles_of(alone.dense(), block)


@given(frames(), zone_rows(), BLOCKS)
def test_the_transpose_fills_the_same_tiles(
    frame: Frame, rows: list[tuple[int, ...]], block: tuple[int, int]
) -> None:
    z = ZoneSet.make(frame, rows)
    s = strips(local(z), frame.n, frame.n_k, block)
    t = strips(local(z.T), frame.n_k, frame.n, block[::-1])
    for zone in range(len(z)):
        turned = {(r, c): full for (c, r), full in listed(t, zone).items()}
        assert turned == listed(s, zone)


@given(frames(), zone_rows(), BLOCKS)
def test_the_flanks_are_the_tiles_not_filled(
    frame: Frame, rows: list[tuple[int, ...]], block: tuple[int, int]
) -> None:
    z = ZoneSet.make(frame, rows)
    s = strips(local(z), frame.n, frame.n_k, block)
    assert (s.first < s.last).all()
    assert (s.first <= s.full_first).all()
    assert (s.full_first <= s.full_last).all()
    assert (s.full_last <= s.last).all()
    empty = s.full_first == s.full_last
    assert (s.full_first[empty] == s.last[empty]).all()


def test_offsets_are_taken_out() -> None:
    z = ZoneSet.make(Frame.of(8, 16, 32, 16), [(0, 99, 0, 99, -7, 1)])
    table = local(z)
    assert table.tolist() == [[0, 7, 9, 16, 9, 16]]
    assert table.dtype == np.int32


def test_a_huge_frame_keeps_int64() -> None:
    n = 2**40
    z = ZoneSet.make(Frame.of(n), [(0, n, 0, n, -(2**20), 1)])
    s = strips(local(z), n, n, (2**32, 2**32))
    assert len(s) == 256
    assert (s.last - s.first).tolist() == [1] + [2] * 255
    assert s.first.dtype == np.int64


def test_strips_do_not_depend_on_the_width() -> None:
    n = 2**20
    s = strips(local(ZoneSet.make(Frame.of(n), [(0, n, 0, n, -n, 1)])), n, n, (128, 128))
    assert len(s) == 8192
    assert int((s.full_last - s.full_first).sum()) == 8192 * 8191 // 2


def test_too_many_strips_are_refused_before_they_are_made() -> None:
    z = ZoneSet.make(Frame.of(2**40), [(0, 2**40, 0, 2**40, -5, 1)])
    with pytest.raises(SizeError, match="larger blocks"):
        strips(local(z), 2**40, 2**40, (16, 16))
