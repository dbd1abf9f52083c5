"""compare: several stacks at one length side by side, and which of them no other beats."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patterncc.analysis.compare.front import Bracket, dominators
from patterncc.analysis.cost import total
from patterncc.analysis.reach import analyze
from patterncc.analysis.report import Report
from patterncc.analysis.saving import save_as
from patterncc.analysis.text import counted
from patterncc.errors import PatternError, PatternSyntaxError, PatternValueError
from patterncc.pattern import Pattern
from patterncc.stack import Heads, Stack
from patterncc.zones.lower import check_bindings, names_in

if TYPE_CHECKING:
    from patterncc.analysis.cost import LevelCost
    from patterncc.analysis.curve import Depth, Figure

SCHEMA = "patterncc.comparison/1"
PLANES = ("depth", "influence")
ENDINGS = (".html", ".json", ".svg", ".txt")
MOST_NAMES = 6  # that a note lists
DIGITS = 9  # significant ones that two figures must differ in: the rest is rounding


@dataclass(frozen=True)
class Candidate:
    """One stack's figures by which it is compared.

    flops_share and kv_share are those of the whole stack at `depth`: against full attention in
    every layer, over the widest allowed pairs of all candidates so that equal edges cost the same,
    and against a cache of every position (what a decode step reads; kv_held_share what must be
    held for it, less where layers share keys and values).
    Layers that choose by content cost at most that and at
    least flops_share_least, which differs for them alone.  q50, q90 and q99 are the distances
    within which that part of the last token's rollout lies, participation 1 / sum p^2 of it.  The
    four are None where there is no influence, and `why_not` then says why.

    The influence by which candidates are compared is q50, the distance within which half of it
    lies: a few sinks draw q90 to the first token, and participation makes dense causal layers look
    narrow, whose rollout gathers at the first tokens; neither moves a median before it holds half.

    beaten[plane] names the candidates that beat this one on a plane; it is on the front where none
    does.  A plane on which it cannot be placed is missing.
    """

    name: str
    report: Report
    flops_share: float
    flops_share_least: float
    kv_share: float
    kv_held_share: float
    q50: int | None
    q90: int | None
    q99: int | None
    participation: float | None
    why_not: str | None
    beaten: Mapping[str, tuple[str, ...]]

    @property
    def depth_to_full(self) -> Depth:
        """Bounds of the least depth at which every allowed pair is reached."""
        return self.report.full

    @property
    def reach(self) -> Figure:
        """The pairs reached at `depth`."""
        return self.report.reach[-1]

    def on_front(self, plane: str) -> bool:
        """No candidate beats it on "depth" (cost against depth to full) or "influence"."""
        if plane not in PLANES:
            raise PatternValueError(f"compare: no plane {plane!r}; there are {', '.join(PLANES)}")
        return plane in self.beaten and not self.beaten[plane]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values; docs/report.md describes every field."""
        whole = self.report
        full, at = self.depth_to_full, self.reach
        return {
            "name": self.name,
            "stack": whole.stack.splitlines(),
            "layers": whole.layers,
            "depth": whole.depth,
            "pairs": {"name": whole.pairs_name, "how": whole.pairs_how, "count": whole.pairs},
            "flops_share": self.flops_share,
            "flops_share_least": self.flops_share_least,
            "kv_share": self.kv_share,
            "kv_held_share": self.kv_held_share,
            "depth_to_full": full.to_json(),
            "reach": {
                "lo": at.lo,
                "hi": at.hi,
                "share": at.share,
                "badge": at.badge,
                "engine": at.engine,
            },
            "q50": self.q50,
            "q90": self.q90,
            "q99": self.q99,
            "participation": self.participation,
            "why_not": self.why_not,
            "front": {plane: self.on_front(plane) for plane in PLANES},
            "beaten_by": {
                plane: list(self.beaten[plane]) if plane in self.beaten else None
                for plane in PLANES
            },
        }


@dataclass(frozen=True)
class Comparison:
    """Candidates at n tokens, in the order given.  Made by `patterncc.compare`.

    On each plane less cost is better: against depth a smaller depth to full, against influence a
    larger q50.  A bracket beats another candidate only where its worst value does not
    lose to the other's best, so a front may be larger than the true one, never smaller.
    """

    n: int
    alpha: float
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @staticmethod
    def of(reports: Mapping[str, Report]) -> Comparison:
        """The comparison of finished reports.

        Raises PatternValueError for none, or for different lengths or alphas.
        """
        if not reports:
            raise PatternValueError("compare: no candidates given; name at least one")
        for what in ("n", "alpha"):
            found = {getattr(r, what) for r in reports.values()}
            if len(found) > 1:
                raise PatternValueError(
                    f"compare: the reports have different {what}: "
                    f"{', '.join(map(str, sorted(found)))}; analyze all with the same"
                )
        first = next(iter(reports.values()))
        widest = max(r.pairs for r in reports.values())
        placed = _placed([_candidate(name, r, widest) for name, r in reports.items()])
        return Comparison(first.n, first.alpha, placed, _notes(placed))

    def front(self, plane: str) -> tuple[str, ...]:
        """The names of those that none beats on "depth" or "influence", the cheapest first."""
        best = [c for c in self.candidates if c.on_front(plane)]
        return tuple(c.name for c in sorted(best, key=lambda c: c.flops_share))

    def to_json(self) -> dict[str, Any]:
        """The comparison as one JSON object; docs/report.md describes every field."""
        return {
            "schema": SCHEMA,
            "n": self.n,
            "alpha": self.alpha,
            "candidates": [c.to_json() for c in self.candidates],
            "front": {plane: list(self.front(plane)) for plane in PLANES},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from patterncc.analysis.compare.text import render

        return render(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write .html, .svg, .json or .txt, by the name's ending; the file appears whole or not at
        all."""
        from patterncc.analysis.compare.svg import drawing, page

        return save_as(
            path,
            {
                ".html": lambda: page(self),
                ".json": lambda: json.dumps(self.to_json(), indent=2) + "\n",
                ".svg": lambda: drawing(self),
                ".txt": lambda: f"{self}\n",
            },
        )


def compare(
    candidates: Mapping[str, Stack | Pattern | Heads],
    n: int,
    depth: int | None = None,
    **options: Any,
) -> Comparison:
    """Analyze every candidate at n tokens and mark the ones that no other beats.

    `depth` is each stack's own unless given; `options` are those of `analyze` (alpha, pairs,
    engine, ... and bindings), the same for all.

    >>> from patterncc import causal, sink, window
    >>> near, far = causal() & window(15), causal() & window(63)
    >>> sunk = causal() & (window(15) | sink(4))
    >>> found = compare({"near": near, "far": far, "sunk": sunk}, 256, depth=4)
    >>> found.front("depth"), found.front("influence")
    (('near', 'far'), ('near', 'sunk', 'far'))

    Raises PatternError for candidates that are no stacks, and whatever `analyze` raises, with the
    candidate's name.
    """
    if not isinstance(candidates, Mapping):
        raise PatternError(
            "compare: give a mapping from names to stacks, as {'window': stack_a, 'sinks': "
            f"stack_b}}, not a {type(candidates).__name__}"
        )
    arguments = signature(analyze).parameters
    patterns = {name: _patterns(stack) for name, stack in candidates.items()}
    given = set(options) - set(arguments)
    check_bindings("compare", chain(*patterns.values()), given, analyze)
    reports: dict[str, Report] = {}
    for name, stack in candidates.items():
        if str(name) in reports:
            raise PatternValueError(
                f"compare: two candidates are called {str(name)!r}; give each a name of its own"
            )
        known = names_in(patterns[name])
        chosen = {k: v for k, v in options.items() if k in arguments or k in known}
        try:
            reports[str(name)] = analyze(stack, n, depth, **chosen)
        except PatternSyntaxError:
            raise  # it names its own place
        except PatternError as error:
            raise type(error)(f"compare: {name}: {error}") from None
    return Comparison.of(reports)


def _patterns(stack: Stack | Pattern | Heads) -> tuple[Pattern, ...]:
    """A candidate's patterns; none of what `analyze` will refuse."""
    if isinstance(stack, Pattern | Heads):
        stack = Stack(stack)
    return stack.patterns if isinstance(stack, Stack) else ()


def _candidate(name: str, report: Report, widest: int) -> Candidate:
    costs, found = total(report.costs), report.influence
    full_flops = costs.full_flops * widest // max(1, report.pairs)
    return Candidate(
        name=name,
        report=report,
        flops_share=costs.flops / full_flops if full_flops else 0.0,
        flops_share_least=_least(report.costs) / full_flops if full_flops else 0.0,
        kv_share=costs.kv_share,
        kv_held_share=costs.kv_held_share,
        q50=found.q50 if found else None,
        q90=found.q90 if found else None,
        q99=found.q99 if found else None,
        participation=found.participation if found else None,
        why_not=None if found else report.why_not.get("influence"),
        beaten={},
    )


def _least(costs: Iterable[LevelCost]) -> float:
    """The FLOPs of the edges that layers have whatever they choose by content."""
    return sum(c.flops * sum(c.edges_least) / max(1, sum(c.edges)) for c in costs)


def _placed(candidates: list[Candidate]) -> tuple[Candidate, ...]:
    """The candidates with those that beat them on each plane on which they have a place."""
    beaten: list[dict[str, tuple[str, ...]]] = [{} for _ in candidates]
    for plane in PLANES:
        points = [(k, _point(c, plane)) for k, c in enumerate(candidates)]
        there = [(k, point) for k, point in points if point is not None]
        for (k, _), by in zip(there, dominators([point for _, point in there]), strict=True):
            beaten[k][plane] = tuple(candidates[there[x][0]].name for x in by)
    return tuple(replace(c, beaten=b) for c, b in zip(candidates, beaten, strict=True))


def _point(c: Candidate, plane: str) -> tuple[Bracket, Bracket] | None:
    """Cost and the plane's other figure as brackets of which less is better."""
    cost = Bracket(_rounded(c.flops_share_least), _rounded(c.flops_share))
    if plane == "depth":
        return cost, depth_bracket(c.depth_to_full)
    return None if c.q50 is None else (cost, Bracket(-c.q50, -c.q50))


def depth_bracket(full: Depth) -> Bracket:
    """Bounds of the depth to full; never is infinitely deep, and no upper bound may be."""
    if full.never:
        return Bracket(math.inf, math.inf)
    return Bracket(full.lo, math.inf if full.hi is None else full.hi)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _notes(candidates: tuple[Candidate, ...]) -> tuple[str, ...]:
    """What a reader must know before putting the figures side by side."""
    notes = []
    if len({(c.report.pairs_name, c.report.pairs) for c in candidates}) > 1:
        widest = max(candidates, key=lambda c: c.report.pairs).report.pairs_name
        each = _grouped((c.name, c.report.pairs_name) for c in candidates)
        notes.append(
            f"allowed pairs differ ({each}): reach and depth are those of each one's own, FLOPs "
            f"are held against the widest ({widest})"
        )
    if len({c.report.depth for c in candidates}) > 1:
        each = _grouped((c.name, counted(c.report.depth, "layer")) for c in candidates)
        notes.append(
            f"depths differ ({each}): cost and influence are at each one's own; give a depth to "
            "compare all at one"
        )
    if any(not c.depth_to_full.decided for c in candidates):
        notes.append(
            "a depth that is not decided beats another only where its worst does not lose to the "
            "other's best"
        )
    said: dict[str, list[str]] = {}
    for c in candidates:
        for note in _own_notes(c):
            said.setdefault(note, []).append(c.name)
    return tuple(notes + [_of(names, len(candidates)) + note for note, names in said.items()])


def _own_notes(c: Candidate) -> list[str]:
    """What is to be said of one candidate."""
    why = (c.why_not or "").removeprefix("influence: ")
    notes = [f"not placed by influence: {why}"] if why else []
    if any(x.kind in ("recurrent", "convolution", "hybrid") for x in c.report.costs):
        notes.append("its cost is that of attention alone, without recurrences and convolutions")
    return [*notes, *c.report.notes]


def _grouped(pairs: Iterable[tuple[str, str]]) -> str:
    """What each candidate has, those with the same together."""
    same: dict[str, list[str]] = {}
    for name, what in pairs:
        same.setdefault(what, []).append(name)
    return "; ".join(f"{what}: {_listed(names)}" for what, names in same.items())


def _of(names: list[str], candidates: int) -> str:
    """Whom a note is about; nothing where it is about all."""
    return "" if len(names) == candidates else f"{_listed(names)}: "


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
