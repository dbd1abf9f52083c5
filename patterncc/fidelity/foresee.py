"""What the analysis says of patterns before anything runs, and how far that ranks them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patterncc.analysis import Report, analyze
from patterncc.analysis.flow.influence import influence_of
from patterncc.analysis.flow.rollout import Rollout, rollout_of
from patterncc.analysis.topology import PairsName, is_causal
from patterncc.errors import PatternValueError
from patterncc.fidelity.model import Pretrained
from patterncc.fidelity.result import FIGURES, Candidate, Foreseen
from patterncc.stack import Stack

QUERIES = 64  # whose rollouts are compared, evenly spread
ALPHA = 0.9
"""Weight of the residual stream: in trained models most of a state stays with its token.  With 0.9
or 0.95 the figures rank patterns of two real models much as they are measured, with 0.5 they do not
(docs/fidelity.md)."""

F64 = NDArray[np.float64]


def reference(model: Pretrained, own: Stack, length: int, alpha: float) -> F64 | None:
    """The rollout of the model's own attention; None where a layer of it is something else."""
    report = analyze(own, length, model.layers, alpha=alpha)
    if report.influence is None:
        return None
    return rows_of(rollout_of(report.topology, alpha, model.layers))


def foresee(
    model: Pretrained, candidate: Candidate, length: int, alpha: float, own: F64 | None
) -> Foreseen:
    """The figures of one stack at one length.

    Raises PatternValueError for a stack with memory, one that reads later tokens in a causal model,
    and what cannot be lowered.
    """
    stack = candidate.stack
    if stack.memory:
        raise PatternValueError(
            f"the stack has a memory of {stack.memory} positions, {model.name} has none; "
            "leave `memory` out"
        )
    pairs: PairsName = "causal" if model.kind == "causal" else "all"
    report = analyze(
        stack, length, model.layers, pairs=pairs, alpha=alpha, **dict(candidate.bindings)
    )
    if model.kind == "causal":
        _check_causal(model, report)
    means = [sum(cost.edges) / len(cost.edges) for cost in report.costs]
    figures = {
        "density": sum(means) / (len(means) * report.pairs),
        "reach": report.reach[-1].share,
    }
    if report.influence is not None:
        rows = rows_of(rollout_of(report.topology, alpha, model.layers))
        figures["participation"] = participation(rows)
        if own is not None:
            figures["kept"] = kept(own, rows)
    full = report.full
    return Foreseen(figures, full.lo if full.decided and not full.never else None)


def _check_causal(model: Pretrained, report: Report) -> None:
    later = [l for l in range(report.depth) if not is_causal(report.topology.level(l).zones)]
    if later:
        raise PatternValueError(
            f"layer {later[0]} reads later tokens, which {model.name}, a causal model, must not "
            "see; write causal() & (...)"
        )


def rows_of(rollout: Rollout) -> F64:
    """The rollout of evenly spread queries, float64 [queries, positions]; each row sums to 1."""
    n = rollout.topology.frame.n
    queries = np.unique(np.linspace(0, n - 1, min(n, QUERIES)).astype(np.int64))
    return np.stack([influence_of(rollout, int(query), bins=1).row for query in queries])


def participation(rows: F64) -> float:
    """How many positions share a state: 1 over the mean of sum p^2, so that queries with few keys
    weigh most.

    >>> participation(np.array([[0.5, 0.5], [1.0, 0.0]]))
    1.3333333333333333
    """
    return float(1 / (rows**2).sum(1).mean())


def kept(own: F64, pattern: F64) -> float:
    """The part of one rollout that another keeps: sum of min(own, pattern), mean over queries.

    1 minus the total variation distance: what the pattern moves elsewhere is lost.

    >>> kept(np.array([[0.5, 0.5]]), np.array([[0.75, 0.25]]))
    0.75
    """
    return float(np.minimum(own, pattern).sum(1).mean())


def agreement(foreseen: Sequence[Foreseen], truth: Sequence[float]) -> dict[str, float | None]:
    """The rank correlation of each figure with the measured fidelity, more being better."""
    return {
        name: rank_correlation([each.figures.get(name) for each in foreseen], truth)
        for name in FIGURES
    }


def rank_correlation(first: Sequence[float | None], second: Sequence[float]) -> float | None:
    """Spearman's: Pearson's over ranks, equal values sharing theirs.

    None for fewer than three pairs, or where one side is all the same.

    >>> rank_correlation([1, 2, 3], [10, 30, 20])
    0.5
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None]
    if len(pairs) < 3:
        return None
    x, y = (_ranks(np.array(side, dtype=np.float64)) for side in zip(*pairs, strict=True))
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return round(float(x @ y) / spread, 12) if spread else None


def _ranks(values: F64) -> F64:
    """Ranks, equal values at the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: F64 = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return ranks
