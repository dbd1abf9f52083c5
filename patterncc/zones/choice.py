"""What a model chooses by content while it runs: labels and indices as they are bound, by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from patterncc.errors import PatternValueError
from patterncc.pattern import Pattern, name_of
from patterncc.primitives import Routing, Topk
from patterncc.zones.graph_files import allow_edges
from patterncc.zones.merge import zones_of_edges
from patterncc.zones.site import Site, integers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

Chooser = Routing | Topk


def binding_of(p: Chooser) -> str:
    """The keyword that binds what a primitive chooses."""
    return name_of(type(p))


def varies(p: Pattern, bindings: Mapping[str, object] | None) -> tuple[bool, bool]:
    """Whether what a primitive chooses differs between layers, and between heads; without its
    binding both may be."""
    if not isinstance(p, Chooser):
        return False, False
    value = None if bindings is None else bindings.get(binding_of(p))
    if value is None:
        return (bindings is None,) * 2
    if isinstance(value, Mapping):
        return True, any(isinstance(place, tuple) for place in value)
    try:
        axes = np.ndim(value)  # type: ignore[arg-type]
    except ValueError:  # ragged: refused where it is lowered
        return False, False
    return axes > (1 if isinstance(p, Routing) else 2), False


def is_bound(p: Chooser, bindings: Mapping[str, object], layer: int, head: int) -> bool:
    """Whether the bindings say what is chosen in one head of a layer."""
    value = bindings.get(binding_of(p))
    if isinstance(value, Mapping):
        return layer in value or (layer, head) in value
    return value is not None


def chosen(p: Chooser, at: Site) -> Any:
    """What is bound for the site's layer and head, as it was given.

    Every layer chooses the same, or there is a leading axis of layers, or a dict by layer, or by
    (layer, head) for the heads of a pc.heads([...]) layer.
    """
    name = binding_of(p)
    if not is_bound(p, at.bindings, at.layer, at.head):
        where = f" in layer {at.layer}" if name in at.bindings else ""
        shape = "int array [n" + (f", <={p.count}]" if isinstance(p, Topk) else "]")
        raise PatternValueError(
            f"{p}: '{name}' is not bound{where}: which keys a query reads is chosen while the "
            f"model runs; pass what it chose as {name}=... ({shape}, -1 for none), or ask analyze, "
            "which tells what is guaranteed and what is possible"
        )
    value: Any = at.bindings[name]
    if isinstance(value, Mapping):
        return value[at.layer, at.head] if (at.layer, at.head) in value else value[at.layer]
    if not varies(p, at.bindings)[0]:
        return value
    if at.layer >= len(value):
        raise PatternValueError(
            f"{p}: {name} is bound for {len(value)} layers, and this is layer {at.layer}; give one "
            "entry for each layer of the stack, or a dict by layer"
        )
    return value[at.layer]


def topk(p: Topk, at: Site) -> I64:
    """Zones of the chosen keys; equal runs of blocks in consecutive rows are one box."""
    indices = _indices(p, chosen(p, at))
    last = at.frame.box[1]
    if len(indices) < last:
        raise PatternValueError(
            f"{p}: topk has rows for {len(indices)} queries, and the last one is at position "
            f"{last - 1}; give one row a position, counted from position 0"
        )
    _check_indices(p, indices, max(at.positions, len(indices)))
    r = at.region
    part = indices[r.i0 : r.i1]
    allow_edges(part.size, str(p))
    row, slot = np.nonzero((part >= 0) & (part > r.j0 // p.block - 1) & (part * p.block < r.j1))
    row, block = row.astype(np.int64) + r.i0, part[row, slot]
    table = zones_of_edges(row, block) if p.block == 1 else _boxes(row, block, p.block, at)
    at.allow(len(table), p)
    return table


def _indices(p: Topk, value: object) -> I64:
    """Rows of chosen keys or blocks; a flat list is cut into rows of `count`."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise PatternValueError(
            f"{p}: the rows of topk differ in length; fill them up with -1"
        ) from None
    if array.ndim == 1:
        flat = integers("topk", "topk", array)
        if p.count == 0 or len(flat) % p.count:
            raise PatternValueError(
                f"{p}: a flat list of {len(flat)} indices is not rows of {p.count}; give {p.count} "
                "a query, -1 for none, or an int array [n, <=count]"
            )
        return flat.reshape(-1, p.count)
    if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] > p.count:
        raise PatternValueError(
            f"{p}: topk is an int array [n, <={p.count}], -1 for none, of one layer; got "
            f"{array.dtype} of shape {list(array.shape)}"
        )
    return array.astype(np.int64, copy=False)


def _check_indices(p: Topk, indices: I64, positions: int) -> None:
    """Every index is a key of the sequence, or a block of them, or -1."""
    end = -(-positions // p.block)
    if indices.size and (int(indices.min()) < -1 or int(indices.max()) >= end):
        i, slot = np.argwhere((indices < -1) | (indices >= end))[0].tolist()
        what = "key" if p.block == 1 else "key block"
        raise PatternValueError(
            f"{p}: query {i} chooses {what} {int(indices[i, slot])}, and there are {end}; "
            "they count from 0, and -1 is none"
        )


def _boxes(row: I64, block: I64, width: int, site: Site) -> I64:
    """One box for each run of neighbouring blocks that consecutive rows have in common."""
    order = np.lexsort([block, row])
    row, block = row[order], block[order]
    new = np.append(True, (row[1:] != row[:-1]) | (block[1:] != block[:-1]))[: len(row)]
    row, block = row[new], block[new]
    opens = np.append(True, (row[1:] != row[:-1]) | (block[1:] != block[:-1] + 1))[: len(row)]
    at = np.flatnonzero(opens)
    row, first = row[at], block[at]
    last = block[np.append(at[1:], len(block))[: len(at)] - 1] + 1
    order = np.lexsort([row, last, first])
    row, first, last = row[order], first[order], last[order]
    same = (first[1:] == first[:-1]) & (last[1:] == last[:-1]) & (row[1:] == row[:-1] + 1)
    starts = np.flatnonzero(np.append(True, ~same)[: len(row)])
    ends = np.append(starts[1:], len(row))[: len(starts)] - 1
    return site.rows(row[starts], row[ends] + 1, first[starts] * width, last[starts] * width)


def read_array(owner: str, path: str) -> NDArray[np.integer[Any]]:
    """The integers in a .npy file: labels, or the keys that a run of a model chose."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise PatternValueError(
            f"{owner}: cannot read {path!r}: {error.strerror or 'not a .npy file'}"
        ) from None
    except (ValueError, EOFError) as error:
        raise PatternValueError(f"{owner}: {path!r} holds no array: {error}") from None
    if array.dtype.kind not in "iu":
        raise PatternValueError(
            f"{owner}: {path!r} holds {array.dtype}; integers are needed, as numpy.save writes "
            "them from array.astype(int)"
        )
    found: NDArray[np.integer[Any]] = array
    return found
