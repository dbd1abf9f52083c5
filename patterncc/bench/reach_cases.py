"""The cases of `patterncc bench reach` that are measured without a peer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from patterncc.analysis import analyze
from patterncc.analysis.curve import Curve, Figure
from patterncc.analysis.engines import rows
from patterncc.analysis.graph.smallworld import small_world
from patterncc.analysis.graph.spectrum import spectrum
from patterncc.analysis.topology import Topology, allowed_pairs, topology
from patterncc.bench.protocol import in_turn, peak_bytes
from patterncc.pattern import Pattern
from patterncc.primitives import causal, random_edges, sink, window
from patterncc.stack import Stack

LAYERS = 48
SAMPLED = 6
SOURCES = 512
HOPS: Pattern = window(8, 8) | random_edges(2)
MIXED: Pattern = window(8, 8) | random_edges(3)


def structured() -> Stack:
    """48 causal layers of a window of 512 tokens and four sinks."""
    return Stack([causal() & (window(511) | sink(4))] * LAYERS)


def curve(n: int, repeats: int) -> dict[str, Any]:
    """Reach, depth to full, cost and lint of the structured stack."""
    way = partial(analyze, structured(), n)
    figure = way().reach[LAYERS]
    what = f"{LAYERS} layers of a causal window 512 and 4 sinks"
    return _case(what, n, figure, in_turn({what: way}, repeats)[what], peak_bytes(way))


def whole_report(n: int, repeats: int) -> dict[str, Any]:
    """The same with every other figure of the report: influence, hub load, spectrum and so on."""
    stack = structured()

    def way() -> dict[str, Any]:
        return analyze(stack, n).to_json()

    what = f"whole report of {LAYERS} layers of a causal window 512 and 4 sinks"
    seconds = in_turn({what: way}, repeats)[what]
    return _case(what, n, analyze(stack, n).reach[LAYERS], seconds, peak_bytes(way))


def exact_hops(n: int, repeats: int) -> list[dict[str, Any]]:
    """Every pair by its hops, as a user asks for it and the propagation alone."""
    what = "exact hops of a window +-8 and 2 random edges"
    depth = analyze(HOPS, n).depth_to_full or 1
    t = topology(HOPS, n)
    ways: dict[str, Callable[[], object]] = {
        "whole analysis": partial(analyze, HOPS, n, depth),
        "propagation": lambda: rows.follow(_unready(t), allowed_pairs(t, None, {}), depth),
    }
    return _cases(what, n, analyze(HOPS, n, depth).reach[depth], ways, repeats)


def sampled(n: int, repeats: int) -> list[dict[str, Any]]:
    """512 sources followed through six layers, from the patterns and from the graph."""
    what = f"{SOURCES} sources, {SAMPLED} layers of a window +-8 and 3 random edges"
    stack = Stack([MIXED] * SAMPLED)

    def follow(t: Topology) -> Curve:
        return rows.follow(t, allowed_pairs(t, None, {}), SAMPLED, sources=SOURCES)

    t = topology(stack, n)
    figures = follow(t).figures
    worst = max(figures, key=lambda f: f.hi - f.lo)
    ways: dict[str, Callable[[], object]] = {
        "with building": lambda: follow(topology(stack, n)),
        "propagation": lambda: follow(_unready(t)),
    }
    return _cases(what, n, worst, ways, repeats)


def small_worlds(n: int, repeats: int) -> dict[str, Any]:
    """Sigma and omega of a window with random edges."""
    what = "sigma and omega of a window +-8 and 2 random edges"
    way = partial(small_world, HOPS, n)
    found = way()
    return _figure(what, n, f"sigma {found.sigma}, omega {found.omega}", way, repeats)


def gap(n: int, repeats: int) -> dict[str, Any]:
    """The spectral gap of a window with random edges."""
    what = "spectral gap of a window +-8 and 2 random edges"
    way = partial(spectrum, HOPS, n, symmetrize=True)
    return _figure(what, n, str(way().gap), way, repeats)


def _figure(
    what: str, n: int, found: str, way: Callable[[], object], repeats: int
) -> dict[str, Any]:
    """A case that is no reach curve: what was found stands in the badge."""
    seconds = in_turn({what: way}, repeats)[what]
    return {"case": what, "n": n, "badge": found, "seconds": seconds, "peak_bytes": peak_bytes(way)}


def _unready(t: Topology) -> Topology:
    """The same layers, none of them made ready for the engine yet."""
    fresh = {id(level): replace(level) for level in t.levels}
    return replace(t, levels=tuple(fresh[id(level)] for level in t.levels))


def _cases(
    what: str,
    n: int,
    figure: Figure,
    ways: Mapping[str, Callable[[], object]],
    repeats: int,
) -> list[dict[str, Any]]:
    times = in_turn(ways, repeats)
    return [
        _case(f"{what}, {name}", n, figure, times[name], peak_bytes(way))
        for name, way in ways.items()
    ]


def _case(
    what: str, n: int, figure: Figure, seconds: dict[str, float], peak: int
) -> dict[str, Any]:
    """One case; `error` is half of the widest interval, as a share, None where it is exact."""
    error = None if figure.exact else (figure.hi - figure.lo) / (2 * n * n)
    return {
        "case": what,
        "n": n,
        "badge": figure.badge,
        "share_at_depth": figure.share,
        "error": error,
        "seconds": seconds,
        "peak_bytes": peak,
    }
