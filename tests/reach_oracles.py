"""Reach by boolean matrix powers, and generated stacks to hold the engines to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from patterncc import primitives as pc
from patterncc.stack import Heads, Stack, heads
from patterncc.zones.lower import lower

Mask = NDArray[np.bool_]


def layer_masks(stack: Stack, n: int) -> list[Mask]:
    """Dense [memory + n, memory + n] masks of the layers, heads united."""
    size = stack.memory + n
    masks = []
    for index, layer in enumerate(stack.layers):
        mask = np.zeros((size, size), dtype=bool)
        for head, p in enumerate(layer.patterns if isinstance(layer, Heads) else [layer]):
            z = lower(p, n, size, stack.memory, layer=index, head=head)
            mask[stack.memory :] |= z.dense()
        masks.append(mask)
    return masks


def slow_reach(masks: list[Mask], depth: int, kv_from: Sequence[int] = ()) -> list[Mask]:
    """R_0 .. R_depth by boolean matrix products; layer l reads the states before kv_from[l]."""
    result = [np.eye(len(masks[0]), dtype=bool)]
    for l in range(depth):
        place = l % len(masks)
        source = l - place + kv_from[place] if kv_from else l
        read = (masks[place].astype(int) @ result[source].astype(int)) > 0
        result.append(result[-1] | read)
    return result


def slow_depth(masks: list[Mask], allowed: Mask, kv_from: Sequence[int] = ()) -> int | None:
    """Least depth at which reach holds all allowed pairs; None when two cycles change nothing."""
    depth, cycle = 0, len(masks)
    while True:
        reaches = slow_reach(masks, depth + 2 * cycle, kv_from)[depth:]
        for l, reach in enumerate(reaches):
            if (reach | ~allowed).all():
                return depth + l
        if (reaches[0] == reaches[-1]).all():
            return None
        depth += 2 * cycle


leaves = st.one_of(
    st.builds(pc.window, st.integers(0, 6), st.integers(0, 6)),
    st.builds(pc.window, st.integers(0, 2), st.integers(0, 1), st.integers(2, 5)),
    st.builds(pc.dilated, st.integers(0, 8), st.integers(0, 8), st.integers(1, 4)),
    st.builds(pc.strided, st.integers(1, 9)),
    st.builds(pc.chunked, st.integers(1, 12)),
    st.builds(pc.sink, st.integers(0, 3)),
    st.builds(pc.global_tokens, st.lists(st.integers(0, 30), max_size=2)),
    st.builds(pc.random_edges, st.integers(0, 2), st.integers(0, 5)),
    st.builds(pc.random_blocks, st.integers(0, 2), st.integers(2, 6), st.integers(0, 5)),
    st.builds(pc.documents, st.lists(st.integers(0, 12), min_size=1, max_size=4)),
    st.builds(pc.butterfly, st.integers(1, 5)),
    st.just(pc.longnet([4, 12], [1, 3])),
    st.just(pc.logsparse()),
    st.just(pc.grid([5, 6], [1, 1])),
    st.just(pc.causal()),
    st.just(pc.full()),
)
patterns = st.recursive(
    leaves,
    lambda p: st.one_of(
        st.tuples(p, p).map(lambda t: t[0] | t[1]),
        st.tuples(p, p).map(lambda t: t[0] & t[1]),
        st.tuples(p, p).map(lambda t: t[0] - t[1]),
        p.map(lambda x: pc.causal() & x),
        p.map(lambda x: x.T),
    ),
    max_leaves=4,
)
layers = st.one_of(patterns, st.lists(patterns, min_size=1, max_size=3).map(heads))


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    """Stacks of one to four layers; all causal half of the time, some with memory."""
    drawn = draw(st.lists(layers, min_size=1, max_size=4))
    if draw(st.booleans()):
        drawn = [
            heads([pc.causal() & p for p in x.patterns])
            if isinstance(x, Heads)
            else pc.causal() & x
            for x in drawn
        ]
    return Stack(drawn, memory=draw(st.sampled_from([0, 0, 0, 1, 5])))


@st.composite
def sharing_stacks(draw: st.DrawFn) -> Stack:
    """The same, with layers that read the keys and values of an earlier layer."""
    stack = draw(stacks())
    sources: list[int] = []
    for l in range(len(stack)):
        own = [k for k, source in enumerate(sources) if k == source]
        sources.append(draw(st.sampled_from([l, *own])))
    return Stack(stack.layers, stack.memory, kv_from=sources)
