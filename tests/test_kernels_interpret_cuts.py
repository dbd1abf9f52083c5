"""The forward kernel and the merge of cut rows in Triton's interpreter, for any work list.

Cutting and order are chosen at random here, not by their merit.  New tensors are full of NaN, so
whatever a kernel leaves unwritten in an output, or reads from a part that nobody wrote, is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_layout import layout_of_mask
from test_kernels_interpret import ROUNDING, Sample, compiled, use
from torch import Tensor

import patterncc as pc
from patterncc.kernels import launch, reference
from patterncc.kernels.launch.call import section
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec
from patterncc.kernels.work import LEVELS, Lines

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

calls = import_module("patterncc.kernels.launch.call")


@pytest.fixture(autouse=True)
def _sources(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path_factory.getbasetemp() / "sources"))


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """torch fills what `empty` gives with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def with_cuts(sample: Sample, seed: int, most: int = 4) -> list[Tensor]:
    """The layout's tables with rows cut into up to `most` items at random; some lead."""
    spec, tensors = sample.prepared()
    draw = np.random.default_rng(seed)
    runs, pattern = sample.layout.rows, sample.layout.head_pattern
    lines = Lines.of(runs, pattern if spec.patterns > 1 else pattern[:1], spec.q_lines)
    pieces = draw.integers(1, np.clip(lines.tiles, 1, most) + 1)
    work = lines.items(runs, pieces, draw.random(len(pieces)) < 0.4)
    first = len(tensors) - 4 * len(LEVELS)
    rows = [torch.from_numpy(x) for x in (work.items, work.parts)] * len(LEVELS)
    return [*tensors[:first], *rows, *tensors[first + 2 * len(LEVELS) :]]


def forward(sample: Sample, tensors: list[Tensor], score: Score | None = None) -> list[Tensor]:
    spec, _ = sample.prepared()
    score = score or Score(sample.scale)
    return list(launch.forward(sample.q, sample.k, sample.v, tensors, spec, score))


def check(sample: Sample, seed: int = 0) -> None:
    """out and lse within the budget, cut or whole, and the same bits every time."""
    tensors = with_cuts(sample, seed)
    got = forward(sample, tensors)
    for a, b in zip(got, forward(sample, tensors), strict=True):
        assert torch.equal(a, b)
    q, k, v = (x.double() for x in (sample.q, sample.k, sample.v))
    exact, exact_lse = reference.attention(q, k, v, sample.mask)
    error, usual = ((x.double() - exact).abs().max().item() for x in (got[0], sample.dense()[0]))
    rounding = ROUNDING[sample.q.dtype]
    assert error <= 2 * usual + rounding * max(1.0, exact.abs().max().item())
    torch.testing.assert_close(got[1], exact_lse.float(), rtol=2e-5, atol=2e-5)
    whole = forward(sample, sample.prepared()[1])
    torch.testing.assert_close(got[0], whole[0], rtol=2 * rounding, atol=2 * rounding)
    torch.testing.assert_close(got[1], whole[1], rtol=2e-5, atol=2e-5)


NEAR = pc.causal() & pc.window(40)
PATTERNS = {
    "full, ragged keys": (pc.full(), {"n": 37, "n_k": 77, "block": 16}),
    "one zone": (NEAR, {"n": 75, "block": 16}),
    "steps within a tile": (pc.causal(), {"n": 140, "block": 128}),
    "parts of tiles of 256 rows": (pc.causal(), {"n": 130, "block": (256, 64)}),
    "two and four zones": (pc.global_tokens([3, 40]) | pc.window(5), {"n": 70, "block": 16}),
    "bits": (pc.random_edges(4, seed=1), {"n": 50, "block": 16}),
    "every class": (pc.random_edges(2, seed=1) | NEAR, {"n": 70, "block": 16}),
    "rows with nothing": (
        pc.window(20) & ~(pc.prefix(40) | pc.global_tokens(range(50, 54))),
        {"n": 70, "block": 16},
    ),
    "nothing at all": (pc.window(2) & ~pc.window(3), {"n": 20, "block": 16}),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_cut_rows_of_every_mask_class(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, sizes = PATTERNS[name]
    way = "fp16 by descriptors" if len(name) % 2 else "fp32 by pointers"
    made = compiled(pattern, **sizes)  # type: ignore[arg-type]
    check(Sample.of(*made, use(way, monkeypatch), heads=(1, 1)))


def test_parts_that_read_nothing() -> None:
    """Rows of a cut line whose keys stand in other parts, and rows without any key."""
    mask = np.zeros((1, 32, 64), dtype=bool)
    mask[0, 5, 60], mask[0, 6, :3], mask[0, 20:24, 17:50] = True, True, True
    sample = Sample.of(layout_of_mask(mask, (16, 16)), mask[0], torch.float32)
    for seed in range(3):
        check(sample, seed)
        out, lse = forward(sample, with_cuts(sample, seed))
        empty = ~sample.mask.any(-1)
        assert (out[:, :, empty] == 0).all() and (lse[:, :, empty] == -torch.inf).all()


@pytest.mark.parametrize("heads", [(4, 2), (3, 1)], ids=["4:2", "3:1"])
def test_grouped_heads_in_sections(heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections of every size give the same bits."""
    sample = Sample.of(*compiled(NEAR, 20, block=16), torch.float32, heads, batch=2)
    check(sample)
    tensors = with_cuts(sample, 1)
    expected = forward(sample, tensors)
    for size in (1, 5):
        monkeypatch.setattr(calls, "section", lambda units, k, v, size=size: min(size, units))
        for a, b in zip(forward(sample, tensors), expected, strict=True):
            assert torch.equal(a, b)


def test_sections_by_the_cache() -> None:
    """Half of 50 MiB holds K and V of two key heads of 50,000 x 64 in 16 bits."""
    k = torch.empty(2, 4, 50_000, 64, dtype=torch.float16, device="meta")
    assert section(8, k, k) == 2  # one query head a key head
    assert section(64, k, k) == 16  # eight: those of a key head stand together
    assert section(2, k, k) == 1  # units of a whole batch entry
    assert section(4, k[:, :, :9], k[:, :, :9]) == 4


def test_heads_that_differ() -> None:
    parts = [pc.causal(), pc.window(30), pc.window(30), pc.random_edges(2, seed=3)]
    layout = pc.compile(pc.heads(parts), 40, block=16)
    mask = np.stack([pc.lower(p, 40, head=h).dense() for h, p in enumerate(parts)])
    check(Sample.of(layout, mask, torch.float32, heads=(4, 2), batch=2))


@pytest.mark.parametrize("heads", [1, 2])
def test_sequences_that_differ(heads: int) -> None:
    """One mask a sequence, or one for each head of each sequence."""
    ids = np.array([[0] * 20 + [1] * 20, [0] * 40, [0] * 3 + [1] * 30 + [2] * 7])
    each = pc.causal() if heads == 1 else pc.heads([pc.causal(), pc.window(9)])
    layout = pc.compile(each, 40, block=16, doc_ids=ids)
    assert Spec.of(layout, "triton").sequences == 3
    same = ids[:, None, :, None] == ids[:, None, None, :]
    own = [pc.lower(p, 40).dense() for p in getattr(each, "patterns", [each])]
    check(Sample.of(layout, same & np.stack(own), torch.float32, heads=(2, 1), batch=3))


def test_sinks_join_once() -> None:
    """A row's sink counts once, however many parts the row has."""
    sample = Sample.of(*compiled(NEAR, 40, block=16), torch.float32, heads=(2, 1))
    score = replace(Score(sample.scale), sinks=torch.tensor([0.5, -1.0]))
    got = forward(sample, with_cuts(sample, 2), score)
    for a, b in zip(got, forward(sample, sample.prepared()[1], score), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_any_cut_of_any_mask(data: st.DataObject) -> None:
    n, n_k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    density, seed = data.draw(st.sampled_from([0.02, 0.5, 1.0])), data.draw(st.integers(0, 99))
    mask = np.random.default_rng(seed).random((1, n, n_k)) < density
    mask[:, : n // 2, : n_k // 2] |= data.draw(st.booleans())
    sample = Sample.of(layout_of_mask(mask, (16, 16)), mask[0], torch.float32, seed=seed)
    check(sample, data.draw(st.integers(0, 99)))
