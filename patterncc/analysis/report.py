"""The report: every figure of an analysis with its badge, as plain values, text, JSON and HTML."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from patterncc.analysis import figures
from patterncc.analysis.content import Content
from patterncc.analysis.cost import LevelCost, total
from patterncc.analysis.curve import Depth, Figure
from patterncc.analysis.flow.hubs import HubLoad, hub_load_of
from patterncc.analysis.flow.influence import Influence, heuristic_range, influence_of
from patterncc.analysis.flow.rollout import Rollout
from patterncc.analysis.graph.smallworld import SmallWorld
from patterncc.analysis.graph.spectrum import Spectrum
from patterncc.analysis.lint.run import Finding
from patterncc.analysis.robustness import Robustness
from patterncc.analysis.saving import save_as
from patterncc.analysis.topology import Topology
from patterncc.errors import PatternValueError
from patterncc.stack import Stack

SCHEMA = "patterncc.report/1"
LATER = ("influence", "hubs", "robustness", "small_world", "spectrum")
"""The figures that are computed when they are first read, in this order."""


@dataclass(frozen=True)
class Report:
    """What a stack lets through, and what it costs.  Made by `patterncc.analyze`.

    reach[l] counts the pairs of T, the allowed pairs, that information can have crossed after l
    layers.  The figures named in LATER are computed when they are first read; where one cannot be
    had it is None (or empty) and why_not[name] says why, and what to do.  `content` has the
    guaranteed, the possible and the traced reach of layers that choose their keys by content;
    `topology` holds the traced edges of such layers, else the possible ones.  `name` is what the
    stack is called, "" where nobody said.
    """

    n: int
    depth: int
    layers: int
    pairs: int
    pairs_name: str
    pairs_how: str
    reach: tuple[Figure, ...]
    full: Depth
    witness: tuple[int, int] | None
    costs: tuple[LevelCost, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    stack: str
    topology: Topology = field(repr=False, compare=False)
    asked: Stack = field(repr=False, compare=False)
    content: Content | None = field(repr=False, compare=False)
    alpha: float = 0.5
    name: str = ""

    @property
    def depth_to_full(self) -> int | None:
        """The least depth at which reach is full; None for never, which is proved.

        Raises PatternValueError where the engine's bounds leave it open: `full` holds what is
        known.
        """
        if not self.full.decided:
            raise PatternValueError(
                f"depth to full is not decided at n={self.n}: {self.full} "
                f"(searched to {self.full.searched} layers); read report.full, or try a shorter n"
            )
        return None if self.full.never else self.full.lo

    @property
    def depth_bounds(self) -> tuple[int, int | None]:
        """(at least, at most) layers to full; the second is None where none is shown, or for
        never."""
        return self.full.lo, None if self.full.never else self.full.hi

    @property
    def hops(self) -> tuple[tuple[int, int], ...]:
        """hops[l] bounds the pairs that layer l is the first to reach; hops[0] is each token
        itself.  Where reach is estimated, so are they: differences of the ends of its intervals."""
        first = [(self.reach[0].lo, self.reach[0].hi)] if self.reach else []
        steps = zip(self.reach, self.reach[1:], strict=False)
        return tuple(first + [(max(0, b.lo - a.hi), b.hi - a.lo) for a, b in steps])

    def _certain(self, layer: int) -> bool:
        """No estimate stands behind hops[layer]."""
        return all(f.certain for f in self.reach[max(0, layer - 1) : layer + 1])

    @property
    def mean_hops(self) -> float | None:
        """Mean of the first layer that reaches a pair, over the pairs reached between two different
        tokens; None when there are none or the counts are bounds."""
        if not all(f.exact for f in self.reach):
            return None
        crossed = sum(lo for lo, _ in self.hops[1:])
        if not crossed:
            return None
        return float(Fraction(sum(l * lo for l, (lo, _) in enumerate(self.hops)), crossed))

    @property
    def density(self) -> float:
        """Edges over all (query, key) pairs, averaged over heads and over the layers of `depth`."""
        if not self.costs:
            return 0.0
        return sum(c.density for c in self.costs) / len(self.costs)

    @property
    def influence(self) -> Influence | None:
        """What survives of each input in the last token's state, by rollout with `alpha`."""
        return None if isinstance(self._influence, str) else self._influence

    @property
    def hubs(self) -> HubLoad | None:
        """How much all final states together draw from each input."""
        return None if isinstance(self._hubs, str) else self._hubs

    @property
    def robustness(self) -> tuple[Robustness, ...]:
        """What reach loses with each of the tokens on which most rests."""
        return () if isinstance(self._robustness, str) else self._robustness

    @property
    def small_world(self) -> SmallWorld | None:
        """Clustering and path length of the graph of all layers, as an undirected one."""
        return None if isinstance(self._small_world, str) else self._small_world

    @property
    def spectrum(self) -> Spectrum | None:
        """The spectral gap of a bidirectional stack: how fast information mixes."""
        return None if isinstance(self._spectrum, str) else self._spectrum

    @cached_property
    def heuristic_range(self) -> float | None:
        """A rule of thumb, 1.5 windows, beside the exact quantiles of the influence."""
        return heuristic_range(self.topology)

    @property
    def why_not(self) -> dict[str, str]:
        """For each figure that cannot be had, one sentence that says why and what to do."""
        found = {name: getattr(self, f"_{name}") for name in LATER}
        return {name: why for name, why in found.items() if isinstance(why, str)}

    @cached_property
    def _rollout(self) -> Rollout | str:
        return figures.or_why(lambda: figures.rollout_figure(self))

    @cached_property
    def _influence(self) -> Influence | str:
        r = self._rollout
        return r if isinstance(r, str) else figures.or_why(lambda: influence_of(r))

    @cached_property
    def _hubs(self) -> HubLoad | str:
        r = self._rollout
        return r if isinstance(r, str) else figures.or_why(lambda: hub_load_of(r))

    @cached_property
    def _robustness(self) -> tuple[Robustness, ...] | str:
        return figures.or_why(lambda: figures.robustness_figure(self, self.hubs))

    @cached_property
    def _small_world(self) -> SmallWorld | str:
        return figures.or_why(lambda: figures.small_world_figure(self))

    @cached_property
    def _spectrum(self) -> Spectrum | str:
        return figures.or_why(lambda: figures.spectrum_figure(self))

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object; docs/report.md describes every field."""
        return {
            "schema": SCHEMA,
            "n": self.n,
            "memory": self.topology.memory,
            "layers": self.layers,
            "depth": self.depth,
            "stack": self.stack.splitlines(),
            "pairs": {"name": self.pairs_name, "how": self.pairs_how, "count": self.pairs},
            "depth_to_full": {
                **self.full.to_json(),
                "witness": None if self.witness is None else list(self.witness),
            },
            "reach": [
                {
                    "layer": l,
                    "lo": f.lo,
                    "hi": f.hi,
                    "share": f.share,
                    "badge": f.badge,
                    "engine": f.engine,
                }
                for l, f in enumerate(self.reach)
            ],
            "hops": [
                {"layer": l, "lo": lo, "hi": hi, "certain": self._certain(l)}
                for l, (lo, hi) in enumerate(self.hops)
            ],
            "mean_hops": self.mean_hops,
            "density": self.density,
            "cost": [c.to_json() for c in self.costs],
            "cost_total": total(self.costs).to_json(),
            "influence": self.influence and self.influence.to_json(),
            "heuristic_range": self.heuristic_range,
            "hub_load": self.hubs and self.hubs.to_json(),
            "robustness": [r.to_json() for r in self.robustness],
            "small_world": self.small_world and self.small_world.to_json(),
            "spectrum": self.spectrum and self.spectrum.to_json(),
            "content": self.content and self.content.to_json(),
            "why_not": {{"hubs": "hub_load"}.get(k, k): why for k, why in self.why_not.items()},
            "findings": [f.to_json() for f in self.findings],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from patterncc.analysis.text import render

        return render(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as .json, .txt or .html, by the name's ending; the file appears whole
        or not at all."""
        return save_as(
            path,
            {
                ".json": lambda: json.dumps(self.to_json(), indent=2) + "\n",
                ".txt": lambda: f"{self}\n",
                ".html": self._page,
            },
        )

    def _page(self) -> str:
        from patterncc.analysis.page.page import render

        return render(self)
