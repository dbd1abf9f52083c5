"""The generated backward kernels in Triton's interpreter, held to float64 attention.

The samples and the budget are those of test_kernels_interpret.  New tensors are full of NaN here,
so whatever a kernel leaves unwritten is seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from test_kernels_interpret import ROUNDING, Sample, compiled, use
from torch import Tensor

import patterncc as pc
from patterncc.kernels import launch
from patterncc.kernels.launch import backward as launches
from patterncc.kernels.score import Score
from patterncc.kernels.work import LEVELS
from patterncc.layout import Layout, Runs

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

WAYS = ("fp32 by pointers", "fp16 by descriptors")
CAUSAL_WINDOW = pc.causal() & pc.window(21)


@pytest.fixture(autouse=True)
def _sources(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path_factory.getbasetemp() / "sources"))


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """torch fills what `empty` gives with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gradients(
    sample: Sample, tensors: list[Tensor] | None = None, repeatable: bool = True
) -> list[Tensor]:
    """Those of q, k and v from the kernels, maybe with other tables."""
    spec, own = sample.prepared()
    score = Score(sample.scale)
    out, lse = launch.forward(sample.q, sample.k, sample.v, own, spec, score)
    inputs = sample.grad, sample.q, sample.k, sample.v, out, lse
    return list(launch.backward(*inputs, tensors or own, spec, score, repeatable)[:3])


def check(sample: Sample, got: list[Tensor]) -> None:
    """Every gradient within the budget."""
    rounding = ROUNDING[sample.q.dtype]
    results = zip(("q", "k", "v"), got, sample.exact()[1:], sample.dense()[1:], strict=True)
    for name, grad, exact, dense in results:
        assert grad.shape == exact.shape and grad.dtype == sample.q.dtype
        error, usual = ((x.double() - exact).abs().max().item() for x in (grad, dense))
        limit = 2 * usual + rounding * max(1.0, exact.abs().max().item())
        assert error <= limit, f"{name}: {error:.3g} passes {limit:.3g}"


def split(runs: Runs, head_pattern: np.ndarray, most: int) -> list[Tensor]:
    """Items of at most `most` tiles and their parts, tile by tile; the shortest items first."""
    items, parts = [], []
    for owner, pattern in enumerate(head_pattern.tolist()):
        for row in range(runs.lines):
            line = pattern * runs.lines + row
            places = range(runs.ptr[line], runs.ptr[line + 1])
            tiles = [(r, skip) for r in places for skip in range(runs.run[r, 1])]
            cuts = [tiles[at : at + most] for at in range(0, len(tiles), most)]
            if len(cuts) < 2:
                items.append([row, owner, runs.ptr[line], 0, len(tiles), -1, 0, 0])
                continue
            for k, cut in enumerate(cuts):
                items.append([row, owner, *cut[0], len(cut), len(parts), 0, 0])
                parts.append([row, owner, len(cuts) if k == 0 else 0, 0])
    made = np.array(items)[::-1].copy(), np.array(parts).reshape(-1, 4)
    return [torch.from_numpy(x).to(torch.int32) for x in made]


def with_splits(sample: Sample, most: int) -> list[Tensor]:
    """The layout's tables with lines cut by hand."""
    layout = sample.layout
    _, tensors = sample.prepared()
    levels = len(LEVELS)
    listed = layout.head_pattern if sample.prepared()[0].patterns > 1 else np.zeros(1, np.int32)
    lists = [split(x, listed, most) for x in (layout.rows, layout.cols)]
    return [*tensors[: -4 * levels], *lists[0] * levels, *lists[1] * levels]


PATTERNS = {
    "full": (pc.full(), {"n": 45, "n_k": 53, "block": 16}),
    "window": (CAUSAL_WINDOW, {"n": 75, "block": 16}),
    "steps within a tile": (CAUSAL_WINDOW, {"n": 150, "block": 128}),
    "hubs": (pc.global_tokens([3, 40]) | pc.window(5), {"n": 70, "block": 16}),
    "bits": (pc.random_edges(3, seed=1) | pc.window(2), {"n": 60, "block": 32}),
    "offset": (CAUSAL_WINDOW, {"n": 20, "q_offset": 37, "block": 16}),
    "nothing": (
        pc.window(3) & ~(pc.prefix(40) | pc.global_tokens(range(50, 54))),
        {"n": 70, "block": 16},
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("repeatable", [True, False], ids=["two kernels", "single"])
def test_split_lines(
    name: str, way: str, repeatable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of two tiles or more is cut, in the middle of runs too."""
    pattern, sizes = PATTERNS[name]
    layout, mask = compiled(pattern, **sizes)  # type: ignore[arg-type]
    sample = Sample.of(layout, mask, use(way, monkeypatch), heads=(2, 1))
    check(sample, gradients(sample, with_splits(sample, 1), repeatable))
