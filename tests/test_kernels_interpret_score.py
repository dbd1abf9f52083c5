"""Kernels with score options in Triton's interpreter, held to float64 attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles_layout import layout_of_mask
from oracles_score import OPTIONS, Sample, hidden_keys, poisoned, sample_of
from test_attention_terms import in_terms, random_order
from test_kernels_interpret import use

import patterncc as pc
from patterncc.kernels import runtime

pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

WINDOW = pc.compile(pc.causal() & pc.window(20), 40, n_k=50, q_offset=15, k_offset=5, block=16)
EACH = [(name,) for name in OPTIONS]


@pytest.fixture(autouse=True)
def _sources(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path_factory.getbasetemp() / "sources"))


def small(layout: pc.Layout, *names: str, **more: object) -> Sample:
    return sample_of(layout, *names, batch=1, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [*EACH, OPTIONS])
def test_options_in_fp32(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    use("fp32 by pointers", monkeypatch)
    small(WINDOW, *names).check("triton", rtol=2e-4, atol=5e-5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_options_in_fp16(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = use("fp16 by descriptors", monkeypatch)
    sample = small(WINDOW, dtype=dtype)
    sample.check("triton", rtol=1e-2, atol=1e-2, deterministic=deterministic)


def test_a_pattern_for_each_head_and_keys_that_nobody_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use("fp32 by pointers", monkeypatch)
    rng = np.random.default_rng(0)
    masks = rng.random((4, 20, 40)) < 0.3
    masks[:, :, 30:] = masks[:, 3] = False
    sample = small(layout_of_mask(masks, (16, 16), [0, 1, 2, 3]))
    sample.check("triton", rtol=2e-4, atol=5e-5)
    same_bits_whatever_stands_there(sample)


def same_bits_whatever_stands_there(sample: Sample, **more: bool) -> None:
    """Output, LSE and gradients with NaN, Inf and -Inf in hidden keys; gradients of those are 0."""
    hidden = hidden_keys(sample)
    assert hidden.any()
    results = []
    for each in (sample, poisoned(sample, hidden)):
        out, lse = each.run("triton", **more)
        results.append([out, lse, *torch.autograd.grad(out, each.leaves, each.grad)])
    for clean, bad in zip(*results, strict=True):
        assert torch.equal(clean, bad) and not bad.isnan().any()
    assert all((g[hidden] == 0).all() for g in results[1][3:5])


def test_masks_of_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Carried, in fp16 by descriptors, with padding of each sequence's own."""
    dtype = use("fp16 by descriptors", monkeypatch)
    layout = pc.compile(pc.causal(), 30, key_lengths=[13, 25], block=16)
    sample = sample_of(layout, dtype=dtype, heads=2, kv_heads=1)
    sample.check("triton", rtol=1e-2, atol=1e-2, carried=True)
    same_bits_whatever_stands_there(sample, carried=True)


def test_terms_know_where_tokens_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diagonals of a moved tile have no one distance."""
    use("fp32 by pointers", monkeypatch)
    rng = np.random.default_rng(1)
    mask = rng.random((1, 30, 30)) < 0.4
    layout = in_terms(mask, rng.integers(0, 2, (30, 30)), [random_order(rng, 30, 30), None])
    sample = small(layout, heads=2, kv_heads=1)
    sample.check("triton", rtol=2e-4, atol=5e-5)
    same_bits_whatever_stands_there(sample)


@pytest.mark.parametrize("radius", [0, 1, 40])
def test_tables_of_any_width(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use("fp32 by pointers", monkeypatch)
    sample = small(pc.compile(pc.full(), 33, block=16), "relative_bias")
    table = torch.randn(4, 2 * radius + 1, generator=torch.Generator().manual_seed(radius))
    sample.options["relative_bias"] = table.requires_grad_()
    sample.check("triton", rtol=2e-4, atol=5e-5)


def test_small_scores_keep_their_digits_under_a_softcap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap of 1000 leaves scores as they are, to a few roundings."""
    use("fp32 by pointers", monkeypatch)
    sample = small(WINDOW, "softcap")
    sample.options["softcap"] = 1000.0
    sample.check("triton", rtol=1e-6, atol=2e-6)


def test_the_same_bits_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    use("fp32 by pointers", monkeypatch)
    assert runtime.interpreting()
    sample = small(pc.compile(pc.full(), 33, block=16))
    runs = [
        torch.autograd.grad(sample.run("triton")[0], sample.leaves, sample.grad) for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
