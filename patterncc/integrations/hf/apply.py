"""Put patterns into a transformers model, and take them out again without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from patterncc.errors import BackendError, PatternValueError
from patterncc.integrations.hf import traits
from patterncc.integrations.hf.bias import check_bias, hand_on_as_before, hand_on_tables
from patterncc.integrations.hf.caches import WATCH, Watch, stays, unwatch, watch, windows
from patterncc.integrations.hf.cross import check_cross, seats
from patterncc.integrations.hf.layouts import Layouts
from patterncc.integrations.hf.modules import (
    Found,
    Part,
    above,
    attention_modules,
    check_one_kind,
)
from patterncc.integrations.hf.run import attention, mask
from patterncc.integrations.hf.state import NAME, STATE, Dropout, Fallback, Kept, Patterned, Record
from patterncc.pattern import Pattern, check_int
from patterncc.stack import Heads, Layer, Stack, check_stack, patterns_of
from patterncc.zones.lower import check_bindings, keyed

ABOVE = "_patterncc_above"  # on modules above attention: what their config said
LEAST = (5, 17)  # of transformers
_NEEDED = "transformers 5.17 or newer; install it with: pip install 'patterncc[hf]'"


def register() -> None:
    """Make `attn_implementation="patterncc"` known to transformers.

    A model that asks for it, and has had no pattern applied, runs its own mask sparsely.

    Raises BackendError where transformers is not installed, or too old.
    """
    try:
        from transformers import AttentionInterface, __version__
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError as missing:
        why = f"patterns in transformers models need {_NEEDED} ({missing})"
        raise BackendError(why) from None
    major, minor = (int(x) for x in __version__.split(".")[:2])
    if (major, minor) < LEAST:
        raise BackendError(
            f"transformers {__version__} is installed; patterns in its models need {_NEEDED}"
        )
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


@dataclass(frozen=True, eq=False)
class Applied:
    """Patterns in a model: a context manager, or call `undo` when done.

    layers: which pattern each attention module runs, by its name.
    """

    model: Any
    layers: Mapping[str, str]
    _record: Record

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed beside the attention itself, such as caches made longer."""
        return tuple(self._record.notes)

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """Calls that ran the model's own attention, because `fallback="dense"` was asked for."""
        return self._record.fallbacks

    def undo(self) -> None:
        """The model as it was; a second call does nothing, to patterns put in since neither."""
        states = (vars(module).get(STATE) for module in self.model.modules())
        if any(getattr(state, "record", None) is self._record for state in states):
            undo(self.model)

    def __repr__(self) -> str:
        patterns = list(dict.fromkeys(self.layers.values()))
        shown = ", ".join(patterns[:3]) + (f" and {len(patterns) - 3} more" * (len(patterns) > 3))
        notes = f", {len(self.notes)} notes" if self.notes else ""
        return f"<Applied to {len(self.layers)} attention modules: {shown}{notes}>"

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
    length: int | None = None,
    ahead: bool = False,
    dropout: Dropout = "error",
    fallback: Literal["error", "dense"] = "error",
    backend: str = "auto",
    **bindings: Any,
) -> Applied:
    """Replace the attention of a transformers model by patterns, in place.

    pattern: for a model with one kind of attention; a Stack gives each layer its own.  encoder,
    decoder, cross: for encoder-decoder models; a part that is not given keeps its attention.
    length: the graph is that of so many positions, for patterns that are drawn for one length.
    ahead: a causal model may read later positions, as a prefix language model does.
    dropout: "ignore" trains without the attention dropout that the model asks for.
    fallback: "dense" runs calls that cannot be served with the attention that the model had and
    its own mask, and counts them in `fallbacks` of what is returned.
    bindings: what the patterns' names stand for, as in `compile`.

        with pc.hf.apply(model, pc.causal() & (pc.window(511) | pc.sink(4))):
            model.generate(...)

    Raises BackendError for a model whose attention cannot be replaced or that already carries a
    pattern, PatternValueError for patterns of another number of layers or heads.
    """
    _check_options(length, dropout, fallback)
    register()
    found = attention_modules(model)
    if any(hasattr(f.module, STATE) for f in found):
        raise BackendError(
            "this model already carries a pattern; take it out with handle.undo(), or with "
            "pc.hf.undo(model)"
        )
    parts = {"encoder": encoder, "decoder": decoder, "cross": cross}
    _check_names([pattern, *parts.values()], bindings)
    stacks = _stacks(found, pattern, parts)
    if not ahead and "decoder" in stacks:
        _check_past(stacks["decoder"], [f for f in found if f.part == "decoder"], bindings)
    shared = seats(found) if "cross" in stacks else {}
    record, layers = Record(), {}
    made: dict[tuple[Layer, int], Layouts] = {}
    full: dict[int, str] = {}
    slide: dict[int, str] = {}
    kinds = {id(f.module.config): windows(f.module.config) for f in found}
    for f in found:
        stack, seat = stacks.get(f.part), shared.get(f.name)
        before = f.module.config._attn_implementation or "eager"
        if stack is None:
            setattr(f.module, STATE, Kept(f.name, before, f.part, seat))
            continue
        each = stack.layer(f.layer)
        key = each, f.layer if any(keyed(p, bindings)[0] for p in patterns_of(each)) else 0
        layouts = made.setdefault(key, Layouts(each, f.layer, bindings, length))
        options = f.part, seat, dropout, fallback == "dense", record
        setattr(f.module, STATE, Patterned(f.name, layouts, backend, before, *options))
        hand_on_tables(f.module, f.part == "cross")
        layers[f.name] = str(each)
        slides = kinds[id(f.module.config)].get(f.layer) if f.part == "decoder" else None
        if slides is not None:
            (slide if stays(layouts, slides) else full)[f.layer] = f.name
    for l, name in slide.items() if full else ():  # one mask is asked for them all
        full[l] = f"{name}, which shares a mask with {next(iter(full.values()))}"
    if dropout == "ignore":
        record.notes["attention dropout is left out"] = None
    placed = not all(x.relative for x in made.values())
    configs = {id(f.module.config): f.module.config for f in found}
    for module, config in above(model, found):
        setattr(module, ABOVE, config._attn_implementation_internal)
        configs[id(config)] = config
    for config in configs.values():
        config._attn_implementation_internal = NAME
    watch(model, Watch(full, placed, fallback == "dense", record, tuple(configs.values())))
    return Applied(model, layers, record)


def undo(model: Any) -> None:
    """Take patterns out of a model, or of a copy of one; a model without any is left as it is."""
    for module in model.modules():
        if ABOVE in vars(module):
            module.config._attn_implementation_internal = vars(module).pop(ABOVE)
        state = vars(module).pop(STATE, None)
        if state is not None:
            hand_on_as_before(module)
            module.config._attn_implementation_internal = state.before
        if vars(module).pop(WATCH, None) is not None:
            unwatch(module)


def _check_names(given: list[Stack | Pattern | Heads | None], bindings: dict[str, Any]) -> None:
    """Refuse slips of the pen among the keywords."""
    stacks = []
    for each in given:
        if each is not None:
            check_stack("hf.apply", each)
            stacks.append(each if isinstance(each, Stack) else Stack(each))
    check_bindings("hf.apply", [p for s in stacks for p in s.patterns], bindings, apply)


def _check_past(stack: Stack, own: list[Found], bindings: dict[str, Any]) -> None:
    """Refuse patterns that show a causal model what it is trained to foretell."""
    for f in own:
        for head, pattern in enumerate(stack.heads(f.layer)):
            if traits.reads_ahead(pattern, layer=f.layer, head=head, **bindings):
                raise PatternValueError(
                    f"hf.apply: {f.name}: {pattern} reads later positions, which a causal model "
                    f"must not see; write pc.causal() & ({pattern}), or pass ahead=True where it "
                    "is meant, as in a prefix language model"
                )


def _check_options(length: object, dropout: object, fallback: object) -> None:
    if length is not None:
        check_int("hf.apply", "length", length, 1)
    if dropout not in ("error", "ignore"):
        raise PatternValueError(f'hf.apply: dropout is "error" or "ignore", not {dropout!r}')
    if fallback not in ("error", "dense"):
        raise PatternValueError(f'hf.apply: fallback is "error" or "dense", not {fallback!r}')


def _stacks(
    found: tuple[Found, ...],
    pattern: Stack | Pattern | Heads | None,
    parts: Mapping[Any, Stack | Pattern | Heads | None],
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
        raise PatternValueError(
            "hf.apply: no pattern given; give one for all attention, or encoder=, decoder=, cross="
        )
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
        change = "cut" if len(stack) > layers else "repeated, the last time in part"
        raise PatternValueError(
            f"hf.apply: the {part} has {layers} layers, the stack {len(stack)}, which does not "
            f"divide them; give a pattern for each layer: stack.repeated({layers}) is this one "
            f"{change}"
        )
    for f in own:
        patterns, heads = len(stack.heads(f.layer)), f.heads
        if heads is not None and patterns not in (1, heads):
            raise PatternValueError(
                f"hf.apply: {f.name} has {heads} heads, its layer {patterns} patterns; give one "
                "for all, or one for each head"
            )
