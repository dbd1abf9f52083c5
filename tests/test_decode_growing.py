"""Decode steps against a cache that still grows: fewer keys than the layout has."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_decode import Step, step_of
from test_decode import OPTIONS, WINDOW, check, leaves
from torch import Tensor

import patterncc as pc
from patterncc.kernels import op, upload

RESIDUE = pc.causal() & (pc.strided(8) | pc.window(5))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cut(step: Step, held: int) -> Step:
    """The step as it is meant where only the first `held` keys are there."""
    return replace(step, lengths=step.lengths.clamp(max=held))


def run(step: Step, held: int, *, lengths: bool = True, **more: Any) -> Any:
    """The public call on the first `held` keys, junk in those that no row reads."""
    options = dict(step.options)
    if "key_mask" in options:
        options["key_mask"] = options["key_mask"][:, :held]
    k, v = (x[:, :, :held] for x in cut(step, held).poisoned())
    if lengths:
        options["key_lengths"] = step.lengths
    given: dict[str, Any] = {"enable_gqa": True, "return_lse": True, "position": step.position}
    return pc.attention(step.q, k, v, step.layout, **given, **options, **more)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Step, int]:
    """Steps of any kind, and how many keys are there: fewer than a row reads, too."""
    group, key_heads = draw(st.sampled_from([(1, 2), (2, 1), (3, 2)]))
    n, rows, offset = draw(st.integers(4, 90)), draw(st.integers(1, 4)), draw(st.integers(0, 20))
    heads = group * key_heads
    kinds = st.one_of(leaves, st.lists(leaves, min_size=heads, max_size=heads).map(pc.heads))
    batch = draw(st.integers(1, 3))
    places = st.lists(st.integers(offset, offset + n - rows), min_size=batch, max_size=batch)
    lengths = st.lists(st.integers(0, n + offset + 5), min_size=batch, max_size=batch)
    step = step_of(
        draw(kinds),
        n,
        rows,
        (heads, key_heads),
        draw(places),
        draw(lengths),
        options=tuple(sorted(draw(st.sets(st.sampled_from(OPTIONS), max_size=5)))),
        seed=draw(st.integers(0, 99)),
        q_offset=offset,
        block=draw(st.sampled_from([16, 32, (16, 64)])),
    )
    return step, draw(st.integers(0, step.layout.n_k))


@settings(max_examples=40)
@given(steps(), st.sampled_from(["cpu", "reference"]))
def test_any_step(given: tuple[Step, int], backend: str) -> None:
    step, held = given
    check(cut(step, held), run(step, held, backend=backend))


@pytest.mark.parametrize("held", [0, 1, 33, 40, 95, 96])
@pytest.mark.parametrize("batch", [[60, 93], [39]], ids=["two places", "one"])
@pytest.mark.parametrize(
    "order", ["residue", np.random.default_rng(0).permutation(96)], ids=["residue", "any"]
)
@pytest.mark.parametrize("options", [(), OPTIONS], ids=["plain", "options"])
def test_terms_in_orders_of_their_own(
    order: Any, batch: list[int], held: int, options: tuple[str, ...]
) -> None:
    step = step_of(RESIDUE, 96, 3, (4, 2), batch, options=options, block=16, order=order)
    assert any(term.order is not None for term in step.layout.terms)
    check(cut(step, held), run(step, held, lengths=held % 2 == 0))


def test_a_mask_for_each_sequence_carried_or_made_on_the_device() -> None:
    ids = np.array([[0] * 20 + [1] * 40, [0] * 60, [0] * 45 + [-1] * 15])
    same = (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, :, None]
    mask = torch.from_numpy(same & np.tri(60, dtype=bool))[:, None]
    step = step_of(pc.causal(), 60, 2, (4, 2), [21, 40, 44], block=16)
    of_host = pc.compile(pc.causal(), 60, doc_ids=ids, block=16)
    on_device = pc.compile(pc.causal(), 60, doc_ids=torch.from_numpy(ids), block=16)
    for layout in (of_host, pc.carry(of_host), on_device):
        for held in (22, 43, 60):
            placed = replace(step, layout=layout, mask=mask)  # type: ignore[arg-type]
            check(cut(placed, held), run(placed, held))


def test_a_cache_that_grows_by_tokens_and_by_chunks() -> None:
    """As transformers' DynamicCache hands it: t + 1 keys at position t."""
    n = 70
    q, k, v = torch.randn(3, 2, 4, n, 16).unbind()
    k, v = k[:, :2], v[:, :2]
    layout = pc.compile(pc.heads([WINDOW, pc.causal(), RESIDUE, WINDOW]), n, block=16)
    whole = pc.attention(q, k, v, layout, enable_gqa=True)
    for chunk in (1, 13):
        for t in range(0, n, chunk):
            end = min(t + chunk, n)
            out = pc.attention(
                q[:, :, t:end], k[:, :, :end], v[:, :, :end], layout, enable_gqa=True, position=t
            )
            torch.testing.assert_close(out, whole[:, :, t:end])


def test_no_copy_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long full stretch is read where it stands."""
    seen: list[Tensor] = []
    cpu = importlib.import_module("patterncc.kernels.cpu.decode")
    attend = cpu.attend

    def watched(q: Tensor, k: Tensor, *rest: Any) -> Any:
        seen.append(k)
        return attend(q, k, *rest)

    monkeypatch.setattr(cpu, "attend", watched)
    layout = pc.compile(pc.causal(), 4096)
    k = torch.randn(1, 2, 3000, 16)
    pc.attention(torch.randn(1, 4, 1, 16), k, k, layout, enable_gqa=True, position=2999)
    inside = [x for x in seen if x.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()]
    assert sum(x.shape[2] for x in inside) > 2800


def test_one_graph_for_all_lengths() -> None:
    graphs = []

    def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    layout = pc.compile(WINDOW, 80, block=16)

    def layer(q: Tensor, k: Tensor, at: Tensor) -> Tensor:
        return pc.attention(q * 2, k, k, layout, position=at)

    traced = torch.compile(layer, backend=counted, fullgraph=True, dynamic=True)
    q = torch.randn(2, 2, 1, 16)
    for held in (30, 31, 79):
        k, at = torch.randn(2, 2, held, 16), torch.tensor([held - 1] * 2).int()
        torch.testing.assert_close(traced(q, k, at), layer(q, k, at))
    assert len(graphs) == 1


def test_opcheck() -> None:
    assert op.decode is not None
    step = step_of(WINDOW, 70, 2, (4, 2), [3, 30], block=16)
    prepared, plan, _ = upload.prepared(step.layout, step.q.device, "auto")
    decode = torch.ops.patterncc.decode.default
    k, v = step.k[:, :, :40], step.v[:, :, :40]
    torch.library.opcheck(decode, (step.q, k, v, prepared, plan, 0.25, step.position))


def test_more_keys_than_the_layout_has_are_refused() -> None:
    layout = pc.compile(pc.causal(), 70, block=16)
    q, k = torch.randn(1, 2, 1, 16), torch.randn(1, 2, 71, 16)
    with pytest.raises(pc.TensorError, match=r"71 keys; .* at most its 70: compile it with n_k=71"):
        pc.attention(q, k, k, layout, position=3)
    with pytest.raises(pc.TensorError, match="the layout is for 70 queries and 70 keys"):
        pc.attention(q, k, k, layout)
    mask = torch.ones(1, 70, dtype=torch.bool)
    with pytest.raises(pc.TensorError, match=r"key_mask has shape \(1, 70\).* \(1, 60\)"):
        pc.attention(q, k[:, :, :60], k[:, :, :60], layout, position=3, key_mask=mask)
