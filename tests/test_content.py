"""Layers that choose their keys by content: lowering what is bound, and bounds where nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import patterncc as pc
from patterncc.analysis import cone, explain, influence
from patterncc.analysis.content import (
    Content,
    choices,
    guaranteed,
    possible,
    refuse_unbound,
    unbound,
)
from patterncc.analysis.cost import costs
from patterncc.analysis.curve import Curve, Depth, Figure
from patterncc.analysis.engines.choose import Question, follow
from patterncc.analysis.parts import rewritten
from patterncc.analysis.topology import allowed_pairs, topology
from patterncc.cli.options import numbers
from patterncc.errors import PatternValueError
from patterncc.expect import prove
from patterncc.language import loads
from patterncc.primitives import Topk
from patterncc.stack import Heads
from patterncc.zones.lower import keyed, lower
from tests.reach_oracles import slow_reach

Indices = NDArray[np.int64]


def slow_topk(indices: Indices, n: int, block: int) -> NDArray[np.bool_]:
    """Edge by edge."""
    dense = np.zeros((n, n), dtype=bool)
    for i, row in enumerate(indices[:n].tolist()):
        for chosen in row:
            if chosen >= 0:
                dense[i, chosen * block : (chosen + 1) * block] = True
    return dense


@st.composite
def chosen(draw: st.DrawFn, n: int, count: int, block: int) -> Indices:
    """What a model may have chosen: fewer and repeated keys included, neighbours likely."""
    blocks = -(-n // block)
    one = st.lists(st.integers(-1, blocks - 1), min_size=count, max_size=count)
    rows = draw(st.lists(one, min_size=1, max_size=3))
    held = [rows[draw(st.integers(0, len(rows) - 1))] for _ in range(n)]
    return np.array(held, dtype=np.int64).reshape(n, count)


@given(st.data(), st.integers(1, 30), st.integers(0, 4), st.integers(1, 7))
def test_topk_is_the_edges_that_are_bound(
    data: st.DataObject, n: int, count: int, block: int
) -> None:
    indices = data.draw(chosen(n, count, block))
    truth, p = slow_topk(indices, n, block), pc.topk(count, block)
    assert (lower(p, n, topk=indices).dense() == truth).all()
    if count:
        assert (lower(p, n, topk=tuple(indices.ravel().tolist())).dense() == truth).all()
    assert (lower(p.T, n, topk=indices).dense() == truth.T).all()
    near = np.tri(n, dtype=bool)
    assert (lower(pc.causal() & p, n, topk=indices).dense() == truth & near).all()
    assert (lower(pc.causal() - p, n, topk=indices).dense() == near & ~truth).all()
    first = data.draw(st.integers(0, n - 1))
    part = lower(p, n - first, n, first, topk=indices)
    assert (part.dense() == truth[first:]).all()


def test_equal_choices_of_neighbours_are_one_zone() -> None:
    indices = np.repeat([[3, 4, 9], [0, -1, 9]], [40, 24], axis=0)
    z = lower(pc.topk(3, block=4), 64, topk=indices)
    assert len(z) == 3 and z.count() == 40 * 12 + 24 * 8


def test_what_is_bound_may_differ_by_layer_and_head() -> None:
    p, n = pc.causal() & pc.topk(1), 4
    a, b = np.array([[0]] * n), np.array([[0], [1], [1], [2]])
    counts: list[Any] = [
        [lower(p, n, layer=l, topk=given).count() for l in (0, 1)]
        for given in (b, np.stack([a, b]), {0: a, 1: b}, {0: a, (1, 0): b})
    ]
    edges = lower(p, n, topk=b).table.tolist()
    assert counts == [[4, 4]] * 4
    assert lower(p, n, layer=1, topk=np.stack([a, b])).table.tolist() == edges
    assert lower(p, n, layer=1, topk={0: a, (1, 0): b}).table.tolist() == edges
    labels = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    one = [lower(pc.routing(2), n, layer=l, routing=labels) for l in (0, 1)]
    assert [z.dense()[0].tolist() for z in one] == [
        [True, True, False, False],
        [True, False, True, False],
    ]
    assert keyed(p) == (True, True) and keyed(p, {"topk": b}) == (False, False)
    assert keyed(p, {"topk": np.stack([a, b])}) == (True, False)
    assert keyed(p, {"topk": {(0, 0): a}}) == (True, True) == keyed(pc.routing(2))
    stack = pc.Stack([p] * 2)
    made = pc.compile(stack, n, topk=np.stack([a, b]))
    assert [layout.dense()[3].tolist() for layout in made] == [
        [True, False, False, False],
        [False, False, True, False],
    ]


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({}, r"topk\(2\): 'topk' is not bound: .* pass what it chose as topk=.* or ask analyze"),
        ({"topk": {1: [[0, 1]] * 4}}, "'topk' is not bound in layer 0"),
        ({"topk": [[0, 1, 2]] * 4}, r"an int array \[n, <=2\].* shape \[4, 3\]"),
        ({"topk": [[0.5, 1]] * 4}, "got float64"),
        ({"topk": [[0, 1], [0]]}, "rows of topk differ in length; fill them up with -1"),
        ({"topk": [0, 1, 2]}, "a flat list of 3 indices is not rows of 2"),
        ({"topk": [[0, 1]] * 3}, "rows for 3 queries, and the last one is at position 3"),
        ({"topk": [[0, 4]] * 4}, "query 0 chooses key 4, and there are 4"),
        ({"topk": [[0, -2]] * 4}, "query 0 chooses key -2"),
    ],
)
def test_what_cannot_be_bound(bound: dict[str, Any], message: str) -> None:
    with pytest.raises(PatternValueError, match=message):
        lower(pc.causal() & pc.topk(2), 4, **bound)
    with pytest.raises(PatternValueError, match=message):
        pc.compile(pc.causal() & pc.topk(2), 4, **bound)


def test_a_layer_without_an_entry() -> None:
    with pytest.raises(PatternValueError, match="bound for 2 layers, and this is layer 2"):
        lower(pc.topk(1), 4, layer=2, topk=np.zeros((2, 4, 1), dtype=int))
    with pytest.raises(PatternValueError, match="query 2 chooses key block 2, and there are 2"):
        lower(pc.topk(1, block=4), 8, topk=[[0], [1], [2], [0], [0], [0], [0], [0]])
    with pytest.raises(PatternValueError, match="topk: count must be at least 0, not -1"):
        pc.topk(-1)


CHOOSING = st.recursive(
    st.one_of(
        st.builds(pc.topk, st.integers(0, 3), st.integers(1, 4)),
        st.builds(pc.routing, st.integers(2, 4)),
        st.builds(pc.window, st.integers(0, 4), st.integers(0, 4)),
        st.builds(pc.sink, st.integers(0, 3)),
        st.just(pc.causal()),
        st.just(pc.full()),
    ),
    lambda p: st.one_of(
        st.tuples(p, p).map(lambda t: t[0] | t[1]),
        st.tuples(p, p).map(lambda t: t[0] & t[1]),
        st.tuples(p, p).map(lambda t: t[0] - t[1]),
        p.map(lambda x: ~x),
        p.map(lambda x: x.T),
    ),
    max_leaves=6,
)
LAYERS = st.one_of(CHOOSING, st.lists(CHOOSING, min_size=2, max_size=3).map(pc.heads))


@st.composite
def bound(draw: st.DrawFn, n: int, layers: int) -> dict[str, Any]:
    """Any choice that a model can make: 2 keys of 4 leave every topk of at least 2 its room."""
    labels = st.lists(st.integers(-1, 1), min_size=n, max_size=n)
    keys = st.lists(st.integers(-1, max(0, (n - 1) // 4)), min_size=n, max_size=n)
    each = [[draw(labels), np.array(draw(keys))[:, None]] for _ in range(layers)]
    if draw(st.booleans()):
        return {"routing": each[0][0], "topk": each[0][1]}
    return {
        name: {l: x[k] for l, x in enumerate(each)} for k, name in ((0, "routing"), (1, "topk"))
    }


@settings(max_examples=150)
@given(st.lists(LAYERS, min_size=1, max_size=3), st.integers(1, 14), st.data())
def test_whatever_is_chosen_lies_between(layers: list[Any], n: int, data: st.DataObject) -> None:
    stack = pc.Stack([_roomy(x) for x in layers])
    given_ = data.draw(bound(n, len(stack)))
    low, high = guaranteed(stack), possible(stack)
    assert not unbound(low) and not unbound(high)
    assert guaranteed(stack, given_) is stack is possible(stack, given_)
    parts = [topology(low, n), topology(stack, n, **given_), topology(high, n)]
    for l in range(len(stack)):
        least, real, most = ([z.dense() for z in t.level(l).head_zones] for t in parts)
        a, b, c = (t.level(l).head_index for t in parts)
        for x, y, z in zip(a, b, c, strict=True):
            assert not (least[x] & ~real[y]).any() and not (real[y] & ~most[z]).any()
    at_least, traced, at_most = (slow_reach([x.zones.dense() for x in t.levels], 4) for t in parts)
    assert not (at_least[4] & ~traced[4]).any() and not (traced[4] & ~at_most[4]).any()


def _roomy(layer: Any) -> Any:
    """The layer with room for one chosen key in every topk."""
    patterns = layer.patterns if isinstance(layer, Heads) else (layer,)
    grown = tuple(
        rewritten(p, lambda x, _: pc.topk(1 + x.count, x.block) if isinstance(x, Topk) else x)
        for p in patterns
    )
    return Heads(grown) if isinstance(layer, Heads) else grown[0]  # type: ignore[arg-type]


def test_bounds_are_as_tight_as_the_pattern_tells() -> None:
    near, p = pc.window(7), pc.topk(8)
    for pattern, low, high in [
        (p, pc.sink(0), pc.full()),
        (pc.causal() & (near | p), pc.causal() & near, pc.causal() & (near | pc.full())),
        (near - p, pc.sink(0) | (near - pc.full()), near),
        (~(near - p), ~near, ~(near - pc.full())),
        (pc.causal() - (p - near), pc.causal() - (pc.full() - near), pc.causal()),
    ]:
        for made, meant in ((guaranteed, low), (possible, high)):
            found = lower(made(pc.Stack(pattern)).layers[0], 24)  # type: ignore[arg-type]
            assert (found.dense() == lower(meant, 24).dense()).all()


def test_some_are_bound_and_some_are_not() -> None:
    both = pc.causal() & (pc.topk(2) | pc.routing(2))
    stack = pc.Stack([both, pc.heads([pc.topk(1), pc.window(1)])], kv_from=[0, 0], kv_heads=1)
    labels = [0, 1] * 8
    assert [(c.layer, str(c.leaf)) for c in unbound(stack, {"routing": labels})] == [
        (0, "topk(2)"),
        (1, "topk(1)"),
    ]
    part = guaranteed(stack, {"routing": labels, "topk": {(1, 0): [[0]] * 16}})
    assert str(part.layers[0]) == "causal() & routing(2)"
    assert part.layers[1] == stack.layers[1] and (part.kv_from, part.kv_heads) == ((0, 0), 1)
    with pytest.raises(PatternValueError, match="influence: layer 1 chooses its keys by content"):
        refuse_unbound("influence", stack, {"routing": labels, "topk": {0: [[0]] * 16}})
    refuse_unbound("influence", stack, {"routing": labels, "topk": [[0]] * 16})


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({3: 0}, "3 is no layer of a stack of 2"),
        ({"a": 0}, "'a' is no layer"),
        ({(0, 1): 0}, "layer 0 has 1 patterns, and .* names another head; write the layer as"),
        ({True: 0}, "True is no layer"),
    ],
)
def test_bindings_by_layer_name_layers_and_heads(places: dict[Any, Any], message: str) -> None:
    stack = pc.Stack([pc.topk(1)] * 2)
    with pytest.raises(PatternValueError, match=f"topk: .*{message}|topk: {message}"):
        choices(stack, {"topk": places})


def test_between_the_guaranteed_and_the_possible_reach() -> None:
    stack = pc.Stack([pc.causal() & (pc.window(3) | pc.topk(4))] * 3)
    t = topology(possible(stack), 64)
    pairs = allowed_pairs(t, None, {})
    curves = [
        follow(Question(topology(x, 64), pairs, 3), "zones") for x in (guaranteed(stack), t.stack)
    ]
    found = Content(*curves)
    curve = found.between(pairs.count)
    assert (curve.full.lo, curve.full.hi, curve.full.never) == (1, 21, False)
    assert (curve.figures[1].lo, curve.figures[1].hi) == (64 * 4 - 6, 2080)
    assert curve.figures[1].badge == "bounds [0.1202, 1]" and curve.figures[0].badge == "exact"
    told = json.loads(json.dumps(found.to_json()))
    assert told["traced"] is None and told["guaranteed"]["depth_to_full"]["value"] == 21
    assert told["possible"]["reach"][1]["lo"] == 2080
    never = Content(*(Curve((), Depth(4, None, True, 3), (5, 1), ()) for _ in range(2)))
    assert never.between(10).full.never and never.between(10).witness == (5, 1)
    rough = Curve(
        (Figure.estimate(0.5, 0.1, 0, 10, 10, "rows"),), Depth(1, None, False, 0), None, ()
    )
    assert Content(rough, rough).between(10).figures[0].badge == "bounds [0.4, 0.6] (95%)"


@settings(max_examples=80)
@given(LAYERS, st.integers(1, 14), st.data())
def test_what_is_chosen_costs_no_more_than_its_bounds(
    layer: Any, n: int, data: st.DataObject
) -> None:
    stack = pc.Stack(_roomy(layer))
    given_ = data.draw(bound(n, 1))
    high, real = topology(possible(stack), n), topology(stack, n, **given_)
    pairs = allowed_pairs(high, "all", {})
    (cost,), (traced,) = costs(high, pairs, 1, asked=stack), costs(real, pairs, 1)
    level = real.levels[0]
    masks = [level.head_zones[k].dense() for k in level.head_index]
    assert traced.edges == traced.edges_least == tuple(int(m.sum()) for m in masks)
    assert traced.kv_bytes * len(masks) == 512 * sum(int(m[-1].sum()) for m in masks)
    assert all(
        a <= b <= c for a, b, c in zip(cost.edges_least, traced.edges, cost.edges, strict=True)
    )
    assert traced.kv_bytes <= cost.kv_bytes <= cost.kv_held_bytes <= cost.full_kv_bytes
    assert traced.kv_held_bytes == cost.kv_held_bytes and traced.how == ""
    assert bool(cost.how) == bool(unbound(stack))


def test_bounds_of_cost_say_what_they_rest_on() -> None:
    near = pc.window(3)
    stack = pc.Stack([pc.causal() & pc.topk(8), pc.causal() & (near | pc.topk(2, block=4))])
    more = pc.Stack([*stack.layers, pc.causal() & pc.routing(4), pc.causal() & near])
    t = topology(possible(more), 64)
    found = costs(t, allowed_pairs(t, None, {}), 4, 64, more)
    assert found[0].edges == (64 * 8 - 28,) and found[0].edges_least == (0,)
    assert found[0].how == "at most: topk(8) chooses at most 8 keys for a query"
    assert [c.kv_bytes // 256 for c in found] == [8, 12, 64, 4]
    assert [c.kv_held_bytes // 256 for c in found] == [64, 64, 64, 4]
    assert found[1].edges == (64 * 12 - 66,) and found[1].edges_least == (64 * 4 - 6,)
    assert found[2].edges == (2080,) and "if balanced, about 1/4" in found[2].how
    assert [c.kind for c in found] == ["sparse"] * 4
    assert found[3].how == "" and found[3].edges == found[3].edges_least
    assert json.loads(json.dumps(found[0].to_json()))["edges_least"] == [0]
    big = topology(possible(stack), 2**30)
    far = costs(big, allowed_pairs(big, None, {}), 2, asked=stack)
    assert far[0].edges == (8 * 2**30,) and far[1].edges[0] <= 2**59 + 2**29


def test_a_report_of_layers_that_choose() -> None:
    stack = pc.Stack([pc.causal() & pc.topk(2), pc.causal() & pc.window(3)] * 2)
    r = pc.analyze(stack, 32)
    assert r.content is not None and r.content.traced is None
    assert r.reach[4].lo == r.content.guaranteed.figures[4].lo < r.reach[4].hi == r.pairs
    assert r.influence is None
    assert "layer 0 chooses its keys by content (topk(2))" in r.why_not["influence"]
    with pytest.raises(PatternValueError, match=r"influence: layer 0 .* bind what a run chose as"):
        influence(stack, 32)
    keys = np.stack([np.arange(32), np.maximum(np.arange(32) - 9, -1)], axis=1)
    traced = pc.analyze(stack, 32, topk=keys)
    assert traced.content is not None and traced.content.traced is not None
    assert all(f.exact for f in traced.reach) and traced.influence is not None
    assert traced.costs[0].edges == (32 + 23,) and traced.costs[0].how == ""
    assert cone(stack, 32, 31, topk=keys).layers[0].tolist() != []
    assert explain(stack, 32, 31, 22, topk=keys).direct[0].rules == ("topk(2)",)


def test_expectations_of_what_is_chosen_are_brackets() -> None:
    text = "edges:\n  a: causal() & (window(1) | topk(3))\nexpect:\n  - "
    for expect, holds in [
        ("edges(n=16) <= 71", True),
        ("edges(n=16) >= 31", True),
        ("edges(n=16) < 31", False),
        ("edges(n=16) == 31", None),
        ("density(n=16) <= 71 / 256", True),
    ]:
        (outcome,) = prove(loads(f"{text}{expect}\n"))
        assert outcome.holds is holds, str(outcome)
    bound_ = "bindings:\n  topk: '[0, 1, -1] * 16'\n"
    (outcome,) = prove(loads(f"{text}edges(n=16) == 31 + 2 * 13 + 1\n{bound_}"))
    assert outcome.holds


def test_arrays_are_bound_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "keys.npy", np.array([[0], [0], [1]]))
    np.save(tmp_path / "real.npy", np.array([0.5]))
    (tmp_path / "text.npy").write_text("no array")
    assert numbers((f"topk={tmp_path}/keys.npy",))["topk"].tolist() == [[0], [0], [1]]
    for name, message in [
        ("real.npy", "holds float64; integers are needed"),
        ("text.npy", "holds no array"),
        ("none.npy", "cannot read .* No such file"),
    ]:
        with pytest.raises(PatternValueError, match=f"--bind topk: .*{message}"):
            numbers((f"topk={tmp_path / name}",))
