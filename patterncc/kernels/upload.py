"""A layout on a device: the tensors and the text that the op takes, kept as long as it lives."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Literal, assert_never
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import SizeError
from patterncc.kernels.bundle import bundled
from patterncc.kernels.reference import LIMIT
from patterncc.kernels.runtime import Choice, cpu_kernels, pick_backend
from patterncc.kernels.spec import Backend, Spec
from patterncc.kernels.tables import kernel_tables
from patterncc.kernels.terms import Term, Terms
from patterncc.kernels.unread import unread_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout

log = logging.getLogger("patterncc")

Prepared = tuple[list[Tensor], str, Backend]
"""A layout's tensors on a device, the text of its spec or terms, the backend that reads both.

The last tensor is for the op alone: `unread.unread_keys`.
"""

Form = Literal["tables", "constants", "bundle"]
"""As made, the same and marked as constants of traced graphs, or one tensor for a saved program."""

_prepared: WeakKeyDictionary[Layout, dict[tuple[torch.device, str, Form], Prepared]] = (
    WeakKeyDictionary()
)


def prepared(layout: Layout, device: torch.device, requested: str) -> Prepared:
    """What the op takes of a layout on a device, for the backend that `requested` picks.

    Kept as long as the layout lives; the first use of a backend on a device is logged.
    """
    return _kept(layout, device, requested, "tables")


def traced(layout: Layout, device: torch.device, requested: str) -> Prepared:
    """`prepared` as constants of a graph that torch traces: their sizes never vary.

    An exported program holds a bundle: torch.export.save takes no tensor without elements, as the
    tables of masks are that a layout does not have.
    """
    if torch.compiler.is_exporting():
        return _kept(layout, device, requested, "bundle")
    dynamo = "torch._dynamo" in sys.modules  # slow to import, and there if it traces
    return _kept(layout, device, requested, "constants" if dynamo else "tables")


def _kept(layout: Layout, device: torch.device, requested: str, form: Form) -> Prepared:
    kept = _prepared.setdefault(layout, {})
    key = (device, requested, form)
    if key not in kept:
        if torch.compiler.is_exporting():  # tensors made here would be fake, and kept
            with ThreadPoolExecutor(1) as apart:
                kept[key] = apart.submit(_made, layout, device, requested, form).result()
        else:
            kept[key] = _made(layout, device, requested, form)
    return kept[key]


def _made(layout: Layout, device: torch.device, requested: str, form: Form) -> Prepared:
    match form:
        case "tables":
            choice = pick_backend(requested, device)
            _announce(choice, device)
            tensors, text = _carried(layout, choice.backend, device)
            unread = torch.from_numpy(np.array(unread_keys(layout))).to(device)
            return [*tensors, unread], text, choice.backend
        case "constants":
            made = _kept(layout, device, requested, "tables")
            for x in made[0]:
                sys.modules["torch._dynamo"].mark_static(x)
            return made
        case "bundle":
            tensors, text, backend = _kept(layout, device, requested, "tables")
            return bundled(tensors), text, backend
        case _:
            assert_never(form)


@cache
def _announce(choice: Choice, device: torch.device) -> None:
    why = choice.reason + (f"; {cpu_kernels()}" if choice.backend == "cpu" else "")
    log.info("attention on %s runs on the %s backend: %s", device, choice.backend, why)


def _carried(layout: Layout, backend: Backend, device: torch.device) -> tuple[list[Tensor], str]:
    """The op's tensors and text: of the spec alone where tiles stand in token order."""
    if layout.positions is not None:
        spec = Spec.of(layout, backend)
        tables = _tensors(layout, spec, device)
        places = [torch.from_numpy(np.array(x)).to(device) for x in layout.positions]
        text = Terms((Term(spec, len(tables), placed=True),)).text()
        return [*tables, *places], spec.text() if backend == "reference" else text
    placed = layout.order is not None or bool(layout.rest)
    if not placed or backend == "reference":  # a dense mask stands in token order
        spec = Spec.of(layout, backend)
        return _tensors(layout, spec, device), spec.text()
    tensors: list[Tensor] = []
    terms = []
    for term in [t for t in layout.terms if len(t.rows.run)] or [layout.terms[0]]:
        plain = replace(term, order=None, rest=())
        spec = Spec.of(plain, backend)
        tables = _tensors(plain, spec, device)
        indices, queries, keys = _indices(term, device)
        before, reach = _tiles_before(term)
        if keys is None:
            terms.append(Term(spec, len(tables), queries))
        else:
            terms.append(Term(spec, len(tables), queries, keys, reach))
            indices.append(torch.from_numpy(before).to(device))
        tensors += [*tables, *indices]
    only = terms[0]
    if len(terms) == 1 and only.queries is None and only.keys is None:
        return tensors, only.spec.text()
    return tensors, Terms(tuple(terms)).text()


def _tiles_before(term: Layout) -> tuple[NDArray[np.int64], int]:
    """Tiles before each run of the rows, [runs + 1], and the tiles of the longest tile row."""
    before = np.zeros(len(term.rows.run) + 1, dtype=np.int64)
    np.cumsum(term.rows.run[:, 1], out=before[1:])
    return before, int(np.diff(before[term.rows.ptr]).max(initial=0))


def _indices(term: Layout, device: torch.device) -> tuple[list[Tensor], int | None, int | None]:
    """The index tensors of a term's order, int32, and where those of queries and of keys stand.

    For a side: the token of each slot, then the slot of each token; nothing where both agree.
    """
    tensors: list[Tensor] = []
    order = term.order
    if order is None:
        return tensors, None, None
    places: list[int | None] = []
    for index, inverse in ((order.queries, order.query_slots), (order.keys, order.key_slots)):
        if np.array_equal(index, np.arange(len(index))):
            places.append(None)
        elif tensors and np.array_equal(index, order.queries):
            places.append(0)
        else:
            places.append(len(tensors))
            tensors += [torch.from_numpy(np.array(x)).to(device) for x in (index, inverse)]
    return tensors, places[0], places[1]


def _tensors(layout: Layout, spec: Spec, device: torch.device) -> list[Tensor]:
    """What the op carries for a backend."""
    match spec.backend:
        case "triton":
            return kernel_tables(layout, spec, device)
        case "cpu":
            arrays = [torch.from_numpy(np.array(x)) for x in layout.arrays.values()]
            named = [] if spec.layout_hash else [torch.tensor(list(bytes.fromhex(layout.hash)))]
            return arrays + named
        case "reference":
            if layout.n * layout.n_k > LIMIT:
                raise SizeError(
                    f'backend="reference" is dense: {layout.n} x {layout.n_k} passes {LIMIT}; '
                    'use backend="auto"'
                )
            return [torch.from_numpy(layout.dense()).to(device)]
        case _:
            assert_never(spec.backend)
