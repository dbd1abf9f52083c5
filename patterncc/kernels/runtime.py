"""From a plan to a running kernel: sources in a cache, layouts on a device, launches.

The cache directory is PATTERNCC_CACHE or ~/.cache/patterncc; the environment is read here and
nowhere below.  A source file is named by the hash of its content, written at once or not at all,
and checked against its name before it is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from patterncc.errors import BackendError, SizeError, suggest
from patterncc.kernels.emit import emit, entry
from patterncc.kernels.fragments import fragment_order, on_their_side
from patterncc.kernels.plan import Backend, Plan, Spec, Target
from patterncc.kernels.reference import LIMIT
from patterncc.kernels.terms import Term, Terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patterncc.layout.layout import Layout, Runs

log = logging.getLogger("patterncc")


def cache_dir() -> Path:
    """Where kernel sources are kept: $PATTERNCC_CACHE, else ~/.cache/patterncc."""
    named = os.environ.get("PATTERNCC_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "patterncc"


def interpreting() -> bool:
    """Triton runs its kernels in Python (TRITON_INTERPRET=1), on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def save_source(source: str, name: str, directory: Path | None = None) -> Path:
    """Keep a source as ``name-<hash of the text>.py``; an equal file that is there already is kept.

    Raises BackendError when the directory cannot be written.
    """
    folder = directory or cache_dir()
    digest = hashlib.sha256(source.encode()).hexdigest()[:24]
    path = folder / f"{name}-{digest}.py"
    try:
        if path.exists() and path.read_text(encoding="utf-8") == source:
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, prefix=".writing-", suffix=".py", delete=False, encoding="utf-8"
        ) as part:
            part.write(source)
        os.replace(part.name, path)
    except OSError as error:
        raise BackendError(
            f"kernel source {path} cannot be written: {error}; "
            "set PATTERNCC_CACHE to a directory that can"
        ) from None
    return path


def load_source(path: Path, name: str) -> Any:
    """Import a saved source and return its kernel, after checking the text against the file's name.

    Raises BackendError for a file that was altered.
    """
    text = path.read_bytes()
    digest = hashlib.sha256(text).hexdigest()[:24]
    if not path.stem.endswith(f"-{digest}"):
        raise BackendError(f"kernel source {path} does not match its hash; delete it and run again")
    module_name = f"patterncc_generated_{path.stem.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return getattr(module, name)


@dataclass(frozen=True)
class Choice:
    """Which backend runs, and why, in one sentence."""

    backend: Backend
    reason: str


def pick_backend(requested: str, device: torch.device) -> Choice:
    """The backend for tensors on a device.

    "auto" is the Triton kernels on CUDA and torch's flash kernels on the CPU; any other device is
    refused, and nothing ever goes to dense attention by itself.

    >>> pick_backend("auto", torch.device("cpu")).backend
    'cpu'

    Raises BackendError, with the remedy, for a backend that cannot run there.
    """
    kind = device.type
    match requested:
        case "auto" if kind == "cuda":
            require_triton()
            return Choice("triton", "tensors are on CUDA")
        case "auto" | "cpu" if kind == "cpu":
            return Choice("cpu", "tensors are on the CPU")
        case "auto":
            raise BackendError(f"no backend for tensors on {device}; move them to CUDA or the CPU")
        case "cpu":
            raise BackendError(f'backend="cpu" takes CPU tensors; these are on {device}')
        case "triton" if kind == "cuda" or (kind == "cpu" and interpreting()):
            require_triton()
            return Choice("triton", "asked for" + (", interpreted" if interpreting() else ""))
        case "triton":
            raise BackendError(
                f'backend="triton" needs CUDA tensors; these are on {device}.  Move them, use '
                'backend="cpu", or set TRITON_INTERPRET=1 before Python starts, to run the kernels '
                "slowly on the CPU"
            )
        case "reference":
            return Choice("reference", "asked for; dense, for small inputs only")
        case _:
            known = ("auto", "triton", "cpu", "reference")
            raise BackendError(f"no backend {requested!r}; {suggest(str(requested), known)}")


Prepared = tuple[list[Tensor], str, Backend]
"""A layout's tensors on a device, the text of its spec or terms, the backend that reads both."""

_prepared: WeakKeyDictionary[Layout, dict[tuple[torch.device, str], Prepared]] = WeakKeyDictionary()


def prepared(layout: Layout, device: torch.device, requested: str) -> Prepared:
    """What the op takes of a layout on a device, for the backend that `requested` picks.

    Kept as long as the layout lives; the first use of a backend on a device is logged.
    """
    kept = _prepared.setdefault(layout, {})
    key = (device, requested)
    if key not in kept:
        choice = pick_backend(requested, device)
        _announce(choice, device)
        kept[key] = (*_carried(layout, choice.backend, device), choice.backend)
    return kept[key]


@cache
def _announce(choice: Choice, device: torch.device) -> None:
    log.info("attention on %s runs on the %s backend: %s", device, choice.backend, choice.reason)


def _carried(layout: Layout, backend: Backend, device: torch.device) -> tuple[list[Tensor], str]:
    """The op's tensors and text: of the spec alone where tiles stand in token order."""
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


@lru_cache(maxsize=256)
def kernel(plan: Plan) -> Any:
    """The Triton kernel of a plan: emitted, saved and imported once a process."""
    require_triton()
    return load_source(save_source(emit(plan), plan.kind), entry(plan))


@cache
def require_triton() -> None:
    """Raises BackendError, with the remedy, when triton cannot be imported."""
    if importlib.util.find_spec("triton") is None:
        raise BackendError('triton is not installed; pip install "triton>=3.6", or backend="cpu"')


def target_of(device: torch.device) -> Target:
    """The target whose default sizes fit a device: sm_80, sm_90, sm_100 or interpreter."""
    if interpreting() or device.type != "cuda":
        return "interpreter"
    major, _ = torch.cuda.get_device_capability(device)
    if major < 8:
        name = torch.cuda.get_device_name(device)
        raise BackendError(
            f"{name} is below compute capability 8.0, the least that kernels support"
        )
    return "sm_80" if major == 8 else "sm_90" if major == 9 else "sm_100"


def kernel_tables(layout: Layout, spec: Spec, device: torch.device) -> list[Tensor]:
    """The op's tensors in the form that kernels read, all int32 on `device`.

    head_pattern [heads or 1]; ptr [lines + 1] and run [runs + 2, 4] of rows, then of columns: first
    tile, tile count, mask word, tiles before the run; two sentinels end a table.
    zone [count, K, 8]; bits of rows, then of columns, as `fragment_order` gives them.
    """
    slots = max(1, spec.zones)
    zone = np.zeros((len(layout.zones), slots, 8), dtype=np.int32)
    zone[:, :, :6] = layout.zones[:, :slots]
    rows, cols = layout.rows, layout.cols
    tables = [layout.head_pattern, rows.ptr, _counted(rows), cols.ptr, _counted(cols), zone]
    by_key = on_their_side(layout.bits, layout.block[1])
    tables += [fragment_order(layout.bits), fragment_order(by_key)]
    return [torch.from_numpy(np.array(t)).to(device) for t in tables]


def _counted(runs: Runs) -> NDArray[np.int32]:
    """Runs with a fourth column, the tiles before each, and the two sentinels."""
    before = np.zeros(len(runs.run) + 1, dtype=np.int64)
    np.cumsum(runs.run[:, 1], out=before[1:])
    if before[-1] >= 2**31 or len(runs.run) >= 2**29:  # 32-bit offsets into the table
        raise SizeError(
            f"a layout of {before[-1]} tiles in {len(runs.run)} runs passes the kernels' "
            f"{2**31 - 1} and {2**29 - 1}; use larger blocks"
        )
    table = np.zeros((len(runs.run) + 2, 4), dtype=np.int32)
    table[:-2, :3] = runs.run
    table[:-1, 3] = before
    return table
