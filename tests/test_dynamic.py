"""Tables that torch builds from document ids, read back and held to masks by definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import patterncc as pc
from patterncc.kernels.dynamic import DynamicLayout, compile_dynamic, documents_of, prepared
from patterncc.kernels.dynamic_tables import _below
from patterncc.kernels.fragments import fragment_order
from patterncc.kernels.spec import Spec
from patterncc.zones import Frame

BANDS = [
    pc.full(),
    pc.causal(),
    pc.causal() & pc.window(7),
    pc.causal() & pc.window(100),
    pc.window(5, 3),
    pc.window(40, 40),
    pc.window(20, -1),
    pc.causal().T,
    pc.window(0, 0),
]


def tiles_of(words: torch.Tensor, width: int) -> NDArray[np.bool_]:
    """Bits in fragment order as bool [count, rows, width], by the order's definition."""
    unsigned = words.numpy().view(np.uint32)
    out = np.zeros((*unsigned.shape[:2], width), dtype=bool)
    for column in range(width):
        group, within = divmod(column, 128)
        t, q, b = within // 8, within % 8 // 2, within % 2
        out[:, :, column] = unsigned[:, :, 4 * group + q] >> np.uint32(2 * t + b) & 1
    return out


def held(x: DynamicLayout, *, by_key: bool) -> NDArray[np.bool_]:
    """The mask [sequences, n, n_k] that a kernel would see, tile by tile, and the tables' form."""
    _, row_ptr, row_run, col_ptr, col_run, zone, bits, bits_by_key = x.tables[:8]
    (bm, bn), zones = x.block, zone[:, 0].numpy()
    drawn = tiles_of(bits_by_key, bm).transpose(0, 2, 1) if by_key else tiles_of(bits, bn)
    sides = -(-x.n // bm), -(-x.n_k // bn)
    ptr, run = (t.tolist() for t in ((col_ptr, col_run) if by_key else (row_ptr, row_run)))
    i, j = np.arange(bm)[:, None], np.arange(bn)[None, :]
    out = np.zeros((len(x.ids), sides[0] * bm, sides[1] * bn), dtype=np.int8)
    before = 0
    for line in range(len(ptr) - 1):
        sequence, own = divmod(line, sides[by_key])
        behind = 0
        for first, count, word, counted in run[ptr[line] : ptr[line + 1]]:
            assert count > 0 and first >= behind and counted == before
            before, behind = before + count, first + count
            assert behind <= sides[not by_key]
            tile = np.ones((bm, bn), dtype=bool)
            if 0 < word <= len(zones):
                i0, i1, j0, j1, d0, d1 = zones[word - 1][:6]
                tile = (i0 <= i) & (i < i1) & (j0 <= j) & (j < j1) & (d0 <= j - i) & (j - i < d1)
            elif word:
                tile = drawn[word - 1 - len(zones)]
            for at in range(first, behind):
                r, c = (at, own) if by_key else (own, at)
                assert word or (c + 1) * bn <= x.n_k
                out[sequence, r * bm : (r + 1) * bm, c * bn : (c + 1) * bn] += tile
    assert run[ptr[-1]][1:] == run[ptr[-1] + 1][1:] == [0, 0, before]
    assert out.max(initial=0) <= 1 and not out[:, :, x.n_k :].any()
    return out[:, : x.n, : x.n_k].astype(bool)


def oracle(
    p: pc.Pattern, f: Frame, ids: NDArray[np.int64], keys: NDArray[np.int64] | None
) -> NDArray[np.bool_]:
    """[sequences, n, n_k] by the definition."""
    i = f.q_offset + np.arange(f.n)[:, None]
    j = f.k_offset + np.arange(f.n_k)[None, :]
    base = pc.lower(p, f.n, f.n_k, f.q_offset, f.k_offset).dense()
    masks = []
    for b, row in enumerate(ids):
        mask = base & (row[i] == row[j]) & (row[i] >= 0)
        masks.append(mask if keys is None else mask & (j - f.k_offset < keys[b]))
    return np.stack(masks)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """Self-attention, a slice of its queries, or keys of their own."""
    n, memory = draw(st.integers(1, 150)), draw(st.sampled_from([0, 0, 5, 64]))
    if draw(st.booleans()):
        return Frame.of(n, q_offset=memory)
    return Frame(n, draw(st.integers(1, 150)), memory, draw(st.sampled_from([0, 3, 32])))


@settings(max_examples=120)
@given(st.data())
def test_tables_hold_the_mask(data: st.DataObject) -> None:
    frame, pattern = data.draw(frames()), data.draw(st.sampled_from(BANDS))
    sides = st.sampled_from([16, 32, 64, 128])
    block = data.draw(sides), data.draw(sides)
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    size = max(frame.q_offset + frame.n, frame.k_offset + frame.n_k)
    ids = []
    for _ in range(data.draw(st.integers(1, 2))):
        count = rng.integers(1, 14)
        places = np.searchsorted(
            np.sort(rng.integers(0, size, count - 1)), np.arange(size), "right"
        )
        ids.append((rng.permutation(count) - rng.integers(0, 2))[places])
    rows = np.stack(ids)
    keys = rng.integers(0, frame.n_k + 1, len(rows)) if data.draw(st.booleans()) else None
    try:
        made = compile_dynamic(
            pattern,
            frame,
            block,
            torch.from_numpy(rows),
            None if keys is None else torch.from_numpy(keys),
        )
    except pc.PatternValueError as error:  # the frame leaves no band of the pattern
        assert "one band for all heads" in str(error)
        return
    expected = oracle(pattern, frame, rows, keys)
    assert (held(made, by_key=False) == expected).all()
    assert (held(made, by_key=True) == expected).all()
    dense = made.dense().numpy()
    assert (dense.reshape(expected.shape) == expected).all()


def test_the_words_of_rows_are_in_fragment_order() -> None:
    for width in (16, 64, 256):
        rows = np.arange(width) < np.arange(width + 1)[:, None]
        whole = np.pad(rows, ((0, 0), (0, -width % 32)))
        expected = fragment_order(np.packbits(whole, -1, "little").view(np.uint32)[None])[0]
        assert (_below(width, torch.device("cpu")).numpy() == expected).all()


# --- no tensor's value is read on the host


class Recorded(TorchDispatchMode):
    """Every operation that torch runs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("pattern", BANDS, ids=str)
def test_nothing_waits_for_the_device(pattern: pc.Pattern) -> None:
    """Meta tensors have no values, and fake ones refuse to give theirs."""
    frame, sizes = Frame.of(500), {"dtype": torch.int32}
    for device in ("meta", "cpu"):
        ids = torch.zeros(3, 500, device=device, **sizes)  # type: ignore[arg-type]
        keys = torch.full((3,), 400, device=device, **sizes)  # type: ignore[arg-type]
        with Recorded() as seen:
            made = compile_dynamic(pattern, frame, (128, 64), ids, keys)
        assert all(t.device.type == device and t.dtype == torch.int32 for t in made.tables)
        reads = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal"}
        assert not seen.names & (reads | {"_copy_from", "lift_fresh"})
    with FakeTensorMode():
        ids = torch.zeros(3, 500, dtype=torch.int64)
        fake = compile_dynamic(pattern, frame, (128, 64), ids)
        cumulated = torch.zeros(7, dtype=torch.int32)
        assert documents_of(cumulated, 500).shape == (500,)
    assert [t.shape for t in fake.tables] == [t.shape for t in made.tables]


def test_shapes_follow_from_sizes_alone() -> None:
    shapes = set()
    for count in (1, 2, 50, 400):
        ids = torch.arange(400) * count // 400
        made = compile_dynamic(pc.causal(), Frame.of(400), (64, 64), ids)
        shapes.add(tuple(t.shape for t in made.tables))
    assert len(shapes) == 1


def test_tables_of_a_long_batch_are_small() -> None:
    made = compile_dynamic(
        pc.causal(), Frame.of(65536), (128, 128), torch.zeros(65536, dtype=torch.int64)
    )
    assert made.nbytes < 2.5e6
    assert made.tables[2][-1, 3] == 512 * 513 // 2


# --- how it is reached


def test_compile_goes_there_for_tensors_on_a_device() -> None:
    ids = torch.zeros(2, 300, dtype=torch.int32, device="meta")
    made: Any = pc.compile(pc.causal() & pc.window(40), 300, doc_ids=ids)
    assert isinstance(made, DynamicLayout) and made.sequences == 2
    lengths = torch.zeros(2, dtype=torch.int64, device="meta")
    made = pc.compile(pc.full(), 300, key_lengths=lengths, block=64)
    assert (made.sequences, made.block, made.device.type) == (2, (64, 64), "meta")
    assert "of 2 sequences: 300 x 300, block 64 x 64, on meta" in repr(made)


def test_cumulated_lengths_are_ids() -> None:
    ids = documents_of(torch.tensor([0, 3, 3, 7], dtype=torch.int32), 10)
    assert ids.tolist() == [0, 0, 0, 2, 2, 2, 2, -1, -1, -1]


def test_the_spec_is_that_of_a_layout_made_on_the_host() -> None:
    ids = torch.arange(300) // 70
    rows = torch.stack([ids, ids // 2])
    for given_ids in (ids, rows):
        made = compile_dynamic(pc.causal(), Frame.of(300), None, given_ids)
        spec = Spec.of(pc.compile(pc.causal(), 300, doc_ids=given_ids), "triton")
        ours = Spec.parse(made.plan)
        for name in ("block", "full", "zones", "bits", "share", "sequences"):
            assert getattr(spec, name) == getattr(ours, name), name


def test_backends() -> None:
    ids = torch.arange(40) // 15
    made = compile_dynamic(pc.causal(), Frame.of(40), (16, 16), ids)
    q, k, v = torch.randn(3, 2, 2, 40, 16).unbind()
    out = pc.attention(q, k, v, made, backend="reference")
    expected = pc.attention(q, k, v, pc.compile(pc.causal(), 40, doc_ids=ids))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(pc.BackendError, match="runs on the Triton kernels"):
        pc.attention(q, k, v, made)
    with pytest.raises(pc.BackendError, match="tensors on meta, a layout built on cpu"):
        prepared(made, torch.device("meta"), "auto")
    batch = compile_dynamic(pc.causal(), Frame.of(40), (16, 16), torch.stack([ids] * 3))
    with pytest.raises(pc.TensorError, match="each of 3 sequences"):
        pc.attention(q, k, v, batch, backend="reference")


META = torch.zeros(40, dtype=torch.int64, device="meta")


@pytest.mark.parametrize(
    ("layer", "batch", "message"),
    [
        (pc.window(3) | pc.sink(2), {"doc_ids": META}, "one band for all heads is built"),
        (pc.heads([pc.full(), pc.causal()]), {"doc_ids": META}, "one band for all heads is built"),
        (pc.full(), {"doc_ids": META[1:]}, "doc_ids has 39 ids a sequence for 40 positions"),
        (pc.full(), {"doc_ids": META.float()}, "doc_ids is torch.float32 of shape"),
        (pc.full(), {"doc_ids": META, "prefix_lengths": 3}, "prefix_lengths with ids on a device"),
        (pc.full(), {"doc_ids": META, "key_lengths": [3]}, "key_lengths is a list beside a tensor"),
        (pc.full(), {"doc_ids": META[None, :].expand(0, -1)}, "a batch of no sequence"),
        (
            pc.full(),
            {"doc_ids": META.expand(2, -1), "key_lengths": META[:3]},
            "doc_ids 2, key_lengths 3",
        ),
        (pc.Stack([pc.full()]), {"doc_ids": META}, "compile its layers one by one"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_what_does_not_fit_is_refused(layer: Any, batch: dict[str, Any], message: str) -> None:
    with pytest.raises(pc.PatternValueError, match=message):
        pc.compile(layer, 40, **batch)


def test_lengths_elsewhere_are_refused() -> None:
    with pytest.raises(pc.TensorError, match="doc_ids on meta, key_lengths on cpu"):
        pc.compile(pc.full(), 40, doc_ids=META, key_lengths=torch.tensor(3))
