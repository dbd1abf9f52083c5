"""Choices in words: a table for each layer, why one candidate won, and what dense would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from patterncc.layout.cost.choose import NEAR
from patterncc.layout.layers import shortened

if TYPE_CHECKING:
    from patterncc.layout.cost.choices import Choices, LayerChoice, Row

SHOWN = 5  # tile sizes that are listed for each order; JSON has them all
HEAVY = 0.05  # share of the time from which a heavy row is worth a sentence
COLUMNS = ("order", "block", "full", "partial", "masks", "ms a head", "KiB")


def text(found: Choices) -> str:
    """What `patterncc compile --explain` prints."""
    table = found.device
    lines = [
        f"{found.n:,} queries, {found.n_k:,} keys; predicted for {table.device} "
        f"({table.dtype}, head dim {found.head_dim}, {found.heads} heads at once)",
        f"figures: {table.target}: {table.basis}",
    ]
    if found.asked not in (table.target, "cpu") and not found.asked.endswith(".json"):
        lines.append(f"there is no table for {found.asked}: the nearest is {table.target}")
    for layer in found.layers:
        lines += ["", _heading(found, layer), *_table(layer), *sentences(layer)]
    return "\n".join(lines)


def sentences(layer: LayerChoice) -> list[str]:
    """Why the chosen one won, what heavy rows cost, and whether dense attention is faster."""
    told = [_why(layer)]
    if layer.drawn and len(layer.layers) > 1:
        told.append("These layers differ in their random edges; the first of them is shown.")
    told += [f"{name}: {why}" for name, why in layer.refused.items()]
    if layer.split_gain > HEAVY:
        told.append(
            "The longest row holds the others up in this prediction, which leaves every row to one "
            "processor. Kernels cut such rows into parts: that may save up to "
            f"{layer.split_gain:.0%}."
        )
    told.append(_dense(layer))
    return told


def _heading(found: Choices, layer: LayerChoice) -> str:
    pattern = (
        layer.pattern if len(layer.pattern) <= 200 else shortened(layer.pattern)[:200] + " ..."
    )
    count = sum(len(x.layers) for x in found.layers)
    if count == 1:
        return pattern
    return (
        f"layer{'s' if len(layer.layers) > 1 else ''} {spans(layer.layers)} of {count}: {pattern}"
    )


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers, those that follow each other joined.

    >>> spans([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    found: list[list[int]] = []
    for k in numbers:
        if found and found[-1][-1] == k - 1:
            found[-1][1:] = [k]
        else:
            found.append([k])
    named = ["-".join(map(str, x)) for x in found]
    return ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")


def _table(layer: LayerChoice) -> list[str]:
    """The best sizes of each order, the chosen candidate marked."""
    shown: list[Row] = []
    for order in dict.fromkeys(r.order for r in layer.rows):
        same = sorted((r for r in layer.rows if r.order == order), key=lambda r: r.seconds)
        kept = same[:SHOWN]
        if layer.chosen in same and layer.chosen not in kept:
            kept.append(layer.chosen)
        shown += kept
    cells = [COLUMNS, *(_cells(r) for r in shown)]
    widths = [max(len(c[k]) for c in cells) for k in range(len(COLUMNS))]
    marks = [" ", *("*" if r is layer.chosen else " " for r in shown)]
    return [
        f"{mark} "
        + "  ".join(
            c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths))
        )
        for mark, row in zip(marks, cells)
    ]


def _cells(r: Row) -> tuple[str, ...]:
    most = "<=" if r.counts == "bound" else "~" if r.counts == "sample" else ""
    return (
        r.order,
        named(r),
        f"{r.full:,}",
        f"{most if r.partial else ''}{r.partial:,}",
        _masks(r),
        f"{r.seconds * 1e3:.4g}",
        f"{r.bytes / 1024:,.0f}",
    )


def named(r: Row) -> str:
    """The tile sizes of a candidate."""
    return " + ".join(f"{h}x{w}" for h, w in dict.fromkeys(r.blocks))


def _masks(r: Row) -> str:
    """Mask classes of the partial tiles: counted, or the zones of the mean one."""
    if not r.partial:
        return "none"
    if r.classes is None:
        return f"{r.zones_a_tile:.2g} zones a tile"
    return " ".join(f"{name}:{count}" for name, count in r.classes.items() if count) or "none"


def _why(layer: LayerChoice) -> str:
    """One sentence: what was taken and what it beat."""
    best = layer.chosen
    said = f"Chosen: {best.order} order, tiles of {named(best)}, {_ms(best.seconds)} a head"
    faster = min(layer.rows, key=lambda r: r.seconds)
    others = [r for r in layer.rows if r.order == best.order and r is not best]
    if len(layer.rows) == 1:
        return f"{said}: it was asked for."
    if best.seconds > NEAR * faster.seconds:
        gain = best.seconds / faster.seconds
        return (
            f"{said}.  {faster.order} order with tiles of {named(faster)} would take "
            f"{_ms(faster.seconds)}, {gain:.2f} times as fast; "
            + (
                "an order is changed only where tiles in token order are clearly wasteful."
                if faster.order != best.order
                else "compile weighs fewer tile sizes."
            )
        )
    orders = sorted((r for r in layer.rows if r.order != best.order), key=lambda r: r.seconds)
    if orders:
        gain = orders[0].seconds / best.seconds
        said += f", {gain:.2f} times as fast as the best in {orders[0].order} order"
    if not others:
        return f"{said}."
    second = min(others, key=lambda r: r.seconds)
    return f"{said}{_beside(best, second)}."


def _beside(best: Row, second: Row) -> str:
    """What tells the chosen tile size from the next one."""
    ratio = second.seconds / best.seconds
    if ratio < 1:
        return f"; {named(second)} would take {1 - ratio:.1%} less, finer than the model can tell"
    if ratio < 1.01:
        return f"; {named(second)} would take as long"
    said = f"; {named(second)} would take {ratio:.2f} times as long"
    if best.pairs < second.pairs:
        return f"{said}, as its tiles hold {second.pairs / best.pairs:.2f} times the pairs"
    tiles = (second.full + second.partial) / max(1, best.full + best.partial)
    if tiles > 1:
        return f"{said}, as it needs {tiles:.2f} times the tiles"
    return said


def _dense(layer: LayerChoice) -> str:
    """Sparse or dense, plainly."""
    kind = "dense causal attention" if layer.causal else "dense attention"
    ratio = layer.chosen.seconds / layer.dense_seconds
    if layer.dense_is_faster:
        return (
            f"{kind[0].upper()}{kind[1:]} would be faster: {_ms(layer.dense_seconds)} a head, "
            f"{ratio:.2f} times as fast; this mask leaves out too little at this length."
        )
    return (
        f"{kind[0].upper()}{kind[1:]} would take {_ms(layer.dense_seconds)} a head, "
        f"{1 / ratio:.1f} times as long."
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def to_json(found: Choices) -> dict[str, Any]:
    """Everything that was weighed."""
    table = found.device
    return {
        "n": found.n,
        "n_k": found.n_k,
        "target": found.asked,
        "device": {
            "target": table.target,
            "name": table.device,
            "measured": table.measured,
            "basis": table.basis,
            "sources": list(table.sources),
            "dtype": table.dtype,
        },
        "head_dim": found.head_dim,
        "heads": found.heads,
        "layers": [_layer(x) for x in found.layers],
    }


def _layer(x: LayerChoice) -> dict[str, Any]:
    return {
        "layers": list(x.layers),
        "pattern": shortened(x.pattern),
        "drawn": x.drawn,
        "chosen": _row(x.chosen),
        "candidates": [_row(r) for r in sorted(x.rows, key=lambda r: r.seconds)],
        "refused": dict(x.refused),
        "dense_seconds": x.dense_seconds,
        "dense_is_causal": x.causal,
        "dense_is_faster": x.dense_is_faster,
        "split_gain": x.split_gain,
        "why": sentences(x),
    }


def _row(r: Row) -> dict[str, Any]:
    return {
        "order": r.order,
        "blocks": [list(b) for b in r.blocks],
        "full_tiles": r.full,
        "partial_tiles": r.partial,
        "counts": r.counts,
        "masks": None if r.classes is None else dict(r.classes),
        "zones_a_tile": r.zones_a_tile,
        "seconds": r.seconds,
        "split_seconds": r.split_seconds,
        "bytes": r.bytes,
        "bound": r.bound,
    }
