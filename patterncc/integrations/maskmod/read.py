"""From the truth value that a mask function computes to a pattern, or a refusal that names a part.

`or` is a union; the parts of an `and` are gathered first, because bounds on one thing make one
window and comparisons of looked-up values are joined.  Every rule is exact; where none fits, the
sub-expression is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch

from patterncc.errors import PatternError
from patterncc.integrations.maskmod import tables
from patterncc.integrations.maskmod.compare import Clause, Compared, grid, join
from patterncc.integrations.maskmod.linear import INT, Linear, is_case, linear, reduced, split
from patterncc.integrations.maskmod.marks import K, Marks, Q, blocks_of, chunk, periodic, zone_of
from patterncc.integrations.maskmod.nodes import (
    Call,
    Const,
    Node,
    call,
    is_int,
    rebuilt,
    text,
    variables,
)
from patterncc.integrations.maskmod.tables import Frame, depends_on_distance
from patterncc.pattern import Pattern
from patterncc.primitives import Full

BOTH = frozenset(("q_idx", "kv_idx"))
SIDES = {frozenset({"q_idx"}), frozenset({"kv_idx"})}


@dataclass(frozen=True)
class Reader:
    """Reads expressions for a frame, or for any length where there is none.

    `given` holds equalities x(q_idx) == y(kv_idx) that are certain where an expression stands.
    """

    frame: Frame | None
    given: tuple[tuple[Node, Node], ...] = ()

    def pattern(self, node: Node, negated: bool = False) -> Pattern:
        """The pairs where a truth value holds, or where it does not."""
        match node:
            case Call("~", (x,)):
                return self.pattern(x, not negated)
            case Call("&" | "|" as op, _) if (op == "|") != negated:
                return self._union(list(_flat(node, negated, "|")))
            case _:
                return self._intersection(node, negated)

    def _union(self, parts: list[tuple[Node, bool]]) -> Pattern:
        """Any of the parts; the same tokens as queries and as keys are global tokens."""
        made: list[Pattern] = []
        rest = list(parts)
        for part in parts:
            node, negated = part
            twin = (rebuilt(node, {Q: K}), negated)
            if part in rest and twin in rest and self._tabled(node):
                rest.remove(part)
                rest.remove(twin)
                made.append(self._tokens(node, negated))
        made += self._alternatives(rest)
        made += [self.pattern(*part) for part in rest]
        made = list(dict.fromkeys(x for x in made if x != ~Full()))
        if Full() in made:
            return Full()
        return reduce(lambda a, b: a | b, made) if made else ~Full()

    def _alternatives(self, rest: list[tuple[Node, bool]]) -> list[Pattern]:
        """Several values that one function of the key may have, read in one go: a list of allowed
        key blocks for each query block is no union of as many clusters.  They leave `rest`."""
        groups: dict[Node, list[tuple[Node, bool]]] = {}
        for part in rest:
            match part:
                case (Call("==", (a, b)), False) if self.frame is not None:
                    form = linear(a) - linear(b) if is_int(a) and is_int(b) else Linear((), 0)
                    keys = [x for x, _ in form.terms if variables(x) == {"kv_idx"}]
                    rows = [x for x, _ in form.terms if variables(x) == {"q_idx"}]
                    if len(keys) == 1 and keys[0] != K and len(rows) + 1 == len(form.terms):
                        groups.setdefault(keys[0], []).append(part)
        made: list[Pattern] = []
        for group in groups.values():
            if len(group) > 1 and self.frame is not None:
                whole = reduce(
                    lambda a, b: call("|", a, b, dtype=torch.bool), [node for node, _ in group]
                )
                found = tables.by_kinds(self.frame, whole)
                if isinstance(found, Pattern):
                    made.append(found)
                    for part in group:
                        rest.remove(part)
        return made

    def _tabled(self, node: Node) -> bool:
        """A function of q_idx alone that looks up a tensor of exactly as many positions."""
        if self.frame is None or variables(node) != {"q_idx"}:
            return False
        return tables.covered(node) == max(self.frame.n, self.frame.n_k)

    def _tokens(self, node: Node, negated: bool) -> Pattern:
        assert self.frame is not None
        longer = max(self.frame.n, self.frame.n_k)
        truth = call("~", node, dtype=torch.bool) if negated else node
        return tables.tokens(Frame(longer, longer), truth, "q_idx")

    def _intersection(self, node: Node, negated: bool) -> Pattern:
        parts = list(_flat(node, negated, "&"))
        known = [x for x in map(self._equality, parts) if x is not None]
        inner = replace(self, given=(*self.given, *known))
        clause = Clause()
        for part, not_so in parts:
            inner._gather(part, not_so, clause)
        made = grid(self.frame, clause) if self.frame is not None else []
        made += [p for marks in clause.marks.values() for p in chunk(marks)]
        made += clause.parts
        held = clause.marks.get(1, Marks()).d[1]
        if self.frame is not None:
            made += join(self.frame, clause.compared, causal=held is not None and held <= 0)
        made = list(dict.fromkeys(p for p in made if p != Full()))
        if ~Full() in made:
            return ~Full()
        return reduce(lambda a, b: a & b, made) if made else Full()

    def _equality(self, part: tuple[Node, bool]) -> tuple[Node, Node] | None:
        """x(q_idx) == y(kv_idx), if a part says so."""
        match part:
            case (Call("==", (a, b)), False) if is_int(a) and is_int(b):
                sides = {variables(a): a, variables(b): b}
                x, y = sides.get(frozenset({"q_idx"})), sides.get(frozenset({"kv_idx"}))
                return (x, y) if x is not None and y is not None and x != Q else None
        return None

    def _gather(self, node: Node, negated: bool, clause: Clause) -> None:
        """One part of an `and`, added to what the others say."""
        match node:
            case Const(value):
                if bool(value) == negated:
                    clause.parts.append(~Full())
            case Call("~", (x,)):
                self._gather(x, not negated, clause)
            case Call("&" | "|" as op, _) if (op == "&") != negated:
                for part, not_so in _flat(node, negated, "&"):
                    self._gather(part, not_so, clause)
            case Call("&" | "|", _):
                clause.parts.append(self.pattern(node, negated))
            case Call("<=" | "<" | "==" as op, (a, b)) if is_int(a) and is_int(b):
                self._integers(op, linear(a) - linear(b), negated, clause, text(node))
            case Call("<=" | "<" | "==", (a, b)) if {variables(a), variables(b)} == SIDES:
                self._sides(node, negated, clause)
            case _:
                clause.parts.append(self._other(node, negated))

    def _integers(self, op: str, form: Linear, negated: bool, clause: Clause, shown: str) -> None:
        """form op 0: the rules in turn, those without a length first."""
        if op == "<":
            form, op = form + Linear((), 1), "<="
        if negated and op == "<=":
            form, negated = form.times(-1) + Linear((), 1), False
        if not (op == "==" and not negated and _one_of_each(form)):
            form = self._rewritten(form)  # what is taken for granted is never itself rewritten
        short = reduced(form, op)
        if isinstance(short, bool):
            if short == negated:
                clause.parts.append(~Full())
            return
        form = short
        marks = zone_of(form, op) or blocks_of(form, op)
        if marks and not negated:
            clause.add(marks)
        elif marks:
            clause.parts.append(~reduce(lambda a, b: a & b, chunk(marks)))
        elif (found := periodic(form, op)) is not None:
            clause.parts.append(~found if negated else found)
        elif (simpler := _undivided(form, op)) is not None:
            self._gather(simpler, negated, clause)
        else:
            self._tabulated(op, form, negated, clause, shown)

    def _tabulated(self, op: str, form: Linear, negated: bool, clause: Clause, shown: str) -> None:
        """What no rule reads for every length: by cases, or by tables of its values."""
        names = [variables(x) for x, _ in form.terms]
        mixed = [x for (x, _), names in zip(form.terms, names) if names == BOTH]
        truth = call(op, form.node(), Const(0), dtype=INT)
        cases = [x for x in (mixed or [x for x, _ in form.terms]) if is_case(x)]
        if cases and (mixed or self.frame is None):
            by_cases = split(form, cases[0], op)
            assert by_cases is not None
            self._gather(by_cases, negated, clause)
        elif not mixed and set().union(*names) == BOTH and self.frame is not None:
            self._separate(op, form, negated, clause, shown)
        else:
            clause.parts.append(self._other(truth, negated, shown))

    def _separate(self, op: str, form: Linear, negated: bool, clause: Clause, shown: str) -> None:
        """A sum of a function of the query and a function of the key, as one against the other."""
        keys = Linear.of({x: a for x, a in form.terms if variables(x) == {"kv_idx"}}, 0)
        rows = Linear.of({x: a for x, a in form.terms if variables(x) == {"q_idx"}}, form.constant)
        if keys.terms[0][1] > 0:  # keys <= -rows
            made = Compared(keys.node(), op, rows.times(-1).node(), shown)
        else:  # -keys >= rows
            made = Compared(keys.times(-1).node(), "==" if op == "==" else ">=", rows.node(), shown)
        self._compared(made, negated, clause)

    def _sides(self, node: Call, negated: bool, clause: Clause) -> None:
        """A comparison of a function of the query with one of the key that are no integers."""
        if self.frame is None:
            raise refused(text(node), "it compares values of q_idx with values of kv_idx")
        a, b = (call("cast", x, dtype=node.dtype) for x in node.args)
        columns = [self.frame.column(x, *variables(x)) for x in (a, b)]
        if any(np.isnan(x).any() for x in columns):
            clause.parts.append(self._other(node, negated))
            return
        op, strict = ("==", False) if node.op == "==" else ("<=", node.op == "<")
        if strict:  # a < b where b <= a does not hold
            a, b = b, a
        if variables(a) == {"kv_idx"}:
            made = Compared(a, op, b, text(node))
        else:
            made = Compared(b, "==" if op == "==" else ">=", a, text(node))
        self._compared(made, negated != strict, clause)

    def _compared(self, made: Compared, negated: bool, clause: Clause) -> None:
        if negated and self.frame is not None:
            clause.parts.append(~reduce(lambda a, b: a & b, join(self.frame, [made])))
        else:
            clause.compared.append(made)

    def _other(self, node: Node, negated: bool, shown: str = "") -> Pattern:
        """A truth value that is no comparison of integers, or has no rule of its own."""
        shown = shown or text(node)
        if negated:
            node = call("~", node, dtype=torch.bool)
        names = variables(node)
        if self.frame is None:
            raise refused(shown, "no rule reads it for every length")
        if len(names) == 1:
            return tables.marked(self.frame, node, *names)
        if depends_on_distance(node):
            return tables.diagonals(self.frame, node)
        made = tables.by_kinds(self.frame, node)
        if isinstance(made, int):
            raise PatternError(
                f"`{shown}` joins q_idx and kv_idx in a way that no rule reads, and has "
                f"{made} different pairs of values (up to {tables.MOST_PAIRS} are all evaluated); "
                "write it as comparisons of q_idx with kv_idx, or of functions of one index each"
            )
        return made

    def _rewritten(self, form: Linear) -> Linear:
        """The sum with what is known to be equal written alike, where that leaves fewer terms."""
        best = form
        for x, y in self.given:
            tried = _alike(best, x, y)
            if tried.terms and _weight(tried) < _weight(best):
                best = tried
        return best


def _one_of_each(form: Linear) -> bool:
    """A function of the query against one of the key."""
    return all(len(variables(x)) == 1 for x, _ in form.terms)


def _alike(form: Linear, x: Node, y: Node) -> Linear:
    """The sum with x(q_idx) written as y(kv_idx); remainders by a common divisor written out."""
    whole = Linear((), form.constant)
    for term, factor in form.terms:
        whole = whole + linear(_equated(term, x, y)).times(factor)
    return whole


def _equated(term: Node, x: Node, y: Node) -> Node:
    out = term
    match x, y:
        case (Call("//", (a, Const(int(c)))), Call("//", (b, Const(int(d))))) if c == d:
            rest = {
                call("%", side, Const(c), dtype=INT): call(
                    "-", side, call("*", Const(c), y, dtype=INT), dtype=INT
                )
                for side in (a, b)
            }
            out = rebuilt(out, rest)
    return rebuilt(out, {x: y})


def _weight(form: Linear) -> int:
    """Operations in a sum: what a rewriting is to make fewer."""
    return sum(x.size for x, _ in form.terms)


def _undivided(form: Linear, op: str) -> Node | None:
    """x // c op m as bounds on x itself, if the quotient is the only term."""
    match form.terms:
        case ((Call("//", (x, Const(int(c)))), a),) if c > 0 and a in (1, -1):
            m = -form.constant * a
            top = call("<=", x, Const(c * m + c - 1), dtype=INT)
            low = call("<=", Const(c * m), x, dtype=INT)
            if op == "==":
                return call("&", low, top, dtype=torch.bool)
            return top if a > 0 else low
    return None


def _flat(node: Node, negated: bool, op: str) -> Iterable[tuple[Node, bool]]:
    """The parts of nested `and`s (or `or`s), negations carried inwards."""
    match node:
        case Call("~", (x,)):
            yield from _flat(x, not negated, op)
        case Call("&" | "|" as own, args) if (own == op) != negated:
            for x in args:
                yield from _flat(x, negated, op)
        case _:
            yield node, negated


def refused(shown: str, why: str) -> PatternError:
    """The refusal of a sub-expression that a length would make readable."""
    return PatternError(
        f"`{shown}` cannot be read for every length: {why}; pass the number of tokens as n= "
        "(and of keys as n_k=), and its values are written out position by position"
    )
