"""The figures of a report that are computed when they are first read, or why they cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from patterncc.analysis.content import refuse_unbound
from patterncc.analysis.flow.hubs import HubLoad
from patterncc.analysis.flow.rollout import MOST_POSITIONS, Rollout, rollout_of
from patterncc.analysis.graph.smallworld import SmallWorld, small_world_of
from patterncc.analysis.graph.spectrum import Spectrum, spectrum_of
from patterncc.analysis.robustness import Robustness, robustness_of
from patterncc.analysis.topology import Topology
from patterncc.errors import PatternError, PatternValueError, SizeError
from patterncc.primitives import GlobalTokens, Sink
from patterncc.stack import patterns_of
from patterncc.zones.lower import leaves

if TYPE_CHECKING:
    from patterncc.analysis.report import Report

T = TypeVar("T")
RELAYS = 3  # tokens whose loss is tried
SPECTRUM_MOST = 2**16  # positions up to which the gap is found without being asked for
SKELETON_ZONES = 2**22  # of all distinct layers, up to which they are united without being asked
RERUN_POSITIONS = 2**11  # up to which reach is run again unasked, whatever the zones
RERUN_WIDEST = 8  # zones of one layer: the products of more grow too many without a token
RERUN_ZONES = 2**9  # of all layers of the depth, up to which it is at any length


def or_why(figure: Callable[[], T]) -> T | str:
    """The figure, or the sentence that says why there is none and what to do."""
    try:
        return figure()
    except PatternError as error:
        return str(error)


def rollout_figure(report: Report) -> Rollout:
    """The stack made ready for rollout, which influence and hub load share."""
    t = report.topology
    refuse_unbound("influence", report.asked, t.bindings)
    if not t.n:
        raise PatternValueError("influence: there are no tokens; ask at n >= 1")
    if t.frame.n > MOST_POSITIONS:
        raise SizeError(
            f"influence: a sweep holds several numbers for each of {t.frame.n:,} positions; ask at "
            f"{MOST_POSITIONS:,} or fewer"
        )
    return rollout_of(t, report.alpha, report.depth)


def robustness_figure(report: Report, hubs: HubLoad | None) -> tuple[Robustness, ...]:
    """What is lost with each of the tokens on which most rests."""
    t = report.topology
    refuse_unbound("robustness", report.asked, t.bindings)
    counts = [len(t.level(index).zones) for index in range(report.depth)]
    many = sum(counts) > RERUN_ZONES or max(counts, default=0) > RERUN_WIDEST
    if t.frame.n > RERUN_POSITIONS and many:
        raise SizeError(
            "robustness: it runs the reach of every relay again, which takes long where zones are "
            "many; ask patterncc.analysis.robustness(stack, n, token) for one token"
        )
    tokens = relays(t, hubs)
    if not tokens:
        raise PatternValueError(
            "robustness: no token stands out, as there is no hub load and the patterns name no "
            "global tokens; ask patterncc.analysis.robustness(stack, n, token) for one token"
        )
    return tuple(robustness_of(t, token, report.depth) for token in tokens)


def relays(t: Topology, hubs: HubLoad | None) -> list[int]:
    """Tokens that many read: named as global tokens or sinks, then the busiest ones."""
    named = []
    for pattern in dict.fromkeys(p for layer in t.stack.layers for p in patterns_of(layer)):
        for leaf in leaves(pattern):
            match leaf:
                case GlobalTokens(tokens) if not isinstance(tokens, str):
                    named += list(tokens)[:RELAYS]
                case Sink(count):
                    named += list(range(min(count, RELAYS)))
    busiest = [token for token, _ in hubs.busiest] if hubs is not None else []
    found = dict.fromkeys(named[: RELAYS // 2] + busiest + named[RELAYS // 2 :])
    return [token for token in found if 0 <= token < t.frame.n][:RELAYS]


def small_world_figure(report: Report) -> SmallWorld:
    """The graph of all layers as an undirected one."""
    t = report.topology
    refuse_unbound("small_world", report.asked, t.bindings)
    zones = sum(len(level.zones) for level in {id(x): x for x in t.levels}.values())
    if zones > SKELETON_ZONES:
        raise SizeError(
            f"small_world: the layers have {zones:,} zones together, which take long to unite; ask "
            "patterncc.analysis.small_world(stack, n), or one layer"
        )
    return small_world_of(t)


def spectrum_figure(report: Report) -> Spectrum:
    """The spectral gap of a bidirectional stack."""
    refuse_unbound("spectrum", report.asked, report.topology.bindings)
    if report.topology.frame.n > SPECTRUM_MOST:
        raise SizeError(
            f"spectrum: found unasked up to {SPECTRUM_MOST:,} positions only; ask "
            "patterncc.analysis.spectrum(stack, n), which can take half a minute at a million"
        )
    return spectrum_of(report.topology)
