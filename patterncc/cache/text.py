"""A cache plan in words, as JSON, and as a picture of which keys are alive when."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.cache.spans import Spans
from patterncc.errors import PatternValueError
from patterncc.pattern import check_int

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.cache.plan import CachePlan, LayerCache

    I64 = NDArray[np.int64]

_PIECES = 64  # pieces of a head's spans that JSON lists
_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def size_text(count: int) -> str:
    """Bytes with three digits.

    >>> size_text(512), size_text(3 * 2**29)
    ('512 B', '1.5 GiB')
    """
    for name, unit in _UNITS:
        if count >= unit:
            return (
                f"{count / unit:.3g} {name}" if count < 1000 * unit else f"{count // unit} {name}"
            )
    return f"{count} B"


def share_text(share: float) -> str:
    """A share in percent, never rounded to none or all.

    >>> [share_text(x) for x in (0.0, 1e-9, 0.125, 0.999999, 1.0)]
    ['0%', '<0.01%', '12.5%', '>99.9%', '100%']
    """
    if 0 < share < 0.0001:
        return "<0.01%"
    return ">99.9%" if 0.9995 <= share < 1 else f"{100 * share:.3g}%"


def text(plan: CachePlan) -> str:
    """The plan as a table, equal layers in one row."""
    head = [f"KV cache of {plan.stop - plan.start:,} steps"]
    if plan.start:
        head[0] += f" after {plan.start:,} positions"
    head[0] += f", {plan.head_dim} numbers of {plan.dtype} a key and head"
    rows = [("layers", "heads", "peak", "of full", "bytes", "what stays")]
    for names, cache, count in _rows(plan):
        width = cache.slots * plan.key_bytes
        of_full, takes = share_text(cache.share), size_text(count * width)
        rows.append((names, str(cache.heads), f"{cache.peak:,}", of_full, takes, stays(cache)))
    wide = [max(len(row[k]) for row in rows) for k in range(5)]
    for row in rows:
        cells = [row[0].ljust(wide[0]), *(row[k].rjust(wide[k]) for k in range(1, 5)), row[5]]
        head.append("  " + "  ".join(cells))
    step = plan.curve.peak[1]
    head.append(
        f"at most {size_text(plan.peak_bytes)} alive at one time (step {step:,}), "
        f"{size_text(plan.capacity_bytes)} in buffers of each head's peak: "
        f"{share_text(plan.share)} of {size_text(plan.full_bytes)}"
    )
    shared = [l for l, c in enumerate(plan.layers) if c.layer != l]
    if shared:
        head.append(f"{len(shared)} layers read another's keys and values and hold none")
    return "\n".join([*head, *plan.notes])


def _rows(plan: CachePlan) -> list[tuple[str, LayerCache, int]]:
    """Runs of layers whose caches look the same: their numbers, one of them, how many."""

    def look(c: LayerCache) -> object:
        tables = [c.spans[k].table for k in c.head_spans]
        return c.heads, [(t.shape, t.tobytes()) for t in tables]

    rows = []
    for _, group in groupby(plan.caches, key=look):
        caches = list(group)
        first, last = caches[0].layer, caches[-1].layer
        whole = last - first + 1 == len(caches)
        names = str(first) if first == last else f"{first}..{last}" if whole else ""
        names = names or f"{len(caches)} of {first}..{last}"
        rows.append((names, caches[0], len(caches)))
    return rows


def stays(cache: LayerCache) -> str:
    """What a cache holds, in words; where heads differ, of each.

    >>> from patterncc import cache_plan, causal, sink, window
    >>> stays(cache_plan(causal() & (window(511) | sink(4)), 9000).layers[0])
    'the first 4 and the last 512'
    """
    told = []
    for k, spans in enumerate(cache.spans):
        words = _words(spans, cache)
        if len(cache.spans) > 1:
            count = cache.each.count(k)
            words = f"{count} head{'s' if count > 1 else ''}: {words}"
        told.append(words)
    return "; ".join(told[:4]) + (f"; {len(told) - 4} more" if len(told) > 4 else "")


@dataclass(frozen=True)
class _Kinds:
    """Spans sorted by how they end: keys kept to the last step, for a fixed number of steps, and
    until a step of their own."""

    lasting: I64
    sliding: I64
    other: I64

    @staticmethod
    def of(spans: Spans, cache: LayerCache) -> _Kinds:
        slant, end = spans.table[:, 2] == 1, cache.stop - 1
        sliding, level = spans.table[slant], spans.table[~slant]
        ends = level[:, 3] == end
        lasting, other = level[ends].copy(), level[~ends]
        if len(lasting) and lasting[-1, 1] == cache.stop:
            if len(sliding):  # what the last step cuts off from a window is no key to keep
                cut = max(int(lasting[-1, 0]), end - int(sliding[:, 3].max()))
                lasting[-1, 1] = cut
            elif len(other) and (other[:, 3] == other[:, 1] - 1).all():  # the last chunk
                other, lasting = np.concatenate([other, lasting[-1:]]), lasting[:-1]
        return _Kinds(lasting[lasting[:, 0] < lasting[:, 1]], sliding, other)


def _words(spans: Spans, cache: LayerCache) -> str:
    kinds = _Kinds.of(spans, cache)
    said = []
    if len(kinds.lasting):
        said.append(_lasting(kinds.lasting, cache))
    lags = np.unique(kinds.sliding[:, 3])
    if len(lags) == 1:
        said.append(f"the last {int(lags[0]) + 1:,}" if lags[0] else "each for its own step")
    elif len(lags):
        said.append(f"each for {int(lags[0]) + 1:,} to {int(lags[-1]) + 1:,} steps")
    if len(kinds.other):
        said.append(_other(kinds.other))
    return " and ".join(said) or "nothing"


def _lasting(table: I64, cache: LayerCache) -> str:
    """Keys kept to the end."""
    first, last = int(table[0, 0]), int(table[-1, 1])
    count = int((table[:, 1] - table[:, 0]).sum())
    if len(table) > 1:
        return f"{count:,} keys in {len(table):,} stretches"
    if count == cache.stop:
        return "every key"
    return f"the first {last:,}" if first == 0 else f"keys {first:,} .. {last - 1:,}"


def _other(table: I64) -> str:
    """Keys kept until a step of their own."""
    width = table[:, 1] - table[:, 0]
    if (table[:, 3] == table[:, 1] - 1).all():  # until their stretch is full
        most = int(width.max())
        return f"its stretch of up to {most:,}"
    longest = int((table[:, 3] - table[:, 0]).max())
    return f"{len(table):,} stretches, each up to {longest:,} steps"


def to_json(plan: CachePlan) -> dict[str, Any]:
    """The plan as JSON values."""
    peak, step = plan.curve.peak
    return {
        "n": plan.stop - plan.stack.memory,
        "start": plan.start,
        "stop": plan.stop,
        "head_dim": plan.head_dim,
        "dtype": plan.dtype,
        "layers": [_layer(plan, l, c) for l, c in enumerate(plan.layers)],
        "peak_keys": peak,
        "peak_step": step,
        "peak_bytes": plan.peak_bytes,
        "capacity_bytes": plan.capacity_bytes,
        "full_bytes": plan.full_bytes,
        "share": plan.share,
        "notes": list(plan.notes),
    }


def _layer(plan: CachePlan, l: int, c: LayerCache) -> dict[str, Any]:
    told: dict[str, Any] = {"layer": l, "cache": c.layer}
    if c.layer != l:
        return told
    return told | {
        "readers": list(c.readers),
        "heads": c.heads,
        "peak": c.peak,
        "peak_step": c.peak_step,
        "peaks": [c.curves[k].peak[0] for k in c.head_spans],
        "share": c.share,
        "bytes": c.slots * plan.key_bytes,
        "stays": stays(c),
        "spans": [_spans(c.spans[k]) for k in c.head_spans],
    }


def _spans(spans: Spans) -> dict[str, Any]:
    """Pieces [first, last, slope, offset], the first of them."""
    return {"pieces": len(spans.table), "first": spans.table[:_PIECES].tolist()}


def picture(cache: LayerCache, head: int = 0, rows: int = 16, columns: int = 64) -> str:
    """Which keys are alive when, a row a step and a column a stretch of keys.

    A full cell: all its keys are alive; a half one: some are.

    >>> from patterncc import cache_plan, causal, sink, window
    >>> plan = cache_plan(causal() & (window(3) | sink(1)), 12)
    >>> print(picture(plan.layers[0], rows=6))
    step 0   #
    step 2   ###
    step 4   #####
    step 6   #  ####
    step 8   #    ####
    step 11  #       ####

    Raises PatternValueError for less than one row or column.
    """
    rows = check_int("picture", "rows", rows, 1, 1024)
    columns = check_int("picture", "columns", columns, 1, 1024)
    if cache.start >= cache.stop:
        raise PatternValueError("picture: the plan has no step; ask for n of at least 1")
    rows, columns = min(rows, cache.stop - cache.start), min(columns, cache.stop)
    steps = np.linspace(cache.start, cache.stop - 1, rows).astype(np.int64).tolist()
    edges = np.linspace(0, cache.stop, columns + 1).astype(np.int64)
    wide = len(f"{steps[-1]}")
    lines = []
    for t in steps:
        alive = cache.alive(t, head)
        below = np.clip(edges[:, None], alive[:, 0], alive[:, 1]) - alive[:, 0]
        held = np.diff(below.sum(axis=1))
        cells = np.where(held == np.diff(edges), "#", np.where(held > 0, "+", " "))
        lines.append(f"step {t:<{wide}}  {''.join(cells.tolist())}".rstrip())
    return "\n".join(lines)
