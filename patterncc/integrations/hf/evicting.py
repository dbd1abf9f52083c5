"""EvictingCache: a cache for transformers that holds only keys which a later query can still read.

    with pc.hf.apply(model, pc.causal() & (pc.window(511) | pc.sink(4))):
        cache = pc.hf.EvictingCache(model, tokens=prompt + 256)
        model.generate(ids, past_key_values=cache, max_new_tokens=256)

What may go, and when, is `pc.cache_plan`'s answer for the patterns in the model.  A prompt, and
every later call of several tokens, is handed keys by position, as from a cache that keeps all: what
was evicted is not read.  A step of one token is handed the slots themselves, and `Held` tells the
attention function which of them the token reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from patterncc.cache import CachePlan
from patterncc.errors import BackendError
from patterncc.integrations.held import Group, Written, groups_of
from patterncc.integrations.hf.modules import Found, attention_modules
from patterncc.integrations.hf.planned import Planned, state_of
from patterncc.integrations.hf.reading import Held, tagged
from patterncc.integrations.hf.state import STATE, Patterned
from patterncc.pattern import check_int


class EvictingCache(Cache):  # type: ignore[misc]
    """A transformers cache that holds what the model's patterns can still read, and no more.

    model: one that patterns are applied to (`pc.hf.apply`); in an encoder-decoder model the cache
    is that of the decoder's self-attention.  tokens: positions that will be written at most, prompt
    included.  Without it the cache is planned for longer and longer sequences as it fills, which
    not every pattern allows.  poison: write NaN over what is evicted, to show that nothing reads
    it.

    Sequences of a batch are of one length; padding on the left is right where edges follow from
    i - j alone, as windows do.  Greedy, sampled and beam search, prompts at once or in chunks.

    Raises BackendError for a model without patterns, PatternValueError for patterns that read later
    keys, or that are drawn for one length.
    Source: transformers' Cache (version 5.17 and up).
    """

    def __init__(self, model: Any, tokens: int | None = None, *, poison: bool = False) -> None:
        if tokens is not None:
            tokens = check_int("EvictingCache", "tokens", tokens, 1)
        modules = _decoder(model)
        self._planned = Planned(modules, tokens)
        layers = [_Layer(self._planned, index, f, poison) for index, f in enumerate(modules)]
        super().__init__(layers=layers)

    @property
    def plan(self) -> CachePlan | None:
        """What `pc.cache_plan` says of the model's patterns; None before the first call."""
        return self._planned.plan

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def held_nbytes(self) -> int:
        """Bytes of the keys and values that are held now; the buffers have room for the peak."""
        return sum(layer.held_nbytes for layer in self.layers)

    @property
    def full_nbytes(self) -> int:
        """Bytes that a cache which keeps every key would hold of the tokens so far."""
        return sum(layer.full_nbytes for layer in self.layers)

    def held(self, layer: int = 0, head: int = 0) -> list[int]:
        """The positions of the keys that a key/value head of a layer holds, ascending."""
        for group in self.layers[layer].groups:
            if head in group.heads:
                return sorted(group.slots.key[group.slots.key >= 0].tolist())
        return []

    def reset(self) -> None:
        """As before the first call."""
        self._planned.forget()
        super().reset()

    def __repr__(self) -> str:
        room = ""
        if self.plan is not None and self.nbytes > self.full_nbytes:
            room = f": room for {self.plan.stop:,} tokens, tokens= is for fewer"
        return (
            f"EvictingCache({len(self.layers)} layers, {self.get_seq_length():,} tokens, "
            f"{self.nbytes:,} of {self.full_nbytes:,} bytes{room})"
        )


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values in slots."""

    is_sliding = False
    supports_early_init = False

    def __init__(self, planned: Planned, index: int, found: Found, poison: bool) -> None:
        super().__init__()
        self.planned, self.index, self.poison = planned, index, poison
        self.module, self.state = found.module, state_of(found)
        self.reset()

    def reset(self) -> None:
        """As before the first call."""
        self.groups: list[Group] = []
        self.written = self.n = 0
        self.held: Held | None = None
        self.is_initialized = False

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(g.nbytes for g in self.groups)

    @property
    def held_nbytes(self) -> int:
        """Bytes of the keys and values in slots."""
        each = ((g.slots.held, x) for g in self.groups for x in (g.k, g.v))
        return sum(held * x[:, :, :1].nbytes for held, x in each)

    @property
    def full_nbytes(self) -> int:
        """Bytes of all keys and values written so far."""
        return sum(self.written * x[:, :, :1].nbytes for g in self.groups for x in (g.k, g.v))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: how much room is needed is known once keys come."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the next positions, [B, Hkv, count, D]; what their queries are answered from.

        Several positions: keys by position, all that there were.  One: itself, and the slots.
        """
        k, v, first, count = key_states, value_states, self.written, key_states.shape[2]
        self._check(k, v)
        n = self.planned.positions(first, count, self.n)
        if n != self.n:
            self._make_room(self.planned.of(n, k), n, k, v)
        since = first if count == 1 else first + count
        writes = [g.slots.write(first, count, since) for g in self.groups]
        answer = self._by_position(k, v, writes) if count > 1 and first else (k, v)
        for group, written in zip(self.groups, writes, strict=True):
            group.store(k, v, written, poison=self.poison)
        self.written += count
        assert self.held is not None
        self.held.stop = self.written
        return tagged(answer[0], self.held), answer[1]

    def _make_room(self, plan: CachePlan, n: int, k: Tensor, v: Tensor) -> None:
        """Buffers for a plan; what stands in those of a shorter one keeps its slots."""
        cache, before = plan.layers[self.index], self.groups
        own = {h: g for g in before for h in g.heads}
        slots = self.planned.slots(cache, [own[h].slots for h in range(cache.heads)] if own else [])
        like, dims = (k.dtype, k.device), (k.shape[3], v.shape[3])
        self.groups = groups_of(slots, cache.each, k.shape[0], dims, like)
        for group in self.groups:
            for place, head in enumerate(group.heads if own else ()):
                old, at = own[head], own[head].heads.index(head)
                group.k[:, place, : old.slots.capacity] = old.k[:, at]
                group.v[:, place, : old.slots.capacity] = old.v[:, at]
        self.held = Held(self.state.layouts, plan.reads[self.index], self.groups, cache.heads)
        self.n, self.is_initialized = n, True

    def _by_position(self, k: Tensor, v: Tensor, writes: list[Written]) -> tuple[Tensor, Tensor]:
        """Held keys and new ones by position; others are not there (NaN, with poison)."""
        if torch.is_grad_enabled() and k.requires_grad:
            raise BackendError(
                f"layer {self.index}: EvictingCache has no gradient for keys of earlier calls; run "
                "the model under torch.no_grad()"
            )
        filler = torch.nan if self.poison else 0.0
        sides = self.written + k.shape[2]
        key, value = (x.new_full((*x.shape[:2], sides, x.shape[3]), filler) for x in (k, v))
        for group, written in zip(self.groups, writes, strict=True):
            group.spread(key, value, written.before)
        key[:, :, self.written :], value[:, :, self.written :] = k, v
        return key, value

    def _check(self, k: Tensor, v: Tensor) -> None:
        state = getattr(self.module, STATE, None)
        if not isinstance(state, Patterned) or not _same(state, self.state):
            raise BackendError(
                f"layer {self.index}: the pattern that this EvictingCache was made for has been "
                "undone, or another one put in its place; make a cache for the model as it is"
            )
        self.state = state
        if not self.groups:
            return
        batch, heads = len(self.groups[0].k), sum(len(g.heads) for g in self.groups)
        there = (batch, heads, self.groups[0].k.shape[3], self.groups[0].k.dtype)
        if (*k.shape[:2], k.shape[3], k.dtype) != there:
            raise BackendError(
                f"layer {self.index}: keys of shape {tuple(k.shape)} in {k.dtype}, and the "
                f"EvictingCache holds {batch} sequences of {heads} heads of {there[2]} in "
                f"{there[3]}; make a cache for each batch"
            )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Positions, whether their keys are held or not."""
        return self.written + query_length, 0

    def get_seq_length(self) -> int:
        """The tokens so far."""
        return self.written

    def get_max_length(self) -> int:
        """The tokens that may come, -1 where that was not said."""
        return self.planned.given or -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence b becomes what sequence beam_idx[b] was."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences, in that order."""
        for group in self.groups:
            there = indices.to(group.k.device)
            group.k, group.v = group.k[there], group.v[there]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence so many times."""
        for group in self.groups:
            group.k = group.k.repeat_interleave(repeats, dim=0)
            group.v = group.v.repeat_interleave(repeats, dim=0)

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what earlier tokens let go cannot come back.

        Raises BackendError.
        """
        if tokens_to_remove:
            raise BackendError(
                f"EvictingCache: {abs(tokens_to_remove)} tokens cannot be taken back (assisted "
                "decoding, prompt lookup), for keys that they were the last to read are gone; use "
                "DynamicCache()"
            )


def _decoder(model: Any) -> tuple[Found, ...]:
    """The self-attention modules of a decoder, which all carry patterns, by layer.

    Raises BackendError.
    """
    found = [f for f in attention_modules(model) if f.part == "decoder"]
    found.sort(key=lambda f: f.layer)
    bare = [f.name for f in found if not isinstance(getattr(f.module, STATE, None), Patterned)]
    if bare or not found:
        what = f"{bare[0]} carries no pattern" if bare else "the model has no causal attention"
        raise BackendError(
            f"EvictingCache: {what}; make the cache while one is applied: "
            "with pc.hf.apply(model, pattern): cache = pc.hf.EvictingCache(model)"
        )
    if [f.layer for f in found] != list(range(len(found))):
        raise BackendError(
            f"EvictingCache: {type(model).__name__} has attention in layers "
            f"{[f.layer for f in found]} alone; layers of other kinds keep a state that this cache "
            "does not hold: use DynamicCache(config=model.config)"
        )
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "num_kv_shared_layers", 0):
        raise BackendError(
            f"EvictingCache: {type(model).__name__} has layers that read the keys of earlier ones, "
            "which this cache does not know of; use DynamicCache(config=model.config)"
        )
    return tuple(found)


def _same(state: Patterned, other: Patterned) -> bool:
    """Whether a module carries the same pattern, or the same again."""
    if state is other:
        return True
    a, b = state.layouts, other.layouts
    return (a.layer, a.index, a.length) == (b.layer, b.index, b.length) and (
        a.bindings.keys() == b.bindings.keys()
        and all(a.bindings[name] is b.bindings[name] for name in a.bindings)
    )
