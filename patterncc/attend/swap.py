"""`Swapped`: the attention of a model replaced in place, with an exact undo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

from torch import nn

from patterncc.attend.over import How, check_layer
from patterncc.errors import PatternError, PatternValueError
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Layer, Stack

Choice = Callable[[str, nn.MultiheadAttention], Layer | None]
"""A module's name and the module to its pattern, None to leave it dense."""

_KEPT = ("pattern", "how", "dropout", "_qkv_same_embed_dim")  # what becoming ours may change


def configure(module: nn.MultiheadAttention, pattern: Layer, how: How) -> None:
    """Give a module its pattern, after checks.

    `_qkv_same_embed_dim`, which only torch's own forward passes read, is set to False: then no
    layer around the module takes the fast path, which would attend densely.

    Raises PatternError, PatternValueError.
    """
    check_attention("MultiheadAttention", module, pattern)
    module.__dict__.update(pattern=pattern, how=how, _qkv_same_embed_dim=False)


def check_attention(owner: str, module: nn.MultiheadAttention, pattern: object) -> None:
    """Refuse keys that stand at no position, and what is no pattern for the module's heads."""
    if module.bias_k is not None or module.add_zero_attn:
        raise PatternValueError(
            f"{owner}: add_bias_kv or add_zero_attn; the keys that they add stand at no position "
            "that a pattern could name. Build the module without; sinks= of pc.attention is a "
            "learned key without a value"
        )
    check_layer(owner, pattern, module.num_heads)


def check_replaceable(
    owner: str, module: object, kind: type[nn.MultiheadAttention], name: str = ""
) -> None:
    """Refuse what is not torch's own module, or one that is replaced already."""
    if type(module) not in (nn.MultiheadAttention, kind):
        told = f"{name} is " if name else ""
        raise PatternError(
            f"{owner}: {told}a {type(module).__name__}, not nn.MultiheadAttention itself; what its "
            "own forward does would be lost. Replace modules before they are wrapped, sharded or "
            "parametrised, and leave a subclass by a function that gives None for it"
        )


class Swapped:
    """What was replaced in a model, until `undo` or the end of a with block.

    The modules stay the same objects with the same parameters, so optimizers, hooks and state
    dicts go on; only their class, pattern and dropout change, and in nn.TransformerEncoder the
    conversion to nested tensors is off.  `undo` puts all of it back.

    replaced: names and patterns.  left: names of attention modules that were left dense.
    """

    def __init__(
        self,
        model: nn.Module,
        pattern: Layer | Stack | Choice,
        dropout: float | None,
        kind: type[nn.MultiheadAttention],
    ) -> None:
        self._kind = kind
        found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
        chosen = _chosen(model, found, pattern)
        for name, module in found:
            if name in chosen:
                check_replaceable("swap", module, kind, name)
                check_attention(f"swap: {name or 'the model'}", module, chosen[name])
        self.replaced: dict[str, Layer] = chosen
        self.left = tuple(name for name, _ in found if name not in chosen)
        self._before: list[tuple[nn.MultiheadAttention, type, dict[str, object]]] = []
        self._encoders = list(_nesting(model, {id(m) for n, m in found if n in chosen}))
        for name, module in found:
            if name in chosen:
                self._replace(module, chosen[name], dropout)
        for encoder in self._encoders:
            encoder.use_nested_tensor = False

    def _replace(
        self, module: nn.MultiheadAttention, pattern: Layer, dropout: float | None
    ) -> None:
        kept = {key: module.__dict__[key] for key in _KEPT if key in module.__dict__}
        self._before.append((module, type(module), kept))
        module.__class__ = self._kind
        configure(module, pattern, How())
        if dropout is not None:
            module.dropout = dropout

    def undo(self) -> None:
        """Put every module back as it was; a second time does nothing.

        Raises PatternError where a module was swapped or sharded again since.
        """
        for (module, _, _), pattern in zip(self._before, self.replaced.values(), strict=False):
            if type(module) is not self._kind or module.__dict__.get("pattern") is not pattern:
                raise PatternError(
                    f"swap: a module is a {type(module).__name__} over "
                    f"{module.__dict__.get('pattern')} by now, no longer over {pattern}; undo what "
                    "was done to it since, and then this"
                )
        for module, before, kept in self._before:
            module.__class__ = before
            for key in _KEPT:
                module.__dict__.pop(key, None)
            module.__dict__.update(kept)
        for encoder in self._encoders:
            encoder.use_nested_tensor = True
        self._before, self._encoders = [], []

    def __enter__(self) -> Swapped:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<Swapped: {len(self.replaced)} replaced, left {list(self.left)}>"


def _chosen(
    model: nn.Module, found: list[tuple[str, nn.MultiheadAttention]], pattern: object
) -> dict[str, Layer]:
    """The pattern of each module that will be replaced, by name."""
    cross = {
        id(m.multihead_attn) for m in model.modules() if isinstance(m, nn.TransformerDecoderLayer)
    }
    own = [(name, m) for name, m in found if id(m) not in cross]
    match pattern:
        case Pattern() | Heads():
            chosen: dict[str, Layer] = {name: pattern for name, _ in own}
        case Stack():
            if len(pattern) != len(own):
                raise PatternError(
                    f"swap: the model has {len(own)} modules of self-attention "
                    f"({', '.join(name for name, _ in own)}), the stack {len(pattern)} layers; "
                    "give one layer for each"
                )
            chosen = {name: layer for (name, _), layer in zip(own, pattern, strict=True)}
        case _ if callable(pattern):
            made = {name: pattern(name, m) for name, m in found}
            chosen = {name: layer for name, layer in made.items() if layer is not None}
        case _:
            check_layer("swap", pattern)
            raise AssertionError("unreachable: refused above")
    if not chosen:
        names = ", ".join(name for name, _ in found) or "none"
        raise PatternError(
            f"swap: nothing to replace in a {type(model).__name__}; its nn.MultiheadAttention "
            f"modules: {names}. Calls of F.scaled_dot_product_attention are rerouted by pc.sdpa_as"
        )
    return chosen


def _nesting(model: nn.Module, replaced: set[int]) -> Iterator[nn.TransformerEncoder]:
    """Encoders that hand nested tensors to a module that is replaced."""
    for encoder in model.modules():
        if not isinstance(encoder, nn.TransformerEncoder) or not encoder.use_nested_tensor:
            continue
        if any(id(m) in replaced for m in encoder.modules()):
            yield encoder
