"""What a comparison found: rows of figures with their spread, as values, JSON and text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from patterncc.fidelity.model import Kind
from patterncc.stack import Stack

SCHEMA = "patterncc.fidelity/1"
FIGURES = ("participation", "kept", "density", "reach")  # known before anything runs


@dataclass(frozen=True)
class Candidate:
    """A stack of patterns and what its names are bound to."""

    stack: Stack
    bindings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Foreseen:
    """What the analysis says of a stack in a model before anything runs.

    figures: "density" (edges over the pairs that the model allows, mean over layers and heads),
    "reach" (the share of those pairs that the model's layers connect), "kept" (the part of the
    model's own rollout that the pattern's keeps, from 0 to 1), "participation" (how many positions
    share a state: 1 over the mean of a query's sum of p^2).  The last two are missing where rollout
    has no rows for a layer.  depth_to_full: layers that would connect all, None for never or
    undecided.
    """

    figures: Mapping[str, float]
    depth_to_full: int | None


@dataclass(frozen=True)
class Spread:
    """The mean over sequences, its standard error (None of a single one), the least and the most.

    >>> Spread.of([1.0, 2.0, 3.0])
    Spread(mean=2.0, error=0.5773502691896258, least=1.0, most=3.0)
    """

    mean: float
    error: float | None
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The spread of one number a sequence; sequences stand apart, so they count as drawn
        independently."""
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return Spread(statistics.fmean(values), error, min(values), max(values))

    def to_json(self) -> dict[str, float | None]:
        """The four numbers."""
        return {"mean": self.mean, "error": self.error, "least": self.least, "most": self.most}


@dataclass(frozen=True)
class Row:
    """One pattern in the model.

    measured: "kl" in nats a token, "top1", "loss" and "dense_loss" of a causal model, "cosine" of
    an encoder.  by_text: the first of them over the sequences of each text.
    """

    name: str
    stack: tuple[str, ...]
    foreseen: Foreseen
    measured: Mapping[str, Spread]
    by_text: Mapping[str, Spread]

    @property
    def score(self) -> float:
        """The measured figure that judges, more being better: minus KL, or the cosine."""
        if "kl" in self.measured:
            return -self.measured["kl"].mean
        return self.measured["cosine"].mean

    def perplexity(self, loss: str = "loss") -> float:
        """Of the true next tokens under the pattern, or with "dense_loss" in the model as it is."""
        return math.exp(self.measured[loss].mean)

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values; docs/fidelity.md describes every field."""
        ways = {"perplexity": "loss", "dense_perplexity": "dense_loss"}
        return {
            "name": self.name,
            "stack": list(self.stack),
            **{name: self.foreseen.figures.get(name) for name in FIGURES},
            "depth_to_full": self.foreseen.depth_to_full,
            "measured": {
                name: spread.to_json()
                for name, spread in self.measured.items()
                if name not in ways.values()
            },
            **{name: self.perplexity(loss) for name, loss in ways.items() if loss in self.measured},
            "by_text": {name: spread.to_json() for name, spread in self.by_text.items()},
        }


@dataclass(frozen=True)
class Fidelity:
    """Patterns in one model beside each other.

    agreement: Spearman's rank correlation, over the patterns, of each figure of `Foreseen` with the
    fidelity that was measured (minus KL, or cosine): 1 where the figure puts the patterns in the
    measured order, None where fewer than three can be ranked.
    """

    model: str
    kind: Kind
    layers: int
    length: int
    sequences: int
    texts: tuple[str, ...]
    alpha: float
    rows: tuple[Row, ...]
    agreement: Mapping[str, float | None]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """One JSON object; docs/fidelity.md describes every field."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "kind": self.kind,
            "layers": self.layers,
            "length": self.length,
            "sequences": self.sequences,
            "texts": list(self.texts),
            "alpha": self.alpha,
            "patterns": [row.to_json() for row in self.rows],
            "agreement": dict(self.agreement),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from patterncc.fidelity.table import render

        return render(self)
