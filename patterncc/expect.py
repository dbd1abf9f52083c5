"""prove: what a pattern file expects of itself, computed and compared.

    depth_to_full(n=)        layers until every allowed pair is reached, or never
    reach(n=, depth=)        share of the allowed pairs that information can cross in `depth` layers
    density(n=)              edges over all (query, key) pairs, mean over layers and heads
    edges(n=)                edges of all layers and heads together
    tile_density(n=, block=) tiles touched over all tiles, mean over layers

`n` counts queries; a stack's memory stands before them and counts as keys.  A layer whose heads
share one pattern counts as one head.  Counts are exact, and shares are compared as fractions: no
rounding decides.  Where an engine brackets a figure, a comparison holds only if it does for the
whole bracket.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from patterncc.errors import Diagnostic, PatternError, Span
from patterncc.language import NEVER, Expect, Measure, PatternFile

if TYPE_CHECKING:
    from patterncc.analysis import Report
    from patterncc.language.expectation import Term

Number = int | float | Fraction


@dataclass(frozen=True)
class Bracket:
    """A value that is at least `lo` and at most `hi`; equal when it is exact."""

    lo: Number
    hi: Number

    def __str__(self) -> str:
        if self.lo == self.hi:
            return _shown(self.lo)
        return f"at least {_shown(self.lo)}" + (
            f", at most {_shown(self.hi)}" if self.hi < NEVER else ""
        )


@dataclass(frozen=True)
class Outcome:
    """One expectation and what came of it: `holds` is None where the engines leave it open.

    `actual` is the value of its measures as text, `badge` how exact they are.
    """

    text: str
    span: Span
    holds: bool | None
    actual: str
    badge: str

    def __str__(self) -> str:
        sign = {True: "holds", False: "fails", None: "open"}[self.holds]
        return f"{sign}: {self.text}  ({self.actual}, {self.badge})"


def prove(file: PatternFile, **bindings: Any) -> tuple[Outcome, ...]:
    """Every expectation of a file, in order, with its outcome.

    Keyword arguments bind names in the patterns, over the file's own bindings.

    >>> from patterncc.language import loads
    >>> f = loads('''
    ... edges:
    ...   near: causal() & window(15)
    ... expect:
    ...   - depth_to_full(n=256) == 17
    ...   - density(n=256) > 1/8
    ... ''')
    >>> for outcome in prove(f):
    ...     print(outcome)
    holds: depth_to_full(n=256) == 17  (17, exact)
    fails: density(n=256) > 1/8  (0.06067, exact)

    Raises PatternError, with the place of the expectation, where a measure cannot be computed.
    """
    bench = _Bench(file, {**file.bindings, **bindings})
    return tuple(_outcome(bench, expect) for expect in file.expects)


def _outcome(bench: _Bench, expect: Expect) -> Outcome:
    try:
        values = [bench.value(term) for term in expect.terms]
    except PatternError as error:
        where = Diagnostic(f"cannot prove '{expect.text}': {error}", expect.span)
        raise PatternError(str(where)) from None
    verdicts = {
        _compared(sign, left, right)
        for sign, left, right in zip(expect.comparisons, values, values[1:], strict=False)
    }
    holds = False if False in verdicts else None if None in verdicts else True
    measured = [v for t, v in zip(expect.terms, values, strict=True) if isinstance(t, Measure)]
    exact = all(v.lo == v.hi for v in measured)
    return Outcome(
        text=expect.text,
        span=expect.span,
        holds=holds,
        actual=", ".join(map(str, measured)),
        badge="exact" if exact else "bounds",
    )


def _compared(sign: str, left: Bracket, right: Bracket) -> bool | None:
    """The comparison for every pair of values in the two brackets; None where they differ."""
    if sign == "==":
        return _equal(left, right)
    if sign == "!=":
        equal = _equal(left, right)
        return None if equal is None else not equal
    compare, extremes = _ORDERS[sign], [(left.lo, right.hi), (left.hi, right.lo)]
    verdicts = {bool(compare(a, b)) for a, b in extremes}
    return verdicts.pop() if len(verdicts) == 1 else None


def _equal(left: Bracket, right: Bracket) -> bool | None:
    if left.lo == left.hi == right.lo == right.hi:
        return True
    return False if left.hi < right.lo or right.hi < left.lo else None


_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


Heads = tuple[int, ...]  # one number a head


@dataclass
class _Bench:
    """The stack under test; equal measures are computed once."""

    file: PatternFile
    bindings: dict[str, Any]
    known: dict[Measure, Bracket] = field(default_factory=dict)

    def value(self, term: Term) -> Bracket:
        if not isinstance(term, Measure):
            return Bracket(term, term)
        if term not in self.known:
            self.known[term] = _MEASURES[term.name](self, **dict(term.arguments))
        return self.known[term]

    def report(self, n: int, depth: int) -> Report:
        from patterncc.analysis import analyze

        return analyze(self.file.stack, n, depth, sources=0, **self.bindings)  # a proof, no guess

    def depth_to_full(self, n: int) -> Bracket:
        full = self.report(n, 0).full
        if full.never:
            return Bracket(NEVER, NEVER)
        return Bracket(full.lo, NEVER if full.hi is None else full.hi)

    def reach(self, n: int, depth: int) -> Bracket:
        report = self.report(n, depth)
        figure = report.reach[depth]
        return Bracket(Fraction(figure.lo, report.pairs), Fraction(figure.hi, report.pairs))

    def heads(self, n: int) -> tuple[int, list[tuple[Heads, Heads]]]:
        """How many (query, key) pairs there are, and the edges of attention of every head of every
        layer, at least and at most: layers that choose by content leave them open."""
        from patterncc.analysis.content import possible
        from patterncc.analysis.cost import head_edges
        from patterncc.analysis.topology import topology

        stack = self.file.stack
        found = topology(possible(stack, self.bindings), n, **self.bindings)
        keys = [(id(level), id(layer)) for level, layer in zip(found.levels, stack, strict=True)]
        places = {key: index for index, key in reversed(list(enumerate(keys)))}
        counts = {key: head_edges(found, index, stack) for key, index in places.items()}
        return n * found.frame.n, [counts[key] for key in keys]

    def edges(self, n: int) -> Bracket:
        layers = self.heads(n)[1]
        return Bracket(*(sum(sum(layer[k]) for layer in layers) for k in (0, 1)))

    def density(self, n: int) -> Bracket:
        pairs, layers = self.heads(n)
        ends = []
        for k in (0, 1):
            means = [Fraction(sum(layer[k]), len(layer[k]) * pairs) for layer in layers]
            ends.append(sum(means, Fraction(0)) / len(means))
        return Bracket(*ends)

    def tile_density(self, n: int, block: int | tuple[int, int]) -> Bracket:
        from patterncc.layout import compile

        layouts = compile(self.file.stack, n, block=block, **self.bindings)
        shares = [
            Fraction(t, max(1, all_tiles)) for t, all_tiles in (l.tile_share for l in layouts)
        ]
        return Bracket(*(sum(shares, Fraction(0)) / len(shares),) * 2)


_MEASURES: dict[str, Callable[..., Bracket]] = {
    "depth_to_full": _Bench.depth_to_full,
    "density": _Bench.density,
    "tile_density": _Bench.tile_density,
    "reach": _Bench.reach,
    "edges": _Bench.edges,
}


def _shown(value: Number) -> str:
    if value == NEVER:
        return "never"
    if isinstance(value, int):
        return str(value)
    text = f"{float(value):.4g}"
    return f"1 - {float(1 - value):.2g}" if text == "1" and value < 1 else text
