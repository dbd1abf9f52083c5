"""What an evicting cache may let go: the plan of a model's patterns, longer as tokens come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from patterncc.cache import CachePlan, LayerCache, Spans, cache_plan
from patterncc.cache.plan import BYTES
from patterncc.errors import PatternValueError
from patterncc.integrations.held import Slots
from patterncc.integrations.hf.modules import Found
from patterncc.integrations.hf.state import STATE, Patterned
from patterncc.stack import Stack

LEAST = 256  # positions that a cache of unknown length is planned for at first


class Planned:
    """The plan of all layers and the slots that equal layers share; made anew when outgrown."""

    def __init__(self, modules: tuple[Found, ...], tokens: int | None) -> None:
        self.states = [state_of(f) for f in modules]
        self.given = tokens
        for state in self.states:
            layouts = state.layouts
            if layouts.length is not None:
                self.given = _within(layouts.length, tokens)
            elif layouts.drawn is not None:
                raise PatternValueError(
                    f"EvictingCache: the edges of {layouts.drawn} in layer {layouts.index} are "
                    "drawn for one length; write it with past=True where it takes that, or apply "
                    "the pattern for so many positions: pc.hf.apply(model, pattern, length=N)"
                )
        self.forget()

    def forget(self) -> None:
        """As before the first call."""
        self.plan: CachePlan | None = None
        self.start = 0
        self._plans: dict[tuple[int, int], CachePlan] = {}
        self._slots: dict[tuple[object, ...], Slots] = {}

    def positions(self, first: int, count: int, n: int) -> int:
        """How many positions to plan for, where a layer planned for n writes some more.

        A plan that may still grow is longer than what is written: the last query that it knows
        would let all keys go.

        Raises PatternValueError where there are more than were said.
        """
        if not first:
            self.start = count if count > 1 else 0
        stop = first + count
        if self.given is None:
            return n if stop < n else max(LEAST, 1 << stop.bit_length())
        if stop > self.given:
            raise PatternValueError(
                f"EvictingCache: {stop} tokens, and the cache is planned for {self.given}; make it "
                f"with tokens={stop} or more, prompt and new tokens together"
            )
        return self.given

    def of(self, n: int, k: Tensor) -> CachePlan:
        """The plan for n positions of keys like k [B, Hkv, count, D].

        Raises PatternValueError for patterns that cannot be decoded, or not without a length.
        """
        heads = k.shape[1]
        if (heads, n) not in self._plans:
            self._plans[heads, n] = made = self._made(n, k)
            if self.given is None:
                _check_grows(made, self._made(2 * n, k), n)
            self.plan = made
        return self._plans[heads, n]

    def _made(self, n: int, k: Tensor) -> CachePlan:
        dtype = str(k.dtype).removeprefix("torch.")
        bindings: Mapping[str, Any] = self.states[0].layouts.bindings
        return cache_plan(
            Stack([s.layouts.layer for s in self.states]),
            n,
            prefill=self.start,
            kv_heads=k.shape[1],
            head_dim=k.shape[3],
            dtype=dtype if dtype in BYTES else "float32",
            **bindings,
        )

    def slots(self, cache: LayerCache, before: list[Slots]) -> list[Slots]:
        """The slots of a layer's kinds of heads, shared with layers that keep the same.

        before: those of the shorter plan, whose keys they take over, one for each head's kind.
        """
        found = []
        for k, (spans, curve) in enumerate(zip(cache.spans, cache.curves, strict=True)):
            old = before[cache.each.index(k)] if before else None
            key = id(old), curve.peak[0], spans.table.tobytes()
            if key not in self._slots:
                made = Slots(spans, curve.peak[0])
                if old is not None:
                    made.take_over(old)
                self._slots[key] = made
            found.append(self._slots[key])
        return found


def state_of(found: Found) -> Patterned:
    """What an attention module that carries a pattern runs."""
    state = getattr(found.module, STATE)
    assert isinstance(state, Patterned)
    return state


def _within(length: int, tokens: int | None) -> int:
    """The positions that a graph has, not fewer than the tokens that were said."""
    if tokens is not None and tokens > length:
        raise PatternValueError(
            f"EvictingCache: tokens={tokens}, but the patterns were applied with length={length}; "
            "give at most that"
        )
    return length


def _check_grows(plan: CachePlan, longer: CachePlan, n: int) -> None:
    """Refuse patterns of which a plan for n positions lets keys go that a longer one still needs.

    Raises PatternValueError.
    """
    for cache, more in zip(plan.layers, longer.layers, strict=True):
        for head in range(cache.heads):
            gone = _evicted(cache.spans[cache.each[head]], more.spans[more.each[head]], n - 1)
            if gone is not None:
                raise PatternValueError(
                    f"EvictingCache: which keys can go depends on how many tokens there will be "
                    f"(in layer {cache.layer} of {n} tokens none reads key {gone} from {n - 1} on, "
                    f"of {2 * n} some do); say it: EvictingCache(model, tokens=prompt + new tokens)"
                )


def _evicted(spans: Spans, longer: Spans, step: int) -> int | None:
    """A key that nothing reads from `step` on, but for longer spans; None if there is none."""
    held, wanted = (x.read_at_or_after(step, step) for x in (spans, longer))
    place = np.searchsorted(held[:, 0], wanted[:, 0], side="right") - 1
    ends = np.where(place >= 0, np.append(held[:, 1], 0)[place], 0)
    short = np.flatnonzero(ends < wanted[:, 1])
    return max(int(wanted[short[0], 0]), int(ends[short[0]])) if len(short) else None
