"""`attention` and `SparseAttention` on the CPU: gradients, checks, tracing and decode steps."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor

import patterncc as pc
from patterncc.kernels import op, reference, runtime, upload

WINDOW = pc.causal() & pc.window(15)
LAYOUT = pc.compile(WINDOW, 70, block=32)
MASK = torch.from_numpy(pc.lower(WINDOW, 70).dense())


def tensors(
    n: int = 70,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 16,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, heads, n, dim), (2, kv_heads, n, dim), (2, kv_heads, n, dim)]
    return [torch.randn(s, generator=draw, dtype=dtype).requires_grad_() for s in shapes]


def test_output_and_gradients() -> None:
    q, k, v = tensors()
    out, lse = pc.attention(q, k, v, LAYOUT, enable_gqa=True, return_lse=True)
    exact, exact_lse = reference.attention(q, k, v, MASK)
    torch.testing.assert_close(out, exact.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, exact_lse.float(), rtol=1e-4, atol=1e-5)
    assert lse.dtype == torch.float32 and not lse.requires_grad
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, (q, k, v), grad)
    expected = torch.autograd.grad(exact, (q, k, v), grad.double())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_by_differences() -> None:
    layout = pc.compile(pc.window(2) & ~pc.prefix(3), 6, block=16)
    inputs = [
        x.detach()[:1, :, :6, :4].clone().requires_grad_() for x in tensors(dtype=torch.float64)
    ]
    for backend in ("cpu", "reference"):
        torch.autograd.gradcheck(
            lambda q, k, v, way=backend: pc.attention(
                q, k, v, layout, enable_gqa=True, backend=way
            ),
            inputs,
        )


def test_scale_and_reference_backend() -> None:
    q, k, v = tensors()
    for scale in (0.3, None):
        a, b = (
            pc.attention(q, k, v, LAYOUT, scale=scale, enable_gqa=True, backend=backend)
            for backend in ("cpu", "reference")
        )
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_rows_that_read_nothing() -> None:
    layout = pc.compile(pc.window(2) & ~pc.prefix(30), 70, block=16)
    q, k, v = tensors()
    for backend in ("cpu", "reference"):
        out, lse = pc.attention(q, k, v, layout, enable_gqa=True, return_lse=True, backend=backend)
        assert (out[:, :, :28] == 0).all() and (lse[:, :, :28] == -torch.inf).all()
        grads = torch.autograd.grad(out.sum(), (q, k, v))
        assert (grads[0][:, :, :28] == 0).all()
        assert all(g.isfinite().all() for g in grads)


@torch.no_grad()
def test_positions_are_absolute() -> None:
    layout = pc.compile(WINDOW, 30, q_offset=40, block=16)
    q, k, v = tensors()
    whole = pc.attention(q, k, v, LAYOUT, enable_gqa=True)
    step = pc.attention(q[:, :, 50:52], k, v, layout, enable_gqa=True, position=50)
    torch.testing.assert_close(step, whole[:, :, 50:52], rtol=1e-4, atol=1e-5)
    each = torch.tensor([45, 60], dtype=torch.int32)
    rows = torch.stack([q[0, :, 45:46], q[1, :, 60:61]])
    for backend in ("cpu", "reference"):
        step = pc.attention(rows, k, v, layout, enable_gqa=True, position=each, backend=backend)
        for b in range(2):
            row = whole[b, :, each[b] : each[b] + 1]
            torch.testing.assert_close(step[b], row, rtol=1e-4, atol=1e-5)


def test_opcheck() -> None:
    assert op.attention is not None  # its import registers the ops
    q, k, v = tensors()
    prepared, plan, _ = upload.prepared(LAYOUT, q.device, "auto")
    torch.library.opcheck(torch.ops.patterncc.attention.default, (q, k, v, prepared, plan, 0.2))
    out, lse = torch.ops.patterncc.attention(q, k, v, prepared, plan, 0.2)
    args = [x.detach() for x in (torch.ones_like(out), q, k, v, out, lse)]
    torch.library.opcheck(
        torch.ops.patterncc.attention_backward.default, (*args, prepared, plan, 0.2)
    )
    step = [x.detach() for x in (q[:, :, :1], k, v)]
    position = torch.tensor([3, 5], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.patterncc.decode.default, (*step, prepared, plan, 0.2, position)
    )


def test_compiles_as_one_graph() -> None:
    q, k, v = tensors()
    other = pc.compile(pc.causal(), 70, block=32)

    def layers(q: Tensor, k: Tensor, v: Tensor, layout: pc.Layout) -> Tensor:
        return pc.attention(q * 2, k, v, layout, enable_gqa=True).sin()

    traced = torch.compile(layers, fullgraph=True, backend="aot_eager")
    for layout in (LAYOUT, other, LAYOUT):  # a graph belongs to its layout
        a, b = traced(q, k, v, layout), layers(q, k, v, layout)
        torch.testing.assert_close(a, b)
        grads = [torch.autograd.grad(x.sum(), (q, k, v)) for x in (a, b)]
        torch.testing.assert_close(*grads)


def test_exports_as_one_node() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return pc.attention(q, k, v, LAYOUT, enable_gqa=True)

    inputs = tuple(x.detach() for x in tensors())
    program = torch.export.export(Model(), inputs)
    calls = [
        n for n in program.graph.nodes if n.op == "call_function" and "patterncc" in str(n.target)
    ]
    assert len(calls) == 1
    torch.testing.assert_close(program.module()(*inputs), Model()(*inputs))


BAD = {
    "no tensor": (lambda q, k, v: ([1], k, v), "q is a list, not a tensor"),
    "3 axes": (lambda q, k, v: (q[0], k, v), r"q has shape \(4, 70, 16\); it must be \(batch"),
    "dtype": (lambda q, k, v: (q, k.half(), v), "q is torch.float32 on cpu, k is torch.float16 on"),
    "device": (lambda q, k, v: (q, k, v.to("meta")), "v is torch.float32 on meta"),
    "k and v": (lambda q, k, v: (q, k, v[:, :1]), r"k has shape \(2, 2, 70, 16\) and v \(2, 1, 70"),
    "head dim": (lambda q, k, v: (q[..., :8], k, v), r"q has shape \(2, 4, 70, 8\) and k"),
    "batch": (lambda q, k, v: (q[:1], k, v), "batch and head dim must agree"),
    "heads": (lambda q, k, v: (q[:, :3], k, v), "q has 3 heads and k 2; q's must be a multiple"),
    "queries": (
        lambda q, k, v: (q[:, :, :50], k, v),
        r"q has shape \(2, 4, 50, 16\) .* the layout is for 70 queries and 70 keys; "
        "compile one for n=50, n_k=70, or give position=",
    ),
    "keys": (lambda q, k, v: (q, k[:, :, :50], v[:, :, :50]), "compile one for n=70, n_k=50"),
    "integers": (lambda q, k, v: (q.int(), k.int(), v.int()), "q is torch.int32; the cpu backend"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tensors(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(pc.TensorError, match=message):
        pc.attention(*change(*(x.detach() for x in tensors())), LAYOUT, enable_gqa=True)  # type: ignore[no-untyped-call]


def test_other_bad_arguments() -> None:
    q, k, v = tensors()
    with pytest.raises(pc.TensorError, match="pass enable_gqa=True if groups of 2 query heads"):
        pc.attention(q, k, v, LAYOUT)
    with pytest.raises(pc.TensorError, match=r"the layout is a tuple; give what"):
        pc.attention(q, k, v, (LAYOUT,), enable_gqa=True)  # type: ignore[call-overload]
    per_head = pc.compile(pc.heads([WINDOW, pc.causal()]), 70)
    with pytest.raises(pc.TensorError, match=r"q has 4 heads \(shape .*\), the layout is for 2"):
        pc.attention(q, k, v, per_head, enable_gqa=True)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(pc.TensorError, match="scale must be positive and finite"):
            pc.attention(q, k, v, LAYOUT, scale=scale, enable_gqa=True)
    for position in (-1, 68, 70):
        with pytest.raises(pc.TensorError, match=r"outside the layout's queries \[0, 70\)"):
            pc.attention(q[:, :, :3], k, v, LAYOUT, enable_gqa=True, position=position)
    for wrong in (1.5, True, torch.tensor([1.0, 2.0]), torch.tensor([1, 2, 3])):
        with pytest.raises(pc.TensorError, match="position"):
            pc.attention(q[:, :, :3], k, v, LAYOUT, enable_gqa=True, position=wrong)  # type: ignore[call-overload]


def test_backends_are_picked_and_never_dense_by_themselves() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert runtime.pick_backend("auto", cpu).backend == "cpu"
    assert runtime.pick_backend("auto", cuda).backend == "triton"
    assert runtime.pick_backend("reference", cuda).backend == "reference"
    for requested, device, message in [
        ("triton", cpu, "needs CUDA tensors.*TRITON_INTERPRET=1 before Python starts"),
        ("cpu", cuda, "takes CPU tensors; these are on cuda:0"),
        ("auto", torch.device("meta"), "no backend for tensors on meta"),
        ("tritn", cpu, "no backend 'tritn'; did you mean 'triton'"),
    ]:
        with pytest.raises(pc.BackendError, match=message):
            runtime.pick_backend(requested, device)
    with pytest.raises(pc.SizeError, match=r'backend="reference" is dense'):
        long = pc.compile(WINDOW, 5000)
        pc.attention(*tensors(5000, 1, 1), long, backend="reference")


def test_the_pick_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    upload._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="patterncc"):
        for _ in range(2):
            pc.attention(*tensors(), pc.compile(WINDOW, 70), enable_gqa=True)
    said = (
        f"attention on cpu runs on the cpu backend: tensors are on the CPU; {runtime.cpu_kernels()}"
    )
    assert [m for m in caplog.messages if "backend" in m] == [said]


# --- the module


def test_module_is_attention_between_projections() -> None:
    torch.manual_seed(0)
    m = pc.SparseAttention(48, heads=4, kv_heads=2, pattern=WINDOW)
    x = torch.randn(2, 70, 48, requires_grad=True)
    q, k, v = (p(x).reshape(2, 70, -1, 12).transpose(1, 2) for p in (m.q, m.k, m.v))
    dense, _ = reference.attention(q, k, v, MASK)
    expected = m.out(dense.float().transpose(1, 2).flatten(2))
    torch.testing.assert_close(m(x), expected, rtol=1e-4, atol=1e-5)
    m(x).sum().backward()
    assert x.grad is not None and all(p.grad is not None for p in m.parameters())


def test_module_state_and_copies() -> None:
    m = pc.SparseAttention(32, 4, pattern=pc.heads([WINDOW] * 3 + [pc.causal()]), bias=True)
    x = torch.randn(1, 33, 32)
    out = m(x)
    assert set(m.state_dict()) == {
        f"{p}.{w}" for p in ("q", "k", "v", "out") for w in ("weight", "bias")
    }
    assert torch.equal(copy.deepcopy(m)(x), out)
    assert m.layout(33) is m.layout(33)
    assert "heads=4" in repr(m)


def test_module_compiles_for_several_lengths() -> None:
    m = pc.SparseAttention(32, 2, pattern=WINDOW)
    traced = torch.compile(m, fullgraph=True, backend="aot_eager")
    for n in (20, 33, 40, 20):
        x = torch.randn(1, n, 32)
        torch.testing.assert_close(traced(x), m(x))


def test_module_decodes_with_a_cache() -> None:
    m = pc.SparseAttention(32, 4, 2, pattern=WINDOW)
    x = torch.randn(2, 40, 32)
    with torch.no_grad():
        whole, cache = m(x), m.new_cache(2, 64)
        steps = [m(x[:, :25], cache=cache, position=0)]
        steps += [m(x[:, i : i + 1], cache=cache, position=i) for i in range(25, 40)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(pc.TensorError, match=r"keys of shape .* at position 60 do not fit a cache"):
        m(x[:, :5], cache=cache, position=60)
    with pytest.raises(pc.TensorError, match="a cache needs the position"):
        m(x, cache=cache)
    with pytest.raises(pc.TensorError, match="position needs a cache"):
        m(x, position=3)


def test_module_refuses() -> None:
    with pytest.raises(pc.PatternValueError, match="dim 30 is not a multiple of 4"):
        pc.SparseAttention(30, 4, pattern=WINDOW)
    with pytest.raises(pc.PatternValueError, match="heads 4 is not a multiple of 3"):
        pc.SparseAttention(32, 4, 3, WINDOW)
    with pytest.raises(pc.PatternValueError, match="4 heads, but a pattern for 2"):
        pc.SparseAttention(32, 4, pattern=pc.heads([WINDOW, WINDOW]))
    with pytest.raises(pc.PatternError, match="'causal' is not a pattern"):
        pc.SparseAttention(32, 4, pattern="causal")  # type: ignore[arg-type]
    with pytest.raises(pc.TensorError, match=r"x has shape \(1, 5, 16\); it must be .* 32\)"):
        pc.SparseAttention(32, 4, pattern=WINDOW)(torch.ones(1, 5, 16))


def test_a_cache_is_refused_where_it_would_not_see_the_same_edges() -> None:
    x = torch.randn(1, 8, 32)
    for pattern, message in (
        (pc.causal() & pc.random_blocks(2, block=16), "depend on the length.*past=True"),
        (pc.causal() & pc.expander(2, block=16), "depend on the length"),
        (pc.window(3, 3), "reads later positions"),
    ):
        m = pc.SparseAttention(32, 2, 2, pattern)
        with torch.no_grad(), pytest.raises(pc.PatternValueError, match=message):
            m(x, cache=m.new_cache(1, 64), position=0)
    grown = pc.SparseAttention(32, 2, 2, pc.causal() & pc.random_blocks(2, block=16, past=True))
    with torch.no_grad():
        whole = grown(torch.cat([x] * 4, dim=1))
        part = grown(torch.cat([x] * 4, dim=1), cache=grown.new_cache(1, 256), position=0)
    assert (whole - part).abs().max() < 1e-5


def test_a_decode_step_has_no_gradient_and_says_so() -> None:
    m = pc.SparseAttention(32, 2, 2, pc.causal())
    with pytest.raises(pc.TensorError, match="no gradient; run it under"):
        m(torch.randn(1, 4, 32), cache=m.new_cache(1, 16), position=0)


def test_a_pattern_file_is_told_apart_from_its_stack() -> None:
    file = pc.loads("edges:\n  a: causal()\n")
    with pytest.raises(pc.PatternError, match=r"a PatternFile is not a pattern.*pass its \.stack"):
        pc.compile(file, 64)  # type: ignore[call-overload]
    with pytest.raises(pc.PatternError, match=r"not a PatternFile; pass its \.stack"):
        pc.analyze(file, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients_of_float64_are_as_good_as_float64(backend: str) -> None:
    layout = pc.compile(pc.window(50, 50), 300, block=64)
    mask = torch.from_numpy(layout.dense())
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, 300, 16, dtype=torch.float64, requires_grad=True) for _ in "qkv"]
    grad = torch.randn(1, 2, 300, 16, dtype=torch.float64)
    ours = pc.attention(*tensors, layout, backend=backend)
    dense = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask)
    for a, b in zip(*(torch.autograd.grad(x, tensors, grad) for x in (ours, dense)), strict=True):
        assert (a - b).abs().max() < 1e-13
