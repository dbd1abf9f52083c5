"""A few rows of a layout on the CPU: the next tokens of a sequence against its cached keys.

Only the tiles that the rows read are touched.  Long full stretches are read in place where the
cache is in one piece; other keys are copied side by side without those that no row reads, so that
it does not matter what stands there.  Query heads that share a key head stand as rows of one call,
so that keys are read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import TensorError
from patterncc.kernels.cpu.attend import Scores, attend
from patterncc.kernels.cpu.cache import Piece, Prepared, pieces, prepared
from patterncc.kernels.cpu.heads import check, head_groups, merged, of_group, wide
from patterncc.kernels.cpu.pages import Cache, Joined, Keys, Stretch
from patterncc.kernels.score import Score, with_sinks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.kernels.spec import Spec

IN_PLACE = 256  # keys; a full stretch at least so long is read without a copy
ALONE = 512  # keys; the same for one query, whose keys are copied in few pieces
JOINED = 16  # stretches; more of them are copied key by key
AT_ONCE = 8192  # keys that are copied or scored at once


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    spec: Spec,
    score: Score,
    position: int | Tensor,
    block_table: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of queries that stand at `position`, `position + 1`, ... of each batch item.

    q [B, H, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], the layout's first S keys; position:
    one absolute position, or int [B].  Gives the output [B, H, L, Dv] and the LSE [B, H, L] as
    `forward` does, row for row.
    block_table, int32 [B, ..]: then k is [pages, Hkv, page, D], and v alike.  key_lengths, int32
    [B]: keys at and past it are not read.

    Raises: TensorError for positions outside the layout, and for pages that are not there.
    """
    check(q)
    B, H, L, _ = q.shape
    cache, key_heads = Cache(k, v, block_table), k.shape[1]
    held = spec.n_k if block_table is not None else min(spec.n_k, k.shape[2])
    out = lse = None
    for step in _steps(q, position, key_lengths, held, score, tensors[0], spec):
        for pattern, keys, members in head_groups(step.patterns, H, key_heads):
            scores = Scores.of(score, keys, members, key_heads, (spec.q_offset, spec.k_offset))
            group = _Group(step, cache, keys, prepared(tensors, spec, pattern), scores)
            some = q if step.some == slice(0, B) else q[step.some]
            part = group.rows(of_group(some, keys, members, key_heads))
            if part[1].shape[:3] == (B, key_heads, H // key_heads):  # all there is
                out, lse = part[0].reshape(B, H, L, -1).to(q.dtype), part[1].reshape(B, H, L)
                continue
            if out is None or lse is None:
                out = torch.empty(B, H, L, v.shape[-1], dtype=q.dtype)
                lse = torch.empty(B, H, L, dtype=wide(q.dtype))
            for whole, value in zip((out, lse), part, strict=True):
                of_group(whole[step.some], keys, members, key_heads).copy_(value)
    assert out is not None and lse is not None  # there is a sequence, and a head
    return (out, lse) if score.sinks is None else with_sinks(out, lse, score.sinks)


@dataclass(frozen=True, eq=False)
class _Step:
    """Neighbouring sequences whose rows stand at one place and read alike.

    row: the layout's row of the first query.  length: how many keys count.  mask: bool [n_k], which
    of them do (None: all).  patterns: one a head, or one for all.
    """

    some: slice
    row: int
    length: int
    mask: Tensor | None
    patterns: Tensor


def _steps(
    q: Tensor,
    position: int | Tensor,
    key_lengths: Tensor | None,
    held: int,
    score: Score,
    head_pattern: Tensor,
    spec: Spec,
) -> Iterator[_Step]:
    """The steps of a batch; held: how many keys the cache has.

    Raises: TensorError for positions outside the layout.
    """
    B, L = q.shape[0], q.shape[2]
    positions = [position] * B if isinstance(position, int) else position.tolist()
    for first in positions:
        if not 0 <= first - spec.q_offset <= spec.n - L:
            raise TensorError(
                f"decode: {L} queries at position {first} leave the layout, whose queries stand at "
                f"[{spec.q_offset}, {spec.q_offset + spec.n}); compile a longer layout"
            )
    lengths = [held] * B if key_lengths is None else key_lengths.clamp(0, held).tolist()
    patterns = head_pattern.view(spec.sequences, -1)
    of_each = [patterns[b % len(patterns)] for b in range(B)]
    alike = [
        (positions[b], lengths[b], of_each[b].tolist() if len(patterns) > 1 else None)
        for b in range(B)
    ]
    own = score.keys is not None
    for _, members in groupby(range(B), lambda b: (alike[b], b if own else 0)):
        b, *others = members
        mask = None if score.keys is None else score.keys[b]
        some = slice(b, b + 1 + len(others))
        yield _Step(some, positions[b] - spec.q_offset, lengths[b], mask, of_each[b])


@dataclass(frozen=True, eq=False)
class _Group:
    """Heads of one pattern in the sequences of one step."""

    step: _Step
    cache: Cache
    heads: slice
    plan: Prepared
    scores: Scores

    def rows(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Output [b, K, G, L, Dv] and LSE of q [b, K, G, L, D], which may stand in several tile
        rows."""
        height, row = self.plan.rows.block[0], self.step.row
        outs, lses = [], []
        for line in range(row // height, (row + q.shape[3] - 1) // height + 1):
            low, high = max(row, line * height), min(row + q.shape[3], (line + 1) * height)
            out, lse = self._line(q[:, :, :, low - row : high - row], line, low)
            outs.append(out)
            lses.append(lse)
        if len(outs) == 1:
            return outs[0], lses[0]
        return torch.cat(outs, 3), torch.cat(lses, 3)

    def _line(self, q: Tensor, line: int, first: int) -> tuple[Tensor, Tensor]:
        """Queries first .. of one tile row."""
        b, K, G, L, _ = q.shape
        precise, found = wide(q.dtype), None
        for keys, allowed in self._kept(line, first - line * self.plan.rows.block[0], L):
            k, v = self.cache.take(self.step.some, self.heads, keys)
            part, part_lse, dead = attend(q, k, v, allowed, self.scores, first, keys)
            if found is None and dead is None:
                found = part.to(precise), part_lse.to(precise)
                continue
            found = merged(*(found or self._nothing(q)), part, part_lse, dead)
        out, lse = found or self._nothing(q)
        return out.view(b, K, G, L, -1), lse.view(b, K, G, L)

    def _nothing(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What q's rows find in no keys."""
        b, K, G, L, _ = q.shape
        out = torch.zeros(b, K, G * L, self.cache.v.shape[-1], dtype=wide(q.dtype))
        return out, torch.full(out.shape[:-1], -torch.inf, dtype=wide(q.dtype))

    def _kept(self, line: int, low: int, count: int) -> Sequence[Piece]:
        """`_pieces`, kept for the next layer and sequence at this place where no mask has a say."""

        def make() -> list[Piece]:
            return list(self._pieces(line, low, count))

        if self.step.mask is not None:
            return make()
        whole = self.cache.table is None and self.scores.plain  # what `_stretches` asks
        place = (line, low, count, self.step.length)
        return pieces((*self.plan.key, *place, whole), make)

    def _pieces(self, line: int, low: int, count: int) -> Iterator[Piece]:
        """What queries low .. of a tile row read."""
        if count == 1:
            yield from self._of_one(line, low)
            return
        side = self.plan.rows.block[1]
        places: list[NDArray[np.int64]] = []
        masks: list[NDArray[np.bool_]] = []
        for first, tiles, word in self.plan.rows.line(line):
            a, b = first * side, min((first + tiles) * side, self.step.length)
            if a >= b:
                continue
            if word == 0 and b - a >= IN_PLACE and self._all_count(a, b):
                yield from ((piece, None) for piece in self._stretches(a, b))
                continue
            places.append(np.arange(a, b))
            tile = self.plan.masks.tile(word, low, low + count)
            masks.append(np.tile(tile, tiles)[:, : b - a])
        if places:
            yield from self._partial(np.concatenate(places), np.concatenate(masks, axis=1))

    def _of_one(self, line: int, low: int) -> Iterator[Piece]:
        """What one query reads: the same keys, however they fall into tiles."""
        side, ends = self.plan.rows.block[1], []
        for first, tiles, word in self.plan.rows.line(line):
            a, b = first * side, min((first + tiles) * side, self.step.length)
            if a >= b:
                continue
            if word == 0 and self._all_count(a, b):
                ends.append(np.array([[a, b]]))
                continue
            allowed = np.tile(self.plan.masks.tile(word, low, low + 1)[0], tiles)[: b - a]
            if self.step.mask is not None:
                allowed = allowed & self.step.mask[a:b].numpy()
            ends.append(a + _runs(allowed))
        read = _united(np.concatenate(ends)) if ends else []
        apart = self._read_in_place(read)
        yield from ((stretch, None) for stretch in apart)
        yield from ((keys, None) for keys in _together([s for s in read if s not in apart]))

    def _read_in_place(self, read: list[Stretch]) -> list[Stretch]:
        """The stretches that are worth a call of their own, so that they need not be copied."""
        if self.cache.table is not None or not self.scores.plain:
            return []
        if len(read) == 1:
            return read
        many = sum(last - first for first, last in read) > 2 * ALONE
        return [s for s in read if many and s[1] - s[0] >= ALONE]

    def _partial(self, index: NDArray[np.int64], allowed: NDArray[np.bool_]) -> Iterator[Piece]:
        """The keys of an index that some query may read, a limited number at once."""
        if self.step.mask is not None:
            allowed = allowed & self.step.mask.numpy()[index]
        used = allowed.any(axis=0)
        index, allowed = index[used], allowed[:, used]
        for at in range(0, len(index), AT_ONCE):
            kept = torch.from_numpy(np.ascontiguousarray(allowed[:, at : at + AT_ONCE]))
            picked = torch.from_numpy(index[at : at + AT_ONCE])
            yield picked, None if bool(kept.all()) else kept

    def _all_count(self, first: int, last: int) -> bool:
        mask = self.step.mask
        return mask is None or bool(mask[first:last].all())

    def _stretches(self, first: int, last: int) -> list[Keys]:
        """A stretch whole where it is read in place, else in pieces."""
        if self.cache.table is None and self.scores.plain:
            return [(first, last)]
        return [(at, min(at + AT_ONCE, last)) for at in range(first, last, AT_ONCE)]


def _runs(allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The stretches of True, [m, 2].

    >>> _runs(np.array([True, False, True, True])).tolist()
    [[0, 1], [2, 4]]
    """
    return np.flatnonzero(np.diff(allowed, prepend=False, append=False)).reshape(-1, 2)


def _united(ends: NDArray[np.int64]) -> list[Stretch]:
    """Ascending stretches [m, 2], those that touch as one.

    >>> _united(np.array([[0, 1], [2, 4], [4, 9]]))
    [(0, 1), (2, 9)]
    """
    if not len(ends):
        return []
    apart = ends[1:, 0] != ends[:-1, 1]
    first, last = ends[np.append(True, apart), 0], ends[np.append(apart, True), 1]
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _together(stretches: list[Stretch]) -> Iterator[Keys]:
    """Stretches side by side, a limited number of keys at once."""
    part: list[Stretch] = []
    room = AT_ONCE
    for first, last in stretches:
        while first < last:
            end = min(last, first + room)
            part.append((first, end))
            room -= end - first
            first = end
            if not room:
                yield _side_by_side(part)
                part, room = [], AT_ONCE
    if part:
        yield _side_by_side(part)


def _side_by_side(stretches: list[Stretch]) -> Keys:
    if len(stretches) == 1:
        return stretches[0]
    if len(stretches) <= JOINED:
        return Joined(tuple(stretches))
    first, last = np.array(stretches).T
    ends = np.cumsum(last - first)
    within = np.arange(ends[-1]) - np.repeat(ends - (last - first), last - first)
    return torch.from_numpy(np.repeat(first, last - first) + within)
