"""`MultiheadAttention` held to torch's own under the pattern as attn_mask, alone and in layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import patterncc as pc
from patterncc.attend import multihead

N = 24
WINDOW = pc.causal() & pc.window(7)
LEFT_OUT = ~torch.from_numpy(pc.lower(WINDOW, N).dense())  # as attn_mask of torch.nn
PADDED = torch.arange(N) >= torch.tensor([N, N - 4])[:, None]  # every row still reads a key


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(ours: Tensor, theirs: Tensor, *given: Tensor) -> None:
    """Outputs agree in float64, and the gradients of what is given."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    grad = torch.randn_like(ours)
    one, other = (torch.autograd.grad(y, given, grad, allow_unused=True) for y in (ours, theirs))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def inputs(batch_first: bool, *widths: int, n: int = N) -> list[Tensor]:
    given = [torch.randn(2, n, w, dtype=torch.float64) for w in widths]
    return [(x if batch_first else x.transpose(0, 1).contiguous()).requires_grad_() for x in given]


@pytest.mark.parametrize("batch_first,bias", list(product([True, False], repeat=2)))
def test_self_attention_equals_torch_under_the_mask(batch_first: bool, bias: bool) -> None:
    given = {"bias": bias, "batch_first": batch_first, "dtype": torch.float64}
    theirs = nn.MultiheadAttention(16, 4, **given)
    ours = pc.MultiheadAttention(16, 4, **given, pattern=WINDOW)
    ours.load_state_dict(theirs.state_dict())
    (x,) = inputs(batch_first, 16)
    expected, _ = theirs(x, x, x, attn_mask=LEFT_OUT, need_weights=False)
    out, weights = ours(x, x, x)
    assert weights is None
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-11)
    grad = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, [x, *ours.parameters()], grad),
        torch.autograd.grad(expected, [x, *theirs.parameters()], grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    for floats in (False, True):
        mask = torch.zeros(2, N).double().masked_fill(PADDED, -torch.inf) if floats else PADDED
        expected, _ = theirs(x, x, x, PADDED, need_weights=False, attn_mask=LEFT_OUT)
        same(ours(x, x, x, key_padding_mask=mask)[0], expected, x)


@pytest.mark.parametrize("kdim,vdim", [(None, None), (10, 6)])
def test_keys_of_another_sequence_and_width(kdim: int | None, vdim: int | None) -> None:
    pattern = pc.window(4, 9) | pc.sink(1)
    theirs = nn.MultiheadAttention(16, 2, kdim=kdim, vdim=vdim, dtype=torch.float64)
    ours = pc.MultiheadAttention.of(theirs, pattern)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    (q,) = inputs(False, 16)
    k, v = inputs(False, kdim or 16, vdim or 16, n=31)
    left_out = ~torch.from_numpy(pc.lower(pattern, N, 31).dense())
    expected, _ = theirs(q, k, v, attn_mask=left_out, need_weights=False)
    same(ours(q, k, v)[0], expected, q, k, v, *theirs.parameters())


def test_without_a_batch_and_with_heads_that_differ() -> None:
    patterns = pc.heads([WINDOW, pc.causal(), pc.window(2, 2), pc.full()])
    theirs = nn.MultiheadAttention(16, 4, dtype=torch.float64)
    ours = pc.MultiheadAttention.of(theirs, patterns)
    x = torch.randn(N, 16, dtype=torch.float64, requires_grad=True)
    left_out = ~torch.stack([torch.from_numpy(pc.lower(p, N).dense()) for p in patterns.patterns])
    expected, _ = theirs(x, x, x, attn_mask=left_out, need_weights=False)
    same(ours(x, x, x)[0], expected, x, *theirs.parameters())
    one, _ = ours(x, x, x, key_padding_mask=PADDED[1])
    two, _ = ours(x[:, None], x[:, None], x[:, None], key_padding_mask=PADDED[1:])
    torch.testing.assert_close(one, two[:, 0])


def test_is_causal_takes_the_edges_of_the_past() -> None:
    theirs = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    ours = pc.MultiheadAttention.of(theirs, pc.window(7, 7))
    (x,) = inputs(True, 16)
    for mask in (None, nn.Transformer.generate_square_subsequent_mask(N)):
        expected, _ = theirs(x, x, x, attn_mask=LEFT_OUT, need_weights=False)
        same(ours(x, x, x, attn_mask=mask, is_causal=True)[0], expected, x)


def test_rows_that_read_nothing_give_the_bias_and_no_nan() -> None:
    m = pc.MultiheadAttention(16, 4, batch_first=True, pattern=WINDOW)
    x = torch.randn(2, N, 16, requires_grad=True)
    out, _ = m(x, x, x, key_padding_mask=torch.tensor([[False] * N, [True] * N]))
    assert torch.equal(out[1], m.out_proj.bias.expand(N, 16))
    out.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad[1] == 0).all()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of queries at each call of attention over a pattern."""
    seen: list[int] = []
    attend = multihead.attend

    def counted(owner: str, q: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.append(q.shape[2])
        return attend(owner, q, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(multihead, "attend", counted)
    return seen


def encoder(norm_first: bool = False) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)


@pytest.mark.parametrize("train,grad,norm_first", list(product([True, False], repeat=3)))
def test_the_pattern_runs_in_encoders(
    train: bool, grad: bool, norm_first: bool, calls: list[int]
) -> None:
    model = encoder(norm_first).train(train)
    (x,) = inputs(True, 16)
    for padded in (None, PADDED):
        with torch.set_grad_enabled(grad):
            expected = model(x, mask=LEFT_OUT, src_key_padding_mask=padded)
            calls.clear()
            with pc.MultiheadAttention.swap(model, WINDOW) as swapped:
                out = model(x, src_key_padding_mask=padded)
        assert calls == [N, N], "one call for each layer"
        kept = torch.ones(2, N, dtype=torch.bool) if padded is None else ~padded
        torch.testing.assert_close(out[kept], expected[kept], rtol=1e-10, atol=1e-11)
    assert list(swapped.replaced) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert swapped.left == () and "2 replaced" in repr(swapped)


def test_modules_put_in_by_hand_are_not_passed_by_in_evaluation(calls: list[int]) -> None:
    """The encoder hands them nested tensors, which they take too."""
    model = encoder().eval()
    (x,) = (y.detach() for y in inputs(True, 16))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        expected = model(x, mask=LEFT_OUT, src_key_padding_mask=PADDED)
        for layer in model.layers:
            layer.self_attn = pc.MultiheadAttention.of(layer.self_attn, WINDOW)
        out = model(x, src_key_padding_mask=PADDED)
        torch.testing.assert_close(out[~PADDED], expected[~PADDED], rtol=1e-10, atol=1e-11)
        assert len(calls) == 2
        layer = model.layers[0]
        torch.testing.assert_close(layer(x), layer(x, src_key_padding_mask=PADDED & False))
        assert len(calls) == 4
        nested = torch.nested.nested_tensor([x[0], x[1, :5]])
        with pytest.raises(pc.TensorError, match=r"a nested tensor in training.*to_padded_tensor"):
            layer.self_attn(nested, nested, nested, key_padding_mask=PADDED)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_that_would_be_read_in_another_order_are_refused() -> None:
    pieces = [torch.randn(3, 16), torch.randn(2, 16), torch.randn(3, 16)]
    for batch_first, layout in ((False, torch.strided), (True, torch.jagged)):
        nested = torch.nested.nested_tensor(pieces, layout=layout)
        m = pc.MultiheadAttention(16, 2, batch_first=batch_first, pattern=pc.causal())
        with pytest.raises(pc.TensorError, match=f"batch_first={batch_first}; a nested tensor is"):
            m(nested, nested, nested)


def test_an_encoder_built_of_our_layers_says_why_it_makes_no_nested_tensors() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    layer.self_attn = pc.MultiheadAttention.of(layer.self_attn, WINDOW)
    with pytest.warns(UserWarning, match="_qkv_same_embed_dim was not True"):
        assert not nn.TransformerEncoder(layer, 2).use_nested_tensor


@pytest.mark.parametrize("train", [True, False])
def test_the_pattern_runs_in_decoders(train: bool, calls: list[int]) -> None:
    given = {"dropout": 0.0, "batch_first": True, "dtype": torch.float64}
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, **given), 2).train(train)
    x, memory = inputs(True, 16, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(N, dtype=torch.float64)
    expected = model(x, memory, tgt_mask=LEFT_OUT)
    with pc.MultiheadAttention.swap(model, pc.window(7, 7)) as swapped:
        same(model(x, memory, tgt_mask=causal), expected, x, memory)
        assert calls == [N, N]
    assert swapped.left == ("layers.0.multihead_attn", "layers.1.multihead_attn")
    across = pc.window(3, 3)
    left_out = ~torch.from_numpy(pc.lower(across, N, N).dense())
    expected = model(x, memory, tgt_mask=LEFT_OUT, memory_mask=left_out)
    chosen = lambda name, module: across if name.endswith("multihead_attn") else WINDOW  # noqa: E731
    with pc.MultiheadAttention.swap(model, chosen):
        same(model(x, memory), expected, x, memory)


def test_swapping_leaves_no_trace() -> None:
    model = encoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (x,) = inputs(True, 16)
    before, names = model(x), list(model.state_dict())
    held = model.layers[0].self_attn
    kept = [dict(m.__dict__) for m in model.modules()]
    stack = pc.Stack([WINDOW, pc.causal()])
    swapped = pc.MultiheadAttention.swap(model, stack, dropout=0.0)
    assert list(swapped.replaced.values()) == list(stack.layers)
    assert model.layers[0].self_attn is held and isinstance(held, pc.MultiheadAttention)
    assert list(model.state_dict()) == names and not torch.allclose(model(x), before)
    again = pc.MultiheadAttention.swap(model, pc.full())
    torch.testing.assert_close(model(x), before)
    with pytest.raises(pc.PatternError, match=r"no longer over .*undo what was done to it since"):
        swapped.undo()
    again.undo(), swapped.undo(), swapped.undo()
    assert [m.__dict__ for m in model.modules()] == kept and type(held) is nn.MultiheadAttention
    assert torch.equal(model(x), before)
    with pc.MultiheadAttention.swap(model, WINDOW):
        model(x).sum().backward()
        optimizer.step()
    assert not torch.equal(model(x), before)  # what was learned stays


def test_copies_and_casts() -> None:
    m = pc.MultiheadAttention(16, 4, batch_first=True, pattern=WINDOW)
    x = torch.randn(2, N, 16)
    out, _ = m(x, x, x)
    assert torch.equal(copy.deepcopy(m)(x, x, x)[0], out)
    narrow = copy.deepcopy(m).to(torch.bfloat16)
    low, _ = narrow(*[x.bfloat16()] * 3)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), out, rtol=5e-2, atol=5e-2)
    m._reset_parameters()
    assert not torch.equal(m(x, x, x)[0], out) and "heads=4" in repr(m)


def test_what_a_pattern_cannot_do_is_refused() -> None:
    m = pc.MultiheadAttention(16, 4, dropout=0.1, batch_first=True, pattern=WINDOW)
    x = torch.randn(2, N, 16)
    with pytest.raises(pc.TensorError, match=r"dropout 0.1 of attention weights in training"):
        m(x, x, x)
    m.eval()
    adds = torch.full((2, N), 0.5)
    for message, given in (
        ("need_weights=True asks for all", {"need_weights": True}),
        (r"attn_mask of shape \(24, 24\); say which keys.*pc.edges", {"attn_mask": LEFT_OUT}),
        (
            r"key_padding_mask has shape \(2, 5\), which is not \(batch, keys\) = \(2, 24\)",
            {"key_padding_mask": PADDED[:, :5]},
        ),
        ("adds numbers other than 0 and -inf", {"key_padding_mask": adds}),
        ("key_padding_mask is torch.int64", {"key_padding_mask": PADDED.long()}),
        ("is_causal=True beside a compiled", {"layout": pc.compile(WINDOW, N), "is_causal": True}),
    ):
        with pytest.raises(pc.TensorError, match=message):
            m(x, x, x, **given)
    with pytest.raises(pc.TensorError, match=r"key has shape \(2, 24, 8\).*\(B, L, 16\)"):
        m(x, x[..., :8], x)
    for given in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(pc.PatternValueError, match="the keys that they add stand at no"):
            pc.MultiheadAttention(16, 4, pattern=WINDOW, **given)
    with pytest.raises(pc.PatternValueError, match="4 heads, but a pattern for 2"):
        pc.MultiheadAttention(16, 4, pattern=pc.heads([WINDOW] * 2))


def test_models_that_cannot_be_swapped_are_refused_and_stay_as_they_are() -> None:
    class Own(nn.MultiheadAttention):
        pass

    swap = pc.MultiheadAttention.swap
    model = nn.ModuleList([nn.MultiheadAttention(8, 2), Own(8, 2)])
    with pytest.raises(pc.PatternError, match=r"1 is a Own, not nn.MultiheadAttention itself"):
        swap(model, WINDOW)
    assert type(model[0]) is nn.MultiheadAttention
    with swap(model, lambda name, m: WINDOW if name == "0" else None) as swapped:
        assert swapped.left == ("1",)
    with pytest.raises(pc.PatternError, match=r"2 modules of self-attention.*the stack 3 layers"):
        swap(model, pc.Stack([WINDOW] * 3))
    with pytest.raises(pc.PatternError, match=r"nothing to replace in a Linear.*pc.sdpa_as"):
        swap(nn.Linear(2, 2), WINDOW)
    with pytest.raises(pc.PatternError, match="'causal' is not a pattern"):
        swap(model, "causal")  # type: ignore[arg-type]
    with pytest.raises(pc.PatternValueError, match="0: 2 heads, but a pattern for 3"):
        swap(nn.ModuleList([nn.MultiheadAttention(8, 2)]), pc.heads([WINDOW] * 3))
