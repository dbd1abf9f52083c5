"""Which modules of a transformers model compute attention, and what part each plays.

An attention module is one whose forward looks its function up in transformers' AttentionInterface;
only those can be given a pattern.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from patterncc.errors import BackendError, PatternValueError

Part = Literal["encoder", "decoder", "cross"]
_CROSS = re.compile(r"cross|encoder_attn|EncDecAttention|encoder_decoder", re.IGNORECASE)

_MORE_KEYS = {"DeepseekV4Attention"}  # compressed ones


@dataclass(frozen=True, eq=False)
class Found:
    """One attention module.

    layer: its number among its kind, from 0.  part: "encoder" (reads both ways), "decoder"
    (causal) or "cross" (a decoder's queries read an encoder's keys).
    """

    name: str
    module: Any
    part: Part
    layer: int

    @property
    def kind(self) -> str:
        """The name without numbers: the same for all layers of one stack, and for no others."""
        return _kind(self.name)

    @property
    def heads(self) -> int | None:
        """Query heads, where the config of the module tells."""
        config = getattr(self.module, "config", None)
        names = ("num_attention_heads", "num_heads", "n_heads")
        own = [getattr(self.module, name, None) for name in names]
        said = [getattr(config, name, None) for name in names]
        return next((x for x in (*own, *said) if isinstance(x, int)), None)


def attention_modules(model: Any) -> tuple[Found, ...]:
    """Every attention module of a model, in the order in which they stand.

    Raises BackendError for a model that has none.
    """
    found: list[Found] = []
    counts: Counter[str] = Counter()
    for name, module in _candidates(model):
        kind, layer = _kind(name), getattr(module, "layer_idx", None)
        layer = layer if isinstance(layer, int) else counts[kind]
        counts[kind] += 1
        found.append(Found(name, module, _part(name, module), layer))
    if not found:
        raise BackendError(
            f"{type(model).__name__} has no module that takes its attention from transformers' "
            "AttentionInterface, so a pattern cannot be put in its place; use "
            "pc.MultiheadAttention, pc.SparseAttention or pc.sdpa_as(pattern) instead"
        )
    return tuple(found)


def _candidates(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        forward = inspect.unwrap(type(module).forward)
        code = getattr(forward, "__code__", None)
        if code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names:
            yield name, module


def check_one_kind(part: Part, own: Iterable[Found]) -> None:
    """Refuse a part that two stacks play, such as a model's tower for text and one for images, and
    modules whose keys are not those of tokens alone."""
    own = tuple(own)
    for f in own:
        if type(f.module).__name__ in _MORE_KEYS:
            raise BackendError(
                f"{f.name}: {type(f.module).__name__} puts keys of its own behind those of the "
                "tokens, which have no position in a pattern, so it cannot be replaced"
            )
    kinds = list(dict.fromkeys(f.kind for f in own))
    if len(kinds) > 1:
        parts = [kind.split(".") for kind in kinds]
        same = sum(1 for _ in takewhile(lambda each: len(set(each)) == 1, zip(*parts)))
        raise PatternValueError(
            f"hf.apply: the model has {len(kinds)} stacks that are its {part}: "
            f"{', '.join(kinds)}; apply to the submodule that is meant, say "
            f"pc.hf.apply(model.{'.'.join(parts[0][: same + 1])}, ...)"
        )


def above(model: Any, found: Iterable[Found]) -> list[tuple[Any, Any]]:
    """Modules above attention with a config of their own, such as T5 itself, whose stacks have
    copies: `generate` asks for masks by theirs."""
    listed = tuple(found)
    own = {id(f.module.config) for f in listed}
    names = {n for f in listed for n in _prefixes(f.name)}
    answer = []
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if name in names and hasattr(config, "_attn_implementation") and id(config) not in own:
            own.add(id(config))
            answer.append((module, config))
    return answer


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(len(parts)))


def _kind(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdigit())


def _part(name: str, module: Any) -> Part:
    if _CROSS.search(".".join(name.split(".")[-2:])):
        return "cross"
    causal = any(getattr(module, name, False) for name in ("is_causal", "is_decoder"))
    return "decoder" if causal else "encoder"
