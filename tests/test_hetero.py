"""Layers that share keys and values, and layers that are no attention, against dense matrices."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from patterncc import primitives as pc
from patterncc.analysis import analyze, cone, explain
from patterncc.analysis.cost import total
from patterncc.analysis.flow.hubs import hub_load_of
from patterncc.analysis.flow.influence import heuristic_range, influence, influence_of
from patterncc.analysis.flow.rollout import rollout
from patterncc.analysis.robustness import robustness
from patterncc.analysis.topology import allowed_pairs, topology
from patterncc.config import read
from patterncc.errors import PatternSyntaxError, PatternValueError, SizeError
from patterncc.expect import prove
from patterncc.language import loads
from patterncc.stack import Stack, heads
from patterncc.zones.lower import lower
from tests.reach_oracles import Mask, layer_masks, layers

F64 = NDArray[np.float64]


@st.composite
def sharing(draw: st.DrawFn) -> Stack:
    """Stacks in which layers read the keys and values of earlier ones."""
    drawn = draw(st.lists(layers, min_size=2, max_size=5))
    sources: list[int] = []
    for l in range(len(drawn)):
        own = [k for k, source in enumerate(sources) if k == source]
        sources.append(draw(st.sampled_from([*own, l])))
    return Stack(drawn, draw(st.sampled_from([0, 0, 3])), kv_from=sources)


def source_of(stack: Stack, layer: int) -> int:
    """The layer whose input a layer reads, past the stack's end too."""
    return layer - layer % len(stack) + stack.kv_from[layer % len(stack)]


def slow_states(stack: Stack, n: int, depth: int, masks: list[Mask] | None = None) -> list[Mask]:
    """R_0 .. R_depth: R_(l+1) = R_l | A_l R_k, where layer l reads what went into layer k."""
    masks = masks or layer_masks(stack, n)
    states = [np.eye(stack.memory + n, dtype=bool)]
    for l in range(depth):
        read = masks[l % len(masks)].astype(int) @ states[source_of(stack, l)].astype(int)
        states.append(states[-1] | (read > 0))
    return states


def slow_mixing(stack: Stack, n: int, l: int) -> tuple[F64, F64]:
    """What a layer keeps of each state, and the mean over its heads of D^-1 A."""
    size, index = stack.memory + n, l % len(stack)
    kept, read = np.zeros(size), np.zeros((size, size))
    for head, p in enumerate(stack.heads(index)):
        edges = lower(p, n, size, stack.memory, layer=index, head=head).dense()
        rows = np.concatenate([np.zeros((stack.memory, size)), edges])
        count = rows.sum(axis=1)
        kept += count == 0
        read += rows / np.maximum(count, 1)[:, None]
    return np.diag(kept / len(stack.heads(index))), read / len(stack.heads(index))


def slow_influence(stack: Stack, n: int, depth: int, alpha: float, start: int) -> F64:
    """What the last states draw from the states after `start` layers, set to e_j one by one."""
    size = stack.memory + n
    states = [np.zeros((size, size))] * start + [np.eye(size)]
    for l in range(start, depth):
        kept, read = slow_mixing(stack, n, l)
        mixed = kept @ states[l] + read @ states[source_of(stack, l)]
        states.append(alpha * states[l] + (1 - alpha) * mixed)
    return states[depth]


@settings(max_examples=80)
@given(sharing(), st.integers(1, 24), st.integers(0, 9), st.integers(0, 23))
def test_cones_are_rows_of_reach(stack: Stack, n: int, depth: int, back: int) -> None:
    query = stack.memory + n - 1 - back % n
    found = cone(stack, n, query, depth)
    marked = np.zeros(stack.memory + n, dtype=bool)
    for a, b in found.layers[0].tolist():
        marked[a:b] = True
    assert (marked == slow_states(stack, n, depth)[depth][query]).all()


@settings(max_examples=80)
@given(sharing(), st.integers(1, 24), st.data())
def test_paths_are_shortest_and_name_the_layer_that_is_read(
    stack: Stack, n: int, data: st.DataObject
) -> None:
    query = stack.memory + data.draw(st.integers(0, n - 1))
    key = data.draw(st.integers(0, stack.memory + n - 1))
    found, masks = explain(stack, n, query, key), layer_masks(stack, n)
    states = slow_states(stack, n, len(stack) * (stack.memory + n + 1))
    truth = next((l for l, s in enumerate(states) if s[query, key]), None)
    assert (found.layers, found.never) == (truth, truth is None)
    at, state = key, 0
    for step in found.path:
        assert step.source == source_of(stack, step.layer) >= state
        assert step.key == at and masks[step.layer % len(masks)][step.query, step.key]
        at, state = step.query, step.layer + 1
    assert truth is None or (at == query and state <= truth)
    assert all(d.source == stack.kv_from[d.layer] for d in found.direct)


@settings(max_examples=40)
@given(
    sharing(),
    st.integers(1, 20),
    st.integers(0, 9),
    st.sampled_from([0.0, 0.5, 0.95]),
    st.integers(0, 19),
)
def test_rollout_is_the_dense_recursion(
    stack: Stack, n: int, depth: int, alpha: float, back: int
) -> None:
    r = rollout(stack, n, alpha, depth)
    query = stack.memory + n - 1 - back % n
    found = influence_of(r, query, bins=4)
    for l in range(depth + 1):
        truth = slow_influence(stack, n, depth, alpha, l)
        bins = np.split(truth[query], found.edges[1:-1])
        np.testing.assert_allclose(found.cone[l], [b.sum() for b in bins], atol=1e-12)
        load = hub_load_of(r, l)
        np.testing.assert_allclose(load.load, truth.sum(axis=0), atol=1e-11)
        square = (load.load**2).sum()
        assert load.n_eff[l] == pytest.approx(load.load.sum() ** 2 / square if square else 0)
    np.testing.assert_allclose(
        found.row, slow_influence(stack, n, depth, alpha, 0)[query], atol=1e-12
    )
    assert found.mass == pytest.approx(1, abs=1e-12)


def test_shared_keys_and_values_freeze_what_is_read() -> None:
    near = pc.causal() & pc.window(3)
    own, shared = Stack([near] * 4), Stack([near] * 4, kv_from=[0, 1, 1, 1])
    assert cone(own, 64, 40).layers[0].tolist() == [[28, 41]]
    assert cone(shared, 64, 40).layers[0].tolist() == [[34, 41]]
    e = explain(shared, 64, 40, 34)
    assert e.layers == 2 and "every layer" not in e.reason
    assert [(s.layer, s.source) for s in e.path] == [(0, 0), (1, 1)]
    far = explain(shared, 64, 40, 33)
    assert far.layers == 5 and far.path[-1].layer == 4


def test_a_path_says_whose_keys_it_reads() -> None:
    s = Stack([pc.causal() & pc.window(3), pc.window(0), pc.causal()], kv_from=[0, 1, 0])
    e = explain(s, 64, query=40, key=8)
    assert [(x.layer, x.source) for x in e.path] == [(2, 0)]
    assert "layer 2: 40 reads 8 as it went into layer 0 by causal()" in str(e)
    assert "layer 2: read directly as it went into layer 0 by causal()" in str(e)
    assert json.loads(json.dumps(e.to_json()))["path"][0]["source"] == 0


def test_never_is_told_after_the_stack_has_settled() -> None:
    # nothing changes in four layers, and layer 4 brings new positions all the same
    still, wide = pc.window(0), pc.causal() & pc.window(5)
    s = Stack([wide, still, still, still, wide], kv_from=[0, 1, 2, 3, 0])
    assert explain(s, 64, 40, 20).layers == 16
    closed = Stack([pc.causal() & pc.chunked(16)] * 3, kv_from=[0, 0, 0])
    assert explain(closed, 64, 40, 3).never
    deep = cone(closed, 64, 40, depth=5000)
    assert deep.layers[0].tolist() == [[32, 41]]


def test_gemma_3n_at_a_million_tokens() -> None:
    config = {
        **{"model_type": "gemma3n_text", "num_hidden_layers": 35, "sliding_window": 512},
        **{"num_kv_shared_layers": 15},
    }
    stack, n = Stack.from_hf(config), 2**20
    local = Stack([p for p in stack.layers if str(p) != "causal()"][:28])
    assert cone(local, n, n - 1).layers[0].tolist() == [[n - 1 - 28 * 511, n]]
    found = influence(stack, n)
    assert found.mass == pytest.approx(1) and heuristic_range(topology(stack, 64)) is None
    assert explain(stack, n, n - 1, 5).layers == 5


def test_a_sweep_that_would_hold_too_much_is_refused() -> None:
    stack = Stack([pc.causal()] * 8, kv_from=[0, 1, 2, 3, 0, 1, 2, 3])
    r = rollout(stack, 64)
    with pytest.MonkeyPatch.context() as m:
        m.setattr("patterncc.analysis.flow.rollout.MOST_WAITING", 64 * 6)
        with pytest.raises(SizeError, match="448 numbers of one sweep"):
            influence_of(r)


SHARED = """edges:
  near: causal() & window(7)
  far: causal()
layers:
  - repeat: 3
    edges: near
  - far
  - repeat: 2
    edges: near
    kv_from: 3 - 1
  - edges: far
    kv_from: 3
  - repeat: 2
    edges: near
    kv_from: 7
kv_heads: 2
"""


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ([0, 2], r"kv_from\[1\] is layer 2, which is not one of the 2"),
        ([1, 1], r"kv_from\[0\] is layer 1, which comes later"),
        ([0, 0, 1], r"which has none of its own \(kv_from\[1\] is 0\)"),
    ],
)
def test_a_stack_says_why_a_layer_cannot_be_read(sources: list[int], told: str) -> None:
    with pytest.raises(PatternValueError, match=told):
        Stack([pc.causal()] * len(sources), kv_from=sources)


def test_files_say_whose_keys_and_values_a_layer_reads() -> None:
    stack = loads(SHARED).stack
    near, far = pc.causal() & pc.window(7), pc.causal()
    layers_of = [near] * 3 + [far] + [near] * 2 + [far] + [near] * 2
    assert stack == Stack(layers_of, kv_from=[0, 1, 2, 3, 2, 2, 3, 7, 7], kv_heads=2)
    assert loads("edges:\n  a: causal()\nkv_heads: 4\n").stack == Stack(far, kv_heads=4)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "kv_from: 7",
            "kv_from: 8",
            "a.yaml:15:14: layer 7 cannot read the keys and values of layer 8, which comes later\n"
            "        kv_from: 8\n"
            "                 ^\n"
            "    name an earlier layer; layers are counted from 0",
        ),
        (
            "kv_from: 7",
            "kv_from: 4",
            "a.yaml:15:14: layer 4 has no keys and values of its own: it reads those of layer 2\n"
            "        kv_from: 4\n"
            "                 ^\n"
            "    write kv_from: 2",
        ),
        ("kv_from: 7", "kv_from: -1", "kv_from: the value must be at least 0, not -1"),
        ("kv_from: 7", "kv_from: near", "kv_from: the value must be an integer"),
        ("kv_heads: 2", "kv_heads: 0", "kv_heads: the value must be at least 1, not 0"),
        ("kv_heads: 2", "kv_head: 2", "did you mean 'kv_heads'?"),
        ("kv_from: 7", "kv_frm: 7", "did you mean 'kv_from'?"),
    ],
)
def test_mistakes_about_shared_keys_have_their_place(old: str, new: str, told: str) -> None:
    with pytest.raises(PatternSyntaxError) as caught:
        loads(SHARED.replace(old, new), "a.yaml")
    assert told in str(caught.value)


def test_heads_that_do_not_divide_among_key_value_heads() -> None:
    text = "layers:\n  - heads:\n      - count: 6\n        edges: causal()\nkv_heads: 4\n"
    with pytest.raises(PatternSyntaxError, match="6 heads of a layer do not divide among 4"):
        loads(text)
    assert loads(text.replace("4", "3")).stack.kv_heads == 3


def test_key_value_heads_of_configs() -> None:
    gemma = {"model_type": "gemma2", "num_hidden_layers": 2}
    assert Stack.from_hf({**gemma, "num_key_value_heads": 8}).kv_heads == 8
    assert Stack.from_hf(gemma).kv_heads == 4
    assert "num_key_value_heads is not in the config: 4" in " ".join(read(gemma).notes)
    assert Stack.from_hf({"model_type": "falcon", "multi_query": True}).kv_heads == 1
    assert Stack.from_hf({"model_type": "gpt2"}).kv_heads is None
    listed = read({**gemma, "num_key_value_heads": [1, 2]})
    assert listed.kv_heads is None and "the layers differ" in " ".join(listed.notes)
    dbrx = {"model_type": "dbrx", "attn_config": {"kv_n_heads": 8}}
    assert Stack.from_hf(dbrx).kv_heads == 8
    with pytest.raises(PatternValueError, match="num_key_value_heads must be at least 1"):
        read({**gemma, "num_key_value_heads": 0})
    with pytest.raises(PatternValueError, match="num_key_value_heads must be an integer"):
        read({**gemma, "num_key_value_heads": "8"})


def test_only_attention_is_counted() -> None:
    near = pc.causal() & pc.window(7)
    mixed = heads([pc.recurrent(), near | pc.recurrent(), near, pc.convolution(4)])
    stack = Stack([pc.recurrent(), pc.convolution(4), near | pc.recurrent(), mixed, near])
    costs, edges = analyze(stack, 64, head_dim=64).costs, 64 * 8 - 28
    assert [c.kind for c in costs] == ["recurrent", "convolution", "hybrid", "hybrid", "sparse"]
    assert [c.edges for c in costs] == [(0,), (0,), (edges,), (0, edges, edges, 0), (edges,)]
    assert [c.density for c in costs] == [0, 0, edges / 4096, edges / 8192, edges / 4096]
    assert [c.kv_bytes for c in costs] == [0, 0, 2048, 1024, 2048]
    assert all(c.kv_held_bytes == c.kv_bytes and not c.kv_shared for c in costs)
    assert costs[0].full_flops == 4 * 64 * 65 * 32 and costs[0].flops_share == 0
    together = total(costs)
    assert together.flops == sum(c.flops for c in costs)
    assert together.flops_share == pytest.approx(2.5 * edges / (5 * 65 * 32))
    assert together.kv_share == together.kv_held_share == 2.5 * 8 / (5 * 64)
    assert json.loads(json.dumps([together.to_json(), *(c.to_json() for c in costs)]))


def test_documents_do_not_make_a_recurrence_attention() -> None:
    packed = pc.recurrent() & pc.documents([40, 24])
    assert topology(packed, 64).levels[0].kind == "recurrent"
    assert topology(pc.full() - pc.recurrent(), 64).levels[0].kind == "sparse"
    assert analyze(packed, 64).costs[0].edges == (0,)


def test_shared_keys_and_values_are_held_once() -> None:
    near, far = pc.causal() & pc.window(7), pc.causal()
    stack = Stack([near, far, near, far, near], kv_from=[0, 1, 0, 1, 1])
    costs = analyze(stack, 64, depth=7, head_dim=64).costs
    assert [c.kv_shared for c in costs] == [False, False, True, True, True, False, False]
    assert [c.kv_bytes // 256 for c in costs] == [8, 64, 8, 64, 8, 8, 64]
    assert [c.kv_held_bytes // 256 for c in costs] == [8, 64, 0, 0, 0, 8, 64]
    # a layer that reads more of them than the one that made them makes the cache hold more
    wide = analyze(Stack([near, far], kv_from=[0, 0]), 64, head_dim=64).costs
    assert [c.kv_held_bytes // 256 for c in wide] == [64, 0]
    mixed = heads([near, pc.causal() & pc.sink(2)])
    some = analyze(Stack([mixed, pc.causal() & pc.sink(4)], kv_from=[0, 0]), 64, head_dim=64).costs
    assert [c.kv_held_bytes // 256 for c in some] == [12, 0]
    assert total(wide).kv_held_share == 0.5 and total(wide).kv_share == 72 / 128


def test_expectations_count_attention_alone() -> None:
    text = "layers:\n  - recurrent()\n  - causal()\nexpect:\n"
    text += "  - edges(n=64) == 2080\n  - density(n=64) == 65 / 256\n"
    assert all(outcome.holds for outcome in prove(loads(text)))


@settings(max_examples=40)
@given(sharing(), st.integers(1, 12), st.integers(0, 7), st.integers(0, 40))
def test_a_lost_relay_of_shared_keys_and_values(stack: Stack, n: int, depth: int, at: int) -> None:
    token = at % (stack.memory + n)
    found = robustness(stack, n, token, depth)
    allowed = allowed_pairs(topology(stack, n), None, {}).zones.dense().copy()
    allowed[token], allowed[:, token] = False, False
    for figure, masks in ((found.before, layer_masks(stack, n)), (found.after, None)):
        if masks is None:
            masks = layer_masks(stack, n)
            for m in masks:
                m[token], m[:, token] = False, False
        truth = int((slow_states(stack, n, depth, masks)[depth] & allowed).sum())
        assert (figure.lo, figure.hi) == (truth, truth)
