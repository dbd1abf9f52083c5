"""Which pairs a comparison marks, as far as that is known without a length.

`zone_of` reads bounds on q_idx, kv_idx and their difference; `periodic` reads chunks, strides and
remainders.  Each gives exactly the pairs of the comparison, or None.
"""

from __future__ import annotations

from dataclasses import dataclass

from patterncc.integrations.maskmod.linear import Linear
from patterncc.integrations.maskmod.nodes import Call, Const, Node, Var
from patterncc.pattern import Pattern
from patterncc.primitives import Causal, Chunked, Full, Prefix, Sink, Strided, Summary, Window

Q, K = Var("q_idx"), Var("kv_idx")
Bound = int | None


@dataclass(frozen=True)
class Marks:
    """Inclusive bounds on query, key and key - query (in blocks of `block`); None is no bound."""

    i: tuple[Bound, Bound] = (None, None)
    j: tuple[Bound, Bound] = (None, None)
    d: tuple[Bound, Bound] = (None, None)
    block: int = 1

    def meet(self, other: Marks) -> Marks:
        """The pairs of both."""
        assert self.block == other.block
        met = _meet(self.i, other.i), _meet(self.j, other.j), _meet(self.d, other.d)
        return Marks(*met, self.block)

    def parts(self) -> list[Pattern]:
        """Patterns whose intersection is this."""
        if any(a is not None and b is not None and a > b for a, b in (self.i, self.j, self.d)):
            return [~Full()]
        made: list[Pattern] = []
        if self.d == (None, 0) and self.block == 1:
            made.append(Causal())
        elif self.d != (None, None):
            made.append(_band(*self.d, self.block))
        (i0, i1), (j0, j1) = self.i, self.j
        if i1 is not None and i1 == j1 and not (i0 or j0):
            return [*made, Prefix(max(0, i1 + 1))]
        keys, queries = _range(*self.j), _range(*self.i)
        made += [keys] if keys is not None else []
        return [*made, *([queries.T] if queries is not None else [])]


def _meet(a: tuple[Bound, Bound], b: tuple[Bound, Bound]) -> tuple[Bound, Bound]:
    lows = [x for x in (a[0], b[0]) if x is not None]
    highs = [x for x in (a[1], b[1]) if x is not None]
    return (max(lows) if lows else None, min(highs) if highs else None)


def _band(low: Bound, high: Bound, block: int) -> Pattern:
    """low <= key - query <= high; windows always hold the token itself, so others are a difference.

    >>> _band(-8, -2, 1)
    window(8) - window(1)
    """
    if low is not None and low > 0:
        return Window(0, -1 if high is None else high, block) - Window(0, low - 1, block)
    if high is not None and high < 0:
        whole = Window(-1 if low is None else -low, 0, block)
        return whole - Window(-high - 1, 0, block)
    return Window(-1 if low is None else -low, -1 if high is None else high, block)


def _range(low: Bound, high: Bound) -> Pattern | None:
    """low <= key <= high."""
    if low is None or low <= 0:
        return None if high is None else Sink(max(0, high + 1))
    if high is None:
        return ~Sink(low)
    return Sink(high + 1) - Sink(low)


def zone_of(form: Linear, op: str) -> Marks | None:
    """Bounds from `form op 0` in q_idx, kv_idx or a multiple of their difference.

    >>> zone_of(Linear(((Q, 1), (K, -1)), -7), "<=")  # q_idx - kv_idx - 7 <= 0
    Marks(i=(None, None), j=(None, None), d=(-7, None), block=1)
    """
    terms = dict(form.terms)
    if set(terms) - {Q, K}:
        return None
    a, b = terms.get(Q, 0), terms.get(K, 0)
    if a and b and a + b:
        return None
    lead = b or a  # of kv_idx, kv_idx - q_idx or q_idx
    bound = _solved(lead, form.constant, op)
    if a and b:
        return Marks(d=bound)
    return Marks(i=bound) if a else Marks(j=bound)


def _solved(a: int, c: int, op: str) -> tuple[Bound, Bound]:
    """Bounds of x in a x + c op 0."""
    if op == "==":
        return (-c // a, -c // a) if c % a == 0 else (1, 0)
    return (None, -c // a) if a > 0 else (-(c // a), None)


def blocks_of(form: Linear, op: str) -> Marks | None:
    """Bounds on the distance in blocks, from q_idx // size and kv_idx // size alone.

    >>> size = Const(4)
    >>> from patterncc.integrations.maskmod.linear import INT
    >>> q, k = Call("//", (Q, size), INT), Call("//", (K, size), INT)
    >>> blocks_of(Linear(((q, 1), (k, -1)), 0), "==").parts()
    [window(0, block=4)]
    """
    match sorted(form.terms, key=lambda t: t[1]):
        case [(Call("//", (x, Const(int(c)))), a), (Call("//", (y, Const(int(d)))), b)]:
            if c == d and a == -b and {x, y} == {Q, K} and c > 0:
                return Marks(d=_solved(b if y == K else a, form.constant, op), block=c)
    return None


def periodic(form: Linear, op: str) -> Pattern | None:
    """Strides and remainders: (q - kv) % s == 0, q % s == kv % s, kv % s <= t and the like."""
    match form.terms:
        case ((Call("%", (x, Const(int(s)))), a),) if a in (1, -1):
            if x in (Q, K):
                kept = _remainders(s, *_solved(a, form.constant, op))
                return kept.T if x == Q else kept
            if op == "==" and form.constant == 0 and _difference(x):
                return Strided(s)
        case ((Call("%", (x, Const(int(s)))), a), (Call("%", (y, Const(int(t)))), b)):
            same = s == t and a == -b and {x, y} == {Q, K}
            if same and op == "==" and form.constant == 0:
                return Strided(s)
    return None


def _difference(node: Node) -> bool:
    """q_idx - kv_idx, the other way round, or its absolute value."""
    match node:
        case Call("abs", (x,)):
            return _difference(x)
        case Call("-", (x, y)):
            return {x, y} == {Q, K}
        case _:
            return False


def _remainders(s: int, low: Bound, high: Bound) -> Pattern:
    """low <= kv_idx % s <= high, by the last tokens of every segment.

    >>> _remainders(8, 2, 2)
    summary(8, 6) - summary(8, 5)
    """
    low, high = max(0, low or 0), s - 1 if high is None else min(s - 1, high)
    if low > high:
        return ~Full()
    whole = Full() if low == 0 else Summary(s, s - low)
    return whole if high == s - 1 else whole - Summary(s, s - 1 - high)


def chunk(marks: Marks) -> list[Pattern]:
    """The same block is called a chunk."""
    if marks.block > 1 and marks.d == (0, 0):
        return [Chunked(marks.block)]
    return marks.parts()
