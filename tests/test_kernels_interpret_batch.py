"""Kernels that read a pattern for each sequence, and tables built on the device, interpreted.

The budget is that of test_kernels_interpret.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_kernels_interpret import ROUNDING, Sample, check, use
from torch import Tensor

import patterncc as pc
from patterncc.kernels import launch, reference, runtime
from patterncc.kernels.choose import choose
from patterncc.kernels.dynamic import DynamicLayout, compile_dynamic
from patterncc.kernels.plan import Kind
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec
from patterncc.layout import Layout
from patterncc.zones import Frame

# Triton 3.6's interpreter makes Python numbers of arrays of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

CAUSAL_WINDOW = pc.causal() & pc.window(21)
IDS = np.array(
    [
        [0] * 14 + [1] * 3 + [2] * 23,
        [5] * 40,
        [-1] * 4 + [3] * 18 + [1] * 2 + [0] * 2 + [2] * 8 + [-1] * 6,
    ]
)
KEYS = np.array([40, 29, 33])


@pytest.fixture(autouse=True)
def _sources(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path_factory.getbasetemp() / "sources"))


def masks(pattern: pc.Pattern, ids: np.ndarray = IDS, keys: np.ndarray = KEYS) -> np.ndarray:
    """[sequences, n, n] from the pattern, the ids and the lengths alone."""
    same = (ids[:, :, None] == ids[:, None]) & (ids[:, :, None] >= 0)
    there = np.arange(ids.shape[1]) < keys[:, None, None]
    return pc.lower(pattern, ids.shape[1]).dense() & same & there


LAYERS = {
    "causal": pc.causal(),
    "both ways": pc.full(),
    "a window": CAUSAL_WINDOW,
    "no staircase": pc.causal() & (pc.window(9) | pc.sink(2)),
    "heads": pc.heads([pc.causal(), pc.causal(), pc.full(), pc.full()]),
    "heads within groups": pc.heads([pc.causal(), pc.window(5)] * 2),
}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "fp32 by pointers") for name in LAYERS),
        ("a window", "fp16 by descriptors"),
        ("heads within groups", "fp16 by descriptors"),
    ],
)
def test_a_mask_for_each_sequence(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype, layer = use(way, monkeypatch), LAYERS[name]
    layout = pc.compile(layer, 40, doc_ids=IDS, key_lengths=KEYS, block=32)
    parts = layer.patterns if isinstance(layer, pc.stack.Heads) else [layer]
    mask = np.stack([masks(p) for p in parts], axis=1)
    check(Sample.of(layout, mask, dtype, heads=(4, 2) if len(parts) > 1 else (2, 1), batch=3))


def test_decode_with_a_mask_for_each_sequence() -> None:
    """The last step of the third sequence stands in its padding, and reads nothing."""
    for layer in LAYERS.values():
        layout = pc.compile(layer, 40, doc_ids=IDS, key_lengths=KEYS, block=16)
        parts = layer.patterns if isinstance(layer, pc.stack.Heads) else [layer]
        mask = np.stack([masks(p) for p in parts], axis=1)
        sample = Sample.of(layout, mask, torch.float32, (4, 2), batch=3)
        spec, tensors = sample.prepared()
        position = torch.tensor([15, 28, 36], dtype=torch.int32)
        rows = [sample.q[b, :, p : p + 1] for b, p in enumerate(position.tolist())]
        out, lse = launch.decode(
            torch.stack(rows), sample.k, sample.v, tensors, spec, Score(sample.scale), position
        )
        exact = reference.attention(sample.q, sample.k, sample.v, sample.mask)
        for got, whole in zip((out, lse), exact, strict=True):
            for b, p in enumerate(position.tolist()):
                expected = whole[b, :, p : p + 1].float()
                torch.testing.assert_close(got[b], expected, rtol=1e-5, atol=1e-5)
        assert (out[2] == 0).all() and (lse[2] == -torch.inf).all()


class OnDevice(Sample):
    """A sample whose tables were built by torch from the ids."""

    def prepared(self) -> tuple[Spec, list[Tensor]]:
        assert isinstance(self.layout, DynamicLayout)
        return Spec.parse(self.layout.plan), list(self.layout.tables)


def on_device(made: DynamicLayout, mask: np.ndarray, dtype: torch.dtype, batch: int) -> OnDevice:
    return OnDevice(**vars(Sample.of(made, mask, dtype, (2, 1), batch=batch)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "block", "way"),
    [
        ("causal", (32, 32), "fp16 by descriptors"),
        ("causal", (128, 128), "fp32 by pointers"),
        ("both ways", (16, 64), "fp32 by pointers"),
        ("a window", (64, 16), "fp16 by descriptors"),
    ],
)
def test_tables_built_on_the_device(
    name: str, block: tuple[int, int], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = LAYERS[name]
    assert isinstance(pattern, pc.Pattern)
    made = compile_dynamic(
        pattern, Frame.of(40), block, torch.from_numpy(IDS), torch.from_numpy(KEYS)
    )
    check(on_device(made, masks(pattern)[:, None], use(way, monkeypatch), 3))


def test_a_packed_batch_on_the_device_is_one_mask_for_all() -> None:
    made = compile_dynamic(pc.causal(), Frame.of(40), (32, 32), torch.from_numpy(IDS[2]))
    keys = np.array([40])
    mask = masks(pc.causal(), IDS[2:], keys)[0]
    check(on_device(made, mask, torch.float32, 2))


def test_attention_takes_a_layout_built_on_the_device() -> None:
    made = compile_dynamic(pc.causal(), Frame.of(40), (32, 32), torch.from_numpy(IDS))
    layout = pc.compile(pc.causal(), 40, doc_ids=IDS, block=32)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 40, 16, generator=draw) for _ in range(3))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = pc.attention(q, k, v, made, backend="triton")
    expected = pc.attention(q, k, v, layout, backend="reference")
    limit = 8 * ROUNDING[torch.float32]
    torch.testing.assert_close(out, expected, rtol=0, atol=limit * 8)
    grads, exact = (torch.autograd.grad(x.square().sum(), leaves) for x in (out, expected))
    for got, want in zip(grads, exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    row = pc.attention(q[:, :, 30:31].detach(), k.detach(), v.detach(), made, position=30,
                       backend="triton")  # fmt: skip
    torch.testing.assert_close(row, expected[:, :, 30:31].detach(), rtol=1e-4, atol=1e-5)


def test_both_ways_of_building_share_their_kernels() -> None:
    made = compile_dynamic(pc.causal(), Frame.of(40), None, torch.from_numpy(IDS))
    layout = pc.compile(pc.causal(), 40, doc_ids=IDS)
    kinds: tuple[Kind, ...] = ("forward", "delta", "dq", "dkdv", "decode")
    for kind in kinds:
        plans = {
            choose(kind, spec, "sm_90", "bfloat16", 64, 64)
            for spec in (Spec.parse(made.plan), Spec.of(layout, "triton"))
        }
        assert len(plans) == 1


def test_further_batches_load_no_new_kernel() -> None:
    """Documents, padding and batches change; what was emitted for the first serves all."""
    rng = np.random.default_rng(0)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1, 24, 16, generator=draw).requires_grad_() for _ in range(3))

    def step(layout: Layout | DynamicLayout) -> None:
        out = pc.attention(q, k, v, layout, backend="triton")
        torch.autograd.grad(out.sum(), (q, k, v))

    def ids(kind: int) -> np.ndarray:
        if kind == 0:
            return np.zeros((2, 24), dtype=np.int64)  # no tile of two documents: no bits
        cuts = rng.integers(0, 24, (2, rng.integers(1, 9)))
        return (np.arange(24)[:, None] >= np.sort(cuts)[:, None]).sum(-1) - rng.integers(0, 2)

    runtime.kernel.cache_clear()
    step(pc.compile(pc.causal(), 24, doc_ids=ids(1), block=16))
    loaded = runtime.kernel.cache_info().misses
    assert loaded == 4  # forward, delta, dq, dkdv
    for kind in range(8):
        if kind % 2:
            made = compile_dynamic(pc.causal(), Frame.of(24), (16, 16), torch.from_numpy(ids(kind)))
            step(made)
        else:
            step(pc.compile(pc.causal(), 24, doc_ids=ids(kind), block=16))
    assert runtime.kernel.cache_info().misses == loaded
