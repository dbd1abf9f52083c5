"""Packed sequences, held to the block-diagonal mask of each pattern lowered alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import patterncc as pc
from patterncc.kernels import bundle
from patterncc.kernels.dynamic import DynamicLayout
from patterncc.kernels.spec import Spec
from patterncc.layout import Layout, check, decode, packed_zones
from tests import strategies

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Sequence:
    """One sequence of a packed batch."""

    pattern: pc.Pattern
    n: int
    n_k: int
    q_offset: int = 0
    k_offset: int = 0

    def mask(self) -> Mask:
        sizes = (self.n, self.n_k, self.q_offset, self.k_offset)
        return pc.lower(self.pattern, *sizes).dense()


def oracle(sequences: list[Sequence], total: int = 0, total_k: int = 0) -> Mask:
    """Each mask alone, along the diagonal."""
    rows, keys = sum(s.n for s in sequences), sum(s.n_k for s in sequences)
    mask = np.zeros((max(total, rows), max(total_k, keys)), dtype=bool)
    i = j = 0
    for s in sequences:
        mask[i : i + s.n, j : j + s.n_k] = s.mask()
        i, j = i + s.n, j + s.n_k
    return mask


def bounds(lengths: list[int]) -> list[int]:
    return list(itertools.accumulate(lengths, initial=0))


def held(layout: Layout, expected: Mask) -> None:
    """Both directions, the count of edges, and what a file is checked for."""
    assert (layout.dense() == expected).all()
    assert (decode.dense(layout, columns=True) == expected).all()
    assert layout.edges == (int(expected.sum()),)
    check(layout)


blocks = st.tuples(st.sampled_from([16, 32]), st.sampled_from([16, 32]))
lengths = st.integers(0, 40) | st.sampled_from([0, 1, 16, 32])


@settings(max_examples=80)
@given(st.data())
def test_masks_are_those_of_each_pattern_alone(data: st.DataObject) -> None:
    patterns = data.draw(st.lists(strategies.patterns(), min_size=1, max_size=3))
    count = data.draw(st.integers(0, 5))
    cross = data.draw(st.booleans())
    sequences = []
    for _ in range(count):
        n = data.draw(lengths)
        n_k = data.draw(lengths) if cross else n
        at = data.draw(st.integers(0, 20)) if cross else 0
        sequences.append(Sequence(data.draw(st.sampled_from(patterns)), n, n_k, at))
    layout = pc.compile_packed(
        [s.pattern for s in sequences],
        bounds([s.n for s in sequences]),
        bounds([s.n_k for s in sequences]) if cross else None,
        [s.q_offset for s in sequences],
        block=data.draw(blocks),
    )
    held(layout, oracle(sequences))


POSITIONAL = [
    pc.full(),
    pc.causal() & pc.window(7),
    pc.causal() & (pc.window(5) | pc.sink(4)),
    pc.chunked(8) & pc.causal(),
    pc.strided(3) - pc.sink(2),
    ~pc.window(4, 4),
    pc.global_tokens([0, 9]).T | pc.logsparse(),
    pc.prefix(6) | pc.summary(8, 2),
    pc.dilated(12, 3, step=3) | pc.window(1, 0, block=4),
]


@settings(max_examples=60)
@given(st.data())
def test_one_lowering_is_cut_to_every_length(data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(POSITIONAL))
    sizes = data.draw(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=8))
    cut = data.draw(st.booleans())
    sequences = [
        Sequence(pattern, n, n + more, more if cut else 0, 0 if cut else 3) for n, more in sizes
    ]
    layout = pc.compile_packed(
        pattern,
        np.array(bounds([s.n for s in sequences])),
        torch.tensor(bounds([s.n_k for s in sequences]), dtype=torch.int32),
        None if cut else 0,
        0 if cut else 3,
        block=16,
    )
    held(layout, oracle(sequences))


def test_random_edges_are_those_of_the_sequence_alone() -> None:
    pattern = pc.random_blocks(2, block=16, seed=3) & pc.causal()
    sequences = [Sequence(pattern, n, n) for n in (100, 64, 100)]
    layout = pc.compile_packed(pattern, bounds([100, 64, 100]), block=16)
    held(layout, oracle(sequences))


def test_queries_are_the_last_of_their_keys() -> None:
    """FlashAttention's rule, also where there are fewer keys than queries."""
    pairs = [(3, 5), (1, 9), (5, 3), (2, 0), (0, 4), (6, 6)]
    layout = pc.compile_packed(
        pc.causal() & pc.window(3), bounds([a for a, _ in pairs]), bounds([b for _, b in pairs])
    )
    expected = np.zeros((17, 27), dtype=bool)
    row = key = 0
    for n, n_k in pairs:
        i, j = np.arange(n)[:, None] + n_k - n, np.arange(n_k)
        expected[row : row + n, key : key + n_k] = (j <= i) & (j >= i - 3)
        row, key = row + n, key + n_k
    held(layout, expected)


def test_padding_behind_the_last_sequence_reads_nothing() -> None:
    pattern = pc.causal() & (pc.window(4) | pc.sink(2))
    for p in (pattern, pc.causal()):
        layout = pc.compile_packed(p, [0, 10, 30], total=70, block=16)
        held(layout, oracle([Sequence(p, 10, 10), Sequence(p, 20, 20)], 70, 70))


def test_no_sequence_and_empty_sequences() -> None:
    for cu, total in (([0], 0), ([0], 20), ([0, 0, 0], 0), ([0, 0, 17, 17], 17)):
        layout = pc.compile_packed(pc.causal(), cu, total=total, block=16)
        parts = [Sequence(pc.causal(), b - a, b - a) for a, b in itertools.pairwise(cu)]
        held(layout, oracle(parts, total, total))


def test_heads_and_sequences_that_differ() -> None:
    near, far = pc.causal() & pc.window(3), pc.causal()
    mixed = pc.heads([near, far, near])
    layout = pc.compile_packed([mixed, far, mixed], [0, 20, 30, 50], block=16)
    assert layout.heads == 3 and layout.head_pattern.tolist() == [0, 1, 0]
    for head, p in enumerate(mixed.patterns):
        parts = [Sequence(p, 20, 20), Sequence(far, 10, 10), Sequence(p, 20, 20)]
        assert (layout.dense()[head] == oracle(parts)).all()


def test_heads_draw_for_themselves() -> None:
    p = pc.random_blocks(1, block=16)
    layout = pc.compile_packed(pc.heads([p, p]), [0, 96, 192], block=16, layer=2)
    for head in (0, 1):
        one = pc.lower(p, 96, head=head, layer=2).dense()
        assert (layout.dense()[head] == np.kron(np.eye(2, dtype=bool), one)).all()


def test_a_stack_gives_a_layout_a_layer() -> None:
    near = pc.causal() & pc.window(3)
    layouts = pc.compile_packed(pc.Stack([near, pc.causal(), near]), [0, 5, 30], block=16)
    assert layouts[0] is layouts[2] and layouts[0] is not layouts[1]
    assert (layouts[1].dense() == oracle([Sequence(pc.causal(), n, n) for n in (5, 25)])).all()


def test_equal_lengths_are_lowered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of sequences; a pattern of positions alone is lowered once for all."""
    calls: list[Any] = []
    lower = vars(packed_zones)["lower"]

    def counted(*sizes: Any, **more: Any) -> Any:
        calls.append(sizes[1])
        return lower(*sizes, **more)

    monkeypatch.setattr(packed_zones, "lower", counted)
    rng = np.random.default_rng(0)
    cu = bounds(rng.integers(1, 20, 3000).tolist())
    pc.compile_packed(pc.causal() & (pc.window(4) | pc.sink(1)), cu, block=64)
    assert len(calls) == 1
    calls.clear()
    pc.compile_packed(pc.random_blocks(1, block=16) & pc.causal(), cu, block=64)
    assert len(calls) == 19


def test_other_batches_run_the_same_kernels() -> None:
    pattern = pc.causal() & (pc.window(40) | pc.sink(4))
    specs = []
    for cu in ([0, 300], [0, 1, 2, 5, 200, 300], [0, 128, 256]):
        layout = pc.compile_packed(pattern, cu, total=300)
        specs.append(Spec.of(layout, "triton"))
    assert len(set(specs)) == 1


# --- attention


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, sequences: list[Sequence], **options: Tensor | float
) -> tuple[Tensor, Tensor]:
    """[total, H, D] by the definition, in float64, sequence by sequence."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    rows, keys = [s.n for s in sequences], [s.n_k for s in sequences]
    scores = [
        of_sequence(s, torch.einsum("ihd,jhd->hij", a, b) / math.sqrt(q.shape[2]), **options)
        for s, a, b in zip(sequences, torch.split(q, rows), torch.split(k, keys))
    ]
    if "key_mask" in options:
        masks = torch.split(options["key_mask"], keys)  # type: ignore[arg-type]
        scores = [x.masked_fill(~m, -math.inf) for x, m in zip(scores, masks)]
    lse = torch.cat([torch.logsumexp(x, -1) for x in scores], 1)
    if "sinks" in options:
        lse = torch.logaddexp(lse, options["sinks"][:, None])  # type: ignore[index]
    top = torch.split(lse.masked_fill(lse == -math.inf, 0), rows, 1)
    weights = [torch.exp(x - t[..., None]) for x, t in zip(scores, top)]
    outs = [torch.einsum("hij,jhd->ihd", w, b) for w, b in zip(weights, torch.split(v, keys))]
    return torch.cat(outs), lse


def of_sequence(s: Sequence, x: Tensor, **options: Any) -> Tensor:
    """The scores [H, n, n_k] of one sequence, positions counted as it counts them."""
    i = torch.arange(s.n)[:, None] + s.q_offset
    apart = torch.arange(s.n_k) + s.k_offset - i
    if "softcap" in options:
        x = options["softcap"] * torch.tanh(x / options["softcap"])
    if "alibi_slopes" in options:
        x = x - options["alibi_slopes"][:, None, None] * apart.abs()
    if "relative_bias" in options:
        most = options["relative_bias"].shape[1] // 2
        x = x + options["relative_bias"][:, apart.clamp(-most, most) + most]
    return x.masked_fill(~torch.from_numpy(s.mask()), -math.inf)


def packed(
    rows: int, keys: int, heads: tuple[int, int] = (4, 2), dim: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q = torch.randn(rows, heads[0], dim, dtype=torch.float64)
    k, v = (torch.randn(keys, heads[1], dim, dtype=torch.float64) for _ in range(2))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def layout_of(case: list[Sequence]) -> Layout:
    q_bounds, k_bounds = bounds([s.n for s in case]), bounds([s.n_k for s in case])
    apart = any((s.n_k - s.n, s.k_offset) != (0, 0) for s in case)
    offsets = [s.q_offset for s in case], [s.k_offset for s in case]
    patterns = [s.pattern for s in case]
    if apart:
        return pc.compile_packed(patterns, q_bounds, k_bounds, *offsets, block=16)
    return pc.compile_packed(patterns, q_bounds, block=16)


CASES = [
    [Sequence(pc.causal(), n, n) for n in (30, 0, 1, 50)],
    [Sequence(pc.causal() & (pc.window(6) | pc.sink(3)), n, n) for n in (33, 47)],
    [
        Sequence(pc.causal(), 20, 20),
        Sequence(pc.window(4, 4), 31, 31),
        Sequence(pc.strided(4) & pc.causal(), 40, 40),
    ],
    [Sequence(pc.causal() & pc.window(9), 5, 30, 25), Sequence(pc.causal(), 20, 20)],
    [Sequence(pc.full(), 17, 40), Sequence(pc.window(5, 5), 3, 5, 0, 2), Sequence(pc.full(), 2, 0)],
]


OPTIONS: dict[str, Any] = {
    "plain": {},
    "softcap and sinks": {"softcap": 2.0, "sinks": (4,)},
    "alibi": {"alibi_slopes": (4,)},
    "relative bias": {"relative_bias": (4, 7)},
    "key mask": {"key_mask": None},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_attention_and_gradients(case: list[Sequence], options: str, backend: str) -> None:
    layout = layout_of(case)
    tensors = packed(layout.n, layout.n_k)
    given: dict[str, Any] = dict(OPTIONS[options])
    for name, shape in given.items():
        if isinstance(shape, tuple):
            given[name] = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    if "key_mask" in given:
        given["key_mask"] = torch.rand(layout.n_k) < 0.7
    out, lse = pc.attention_varlen(
        *tensors, layout, enable_gqa=True, return_lse=True, backend=backend, **given
    )
    expected, expected_lse = dense_attention(*tensors, case, **given)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=1e-6)
    weight = torch.randn_like(out)
    leaves = [
        *tensors,
        *(x for x in given.values() if isinstance(x, Tensor) and x.requires_grad),
    ]
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    for got, wanted in zip(grads, torch.autograd.grad((expected * weight).sum(), leaves)):
        torch.testing.assert_close(got, wanted)


def test_padding_gives_zero() -> None:
    layout = pc.compile_packed(pc.causal(), [0, 20, 30], total=40)
    q, k, v = (x.detach() for x in packed(40, 40))
    out, lse = pc.attention_varlen(q, k, v, layout, enable_gqa=True, return_lse=True)
    assert (out[30:] == 0).all() and (lse[:, 30:] == -math.inf).all()
    assert torch.isfinite(lse[:, :30]).all()


def test_views_are_not_copied() -> None:
    """q, k and v as a projection lays them down: one tensor, heads beside each other."""
    qkv = torch.randn(50, 3, 4, 16, dtype=torch.float64)
    q, k, v = qkv.unbind(1)
    case = [Sequence(pc.causal(), 20, 20), Sequence(pc.causal(), 30, 30)]
    out = pc.attention_varlen(q, k, v, layout_of(case))
    torch.testing.assert_close(out, dense_attention(q, k, v, case)[0])


def test_layouts_with_positions_of_their_own(tmp_path: Path) -> None:
    """Cut like any other, carried, and not written to files, which would lose the positions."""
    case = [Sequence(pc.causal(), 5, 30, 25), Sequence(pc.causal(), 20, 20)]
    layout, slopes = layout_of(case), torch.rand(4, dtype=torch.float64)
    q, k, v = (x.detach() for x in packed(25, 50))
    given: dict[str, Any] = {"enable_gqa": True, "alibi_slopes": slopes}
    whole = pc.attention_varlen(q, k, v, layout, **given)
    torch.testing.assert_close(pc.attention_varlen(q, k, v, pc.carry(layout), **given), whole)
    short = pc.attention_varlen(q[:15], k[:40], v[:40], layout.at(15, 40), **given)
    torch.testing.assert_close(short, whole[:15])
    same = layout_of([Sequence(pc.causal(), 5, 30, 25), Sequence(pc.causal(), 20, 20, 1, 1)])
    assert (same.dense() == layout.dense()).all() and same.hash != layout.hash
    with pytest.raises(pc.LayoutError, match="keep cu_seqlens and cu_seqlens_k"):
        layout.save(tmp_path / "l.safetensors")
    plain = layout_of([Sequence(pc.causal(), 5, 5)])
    plain.save(tmp_path / "l.safetensors")
    assert Layout.load(tmp_path / "l.safetensors").hash == plain.hash


# --- traced graphs


def traced(step: Any) -> tuple[Any, list[object]]:
    """A traced function, and the graphs that it has come to."""
    graphs: list[object] = []

    def counted(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    return torch.compile(step, backend=counted, fullgraph=True), graphs


def test_packed_batches_of_any_lengths_are_traced_twice() -> None:
    """Once, and once more when lengths turn out to vary."""
    step, graphs = traced(pc.attention_varlen)
    for cu in ([0, 60, 100], [0, 97], [0, 5, 20, 30], [0, *range(7), 99], [0, 50, 110], [0, 40]):
        q, k, v = torch.randn(3, cu[-1], 2, 16).unbind()
        layout = pc.compile_packed(pc.causal() & pc.window(30), cu, block=16)
        out = step(q, k, v, pc.carry(layout))
        torch.testing.assert_close(out, pc.attention_varlen(q, k, v, layout))
    assert len(graphs) == 2


@pytest.mark.parametrize("pattern", [pc.causal() & pc.window(20), pc.causal() & pc.strided(64)])
def test_another_length_of_one_pattern_is_not_traced_again(pattern: pc.Pattern) -> None:
    step, graphs = traced(pc.attention)
    longest = pc.compile(
        pattern, 400, block=16, order="residue" if "strided" in str(pattern) else None
    )
    assert (longest.order is not None) == ("strided" in str(pattern))
    for n in (100, 120, 400, 390, 120, 250, 300, 111):
        q, k, v = torch.randn(3, 1, 2, n, 16).unbind()
        layout = longest.at(n)
        out = step(q, k, v, pc.carry(layout))
        torch.testing.assert_close(out, pc.attention(q, k, v, layout))
    assert len(graphs) <= 3


def test_gradients_and_decode_steps_of_carried_layouts() -> None:
    step = torch.compile(pc.attention_varlen, backend="aot_eager", fullgraph=True)
    for cu in ([0, 30, 50], [0, 41], [0, 7, 9, 60]):
        layout = pc.compile_packed(pc.causal(), cu)
        q, k, v = (torch.randn(cu[-1], 2, 16, requires_grad=True) for _ in range(3))
        tensors = (q, k, v)
        grads = torch.autograd.grad(step(*tensors, pc.carry(layout)).square().sum(), tensors)
        out = pc.attention_varlen(q, k, v, layout)
        for got, wanted in zip(grads, torch.autograd.grad(out.square().sum(), tensors)):
            torch.testing.assert_close(got, wanted)
    plain, (q, k, v) = pc.compile(pc.causal() & pc.window(5), 50), torch.randn(3, 2, 2, 50, 16)
    row = pc.attention(q[:, :, :1], k, v, pc.carry(plain), position=33)
    torch.testing.assert_close(row, pc.attention(q[:, :, :1], k, v, plain, position=33))


def test_export_is_one_node() -> None:
    layout = pc.compile_packed(pc.causal() & pc.window(9), [0, 12, 40])

    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return pc.attention_varlen(q, k, v, layout)

    q, k, v = torch.randn(3, 40, 2, 16).unbind()
    exported = torch.export.export(Model(), (q, k, v))
    calls = [str(node.target) for node in exported.graph.nodes if "patterncc" in str(node.target)]
    assert calls == ["patterncc.attention.default"]
    torch.testing.assert_close(exported.module()(q, k, v), pc.attention_varlen(q, k, v, layout))


def test_bundles_come_apart_as_they_were() -> None:
    parts = [
        torch.arange(5, dtype=torch.int32),
        torch.zeros(0, 4, 6, dtype=torch.int32),
        torch.tensor([[True, False]]),
        torch.arange(2**40, 2**40 + 3),
        torch.tensor(7, dtype=torch.int32),
    ]
    made = bundle.bundled(parts)
    for got, wanted in zip(bundle.taken_apart(made), parts, strict=True):
        assert torch.equal(got, wanted) and got.dtype == wanted.dtype
        assert got.data_ptr() % 16 == 0 or not got.numel()
    assert all(a is b for a, b in zip(bundle.taken_apart(parts), parts, strict=True))


# --- on a device


def test_lengths_on_a_device_are_not_read() -> None:
    cu = torch.empty(9, dtype=torch.int32, device="meta")
    made = pc.compile_packed(pc.causal() & pc.window(100), cu, total=4096)
    assert isinstance(made, DynamicLayout)
    assert made.device.type == "meta"


def test_what_a_device_does_not_take() -> None:
    cu = torch.empty(3, dtype=torch.int32, device="meta")
    with pytest.raises(pc.PatternValueError, match=r"give total= \(q.shape\[0\]\)"):
        pc.compile_packed(pc.causal(), cu)
    with pytest.raises(pc.PatternValueError, match="cu_seqlens_k or offsets"):
        pc.compile_packed(pc.causal(), cu, cu.clone(), total=8)
    for p in (pc.tree([-1, 0]), [pc.causal(), pc.full()]):
        with pytest.raises(pc.PatternValueError, match="one band for all sequences"):
            pc.compile_packed(p, cu, total=8)
    with pytest.raises(pc.PatternValueError, match="one band for all heads"):
        pc.compile_packed(pc.causal() & (pc.window(4) | pc.sink(2)), cu, total=512)


# --- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pc.compile_packed(pc.causal(), [1, 2]), "cu_seqlens starts with 1, not with 0"),
        (
            lambda: pc.compile_packed(pc.causal(), [0, 5, 3]),
            r"cu_seqlens\[2\] is 3, less than 5, the one before it",
        ),
        (lambda: pc.compile_packed(pc.causal(), []), r"shape \[0\]; cumulated lengths are"),
        (lambda: pc.compile_packed(pc.causal(), [[0, 1]]), r"shape \[1, 2\]"),
        (lambda: pc.compile_packed(pc.causal(), [0.0, 1.5]), "cu_seqlens is float64"),
        (
            lambda: pc.compile_packed(pc.causal(), [0, 5], [0, 5, 9]),
            "cu_seqlens is of 1 sequences, cu_seqlens_k of 2",
        ),
        (
            lambda: pc.compile_packed(pc.causal(), [0, 5], q_offset=[1, 2]),
            r"q_offset has shape \[2\] for 1 sequences",
        ),
        (lambda: pc.compile_packed(pc.causal(), [0, 5], q_offset=[-1]), r"q_offset\[0\] is -1"),
        (
            lambda: pc.compile_packed(pc.causal(), [0, 5], total=4),
            "total = 4, but cu_seqlens ends at 5",
        ),
        (
            lambda: pc.compile_packed([pc.causal()] * 3, [0, 5, 8]),
            "3 patterns for the 2 sequences of cu_seqlens",
        ),
        (lambda: pc.compile_packed(pc.causal(), [0, 2**31]), "past 2147483647"),
        (
            lambda: pc.compile_packed(pc.causal(), [0, 8, 9], q_offset=[0, 2**31 - 1]),
            "the queries of sequence 1 stand up to position 2147483648",
        ),
        (
            lambda: pc.compile_packed(
                [pc.heads([pc.causal()] * 2), pc.heads([pc.full()] * 3)], [0, 5, 8]
            ),
            "one sequence has 2 heads, that of another 3",
        ),
        (lambda: pc.compile_packed(pc.causal(), [0, 5], cu=3), "'cu' is no argument"),
        (lambda: pc.compile(pc.causal(), 8, cu_seqlens=[0, 8]), "pc.compile_packed"),
        (lambda: pc.compile_packed(pc.causal(), [0, 5], block=48), "block 48 is not one of"),
    ],
)
def test_lengths_that_do_not_fit(call: Any, message: str) -> None:
    with pytest.raises(pc.PatternError, match=message):
        call()


@pytest.mark.parametrize("given", [7, None, [pc.causal(), 3], "causal()"])
def test_what_is_no_pattern(given: Any) -> None:
    with pytest.raises(pc.PatternError, match=r"compile_packed: (a|entry 1 of the list is a) "):
        pc.compile_packed(given, [0, 3, 5])


def test_tensors_that_do_not_fit() -> None:
    layout = pc.compile_packed(pc.causal(), [0, 5, 9])
    q = torch.zeros(9, 2, 16)
    for tensors, message in [
        ((q[None], q, q), r"q has shape \(1, 9, 2, 16\); it must be \(total, heads, head dim\)"),
        ((q[:8], q[:8], q[:8]), r"q has shape \(8, 2, 16\).* the layout is for 9 rows and 9 keys"),
        ((q, q, q[:, :1]), r"k has shape \(9, 2, 16\) and v \(9, 1, 16\)"),
        ((q, q[..., :8], q), r"q has shape \(9, 2, 16\) and k \(9, 2, 8\)"),
        ((q, q[:, :1], q[:, :1]), "pass enable_gqa=True"),
        ((3, q, q), "q is a int, not a tensor"),
    ]:
        with pytest.raises(pc.TensorError, match=message):
            pc.attention_varlen(*tensors, layout)  # type: ignore[call-overload]
    with pytest.raises(pc.TensorError, match=r"key_mask is \(1, 9\) for k of shape \(9, 2, 16\)"):
        pc.attention_varlen(q, q, q, layout, key_mask=torch.ones(1, 9, dtype=torch.bool))
    with pytest.raises(pc.TensorError, match=r"give what pc.compile returns"):
        pc.attention_varlen(q, q, q, "layout")  # type: ignore[call-overload]
