"""Layouts of several terms, or in an order of their own: gather, run, put back, merge by LSE.

A term's tiles count slots.  So its queries, keys and values are gathered by its order, a backend
runs on them as on any layout, and what it gives is put back.  The edges of the terms are disjoint:
their outputs are merged by their LSE, and their gradients, each taken with the output and LSE of
the whole, add up.

The three functions are those of a backend; `spec` is the `Terms`, and `tensors` holds for each term
its backend's tensors and then the index tensors of its order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, assert_never

import torch
from torch import Tensor

from patterncc.errors import TensorError
from patterncc.kernels.cpu.heads import merged, wide
from patterncc.kernels.score import Grads, Score, with_sinks
from patterncc.kernels.spec import Backend, Spec
from patterncc.kernels.terms_flat import Flat, FlatPart
from patterncc.kernels.terms_keys import fill, slots_of_row

if TYPE_CHECKING:
    from types import ModuleType

_MARK = '{"terms":'


@dataclass(frozen=True)
class Term:
    """One term as the op carries it.

    spec: its tiles, a layout of slots.  tables: how many tensors the backend takes of it.
    queries, keys: None in token order, else where after the tables the two index tensors of that
    side stand, 0 or 2: the token of each slot, then the slot of each token.
    reach: tiles of the longest tile row, where keys have an order.  Then the last tensor holds the
    tiles before each run of the rows, int64 [runs + 1].
    placed: in token order, the last two tensors hold the positions of queries and keys, int32, for
    scores that know them.
    tokens: 0, or how many tokens a sequence has where slots hold those of all sequences and heads
    (`terms_flat`).  Then the last two tensors are the row of each slot and the slot of each row.
    """

    spec: Spec
    tables: int
    queries: int | None = None
    keys: int | None = None
    reach: int = 0
    placed: bool = False
    tokens: int = 0

    @property
    def frame(self) -> Spec:
        """The spec, its lengths those of the tensors that a call brings."""
        return replace(self.spec, n=self.tokens, n_k=self.tokens) if self.tokens else self.spec

    @property
    def tensors(self) -> int:
        """How many tensors the op carries for this term."""
        if self.tokens:
            return self.tables + 2
        sides = len({self.queries, self.keys} - {None})
        return self.tables + 2 * sides + (self.keys is not None) + 2 * self.placed


@dataclass(frozen=True)
class Terms:
    """What the op must know of a layout that has an order or a rest, as one line of JSON.

    >>> s = Spec(100, 100, 0, 0, (64, 64), 1, True, 1, False, "0" * 16, "cpu")
    >>> both = Terms((Term(s, 7), Term(s, 7, queries=0, keys=0)))
    >>> parsed(both.text()) == both, parsed(s.text()) == s
    (True, True)
    """

    terms: tuple[Term, ...]

    @property
    def first(self) -> Spec:
        """The spec of the first term: frame and backend are those of all."""
        return self.terms[0].frame

    def text(self) -> str:
        """One line of JSON; equal terms have equal texts."""
        each = [
            {**{f.name: getattr(t, f.name) for f in fields(t)}, "spec": t.spec.text()}
            for t in self.terms
        ]
        return json.dumps({"terms": each}, separators=(",", ":"))


@lru_cache(maxsize=1024)
def parsed(plan: str) -> Spec | Terms:
    """The spec or the terms that an op's text was made from."""
    if not plan.startswith(_MARK):
        return Spec.parse(plan)
    return Terms(
        tuple(Term(**{**t, "spec": Spec.parse(t["spec"])}) for t in json.loads(plan)["terms"])
    )


OPEN = -1
"""The lengths of a text that serves layouts of any length: they are those of the tensors."""


def opened(plan: str) -> str:
    """The text of a carried layout with its lengths left open, for a pass over all its rows.

    What names the layout is left out as well; where kernels look it up, a tensor says it.
    """
    made = parsed(plan)
    if isinstance(made, Spec):
        return _open(made).text()
    each = (replace(t, spec=_open(t.spec), reach=0) for t in made.terms)  # reach is for decoding
    return Terms(tuple(each)).text()


def _open(spec: Spec) -> Spec:
    return replace(spec, n=OPEN, n_k=OPEN, layout_hash="", reach=0)


@lru_cache(maxsize=1024)
def sized(plan: str, n: int, n_k: int) -> Spec | Terms:
    """As `parsed`, with the lengths of the tensors where the text leaves them open."""
    made = parsed(plan)
    first = made if isinstance(made, Spec) else made.first
    if first.n != OPEN:
        return made

    if isinstance(made, Spec):
        return replace(made, n=n, n_k=n_k)
    return Terms(tuple(replace(t, spec=replace(t.spec, n=n, n_k=n_k)) for t in made.terms))


def backend(name: Backend) -> ModuleType:
    """The module that runs one term: each has forward, backward and decode."""
    match name:
        case "triton":
            from patterncc.kernels import launch

            return launch
        case "cpu":
            from patterncc.kernels import cpu

            return cpu
        case "reference":
            from patterncc.kernels import reference

            return reference
        case _:
            assert_never(name)


@dataclass(frozen=True, eq=False)
class _Side:
    """Tokens of one side of a term: None stands for the order of tokens.

    order: the token of each slot; slots: the slot of each token; int32.  Where a decode step's
    cache has fewer tokens, slots of others are given the last one, which no row is let read.
    """

    order: Tensor | None = None
    slots: Tensor | None = None

    def gather(self, x: Tensor) -> Tensor:
        """[B, H, tokens, ...] as the slots hold it; tokens that x lacks give its last one."""
        return x if self.order is None else x.index_select(2, self.within(x.shape[2]))

    def within(self, held: int) -> Tensor:
        """The token of each slot, the last of `held` for those that are not there."""
        assert self.order is not None
        return self.order if held >= len(self.order) else self.order.clamp(max=held - 1)

    def tokens(self, count: int, score: Score) -> Tensor:
        """The token of each slot, int32."""
        if self.order is not None:
            return self.order
        like = score.slopes if score.slopes is not None else score.bias
        assert like is not None
        return torch.arange(count, dtype=torch.int32, device=like.device)

    def put_back(self, x: Tensor, *_shape: int) -> Tensor:
        """[B, H, slots, ...] in the order of tokens."""
        return x if self.slots is None else x.index_select(2, self.slots)


@dataclass(frozen=True, eq=False)
class _Part:
    """One term with its tensors."""

    spec: Spec
    tables: Sequence[Tensor]
    queries: _Side
    keys: _Side
    reach: int
    before: Tensor
    places: Sequence[Tensor] = ()

    def score(self, score: Score, k: Tensor | None = None) -> Score:
        """The options for this term: tokens by slot, and no sinks.

        k: keys by tokens where they may be fewer than the term's; slots of others do not count.
        """
        query_at = key_at = None
        if not (score.slopes is None and score.bias is None):
            sides = (self.queries, self.spec.n), (self.keys, self.spec.n_k)
            if self.places:
                query_at, key_at = self.places
            elif any(side.order is not None for side, _ in sides):
                query_at, key_at = (side.tokens(count, score) for side, count in sides)
        placed = replace(score, query_at=query_at, key_at=key_at)
        return replace(placed, sinks=None, keys=self._counting(score.keys, k), partly=True)

    def _counting(self, keys: Tensor | None, k: Tensor | None) -> Tensor | None:
        """Bool [B, slots], the keys that count, from a mask by tokens; None where all do."""
        order = self.keys.order
        if order is None:
            return keys
        if k is None or k.shape[2] == self.spec.n_k:
            return None if keys is None else keys.index_select(1, order)
        there = order[None] < k.shape[2]
        if keys is None:
            return there.expand(len(k), -1)
        return there & keys.index_select(1, self.keys.within(k.shape[2]))

    def cached(self, k: Tensor, v: Tensor) -> _Cached:
        """K and V for decode steps: gathered whole where a row may read most of them."""
        if self.keys.order is None:
            return _Cached(self, k, v, k, v)
        if 2 * self.reach * self.spec.patterns * self.spec.block[1] >= self.spec.n_k:
            return _Cached(self, k, v, self.keys.gather(k), self.keys.gather(v))
        key, value = (x.new_empty(*x.shape[:2], self.spec.n_k, x.shape[3]) for x in (k, v))
        return _Cached(self, k, v, key, value, partly=True)


@dataclass(frozen=True, eq=False)
class _Cached:
    """K and V by tokens, and by the slots of a part: all of them, or as far as rows need them."""

    part: _Part
    k: Tensor
    v: Tensor
    key: Tensor
    value: Tensor
    partly: bool = False

    def of_row(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Both by slots, sound wherever the rows at positions [B] read."""
        part = self.part
        if self.partly and part.keys.order is not None:
            slots = position - part.spec.q_offset
            slots = slots_of_row(slots, part.reach, part.before, part.tables, part.spec)
            fill(self.key, self.k, slots, part.keys.order)
            fill(self.value, self.v, slots, part.keys.order)
        return self.key, self.value


def _parts(spec: Terms, tensors: Sequence[Tensor]) -> Iterator[_Part | FlatPart]:
    """Each term with what the op carries for it."""
    start = 0
    for t in spec.terms:
        own = tensors[start : start + t.tensors]
        start += t.tensors
        if t.tokens:
            yield FlatPart(t.spec, own[: t.tables], Flat(own[-2], own[-1], t.tokens))
            continue
        queries, keys = (
            _Side() if at is None else _Side(own[t.tables + at], own[t.tables + at + 1])
            for at in (t.queries, t.keys)
        )
        places = own[-2:] if t.placed else ()
        yield _Part(t.spec, own[: t.tables], queries, keys, t.reach, own[-1], places)


def forward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], spec: Terms, score: Score
) -> tuple[Tensor, Tensor]:
    """Attention over the edges of all terms: out [B, H, n, Dv] in q's dtype, lse [B, H, n]."""
    run = backend(spec.first.backend)
    whole = None
    for part in _parts(spec, tensors):
        placed = part.queries.gather(q), part.keys.gather(k), part.keys.gather(v)
        out, lse = run.forward(*placed, part.tables, part.spec, part.score(score))
        placed_out, placed_lse = (part.queries.put_back(x, *q.shape[:2]) for x in (out, lse))
        whole = _united(whole, placed_out, placed_lse)
    return _finished(whole, q, score)


def _finished(
    whole: tuple[Tensor, Tensor] | None, q: Tensor, score: Score
) -> tuple[Tensor, Tensor]:
    """The result of all terms in q's dtype, once the sinks have joined: not once a term."""
    assert whole is not None
    out, lse = whole if score.sinks is None else with_sinks(*whole, score.sinks)
    return out.to(q.dtype), lse


def _united(whole: tuple[Tensor, Tensor] | None, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The result of the terms so far and that of the next, over disjoint keys, as one in fp32."""
    if whole is None:
        return out, lse
    return merged(whole[0].to(wide(out.dtype)), whole[1], out, lse, lse == -torch.inf)


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tensors: Sequence[Tensor],
    spec: Terms,
    score: Score,
    repeatable: bool = True,
) -> Grads:
    """The gradients of q, k and v, of slopes and bias: sums over the terms, in fp32.

    Each term is given the output and LSE of the whole: its probabilities are then those of the
    whole, and each pair's share of the gradient is counted in its own term alone.
    """
    run = backend(spec.first.backend)
    total: list[Tensor] = []
    options: list[Tensor | None] = [None, None]
    for part in _parts(spec, tensors):
        over_queries = [part.queries.gather(x) for x in (grad_out, q, out, lse)]
        over_keys = [part.keys.gather(x) for x in (k, v)]
        given = [*over_queries[:2], *over_keys, *over_queries[2:]]
        grads = run.backward(*given, part.tables, part.spec, part.score(score), repeatable)
        sides = ((part.queries, q), (part.keys, k), (part.keys, v))
        placed = [
            side.put_back(g, *x.shape[:2]) for (side, x), g in zip(sides, grads[:3], strict=True)
        ]
        options = [_sum(t, g) for t, g in zip(options, grads[3:5], strict=True)]
        if total:
            total = [t.to(wide(q.dtype)) + g for t, g in zip(total, placed, strict=True)]
        else:
            total = placed
    grad_q, grad_k, grad_v = (g.to(q.dtype) for g in total)
    return Grads(grad_q, grad_k, grad_v, *options)


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None else total if more is None else total + more


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    spec: Terms,
    score: Score,
    position: Tensor,
) -> tuple[Tensor, Tensor]:
    """The rows that stand at `position` .. of each sequence, position int32 [B].

    In a term with an order they stand at scattered slots, so each row is one run of the backend,
    on a copy of the keys that its tile row reads (of all keys where those are most of them).
    A row outside the layout reads nothing.  Nothing here waits for the device.

    Raises TensorError on the CPU for such a row.
    """
    run = backend(spec.first.backend)
    rows = (
        position[:, None].long() - spec.first.q_offset + torch.arange(q.shape[2], device=q.device)
    )
    _check_rows(rows, spec.first)
    whole = None
    for part in _parts(spec, tensors):
        if isinstance(part, FlatPart):
            raise TensorError(
                "decode: a layout of routed clusters is for whole sequences, for their members "
                "are chosen among all tokens; run the whole sequence, without position="
            )
        given, cached = (part.tables, part.spec, part.score(score, k)), part.cached(k, v)
        if part.queries.slots is None and not cached.partly:
            out, lse = run.decode(q, cached.key, cached.value, *given, position)
        else:
            at = _positions(rows, part.queries.slots, part.spec)
            each = [
                run.decode(q[:, :, r : r + 1], *cached.of_row(at[r]), *given, at[r])
                for r in range(q.shape[2])
            ]
            out, lse = (torch.cat(x, 2) for x in zip(*each, strict=True))
        whole = _united(whole, out, lse)
    return _finished(whole, q, score)


def _positions(rows: Tensor, slots: Tensor | None, spec: Spec) -> Tensor:
    """Where rows [B, L] stand in a term, as positions: int32 [L, B]; past the last for no row."""
    inside = (rows >= 0) & (rows < spec.n)
    slot = rows if slots is None else slots[rows.clamp(0, spec.n - 1)]
    placed = torch.where(inside, slot, spec.n) + spec.q_offset
    return placed.t().to(torch.int32).contiguous()


def _check_rows(rows: Tensor, spec: Spec) -> None:
    """On the CPU a row that the layout lacks is refused, as it is for a layout of one term."""
    if spec.backend != "cpu" or bool(((rows >= 0) & (rows < spec.n)).all()):
        return
    raise TensorError(
        f"decode: rows {(rows + spec.q_offset).tolist()} leave the layout, whose queries stand at "
        f"[{spec.q_offset}, {spec.q_offset + spec.n}); compile a longer layout"
    )
