"""A comparison as a plain table: stable, diffable, readable at 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.analysis.text import counted, percent_text, wrapped

if TYPE_CHECKING:
    from patterncc.analysis.compare.comparison import Candidate, Comparison

WIDTH = 80
LEAST_NAME = 12  # columns that a name keeps at least; longer ones lose their middle


def render(found: Comparison) -> str:
    """The table, what its columns say, and the notes."""
    lines = [f"{counted(len(found.candidates), 'candidate')} at {counted(found.n, 'token')}", ""]
    lines += table(cells(found))
    lines += ["", *(text for line in legend(found) for text in wrapped(line, WIDTH))]
    lines += [text for note in found.notes for text in wrapped(f"note: {note}", WIDTH)]
    return "\n".join(lines)


def cells(found: Comparison) -> list[tuple[str, ...]]:
    """The head and one row a candidate; what the cache holds where it is not what is read."""
    held = shows_held(found)
    kv = ("KV read", "held") if held else ("KV",)
    head = ("candidate", "FLOPs", *kv, "full at", "reach", "half within", "best")
    return [head, *(_row(c, held) for c in found.candidates)]


def shows_held(found: Comparison) -> bool:
    """Some candidate holds more or fewer keys and values than it reads in a step."""
    return any(c.kv_held_share != c.kv_share for c in found.candidates)


def _row(c: Candidate, held: bool) -> tuple[str, ...]:
    """One candidate's cells."""
    kv = (c.kv_share, c.kv_held_share) if held else (c.kv_share,)
    marks = [plane for plane in ("depth", "influence") if c.on_front(plane)]
    return (
        c.name,
        "<= " * (c.flops_share_least < c.flops_share) + percent_text(c.flops_share, 3),
        *(percent_text(share, 3) for share in kv),
        depth_text(c),
        reach_text(c),
        "-" if c.q50 is None else f"{c.q50:,}",
        "both" if len(marks) == 2 else " ".join(marks),
    )


def legend(found: Comparison) -> list[str]:
    """What the columns say, one sentence each."""
    names = "FLOPs, KV read and held" if shows_held(found) else "FLOPs, KV"
    return [
        f"{names}: shares of full attention's, over the whole stack; KV is what a decode step "
        "reads" + (", held what the cache holds for it" if shows_held(found) else ""),
        "reach: allowed pairs reached at each candidate's depth",
        "half within: the distance within which half of the last token's influence lies "
        f"(q50 of the rollout, alpha {found.alpha:g}); more is farther. Dense causal layers gather "
        "influence at the first tokens, and it falls with alpha: try several before you rank by it",
        f"best by cost and depth: {', '.join(found.front('depth')) or 'none'}",
        f"best by cost and influence: {', '.join(found.front('influence')) or 'none'}",
    ]


def depth_text(c: Candidate) -> str:
    """The depth to full, brackets as they are.

    >>> from patterncc import causal, window
    >>> from patterncc.analysis import compare
    >>> depth_text(compare({"a": causal() & window(15)}, 256).candidates[0])
    '17'
    """
    full = c.depth_to_full
    if full.decided:
        return "never" if full.never else f"{full.lo:,}"
    return f">= {full.lo:,}" if full.hi is None else f"{full.lo:,}-{full.hi:,}"


def reach_text(c: Candidate) -> str:
    """The share reached: what is proved, with a sign where it may be more."""
    at = c.reach
    if at.exact:
        return percent_text(at.share, 3)
    return (">= " if at.certain else "~") + percent_text(at.share, 3)


def shortened(name: str, most: int) -> str:
    """A name with its middle left out where it is too long.

    >>> shortened("models/somewhere/deep/config", 17)
    'models/.../config'
    """
    if len(name) <= most:
        return name
    head = (most - 3) // 2
    return f"{name[:head]}...{name[len(name) - (most - 3 - head) :]}"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Cells in columns: the first and the last to the left, the others to the right; names give
    way where a line would be too long."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    widths[0] = min(widths[0], max(LEAST_NAME, WIDTH - sum(widths[1:]) - 2 * last))
    rows = [(shortened(cells[0], widths[0]), *cells[1:]) for cells in rows]
    return [
        "  ".join(
            f"{cell:<{w}}" if k in (0, last) else f"{cell:>{w}}"
            for k, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]
