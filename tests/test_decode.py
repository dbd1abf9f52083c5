"""Decode steps on the CPU: the rows of the whole, whatever the cache looks like elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_decode import Step, step_of
from torch import Tensor

import patterncc as pc
from patterncc.kernels import op, upload
from patterncc.kernels.cpu.pages import Cache

OPTIONS = ("softcap", "alibi_slopes", "relative_bias", "sinks", "key_mask")
WINDOW = pc.causal() & (pc.window(40) | pc.sink(3))


def run(step: Step, k: Tensor, v: Tensor, table: Tensor | None = None, **more: Any) -> Any:
    """The public call, out and lse."""
    given = {"enable_gqa": True, "position": step.position, "key_lengths": step.lengths}
    return pc.attention(
        step.q, k, v, step.layout, **given, block_table=table, return_lse=True, **step.options,
        **more,
    )  # fmt: skip


def check(step: Step, result: tuple[Tensor, Tensor], at_most: float = 1e-5) -> None:
    """Within rounding of float64."""
    for got, exact in zip(result, step.exact(), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=at_most, atol=at_most)


leaves = st.sampled_from(
    [
        pc.causal(),
        pc.full(),
        WINDOW,
        pc.causal() & pc.window(9),
        pc.window(5, 3) | pc.global_tokens([2, 30]),
        pc.causal() & pc.random_edges(4, seed=3),
        pc.chunked(20) & pc.causal(),
        pc.window(3) & ~pc.prefix(25),
    ]
)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Steps of any kind: patterns of their own for heads, groups of any size, lengths, offsets."""
    group, key_heads = draw(st.sampled_from([(1, 2), (2, 1), (3, 1), (3, 2), (5, 1)]))
    n, rows = draw(st.integers(4, 90)), draw(st.integers(1, 4))
    offset = draw(st.integers(0, 20))
    heads = group * key_heads
    pattern = draw(
        st.one_of(leaves, st.lists(leaves, min_size=heads, max_size=heads).map(pc.heads))
    )
    batch = draw(st.integers(1, 3))
    position = draw(
        st.lists(st.integers(offset, offset + n - rows), min_size=batch, max_size=batch)
    )
    lengths = draw(st.lists(st.integers(0, n + offset + 5), min_size=batch, max_size=batch))
    return step_of(
        pattern,
        n,
        rows,
        (heads, key_heads),
        position,
        lengths,
        options=tuple(sorted(draw(st.sets(st.sampled_from(OPTIONS), max_size=5)))),
        seed=draw(st.integers(0, 99)),
        q_offset=offset,
        block=draw(st.sampled_from([16, 32, (16, 64)])),
    )


@settings(max_examples=40)
@given(steps(), st.sampled_from([16, 32, 128]))
def test_any_step(step: Step, page: int) -> None:
    """A cache in one piece and one in pages: rows of dense attention, junk in every unread slot."""
    check(step, run(step, *step.poisoned()))
    check(step, run(step, *step.paged(page)))


@settings(max_examples=8)
@given(steps())
def test_the_dense_backend_too(step: Step) -> None:
    k, v, table = step.paged(16)
    sound = torch.where((table >= 0) & (table < len(k)), table, 0)
    check(step, run(step, k, v, sound, backend="reference"))


def test_rows_of_the_whole_pass() -> None:
    """Every row at once, which stand in several tile rows, and one by one."""
    step = step_of(WINDOW, 50, 50, (6, 2), [0, 0], block=16)
    whole = pc.attention(step.q, step.k, step.v, step.layout, enable_gqa=True)
    at_once, _ = run(step, step.k, step.v)
    torch.testing.assert_close(at_once, whole)
    for i in (0, 15, 16, 49):
        one = replace(step, q=step.q[:, :, i : i + 1], position=torch.full((2,), i).int())
        torch.testing.assert_close(run(one, *one.paged(16))[0], whole[:, :, i : i + 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype: torch.dtype) -> None:
    """At most twice the error of dense attention in the same precision, plus one rounding."""
    for options in ((), OPTIONS):
        step = step_of(
            WINDOW, 300, 2, (4, 2), [120, 298], dtype=dtype, options=options, dims=(16, 16)
        )
        out, _ = run(step, *step.paged(16))
        exact, _ = step.exact()
        rounding = torch.finfo(dtype).eps
        usual = (dense(step).double() - exact).abs().max()
        assert (out.double() - exact).abs().max() <= 2 * usual + rounding * exact.abs().max()


def dense(step: Step) -> Tensor:
    """The same in the precision of the tensors, without care."""
    group = step.q.shape[1] // step.k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (step.k, step.v))
    s = step.scored(step.q @ k.transpose(-1, -2) * step.q.shape[-1] ** -0.5).to(step.q.dtype)
    s = s.masked_fill(~step.edges(), -torch.inf)
    if "sinks" in step.options:
        sinks = step.options["sinks"].to(s.dtype)[:, None, None].expand(*s.shape[:3], 1)
        return torch.softmax(torch.cat([s, sinks], -1), -1)[..., :-1] @ v
    return torch.softmax(s, -1) @ v


def test_sequences_with_masks_of_their_own() -> None:
    ids = np.array([[0] * 20 + [1] * 40, [0] * 60, [0] * 45 + [-1] * 15])
    layout = pc.compile(pc.causal(), 60, doc_ids=ids, block=16)
    same = (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, :, None]
    mask = torch.from_numpy(same & np.tri(60, dtype=bool))[:, None]
    step = step_of(pc.causal(), 60, 2, (3, 1), [21, 40, 44], [60, 30, 60], block=16)
    step = replace(step, layout=layout, mask=mask)
    check(step, run(step, *step.paged(16)))
    carried = pc.carry(layout)
    for got, expected in zip(
        run(replace(step, layout=carried), *step.poisoned()),
        run(step, *step.poisoned()),
        strict=True,
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "order", ["residue", np.random.default_rng(0).permutation(96)], ids=["residue", "any"]
)
def test_terms_in_orders_of_their_own(order: Any) -> None:
    """Pages, lengths and options reach every term, whose keys stand in an order of their own."""
    pattern = pc.causal() & (pc.strided(8) | pc.window(5))
    more: dict[str, Any] = {"options": OPTIONS, "block": 16, "order": order}
    step = step_of(pattern, 96, 3, (4, 2), [60, 93], [58, 96], **more)
    assert any(term.order is not None for term in step.layout.terms)
    k, v, table = step.paged(32)
    check(step, run(step, k, v, torch.where((table >= 0) & (table < len(k)), table, 0)))
    check(step, run(step, *step.poisoned()))


def test_views_of_caches() -> None:
    """Pages as other libraries keep them, one tensor for K and V, and a last axis with gaps."""
    step = step_of(WINDOW, 80, 2, (4, 2), [30, 70], dims=(16, 16), block=16)
    k, v, table = step.paged(16)
    by_slot = torch.stack([k, v], 1).transpose(2, 3).contiguous()  # [pages, 2, page, heads, dim]
    check(step, run(step, by_slot[:, 0].transpose(1, 2), by_slot[:, 1].transpose(1, 2), table))
    apart = [torch.stack([x, x], -1)[..., 0] for x in (k, v)]
    assert apart[0].stride(-1) == 2
    check(step, run(step, *apart, table))


def test_only_what_is_read_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def counted(self: Cache, *where: Any) -> Any:
        found = take(self, *where)
        taken.append(found[0].shape[2])
        return found

    take = Cache.take
    monkeypatch.setattr(Cache, "take", counted)
    step = step_of(WINDOW, 20_000, 1, (4, 1), [19_000], block=64)
    check(step, run(step, *step.paged(64)))
    assert sum(taken) == int(step.read().sum()) == 44


def test_a_page_that_is_read_must_be_there() -> None:
    step = step_of(WINDOW, 80, 1, (2, 1), [30, 70], block=16)
    k, v, table = step.paged(16)
    for entry in (-1, len(k), 2**31 - 1):
        table[1, 4] = entry
        said = rf"block_table\[1, 4\] is {entry}, the cache has pages 0 to {len(k) - 1}"
        with pytest.raises(pc.TensorError, match=said):
            run(step, k, v, table)
    run(replace(step, lengths=torch.tensor([80, 60]).int()), k, v, table)


def test_a_row_that_the_layout_lacks_is_refused_here() -> None:
    step = step_of(WINDOW, 80, 2, (2, 1), [30, 79], block=16)
    with pytest.raises(pc.TensorError, match=r"2 queries at position 79 leave the layout"):
        run(step, step.k, step.v)


Q, K = torch.randn(2, 2, 1, 16), torch.randn(9, 2, 16, 16)
LARGER = torch.randn(9, 2, 24, 16)
LAYOUT = pc.compile(pc.causal(), 70, block=16)
TABLE = torch.arange(10, dtype=torch.int32).remainder(9).view(2, 5)
AT, LENGTHS = torch.tensor([3, 5], dtype=torch.int32), torch.tensor([9, 9], dtype=torch.int32)
REFUSED = {
    "lengths are no tensor": ({"key_lengths": 9}, "key_lengths is a int, not an int32 tensor"),
    "lengths of another type": ({"key_lengths": LENGTHS.long()}, r"int64 on cpu.*torch.int32"),
    "lengths elsewhere": ({"key_lengths": LENGTHS.to("meta")}, "int32 on meta, q is on cpu"),
    "lengths of others": ({"key_lengths": LENGTHS[:1]}, r"shape \(1\), q \(2, 2, 1, 16\).*\(2,\)"),
    "a table of another type": ({"block_table": TABLE.long()}, "block_table is torch.int64"),
    "a table elsewhere": ({"block_table": TABLE.to("meta")}, "on meta, q is on cpu"),
    "a list for a table": ({"block_table": [[0]]}, "block_table is a list"),
    "a flat table": ({"block_table": TABLE[0]}, r"has shape \(5\), q \(2, 2, 1, 16\)"),
    "a table of one sequence": ({"block_table": TABLE[:1]}, r"has shape \(1, 5\), q \(2, 2,"),
    "a table too short": (
        {"block_table": TABLE[:, :4]},
        r"\(2, 4\), so 4 pages of 16 keys a sequence, 64 keys; the layout is for 70: name 5 pages",
    ),
    "pages of 24": ({"k": LARGER, "v": LARGER}, r"pages of 24 keys; .* from 16 to 4096"),
    "other pages": ({"v": K[1:]}, r"k has shape \(9, 2, 16, 16\) and v \(8, 2, 16, 16\)"),
    "flat pages": ({"k": K[0], "v": K[0]}, r"k has shape \(2, 16, 16\); .* x.transpose\(1, 2\)"),
    "other heads": ({"k": K[:, :1], "v": K[:, :1]}, "q has 2 heads and k 1; pass enable_gqa"),
    "other numbers": ({"k": K.double(), "v": K.double()}, "q is torch.float32 on cpu, k is torch"),
    "no query": ({"q": None}, "q is a NoneType, not a tensor"),
    "position elsewhere": ({"position": AT.to("meta")}, "position is on meta, q on cpu"),
    "a mask for a page": ({"key_mask": torch.ones(2, 16).bool()}, r"\(2, 70\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, said = REFUSED[name]
    fine: dict[str, Any] = {"q": Q, "k": K, "v": K, "position": AT, "block_table": TABLE}
    given = fine | change
    with pytest.raises(pc.TensorError, match=said):
        pc.attention(given.pop("q"), given.pop("k"), given.pop("v"), LAYOUT, **given)


def test_a_cache_without_a_position() -> None:
    for more in ({"block_table": TABLE}, {"key_lengths": LENGTHS}):
        with pytest.raises(pc.TensorError, match=f"{next(iter(more))} describes the cache of a"):
            pc.attention(Q, K, K, LAYOUT, **more)  # type: ignore[call-overload]


def test_opcheck() -> None:
    assert op.decode is not None  # its import registers the op
    step = step_of(WINDOW, 70, 2, (4, 2), [3, 68], [50, 70], options=OPTIONS, block=16)
    prepared, plan, _ = upload.prepared(step.layout, step.q.device, "auto")
    k, v, table = step.paged(16)
    names = ("alibi_slopes", "relative_bias", "sinks", "key_mask")
    options = 2.0, *(step.options[x] for x in names)
    decode = torch.ops.patterncc.decode.default
    given = (step.q, k, v, prepared, plan, 0.25, step.position, table, step.lengths)
    torch.library.opcheck(decode, (*given, *options))
    torch.library.opcheck(decode, (step.q, step.k, step.v, *given[3:7]))


def test_one_graph_for_all_steps() -> None:
    """Positions, lengths and tables are inputs of the graph: none of them compiles another one."""
    graphs = []

    def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def layer(
        q: Tensor, k: Tensor, v: Tensor, at: Tensor, lengths: Tensor, table: Tensor
    ) -> Tensor:
        cache = {"position": at, "key_lengths": lengths, "block_table": table}
        return pc.attention(q * 2, k, v, LAYOUT, **cache)

    traced = torch.compile(layer, backend=counted, fullgraph=True)
    for at in (3, 40, 69):
        given = (Q, K, K, torch.tensor([at, 2]).int(), torch.tensor([at + 1, 3]).int())
        table = (TABLE + at) % 9
        torch.testing.assert_close(traced(*given, table), layer(*given, table))
    assert len(graphs) == 1
