"""The registered ops refuse tensors and texts that do not fit: kernels go by addresses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import patterncc as pc
from patterncc.kernels import op, upload
from patterncc.kernels.fits import Carried, check_call, planned
from patterncc.kernels.reference import attention as reference
from patterncc.kernels.score import Score
from patterncc.kernels.terms import Terms

CPU = torch.device("cpu")
LAYOUT = pc.compile(pc.causal() & pc.window(9), 70, block=16)
HEADS = pc.compile(pc.heads([pc.causal(), pc.window(9), pc.causal(), pc.window(3)]), 70, block=16)
LONGER = pc.compile(pc.causal() & pc.window(9), 90, block=16)
DILATED = pc.compile(pc.causal() & pc.dilated(4, 3), 70, block=16)


def given(of: pc.Layout = LAYOUT, **changes: Any) -> dict[str, Any]:
    """Arguments of the op for 2 sequences, 4 heads and 2 key heads, with changes."""
    tensors, plan, _ = upload.prepared(of, CPU, "auto")
    q, k, v = torch.ones(2, 4, 70, 8), torch.ones(2, 2, 70, 8), torch.ones(2, 2, 70, 8)
    whole = {"q": q, "k": k, "v": v, "layout": tensors, "plan": plan, "scale": 0.3}
    return {**whole, **changes}


def plan_of(layout: pc.Layout) -> str:
    return upload.prepared(layout, CPU, "auto")[1]


def tables_of(layout: pc.Layout, change: Callable[[list[Tensor]], None]) -> list[Tensor]:
    tensors = list(upload.prepared(layout, CPU, "auto")[0])
    change(tensors)
    return tensors


def longer(tensors: list[Tensor]) -> None:
    """The last run reaches past the layout's tiles."""
    tensors[2] = tensors[2].clone()
    tensors[2][-1, 1] = 1000


def beyond(tensors: list[Tensor]) -> None:
    """A line ends past the runs."""
    tensors[1] = tensors[1].clone()
    tensors[1][-2] = 10**6


def masks(tensors: list[Tensor]) -> None:
    """A run names a mask that is not there."""
    tensors[4] = tensors[4].clone()
    tensors[4][0, 2] = 99


X = torch.ones
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "fewer rows": ({"q": X(2, 4, 60, 8)}, r"\(2, 4, 60, 8\).* 70 queries"),
    "three axes": ({"q": X(4, 70, 8)}, "3 axes"),
    "fewer keys": ({"k": X(2, 2, 60, 8), "v": X(2, 2, 60, 8)}, r"\(2, 2, 60, 8\).* 70 keys"),
    "more keys": ({"k": X(2, 2, 80, 8), "v": X(2, 2, 80, 8)}, r"\(2, 2, 80, 8\).* 70 keys"),
    "short values": ({"v": X(2, 2, 60, 8)}, r"v \(2, 2, 60, 8\)"),
    "key heads": ({"k": X(2, 3, 70, 8), "v": X(2, 3, 70, 8)}, "4 heads and k 3"),
    "dtype": ({"k": X(2, 2, 70, 8).half()}, "k is torch.float16"),
    "batch": ({"k": X(1, 2, 70, 8), "v": X(1, 2, 70, 8)}, "batches must agree"),
    "sparse": ({"q": X(2, 4, 70, 8).to_sparse()}, "it must be dense"),
    "slopes": ({"slopes": X(1)}, r"slopes is .* \(1,\)"),
    "bias": ({"bias": X(1, 5)}, r"bias is .* \(1, 5\)"),
    "even bias": ({"bias": X(4, 4)}, r"bias is .* \(4, 4\)"),
    "sinks": ({"sinks": X(4).double()}, "sinks is torch.float64"),
    "keys": ({"keys": X(1, 5).bool()}, r"keys is .* \(1, 5\)"),
    "few tensors": ({"layout": tables_of(LAYOUT, lambda t: t.pop(0) and None)}, "6 tensors"),
    "no tensors": ({"layout": [X(1).bool()]}, "last tensor"),
    "no bundle": ({"layout": [X(2, 6).long(), X(9, dtype=torch.uint8)]}, "not those of a layout"),
    "other text": ({"plan": plan_of(HEADS)}, "not those of its plan text"),
    "other length": ({"plan": plan_of(LONGER)}, "not those|the layout is for 90"),
    "no text": ({"plan": "{}"}, "plan text is none"),
    "no words": ({"plan": "attend"}, "plan text is none"),
    "sizes": ({"plan": plan_of(LAYOUT).replace("[16,16]", "[0,16]")}, "block"),
    "long run": ({"layout": tables_of(LAYOUT, longer)}, "its runs leave"),
    "line": ({"layout": tables_of(LAYOUT, beyond)}, "its runs leave"),
    "mask": ({"layout": tables_of(LAYOUT, masks)}, "masks outside"),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_ops_refuse_what_does_not_fit(kind: str) -> None:
    assert op.attention is not None  # its import registers the ops
    torch.ops.patterncc.attention(**given())
    changes, said = WRONG[kind]
    whole = given(**changes)
    with pytest.raises(pc.TensorError, match=said):
        torch.ops.patterncc.attention(**whole)
    rows = torch.zeros(2, 4, 70, 8), torch.zeros(2, 4, 70)
    with pytest.raises(pc.TensorError, match=said):
        torch.ops.patterncc.attention_backward(rows[0], out=rows[0], lse=rows[1], **whole)
    if kind not in ("fewer rows", "fewer keys"):  # a step has any number of both
        with pytest.raises(pc.TensorError):
            torch.ops.patterncc.decode(position=torch.zeros(2, dtype=torch.int32), **whole)


@pytest.mark.parametrize("name", ["grad_out", "out", "lse"])
def test_gradients_refuse_what_no_forward_pass_gave(name: str) -> None:
    rows = {"grad_out": X(2, 4, 70, 8), "out": X(2, 4, 70, 8), "lse": X(2, 4, 70)}
    for wrong in (rows[name][:, :, :60], rows[name].double()):
        with pytest.raises(pc.TensorError, match=f"{name} is torch.float"):
            torch.ops.patterncc.attention_backward(**{**rows, name: wrong}, **given())


def test_steps_refuse_what_does_not_fit() -> None:
    step, at = given(q=X(2, 4, 1, 8)), torch.tensor([3, 69], dtype=torch.int32)
    pages = given(q=X(2, 4, 1, 8), k=X(9, 2, 16, 8), v=X(9, 2, 16, 8))
    table = torch.arange(10, dtype=torch.int32).view(2, 5) % 9
    assert torch.ops.patterncc.decode(position=at, **step)[0].shape == (2, 4, 1, 8)
    assert torch.ops.patterncc.decode(position=at, block_table=table, **pages)[1].shape[2] == 1
    for more, said in (
        ({"position": at[:1]}, r"position is .* \(1,\)"),
        ({"position": at.long()}, "position is torch.int64"),
        ({"position": at, "key_lengths": at[:1]}, "key_lengths is"),
        ({"position": at, "block_table": table[:, :4]}, r"\(2, 4\)"),
        ({"position": at, "block_table": table[:1]}, r"\(1, 5\)"),
        ({"position": at, "block_table": table.long()}, "block_table is torch.int64"),
    ):
        with pytest.raises(pc.TensorError, match=said):
            torch.ops.patterncc.decode(**more, **(pages if "block_table" in more else step))
    opened = pc.carry(LAYOUT)
    whole = {**step, "layout": list(opened.tensors), "plan": opened.plan}
    with pytest.raises(pc.TensorError, match="lengths open"):
        torch.ops.patterncc.decode(position=at, **whole)


def test_tables_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from patterncc.kernels import fits_tables

    calls = []
    check = fits_tables._check_cpu
    monkeypatch.setattr(fits_tables, "_check_cpu", lambda *x: calls.append(x) or check(*x))
    fits_tables._sound.clear()
    for layout in (LAYOUT, HEADS):
        for _ in range(3):
            whole = given(layout)
            torch.ops.patterncc.attention(**whole)
    assert len(calls) == 2
    carried = pc.carry(LAYOUT)
    for _ in range(3):  # a bundle is taken apart at every call, and looked at once
        pc.attention(whole["q"], whole["k"], whole["v"], carried, enable_gqa=True)
    assert len(calls) == 3


def test_tables_that_come_by_another_layouts_name() -> None:
    """They are safe, and what is kept by a name is not taken for the other's."""
    shifted = pc.compile(pc.causal() & pc.window(5), 70, block=16)
    torch.manual_seed(0)
    whole = given(q=torch.randn(2, 4, 70, 8), v=torch.randn(2, 2, 70, 8))
    for of in (LAYOUT, shifted, LAYOUT):
        tensors, own, _ = upload.prepared(of, CPU, "auto")
        for plan in (plan_of(LAYOUT), own):
            out, _ = torch.ops.patterncc.attention(**{**whole, "layout": tensors, "plan": plan})
            expected, _ = reference(
                whole["q"], whole["k"], whole["v"], torch.from_numpy(of.dense()), 0.3
            )
            torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_index_tensors_stay_within_the_tokens() -> None:
    layout = pc.compile(pc.causal() & pc.strided(7), 70, block=16, order="residue")
    tensors, plan, _ = upload.prepared(layout, CPU, "auto")
    whole = given()
    spec, score = planned(plan), Score(0.3)
    assert isinstance(spec, Terms) and spec.terms[0].queries is not None
    at = spec.terms[0].tables + spec.terms[0].queries
    wrong = [*tensors[:at], tensors[at] + 70, *tensors[at + 1 :]]
    with pytest.raises(pc.TensorError, match="tokens outside 0 to 69"):
        check_call(whole["q"], whole["k"], whole["v"], Carried.of(wrong), spec, score)


Q, K = X(1, 2, 70, 8), X(1, 2, 70, 8)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, in jvp
def test_other_ways_to_differentiate_are_refused_in_words() -> None:
    def f(q: Tensor) -> Tensor:
        return pc.attention(q, K, K, LAYOUT)

    with pytest.raises(pc.TensorError, match=r"no forward-mode.* torch\.autograd\.grad"):
        torch.func.jvp(f, (Q,), (Q,))
    with forward_ad.dual_level(), pytest.raises(pc.TensorError, match="no forward-mode"):
        f(forward_ad.make_dual(Q, Q))
    with forward_ad.dual_level():
        assert f(Q).shape == Q.shape  # nothing to differentiate
    with pytest.raises(pc.TensorError, match=r"torch\.func transforms"):
        torch.func.grad(lambda q: f(q).sum())(Q)
    with pytest.raises(pc.TensorError, match="the axis of vmap into the batch"):
        torch.vmap(f)(Q[None])
    q = torch.randn(1, 2, 70, 8, requires_grad=True)
    (first,) = torch.autograd.grad(f(q).square().sum(), q, create_graph=True)
    with pytest.raises(pc.TensorError, match="its gradients have no gradient"):
        first.sum().backward()


def test_a_step_has_no_gradient_of_options_either() -> None:
    q = Q[:, :, :1]
    for name, x in (("sinks", X(2)), ("alibi_slopes", X(2)), ("relative_bias", X(2, 3))):
        with pytest.raises(pc.TensorError, match="has no gradient"):
            pc.attention(q, K, K, LAYOUT, position=3, **{name: x.requires_grad_()})


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", [LAYOUT, DILATED], ids=["one term", "an order"])
def test_a_step_of_no_rows(layout: pc.Layout, backend: str) -> None:
    out, lse = pc.attention(
        Q[:, :, :0], K, K[..., :4], layout, position=3, backend=backend, return_lse=True
    )
    assert out.shape == (1, 2, 0, 4) and lse.shape == (1, 2, 0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", [LAYOUT, DILATED], ids=["one term", "an order"])
def test_only_pages_that_a_row_reads_must_be_there(layout: pc.Layout, backend: str) -> None:
    k, v = torch.randn(2, 5, 2, 16, 8)
    table = torch.tensor([[4, 3, 2, 1, 0]], dtype=torch.int32)
    q = torch.randn(1, 2, 1, 8)
    reads = torch.from_numpy(layout.dense())[:70].reshape(-1, 70, 70)[0, 40]
    needed = {int(j) // 16 for j in reads.nonzero()}
    assert 0 < len(needed) < 5
    options: dict[str, Any] = {"position": 40, "backend": backend}
    whole = pc.attention(q, k, v, layout, block_table=table, **options)
    holes = table.clone()
    for page in set(range(5)) - needed:
        holes[0, page] = -1
    torch.testing.assert_close(pc.attention(q, k, v, layout, block_table=holes, **options), whole)
    for page in needed:
        gone = holes.clone()
        gone[0, page] = 7
        with pytest.raises(pc.TensorError, match=rf"block_table\[0, {page}\] is 7, the cache has"):
            pc.attention(q, k, v, layout, block_table=gone, **options)


def test_numbers_of_numpy_and_numbers_that_fp32_lacks() -> None:
    one = pc.attention(Q, K, K, LAYOUT, scale=0.25, softcap=2.0)
    many = pc.attention(Q, K, K, LAYOUT, scale=np.float32(0.25), softcap=np.int64(2))  # type: ignore[call-overload]
    assert torch.equal(one, many)
    row = pc.attention(Q[:, :, :1], K, K, LAYOUT, position=np.int64(3))  # type: ignore[call-overload]
    assert row.shape == (1, 2, 1, 8)
    for name in ("scale", "softcap"):
        for value in (1e-60, 1e60):
            with pytest.raises(pc.TensorError, match=re.escape(f"{name} is {value}")):
                pc.attention(Q, K, K, LAYOUT, **{name: value})
    assert pc.attention(Q.double(), K.double(), K.double(), LAYOUT, scale=1e-60).isfinite().all()


def test_positions_past_int32_are_quoted_as_given() -> None:
    far = torch.tensor([2**40 + 3])
    with pytest.raises(pc.TensorError, match=f"position \\[{2**40 + 3}\\] are outside"):
        pc.attention(Q[:, :, :1], K, K, LAYOUT, position=far)


def test_sparse_and_nested_tensors() -> None:
    for x in (Q.to_sparse(), torch.nested.nested_tensor([Q[0], Q[0, :, :9]], layout=torch.jagged)):
        with pytest.raises(pc.TensorError, match="q is a nested or sparse tensor"):
            pc.attention(x, K, K, LAYOUT)


def test_messages_hold_while_a_graph_is_traced() -> None:
    traced = torch.compile(lambda q: pc.attention(q, K, K, LAYOUT), backend="eager", fullgraph=True)
    assert traced(Q).shape == Q.shape
    with pytest.raises(Exception, match=r"has shape \(1, 2, 60, 8\)|60"):
        traced(X(1, 2, 60, 8))
