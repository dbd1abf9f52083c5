"""A layout as tensors and one line of text: what a graph that torch traces may take as an input.

A `Layout` is a constant of a traced graph, so another layout is another graph.  Layouts that come
with every batch are carried instead: their tensors are inputs, and their text is the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from patterncc.errors import BackendError, PatternError
from patterncc.kernels import upload
from patterncc.kernels.bundle import bundled
from patterncc.kernels.spec import Backend, Spec
from patterncc.kernels.terms import Term, Terms, opened, parsed
from patterncc.layout.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, eq=False)
class CarriedLayout:
    """A layout on a device, for one backend; `attention` takes it in place of the layout.

    tensors, plan: what the op takes for all rows, the same plan for layouts of other lengths.
    step: in place of the plan for a decode step.  heads: None where it serves any number.
    """

    n: int
    n_k: int
    q_offset: int
    k_offset: int
    block: tuple[int, int]
    heads: int | None
    sequences: int
    device: torch.device
    backend: Backend
    plan: str
    tensors: tuple[Tensor, ...]
    step: str


@overload
def carry(
    layout: Layout, device: torch.device | str = "cpu", backend: str = "auto"
) -> CarriedLayout: ...


@overload
def carry(
    layout: Sequence[Layout], device: torch.device | str = "cpu", backend: str = "auto"
) -> tuple[CarriedLayout, ...]: ...


def carry(
    layout: Layout | Sequence[Layout],
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> CarriedLayout | tuple[CarriedLayout, ...]:
    """The layout's tensors on a device, for the backend that runs there.

    Of several layouts, such as `compile` makes of a stack, a tuple; one that stands for several
    layers is carried once.

    >>> from patterncc import causal
    >>> from patterncc.layout import compile
    >>> one, other = (carry(compile(causal(), 64, key_lengths=k)) for k in (40, 64))
    >>> one.plan == other.plan
    True

    Raises BackendError for a backend that cannot run there, PatternError for what is no layout.
    """
    if isinstance(layout, tuple | list):
        made: dict[int, CarriedLayout] = {}
        for x in layout:
            if id(x) not in made:
                made[id(x)] = _carried(x, device, backend)
        return tuple(made[id(x)] for x in layout)
    return _carried(layout, device, backend)


def _carried(layout: object, device: torch.device | str, backend: str) -> CarriedLayout:
    if not isinstance(layout, Layout):
        raise PatternError(
            f"carry: give a layout, or the layouts of a stack, not a {type(layout).__name__}; "
            "layout = pc.compile(pattern, n) makes one of a pattern"
        )
    where = torch.device(device)
    tensors, step, runs_on = upload.prepared(layout, where, backend)
    if runs_on == "cpu":
        tensors, step = _named_by_tensors(tensors, step)
    return CarriedLayout(
        n=layout.n,
        n_k=layout.n_k,
        q_offset=layout.q_offset,
        k_offset=layout.k_offset,
        block=layout.block,
        heads=layout.heads,
        sequences=layout.sequences,
        device=where,
        backend=runs_on,
        plan=opened(step),
        tensors=tuple(bundled(tensors)),
        step=step,
    )


def _named_by_tensors(tensors: list[Tensor], text: str) -> tuple[list[Tensor], str]:
    """The layout's name, by which the CPU keeps what it makes of it, as a tensor of each term and
    no longer in the text, so that layouts of other lengths have equal texts."""
    made = parsed(text)
    terms = [Term(made, len(tensors) - 1)] if isinstance(made, Spec) else made.terms
    placed, named, start = [], [], 0
    for t in terms:
        own = tensors[start : start + t.tensors]
        start += t.tensors
        if t.spec.layout_hash:
            own.insert(t.tables, torch.tensor(list(bytes.fromhex(t.spec.layout_hash))))
            t = replace(t, spec=replace(t.spec, layout_hash=""), tables=t.tables + 1)
        placed += own
        named.append(t)
    text = named[0].spec.text() if isinstance(made, Spec) else Terms(tuple(named)).text()
    return [*placed, tensors[-1]], text


def prepared(
    layout: CarriedLayout, device: torch.device, requested: str, *, step: bool = False
) -> upload.Prepared:
    """What the op takes, or where it is a step that of decoding.

    Raises BackendError for another device or backend than it was carried to.
    """
    indices = {device.index, layout.device.index} - {None}  # "cuda" is the current one
    if device.type != layout.device.type or len(indices) > 1:
        raise BackendError(
            f"attention: tensors on {device}, a layout carried to {layout.device}; carry it there"
        )
    if requested not in ("auto", layout.backend):
        raise BackendError(
            f'attention: backend="{requested}", a layout carried for "{layout.backend}"; carry it '
            "for the backend that runs it"
        )
    return list(layout.tensors), layout.step if step else layout.plan, layout.backend
