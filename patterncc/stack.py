"""Stack: the topology of a whole model, layers x heads of patterns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from patterncc.errors import PatternError, PatternValueError
from patterncc.pattern import Pattern, check_int


@dataclass(frozen=True)
class Heads:
    """One layer whose heads read different patterns: one pattern a head, in head order."""

    patterns: tuple[Pattern, ...]

    def __str__(self) -> str:
        runs = [(len(list(group)), text) for text, group in groupby(map(str, self.patterns))]
        return "heads([" + ", ".join(f"{count} x {text}" for count, text in runs) + "])"

    __repr__ = __str__


Layer = Pattern | Heads


def patterns_of(layer: Layer) -> tuple[Pattern, ...]:
    """One pattern a head, or the one that all heads share."""
    return layer.patterns if isinstance(layer, Heads) else (layer,)


def heads(patterns: Iterable[Pattern]) -> Heads:
    """A layer with one pattern for each head, in head order.

    >>> from patterncc import window
    >>> heads([window(3), window(3), window(63)])
    heads([2 x window(3), 1 x window(63)])
    """
    if not isinstance(patterns, Iterable):
        raise PatternError(f"heads: give a list of patterns, one for each head, not {patterns!r}")
    listed = tuple(patterns)
    if not listed:
        raise PatternValueError("heads: no pattern given; a layer has at least one head")
    for p in listed:
        if not isinstance(p, Pattern):
            raise PatternError(f"heads: {p!r} is not a pattern")
    return Heads(listed)


def check_stack(owner: str, given: object) -> None:
    """Refuse what is no stack, pattern or layer, with the remedy for a pattern file."""
    if not isinstance(given, Stack | Pattern | Heads):
        hint = "; pass its .stack" if hasattr(given, "stack") else ""
        if isinstance(given, str | os.PathLike):
            hint = "; a pattern file is read by pc.load(path).stack"
        elif isinstance(given, Iterable):
            hint = "; several layers are pc.Stack([...])"
        raise PatternError(
            f"{owner}: the first argument is a Stack, a Pattern or pc.heads([...]), "
            f"not a {type(given).__name__}{hint}"
        )


@dataclass(frozen=True, init=False)
class Stack:
    """Layers in order, the first next to the input; more layers than there are repeat cyclically.

    `memory` counts prepended positions (a Transformer-XL memory, retrieved keys): they are read but
    read nothing themselves, so queries start at position `memory`.  `kv_from[l]` is the layer whose
    keys and values layer l reads, itself unless a model shares them (Gemma 3n): the states that
    went into that layer, not those before l.  `kv_heads` is the number of key/value heads (GQA),
    None for as many as there are query heads.

    >>> from patterncc import causal, window
    >>> s = Stack([causal() & window(1023)] * 5 + [causal()])
    >>> len(s), str(s.layer(11))
    (6, 'causal()')
    """

    layers: tuple[Layer, ...]
    memory: int = 0
    kv_from: tuple[int, ...] = ()
    kv_heads: int | None = None

    def __init__(
        self,
        layers: Sequence[Layer] | Pattern | Heads,
        memory: int = 0,
        *,
        kv_from: Sequence[int] | None = None,
        kv_heads: int | None = None,
    ) -> None:
        if not isinstance(layers, Iterable | Pattern | Heads):
            hint = "; pass its .stack" if hasattr(layers, "stack") else ""
            raise PatternError(f"Stack: give a list of layers, not a {type(layers).__name__}{hint}")
        listed = (layers,) if isinstance(layers, Pattern | Heads) else tuple(layers)
        if not listed:
            raise PatternValueError("Stack: no layers given")
        for layer in listed:
            if not isinstance(layer, Pattern | Heads):
                raise PatternError(f"Stack: a layer is a Pattern or pc.heads([...]), not {layer!r}")
        object.__setattr__(self, "layers", listed)
        object.__setattr__(self, "memory", check_int("Stack", "memory", memory, 0))
        object.__setattr__(self, "kv_from", _check_sources(len(listed), kv_from))
        if kv_heads is not None:
            kv_heads = check_int("Stack", "kv_heads", kv_heads, 1, 2**16)
            for l, layer in enumerate(listed):
                if isinstance(layer, Heads) and len(layer.patterns) % kv_heads:
                    raise PatternValueError(
                        f"Stack: layer {l} has {len(layer.patterns)} heads, which kv_heads="
                        f"{kv_heads} does not divide; each key/value head serves as many of them"
                    )
        object.__setattr__(self, "kv_heads", kv_heads)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def layer(self, index: int) -> Layer:
        """The layer at `index`, counted cyclically."""
        return self.layers[index % len(self.layers)]

    def heads(self, index: int) -> tuple[Pattern, ...]:
        """A layer's patterns: one a head, or a single one that all heads share."""
        return patterns_of(self.layer(index))

    def repeated(self, layers: int) -> Stack:
        """The stack at another depth: repeated cyclically, or cut.

        Layers that share keys and values go along; key/value heads are left open.

        >>> from patterncc import causal, window
        >>> print(Stack([causal() & window(511), causal()]).repeated(3))
        Stack of 3 layers
          0: causal() & window(511)
          1: causal()
          2: causal() & window(511)
        """
        layers, size = check_int("Stack.repeated", "layers", layers, 1), len(self)
        sources = [l - l % size + self.kv_from[l % size] for l in range(layers)]
        return Stack([self.layer(l) for l in range(layers)], self.memory, kv_from=sources)

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Every pattern of every layer and head, each once."""
        layers = dict.fromkeys(self.layers)
        return tuple(dict.fromkeys(p for layer in layers for p in patterns_of(layer)))

    @staticmethod
    def from_hf(
        source: str | os.PathLike[str] | Mapping[str, Any], length: int | None = None
    ) -> Stack:
        """The layers of a Hugging Face model, from its config.json, the folder of one, or a dict.

        Hugging Face's ``sliding_window = W`` counts the token itself, so it is ``window(W - 1)``.
        What a config leaves open is told by ``patterncc.config.read(source).notes``.  `length` is
        the number of tokens, where edges depend on it (BigBird).

        >>> config = {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 512}
        >>> print(Stack.from_hf(config))
        Stack of 6 layers
          0..4: causal() & window(511)
          5: causal()

        Raises PatternError for a file that cannot be read, PatternValueError for a config that is
        not a model's, a family that is not known, and a field of the wrong type or out of range.
        """
        from patterncc.config import read

        found = read(source, length)
        return Stack(found.layers, kv_from=found.kv_from, kv_heads=found.kv_heads)

    def __str__(self) -> str:
        lines = [
            f"Stack of {len(self)} layers" + (f", memory {self.memory}" if self.memory else "")
        ]
        start = 0
        for text, group in groupby(map(str, self.layers)):
            count = len(list(group))
            place = f"{start}" if count == 1 else f"{start}..{start + count - 1}"
            lines.append(f"  {place}: {text}")
            start += count
        shared = [(l, k) for l, k in enumerate(self.kv_from) if l != k]
        if shared:
            where = ", ".join(f"{l} of {k}" for l, k in shared[:8])
            more = f" and {len(shared) - 8} more" if len(shared) > 8 else ""
            lines.append(f"  layers that read another's keys and values: {where}{more}")
        return "\n".join(lines)


def _check_sources(layers: int, kv_from: Sequence[int] | None) -> tuple[int, ...]:
    """`kv_from` as given, or every layer itself; a layer that is read makes its own."""
    if kv_from is None:
        return tuple(range(layers))
    sources = tuple(check_int("Stack", "kv_from", k, 0) for k in kv_from)
    if len(sources) != layers:
        raise PatternValueError(
            f"Stack: kv_from names {len(sources)} layers of {layers}; give one number a layer, "
            "its own where it shares nothing"
        )
    for l, k in enumerate(sources):
        if k > l or sources[k] != k:
            later = "comes later" if k < layers else f"is not one of the {layers}"
            reason = later if k > l else f"has none of its own (kv_from[{k}] is {sources[k]})"
            raise PatternValueError(
                f"Stack: kv_from[{l}] is layer {k}, which {reason}; name an earlier layer that "
                "makes its own keys and values"
            )
    return sources
