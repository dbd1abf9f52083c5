"""Drawings: cell counts against the dense mask, text, and pictures that are files or nothing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc import Stack, causal, heads, show, sink, window
from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.zones import ZoneSet
from patterncc.zones.lower import lower
from tests.strategies import frames, zone_rows


def counted(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The oracle: add up the dense mask cell by cell."""
    n, n_k = mask.shape
    down = [n * r // rows for r in range(rows + 1)]
    across = [n_k * c // columns for c in range(columns + 1)]
    return np.array(
        [[mask[a:b, c:d].sum() for c, d in pairwise(across)] for a, b in pairwise(down)]
    )


@given(frames(), zone_rows(), st.integers(1, 9), st.integers(1, 9))
def test_cell_counts_are_those_of_the_dense_mask(frame, table, rows, columns):
    zones = ZoneSet.make(frame, table)
    rows, columns = min(rows, zones.frame.n), min(columns, zones.frame.n_k)
    if not rows or not columns:
        return
    found = show.cell_counts(zones, rows, columns)
    assert np.array_equal(found, counted(zones.dense(), rows, columns))


def test_a_million_tokens_are_counted_exactly():
    n = 2**20
    zones = lower(causal() & (window(4095) | sink(4)), n)
    drawn = show.panel(show.Mask("near", zones), 512)
    assert drawn.share.shape == (512, 512)
    assert drawn.edges == zones.count()
    assert drawn.share.min() == 0 and drawn.share.max() <= 1


def test_text_of_single_pairs():
    drawn = show.panel(show.Mask("near", lower(causal() & window(1), 4)), 64)
    assert show.text(drawn).splitlines() == [
        "near: n 4, 7 edges, density 0.438",
        "  key 0 .. 3",
        "0 █▄",
        "3  ▀█▄",
    ]


def test_text_of_cells_shows_every_edge():
    drawn = show.panel(show.Mask("far", lower(sink(1), 4096)), 16)
    lines = show.text(drawn).splitlines()[2:]
    assert len(lines) == 16
    assert all(line.endswith(" ··") for line in lines)


def test_masks_name_their_layers_and_heads():
    near, far = causal() & window(3), causal()
    stack = Stack([near, heads([near, near, far]), far])
    assert [m.title for m in show.masks(stack, 16)] == [
        "layer 0; layer 1, heads 0-1",
        "layer 1, head 2; layer 2",
    ]
    assert [m.title for m in show.masks(stack, 16, layer=1, head=2)] == ["layer 1, head 2"]
    assert [m.title for m in show.masks(Stack([far, far]), 16)] == ["all layers"]


@pytest.mark.parametrize(("layer", "head"), [(3, None), (-1, None), (1, 3), (1, -1)])
def test_masks_refuse_what_is_not_there(layer, head):
    stack = Stack([causal(), heads([causal(), causal(), causal()]), causal()])
    with pytest.raises(PatternValueError, match="has"):
        show.masks(stack, 16, layer=layer, head=head)


def test_a_memory_stands_before_the_queries():
    zones = show.masks(Stack([causal()], memory=8), 16)[0].zones
    assert (zones.frame.n, zones.frame.n_k, zones.frame.q_offset) == (16, 24, 8)


def test_natural_size_shows_the_window():
    assert show.natural_size(Stack([causal() & window(511)]), {}, []) == 2048
    assert show.natural_size(Stack([causal()]), {}, []) == 64


def test_too_many_pairs_are_refused():
    with pytest.raises(SizeError, match="at most"):
        show.panel(show.Mask("huge", lower(causal(), 2**32)), 64)


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_pictures_are_the_same_from_run_to_run(tmp_path: Path, ending: str):
    panels = [
        show.panel(show.Mask("small", lower(causal() & window(3), 24)), 512),
        show.panel(show.Mask("large", lower(causal() & window(300), 4096)), 128),
    ]
    first, second = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    show.picture(panels, "two masks", first)
    show.picture(panels, "two masks", second)
    assert first.read_bytes() == second.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_many_masks_make_one_picture(tmp_path: Path):
    panels = [show.panel(show.Mask(f"head {w}", lower(window(w), 16)), 64) for w in range(15)]
    show.picture(panels, "heads", tmp_path / "many.png")
    assert (tmp_path / "many.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["mask.gif", "mask", "no/such/folder/mask.png"])
def test_pictures_that_cannot_be_are_refused(tmp_path: Path, name: str):
    with pytest.raises(PatternError):
        show.check_picture(tmp_path / name)


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(PatternError, match=r"patterncc\[plot\]"):
        show.check_picture(tmp_path / "mask.png")
