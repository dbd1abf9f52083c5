"""Call sites of F.scaled_dot_product_attention over a pattern, held to torch under its mask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import patterncc as pc

N = 24
WINDOW = pc.causal() & pc.window(7)
MASK = torch.from_numpy(pc.lower(WINDOW, N).dense())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensor(*sizes: int) -> Tensor:
    return torch.randn(*sizes, dtype=torch.float64, requires_grad=True)


def same(ours: Tensor, theirs: Tensor, *given: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    grad = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, given, grad) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "q,k",
    [
        ((2, 4, N, 8), (2, 4, N, 8)),
        ((2, 3, 4, N, 8), (2, 3, 4, N, 8)),  # two axes of batches
        ((4, N, 8), (4, N, 8)),  # none
        ((N, 8), (N, 8)),  # nor heads
        ((2, 4, N, 8), (1, 4, N, 8)),  # batches broadcast
        ((2, 4, N, 8), (2, 1, N, 8)),  # and so do heads
        ((2, 1, N, 8), (2, 4, N, 8)),
        ((3, 1, 4, N, 8), (2, 4, N, 8)),
    ],
)
def test_axes_are_those_of_torch(q: tuple[int, ...], k: tuple[int, ...]) -> None:
    given = tensor(*q), tensor(*k), tensor(*k[:-1], 5)
    ours = pc.scaled_dot_product_attention(*given, pattern=WINDOW)
    theirs = F.scaled_dot_product_attention(*given, attn_mask=MASK)
    assert ours.shape == theirs.shape
    same(ours, theirs, *given)


def test_options_are_those_of_torch() -> None:
    q, k, v = tensor(2, 4, N, 8), tensor(2, 2, 40, 8), tensor(2, 2, 40, 8)
    pattern = pc.window(5, 9) | pc.sink(2)
    for causal in (False, True):
        edges = pattern & pc.causal() if causal else pattern
        mask = torch.from_numpy(pc.lower(edges, N, 40).dense())
        given = {"is_causal": causal, "scale": 0.3, "enable_gqa": True}
        ours = pc.scaled_dot_product_attention(q, k, v, **given, pattern=pattern)
        given["is_causal"] = False
        same(ours, F.scaled_dot_product_attention(q, k, v, mask, **given), q, k, v)
    whole = pc.scaled_dot_product_attention(q, q, q, None, 0.0, True, pattern=pc.full())
    same(whole, F.scaled_dot_product_attention(q, q, q, is_causal=True), q)  # at the top left
    layout = pc.compile(WINDOW, N)
    ours = pc.scaled_dot_product_attention(q, q, q, pattern=layout)
    same(ours, F.scaled_dot_product_attention(q, q, q, MASK), q)


@pytest.mark.parametrize("form", ["bool", "float", "expanded", "of keys alone", "one sequence"])
def test_a_mask_of_keys(form: str) -> None:
    given = q, k, v = tensor(2, 4, N, 8), tensor(2, 4, N, 8), tensor(2, 4, N, 8)
    keep = torch.arange(N) < torch.tensor([N, N - 5])[:, None]
    mask = keep[:, None, None]
    match form:
        case "float":
            mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
        case "expanded":
            mask = mask.expand(2, 4, N, N)
        case "of keys alone":
            mask = keep[1]
        case "one sequence":
            mask = mask[1:]
    ours = pc.scaled_dot_product_attention(*given, attn_mask=mask, pattern=WINDOW)
    both = MASK & (mask if mask.dtype == torch.bool else mask == 0)
    same(ours, F.scaled_dot_product_attention(q, k, v, both), *given)


def test_what_a_pattern_cannot_do_is_refused() -> None:
    q = torch.randn(2, 4, N, 8)
    for message, given in (
        (r"dropout_p=0.1 of attention weights", {"dropout_p": 0.1}),
        (r"attn_mask of shape \(24, 24\) differs between queries.*pc.edges", {"attn_mask": MASK}),
        (r"attn_mask of shape \(2, 4, 1, 24\) differs", {"attn_mask": torch.ones(2, 4, 1, N) > 0}),
        (
            r"\(2, 1, 1, 5\), the batch \(2,\) and there are 24",
            {"attn_mask": MASK[:2, None, None, :5]},
        ),
        ("adds numbers other than 0 and -inf", {"attn_mask": torch.full((N,), 0.5)}),
    ):
        with pytest.raises(pc.TensorError, match=message):
            pc.scaled_dot_product_attention(q, q, q, **given, pattern=WINDOW)
    with pytest.raises(pc.TensorError, match=r"do not broadcast.*enable_gqa=True"):
        pc.scaled_dot_product_attention(q, q[:, :2], q[:, :2], pattern=WINDOW)
    with pytest.raises(pc.TensorError, match="is nested or has no axis"):
        pc.scaled_dot_product_attention(q[0, 0, 0], q, q, pattern=WINDOW)
    with pytest.raises(pc.PatternError, match="is not a pattern"):
        pc.scaled_dot_product_attention(q, q, q, pattern="causal")  # type: ignore[arg-type]


def test_under_autocast_as_torch() -> None:
    q = torch.randn(2, 4, N, 8)
    with torch.autocast("cpu", torch.bfloat16):
        ours = pc.scaled_dot_product_attention(q, q, q.bfloat16(), pattern=WINDOW)
        theirs = F.scaled_dot_product_attention(q, q, q.bfloat16(), MASK)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


class Foreign(nn.Module):
    """Code of somebody else: layers that call torch's function."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 24) for _ in range(layers)]).double()

    def one(self, layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = layer(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + o.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, masks: list[Tensor] | None = None) -> Tensor:
        for l, layer in enumerate(self.layers):
            x = self.one(layer, x, None if masks is None else masks[l])
        return x


def test_calls_of_a_foreign_model_are_rerouted() -> None:
    model, x = Foreign(2), tensor(2, N, 8)
    stack = pc.Stack([WINDOW, pc.full()])
    masks = [torch.from_numpy(pc.lower(p, N).dense()) for p in (WINDOW, pc.full())]
    with pc.sdpa_as(stack) as swapped:
        for _ in range(2):  # the count starts anew after the last layer
            same(model(x), model_outside(model, x, masks), x, *model.parameters())
    assert swapped.calls == 4 and swapped.seen == {(0, N, N): 2, (1, N, N): 2}
    with pc.sdpa_as(pc.compile(stack, N)) as swapped:
        out = model(x)
        torch.ops.aten.scaled_dot_product_attention(*torch.randn(3, 1, 2, N, 4))
        F.scaled_dot_product_attention(query=x, key=x, value=x)
    torch.testing.assert_close(out, model(x, masks))
    assert swapped.calls == 4


def model_outside(model: Foreign, x: Tensor, masks: list[Tensor]) -> Tensor:
    """The model under dense masks, within a block that reroutes its calls."""
    with torch._C.DisableTorchFunction():
        return model(x, masks)


def test_a_count_that_does_not_fit_is_an_error() -> None:
    model, x = Foreign(3), torch.randn(1, N, 8, dtype=torch.float64)
    two = pc.Stack([WINDOW, pc.full()])
    with (
        pytest.raises(pc.PatternError, match=r"3 calls of .*, the stack has 2 lay"),
        pc.sdpa_as(two),
    ):
        model(x)
    with pytest.raises(pc.PatternError, match=r"no call of .* within the"), pc.sdpa_as(WINDOW):
        model.layers[0](x)
    with pytest.raises(ZeroDivisionError), pc.sdpa_as(WINDOW):  # it comes through
        1 / 0  # noqa: B018
    with pytest.raises(pc.PatternError, match=r"not a PatternFile; pass its \.stack"):
        pc.sdpa_as(pc.loads("edges:\n  a: causal()\n"))  # type: ignore[arg-type]


def test_attention_by_other_functions_is_refused() -> None:
    m, x = nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(1, N, 16)
    named = r"multi_head_attention_forward, .*\.swap\("
    for train in (True, False):
        m.train(train)
        with pytest.raises(pc.TensorError, match=named), torch.no_grad(), pc.sdpa_as(WINDOW):
            m(x, x, x, need_weights=False)
    q = torch.randn(1, 2, N, 8)
    with pytest.raises(pc.TensorError, match=r"product_flash_attention"), pc.sdpa_as(WINDOW):
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)
    with pytest.raises(pc.TensorError, match=r"dropout_p=0.5"), pc.sdpa_as(WINDOW):
        F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("call", ["method", "function", "grad"])
def test_checkpoints_within_the_block(reentrant: bool, call: str) -> None:
    model, x = Foreign(2), tensor(2, N, 8)

    def run() -> Tensor:
        h = x
        for layer in model.layers:
            h = checkpoint(model.one, layer, h, None, use_reentrant=reentrant)
        return h

    weights = list(model.parameters())
    expected = torch.autograd.grad(model(x, [MASK] * 2).square().sum(), weights)
    if reentrant and call == "grad":
        with (
            pytest.raises(RuntimeError, match="not have been used in the graph"),
            pc.sdpa_as(WINDOW),
        ):
            torch.autograd.grad(run().sum(), weights)
        return
    with pc.sdpa_as(WINDOW) as swapped:
        loss = run().square()
        match call:
            case "method":
                loss.sum().backward()
            case "function":
                torch.autograd.backward([loss], [torch.ones_like(loss)])
            case _:
                found = torch.autograd.grad(loss.sum(), weights)
    assert swapped.calls == 4, "each layer once more"
    for one, other in zip(
        found if call == "grad" else [w.grad for w in weights], expected, strict=True
    ):
        torch.testing.assert_close(one, other)
    stack = pc.Stack([WINDOW, pc.full()])
    with pytest.raises(pc.PatternError, match="a call within a backward"), pc.sdpa_as(stack):
        run().sum().backward()


def test_checkpoints_whose_backward_pass_comes_after_the_block_are_told() -> None:
    """Their calls would be dense there; one kind of checkpoint notices that, the other does not."""
    model, x = Foreign(2), tensor(2, N, 8)

    def run(reentrant: bool) -> Tensor:
        h = x
        for layer in model.layers:  # one in the other
            h = checkpoint(
                lambda h: checkpoint(model.one, layer, h, None, use_reentrant=reentrant),  # noqa: B023
                h,
                use_reentrant=reentrant,
            )
        return h

    told = r"2 calls in checkpoints \(use_reentrant=True\).*keep backward\(\) within"
    with pytest.raises(pc.PatternError, match=told), pc.sdpa_as(WINDOW):
        run(True)
    with pc.sdpa_as(WINDOW):
        run(True).sum().backward()
    warned = pytest.warns(UserWarning, match="None of the inputs have requires_grad")
    with warned, torch.no_grad(), pc.sdpa_as(WINDOW):
        run(True)
    with pc.sdpa_as(WINDOW):
        loss = run(False).sum()
    with pytest.raises(RuntimeError, match="number of tensors was saved"):
        loss.backward()


def test_where_queries_stand_is_asked_where_it_is_open() -> None:
    q, k = tensor(1, 2, 5, 8), tensor(1, 2, N, 8)
    with pytest.raises(pc.TensorError, match="5 queries on 24 keys; say where"), pc.sdpa_as(WINDOW):
        F.scaled_dot_product_attention(q, k, k)
    for queries, mask in (("first", MASK[:5]), ("last", MASK[-5:])):
        with pc.sdpa_as(WINDOW, queries=queries):
            ours = F.scaled_dot_product_attention(q, k, k)
        same(ours, F.scaled_dot_product_attention(q, k, k, mask), q, k)
    with pc.sdpa_as(pc.Stack([WINDOW], memory=N - 5)):
        ours = F.scaled_dot_product_attention(q, k, k)
    same(ours, F.scaled_dot_product_attention(q, k, k, MASK[-5:]), q, k)
    with (
        pytest.raises(
            pc.TensorError, match=r"q_offset=-19, \(1, 2, 24, 8\) queries on .* give q_of"
        ),
        pc.sdpa_as(WINDOW, queries="last"),
    ):
        F.scaled_dot_product_attention(k, q, q)
    with pytest.raises(pc.TensorError, match="q_offset=3 beside is_causal=True"):
        pc.scaled_dot_product_attention(q, k, k, is_causal=True, pattern=WINDOW, q_offset=3)
    with pytest.raises(pc.PatternValueError, match='queries is "first" or "last", not'):
        pc.sdpa_as(WINDOW, queries="end")  # type: ignore[arg-type]


def test_gradients_within_the_block_are_those_of_torch() -> None:
    q = tensor(1, 2, N, 8)
    with pc.sdpa_as(WINDOW):
        out = F.scaled_dot_product_attention(q, q, q)
        grad = torch.randn_like(out)
        out.backward(gradient=grad, retain_graph=True)
        one = torch.autograd.grad(out, q, grad, retain_graph=True)
        two = torch.autograd.grad([out], inputs=[q], grad_outputs=[grad], retain_graph=True)
        out.backward(grad, inputs=[q])
        with pytest.raises(RuntimeError, match="does not require grad"):
            grad.sum().backward()
    assert q.grad is not None
    expected = torch.autograd.grad(F.scaled_dot_product_attention(q, q, q, MASK), q, grad)
    for found in (one[0], two[0], q.grad / 2):
        torch.testing.assert_close(found, expected[0])
