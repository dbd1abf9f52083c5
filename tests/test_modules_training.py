"""Modules over patterns where models are trained: two processes, checkpoints, tracing, autocast."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import patterncc as pc

N, DIM = 24, 16
WINDOW = pc.causal() & pc.window(7)
MASK = torch.from_numpy(pc.lower(WINDOW, N).dense())


class ByCall(nn.Module):
    """A call site of scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor, **layout: object) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, DIM // 2)).permute(2, 0, 3, 1, 4)
        over = layout.get("layout", WINDOW)
        o = pc.scaled_dot_product_attention(q, k, v, pattern=over)  # type: ignore[arg-type]
        return o.transpose(1, 2).flatten(2)


class Multihead(nn.Module):
    """A call site of nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = pc.MultiheadAttention(DIM, 2, batch_first=True, pattern=WINDOW)

    def forward(self, x: Tensor, **layout: object) -> Tensor:
        return self.attn(x, x, x, **layout)[0]


MODULES: dict[str, Callable[[], nn.Module]] = {
    "sparse": lambda: pc.SparseAttention(DIM, 4, 2, WINDOW),
    "multihead": Multihead,
    "call": ByCall,
}


class Model(nn.Module):
    """A block of each kind, and of torch's encoder layer with its attention replaced."""

    def __init__(self) -> None:
        super().__init__()
        encoder = nn.TransformerEncoderLayer(DIM, 2, 2 * DIM, dropout=0.0, batch_first=True)
        pc.MultiheadAttention.swap(encoder, WINDOW)
        self.blocks = nn.ModuleList([*(make() for make in MODULES.values()), encoder])

    def forward(self, x: Tensor, reentrant: bool | None = None) -> Tensor:
        for block in self.blocks:
            x = x + (
                block(x) if reentrant is None else checkpoint(block, x, use_reentrant=reentrant)
            )
        return x


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made() -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    return Model(), torch.randn(4, N, DIM)


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def one_of_two(rank: int, store: str) -> None:
    """Half of the batch in DDP and in FSDP2, held to the whole batch in one process."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=3),
    )
    try:
        _compared(rank)
    finally:
        torch.distributed.destroy_process_group()


def _compared(rank: int) -> None:
    model, x = made()
    model(x).square().mean().backward()
    half = x[2 * rank : 2 * rank + 2]

    parallel = DistributedDataParallel(made()[0])
    parallel(half).square().mean().backward()
    for one, other in zip(grads(parallel), grads(model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

    sharded = made()[0]
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    out = sharded(half)
    torch.testing.assert_close(out, model(x)[2 * rank : 2 * rank + 2], rtol=1e-4, atol=1e-5)
    out.square().mean().backward()
    for one, other in zip(grads(sharded), grads(model), strict=True):
        torch.testing.assert_close(one.full_tensor(), other, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # a Linear with a bias returns a view
def test_two_processes_with_ddp_and_with_fsdp_have_the_gradients_of_one(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    spawn = torch.multiprocessing.get_context("spawn")  # this process is the other one of the two
    second = spawn.Process(target=one_of_two, args=(1, store), daemon=True)
    second.start()
    one_of_two(0, store)
    second.join()
    assert second.exitcode == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations(reentrant: bool) -> None:
    model, x = made()
    x.requires_grad_()  # a reentrant checkpoint needs an input that does
    model(x).square().mean().backward()
    again = copy.deepcopy(model)
    again.zero_grad()
    again(x, reentrant).square().mean().backward()
    for one, other in zip(grads(again), grads(model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", MODULES)
def test_carried_layouts_of_many_lengths_are_one_graph(name: str) -> None:
    graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch._dynamo.reset()
    model = MODULES[name]()
    traced = torch.compile(model, fullgraph=True, backend=count)
    for n in (24, 33, 70, 41):
        x = torch.randn(2, n, DIM)
        layout = pc.carry(pc.compile(WINDOW, n))
        torch.testing.assert_close(traced(x, layout=layout), model(x))
    assert graphs <= 3, "a length was traced again"


def test_traced_with_gradients_and_in_evaluation() -> None:
    torch._dynamo.reset()
    model, x = made()
    traced = torch.compile(model, fullgraph=True, backend="aot_eager")
    model(x).square().mean().backward()
    expected = grads(model)
    model.zero_grad()
    traced(x).square().mean().backward()
    for one, other in zip(grads(model), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    layer = model.blocks[-1].eval()  # where torch would take its fast path
    with torch.no_grad():
        traced = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(traced(x), layer(x))


def test_traced_with_padding_causal_contexts_memories_and_caches() -> None:
    torch._dynamo.reset()
    x, y = torch.randn(2, N, DIM), torch.randn(2, 9, DIM)
    padded = torch.arange(N) >= torch.tensor([N, 20])[:, None]
    m = pc.MultiheadAttention(DIM, 2, batch_first=True, pattern=pc.window(7, 7))
    traced = torch.compile(m, fullgraph=True, backend="eager")
    floats = torch.zeros(2, N).masked_fill(padded, -torch.inf)
    for given in ({"key_padding_mask": padded}, {"key_padding_mask": floats}, {"is_causal": True}):
        torch.testing.assert_close(traced(x, x, x, **given), m(x, x, x, **given))
    with pytest.raises(RuntimeError, match="adds numbers other than 0 and -inf"):
        traced(x, x, x, key_padding_mask=floats + 1)
    s = pc.SparseAttention(DIM, 4, 2, WINDOW)
    traced = torch.compile(s, fullgraph=True, backend="eager")
    for given in ({"context": y}, {"memory": y}):
        torch.testing.assert_close(traced(x, **given), s(x, **given))
    with torch.no_grad():
        one, other = s.new_cache(2, 64), s.new_cache(2, 64)
        for piece, at in ((x, 0), (x[:, :1], torch.tensor([24, 7]))):
            ours = traced(piece, cache=one, position=at)
            torch.testing.assert_close(ours, s(piece, cache=other, position=at))
        torch.testing.assert_close(one, other)


def test_rerouted_calls_are_traced_once() -> None:
    torch._dynamo.reset()
    graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    def model(q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(F.scaled_dot_product_attention(q, q, q), q, q)

    q = torch.randn(2, 2, N, 8)
    traced = torch.compile(model, fullgraph=True, backend=count)
    expected = F.scaled_dot_product_attention(q, q, q, MASK)
    expected = F.scaled_dot_product_attention(expected, q, q, MASK)
    dense = traced(q)
    for _ in range(2):  # another block is not traced again either
        with pc.sdpa_as(WINDOW) as rerouted:
            for _ in range(5):
                torch.testing.assert_close(traced(q), expected)
        assert rerouted.calls == 10
    assert graphs == 2 and torch.equal(traced(q), dense)
    stack = pc.Stack([WINDOW, pc.full()])
    with pytest.raises(Exception, match=r"within a graph of torch.compile"), pc.sdpa_as(stack):
        traced(q)


@pytest.mark.parametrize("train", [True, False])
def test_a_model_that_was_compiled_before_is_traced_again_when_swapped(train: bool) -> None:
    torch._dynamo.reset()
    layer = nn.TransformerEncoderLayer(DIM, 2, DIM, dropout=0.0, batch_first=True).train(train)
    traced, x = torch.compile(layer, fullgraph=True, backend="eager"), torch.randn(2, N, DIM)
    with torch.set_grad_enabled(train):
        dense, expected = traced(x), layer(x, src_mask=~MASK)
        with pc.MultiheadAttention.swap(layer, WINDOW):
            torch.testing.assert_close(traced(x), expected)
        torch.testing.assert_close(traced(x), dense)


@pytest.mark.parametrize("name", MODULES)
def test_exported_programs_are_saved_and_loaded(name: str) -> None:
    model, x = MODULES[name](), torch.randn(2, N, DIM)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), model(x))


def test_autocast_trains_and_states_go_round() -> None:
    model, x = made()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        loss = out.float().square().mean()
    loss.backward()
    low = grads(model)
    model.zero_grad()
    model(x).square().mean().backward()
    for one, other in zip(low, grads(model), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.1, atol=3e-3)
    torch.manual_seed(1)
    again, file = Model(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again(x), model(x))
    narrow = copy.deepcopy(model).to(torch.bfloat16)(x.bfloat16())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), model(x), rtol=0.1, atol=0.1)
