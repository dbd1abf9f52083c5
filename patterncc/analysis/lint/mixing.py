"""Findings about what a whole stack keeps apart: residue classes, and groups that never mix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from patterncc.analysis.engines.steps import common_step
from patterncc.analysis.lint.finding import Finding
from patterncc.analysis.lint.places import Family
from patterncc.analysis.topology import Topology, shared_documents
from patterncc.primitives import Tree
from patterncc.zones import algebra
from patterncc.zones.lower import leaves

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_GROUPED = 2**14  # runs of tokens that are joined one by one


def apart(t: Topology, families: tuple[Family, ...]) -> Iterator[Finding]:
    """PCC109: tokens that no number of layers brings together."""
    tables = list({id(level): level.zones.table for level in t.levels}.values())
    step = common_step(tables)
    if t.frame.n < 2 or not any(map(len, tables)):
        return
    if step == 0:
        yield Finding.of(
            "PCC109",
            f"no token reads another in any layer at n={t.n}: nothing ever mixes",
            "add edges to other tokens: a window, or full()",
        )
    elif step > 1:
        yield Finding.of(
            "PCC109",
            f"all distances that any layer crosses at n={t.n} are multiples of {step}: tokens of "
            f"different residues modulo {step} never mix",
            f"add window(1) to a layer or a head, or a step that shares no factor with {step}",
        )
    elif not _meant(t, families) and (found := groups(tables)) is not None:
        count, first, last = found
        yield Finding.of(
            "PCC109",
            f"the tokens fall into at least {count} groups that never mix in any layer; that of "
            f"token {first} ends at token {last}",
            "add a layer or a head whose edges cross from group to group: a window, a global "
            "token, full(); or keep them apart by documents(...), if it is meant",
        )


def _meant(t: Topology, families: tuple[Family, ...]) -> bool:
    """Documents and the branches of a tree are kept apart on purpose."""
    if shared_documents(t.stack) is not None:
        return True
    return all(any(isinstance(p, Tree) for p in leaves(f.pattern)) for f in families)


def groups(tables: list[algebra.I64]) -> tuple[int, int, int] | None:
    """At least how many groups of two tokens or more never mix, and the first and the last token of
    the first; None when there is one group or too many runs of tokens to tell.

    Queries and keys of one zone count as one group, so groups may be finer than this says.
    """
    tables = [z for z in tables if len(z)]
    if not tables or _at_once(tables):
        return None
    table = np.concatenate([z[(z[:, 4] < 0) | (z[:, 5] > 1)] for z in tables])
    ends = np.concatenate([table[:, 0:2], table[:, 2:4]])
    runs = algebra.merge_intervals(2 * ends - np.array([0, 1]))  # runs that only touch stay apart
    if not 1 < len(runs) <= MOST_GROUPED:
        return None
    query = np.searchsorted(runs[:, 0], 2 * table[:, 0], side="right") - 1
    key = np.searchsorted(runs[:, 0], 2 * table[:, 2], side="right") - 1
    root = _joined(len(runs), query, key)
    names, first = np.unique(root, return_index=True)
    if len(names) == 1:
        return None
    last = int(np.flatnonzero(root == root[0])[-1])
    return len(names), int(runs[int(first.min()), 0]) // 2, (int(runs[last, 1]) + 1) // 2 - 1


def _at_once(tables: list[algebra.I64]) -> bool:
    """One zone takes in, as queries or as keys, every token that any zone has."""
    low = min(int(z[:, 0:4:2].min()) for z in tables)
    high = max(int(z[:, 1:4:2].max()) for z in tables)
    return any(((z[:, 1:4:2] - z[:, 0:4:2]) == high - low).any() for z in tables)


def _joined(count: int, a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.intp]:
    """The least member of every element's group, joined by the pairs (a, b): labels sink until
    nothing moves, each also taking its label's label."""
    root = np.arange(count)
    while True:
        low = root.copy()
        np.minimum.at(low, a, root[b])
        np.minimum.at(low, b, root[a])
        np.minimum.at(low, root[a], root[b])
        np.minimum.at(low, root[b], root[a])
        low = low[low]
        if (low == root).all():
            return root
        root = low
