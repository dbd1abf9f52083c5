"""The benchmark page's picture: how evenly work is spread, and what schedules alone would give."""

from __future__ import annotations

import math
from html import escape
from typing import Any

ROW, LEFT, WIDE, TOP = 17, 240, 300, 66  # pixels
STYLE = """
svg { font: 11px system-ui, sans-serif; --ink: #1c2330; --soft: #5b6577; --line: #dfe4ec;
  --page: #ffffff; --ours: #2457c5; --theirs: #c77d1e; --forward: #1f8a70; --back: #8b4fbf; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6eaf2; --soft: #9aa5b8; --line: #323a48;
  --page: #14181f; --ours: #7aa2ff; --theirs: #e0a04f; --forward: #55c2a5; --back: #c095ec; } }
.page { fill: var(--page); } text { fill: var(--ink); } .soft { fill: var(--soft); }
.head { font-size: 13px; font-weight: 600; } .ours { fill: var(--ours); }
.theirs { fill: var(--theirs); } .forward { fill: var(--forward); } .back { fill: var(--back); }
.line { stroke: var(--line); } .edge { stroke: var(--soft); }
"""


def drawing(plan: dict[str, Any] | None, gpu: dict[str, Any] | None) -> str:
    """One SVG file, its style inside, readable in light and dark."""
    cases = [c for c in (plan or {"cases": []})["cases"] if c["flex"] is not None]
    height = TOP + ROW * len(cases) + 50
    width = LEFT + 2 * WIDE + 110
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="Balance and schedules of kernels">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
        *_panel(0, "time over even work, forward", 1, 2.4, (1, 1.5, 2), cases, height, _balance),
        *_panel(
            1,
            "FlexAttention's work over ours, at equal speed",
            0.9,
            100,
            (1, 2, 4, 8, 16, 32, 64),
            cases,
            height,
            _schedule,
        ),
        *_labels(cases),
        *_legend(height, gpu),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _balance(c: dict[str, Any]) -> list[tuple[str, float]]:
    ours, theirs = (c[side]["forward_balance"]["over_ideal"] for side in ("ours", "flex"))
    return [("ours", ours), ("theirs", theirs)]


def _schedule(c: dict[str, Any]) -> list[tuple[str, float]]:
    ratio = c["ratio"]
    back = ratio["backward_single_pass_schedule"]
    return [("forward", ratio["forward_schedule"]), ("back", back)]


def _panel(
    column: int,
    title: str,
    least: float,
    most: float,
    marks: tuple[float, ...],
    cases: list[dict[str, Any]],
    height: int,
    values: Any,
) -> list[str]:
    """One column of dots on a logarithmic scale."""
    x0 = LEFT + column * (WIDE + 60)
    bottom = height - 48

    def at(value: float) -> float:
        share = math.log(max(least, min(most, value)) / least) / math.log(most / least)
        return x0 + share * WIDE

    parts = [f'<text class="head" x="{x0}" y="20">{escape(title)}</text>']
    for mark in marks:
        kind = "edge" if mark == 1 else "line"
        x = f"{at(mark):.1f}"
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="{TOP - 12}" y2="{bottom}"/>')
        parts.append(
            f'<text class="soft" x="{x}" y="{TOP - 18}" text-anchor="middle">{mark:g}</text>'
        )
    for row, c in enumerate(cases):
        y = TOP + ROW * row
        for kind, value in reversed(values(c)):
            parts.append(f'<circle class="{kind}" cx="{at(value):.1f}" cy="{y}" r="4"/>')
    return parts


def _labels(cases: list[dict[str, Any]]) -> list[str]:
    return [
        f'<text x="{LEFT - 14}" y="{TOP + ROW * row + 4}" text-anchor="end">'
        f"{escape(c['case'])}</text>"
        for row, c in enumerate(cases)
    ]


def _legend(height: int, gpu: dict[str, Any] | None) -> list[str]:
    y, right = height - 26, LEFT + WIDE + 60
    dots = (
        (LEFT, "ours", "ours"),
        (LEFT + 60, "theirs", "FlexAttention"),
        (right, "forward", "forward"),
        (right + 70, "back", "backward, single pass"),
    )
    parts = []
    for x, kind, name in dots:
        parts.append(f'<circle class="{kind}" cx="{x + 4}" cy="{y - 4}" r="4"/>')
        parts.append(f'<text class="soft" x="{x + 12}" y="{y}">{name}</text>')
    known = "counted; speed on a GPU is unmeasured" if gpu is None else "counted, not measured"
    parts.append(f'<text class="soft" x="{LEFT}" y="{height - 8}">{known}</text>')
    return parts
