"""Models that hold layouts, saved by torch.export and traced with batches of any size."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import patterncc as pc
from patterncc.attend.checks import AnyLayout

N = 128
PATTERNS = {
    "window": pc.causal() & pc.window(20),
    "bigbird": pc.window(8) | pc.global_tokens([0, 1]) | pc.random_blocks(2, block=16, seed=1),
    "reordered": pc.causal() & pc.strided(8) | pc.clusters([i % 5 for i in range(N)]),
}


class Attention(nn.Module):
    def __init__(self, layout: AnyLayout, position: int | None = None) -> None:
        super().__init__()
        self.layout, self.position = layout, position

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return pc.attention(q, k, v, self.layout, position=self.position)


def tensors(batch: int, rows: int = N) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, 2, rows, 16),
        torch.randn(batch, 2, N, 16),
        torch.randn(batch, 2, N, 16),
    )


def saved(program: ExportedProgram) -> ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_saved_program_takes_any_batch(name: str, carry: bool) -> None:
    layout = pc.compile(PATTERNS[name], N)
    model = Attention(pc.carry(layout) if carry else layout)
    batch = Dim("batch", min=1, max=64)
    program = torch.export.export(model, tensors(3), dynamic_shapes=({0: batch},) * 3)
    again = saved(program).module()
    for size in (1, 2, 5):
        given = tensors(size)
        assert torch.equal(again(*given), model(*given))


def test_a_saved_decode_step_takes_any_batch() -> None:
    layout = pc.compile(PATTERNS["window"], N)
    model, batch = Attention(layout, position=70), Dim("batch", min=1, max=64)
    program = torch.export.export(model, tensors(3, 1), dynamic_shapes=({0: batch},) * 3)
    again = saved(program).module()
    for size in (1, 2, 5):
        given = tensors(size, 1)
        assert torch.equal(again(*given), model(*given))


def test_a_saved_module_of_a_pattern() -> None:
    model = pc.SparseAttention(32, 2, pattern=PATTERNS["window"])
    x = torch.randn(2, N, 32)
    again = saved(torch.export.export(model, (x,))).module()
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("held", [lambda layout: layout, pc.carry], ids=["layout", "carried"])
def test_one_graph_for_all_batches(held: Callable[[pc.Layout], AnyLayout]) -> None:
    """A batch as large as some table is long (3 and 5 rows here) meets the same graph."""
    graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch._dynamo.reset()
    model = Attention(held(pc.compile(PATTERNS["window"], N, block=32)))
    traced = torch.compile(model, dynamic=True, fullgraph=True, backend=count)
    for size in (3, 5, 2, 7, 4):
        given = tensors(size)
        assert torch.equal(traced(*given), model(*given))
    assert graphs == 1
