"""Options of a score on the CPU and by the reference: values, gradients, checks, tracing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_score import (
    OPTIONS,
    Sample,
    hidden_keys,
    poisoned,
    sample_of,
    without_compiler,
)
from strategies import patterns
from test_attention_terms import example
from torch import Tensor

import patterncc as pc
from patterncc.kernels import op, reference, upload
from patterncc.kernels.cpu import run as torch_way
from patterncc.kernels.cpu import scored, step
from patterncc.kernels.cpu.cache import prepared
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec
from patterncc.kernels.unread import unread_keys
from patterncc.zones import Frame

WINDOW = pc.compile(pc.causal() & pc.window(20), 70, block=16)
EACH = [(name,) for name in OPTIONS]
SOME = [*EACH, ("softcap", "sinks"), ("alibi_slopes", "key_mask"), OPTIONS]


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without a compiler."""
    with without_compiler(monkeypatch):
        yield


@st.composite
def samples(draw: st.DrawFn, dtype: torch.dtype) -> Sample:
    """Generated patterns, one or one a head, in any frame, with any options."""
    n, n_k = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    frame = {"q_offset": draw(st.integers(0, 20)), "k_offset": draw(st.integers(0, 9))}
    heads = draw(st.sampled_from([1, 2, 4]))
    several = [draw(patterns()) for _ in range(heads)]
    pattern = several[0] if heads == 1 else pc.heads(several)
    block = draw(st.sampled_from([(16, 16), (32, 16), (16, 32)]))
    layout = pc.compile(pattern, n, n_k=n_k, block=block, **frame)
    masks = [pc.lower(p, n, n_k=n_k, head=h, **frame).dense() for h, p in enumerate(several)]
    mask = torch.from_numpy(masks[0] if heads == 1 else np.stack(masks))
    names = draw(st.sets(st.sampled_from(OPTIONS), min_size=1))
    sizes = {"heads": 4 if heads == 1 else heads, "kv_heads": draw(st.sampled_from([1, 2]))}
    sizes["kv_heads"] = math.gcd(sizes["kv_heads"], sizes["heads"])
    return Sample(layout, mask, dict.fromkeys(names), dtype=dtype, dim=4, **sizes)


@settings(max_examples=15)
@given(samples(torch.float64), st.sampled_from(["cpu", "reference"]))
def test_float64_is_exact(sample: Sample, backend: str) -> None:
    sample.check(backend, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("names", [("softcap",), OPTIONS])
def test_float32_as_it_runs_here(names: tuple[str, ...]) -> None:
    sample_of(WINDOW, *names).check("cpu", rtol=2e-4, atol=5e-5)


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize("names", SOME)
def test_float32_without_a_compiler(names: tuple[str, ...]) -> None:
    sample_of(WINDOW, *names).check("cpu", rtol=2e-4, atol=5e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("names", SOME)
def test_terms_know_where_tokens_stand(names: tuple[str, ...], backend: str) -> None:
    """Orders move tokens; distances stay, and a sink joins once however many terms there are."""
    for heads in (1, 2):
        layout, mask = example(Frame(40, 50, 10, 3), heads=heads, density=0.4)
        sample = Sample(layout, mask, dict.fromkeys(names), heads=2, dtype=torch.float64)
        sample.check(backend, rtol=1e-8, atol=1e-8)


def test_the_reference_says_what_the_words_say() -> None:
    """Row by row and pair by pair, in Python's numbers."""
    sample = sample_of(
        pc.compile(pc.window(3), 6, q_offset=2, block=16), dtype=torch.float64, dim=3
    )
    out, lse = (x.detach() for x in sample.run("reference"))
    sample.q, sample.k, sample.v = (x.detach() for x in (sample.q, sample.k, sample.v))
    sample.options = {
        n: x.detach() if isinstance(x, Tensor) else x for n, x in sample.options.items()
    }
    get, group = sample.options, 2
    for b, h, i in itertools.product(range(2), range(4), range(6)):
        scores = {}
        for j in range(sample.layout.n_k):
            if sample.mask[i, j] and get["key_mask"][b, j]:
                product = float(sample.q[b, h, i] @ sample.k[b, h // group, j]) / math.sqrt(3)
                x = 1.5 * math.tanh(product / 1.5)
                apart = j - (i + 2)
                x -= float(get["alibi_slopes"][h]) * abs(apart)
                scores[j] = x + float(get["relative_bias"][h, max(-7, min(7, apart)) + 7])
        total = sum(map(math.exp, scores.values())) + math.exp(get["sinks"][h])
        assert float(lse[b, h, i]) == pytest.approx(math.log(total))
        value = sum(
            (math.exp(x) / total * sample.v[b, h // group, j] for j, x in scores.items()),
            torch.zeros(3, dtype=torch.float64),
        )
        torch.testing.assert_close(out[b, h, i], value)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("names", [*EACH, OPTIONS])
def test_gradients_by_differences(names: tuple[str, ...], backend: str) -> None:
    layout = pc.compile(pc.window(2) & ~pc.prefix(2), 5, block=16)
    sample = sample_of(layout, *names, dtype=torch.float64, dim=3, batch=1)
    slots = [n for n in ("alibi_slopes", "relative_bias", "sinks") if n in names]

    def of(q: Tensor, k: Tensor, v: Tensor, *given: Tensor) -> Tensor:
        options = sample.options | dict(zip(slots, given, strict=True))
        return pc.attention(q, k, v, layout, enable_gqa=True, backend=backend, **options)

    torch.autograd.gradcheck(of, sample.leaves)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_that_read_nothing(backend: str) -> None:
    """Output 0, LSE that of the sink or -inf, gradients 0."""
    layout = pc.compile(pc.window(2) & ~pc.prefix(30), 70, block=16)
    for names in SOME:
        sample = sample_of(layout, *names, dtype=torch.float64)
        out, lse = sample.run(backend)
        empty = torch.tensor(-torch.inf)
        if "sinks" in names:
            empty = sample.options["sinks"].detach()[:, None].expand(4, 28)
        assert (out[:, :, :28] == 0).all() and (lse[:, :, :28] == empty.float()).all()
        grads = torch.autograd.grad(out.sum(), sample.leaves)
        assert (grads[0][:, :, :28] == 0).all() and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_layouts_without_keys(backend: str) -> None:
    layout = pc.compile(pc.full(), 3, n_k=0, block=16)
    sample = Sample(layout, torch.zeros(3, 0, dtype=torch.bool))
    out, lse = sample.run(backend)
    assert (out == 0).all()
    torch.testing.assert_close(lse, sample.options["sinks"].detach()[:, None].expand(2, 4, 3))
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), sample.leaves))


@settings(max_examples=60)
@given(patterns(), st.integers(1, 50), st.integers(1, 50), st.sampled_from([16, (32, 16)]))
def test_unread_keys(pattern: pc.Pattern, n: int, n_k: int, block: int | tuple[int, int]) -> None:
    layout = pc.compile(pc.heads([pattern, pc.window(1)]), n, n_k=n_k, q_offset=3, block=block)
    nobody = ~layout.dense().reshape(-1, n, n_k).any(axis=1)
    found = unread_keys(layout)
    assert found.size or not nobody.any()
    if found.size:
        assert np.array_equal(
            np.broadcast_to(found[0], (2, n_k)), np.broadcast_to(nobody, (2, n_k))
        )


def test_unread_keys_of_terms_and_sequences() -> None:
    layout, mask = example(Frame(40, 60), heads=2, density=0.02)
    assert np.array_equal(unread_keys(layout)[0], ~mask.numpy().any(axis=1))
    each = pc.compile(pc.causal(), 40, key_lengths=[13, 40], block=16)
    assert unread_keys(each)[:, 0].sum(1).tolist() == [27, 0]


def anything_in_keys_that_nobody_reads(
    dtype: torch.dtype,
) -> Iterator[tuple[Sample, dict[str, bool]]]:
    """Layouts with such keys, carried or not: one mask, one a head, orders, one a sequence."""
    heads = pc.heads([pc.causal()] * 3 + [pc.window(2)])
    window = pc.compile(pc.window(3) & ~pc.sink(9), 50, n_k=70, block=32)
    by_head = pc.compile(heads, 30, n_k=70, q_offset=20, block=16)
    by_sequence = pc.compile(heads, 40, key_lengths=[13, 34], block=16)
    several, mask = example(Frame(40, 60), density=0.02)
    for layout, names in ((window, ("softcap",)), (WINDOW, ("key_mask",)), (by_head, OPTIONS)):
        yield sample_of(layout, *names, dtype=dtype), {}
    for carried in ({}, {"carried": True}):
        yield sample_of(by_sequence, dtype=dtype), carried
        yield Sample(several, mask, dtype=dtype), carried


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *(("cpu", x) for x in (torch.float32, torch.bfloat16, torch.float16)),
        ("without a compiler", torch.float32),
        ("without a compiler", torch.bfloat16),
        ("reference", torch.float64),
    ],
)
def test_keys_that_nobody_reads_may_hold_anything(
    backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output, LSE and gradients are the same bits as with clean keys, theirs are 0."""
    without = backend == "without a compiler"
    with without_compiler(monkeypatch) if without else nullcontext():
        for sample, more in anything_in_keys_that_nobody_reads(dtype):
            hidden = hidden_keys(sample)
            assert hidden.any()
            results = []
            for each in (sample, poisoned(sample, hidden)):
                out, lse = each.run("cpu" if without else backend, **more)
                results.append([out, lse, *torch.autograd.grad(out, each.leaves, each.grad)])
            for clean, bad in zip(*results, strict=True):
                assert torch.equal(clean, bad) and not bad.isnan().any()
            assert all((g[hidden] == 0).all() for g in results[1][3:5])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_masks_of_sequences(backend: str) -> None:
    """Options beside masks that vary from sequence to sequence, carried or not."""
    heads = pc.heads([pc.causal()] * 3 + [pc.window(2)])
    for pattern in (pc.causal(), heads):
        layout = pc.compile(pattern, 30, n_k=40, q_offset=5, key_lengths=[13, 40], block=16)
        sample = sample_of(layout, dtype=torch.float64)
        for carried in (False, True):
            sample.check(backend, rtol=1e-8, atol=1e-8, carried=carried)


def test_gradients_of_options_are_made_only_where_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def spy(*args: object, **more: object) -> object:
        made = reference.backward(*args, **more)  # type: ignore[arg-type]
        seen.append([made.slopes is not None, made.bias is not None])
        return made

    sample = sample_of(WINDOW)
    way = type("Way", (), {"forward": reference.forward, "backward": staticmethod(spy)})
    monkeypatch.setattr(op, "way", lambda _spec: way)
    for wanted in ([True, False], [False, True], [False, False]):
        sample.options["alibi_slopes"].requires_grad_(wanted[0])
        sample.options["relative_bias"].requires_grad_(wanted[1])
        out, _ = sample.run("reference")
        out.sum().backward()
        assert seen.pop() == wanted
        assert (sample.options["alibi_slopes"].grad is not None) or not wanted[0]


def test_temporaries_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long rows and columns are, the scores of a piece fit."""
    monkeypatch.setattr(scored, "TEMPORARY", 2**18)
    assert step.TEMPORARY == 2**23
    most = 2**18 // (4 * scored.ALIVE)
    for pattern in (pc.full(), pc.causal() & (pc.window(40) | pc.global_tokens([3, 400]))):
        layout = pc.compile(pattern, 600, block=64)
        sample = sample_of(layout, "softcap", dim=8)
        tensors, text, _ = upload.prepared(layout, sample.q.device, "cpu")
        spec = Spec.parse(text)
        plan = prepared(tensors[:-1], spec, 0)
        q = sample.q.view(4, 2, 600, 8)
        options = scored.Options.of(sample.score(), spec, 2, slice(0, 2), slice(0, 2), 2)
        sizes = [
            p.queries(q).shape[:-1].numel() * p.keys(sample.k.view(4, 600, 8)).shape[2]
            for p in scored.pieces(plan, plan.forward, q, options)
        ]
        assert max(sizes) <= most
        out, _ = torch_way.forward(
            *(sample.q, sample.k, sample.v, tensors[:-1], spec, sample.score())
        )
        torch.testing.assert_close(out.double(), sample.exact()[0], rtol=1e-4, atol=2e-5)


def test_opcheck() -> None:
    sample = sample_of(WINDOW, dtype=torch.float64)
    tensors, plan, _ = upload.prepared(WINDOW, sample.q.device, "cpu")
    o = sample.options
    more = (0.2, 1.5, o["alibi_slopes"], o["relative_bias"], o["sinks"], o["key_mask"], True)
    given = (sample.q, sample.k, sample.v)
    torch.library.opcheck(torch.ops.patterncc.attention.default, (*given, tensors, plan, *more))
    out, lse = torch.ops.patterncc.attention(*given, tensors, plan, *more)
    args = [x.detach() for x in (sample.grad, *given, out, lse)]
    more = tuple(x.detach() if isinstance(x, Tensor) else x for x in more)
    for asked in ((False, True, False), (True, True, True)):
        torch.library.opcheck(
            torch.ops.patterncc.attention_backward.default,
            (*args, tensors, plan, *more, *asked),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("names", [("softcap",), OPTIONS])
def test_compiles_as_one_graph(names: tuple[str, ...]) -> None:
    sample = sample_of(WINDOW, *names, dtype=torch.float64)

    def layer(*given: Tensor) -> Tensor:
        q, k, v, *options = given
        named = dict(zip(sorted(tensors), options, strict=True))
        rest = {n: x for n, x in sample.options.items() if n not in tensors}
        return pc.attention(q * 2, k, v, WINDOW, enable_gqa=True, **rest, **named).sin()

    tensors = {n: x for n, x in sample.options.items() if isinstance(x, Tensor)}
    given = (sample.q, sample.k, sample.v, *(tensors[n] for n in sorted(tensors)))
    traced = torch.compile(layer, fullgraph=True, backend="aot_eager")
    a, b = traced(*given), layer(*given)
    torch.testing.assert_close(a, b)
    grads = [torch.autograd.grad(x.sum(), sample.leaves) for x in (a, b)]
    torch.testing.assert_close(*grads)
    torch._dynamo.reset()


def test_carried_layouts_trace_one_graph() -> None:
    """However long sequences are and, where they share a mask, however many; with every option."""
    traced = 0

    def compiler(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal traced
        traced += 1
        return graph

    def layer(layout: object, *given: Tensor) -> Tensor:
        q, k, v, *options = given
        named = dict(zip(sorted(tensors), options, strict=True))
        return pc.attention(q * 2, k, v, layout, enable_gqa=True, softcap=1.5, **named).sin()

    once = torch.compile(layer, fullgraph=True, backend=compiler, dynamic=True)
    of_own = [(n, {"key_lengths": [n // 2, n - 3]}, 2) for n in (40, 70, 130)]
    shared = [(n, {}, batch) for n, batch in ((40, 3), (70, 5), (130, 7))]
    for n, lengths, batch in (*of_own, *shared):
        sample = sample_of(pc.compile(pc.causal(), n, block=16, **lengths), batch=batch)
        tensors = {x: y for x, y in sample.options.items() if isinstance(y, Tensor)}
        given = (sample.q, sample.k, sample.v, *(tensors[x] for x in sorted(tensors)))
        layout = pc.carry(sample.layout)
        results = [f(layout, *given) for f in (once, layer)]
        grads = [torch.autograd.grad(x.sum(), sample.leaves) for x in results]
        torch.testing.assert_close([results[0], *grads[0]], [results[1], *grads[1]])
        assert traced == (1 if lengths else 2)
    torch._dynamo.reset()


def test_exports_as_one_node() -> None:
    sample = sample_of(WINDOW, dtype=torch.float64)
    named = {n: x.detach() for n, x in sample.options.items() if isinstance(x, Tensor)}

    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Tensor]) -> Tensor:
            return pc.attention(q, k, v, WINDOW, enable_gqa=True, softcap=1.5, **options)

    inputs = (*(x.detach() for x in (sample.q, sample.k, sample.v)), named)
    program = torch.export.export(Model(), inputs)
    calls = [
        n for n in program.graph.nodes if n.op == "call_function" and "patterncc" in str(n.target)
    ]
    assert len(calls) == 1
    torch.testing.assert_close(program.module()(*inputs), Model()(*inputs))


Q, K = torch.zeros(2, 4, 70, 16), torch.zeros(2, 2, 70, 16)
WRONG: list[tuple[dict[str, object], str]] = [
    ({"softcap": 0.0}, r"softcap must be positive and finite, not 0\.0"),
    ({"softcap": -3}, r"softcap must be positive and finite, not -3\.0"),
    ({"softcap": True}, "softcap must be a number, not True"),
    ({"softcap": torch.ones(1)}, "softcap must be a number"),
    ({"alibi_slopes": [1.0] * 4}, "alibi_slopes is a list, not a tensor"),
    (
        {"alibi_slopes": torch.ones(2)},
        r"alibi_slopes has shape \(2\), q \(2, 4, 70, 16\) has 4 heads",
    ),
    ({"alibi_slopes": torch.ones(4, 1)}, r"alibi_slopes has shape \(4, 1\)"),
    ({"alibi_slopes": torch.ones(4, dtype=torch.int32)}, "torch.int32 on cpu, q is torch.float32"),
    ({"alibi_slopes": torch.ones(4, device="meta")}, "on meta, q is torch.float32 on cpu"),
    ({"sinks": torch.ones(5)}, r"sinks has shape \(5\), q .* has 4 heads; give one number a head"),
    ({"relative_bias": torch.ones(4, 6)}, r"relative_bias has shape \(4, 6\).*2 R \+ 1"),
    ({"relative_bias": torch.ones(4, 0)}, r"relative_bias has shape \(4, 0\)"),
    ({"relative_bias": torch.ones(2, 7)}, r"relative_bias has shape \(2, 7\), q .* has 4 heads"),
    ({"relative_bias": torch.ones(7)}, r"relative_bias has shape \(7\)"),
    ({"key_mask": torch.ones(2, 70)}, "key_mask is torch.float32 on cpu.*give bool"),
    ({"key_mask": torch.ones(1, 70).bool()}, r"key_mask has shape \(1, 70\), k .*\(2, 70\)"),
    ({"key_mask": torch.ones(2, 71).bool()}, r"key_mask has shape \(2, 71\), k .*\(2, 70\)"),
    ({"key_mask": "all"}, "key_mask is a str, not a tensor"),
    ({"deterministic": 1}, "deterministic must be True or False, not 1"),
    ({"block_table": torch.zeros(2, 1)}, "block_table describes the cache of a decode step"),
    ({"key_lengths": torch.zeros(2)}, "key_lengths describes the cache of a decode step"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(pc.TensorError, match=message):
        pc.attention(Q, K, K, WINDOW, enable_gqa=True, **options)  # type: ignore[call-overload]


def test_options_come_in_any_precision() -> None:
    """bf16 parameters of a bf16 model are widened, and their gradients narrowed."""
    sample = sample_of(WINDOW, "sinks", "alibi_slopes", dtype=torch.bfloat16)
    narrow = {n: x.detach().bfloat16().requires_grad_() for n, x in sample.options.items()}
    out, _ = sample.run(**narrow)
    grads = torch.autograd.grad(out.sum(), list(narrow.values()))
    assert all(g.dtype == torch.bfloat16 and g.abs().sum() > 0 for g in grads)


def test_the_module_passes_options_on() -> None:
    torch.manual_seed(0)
    m = pc.SparseAttention(32, heads=4, kv_heads=2, pattern=pc.causal() & pc.window(5)).double()
    x, mask = torch.randn(2, 40, 32, dtype=torch.float64), torch.rand(2, 40) < 0.8
    options = {"softcap": 2.0, "sinks": torch.randn(4), "key_mask": mask}
    plain, own, given = m(x), m(x, **options), m(x, layout=m.layout(40), **options)
    torch.testing.assert_close(own, given)
    assert not torch.allclose(own, plain)


def test_plain_scores() -> None:
    one = torch.ones(1)
    assert Score(1.0).plain and Score(1.0, sinks=one).products
    assert not Score(1.0, sinks=one).plain and not Score(1.0, softcap=2.0).products
    assert not Score(1.0, keys=one.bool()[None]).products
