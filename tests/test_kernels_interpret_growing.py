"""The decode kernel against a cache that still grows, in Triton's interpreter."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from oracles_decode import step_of
from test_decode import OPTIONS, WINDOW, check
from test_decode_growing import RESIDUE, cut, run

import patterncc as pc

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

KINDS = {
    "window": (WINDOW, "token"),
    "heads": (pc.heads([WINDOW, pc.window(3, 9), pc.causal(), WINDOW]), "token"),
    "terms": (RESIDUE, "residue"),
}


@pytest.mark.parametrize("name", KINDS)
def test_fewer_keys_than_the_layout_has(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys fall to several programs; rows that would read a key which is not there, too."""
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.import_module("patterncc.kernels.launch.decode"), "LEAST", 16)
    pattern, order = KINDS[name]
    step = step_of(pattern, 60, 2, (4, 2), [30, 57], block=16, order=order)
    masked = step_of(pattern, 60, 2, (4, 2), [33], options=OPTIONS, block=16, order=order)
    for one, held in ((step, 32), (step, 59), (masked, 35)):
        check(cut(one, held), run(one, held, lengths=False, backend="triton"), 2e-5)
