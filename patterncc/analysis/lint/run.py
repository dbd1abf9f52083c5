"""Lint: what is probably not meant, found before anything runs.

Rules are plain functions from a lowered stack and its patterns to findings, one file a kind.
docs/lint.md has every code with an example and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from patterncc.analysis.lint.finding import SEVERITY, WORST_FIRST, Finding, Severity
from patterncc.analysis.lint.heads import disagreeing_heads
from patterncc.analysis.lint.mixing import apart
from patterncc.analysis.lint.parts import useless_parts
from patterncc.analysis.lint.places import Family, families
from patterncc.analysis.lint.relay import idle_relays
from patterncc.analysis.lint.rows import empty_rows, leaks, unread_keys
from patterncc.analysis.lint.tiles import empty_tiles, padding
from patterncc.analysis.topology import Topology
from patterncc.stack import Stack

__all__ = ["RULES", "SEVERITY", "Finding", "Severity", "lint", "never_full", "not_full"]

Rule = Callable[[Topology, tuple[Family, ...]], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    empty_rows,  # PCC101, PCC102
    unread_keys,  # PCC103
    leaks,  # PCC104
    useless_parts,  # PCC107, PCC108
    apart,  # PCC109
    idle_relays,  # PCC110
    disagreeing_heads,  # PCC111
    padding,  # PCC112
    empty_tiles,  # PCC113
)
"""Every rule, in the order in which findings of one severity are said."""


def lint(t: Topology, asked: Stack | None = None) -> tuple[Finding, ...]:
    """Findings of a lowered stack, worst first.

    `asked` is the stack as written, where `t` has choices by content as all that they may come to:
    such layers are not judged by their tiles, parts and relays.

    >>> from patterncc import causal, window
    >>> from patterncc.analysis.topology import topology
    >>> [f.code for f in lint(topology(causal() & window(3) - window(0), 64))]
    ['PCC102', 'PCC103']
    """
    if not t.n:
        return ()
    patterns = families(t, asked)
    found = [f for rule in RULES for f in rule(t, patterns)]
    return tuple(sorted(found, key=lambda f: WORST_FIRST.index(f.severity)))


def never_full(pair: tuple[int, int] | None) -> Finding:
    """PCC105: no depth reaches every allowed pair."""
    shown = f": query {pair[0]} never sees key {pair[1]}" if pair else ""
    return Finding.of(
        "PCC105",
        f"no number of layers carries every allowed pair{shown}",
        "add a layer or a head that crosses (full, strided, a global token), or state "
        "'depth_to_full(n=...) == never' if it is meant",
    )


def not_full(depth: int, least: int) -> Finding:
    """PCC106: the stack is shallower than its depth to full."""
    return Finding.of(
        "PCC106",
        f"{depth} {'layer does' if depth == 1 else 'layers do'} not carry every allowed pair; "
        f"it takes {least} at least",
        "widen the window, or let one layer in a few read everything",
    )
