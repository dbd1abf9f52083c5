"""Put patterns into a transformers model, and take them out again without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from patterncc.errors import BackendError, PatternValueError
from patterncc.integrations.hf.bias import check_bias, hand_on_as_before, hand_on_tables
from patterncc.integrations.hf.cross import check_cross, seats
from patterncc.integrations.hf.layouts import Layouts
from patterncc.integrations.hf.modules import Found, Part, attention_modules, check_one_kind
from patterncc.integrations.hf.run import STATE, Kept, Patterned, attention, mask
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Stack, check_stack

NAME = "patterncc"
_BEFORE = "_patterncc_before"


def register() -> None:
    """Make `attn_implementation="patterncc"` known to transformers.

    A model that asks for it, and has had no pattern applied, runs its own mask sparsely.
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError:
        raise BackendError(
            "patterns in transformers models need transformers 5.17 or newer; install it with: "
            "pip install 'patterncc[hf]'"
        ) from None
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


@dataclass(frozen=True, eq=False)
class Applied:
    """Patterns in a model: a context manager, or call `undo` when done.

    layers: which pattern each attention module runs, by its name.
    """

    model: Any
    layers: Mapping[str, str]
    _modules: tuple[Found, ...]
    _configs: tuple[tuple[Any, str | None], ...]

    def undo(self) -> None:
        """The model as it was; a second call does nothing."""
        for found in self._modules:
            if vars(found.module).pop(STATE, None) is not None:
                hand_on_as_before(found.module)
        for config, before in self._configs:
            if vars(config).pop(_BEFORE, None) is not None:
                config._attn_implementation_internal = before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()


def apply(
    model: Any,
    pattern: Stack | Pattern | Heads | None = None,
    *,
    encoder: Stack | Pattern | Heads | None = None,
    decoder: Stack | Pattern | Heads | None = None,
    cross: Stack | Pattern | Heads | None = None,
    backend: str = "auto",
    **bindings: Any,
) -> Applied:
    """Replace the attention of a transformers model by patterns, in place.

    pattern: for a model with one kind of attention; a Stack gives each layer its own.  encoder,
    decoder, cross: for encoder-decoder models; a part that is not given keeps its attention.
    bindings: what the patterns' names stand for, as in `compile`.

        with pc.hf.apply(model, pc.causal() & (pc.window(511) | pc.sink(4))):
            model.generate(...)

    Raises BackendError for a model whose attention cannot be replaced or that already carries a
    pattern, PatternValueError for patterns of another number of layers or heads.
    """
    register()
    found = attention_modules(model)
    if any(hasattr(f.module, STATE) for f in found):
        raise BackendError("this model already carries a pattern; undo that first")
    stacks = _stacks(found, pattern, {"encoder": encoder, "decoder": decoder, "cross": cross})
    configs = {id(c): c for f in found if (c := getattr(f.module, "config", None)) is not None}
    before = tuple((c, c._attn_implementation_internal) for c in configs.values())
    layers = {}
    shared = seats(found) if "cross" in stacks else {}
    for f in found:
        stack, seat = stacks.get(f.part), shared.get(f.name)
        if stack is None:
            kept = f.module.config._attn_implementation or "eager"
            setattr(f.module, STATE, Kept(f.name, kept, f.part, seat))
            continue
        each = stack.layer(f.layer)
        layouts = Layouts(each, f.layer, bindings)
        setattr(f.module, STATE, Patterned(f.name, layouts, backend, f.part, seat))
        hand_on_tables(f.module, f.part == "cross")
        layers[f.name] = str(each)
    for config, name in before:
        setattr(config, _BEFORE, name or "eager")
        config._attn_implementation_internal = NAME
    return Applied(model, layers, found, before)


def _stacks(
    found: tuple[Found, ...],
    pattern: Stack | Pattern | Heads | None,
    parts: Mapping[Part, Stack | Pattern | Heads | None],
) -> dict[Part, Stack]:
    """The stack of each part that is given one."""
    there: list[Part] = list(dict.fromkeys(f.part for f in found))
    given: dict[Part, Any] = {part: x for part, x in parts.items() if x is not None}
    if pattern is not None:
        if given or len(there) > 1:
            raise PatternValueError(
                f"hf.apply: the model has attention of {len(there)} kinds ({', '.join(there)}); "
                "name the part that a pattern is for: encoder=, decoder=, cross="
            )
        given = {there[0]: pattern}
    if not given:
        raise PatternValueError("hf.apply: no pattern given")
    stacks: dict[Part, Stack] = {}
    for part, each in given.items():
        check_stack("hf.apply", each)
        stacks[part] = stack = each if isinstance(each, Stack) else Stack(each)
        own = [f for f in found if f.part == part]
        if not own:
            raise PatternValueError(f"hf.apply: the model has no {part} attention; it has {there}")
        check_one_kind(part, own)
        _check_fits(stack, part, own)
        for f in own:
            check_bias(f.module)
        if part == "cross":
            check_cross(stack)
    return stacks


def _check_fits(stack: Stack, part: Part, own: list[Found]) -> None:
    layers = 1 + max(f.layer for f in own)
    if layers % len(stack):
        raise PatternValueError(
            f"hf.apply: the {part} has {layers} layers, the stack {len(stack)}, which does not "
            f"divide them; give a pattern for each layer, such as stack.repeated({layers})"
        )
    for f in own:
        patterns, heads = len(stack.heads(f.layer)), f.heads
        if heads is not None and patterns not in (1, heads):
            raise PatternValueError(
                f"hf.apply: {f.name} has {heads} heads, its layer {patterns} patterns; give one "
                "for all, or one for each head"
            )
