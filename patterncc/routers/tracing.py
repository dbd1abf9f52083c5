"""What routed layers chose in a run, as a stack and bindings for the analysis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from patterncc.attend.module import SparseAttention
from patterncc.errors import PatternError, PatternValueError
from patterncc.pattern import Pattern
from patterncc.primitives import Topk, causal
from patterncc.routers.chosen import Blocks, Chosen, bound, leaf_of
from patterncc.routers.module import RoutedAttention
from patterncc.stack import Heads, Layer, Stack, heads, patterns_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Call:
    """One layer of the run: its pattern, and what its last `routed` heads chose of n tokens."""

    layer: Layer
    chosen: Chosen | None = None
    n: int = 0
    routed: int = 0


@dataclass(frozen=True)
class Trace:
    """The layers of a run in the order in which they ran."""

    calls: list[Call] = field(default_factory=list)

    @property
    def stack(self) -> Stack:
        """The layers as patterns, what is chosen by content as `routing(...)` and `topk(...)`.

        Raises PatternError where no layer has run.
        """
        if not self.calls:
            raise PatternError(
                "trace: no routed or sparse layer has run; call the model inside `with`"
            )
        return Stack([call.layer for call in self.calls])

    @property
    def n(self) -> int:
        """Tokens of the sequences that ran."""
        return max((call.n for call in self.calls), default=0)

    def bindings(self, sequence: int = 0) -> dict[str, Any]:
        """What one sequence of the batch chose, as `analyze`, `lower` and `compile` take it.

        {"routing": {(layer, head): labels [n]}, "topk": {(layer, head): indices [n, count]}}, of
        the two those that the stack has.

        Raises PatternValueError for a sequence that the batch does not have.
        """
        found: dict[str, dict[tuple[int, int], NDArray[np.int64]]] = {}
        for layer, call in enumerate(self.calls):
            if call.chosen is None:
                continue
            batch, of_heads = _sizes(call.chosen)
            if not 0 <= sequence < batch:
                raise PatternValueError(
                    f"trace: sequence {sequence} of a batch of {batch}; they count from 0"
                )
            name = "topk" if isinstance(leaf_of(call.chosen), Topk) else "routing"
            for head in range(of_heads - call.routed, of_heads):
                chosen = bound(call.chosen, call.n, sequence, head)
                found.setdefault(name, {})[layer, head] = chosen
        return found


def _sizes(chosen: Chosen) -> tuple[int, int]:
    """Sequences and heads of what was chosen."""
    held = chosen.chosen if isinstance(chosen, Blocks) else chosen.labels
    return held.shape[0], held.shape[1]


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Record what the routed layers of a model choose while the block runs.

    SparseAttention layers are recorded with their pattern.  What was chosen stays on its device
    until it is asked for.

    >>> import torch, patterncc as pc
    >>> layer = pc.RoutedAttention(32, 2, router=pc.TopBlocks(2, block=8))
    >>> with trace(layer) as seen:
    ...     _ = layer(torch.randn(1, 40, 32))
    >>> print(seen.stack)
    Stack of 1 layers
      0: heads([2 x causal() & topk(2, 8)])
    >>> pc.analyze(seen.stack, 40, **seen.bindings()).content.traced is not None
    True
    """
    seen = Trace()

    def routed(module: RoutedAttention, chosen: Chosen, n: int) -> None:
        seen.calls.append(Call(_layer_of(module, chosen), chosen, n, module.routed))

    def fixed(module: nn.Module, _: object, __: object) -> None:
        assert isinstance(module, SparseAttention)
        seen.calls.append(Call(module.pattern))

    layers = [m for m in model.modules() if isinstance(m, RoutedAttention)]
    hooks = [
        m.register_forward_hook(fixed) for m in model.modules() if isinstance(m, SparseAttention)
    ]
    for m in layers:
        m.recorders.append(routed)
    try:
        yield seen
    finally:
        for m in layers:
            m.recorders.remove(routed)
        for hook in hooks:
            hook.remove()


def _layer_of(module: RoutedAttention, chosen: Chosen) -> Heads:
    """The pattern of each head: its static edges and those that it chooses."""
    leaf: Pattern = leaf_of(chosen)
    choice = causal() & leaf if module.causal else leaf
    if module.static is None:
        return heads([choice] * module.heads)
    static = patterns_of(module.static) * (1 if isinstance(module.static, Heads) else module.heads)
    first = module.heads - module.routed
    return heads([*static[:first], *(p | choice for p in static[first:])])
