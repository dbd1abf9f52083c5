"""`sdpa_as`: calls of torch's attention by somebody else's code, over patterns."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from patterncc.attend.checks import AnyLayout, shape
from patterncc.attend.sdpa import scaled_dot_product_attention
from patterncc.errors import PatternError, PatternValueError, TensorError
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Layer, Stack


class sdpa_as(TorchFunctionMode):  # noqa: N801 - read as a verb at its call site
    """Calls of F.scaled_dot_product_attention within a with block run over a pattern.

    Of one pattern (or layout) every call.  Of a Stack the k-th call takes layer k, counted from the
    start of the block; after the last layer the count starts anew with the first, so a forward pass
    must make exactly as many calls as the stack has layers.  When the block ends the count must
    stand at the first layer again.

    Calls in the thread that entered the block alone: what other threads call (nn.DataParallel)
    stays dense, so enter a block in each.

    queries: where they stand in a call with another number of keys, "first" (query 0 with key 0,
    as is_causal has it in torch) or "last" (the last query with the last key: a cache, a memory).
    Without it such a call is refused.

    The block must hold the backward pass too where activations are checkpointed: the calls are made
    again there.  A stack of several patterns refuses that, since calls come in another order, and
    for the same reason graphs of torch.compile, in which it would not be seen.

    calls: how many were rerouted.  seen: of each (layer, n, n_k) how many, without those of graphs
    that torch.compile made.

    What cannot be told by a pattern raises, as in `scaled_dot_product_attention`, and so does
    attention that torch computes by other functions (nn.MultiheadAttention: see
    `pc.MultiheadAttention.swap`).

    >>> from patterncc import causal, window
    >>> q, k, v = torch.randn(3, 1, 2, 50, 16).unbind()
    >>> with sdpa_as(causal() & window(15)) as rerouted:
    ...     out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> rerouted.calls
    1

    Raises PatternError at the end where there was no call, or not a multiple of the layers, or a
    checkpoint that is yet to be computed again.
    """

    def __init__(
        self,
        pattern: Stack | Layer | AnyLayout | Sequence[AnyLayout],
        *,
        queries: Literal["first", "last"] | None = None,
    ) -> None:
        super().__init__()
        if queries not in ("first", "last", None):
            raise PatternValueError(f'sdpa_as: queries is "first" or "last", not {queries!r}')
        match pattern:
            case Stack():
                self.layers: tuple[Layer | AnyLayout, ...] = pattern.layers
                queries = "last" if pattern.memory and queries is None else queries
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
        self.queries = queries
        self._several = len(set(self.layers)) > 1
        self._next = 0  # the layer of the next call
        self._calls, self._traced = 0, torch.zeros((), dtype=torch.int64)
        self.seen: Counter[tuple[int, int, int]] = Counter()
        self._to_come = 0  # calls in reentrant checkpoints that a backward pass has yet to repeat

    @property
    def calls(self) -> int:
        """How many calls were rerouted."""
        return self._calls + int(self._traced)

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
        layer = self._next
        tracing = torch.compiler.is_compiling()
        if self._several and (tracing or torch._C._current_graph_task_id() != -1):
            where = "a graph of torch.compile" if tracing else "a backward pass"
            raise PatternError(
                f"sdpa_as: a call within {where}, which may come again in a checkpoint's order and "
                "not in that of the stack's layers; give one pattern for all, or pass pattern= at "
                "the call sites (pc.scaled_dot_product_attention)"
            )
        n, n_k = query.shape[-2], key.shape[-2]
        over, offset = self.layers[layer], 0
        if n != n_k and isinstance(over, Pattern | Heads):
            if self.queries is None:
                raise TensorError(
                    f"sdpa_as: query {shape(query)} and key {shape(key)}, {n} queries on {n_k} "
                    'keys; say where they stand: queries="last" for a cache or a memory in front, '
                    'queries="first" for another sequence (cross-attention)'
                )
            offset = n_k - n if self.queries == "last" else 0
        # counted first: a checkpoint that is computed again may stop within the call
        self._next = (layer + 1) % len(self.layers)
        if tracing:
            self._traced += 1  # a tensor: a number would be a constant of the graph, and guarded
        else:
            self._calls += 1
            self.seen[layer, n, n_k] += 1
            self._to_come += _to_come()
        return scaled_dot_product_attention(
            *(query, key, *args), pattern=over, q_offset=offset, **kwargs
        )

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
        """End the rerouting; after a block without an error look at the counts."""
        super().__exit__(kind, error, at)  # type: ignore[no-untyped-call]
        if kind is not None:
            return
        calls = self.calls
        if not calls:
            raise PatternError(
                "sdpa_as: no call of F.scaled_dot_product_attention within the block, so nothing "
                "was replaced; the model attends by code of its own "
                '(transformers: attn_implementation="sdpa", or pc.hf.apply)'
            )
        if self._next:
            raise PatternError(
                f"sdpa_as: {calls} calls of F.scaled_dot_product_attention, the stack has "
                f"{len(self.layers)} layers; a forward pass must make one call for each, in their "
                "order"
            )
        if self._to_come > 0:
            raise PatternError(
                f"sdpa_as: {self._to_come} calls in checkpoints (use_reentrant=True) that a "
                "backward pass would compute again, densely, now that the block has ended; keep "
                "backward() within the block, or run the block under torch.no_grad()"
            )


def _to_come() -> int:
    """1 for a call in a reentrant checkpoint, which will come again; -1 for one that does.

    Such a checkpoint runs without gradients, and torch has no other sign of it than the frame.
    """
    first = again = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _FORWARD and frame.f_locals["ctx"].next_functions:  # will have gradients
            first = 1
        elif frame.f_code is _AGAIN:
            again = 1
        frame = frame.f_back
    return first - again


def _edges(tensors: Any) -> tuple[Any, ...] | None:
    """Where tensors stand in the graph of a backward pass; None if one stands nowhere."""
    listed = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
    if not all(isinstance(x, Tensor) and x.requires_grad for x in listed):
        return None
    return tuple(torch.autograd.graph.get_gradient_edge(x) for x in listed)


_FORWARD, _AGAIN = CheckpointFunction.forward.__code__, CheckpointFunction.backward.__code__
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
