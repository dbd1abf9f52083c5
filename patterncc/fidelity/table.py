"""A comparison as a plain table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from patterncc.fidelity.result import Fidelity, Row, Spread

WIDTH = 96
WIDEST = 44  # characters of a name in the table; a longer one stands on a line of its own

_CAUSAL = ("pattern", "density", "reach", "full at", "shared", "kept", "KL", "top-1", "perplexity")
_ENCODER = ("pattern", "density", "reach", "full at", "shared", "kept", "cosine", "worst")
_TITLES = {"participation": "shared"}  # where the column is called otherwise


def render(found: Fidelity) -> str:
    """The table, what its columns mean, how far prediction and measurement agree, and notes."""
    causal = found.kind == "causal"
    rows = [_cells(row, causal) for row in found.rows]
    parts = [
        _wrapped(
            f"{found.model}: {found.layers} layers, {found.sequences} sequences of {found.length} "
            f"tokens ({', '.join(found.texts)})"
        ),
        _table(_CAUSAL if causal else _ENCODER, rows),
    ]
    if len(found.texts) > 1:
        parts.append(_by_text(found))
    parts.append(_legend(found))
    parts.append(_agreement(found))
    parts += [_wrapped(f"note: {note}") for note in found.notes]
    return "\n\n".join(parts).replace("\n\nnote:", "\nnote:").replace("\nnote:", "\n\nnote:", 1)


def _cells(row: Row, causal: bool) -> tuple[str, ...]:
    known = row.foreseen.figures
    first = (
        row.name,
        f"{known['density']:.3f}",
        f"{known['reach']:.1%}",
        "-" if row.foreseen.depth_to_full is None else str(row.foreseen.depth_to_full),
        f"{known['participation']:.2f}" if "participation" in known else "-",
        f"{known['kept']:.3f}" if "kept" in known else "-",
    )
    if causal:
        kl, top1 = row.measured["kl"], row.measured["top1"]
        return (*first, _spread(kl, 4), _spread(top1, 3), f"{row.perplexity():.1f}")
    cosine = row.measured["cosine"]
    return (*first, _spread(cosine, 4), f"{cosine.least:.4f}")


def _spread(found: Spread, digits: int) -> str:
    """The mean and, where there is one, its standard error in units of the last digit.

    >>> _spread(Spread(0.0123, 0.0002, 0.01, 0.02), 4)
    '0.0123(2)'
    """
    if found.error is None:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f}({max(1, round(found.error * 10**digits))})"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    width = min(WIDEST, max(len(line[0]) for line in (titles, *rows)))
    widths = [max(len(line[k]) for line in (titles, *rows)) for k in range(len(titles))]
    lines = []
    for line in (titles, *rows):
        name = line[0]
        if len(name) > width:
            lines.append(name)
            name = ""
        cells = [cell.rjust(size) for cell, size in zip(line[1:], widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(width), *cells]))
    return "\n".join(lines)


def _by_text(found: Fidelity) -> str:
    figure = "KL" if found.kind == "causal" else "cosine"
    rows = [[row.name, *(_spread(row.by_text[t], 4) for t in found.texts)] for row in found.rows]
    return _table([f"{figure} by text", *found.texts], rows)


def _legend(found: Fidelity) -> str:
    pairs = "causal pairs" if found.kind == "causal" else "pairs"
    lines = [
        f"density: share of the {pairs} that a layer reads; reach: share that the {found.layers} "
        "layers connect; full at: layers that would connect all",
        "shared: positions that share a state, 1 / sum p^2 of its rollout; kept: part of the "
        f"model's own rollout that the pattern's keeps (both at alpha {found.alpha:g})",
    ]
    if found.kind == "causal":
        lines.append(
            "KL(dense || pattern) in nats a token, top-1: share of equal most likely next tokens; "
            "in brackets the standard error in units of the last digit; perplexity of the model as "
            f"it is: {found.rows[0].perplexity('dense_loss'):.1f}"
        )
    else:
        lines.append(
            "cosine between embeddings of the model as it is and with the pattern: mean (standard "
            "error in units of the last digit) and worst sequence"
        )
    return "\n".join(map(_wrapped, lines))


def _agreement(found: Fidelity) -> str:
    judge = "KL" if found.kind == "causal" else "cosine"
    told = [
        f"{_TITLES.get(name, name)} {value:+.2f}"
        for name, value in found.agreement.items()
        if value is not None
    ]
    if not told:
        return _wrapped("prediction against measurement: give three patterns or more to rank them")
    return _wrapped(
        f"rank correlation with the measured order by {judge}, over {len(found.rows)} patterns "
        f"(1: the same order): {', '.join(told)}"
    )


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
