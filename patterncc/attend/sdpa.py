"""Call sites of `torch.nn.functional.scaled_dot_product_attention`, one by one or rerouted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from patterncc.attend.checks import AnyLayout, shape
from patterncc.attend.over import How, attend, keys_kept
from patterncc.errors import PatternError, TensorError
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Layer, Stack

_OWNER = "scaled_dot_product_attention"


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    pattern: Layer | AnyLayout,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention over a pattern's edges and nothing else.

    query [.., H, n, D], key [.., Hkv, n_k, D], value [.., Hkv, n_k, Dv] give [.., H, n, Dv]; what
    stands before H are batches, of any number, and broadcast as in torch.  Query i and key j stand
    at the positions i and j, so is_causal (which takes of the pattern only edges with j <= i) is
    aligned at the top left, as in torch.

    attn_mask: only one of keys, [.., 1, 1, n_k], bool with True for keys that are read, or 0 and
    -inf.  pattern: of a layer, or a layout for n and n_k in its place.

    A row that reads nothing gives 0.

    >>> from patterncc import causal, window
    >>> q, k, v = torch.randn(3, 2, 4, 50, 16).unbind()
    >>> scaled_dot_product_attention(q, k, v, pattern=causal() & window(15)).shape
    torch.Size([2, 4, 50, 16])

    Raises TensorError for other masks and for dropout, with how to say it instead.
    """
    if dropout_p > 0:
        raise TensorError(
            f"{_OWNER}: dropout_p={dropout_p} of attention weights, which are never made; pass "
            "dropout_p=0.0 (in a model's config the dropout of attention)"
        )
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.is_nested or x.dim() < 2:
            raise TensorError(
                f"{_OWNER}: {name} is nested or has no axis of tokens; it must be "
                "(.., heads, length, head dim), dense"
            )
    lead, q, k, v = _four_dimensional(query, key, value, enable_gqa)
    keep = None
    if attn_mask is not None:
        of_keys = _of_keys(attn_mask, lead, k.shape[2])
        keep = keys_kept(_OWNER, "attn_mask", of_keys, q.shape[0], k.shape[2])
    q, k, v = _as_autocast(q), _as_autocast(k), _as_autocast(v)
    over = attend(_OWNER, q, k, v, pattern, How(), only_past=is_causal, scale=scale, key_mask=keep)
    out = over.reshape(*lead, *over.shape[1:])
    axes = max(x.dim() for x in (query, key, value))
    return out if axes > 3 else out[0] if axes == 3 else out[0, 0]


def _four_dimensional(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[torch.Size, Tensor, Tensor, Tensor]:
    """What stands before the heads, [1] if nothing does, and tensors [B, H, L, D] of one batch."""
    axes = max(4, query.dim(), key.dim(), value.dim())
    given = [x.reshape(*[1] * (axes - x.dim()), *x.shape) for x in (query, key, value)]
    try:
        lead = _broadcast(*(x.shape[:-3] for x in given))
        if not enable_gqa:
            _broadcast(*(x.shape[-3:-2] for x in given))
    except RuntimeError:
        raise TensorError(
            f"{_OWNER}: query {shape(query)}, key {shape(key)} and value {shape(value)} do not "
            "broadcast before their last two axes; heads that share keys need enable_gqa=True"
        ) from None
    q, k, v = (
        x.expand(*lead, *x.shape[-3:]).reshape(math.prod(lead), *x.shape[-3:]) for x in given
    )
    if not enable_gqa:
        heads = max(x.shape[1] for x in (q, k, v))
        if k.shape[1] != v.shape[1]:
            k, v = (x.expand(-1, heads, -1, -1) for x in (k, v))
        q = q.expand(-1, heads, -1, -1)
    return lead, q, k, v


def _broadcast(*shapes: torch.Size) -> torch.Size:
    common: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return common


def _of_keys(mask: Tensor, lead: torch.Size, n_k: int) -> Tensor:
    """[B, n_k] of a mask that is the same for all heads and queries, [.., 1, 1, n_k] or expanded.

    Raises TensorError for any other.
    """
    whole = mask.reshape(*[1] * (len(lead) + 3 - mask.dim()), *mask.shape)
    told = mask.dim() <= len(lead) + 3
    for axis in (-3, -2):
        told = told and (whole.shape[axis] == 1 or whole.stride(axis) == 0)
    if not told:
        raise TensorError(
            f"{_OWNER}: attn_mask of shape {shape(mask)} differs between queries or heads; say it "
            "by the pattern instead: is_causal=True or causal() & pattern for a causal mask, "
            "pattern & pc.edges(mask.numpy()) for a bool one; pass attn_mask=None, or a mask of "
            "keys alone, (batch, 1, 1, keys)"
        )
    of_keys = whole[..., 0, 0, :]
    try:
        return of_keys.expand(*lead, n_k).reshape(math.prod(lead), n_k)
    except RuntimeError:
        raise TensorError(
            f"{_OWNER}: attn_mask has shape {shape(mask)}, the batch {tuple(lead)} and there "
            f"are {n_k} keys; they do not broadcast"
        ) from None


def _as_autocast(x: Tensor) -> Tensor:
    """In the precision that torch's own function would take under autocast."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))


class sdpa_as(TorchFunctionMode):  # noqa: N801 - read as a verb at its call site
    """Calls of F.scaled_dot_product_attention within a with block run over a pattern.

    Of one pattern (or layout) every call.  Of a Stack the k-th call takes layer k, counted from the
    start of the block; after the last layer the count starts anew with the first, so a forward pass
    must make exactly as many calls as the stack has layers.  When the block ends the count must
    stand at the first layer again.

    The block must hold the backward pass too where activations are checkpointed: the calls are made
    again there.  A stack of several patterns refuses that, since calls come in another order.

    calls: how many were rerouted.  seen: of each (layer, n, n_k) how many.

    What cannot be told by a pattern raises, as in `scaled_dot_product_attention`, and so does
    attention that torch computes by other functions (nn.MultiheadAttention: see
    `pc.MultiheadAttention.swap`).

    >>> from patterncc import causal, window
    >>> q, k, v = torch.randn(3, 1, 2, 50, 16).unbind()
    >>> with sdpa_as(causal() & window(15)) as swapped:
    ...     out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> swapped.calls
    1

    Raises PatternError at the end where there was no call, or not a multiple of the layers.
    """

    def __init__(self, pattern: Stack | Layer | AnyLayout | Sequence[AnyLayout]) -> None:
        super().__init__()
        match pattern:
            case Stack():
                self.layers: tuple[Layer | AnyLayout, ...] = pattern.layers
            case _ if isinstance(pattern, Pattern | Heads | AnyLayout):
                self.layers = (pattern,)
            case tuple() | list() if pattern and all(isinstance(x, AnyLayout) for x in pattern):
                self.layers = tuple(pattern)
            case _:
                hint = "; pass its .stack" if hasattr(pattern, "stack") else ""
                raise PatternError(
                    "sdpa_as: give a pattern, pc.heads([...]), a Stack, or what pc.compile makes "
                    f"of one, not a {type(pattern).__name__}{hint}"
                )
        self.calls = 0
        self.seen: Counter[tuple[int, int, int]] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Reroute the one function, refuse what would attend otherwise, let the rest pass."""
        if func in _SERVED:
            return self._serve(*args, **(kwargs or {}))
        if func in _BACKWARD:
            return self._differentiate(func, args, kwargs or {})
        if func in _REFUSED or getattr(func, "__name__", "").startswith(_KERNELS):
            raise TensorError(
                f"sdpa_as: a call of {getattr(func, '__name__', func)}, which attends without "
                "F.scaled_dot_product_attention; replace nn.MultiheadAttention by "
                "pc.MultiheadAttention.swap(model, pattern)"
            )
        return func(*args, **(kwargs or {}))

    def _serve(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.calls % len(self.layers)
        if len(set(self.layers)) > 1 and torch._C._current_graph_task_id() != -1:
            raise PatternError(
                "sdpa_as: a call within a backward pass (activation checkpointing), where calls "
                "come in another order than the layers of the stack; give one pattern for all, or "
                "pass pattern= at the call sites (pc.scaled_dot_product_attention)"
            )
        self.calls += 1  # first: a checkpoint that is computed again may stop within the call
        self.seen[layer, query.shape[-2], key.shape[-2]] += 1
        over = self.layers[layer]
        return scaled_dot_product_attention(query, key, *args, pattern=over, **kwargs)

    def _differentiate(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A backward pass with the rerouting on, for what checkpoints compute again.

        torch turns rerouting off within a function that it hands over, as it does each that takes
        tensors.  So this one gets edges of the graph, which stand for the same tensors.
        """
        outputs, *rest = args
        given = dict(kwargs)
        into = given.pop("inputs", None)
        if func is torch.autograd.grad:
            into, *rest = rest if into is None else (into, *rest)
        edges, targets = _edges(outputs), None if into is None else _edges(into)
        if edges is None or (into is not None and targets is None):
            return func(*args, **kwargs)  # which says what is wrong with them
        if targets is not None:
            given["inputs"] = targets
        again = torch.autograd.backward if func is Tensor.backward else func
        if func is Tensor.backward and "gradient" in given:
            given["grad_tensors"] = given.pop("gradient")
        self.__enter__()  # type: ignore[no-untyped-call]
        try:
            return again(edges, *rest, **given)
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End the rerouting; after a block without an error look at the count."""
        super().__exit__(kind, error, at)  # type: ignore[no-untyped-call]
        if kind is not None:
            return
        if not self.calls:
            raise PatternError(
                "sdpa_as: no call of F.scaled_dot_product_attention within the block, so nothing "
                "was replaced; the model attends by code of its own, or was compiled before "
                '(transformers: attn_implementation="sdpa", or pc.hf.apply)'
            )
        if self.calls % len(self.layers):
            raise PatternError(
                f"sdpa_as: {self.calls} calls of F.scaled_dot_product_attention, the stack has "
                f"{len(self.layers)} layers; a forward pass must make one call for each, in their "
                "order"
            )


def _edges(tensors: Any) -> tuple[Any, ...] | None:
    """Where tensors stand in the graph of a backward pass; None if one stands nowhere."""
    listed = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
    if not all(isinstance(x, Tensor) and x.requires_grad for x in listed):
        return None
    return tuple(torch.autograd.graph.get_gradient_edge(x) for x in listed)


_BACKWARD = {Tensor.backward, torch.autograd.backward, torch.autograd.grad}
_SERVED = {
    F.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
}
_REFUSED = {
    F.multi_head_attention_forward,
    torch._native_multi_head_attention,
    torch._transformer_encoder_layer_fwd,
}
_KERNELS = ("_scaled_dot_product_", "_flash_attention_", "_efficient_attention_")
